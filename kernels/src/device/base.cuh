// What all kernels share, whatever the chip: fixed-width types, and what is made of the instructions that a chip's own file
// (base_cuda.cuh, base_hip.h) gives names to. Sources include nothing: compilers have no headers here.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __HIP__
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads) __attribute__((amdgpu_flat_work_group_size(threads, threads)))
#endif

#define DEVICE static __device__ __forceinline__

// Sizes of the step, in device memory: a captured graph is launched for steps of other sizes, up to those it was captured
// for. Behind them, what routers find: how many have run, which of them first met a token whose logits are not finite (none: ~0),
// the first such token, and how many experts all of them sent tokens to.
struct Counts {
    u32 tokens, sequences, rows, tiles;
    u32 routes, bad_route, bad_token, experts;
    __device__ u32 tokens_or_rows(bool of_rows) const { return of_rows ? rows : tokens; }
    // Of a launch with so many rows a token; of one for each row of logits, where that is 0.
    __device__ u32 rows_of(u32 each) const { return each == 0 ? rows : tokens * each; }
};

struct alignas(16) U4 {
    u32 x, y, z, w;
};
struct alignas(8) U2 {
    u32 x, y;
};

// Instructions of AMD's RDNA 3.5 under the names that shared sources use: what CUDA has built in, and what base_cuda.cuh
// defines for NVIDIA chips. Wavefronts have 32 lanes. There are no headers and no device library, so all is made of the
// compiler's builtins; no kernel needs hidden arguments, since sizes of blocks and grids are constants of the templates.

typedef u32 V4 __attribute__((ext_vector_type(4)));
typedef u32 V2 __attribute__((ext_vector_type(2)));
typedef _Float16 H2 __attribute__((ext_vector_type(2)));

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
DEVICE float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
DEVICE float2 make_float2(float x, float y) { return float2{x, y}; }

// ---- Where a thread is ----

struct ThreadIndex {
    const u32 x;
};
struct BlockIndex {
    const u32 x, y, z;
};
#define threadIdx (ThreadIndex{__builtin_amdgcn_workitem_id_x()})
#define blockIdx \
    (BlockIndex{__builtin_amdgcn_workgroup_id_x(), __builtin_amdgcn_workgroup_id_y(), __builtin_amdgcn_workgroup_id_z()})

template <int THREADS>
DEVICE u32 block_threads() {
    static_assert(THREADS > 0, "the kernel tells how many threads a block has");
    return THREADS;
}
template <int THREADS>
DEVICE u32 block_thread() {
    return threadIdx.x;
}
template <int BLOCKS>
DEVICE u32 grid_blocks() {
    static_assert(BLOCKS > 0, "the kernel tells how many blocks a grid has");
    return BLOCKS;
}

// ---- Bits ----

DEVICE u32 __float_as_uint(float v) { return __builtin_bit_cast(u32, v); }
DEVICE float __uint_as_float(u32 v) { return __builtin_bit_cast(float, v); }
DEVICE u32 and_or(u32 a, u32 mask, u32 bits) { return (a & mask) | bits; }
// Bytes of a (0 to 3) and b (4 to 7) by the four nibbles of a selector.
DEVICE u32 permute(u32 a, u32 b, u32 selector) {
    const u32 bytes = (selector & 7) | (selector >> 4 & 7) << 8 | (selector >> 8 & 7) << 16 | (selector >> 12 & 7) << 24;
    return __builtin_amdgcn_perm(b, a, bytes);
}
DEVICE u32 __popc(u32 v) { return __builtin_popcount(v); }
DEVICE u32 __byte_perm(u32 a, u32 b, u32 selector) { return permute(a, b, selector); }

// ---- Numbers ----

// What is written as one operation is rounded as one, though the compiler may fuse others.
DEVICE float __fadd_rn(float a, float b) {
#pragma clang fp contract(off)
    return a + b;
}
DEVICE float __fsub_rn(float a, float b) {
#pragma clang fp contract(off)
    return a - b;
}
DEVICE float __fmul_rn(float a, float b) {
#pragma clang fp contract(off)
    return a * b;
}
DEVICE float __fdiv_rn(float a, float b) { return a / b; }
DEVICE float __frcp_rn(float a) { return 1.f / a; }
DEVICE float __fdividef(float a, float b) { return a * __builtin_amdgcn_rcpf(b); }
DEVICE float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
DEVICE float fminf(float a, float b) { return __builtin_fminf(a, b); }
DEVICE float fabsf(float a) { return __builtin_fabsf(a); }
DEVICE float sqrtf(float a) { return __builtin_sqrtf(a); }
DEVICE double ceil(double a) { return __builtin_ceil(a); }
DEVICE float exp2_fast(float x) { return __builtin_amdgcn_exp2f(x); }
DEVICE float __expf(float x) { return exp2_fast(x * 1.4426950408889634f); }
DEVICE int __float2int_rn(float a) { return (int)__builtin_rintf(a); }
DEVICE u64 __float2ull_rn(float a) {
    // Two words, each exactly: a is not negative.
    const float whole = __builtin_rintf(a), high = __builtin_truncf(__fmul_rn(whole, 2.3283064365386963e-10f));
    return (u64)(u32)high << 32 | (u32)__builtin_fmaf(high, -4294967296.f, whole);
}

// f16 pairs, as a register holds them.
DEVICE H2 halves(u32 v) { return __builtin_bit_cast(H2, v); }
DEVICE u32 half2_sub(u32 a, u32 b) { return __builtin_bit_cast(u32, halves(a) - halves(b)); }
DEVICE u32 half2_mul(u32 a, u32 b) { return __builtin_bit_cast(u32, halves(a) * halves(b)); }
DEVICE u32 half2_fma(u32 a, u32 b, u32 c) {
    return __builtin_bit_cast(u32, __builtin_elementwise_fma(halves(a), halves(b), halves(c)));
}
DEVICE float low_half(u32 v) { return (float)halves(v).x; }
DEVICE float high_half(u32 v) { return (float)halves(v).y; }
DEVICE float half_to_float(u16 v) { return (float)__builtin_bit_cast(_Float16, v); }
DEVICE u16 float_to_half(float v) { return __builtin_bit_cast(u16, (_Float16)v); }
// low in the low half
DEVICE u32 floats_to_half2(float low, float high) { return __builtin_bit_cast(u32, H2{(_Float16)low, (_Float16)high}); }
// c + the products of two pairs
DEVICE float dot2(u32 a, u32 b, float c) { return __builtin_amdgcn_fdot2(halves(a), halves(b), c, false); }

// ---- Memory ----

// A weight is read once a step: it must not push others out of the caches.
DEVICE U4 load_once(const U4* p) { return __builtin_bit_cast(U4, __builtin_nontemporal_load((const V4*)p)); }
DEVICE U2 load_once(const U2* p) { return __builtin_bit_cast(U2, __builtin_nontemporal_load((const V2*)p)); }
DEVICE u32 load_once(const u32* p) { return __builtin_nontemporal_load(p); }
// What other kernels and blocks wrote: not from the first caches, which may hold an older state.
template <class T>
DEVICE T load_fresh(const T* p) {
    return __hip_atomic_load(p, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
DEVICE u32 atomicOr(u32* p, u32 v) { return __hip_atomic_fetch_or(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP); }
DEVICE u32 atomicAdd(u32* p, u32 v) { return __hip_atomic_fetch_add(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT); }
// The next of `last + 1` tickets, and what other blocks wrote before they took theirs; after the last it is the first's turn
// again.
DEVICE u32 next_ticket(u32* p, u32 last) { return __builtin_amdgcn_atomic_inc32(p, last, __ATOMIC_ACQ_REL, "agent"); }

// What comes behind is not begun before: a loop's steps together would need more registers than there are.
DEVICE void steps_apart() { __builtin_amdgcn_sched_barrier(0); }

// Launches of a stream follow one another; nothing reads ahead of them.
DEVICE void let_next_start() {}
DEVICE void wait_for_previous() {}
template <int N>
DEVICE void fetch_floats(const float*) {}

// ---- Threads among one another ----

// All memory.
DEVICE void __syncthreads() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
// Shared memory alone: reads of global memory stay under way.
DEVICE void shared_barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup", "local");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup", "local");
}
// What lanes of a wavefront wrote to shared memory is there for its others.
DEVICE void wave_barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront", "local");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront", "local");
}

template <int D>
DEVICE u32 word_xor(u32 v) {
    static_assert(D == 1 || D == 2 || D == 4 || D == 8 || D == 16, "a lane's number has five bits");
    if constexpr (D == 16)
        return __builtin_amdgcn_permlanex16(v, v, 0x76543210, 0xfedcba98, true, false);
    else
        return __builtin_amdgcn_update_dpp(v, v, 0x160 | D, 0xf, 0xf, true);
}
DEVICE u32 word_from(u32 v, u32 lane) { return __builtin_amdgcn_ds_bpermute((int)(lane * 4), (int)v); }
// The value of the lane whose number differs in the bits of D.
template <int D, class T>
DEVICE T lane_xor(T v) {
    if constexpr (sizeof(T) == 8) {
        const u64 bits = __builtin_bit_cast(u64, v);
        return __builtin_bit_cast(T, (u64)word_xor<D>((u32)(bits >> 32)) << 32 | word_xor<D>((u32)bits));
    } else {
        return __builtin_bit_cast(T, word_xor<D>(__builtin_bit_cast(u32, v)));
    }
}
// The value of the lane d below; of its own where there is none.
DEVICE u64 lane_up(u64 v, int d) {
    const u32 lane = threadIdx.x & 31, from = lane < (u32)d ? lane : lane - d;
    return (u64)word_from((u32)(v >> 32), from) << 32 | word_from((u32)v, from);
}
DEVICE float warp_sum(float v) {
    v += lane_xor<16>(v), v += lane_xor<8>(v), v += lane_xor<4>(v), v += lane_xor<2>(v);
    return v + lane_xor<1>(v);
}
DEVICE float warp_max(float v) {
    v = fmaxf(v, lane_xor<16>(v)), v = fmaxf(v, lane_xor<8>(v)), v = fmaxf(v, lane_xor<4>(v)), v = fmaxf(v, lane_xor<2>(v));
    return fmaxf(v, lane_xor<1>(v));
}

// A step of a fragment (fragment.cuh) that is known when the code runs: registers are not indexed.
template <class F>
DEVICE void dequantise_step(const typename F::Fragment& f, int step, u32 (&a)[4]) {
    switch (step) {
        case 0: F::dequantise(f, 0, a); break;
        case 1: F::dequantise(f, 1, a); break;
        case 2: F::dequantise(f, 2, a); break;
        default: F::dequantise(f, 3, a);
    }
}

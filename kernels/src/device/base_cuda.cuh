// Memory instructions of NVIDIA chips with their cache hints, launch dependencies, the instructions of the matrix unit, and
// what threads tell one another.

// A weight is read once a step: it must not push activations out of the first cache.
DEVICE U4 load_once(const U4* p) {
    U4 r;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}
DEVICE U2 load_once(const U2* p) {
    U2 r;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(p));
    return r;
}
DEVICE u32 load_once(const u32* p) {
    u32 r;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(r) : "l"(p));
    return r;
}

// Activations: written by an earlier launch, so not through the read-only path, which a dependent launch may have filled
// too early.
DEVICE U4 load_shared_line(const U4* p) {
    U4 r;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p)
                 : "memory");
    return r;
}

DEVICE u32 shared_address(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}
DEVICE U4 load_from_shared(u32 at) {
    U4 r;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(at));
    return r;
}

// Other chips' compilers are told not to begin a step before the last (base_hip.h).
DEVICE void steps_apart() {}

// A barrier for what lies in shared memory; here there is one for all (base_hip.h).
DEVICE void shared_barrier() { __syncthreads(); }

// Programmatic dependent launch. A kernel says early that the next may start, so that the next one's weights are on their
// way while this one computes; and it waits for the ones before it before it touches anything that they write.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// f16 pairs, as the registers of the matrix unit hold them.
DEVICE u32 and_or(u32 a, u32 mask, u32 bits) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
    return r;
}
DEVICE u32 half2_sub(u32 a, u32 b) {
    u32 r;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
DEVICE u32 half2_mul(u32 a, u32 b) {
    u32 r;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
DEVICE u32 half2_fma(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
DEVICE u32 permute(u32 a, u32 b, u32 selector) {
    u32 r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
    return r;
}
DEVICE float low_half(u32 v) {
    float r;
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(r) : "r"(v));
    return r;
}
DEVICE float high_half(u32 v) {
    float r;
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(r) : "r"(v));
    return r;
}
DEVICE float half_to_float(u16 v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
}
DEVICE u16 float_to_half(float v) {
    u16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}
// low in the low half
DEVICE u32 floats_to_half2(float low, float high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// c[16, 8] += a[16, 16] b[16, 8]. Lane 4g + t holds of a rows g and g + 8, of b column g, of c columns 2t and 2t + 1 of rows
// g (c[0], c[1]) and g + 8 (c[2], c[3]).
DEVICE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c[16, 8] += a[16, 32] b[32, 8], of bytes: without a sign, and with one. Lane 4g + t holds of a rows g and g + 8 at four k each
// (a[0], a[1]) and at four others (a[2], a[3]), of b column g at the same k, of c as above.
DEVICE void multiply_bytes(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Two words of shared memory, where `when` is set; otherwise they stay.
DEVICE void load_where(bool when, u32& x, u32& y, u32 at) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p ld.shared.v2.u32 {%0,%1}, [%2];}" : "+r"(x), "+r"(y) : "r"(at), "r"((u32)when));
}

// Barriers in shared memory: of `count` arrivals, after which the next phase begins. Phases are 0 and 1 in turn.
DEVICE void make_barrier(u32 at, u32 count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
DEVICE void arrive(u32 at) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(at) : "memory");
}
DEVICE void wait_until(u32 at, u32 phase) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;}" ::"r"(at), "r"(phase) : "memory");
#else
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;}" ::"r"(at), "r"(phase) : "memory");
#endif
}

// Barriers of the processor, from 1 on: `count` threads meet at one, of which those that arrive don't wait.
DEVICE void arrive_at(int barrier, int count) { asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(count) : "memory"); }
DEVICE void meet_at(int barrier, int count) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(count) : "memory"); }

// The value of the lane whose number differs in the bits of D.
template <int D, class T>
DEVICE T lane_xor(T v) {
    return __shfl_xor_sync(~0u, v, D);
}
// The value of the lane D below; of its own where there is none.
template <class T>
DEVICE T lane_up(T v, int d) {
    return __shfl_up_sync(~0u, v, d);
}
DEVICE float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, d));
    return v;
}

// What other kernels and blocks wrote: not from the first cache, which may hold an older state.
DEVICE u64 load_fresh(const u64* p) {
    u64 r;
    asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(r) : "l"(p) : "memory");
    return r;
}
DEVICE u32 load_fresh(const u32* p) {
    u32 r;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
    return r;
}
// The next of `last + 1` tickets, and what other blocks wrote before they took theirs; after the last it is the first's turn
// again.
DEVICE u32 next_ticket(u32* p, u32 last) {
    u32 taken;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(taken) : "l"(p), "r"(last) : "memory");
    return taken;
}

// Threads of a block, and blocks of a grid along x: where code that is shared is told THREADS or BLOCKS, it is told that number,
// which not every chip keeps in a register.
template <int THREADS>
DEVICE u32 block_threads() {
    return THREADS ? THREADS : blockDim.x;
}
// Of these threads, this one's number: of 32, one warp of a block has a task of its own.
template <int THREADS>
DEVICE u32 block_thread() {
    return THREADS == 32 ? threadIdx.x & 31 : threadIdx.x;
}
template <int BLOCKS>
DEVICE u32 grid_blocks() {
    return gridDim.x;
}

// Brings N floats to the second cache.
template <int N>
DEVICE void fetch_floats(const float* p) {
    for (int i = 32 * threadIdx.x; i < N; i += 32 * blockDim.x) asm volatile("prefetch.global.L2 [%0];" ::"l"(p + i));
}

// A step of a fragment (fragment.cuh) that is known when the code runs: an array in registers has no such index everywhere.
template <class F>
DEVICE void dequantise_step(const typename F::Fragment& f, int step, u32 (&a)[4]) {
    F::dequantise(f, step, a);
}

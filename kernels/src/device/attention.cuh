// Attention over a paged KV cache, f16 or 8 bits with scales, for sm_80 and later: `decode` takes every token on its own, `prefill` tiles of consecutive
// tokens of a sequence. Compiled by NVRTC without headers: nothing is included, what C++ lacks is inline PTX.
//
// A model is a struct of constants; a kernel is a wrapper around one of the two functions:
//   struct Llama { static constexpr int D = 128, HEADS = 32, KV_HEADS = 8, WINDOW = 0; static constexpr float SCALE = 0.08838834764f;
//                  static constexpr bool STABLE = true, Q8 = false, LEAN = false; };
//   extern "C" __global__ void __launch_bounds__(attention::Decode<Llama>::THREADS, attention::Decode<Llama>::MIN_CTAS)
//   attend(attention::Args a, u16* out) { attention::decode<Llama>(a, StoreF16{out}); }
// D is a multiple of 16 up to 256; of 32 where Q8. WINDOW is how many positions a query sees, itself included; 0 means all.
// STABLE says that counts, positions, sequences, tables and tiles were written before the chain of dependent launches began, so that
// they may be read before the launches ahead have finished. Queries, keys and values never are. LEAN takes fewer registers, on chips for
// which the assembler needs more.
//
// An epilogue is `store(row, head, tile)`, called by all 32 lanes of a warp: tile is D f32 values in shared memory, 16-byte aligned,
// that the warp alone may read and overwrite during the call.
#pragma once

namespace attention {

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct Args {
  const float* q;        // [T, HEADS * D], rotated
  const char* keys;      // pools of one layer: a KV head of a block is block * block_stride + kv_head * Kv<C>::HEAD, and there
  const char* values;    //   lie its 16 positions of D dims. Q8: behind them the 16 positions' f16 scales, one for each 32 dims
  u64 block_stride;      // bytes; a multiple of 16
  const u32* tables;     // [S][table_stride] block numbers; only entries of blocks that hold a visible position are read
  const u32* sequences;  // [T]
  const u32* positions;  // [T]
  const u32* counts;     // {T, S, R, tiles}; a grid may be larger
  const u32* tiles;      // [counts[3]][4]: first row, rows (1 ..= Prefill::BM), sequence, position of the first row; prefill only
  float* workspace;      // decode only, see Decode
  u32* tickets;          // decode only; zero before the first launch, and again after each
  u32 table_stride;
};

// ---- PTX ----

#define FI_DEVICE static __device__ __forceinline__

// The launch ahead may still run until wait() returns. Every grid must reach wait() in at least one block, also one with nothing to
// do: a launch waits only for the one before it, so a grid that ended early would release its successor too soon.
FI_DEVICE void dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
FI_DEVICE void dependents_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// These read the special register where they stand: blockIdx would be kept in a register from its first use on.
FI_DEVICE u32 block_index_x() {
  u32 r;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(r));
  return r;
}
FI_DEVICE u32 block_index_y() {
  u32 r;
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(r));
  return r;
}
FI_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FI_DEVICE u32 low_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
FI_DEVICE u32 high_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }
FI_DEVICE u32 transpose(u32 a) {
  u32 r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(a));
  return r;
}
// Lane 4g + t: a holds rows g, g+8, g, g+8 at columns 2t, 2t, 2t+8, 2t+8 (two of them a register); b holds rows 2t, 2t+8 of column g;
// c holds (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
FI_DEVICE void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
FI_DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
FI_DEVICE void load_matrices(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
FI_DEVICE void load_matrices_transposed(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
// Volatile: kept out of loops, where what they load would take registers that are not there.
FI_DEVICE void load_shared(u32 (&r)[4], u32 at) {
  asm volatile("ld.volatile.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
FI_DEVICE void store_shared(u32 at, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
// Copies 16 bytes, or writes 16 zero bytes without touching `from`.
FI_DEVICE void copy_async(u32 to, const char* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
FI_DEVICE void prefetch(const char* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// The next of `last + 1` tickets, and what other blocks wrote before they took theirs; after the last it is the first's turn again.
FI_DEVICE u32 take_ticket(u32* p, u32 last) {
  u32 r;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(r) : "l"(p), "r"(last) : "memory");
  return r;
}
FI_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
FI_DEVICE void copies_wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// ---- KV elements ----

// Bytes from one position to the next, and from one KV head to the next (a head's 16 positions of a block lie together).
template <class C> struct Kv {
  static constexpr int ROW = C::Q8 ? C::D : C::D * 2, SCALES = C::Q8 ? C::D / 32 : 0, HEAD = 16 * (ROW + 2 * SCALES);
  static constexpr int WORDS = (SCALES + 1) / 2;  // of a position's scales
  static constexpr int BLOCK = 16 * ROW / 128;    // words of a lane, 32 of which hold the elements of a head's block
  static_assert(!C::Q8 || C::D % 32 == 0, "a scale for each 32 dims");
};
// 16, 8, 4 or 2 bytes. L1 keeps none: each is read once.
template <int BYTES> FI_DEVICE void load_bytes(u32* r, const char* p) {
  if (BYTES == 16)
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(p));
  if (BYTES == 8) asm volatile("ld.global.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "l"(p));
  if (BYTES == 4) asm volatile("ld.global.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(r[0]) : "l"(p));
  if (BYTES == 2) {
    u16 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.u16 %0, [%1];" : "=h"(v) : "l"(p));
    r[0] = v;
  }
}
// N values (2, 4 or 8) of a row from dim on: f16 pairs, or four signed bytes a word.
template <class C, int N> FI_DEVICE void kv_load(u32* r, const char* row, int dim) {
  load_bytes<C::Q8 ? N : 2 * N>(r, row + dim * (C::Q8 ? 1 : 2));
}
// The scales of a position, two a word.
template <class C> FI_DEVICE void kv_scales(u32* r, const char* head, int position) {
  constexpr int N = Kv<C>::SCALES, BYTES = N % 8 == 0 ? 16 : N % 4 == 0 ? 8 : N % 2 == 0 ? 4 : 2;
  const char* p = head + 16 * Kv<C>::ROW + position * 2 * N;
  if (BYTES > 2) {
#pragma unroll
    for (int i = 0; i < 2 * N / BYTES; i++) load_bytes<BYTES>(r + i * BYTES / 4, p + i * BYTES);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    u32 half;
    load_bytes<2>(&half, p + 2 * i);
    r[i / 2] = i % 2 ? r[i / 2] | half << 16 : half;
  }
}
FI_DEVICE u32 subtract(u32 a, u32 b) {
  u32 r;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
FI_DEVICE u32 scaled(u32 a, u32 scales) {
  u32 r;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(scales));
  return r;
}
FI_DEVICE float number(u32 pair, bool high) {
  float r;
  const u16 half = (u16)(high ? pair >> 16 : pair);
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(half));
  return r;
}
// Signed bytes as f16, exactly: 1024 + 128 + byte has it in its lowest bits.
FI_DEVICE void expand(u32 bytes, u32& low, u32& high) {
  const u32 moved = bytes ^ 0x80808080u;
  low = subtract(__byte_perm(moved, 0x64646464u, 0x4140), 0x64806480u);
  high = subtract(__byte_perm(moved, 0x64646464u, 0x4342), 0x64806480u);
}

// Scores are kept in powers of two: the scale takes log2(e) with it.
template <class C> FI_DEVICE float query_scale() { return C::SCALE * 1.4426950408889634f; }
// A running maximum moves only when a score exceeds it by more than this; until then exponents reach 2^8, which f16 holds with the
// same relative error. Each row decides for itself, so a result depends on no neighbour.
constexpr float SLACK = 8.0f;
// Less than any score yet finite: differences of two such are 0, not NaN.
constexpr float LOWEST = -1e30f;
FI_DEVICE float masked() { return __uint_as_float(0xff800000u); }

}  // namespace attention

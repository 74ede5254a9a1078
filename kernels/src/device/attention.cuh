// Attention over a paged KV cache, f16 or 8 bits with scales, for sm_80 and later: `decode` takes every token on its own, `prefill` tiles of consecutive
// tokens of a sequence. Compiled by NVRTC without headers: nothing is included, what C++ lacks is inline PTX.
//
// A model is a struct of constants; a kernel is a wrapper around one of the two functions:
//   struct Llama { static constexpr int D = 128, HEADS = 32, KV_HEADS = 8, WINDOW = 0; static constexpr float SCALE = 0.08838834764f;
//                  static constexpr bool STABLE = true, Q8 = false; };
//   extern "C" __global__ void __launch_bounds__(attention::Decode<Llama>::THREADS, attention::Decode<Llama>::MIN_CTAS)
//   attend(attention::Args a, u16* out) { attention::decode<Llama>(a, StoreF16{out}); }
// D is a multiple of 16 up to 256; of 32 where Q8. WINDOW is how many positions a query sees, itself included; 0 means all.
// STABLE says that counts, positions, sequences, tables and tiles were written before the chain of dependent launches began, so that
// they may be read before the launches ahead have finished. Queries, keys and values never are.
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
FI_DEVICE u32 pack(float low, float high) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
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

// ---- Decode ----

// One block of threads takes a token, up to 8 query heads of one KV head, and a share of the positions:
//   grid = (PAIRS, rows, splits), block = THREADS, dynamic shared memory = SHARED bytes (above 48 KB where D = 256 and HG > 5)
//   workspace = PAIRS * rows * splits * PARTIAL floats, tickets = PAIRS * rows (none of either is touched if splits = 1)
// Splits is fixed at capture: what fits at once, SMs * MIN_CTAS / (PAIRS * rows) rounded down, but at least 1; a context takes no more of
// them than it has use for.
// Scores are K . q and results V^T . p, so that the heads are the 8 columns of an mma and each byte of K and V goes from memory to the
// register of the one lane that multiplies it, 16 bytes a load: shared memory would add latency and nothing else.
template <class C> struct Decode {
  static constexpr int G = C::HEADS / C::KV_HEADS, GROUPS = (G + 7) / 8, HG = (G + GROUPS - 1) / GROUPS;
  static constexpr int PAIRS = C::KV_HEADS * GROUPS;
  static constexpr int WARPS = 8, THREADS = 32 * WARPS, MIN_CTAS = C::D <= 128 ? 2 : 1;
  static constexpr int ROW = C::D + 4;  // a partial result: D sums, their maximum, their weight; keeps float4 alignment
  static constexpr int PARTIAL = HG * ROW;
  static constexpr int KEYS = Kv<C>::BLOCK + 2 * Kv<C>::WORDS, VALUES = Kv<C>::BLOCK + 4 * Kv<C>::WORDS;  // registers of a lane
  static constexpr int SHARED = (WARPS * PARTIAL + 4) * 4 + (C::D + 31) / 32 * 512;
  // Up to this many blocks of 16 positions (128 KB of K and V) one split is faster than a merge; above it a split gets at least SHARE.
  static constexpr u32 ALONE = 2048 / C::D, SHARE = 512 / C::D;
  static_assert(C::D % 16 == 0 && C::D <= 256 && C::HEADS % C::KV_HEADS == 0, "a shape this kernel does not cover");
};

// The 16 keys of a block as A fragments. Which dims form a column of the mma is free as long as queries agree: lane t of a row takes
// 8 consecutive dims (4 in a last half step), the first four as columns 2t, 2t+1, 2t+8, 2t+9 of one mma. Q8: then the two rows' scales.
template <class C> FI_DEVICE void decode_keys(u32 (&k)[Decode<C>::KEYS], const char* head, int g, int t) {
  const char* row = head + g * Kv<C>::ROW;
  constexpr int STEP = C::Q8 ? 4 : 8;
#pragma unroll
  for (int s = 0; s < C::D / 32; s++) {
    kv_load<C, 8>(k + STEP * s, row, 32 * s + 8 * t);
    kv_load<C, 8>(k + STEP * s + STEP / 2, row + 8 * Kv<C>::ROW, 32 * s + 8 * t);
  }
  if constexpr (C::Q8) {
    kv_scales<C>(k + Kv<C>::BLOCK, head, g);
    kv_scales<C>(k + Kv<C>::BLOCK + Kv<C>::WORDS, head, g + 8);
  }
  if constexpr (C::D % 32 != 0) {
    kv_load<C, 4>(k + C::D / 4 - 4, row, C::D - 16 + 4 * t);
    kv_load<C, 4>(k + C::D / 4 - 2, row + 8 * Kv<C>::ROW, C::D - 16 + 4 * t);
  }
}
// The 16 values of a block: a lane takes positions 2t, 2t+1, 2t+8, 2t+9 of 8 dims (then 4, then 2), whose halves it exchanges to A
// fragments of V^T.
template <class C, int N> FI_DEVICE void decode_values_part(u32* v, const char* row, int dim) {
  constexpr int W = C::Q8 ? N / 4 : N / 2;
  kv_load<C, N>(v, row, dim);
  kv_load<C, N>(v + W, row + Kv<C>::ROW, dim);
  kv_load<C, N>(v + 2 * W, row + 8 * Kv<C>::ROW, dim);
  kv_load<C, N>(v + 3 * W, row + 9 * Kv<C>::ROW, dim);
}
// Q8: then the four positions' scales.
template <class C> FI_DEVICE void decode_values(u32 (&v)[Decode<C>::VALUES], const char* head, int g, int t) {
  const char* row = head + 2 * t * Kv<C>::ROW;
  constexpr int STEP = C::Q8 ? 8 : 16;
#pragma unroll
  for (int s = 0; s < C::D / 64; s++) decode_values_part<C, 8>(v + STEP * s, row, 64 * s + 8 * g);
  constexpr int D32 = C::D / 64 * 64;
  if (C::D % 64 >= 32) decode_values_part<C, 4>(v + C::D / 64 * STEP, row, D32 + 4 * g);
  if constexpr (C::D % 32 != 0) decode_values_part<C, 2>(v + C::D / 4 - 4, row, C::D - 16 + 2 * g);
  if constexpr (C::Q8) {
#pragma unroll
    for (int i = 0; i < 4; i++) kv_scales<C>(v + Kv<C>::BLOCK + i * Kv<C>::WORDS, head, 2 * t + (i & 1) + 4 * (i & 2));
  }
}
// Scores of 32 dims: s += scales of the rows * (K . q).
FI_DEVICE void decode_scores_q8(float (&s)[4], const u32* k, const u32 (&q)[4], float scale, float scale8) {
  float c0[4] = {}, c1[4] = {};
  u32 a[8];
  expand(k[0], a[0], a[1]);
  expand(k[1], a[2], a[3]);
  expand(k[2], a[4], a[5]);
  expand(k[3], a[6], a[7]);
  mma(c0, a[0], a[4], a[1], a[5], q[0], q[1]);
  mma(c1, a[2], a[6], a[3], a[7], q[2], q[3]);
#pragma unroll
  for (int i = 0; i < 4; i++) s[i] += (c0[i] + c1[i]) * (i < 2 ? scale : scale8);
}
// W words (four dims each) of the four positions, whose scales are in pairs.
template <int W> FI_DEVICE void decode_sum_q8(float (*o)[4], const u32* v, u32 scales, u32 scales8, u32 p0, u32 p1) {
#pragma unroll
  for (int j = 0; j < W; j++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      u32 a[4];  // a dim of two positions, and the next dim
      expand(__byte_perm(v[j], v[W + j], h ? 0x7362 : 0x5140), a[0], a[1]);
      expand(__byte_perm(v[2 * W + j], v[3 * W + j], h ? 0x7362 : 0x5140), a[2], a[3]);
      mma(o[2 * j + h], scaled(a[0], scales), scaled(a[1], scales), scaled(a[2], scales8), scaled(a[3], scales8), p0, p1);
    }
}
template <int N> FI_DEVICE void decode_sum_part(float (*o)[4], const u32* v, u32 p0, u32 p1) {
#pragma unroll
  for (int j = 0; j < N / 2; j++)
    mma(o[j], low_halves(v[j], v[N / 2 + j]), high_halves(v[j], v[N / 2 + j]), low_halves(v[N + j], v[N / 2 * 3 + j]),
        high_halves(v[N + j], v[N / 2 * 3 + j]), p0, p1);
}
template <int N> FI_DEVICE void decode_zero_part(u32* v, bool z0, bool z1, bool z2, bool z3) {
#pragma unroll
  for (int j = 0; j < N / 2; j++) {
    v[j] = z0 ? 0 : v[j];
    v[N / 2 + j] = z1 ? 0 : v[N / 2 + j];
    v[N + j] = z2 ? 0 : v[N + j];
    v[N / 2 * 3 + j] = z3 ? 0 : v[N / 2 * 3 + j];
  }
}
// The accumulators of N dims from `dim` on of heads 2t and 2t+1 to shared rows.
template <class C, int N> FI_DEVICE void decode_spill_part(float* part, const float (*o)[4], int dim, int t) {
#pragma unroll
  for (int h = 0; h < 2; h++)
    if (2 * t + h < Decode<C>::HG) {
      float* to = part + (2 * t + h) * Decode<C>::ROW + dim;
#pragma unroll
      for (int j = 0; j < N / 2; j++) *(float2*)(to + 2 * j) = make_float2(o[j][h], o[j][h + 2]);
    }
}

// Merges N partial rows in shared memory, PARTIAL apart; `to` may be the first of them. The result is final or one partial row more.
template <class C, int N> FI_DEVICE void decode_merge(float* to, const float* from, bool final, int lane) {
  constexpr int D = C::D, APART = Decode<C>::PARTIAL;
  float m = LOWEST, l = 0, w[N];
#pragma unroll
  for (int i = 0; i < N; i++) m = fmaxf(m, w[i] = from[i * APART + D]);
#pragma unroll
  for (int i = 0; i < N; i++) l += from[i * APART + D + 1] * (w[i] = exp2_fast(w[i] - m));
  const float r = final ? 1.0f / l : 1.0f;
  __syncwarp();
#pragma unroll
  for (int d = lane * 4; d < D; d += 128) {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float4 x = *(const float4*)(from + i * APART + d);
      sum.x += w[i] * x.x, sum.y += w[i] * x.y, sum.z += w[i] * x.z, sum.w += w[i] * x.w;
    }
    *(float4*)(to + d) = make_float4(sum.x * r, sum.y * r, sum.z * r, sum.w * r);
  }
  if (!final && lane == 0) *(float2*)(to + D) = make_float2(m, l);
  __syncwarp();
}

template <class C, class Epilogue> FI_DEVICE void decode(const Args& a, const Epilogue& epilogue) {
  typedef Decode<C> S;
  constexpr int D = C::D, WARPS = S::WARPS, HG = S::HG, ROW = S::ROW;
  extern __shared__ __align__(16) char attention_shared[];
  float* parts = (float*)attention_shared;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;

  dependents_launch();
  if (!C::STABLE) dependency_wait();
  if (blockIdx.y >= a.counts[0]) {
    if (C::STABLE && (blockIdx.x | blockIdx.y | blockIdx.z) == 0) dependency_wait();
    return;
  }
  const u32 position = a.positions[blockIdx.y];
  const u32* table = a.tables + (u64)a.sequences[blockIdx.y] * a.table_stride;
  const u32 start = C::WINDOW && position >= (u32)C::WINDOW ? position + 1 - C::WINDOW : 0, range = position - start;
  const u32 first = start >> 4, blocks = (position >> 4) - first + 1;
  const u32 wanted = blocks <= S::ALONE ? 1 : (blocks + S::SHARE - 1) / S::SHARE;
  const u32 share_count = wanted < gridDim.z ? wanted : gridDim.z;
  if (blockIdx.z >= share_count) return;
  const u32 end = first + (u32)((u64)blocks * (blockIdx.z + 1) / share_count);
  u32 b = first + (u32)((u64)blocks * blockIdx.z / share_count) + warp;

  // Block numbers are read one step ahead of the loads that need them.
  const char* keys = a.keys + blockIdx.x / S::GROUPS * Kv<C>::HEAD;
  const char* values = a.values + blockIdx.x / S::GROUPS * Kv<C>::HEAD;
  u64 at = b < end ? table[b] * a.block_stride : 0;
  u32 next = b + WARPS < end ? table[b + WARPS] : 0;
  // To L2 a block may come at any time, for L2 is where the launch ahead writes. In the loop it would not pay: one SM takes about
  // 45 bytes a nanosecond from L2, which is what bounds few blocks of threads, and many cover the latency of memory themselves.
  auto fetch = [&](u32 block) {
    if (block < end) {
      const u64 from = table[block] * a.block_stride + lane * 128;
#pragma unroll
      for (int i = 0; i < Kv<C>::HEAD; i += 32 * 128)
        if (i + 32 * 128 <= Kv<C>::HEAD || i + lane * 128 < Kv<C>::HEAD) {
          prefetch(keys + from + i);
          prefetch(values + from + i);
        }
    }
  };
  if (C::STABLE) {
    fetch(b);
    fetch(b + WARPS);
    dependency_wait();
  }

  u32 k[S::KEYS], v[S::VALUES];
  if (b < end) {
    decode_keys<C>(k, keys + at, g, t);
    decode_values<C>(v, values + at, g, t);
  }
  // Queries as B fragments in shared memory, 16 bytes of a lane for each 32 dims: registers would be one block of keys too many.
  const u32 q_at = shared_address(parts + WARPS * S::PARTIAL + 4) + lane * 16;
  for (int s = warp; s < (D + 31) / 32; s += WARPS) {
    const int first_head = blockIdx.x % S::GROUPS * HG;  // among those of the KV head
    const bool real = g < HG && first_head + g < S::G;
    const float* row = a.q + ((u64)blockIdx.y * C::HEADS + blockIdx.x / S::GROUPS * S::G + (real ? first_head + g : 0)) * D;
    const float scale = real ? query_scale<C>() : 0.0f;
    float4 x, y = make_float4(0, 0, 0, 0);
    if (D % 32 == 0 || s < D / 32) {
      x = *(const float4*)(row + 32 * s + 8 * t);
      y = *(const float4*)(row + 32 * s + 8 * t + 4);
    } else {
      x = *(const float4*)(row + D - 16 + 4 * t);
    }
    store_shared(q_at + s * 512, pack(x.x * scale, x.y * scale), pack(x.z * scale, x.w * scale), pack(y.x * scale, y.y * scale),
                 pack(y.z * scale, y.w * scale));
  }
  u32* notes = (u32*)(parts + WARPS * S::PARTIAL);  // the ticket; `used`, which would cost the loop a register
  if (threadIdx.x == 0) notes[1] = share_count;
  __syncthreads();

  float o[D / 16][4] = {}, m0 = LOWEST, m1 = LOWEST, l0 = 0, l1 = 0;  // of heads 2t and 2t+1
#pragma unroll 1
  for (; b < end; b += WARPS) {
    float s0[4] = {}, s1[4] = {};  // two chains: half the latency
#pragma unroll
    for (int s = 0; s < D / 32; s++) {
      u32 q[4];
      load_shared(q, q_at + s * 512);
      if constexpr (C::Q8) {
        const u32* scales = k + Kv<C>::BLOCK + s / 2;
        decode_scores_q8(s0, k + 4 * s, q, number(scales[0], s % 2), number(scales[Kv<C>::WORDS], s % 2));
        continue;
      }
      const u32* a8 = k + 8 * s;
      mma(s0, a8[0], a8[4], a8[1], a8[5], q[0], q[1]);
      mma(s1, a8[2], a8[6], a8[3], a8[7], q[2], q[3]);
    }
    if (D % 32) {
      u32 q[4];
      load_shared(q, q_at + D / 32 * 512);
      mma(s0, k[D / 4 - 4], k[D / 4 - 2], k[D / 4 - 3], k[D / 4 - 1], q[0], q[1]);
    }
    const bool more = b + WARPS < end;
    at = next * a.block_stride;
    if (more) decode_keys<C>(k, keys + at, g, t);
    next = b + 2 * WARPS < end ? table[b + 2 * WARPS] : 0;
#pragma unroll
    for (int i = 0; i < 4; i++) s0[i] += s1[i];

    // Slots that hold no visible position may hold anything, NaN too: scores are replaced, values zeroed.
    const u32 base = b * 16 - start;  // visible: base + slot <= range, unsigned
    if (base > range || base + 15 > range) {
      if (base + g > range) s0[0] = s0[1] = masked();
      if (base + g + 8 > range) s0[2] = s0[3] = masked();
      const bool z0 = base + 2 * t > range, z1 = base + 2 * t + 1 > range, z2 = base + 2 * t + 8 > range, z3 = base + 2 * t + 9 > range;
      if constexpr (C::Q8) {
        decode_zero_part<2 * Kv<C>::WORDS>(v + Kv<C>::BLOCK, z0, z1, z2, z3);  // quants are numbers, whatever they are
      } else {
#pragma unroll
        for (int s = 0; s < D / 64; s++) decode_zero_part<8>(v + 16 * s, z0, z1, z2, z3);
        if constexpr (D % 64 >= 32) decode_zero_part<4>(v + D / 64 * 16, z0, z1, z2, z3);
        if constexpr (D % 32 != 0) decode_zero_part<2>(v + D / 4 - 4, z0, z1, z2, z3);
      }
    }
    float x0 = fmaxf(s0[0], s0[2]), x1 = fmaxf(s0[1], s0[3]);
#pragma unroll
    for (int i = 4; i < 32; i *= 2) {
      x0 = fmaxf(x0, __shfl_xor_sync(~0u, x0, i));
      x1 = fmaxf(x1, __shfl_xor_sync(~0u, x1, i));
    }
    const bool up0 = x0 > m0 + SLACK, up1 = x1 > m1 + SLACK;
    if (__any_sync(~0u, up0 || up1)) {
      const float r0 = up0 ? exp2_fast(m0 - x0) : 1.0f, r1 = up1 ? exp2_fast(m1 - x1) : 1.0f;
      m0 = up0 ? x0 : m0, m1 = up1 ? x1 : m1;
      l0 *= r0, l1 *= r1;
#pragma unroll
      for (int j = 0; j < D / 16; j++) o[j][0] *= r0, o[j][1] *= r1, o[j][2] *= r0, o[j][3] *= r1;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) s0[i] = exp2_fast(s0[i] - (i & 1 ? m1 : m0));
    l0 += s0[0] + s0[2], l1 += s0[1] + s0[3];
    const u32 p0 = transpose(pack(s0[0], s0[1])), p1 = transpose(pack(s0[2], s0[3]));
    if constexpr (C::Q8) {
      constexpr int W = Kv<C>::WORDS;
      const u32* scales = v + Kv<C>::BLOCK;
      // A lane's 8 dims of 64 have one scale, of the first 32 or the others.
      const u32 which = g < 4 ? 0x5410 : 0x7632;
#pragma unroll
      for (int s = 0; s < D / 64; s++)
        decode_sum_q8<2>(o + 4 * s, v + 8 * s, __byte_perm(scales[s], scales[W + s], which),
                         __byte_perm(scales[2 * W + s], scales[3 * W + s], which), p0, p1);
      if (D % 64)
        decode_sum_q8<1>(o + D / 64 * 4, v + D / 64 * 8, low_halves(scales[W - 1], scales[2 * W - 1]),
                         low_halves(scales[3 * W - 1], scales[4 * W - 1]), p0, p1);
    } else {
#pragma unroll
      for (int s = 0; s < D / 64; s++) decode_sum_part<8>(o + 4 * s, v + 16 * s, p0, p1);
      if constexpr (D % 64 >= 32) decode_sum_part<4>(o + D / 64 * 4, v + D / 64 * 16, p0, p1);
      if constexpr (D % 32 != 0) decode_sum_part<2>(o + D / 16 - 1, v + D / 4 - 4, p0, p1);
    }
    if (more) decode_values<C>(v, values + at, g, t);
  }

  // Warps to shared memory, merged there by one warp a head.
#pragma unroll
  for (int i = 4; i < 32; i *= 2) {
    l0 += __shfl_xor_sync(~0u, l0, i);
    l1 += __shfl_xor_sync(~0u, l1, i);
  }
  {
    float* part = parts + warp * S::PARTIAL;
#pragma unroll
    for (int s = 0; s < D / 64; s++) decode_spill_part<C, 8>(part, o + 4 * s, 64 * s + 8 * g, t);
    if (D % 64 >= 32) decode_spill_part<C, 4>(part, o + D / 64 * 4, D / 64 * 64 + 4 * g, t);
    if (D % 32) decode_spill_part<C, 2>(part, o + D / 16 - 1, D - 16 + 2 * g, t);
    if (g == 0) {
      if (2 * t < HG) part[2 * t * ROW + D] = m0, part[2 * t * ROW + D + 1] = l0;
      if (2 * t + 1 < HG) part[(2 * t + 1) * ROW + D] = m1, part[(2 * t + 1) * ROW + D + 1] = l1;
    }
  }
  __syncthreads();
  // Read again, as nothing of it was kept through the loop.
  const u32 pair = block_index_x(), token = block_index_y(), used = *(volatile u32*)(notes + 1);
  const int kv_head = pair / S::GROUPS, first_head = pair % S::GROUPS * HG;
  const u64 cell = (u64)token * S::PAIRS + pair;
  float* partials = a.workspace + cell * gridDim.z * S::PARTIAL;
  if (warp < HG && first_head + warp < S::G) {
    float* tile = parts + warp * ROW;
    decode_merge<C, WARPS>(used == 1 ? tile : partials + blockIdx.z * S::PARTIAL + warp * ROW, tile, used == 1, lane);
    if (used == 1) epilogue.store(token, kv_head * S::G + first_head + warp, (const float*)tile);
  }
  if (used == 1) return;

  // The last of the splits to arrive merges them in their order, whichever it is: results do not depend on timing. The barrier
  // hands all threads' partial results to the thread whose ticket releases them, and back.
  __syncthreads();
  if (threadIdx.x == 0) *notes = take_ticket(a.tickets + cell, used - 1);
  __syncthreads();
  if (*(volatile u32*)notes != used - 1) return;
  constexpr int SHARES = WARPS / HG, PIECES = (D + 127) / 128, MANY = 4;  // warps a head; 16-byte pieces of a lane; loads in flight
  const int head = warp % HG, share = warp / HG;
  const bool real = share < SHARES && first_head + head < S::G;
  if (real) {
    const float* from = partials + head * ROW;
    float m = LOWEST, l = 0;
    float4 sum[PIECES] = {};
#pragma unroll 1
    for (u32 first_z = share; first_z < used; first_z += MANY * SHARES) {
      float2 ml[MANY];
      float4 x[MANY][PIECES];
#pragma unroll
      for (int i = 0; i < MANY; i++) {
        const u32 z = first_z + i * SHARES;
        const float* part = from + z * S::PARTIAL;
        ml[i] = z < used ? *(const float2*)(part + D) : make_float2(LOWEST, 0);
#pragma unroll
        for (int p = 0; p < PIECES; p++)
          x[i][p] = z < used && p * 128 + lane * 4 < D ? *(const float4*)(part + p * 128 + lane * 4) : make_float4(0, 0, 0, 0);
      }
      float top = m;
#pragma unroll
      for (int i = 0; i < MANY; i++) top = fmaxf(top, ml[i].x);
      const float f = exp2_fast(m - top);
      m = top, l *= f;
#pragma unroll
      for (int p = 0; p < PIECES; p++) sum[p].x *= f, sum[p].y *= f, sum[p].z *= f, sum[p].w *= f;
#pragma unroll
      for (int i = 0; i < MANY; i++) {
        const float w = exp2_fast(ml[i].x - top);
        l += w * ml[i].y;
#pragma unroll
        for (int p = 0; p < PIECES; p++)
          sum[p].x += w * x[i][p].x, sum[p].y += w * x[i][p].y, sum[p].z += w * x[i][p].z, sum[p].w += w * x[i][p].w;
      }
    }
    float* to = parts + share * S::PARTIAL + head * ROW;
#pragma unroll
    for (int p = 0; p < PIECES; p++)
      if (p * 128 + lane * 4 < D) *(float4*)(to + p * 128 + lane * 4) = sum[p];
    if (lane == 0) *(float2*)(to + D) = make_float2(m, l);
  }
  __syncthreads();
  if (real && share == 0) {
    float* tile = parts + head * ROW;
    decode_merge<C, SHARES>(tile, tile, true, lane);
    epilogue.store(token, kv_head * S::G + first_head + head, (const float*)tile);
  }
}

// ---- Prefill ----

// One block of threads takes a tile of up to BM consecutive tokens of a sequence and one head:
//   grid = (tiles, HEADS), block = THREADS, dynamic shared memory = SHARED bytes (above 48 KB: opt in)
// A warp holds 16 * MT rows: two rows of fragments halve what it reads of K and V from shared memory, which bounds this kernel; at
// D = 256 the accumulators leave room for one. Queries lie in shared memory in the order of the fragments: a lane reads back the
// 16 bytes that it wrote.
template <class C> struct Prefill {
  static constexpr int MT = C::D <= 128 ? 2 : 1, WARPS = 4, THREADS = 32 * WARPS, MIN_CTAS = 2;
  static constexpr bool Q_REGISTERS = C::D <= 64;
  static constexpr int BM = 16 * MT * WARPS, BN = C::D <= (C::Q8 ? 96 : 128) && C::D != 112 ? 64 : 32;  // by what registers hold
  // Rows of K and V in 16-byte pieces: eight consecutive rows must hit different banks at the same piece, by an odd row length or by
  // exchanging pieces.
  static constexpr int PIECES = C::D / 8;
  static constexpr bool EXCHANGE = PIECES % 8 == 0;
  static constexpr int STRIDE = 16 * (EXCHANGE ? PIECES : PIECES | 1), TILE = BN * STRIDE;
  static constexpr int Q = BM * C::D * 2, OUT = C::D + 8;
  // Two tiles of K and V each, one filled while the other is used. Q8: a tile of each, and what the next will be made of.
  static constexpr int RAW = BN / 16 * Kv<C>::HEAD, KV = C::Q8 ? 2 * TILE + 2 * RAW : 4 * TILE;
  static constexpr int NOTES = Q + KV > BM * OUT * 4 ? Q + KV : BM * OUT * 4;  // what the loop has no registers for
  static constexpr int SHARED = NOTES + 16;
  static_assert(C::D % 16 == 0 && C::D <= 256 && C::HEADS % C::KV_HEADS == 0, "a shape this kernel does not cover");
};

// Starts the copy of one block of keys or values to 16 rows of a tile. Rows outside [start, start + range] become zero: what lies
// there may be NaN, which a weight of zero would keep.
template <class C> FI_DEVICE void stage_block(u32 to, const char* head, u32 position, u32 start, u32 range) {
  typedef Prefill<C> S;
#pragma unroll
  for (int i = 0; i < (16 * S::PIECES + S::THREADS - 1) / S::THREADS; i++) {
    const int piece = i * S::THREADS + threadIdx.x, row = piece / S::PIECES, column = piece % S::PIECES;
    const u32 place = to + row * S::STRIDE + ((S::EXCHANGE ? column ^ (row & 7) : column) << 4);
    if (16 * S::PIECES % S::THREADS == 0 || piece < 16 * S::PIECES) copy_async(place, head + piece * 16, position + row - start <= range);
  }
}

// Q8: starts the copy of a block as it is; one that is not there becomes zero.
template <class C> FI_DEVICE void stage_raw(u32 to, const char* head, bool real) {
  constexpr int PIECES = Kv<C>::HEAD / 16;
#pragma unroll
  for (int i = 0; i < (PIECES + Prefill<C>::THREADS - 1) / Prefill<C>::THREADS; i++) {
    const int piece = i * Prefill<C>::THREADS + threadIdx.x;
    if (piece < PIECES) copy_async(to + piece * 16, head + piece * 16, real);
  }
}
// A tile from blocks that have come, the first position of which is `position`. Rows outside [start, start + range] become zero.
template <class C> FI_DEVICE void unpack(u32 to, u32 raw, u32 position, u32 start, u32 range) {
  typedef Prefill<C> S;
  constexpr int PARTS = C::D / 16;  // 16 dims each
#pragma unroll 2
  for (int i = threadIdx.x; i < S::BN * PARTS; i += S::THREADS) {
    const int row = i / PARTS, part = i % PARTS;
    const u32 block = raw + row / 16 * Kv<C>::HEAD;
    u32 x[4], y[8];
    load_shared(x, block + row % 16 * C::D + part * 16);
    u16 half;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(half) : "r"(block + 16 * C::D + (row % 16 * Kv<C>::SCALES + part / 2) * 2) : "memory");
    const u32 scale = position + row - start <= range ? half * 0x10001u : 0;
#pragma unroll
    for (int j = 0; j < 4; j++) expand(x[j], y[2 * j], y[2 * j + 1]);
#pragma unroll
    for (int j = 0; j < 8; j++) y[j] = scaled(y[j], scale);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int column = 2 * part + j;
      const u32 place = to + row * S::STRIDE + ((S::EXCHANGE ? column ^ (row & 7) : column) << 4);
      store_shared(place, y[4 * j], y[4 * j + 1], y[4 * j + 2], y[4 * j + 3]);
    }
  }
}

template <class C, class Epilogue> FI_DEVICE void prefill(const Args& a, const Epilogue& epilogue) {
  typedef Prefill<C> S;
  constexpr int D = C::D, MT = S::MT, BN = S::BN, NB = BN / 16;
  extern __shared__ __align__(16) char attention_shared[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int head = blockIdx.y, kv_head = head / (C::HEADS / C::KV_HEADS);

  dependents_launch();
  if (!C::STABLE) dependency_wait();
  const u32 tiles = a.counts[3];
  if (blockIdx.x >= tiles) {
    if (C::STABLE && (blockIdx.x | blockIdx.y) == 0) dependency_wait();
    return;
  }
  // Last tiles first: those of a long prompt see the most positions, and should not start when the others end.
  const u32* tile = a.tiles + 4 * (tiles - 1 - blockIdx.x);
  const u32 row0 = tile[0], rows = tile[1], p0 = tile[3], last = p0 + rows - 1;
  const u32* table = a.tables + (u64)tile[2] * a.table_stride;
  const u32 start = C::WINDOW && p0 >= (u32)C::WINDOW ? p0 + 1 - C::WINDOW : 0, range = last - start;
  const u32 first = start >> 4, blocks = (last >> 4) - first + 1, steps = (blocks + NB - 1) / NB;

  const u32 shared = shared_address(attention_shared), q_at = shared + warp * (32 * MT * D) + lane * 16, kv = shared + S::Q;
  const char* keys = a.keys + kv_head * Kv<C>::HEAD;
  const char* values = a.values + kv_head * Kv<C>::HEAD;
  if (threadIdx.x == 0) {
    u32* notes = (u32*)(attention_shared + S::NOTES);
    notes[0] = row0, notes[1] = rows;
  }
  if (C::STABLE) dependency_wait();

  // Copies of step i go to half i % 2 of the ring.
  auto stage = [&](u32 i) {
    const u32 to = kv + (i & 1) * 2 * S::TILE;
    u32 ids[NB];
#pragma unroll
    for (int j = 0; j < NB; j++) ids[j] = i * NB + j < blocks ? table[first + i * NB + j] : 0;
    if constexpr (C::Q8) {
      const u32 raw = kv + 2 * S::TILE;
#pragma unroll
      for (int j = 0; j < NB; j++) {
        stage_raw<C>(raw + j * Kv<C>::HEAD, keys + ids[j] * a.block_stride, i * NB + j < blocks);
        stage_raw<C>(raw + S::RAW + j * Kv<C>::HEAD, values + ids[j] * a.block_stride, i * NB + j < blocks);
      }
      copies_commit();
      return;
    }
#pragma unroll
    for (int j = 0; j < NB; j++)
      stage_block<C>(to + j * 16 * S::STRIDE, keys + ids[j] * a.block_stride, (first + i * NB + j) * 16, start, range);
#pragma unroll
    for (int j = 0; j < NB; j++)
      stage_block<C>(to + S::TILE + j * 16 * S::STRIDE, values + ids[j] * a.block_stride, (first + i * NB + j) * 16, start, range);
    copies_commit();
  };
  stage(0);

  const u32 row = warp * 16 * MT + g;  // this lane's rows of the tile are row + 8i, i < 2 MT
#pragma unroll
  for (int m = 0; m < MT; m++) {
    const u32 r0 = row + 16 * m, r1 = r0 + 8;
    const float* x0 = a.q + ((u64)(row0 + (r0 < rows ? r0 : 0)) * C::HEADS + head) * D + 2 * t;
    const float* x1 = a.q + ((u64)(row0 + (r1 < rows ? r1 : 0)) * C::HEADS + head) * D + 2 * t;
    const float scale = query_scale<C>();
#pragma unroll
    for (int s = 0; s < D / 16; s++) {
      const float2 x = *(const float2*)(x0 + 16 * s), y = *(const float2*)(x1 + 16 * s);
      const float2 z = *(const float2*)(x0 + 16 * s + 8), w = *(const float2*)(x1 + 16 * s + 8);
      store_shared(q_at + (s * MT + m) * 512, pack(x.x * scale, x.y * scale), pack(y.x * scale, y.y * scale),
                   pack(z.x * scale, z.y * scale), pack(w.x * scale, w.y * scale));
    }
  }

  float o[MT][D / 8][4] = {}, highest[2 * MT], sum[2 * MT];
#pragma unroll
  for (int i = 0; i < 2 * MT; i++) highest[i] = LOWEST, sum[i] = 0;
  u32 q[D / 16][MT][4];
  if (S::Q_REGISTERS) {
#pragma unroll
    for (int d = 0; d < D / 16; d++)
#pragma unroll
      for (int m = 0; m < MT; m++) load_shared(q[d][m], q_at + (d * MT + m) * 512);
  }
  const u32 low = p0 + warp * 16 * MT, high = low + 16 * MT - 1;  // positions of the warp's rows
  // Where a lane's row of a 16x16 piece begins, and which piece it wants: K as it lies, V transposed.
  const u32 k_row = (lane & 7) + (lane >> 4 << 3), k_piece = lane >> 3 & 1, v_row = lane & 15, v_piece = lane >> 4;
  const u32 k_at = kv + k_row * S::STRIDE, v_at = kv + S::TILE + v_row * S::STRIDE;
  const u32 k_turn = (S::EXCHANGE ? k_piece ^ (lane & 7) : k_piece) << 4, v_turn = (S::EXCHANGE ? v_piece ^ (lane & 7) : v_piece) << 4;

#pragma unroll 1
  for (u32 i = 0; i < steps; i++) {
    copies_wait();
    __syncthreads();  // step i has arrived for all, and all are done with step i - 1, whose place step i + 1 takes
    if constexpr (C::Q8) {
      const u32 raw = kv + 2 * S::TILE, position = first * 16 + i * BN;
      unpack<C>(kv, raw, position, start, range);
      unpack<C>(kv + S::TILE, raw + S::RAW, position, start, range);
      __syncthreads();
    }
    if (i + 1 < steps) stage(i + 1);
    const u32 base = first * 16 + i * BN;
    if (base > high || (C::WINDOW && base + BN + C::WINDOW <= low + 1)) continue;  // nothing that this warp sees
    const u32 ring = C::Q8 ? 0 : (i & 1) * 2 * S::TILE;

    float s[MT][BN / 8][4] = {};
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
      u32 x[MT][4];
#pragma unroll
      for (int m = 0; m < MT; m++)
        if (S::Q_REGISTERS) {
#pragma unroll
          for (int e = 0; e < 4; e++) x[m][e] = q[d][m][e];
        } else {
          load_shared(x[m], q_at + (d * MT + m) * 512);
        }
      const u32 at = k_at + ring + (S::EXCHANGE ? k_turn ^ d << 5 : k_turn + (d << 5));
#pragma unroll
      for (int n = 0; n < NB; n++) {
        u32 y[4];
        load_matrices(y, at + n * 16 * S::STRIDE);
#pragma unroll
        for (int m = 0; m < MT; m++) {
          mma(s[m][2 * n], x[m][0], x[m][1], x[m][2], x[m][3], y[0], y[1]);
          mma(s[m][2 * n + 1], x[m][0], x[m][1], x[m][2], x[m][3], y[2], y[3]);
        }
      }
    }
    // A row at p sees p - WINDOW + 1 ..= p.
    if (base + BN - 1 > low || (C::WINDOW && base + C::WINDOW <= high)) {
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const u32 p = p0 + row + 16 * m + e / 2 * 8, j = base + 8 * n + 2 * t + (e & 1);
            if (C::WINDOW ? p - j >= (u32)C::WINDOW : j > p) s[m][n][e] = masked();
          }
    }
    float top[2 * MT];
    bool up = false;
#pragma unroll
    for (int r = 0; r < 2 * MT; r++) {
      float x = s[r / 2][0][r % 2 * 2];
#pragma unroll
      for (int n = 0; n < BN / 8; n++) x = fmaxf(x, fmaxf(s[r / 2][n][r % 2 * 2], s[r / 2][n][r % 2 * 2 + 1]));
      x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
      top[r] = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
      up |= top[r] > highest[r] + SLACK;
    }
    if (__any_sync(~0u, up)) {
#pragma unroll
      for (int r = 0; r < 2 * MT; r++) {
        const bool mine = top[r] > highest[r] + SLACK;
        const float f = mine ? exp2_fast(highest[r] - top[r]) : 1.0f;
        highest[r] = mine ? top[r] : highest[r];
        sum[r] *= f;
#pragma unroll
        for (int n = 0; n < D / 8; n++) o[r / 2][n][r % 2 * 2] *= f, o[r / 2][n][r % 2 * 2 + 1] *= f;
      }
    }
#pragma unroll
    for (int n = 0; n < NB; n++) {
      u32 p[MT][4];
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 4; h++) {
          const float* e = &s[m][2 * n + h / 2][h % 2 * 2];
          const float x = exp2_fast(e[0] - highest[2 * m + h % 2]), y = exp2_fast(e[1] - highest[2 * m + h % 2]);
          sum[2 * m + h % 2] += x + y;
          p[m][h] = pack(x, y);
        }
#pragma unroll
      for (int d = 0; d < D / 16; d++) {
        u32 y[4];
        load_matrices_transposed(y, v_at + ring + n * 16 * S::STRIDE + (S::EXCHANGE ? v_turn ^ d << 5 : v_turn + (d << 5)));
#pragma unroll
        for (int m = 0; m < MT; m++) {
          mma(o[m][2 * d], p[m][0], p[m][1], p[m][2], p[m][3], y[0], y[1]);
          mma(o[m][2 * d + 1], p[m][0], p[m][1], p[m][2], p[m][3], y[2], y[3]);
        }
      }
    }
  }

  __syncthreads();  // results take the place of queries, keys and values
  float* out = (float*)attention_shared + warp * 16 * MT * S::OUT;
#pragma unroll
  for (int r = 0; r < 2 * MT; r++) {
    float l = sum[r];
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    const float f = 1.0f / l;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
      *(float2*)(out + (g + 8 * r) * S::OUT + 8 * n + 2 * t) = make_float2(o[r / 2][n][r % 2 * 2] * f, o[r / 2][n][r % 2 * 2 + 1] * f);
  }
  __syncwarp();
  const volatile u32* notes = (const volatile u32*)(attention_shared + S::NOTES);
  const u32 from = notes[0] + warp * 16 * MT;
  const int mine = (int)notes[1] - warp * 16 * MT;
#pragma unroll 1
  for (int r = 0; r < 16 * MT && r < mine; r++) epilogue.store(from + r, head, (const float*)(out + r * S::OUT));
}

#undef FI_DEVICE

}  // namespace attention

// Attention of single tokens (attention.cuh): few queries, bound by reading keys and values.
#pragma once

namespace attention {

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

// How many tokens of its sequence come before this one in the step, or may come before it: they are consecutive, in ascending
// positions. More than 30 count as any number.
FI_DEVICE u32 tokens_before(const u32* sequences, int lane) {
  const u32 token = block_index_y(), mine = sequences[token];
  const bool same = (u32)lane < token && sequences[token - 1 - lane] == mine;
  const u32 others = ~__ballot_sync(~0u, same);
  return others ? __ffs(others) - 1 : 1u << 30;
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
  // Blocks of positions before the sequence's first token of this step were written by earlier steps, which have ended: they are
  // read while the launch ahead computes.
  u32 k[S::KEYS], v[S::VALUES];
  if (C::STABLE) {
    fetch(b + WARPS);
    if (16 * b + 15 + tokens_before(a.sequences, lane) >= position) {
      fetch(b);
      dependency_wait();
    }
  }
  if (b < end) {
    decode_keys<C>(k, keys + at, g, t);
    decode_values<C>(v, values + at, g, t);
  }
  if (C::STABLE) dependency_wait();  // who has waited goes on
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
    store_shared(q_at + s * 512, floats_to_half2(x.x * scale, x.y * scale), floats_to_half2(x.z * scale, x.w * scale), floats_to_half2(y.x * scale, y.y * scale),
                 floats_to_half2(y.z * scale, y.w * scale));
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
    const u32 p0 = transpose(floats_to_half2(s0[0], s0[1])), p1 = transpose(floats_to_half2(s0[2], s0[3]));
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

}  // namespace attention

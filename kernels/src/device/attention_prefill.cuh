// Attention of many tokens of a sequence (attention.cuh): bound by the matrix unit and shared memory.
#pragma once

namespace attention {

// One block of threads takes a tile of up to BM consecutive tokens of a sequence and one head:
//   grid = (tiles, HEADS), block = THREADS, dynamic shared memory = SHARED bytes (above 48 KB: opt in)
// A warp holds 16 * MT rows: two rows of fragments halve what it reads of K and V from shared memory, which bounds this kernel; at
// D = 256 the accumulators leave room for one. Queries lie in shared memory in the order of the fragments: a lane reads back the
// 16 bytes that it wrote.
template <class C> struct Prefill {
  static constexpr int MT = C::D <= 128 ? 2 : 1, WARPS = 4, THREADS = 32 * WARPS, MIN_CTAS = 2;
  static constexpr bool Q_REGISTERS = C::D <= 64;
  static constexpr int BM = 16 * MT * WARPS, BN = C::D <= (C::Q8 || C::LEAN ? 96 : 128) && C::D != 112 ? 64 : 32;  // by what registers hold
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
      store_shared(q_at + (s * MT + m) * 512, floats_to_half2(x.x * scale, x.y * scale), floats_to_half2(y.x * scale, y.y * scale),
                   floats_to_half2(z.x * scale, z.y * scale), floats_to_half2(w.x * scale, w.y * scale));
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
          p[m][h] = floats_to_half2(x, y);
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

}  // namespace attention

#undef FI_DEVICE

// Attention over a paged KV cache, f16 or 8 bits with scales, for RDNA 3.5: `decode` takes every token on its own, `prefill` tiles of
// consecutive tokens of a sequence.
//
// A model is a struct of constants: D (features of a head, a multiple of 16 up to 256; of 32 where Q8), HEADS, KV_HEADS, WINDOW
// (positions that a query sees, itself included; 0: all), SCALE, Q8, and STAGED: block tables go through shared memory, where
// every entry is held below the number of blocks that there are, so that no address depends on memory that something else may
// have written.
//
// An epilogue is `store(row, head, tile)`, called by all lanes of a wavefront: tile is D f32 in shared memory, 16-byte aligned,
// which that wavefront alone may read and overwrite during the call.

namespace attention {

struct Args {
    const float* q;        // [T, HEADS * D], rotated
    const u8* keys;        // pools of one layer: a KV head of a block is block * block_bytes + kv_head * Kv<C>::HEAD, and there lie
    const u8* values;      //   its 16 positions of D features. Q8: behind them the positions' f16 scales, one for 32 features
    u64 block_bytes;       // a multiple of 16
    const u32* tables;     // [S][stride] block numbers; only entries of blocks with a visible position are read
    u32 stride;
    u32 blocks;            // that there are
    const u32* sequences;  // [T]
    const u32* positions;  // [T]
    const Counts* counts;  // a grid may be larger
    const u32* tiles;      // [counts->tiles][4]: first row, rows, sequence, position of the first row; prefill only
    float* workspace;      // decode only, see Decode
    u32* tickets;          // decode only; zero before the first launch, and again after each
};

typedef _Float16 H16 __attribute__((ext_vector_type(16)));
typedef float F8 __attribute__((ext_vector_type(8)));

// Less than any score yet finite: differences of two such are 0, not NaN.
constexpr float LOWEST = -1e30f;
DEVICE float masked() { return -__builtin_inff(); }

// Scores are kept in powers of two: the scale takes log2(e) with it.
template <class C>
DEVICE float query_scale() {
    return C::SCALE * 1.4426950408889634f;
}

// Bytes of a position of a KV head, and of a KV head of a block.
template <class C>
struct Kv {
    static constexpr int ROW = C::Q8 ? C::D : 2 * C::D, SCALES = C::Q8 ? C::D / 32 : 0, HEAD = 16 * (ROW + 2 * SCALES);
    static_assert(C::D % 16 == 0 && C::D <= 256 && C::HEADS % C::KV_HEADS == 0, "a shape these kernels do not cover");
    static_assert(!C::Q8 || C::D % 32 == 0, "a scale for each 32 features");
};

// Signed bytes as f16, exactly: 1024 + 128 + byte has it in its lowest bits.
DEVICE void expand(u32 bytes, u32& low, u32& high) {
    const u32 moved = bytes ^ 0x80808080u;
    low = half2_sub(permute(moved, 0x64646464u, 0x4140), 0x64806480u);
    high = half2_sub(permute(moved, 0x64646464u, 0x4342), 0x64806480u);
}

// Eight features of a position: f16 pairs, or 8 bits and what they are multiplied with.
template <class C>
struct Piece {
    u32 x[C::Q8 ? 2 : 4];
    u16 scale;
};

// Features 8 * col .. of a row of a KV head; zero where it is not real: what lies there may be anything.
template <class C>
DEVICE Piece<C> load_piece(const u8* head, int row, int col, bool real) {
    Piece<C> p = {};
    if (!real) return p;
    if constexpr (C::Q8) {
        const U2 v = load_once((const U2*)(head + row * C::D + col * 8));
        p.x[0] = v.x, p.x[1] = v.y;
        p.scale = ((const u16*)(head + 16 * C::D))[row * (C::D / 32) + col / 4];
    } else {
        const U4 v = load_once((const U4*)(head + row * Kv<C>::ROW + col * 16));
        p.x[0] = v.x, p.x[1] = v.y, p.x[2] = v.z, p.x[3] = v.w;
    }
    return p;
}
// As f16 pairs without the scale, which is returned; 1 where there is none.
template <class C>
DEVICE float unscaled(const Piece<C>& p, u32 (&x)[4]) {
    if constexpr (C::Q8) {
        expand(p.x[0], x[0], x[1]);
        expand(p.x[1], x[2], x[3]);
        return half_to_float(p.scale);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = p.x[i];
        return 1.f;
    }
}
// As f16 pairs, scaled.
template <class C>
DEVICE void scaled(const Piece<C>& p, u32 (&x)[4]) {
    unscaled<C>(p, x);
    if constexpr (C::Q8) {
        const u32 both = permute(p.scale, p.scale, 0x1010);
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = half2_mul(x[i], both);
    }
}

// Entries of a sequence's block table from `first` on, `THREADS` at a time.
template <class C, int THREADS>
struct Table {
    const u32* row;
    u32* entries;  // shared memory, where tables are staged
    u32 first, last_block;

    // All threads; entries up to `end` are there afterwards.
    __device__ __forceinline__ void stage(u32 from, u32 end) {
        if (!C::STAGED) return;
        first = from;
        shared_barrier();
        const u32 at = from + threadIdx.x;
        const u32 entry = at < end ? row[at] : 0;
        entries[threadIdx.x] = entry < last_block ? entry : last_block;
        shared_barrier();
    }
    __device__ __forceinline__ u32 at(u32 block) const { return C::STAGED ? entries[block - first] : row[block]; }
};

// ---- Single tokens: few queries, bound by reading keys and values ----

// A block of threads takes a token, up to HG query heads of one KV head, and a share of the positions:
//   grid = (PAIRS, rows, splits); workspace = PAIRS * rows * splits * PARTIAL floats, tickets = PAIRS * rows (neither is touched if
//   splits = 1)
// A lane has eight consecutive features of LANES lanes a position, so that a wavefront reads ROWS positions, 512 bytes in one
// piece, with each instruction; products of a position are summed over its lanes, all of which then have the score. Nothing goes
// through shared memory before the end, and positions of different lanes have running maxima of their own.
template <class C>
struct Decode {
    static constexpr int G = C::HEADS / C::KV_HEADS, MOST = C::D <= 128 ? 8 : 4;
    static constexpr int GROUPS = (G + MOST - 1) / MOST, HG = (G + GROUPS - 1) / GROUPS, PAIRS = C::KV_HEADS * GROUPS;
    static constexpr int WAVES = 8, THREADS = 32 * WAVES;
    static constexpr int COLS = C::D / 8, LANES = COLS <= 2 ? 2 : COLS <= 4 ? 4 : COLS <= 8 ? 8 : COLS <= 16 ? 16 : 32;
    static constexpr int ROWS = 32 / LANES, LOADS = 16 / ROWS, PER = LOADS < 8 ? LOADS : 8;
    static constexpr int ROW = C::D + 4;  // a partial result: D sums, their maximum, their weight; keeps float4 alignment
    static constexpr int PARTIAL = HG * ROW;
    // Up to this many blocks of 16 positions one split is faster than a merge; above it a split gets at least SHARE.
    static constexpr u32 ALONE = 2048 / C::D, SHARE = 512 / C::D;
};

// Partial results of N wavefronts or splits, `stride` floats apart, to one of a head: a wavefront's. Divided by their weight if
// it is the whole.
template <class C>
DEVICE void decode_merge(const float* from, int stride, int count, float* to, bool whole) {
    constexpr int PIECES = (C::D + 31) / 32;
    const int lane = threadIdx.x & 31;
    float m = LOWEST, l = 0, sum[PIECES] = {};
    for (int i = 0; i < count; i++) m = fmaxf(m, from[i * stride + C::D]);
    for (int i = 0; i < count; i++) {
        const float* part = from + i * stride;
        const float f = exp2_fast(part[C::D] - m);
        l += f * part[C::D + 1];
#pragma unroll
        for (int p = 0; p < PIECES; p++)
            if (32 * p + lane < C::D) sum[p] += f * part[32 * p + lane];
    }
    const float by = whole ? 1.f / l : 1.f;
    wave_barrier();
#pragma unroll
    for (int p = 0; p < PIECES; p++)
        if (32 * p + lane < C::D) to[32 * p + lane] = sum[p] * by;
    if (lane == 0) to[C::D] = m, to[C::D + 1] = l;
    wave_barrier();
}

template <class C, int SPLITS, class E>
DEVICE void decode(const Args& a, const E& epilogue) {
    typedef Decode<C> S;
    constexpr int D = C::D, HG = S::HG, LANES = S::LANES;
    __shared__ __align__(16) float parts[S::WAVES * S::PARTIAL];
    __shared__ u32 entries[C::STAGED ? S::THREADS : 1];
    __shared__ u32 ticket;
    const u32 pair = blockIdx.x, token = blockIdx.y, split = blockIdx.z;
    if (token >= a.counts->tokens) return;
    const u32 wave = __builtin_amdgcn_readfirstlane(threadIdx.x / 32), lane = threadIdx.x % 32;
    const u32 col = lane % LANES, group = lane / LANES;
    const bool has_col = (int)col < S::COLS;
    const u32 position = a.positions[token];
    const u32 start = C::WINDOW && position >= (u32)C::WINDOW ? position + 1 - C::WINDOW : 0;
    const u32 first = start / 16, blocks = position / 16 - first + 1;
    u32 used = 1;
    if (SPLITS > 1 && blocks > S::ALONE) {
        const u32 shares = (blocks + S::SHARE - 1) / S::SHARE;
        used = shares < SPLITS ? shares : SPLITS;
    }
    if (split >= used) return;
    const u32 begin = first + blocks * split / used, end = first + blocks * (split + 1) / used;
    const int kv_head = pair / S::GROUPS, first_head = pair % S::GROUPS * HG;

    u32 q[HG][4];
#pragma unroll
    for (int h = 0; h < HG; h++) {
        float x[8] = {};
        if (first_head + h < S::G && has_col) {
            const float* from = a.q + (u64)token * (C::HEADS * D) + (kv_head * S::G + first_head + h) * D + col * 8;
            const float4 low = *(const float4*)from, high = *(const float4*)(from + 4);
            x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w, x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) q[h][i] = floats_to_half2(x[2 * i] * query_scale<C>(), x[2 * i + 1] * query_scale<C>());
    }
    float m[HG], l[HG] = {}, sum[HG][8] = {};
#pragma unroll
    for (int h = 0; h < HG; h++) m[h] = LOWEST;

    Table<C, S::THREADS> table{a.tables + (u64)a.sequences[token] * a.stride, entries, 0, a.blocks - 1};
    for (u32 chunk = begin; chunk < end; chunk += S::THREADS) {
        const u32 chunk_end = chunk + S::THREADS < end ? chunk + S::THREADS : end;
        table.stage(chunk, chunk_end);
        for (u32 block = chunk + wave; block < chunk_end; block += S::WAVES) {
            const u64 at = (u64)table.at(block) * a.block_bytes + kv_head * Kv<C>::HEAD;
            const u8 *keys = a.keys + at, *values = a.values + at;
#pragma unroll
            for (int pass = 0; pass < S::LOADS / S::PER; pass++) {
                Piece<C> k[S::PER], v[S::PER];
                bool seen[S::PER];
#pragma unroll
                for (int j = 0; j < S::PER; j++) {
                    const u32 row = (pass * S::PER + j) * S::ROWS + group, p = block * 16 + row;
                    seen[j] = p >= start && p <= position;
                    k[j] = load_piece<C>(keys, row, col, seen[j] && has_col);
                }
#pragma unroll
                for (int j = 0; j < S::PER; j++) {
                    const u32 row = (pass * S::PER + j) * S::ROWS + group;
                    v[j] = load_piece<C>(values, row, col, seen[j] && has_col);
                }
                float s[HG][S::PER];
#pragma unroll
                for (int j = 0; j < S::PER; j++) {
                    u32 x[4];
                    const float scale = unscaled<C>(k[j], x);
#pragma unroll
                    for (int h = 0; h < HG; h++) {
                        float t = dot2(x[0], q[h][0], 0.f);
                        t = dot2(x[1], q[h][1], t), t = dot2(x[2], q[h][2], t), t = dot2(x[3], q[h][3], t);
                        if (C::Q8) t *= scale;
                        if (LANES > 16) t += lane_xor<16>(t);
                        if (LANES > 8) t += lane_xor<8>(t);
                        if (LANES > 4) t += lane_xor<4>(t);
                        if (LANES > 2) t += lane_xor<2>(t);
                        t += lane_xor<1>(t);
                        s[h][j] = seen[j] ? t : masked();
                    }
                }
#pragma unroll
                for (int h = 0; h < HG; h++) {
                    float top = m[h];
#pragma unroll
                    for (int j = 0; j < S::PER; j++) top = fmaxf(top, s[h][j]);
                    const float f = exp2_fast(m[h] - top);
                    m[h] = top, l[h] *= f;
#pragma unroll
                    for (int i = 0; i < 8; i++) sum[h][i] *= f;
#pragma unroll
                    for (int j = 0; j < S::PER; j++) l[h] += s[h][j] = exp2_fast(s[h][j] - top);
                }
#pragma unroll
                for (int j = 0; j < S::PER; j++) {
                    u32 x[4];
                    const float scale = unscaled<C>(v[j], x);
#pragma unroll
                    for (int h = 0; h < HG; h++) {
                        const float p = C::Q8 ? s[h][j] * scale : s[h][j];
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            sum[h][2 * i] += p * low_half(x[i]);
                            sum[h][2 * i + 1] += p * high_half(x[i]);
                        }
                    }
                }
            }
        }
    }

    // Lanes of different positions, then wavefronts.
#pragma unroll
    for (int h = 0; h < HG; h++) {
        float top = m[h];
        if (LANES <= 2) top = fmaxf(top, lane_xor<2>(top));
        if (LANES <= 4) top = fmaxf(top, lane_xor<4>(top));
        if (LANES <= 8) top = fmaxf(top, lane_xor<8>(top));
        if (LANES <= 16) top = fmaxf(top, lane_xor<16>(top));
        const float f = exp2_fast(m[h] - top);
        auto over_rows = [&](float x) {
            x *= f;
            if (LANES <= 2) x += lane_xor<2>(x);
            if (LANES <= 4) x += lane_xor<4>(x);
            if (LANES <= 8) x += lane_xor<8>(x);
            if (LANES <= 16) x += lane_xor<16>(x);
            return x;
        };
        l[h] = over_rows(l[h]);
        float* part = parts + wave * S::PARTIAL + h * S::ROW;
#pragma unroll
        for (int i = 0; i < 8; i++) sum[h][i] = over_rows(sum[h][i]);
        if (group == 0 && has_col) {
            *(float4*)(part + 8 * col) = make_float4(sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
            *(float4*)(part + 8 * col + 4) = make_float4(sum[h][4], sum[h][5], sum[h][6], sum[h][7]);
        }
        if (lane == 0) part[D] = top, part[D + 1] = l[h];
    }
    shared_barrier();
    const u64 cell = (u64)token * S::PAIRS + pair;
    float* partials = a.workspace + cell * SPLITS * S::PARTIAL;
    const bool whole = SPLITS == 1 || used == 1;
    // Heads to wavefronts: there are as many of these.
    static_assert(HG <= S::WAVES, "a wavefront a head");
    const bool has_head = wave < (u32)HG && first_head + (int)wave < S::G;
    float* tile = parts + wave * S::ROW;
    const int head = kv_head * S::G + first_head + wave;
    if (has_head) {
        if (whole) {
            decode_merge<C>(tile, S::PARTIAL, S::WAVES, tile, true);
            epilogue.store(token, head, (const float*)tile);
        } else {
            decode_merge<C>(tile, S::PARTIAL, S::WAVES, partials + split * S::PARTIAL + wave * S::ROW, false);
        }
    }
    if (whole) return;
    if constexpr (SPLITS > 1) {
        // The last of the splits to arrive merges them in their order, whichever it is: results do not depend on timing. The
        // barrier hands all threads' partial results to the thread whose ticket releases them, and back.
        __syncthreads();
        if (threadIdx.x == 0) ticket = next_ticket(a.tickets + cell, used - 1);
        __syncthreads();
        if (ticket != used - 1 || !has_head) return;
        decode_merge<C>(partials + wave * S::ROW, S::PARTIAL, used, tile, true);
        epilogue.store(token, head, (const float*)tile);
    }
}

// ---- Tiles of tokens: bound by the matrix unit ----

// A block of threads takes up to BM consecutive tokens of a sequence and one head: grid = (tiles, HEADS). A wavefront holds 16 of
// them as columns: scores are K . q, positions by tokens, and results V^T . p, features by tokens, so that a lane has one token's
// maximum and weight, and scores become the second product's factor where they are: a lane lacks every other position, which the
// lane 16 further has. Keys lie in shared memory as in the cache, values with features for rows.
template <class C>
struct Prefill {
    static constexpr int WAVES = 4, THREADS = 32 * WAVES, BM = 16 * WAVES, BN = C::D <= 128 ? 32 : 16;
    // Bytes from row to row: 16 more than the row, so that rows start at different banks.
    static constexpr int K_STRIDE = 2 * C::D + 16, V_STRIDE = 2 * BN + 16;
    static constexpr int K_BYTES = BN * K_STRIDE, V_BYTES = C::D * V_STRIDE, OUT = C::D + 4, OUT_ROWS = 8;
    static constexpr int OUT_BYTES = WAVES * OUT_ROWS * OUT * 4;
    // Queries lie in shared memory where accumulators leave no registers for them.
    static constexpr bool Q_SHARED = C::D > 128;
    static constexpr int INPUTS = K_BYTES + V_BYTES + (Q_SHARED ? BM * K_STRIDE : 0);
    static constexpr int SHARED = INPUTS > OUT_BYTES ? INPUTS : OUT_BYTES;
    // Pieces of eight features, in pairs of positions: what a thread loads of keys, and as much of values.
    static constexpr int PAIRS = BN / 2 * (C::D / 8), EACH = (PAIRS + THREADS - 1) / THREADS;
};

DEVICE H16 fragment(const u8* row) {
    const U4 low = *(const U4*)row, high = *(const U4*)(row + 16);
    const u32 words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    return __builtin_bit_cast(H16, words);
}

// What a thread has of a tile of keys and values on their way.
template <class C>
struct Staged {
    Piece<C> k[2 * Prefill<C>::EACH], v[2 * Prefill<C>::EACH];
};

// Reads of the BN positions from `first` on, those in start ..= last.
template <class C, class T>
DEVICE void prefill_load(Staged<C>& s, const Args& a, const T& table, int kv_head, u32 first, u32 start, u32 last) {
    typedef Prefill<C> S;
#pragma unroll
    for (int e = 0; e < S::EACH; e++) {
        const int i = e * S::THREADS + threadIdx.x, col = i % (C::D / 8), row = i / (C::D / 8) * 2;
        const u32 p = first + row;
        const bool inside = i < S::PAIRS && p <= last && p + 1 >= start;
        // Both positions are of one block.
        const u64 at = inside ? (u64)table.at(p / 16) * a.block_bytes + kv_head * Kv<C>::HEAD : 0;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const bool real = inside && p + j >= start && p + j <= last;
            s.k[2 * e + j] = load_piece<C>(a.keys + at, (p + j) % 16, col, real);
            s.v[2 * e + j] = load_piece<C>(a.values + at, (p + j) % 16, col, real);
        }
    }
}
template <class C>
DEVICE void prefill_store(const Staged<C>& s, u8* keys, u8* values) {
    typedef Prefill<C> S;
#pragma unroll
    for (int e = 0; e < S::EACH; e++) {
        const int i = e * S::THREADS + threadIdx.x, col = i % (C::D / 8), row = i / (C::D / 8) * 2;
        if (S::PAIRS % S::THREADS != 0 && i >= S::PAIRS) continue;
        u32 v[2][4];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            u32 k[4];
            scaled<C>(s.k[2 * e + j], k);
            scaled<C>(s.v[2 * e + j], v[j]);
            *(U4*)(keys + (row + j) * S::K_STRIDE + col * 16) = U4{k[0], k[1], k[2], k[3]};
        }
        // A feature's two positions side by side.
#pragma unroll
        for (int f = 0; f < 8; f++) {
            const u32 pair = permute(v[0][f / 2], v[1][f / 2], f % 2 ? 0x7632 : 0x5410);
            *(u32*)(values + (col * 8 + f) * S::V_STRIDE + row * 2) = pair;
        }
    }
}

template <class C, class E>
DEVICE void prefill(const Args& a, const E& epilogue) {
    typedef Prefill<C> S;
    constexpr int D = C::D, STEPS = D / 16, TILES = S::BN / 16;
    __shared__ __align__(16) u8 memory[S::SHARED];
    __shared__ u32 entries[C::STAGED ? S::THREADS : 1];
    u8 *keys = memory, *values = memory + S::K_BYTES;
    const u32 index = blockIdx.x, head = blockIdx.y;
    if (index >= a.counts->tiles) return;
    const u32 first_row = a.tiles[4 * index], rows = a.tiles[4 * index + 1], sequence = a.tiles[4 * index + 2];
    const u32 first_position = a.tiles[4 * index + 3], last = first_position + rows - 1;
    const u32 start = C::WINDOW && first_position >= (u32)C::WINDOW ? first_position + 1 - C::WINDOW : 0;
    const int kv_head = head / (C::HEADS / C::KV_HEADS);
    const u32 wave = __builtin_amdgcn_readfirstlane(threadIdx.x / 32), lane = threadIdx.x % 32, half = lane / 16;
    const u32 mine = 16 * wave + lane % 16, position = first_position + mine;
    const u32 sees_from = C::WINDOW && position >= (u32)C::WINDOW ? position + 1 - C::WINDOW : 0;

    // Columns of the first product: a token's 16 features a step.
    u8* queries = memory + S::K_BYTES + S::V_BYTES + mine * S::K_STRIDE;
    H16 q[S::Q_SHARED ? 1 : STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        u32 words[8] = {};
        if (mine < rows) {
            const float* from = a.q + (u64)(first_row + mine) * (C::HEADS * D) + head * D + 16 * s;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float4 x = *(const float4*)(from + 4 * i);
                words[2 * i] = floats_to_half2(x.x * query_scale<C>(), x.y * query_scale<C>());
                words[2 * i + 1] = floats_to_half2(x.z * query_scale<C>(), x.w * query_scale<C>());
            }
        }
        if (S::Q_SHARED) {
            // Both halves of a wavefront write the same.
            *(U4*)(queries + 32 * s) = U4{words[0], words[1], words[2], words[3]};
            *(U4*)(queries + 32 * s + 16) = U4{words[4], words[5], words[6], words[7]};
        } else {
            q[s] = __builtin_bit_cast(H16, words);
        }
    }
    float m = LOWEST, l = 0;
    F8 sum[STEPS] = {};

    Table<C, S::THREADS> table{a.tables + (u64)sequence * a.stride, entries, 0, a.blocks - 1};
    // Entries of so many blocks are staged at a time: whole tiles.
    constexpr u32 CHUNK = S::THREADS * 16;
    const u32 from = start / S::BN * S::BN, end_block = last / 16 + 1;
    table.stage(from / 16, end_block);
    u32 staged_end = from / 16 * 16 + CHUNK;
    Staged<C> next;
    prefill_load<C>(next, a, table, kv_head, from, start, last);
    for (u32 tile = from; tile <= last; tile += S::BN) {
        shared_barrier();
        prefill_store<C>(next, keys, values);
        if (tile + S::BN >= staged_end) {
            table.stage((tile + S::BN) / 16, end_block);
            staged_end = tile + S::BN + CHUNK;
        }
        if (tile + S::BN <= last) prefill_load<C>(next, a, table, kv_head, tile + S::BN, start, last);
        shared_barrier();

        F8 s[TILES] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const H16 query = S::Q_SHARED ? fragment(queries + 32 * step) : q[S::Q_SHARED ? 0 : step];
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const H16 k = fragment(keys + (16 * t + lane % 16) * S::K_STRIDE + step * 32);
                s[t] = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(k, query, s[t]);
            }
        }
        // A lane has positions 2 v + half of its token.
        float top = m;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int v = 0; v < 8; v++) {
                const u32 p = tile + 16 * t + 2 * v + half;
                s[t][v] = p <= position && p >= sees_from ? s[t][v] : masked();
                top = fmaxf(top, s[t][v]);
            }
        top = fmaxf(top, lane_xor<16>(top));
        const float f = exp2_fast(m - top);
        m = top, l *= f;
#pragma unroll
        for (int step = 0; step < STEPS; step++) sum[step] *= f;
        H16 p[TILES];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            u32 words[8];
#pragma unroll
            for (int v = 0; v < 8; v++) {
                const float x = exp2_fast(s[t][v] - top);
                l += x;
                const u32 own = float_to_half(x), other = lane_xor<16>(own);
                words[v] = half ? own << 16 | other : other << 16 | own;
            }
            p[t] = __builtin_bit_cast(H16, words);
        }
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const H16 v = fragment(values + (16 * step + lane % 16) * S::V_STRIDE + t * 32);
                sum[step] = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(v, p[t], sum[step]);
            }
    }

    l += lane_xor<16>(l);
    const float by = 1.f / l;
    // What others still read of what is overwritten.
    shared_barrier();
    float* out = (float*)memory + wave * S::OUT_ROWS * S::OUT;
#pragma unroll 1
    for (u32 part = 0; part < 16; part += S::OUT_ROWS) {
        if (lane % 16 / S::OUT_ROWS * S::OUT_ROWS == part) {
            float* to = out + lane % S::OUT_ROWS * S::OUT + half;
#pragma unroll
            for (int step = 0; step < STEPS; step++)
#pragma unroll
                for (int v = 0; v < 8; v++) to[16 * step + 2 * v] = sum[step][v] * by;
        }
        wave_barrier();
#pragma unroll 1
        for (u32 r = 0; r < S::OUT_ROWS && 16 * wave + part + r < rows; r++)
            epilogue.store(first_row + 16 * wave + part + r, head, (const float*)(out + r * S::OUT));
        wave_barrier();
    }
}

}  // namespace attention

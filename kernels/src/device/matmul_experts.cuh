// Products of pairs of a token and one of its experts, with the expert's weights. Rows of x lie where they are: the list of pairs
// says which token's a pair has, where they are tokens'. What comes of a pair is the row of its place in the list.
//
// AHEAD: the launch before this one multiplies pairs of the same list. It lets this one start only when the list is there: experts
// are found, and first reads of their weights on their way, before it has ended.
//
// Segments are as in matmul.cuh, of the first expert, and
//   u64 expert_bytes(int item)   from an expert's item to the next expert's

// Of one token: each place of the list is an expert of its own. As matmul_one, but the experts are known only when the launch before
// this one has ended, and reads of weights begin then.
//
// With S::XS 1, x is the token's, and an item is a tile of an expert; otherwise x has a row for each of USED places, and an item
// is a tile of all of them: warps divide the places among them.
template <class S, int E, int USED, bool AHEAD, class Segments>
DEVICE void matmul_one_experts(const u16* x, const u32* starts, const Segments& segments) {
    using M = typename S::Multiplier;
    extern __shared__ __align__(128) u8 shared[];
    __shared__ u32 experts[USED];
    float* sums = (float*)(shared + M::SHARED);
    float* totals = sums + S::SETS * S::SUMS;
    const u32 barriers = shared_address(totals + S::FEATURES);
    constexpr int PER_PLACE = Segments::ITEMS, ITEMS = S::XS > 1 ? PER_PLACE : USED * PER_PLACE;
    const int first = (int)((u64)ITEMS * blockIdx.x / gridDim.x), last = (int)((u64)ITEMS * (blockIdx.x + 1) / gridDim.x);
    OneWarp<S> warp;
    make_barriers<S>(barriers);
    if (!AHEAD) wait_for_previous();
    let_next_start();
    for (int e = threadIdx.x; e < E; e += S::THREADS) {
        const u32 place = load_fresh(starts + e);
        if (load_fresh(starts + e + 1) > place && place < USED) experts[place] = e;
    }
    __syncthreads();
    const u32 within = warp.begin * S::STEP_BYTES;
    auto at = [&](int item) {
        const int place = S::XS > 1 ? warp.across : item / PER_PLACE, of_place = S::XS > 1 ? item : item % PER_PLACE;
        return segments.item(of_place) + experts[place] * segments.expert_bytes(of_place) + within;
    };
    warp.load_ahead(at, first, last);
    if (AHEAD) wait_for_previous();
    M::template prepare<S::THREADS, false>(shared, x);
    __syncthreads();
    if (warp.works) return warp.multiply(at, first, last, shared, sums, barriers);
    struct Places {
        const Segments& segments;
        __device__ void finish(int item, int, const float* totals, int, int) const {
            if (S::XS > 1)
                segments.finish(item, 0, totals, 16, USED);
            else
                segments.finish(item % PER_PLACE, item / PER_PLACE, totals, 16, 1);
        }
    };
    finish_items<S>(Places{segments}, sums, totals, barriers, first, last);
}

// Of some tokens: as matmul_few, for blocks of up to S::ROWS pairs of one expert. Units of work are items of blocks; each CTA takes
// as many, found from where each expert's pairs begin. BLOCKS are there at most, and PAIRS pairs.
//
// Blocks of eight rows have a warp of their own that adds sums up and finishes items (APART), as in matmul_one: an item takes little
// longer than the barriers that it would cost.
template <class S>
struct ExpertsShape {
    static constexpr bool APART = S::NT == 1;
    static constexpr int THREADS = S::THREADS + (APART ? 32 : 0), SETS = APART ? 3 : 2;
    // Shared memory: sets of sums, a barrier for each; then the blocks, and the rows of x.
    static constexpr int SHARED = SETS * S::SUMS * 4 + 32;
};

// What the warp apart does.
template <class S, class Segments>
DEVICE void finish_blocks(const Segments& segments, const ExpertBlocks& blocks, float* sums, u32 freed, int first, int last) {
    using X = ExpertsShape<S>;
    constexpr int FEATURES = S::GROUP * 16;
    const int lane = threadIdx.x & 31;
    int set = 0;
    for (int unit = first; unit < last; unit++) {
        const ExpertRows block = blocks[unit / Segments::ITEMS];
        float* total = sums + set * S::SUMS;
        meet_at(1 + set, X::THREADS);
        for (int i = lane; i < (int)block.rows * FEATURES; i += 32) {
            const int at = i / FEATURES * S::STRIDE + i % FEATURES;
            float v = total[at];
#pragma unroll
            for (int k = 1; k < S::ALONG; k++) v += total[at + k * S::ROWS * S::STRIDE];
            total[at] = v;
        }
        __syncwarp();
        segments.finish(unit % Segments::ITEMS, block.first, total, S::STRIDE, block.rows);
        arrive(freed + 8 * set);
        set = set + 1 < X::SETS ? set + 1 : 0;
    }
}

template <class S, int E, int BLOCKS, int PAIRS, bool BY_TOKENS, bool AHEAD, class Segments>
DEVICE void matmul_experts(const u16* x, const u32* tokens, const u32* starts, const Segments& segments) {
    using F = typename S::F;
    using X = ExpertsShape<S>;
    constexpr int DEPTH = S::DEPTH, NT = S::NT, TILES = S::TILES, ITEMS = Segments::ITEMS;
    extern __shared__ __align__(128) u8 shared[];
    float* sums = (float*)shared;
    const u32 freed = shared_address(sums + X::SETS * S::SUMS);
    const ExpertBlocks blocks{(U2*)(shared + X::SHARED)};
    u32* rows_of_x = (u32*)(blocks.table + BLOCKS);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int across = warp % S::ACROSS, along = warp / S::ACROSS;
    const int begin = along * S::FRAGMENTS / S::ALONG;
    const int count = (along + 1) * S::FRAGMENTS / S::ALONG - begin;
    constexpr u64 TILE_BYTES = (u64)S::FRAGMENTS * F::BYTES;
    const u64 within = (u64)(across * TILES) * TILE_BYTES + (u64)begin * F::BYTES;
    if (X::APART && threadIdx.x < X::SETS) make_barrier(freed + 8 * threadIdx.x, 32);
    if (!AHEAD) wait_for_previous();
    let_next_start();
    if (BY_TOKENS)
        for (int p = threadIdx.x; p < PAIRS; p += X::THREADS) rows_of_x[p] = load_fresh(tokens + p);
    const int units = find_blocks<E, S::ROWS, X::THREADS>(starts, blocks.table) * ITEMS;
    const int first = (int)((u64)units * blockIdx.x / gridDim.x), last = (int)((u64)units * (blockIdx.x + 1) / gridDim.x);
    if (first >= last) return wait_for_previous();
    if (X::APART && warp == S::WARPS) {
        if (AHEAD) wait_for_previous();
        return finish_blocks<S>(segments, blocks, sums, freed, first, last);
    }

    auto at = [&](int unit) {
        const int item = unit % ITEMS;
        return segments.item(item) + blocks[unit / ITEMS].expert * segments.expert_bytes(item) + within;
    };
    typename F::Fragment ring[DEPTH][TILES];
    const u8* p = at(first);
#pragma unroll
    for (int i = 0; i < DEPTH; i++)
#pragma unroll
        for (int r = 0; r < TILES; r++)
            ring[i][r] = S::EVEN || i < count ? F::load(p + r * TILE_BYTES + i * F::BYTES, lane) : F::none();
    if (AHEAD) wait_for_previous();

    float acc[TILES][NT][4] = {};
    u32 x_at[NT];
    ExpertRows block{0, 0, 0};
    int at_block = -1, set = 0;
    u32 phase = 1;
    // As in matmul_few.
    const int rounds = S::ROUNDS + (NT > 1 && S::ROUNDS > 1 ? threadIdx.y & 1 : 0);
    for (int unit = first; unit < last; unit++) {
        if (unit / ITEMS != at_block) {
            at_block = unit / ITEMS;
            block = blocks[at_block];
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const u32 row = 8 * n + g, pair = block.first + (row < block.rows ? row : block.rows - 1);
                x_at[n] = (BY_TOKENS ? rows_of_x[pair] : pair) * S::K + begin * 64 + 8 * t;
            }
        }
#pragma unroll 1
        for (int round = 0; round < rounds; round++) {
            const bool wraps = round + 1 == rounds, more = !wraps || unit + 1 < last;
            // Where this slot's next fragments are: DEPTH further, or in the next unit.
            if (!wraps)
                p += DEPTH * F::BYTES;
            else if (more)
                p = at(unit + 1);
#pragma unroll
            for (int i = 0; i < DEPTH; i++) {
                const int c = round * DEPTH + i;
                const u16* x_row[NT];
#pragma unroll
                for (int n = 0; n < NT; n++) x_row[n] = x + x_at[n];
                add_column<S>(acc, ring[i], x_row, S::EVEN || c < count ? c : 0);
                const bool there = more && (S::EVEN || (wraps ? i : c + DEPTH) < count);
#pragma unroll
                for (int r = 0; r < TILES; r++) {
                    if (there)
                        ring[i][r] = F::load(p + r * TILE_BYTES + i * F::BYTES, lane);
                    else if (!S::EVEN)
                        ring[i][r] = F::none();
                }
            }
        }
        if constexpr (X::APART) {
            // The phase before the first one is past.
            wait_until(freed + 8 * set, phase);
            put_sums<S>(acc, sums + set * S::SUMS);
            arrive_at(1 + set, X::THREADS);
        } else {
            const float* total = add_up<S>(acc, sums + set * S::SUMS, block.rows);
            segments.finish(unit % ITEMS, block.first, total, S::STRIDE, block.rows);
        }
        if (++set == X::SETS) set = 0, phase ^= 1;
    }
}

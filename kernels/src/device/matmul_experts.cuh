// Products of pairs of a token and one of its experts, with the expert's weights. Rows of x lie where they are: the list of pairs
// says which token's a pair has, where they are tokens'. What comes of a pair is the row of its place in the list.
//
// Segments are as in matmul.cuh, of the first expert, and
//   u64 expert_bytes(int item)   from an expert's item to the next expert's

// Of one token: each place of the list is an expert of its own. As matmul_one, but the experts are known only when the launch before
// this one has ended, and reads of weights begin then.
//
// With S::XS 1, x is the token's, and an item is a tile of an expert; otherwise x has a row for each of USED places, and an item
// is a tile of all of them: warps divide the places among them.
template <class S, int E, int USED, class Segments>
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
    let_next_start();
    wait_for_previous();
    for (int e = threadIdx.x; e < E; e += S::THREADS) {
        const u32 place = starts[e];
        if (starts[e + 1] > place && place < USED) experts[place] = e;
    }
    __syncthreads();
    const u32 within = warp.begin * S::STEP_BYTES;
    auto at = [&](int item) {
        const int place = S::XS > 1 ? warp.across : item / PER_PLACE, of_place = S::XS > 1 ? item : item % PER_PLACE;
        return segments.item(of_place) + experts[place] * segments.expert_bytes(of_place) + within;
    };
    warp.load_ahead(at, first, last);
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
template <class S, int E, int BLOCKS, int PAIRS, bool BY_TOKENS, class Segments>
DEVICE void matmul_experts(const u16* x, const u32* tokens, const u32* starts, const Segments& segments) {
    using F = typename S::F;
    constexpr int DEPTH = S::DEPTH, NT = S::NT, TILES = S::TILES, ITEMS = Segments::ITEMS;
    extern __shared__ __align__(128) u8 shared[];
    float* sums = (float*)shared;
    const ExpertBlocks blocks{(U2*)(shared + S::SHARED)};
    u32* rows_of_x = (u32*)(blocks.table + BLOCKS);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int across = warp % S::ACROSS, along = warp / S::ACROSS;
    const int begin = along * S::FRAGMENTS / S::ALONG;
    const int count = (along + 1) * S::FRAGMENTS / S::ALONG - begin;
    constexpr u64 TILE_BYTES = (u64)S::FRAGMENTS * F::BYTES;
    const u64 within = (u64)(across * TILES) * TILE_BYTES + (u64)begin * F::BYTES;
    let_next_start();
    wait_for_previous();
    if (BY_TOKENS)
        for (int p = threadIdx.x; p < PAIRS; p += S::THREADS) rows_of_x[p] = tokens[p];
    const int units = find_blocks<E, S::ROWS, S::THREADS>(starts, blocks.table) * ITEMS;
    const int first = (int)((u64)units * blockIdx.x / gridDim.x), last = (int)((u64)units * (blockIdx.x + 1) / gridDim.x);
    if (first >= last) return;

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

    float acc[TILES][NT][4] = {};
    const u16* x_row[NT];
    ExpertRows block{0, 0, 0};
    int set = 0, at_block = -1;
    // As in matmul_few.
    const int rounds = S::ROUNDS + (NT > 1 && S::ROUNDS > 1 ? threadIdx.y & 1 : 0);
    for (int unit = first; unit < last; unit++) {
        if (unit / ITEMS != at_block) {
            at_block = unit / ITEMS;
            block = blocks[at_block];
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const u32 row = 8 * n + g, pair = block.first + (row < block.rows ? row : block.rows - 1);
                x_row[n] = x + (u64)(BY_TOKENS ? rows_of_x[pair] : pair) * S::K + begin * 64 + 8 * t;
            }
        }
        const u8* next = unit + 1 < last ? at(unit + 1) : p;
#pragma unroll 1
        for (int round = 0; round < rounds; round++) {
            const bool wraps = round + 1 == rounds;
            const u8* from = wraps ? next : p + (u64)(round + 1) * DEPTH * F::BYTES;
            const bool more = !wraps || unit + 1 < last;
#pragma unroll
            for (int i = 0; i < DEPTH; i++) {
                const int c = round * DEPTH + i;
                add_column<S>(acc, ring[i], x_row, S::EVEN || c < count ? c : 0);
                const bool there = more && (S::EVEN || (wraps ? i : c + DEPTH) < count);
#pragma unroll
                for (int r = 0; r < TILES; r++) {
                    if (there)
                        ring[i][r] = F::load(from + r * TILE_BYTES + i * F::BYTES, lane);
                    else if (!S::EVEN)
                        ring[i][r] = F::none();
                }
            }
        }
        p = next;
        const float* total = add_up<S>(acc, sums + set * S::SUMS, block.rows);
        segments.finish(unit % ITEMS, block.first, total, S::STRIDE, block.rows);
        set ^= 1;
    }
}

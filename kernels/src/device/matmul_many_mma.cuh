// Matrix products of many rows of activations, for chips without Hopper's matrix unit: out[n, m] = sum over k of x[n, k] w[m, k].
//
// As on Hopper (matmul_many.cuh) a CTA makes 128 features of 128 rows, weights go straight to registers and are dequantised
// there, and activations come through shared memory in the tiles in which they were written. Here each of eight warps has 32
// features of 64 rows, so that a tile of activations is read four times and one of weights twice; tiles are copied by all
// threads, some ahead (`cp.async`), and their swizzle lets eight rows be read at once (`ldmatrix`).

template <class Format, int K_, int ROWS_ = 128, int STAGES_ = 4>
struct ManyShape {
    using F = Format;
    static constexpr int K = K_, FRAGMENTS = K / 64;
    static constexpr int ROWS = ROWS_, FEATURES = 128;
    // Tiles of 16 features of a warp, and groups of 8 rows.
    static constexpr int TILES = 2, GROUPS = ROWS / 16;
    static constexpr int STAGES = STAGES_, STAGE_BYTES = ROWS * 128;
    // Fragments on their way: as many as registers allow.
    static constexpr int DEPTH = sizeof(typename F::Fragment) > 32 ? 1 : 2;
    static constexpr int THREADS = 256;
    static constexpr int STRIDE = FEATURES + 4;
    static constexpr int SUMS_BYTES = ROWS * STRIDE * 4;
    static constexpr int SHARED = STAGES * STAGE_BYTES > SUMS_BYTES ? STAGES * STAGE_BYTES : SUMS_BYTES;
};

DEVICE void copy_async(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Four matrices of 8 rows of 16 bytes, whose rows' addresses lanes 8i .. 8i + 8 have: each lane gets 4 bytes of its row.
DEVICE U4 load_matrices(u32 at) {
    U4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(at)
                 : "memory");
    return r;
}

// The fragments of a warp's features that are on their way first.
template <class S>
DEVICE void load_first(typename S::F::Fragment (&ring)[S::DEPTH][S::TILES], const u8* w) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < S::DEPTH; i++)
#pragma unroll
        for (int r = 0; r < S::TILES; r++)
            ring[i][r] = i < S::FRAGMENTS ? S::F::load(w + (r * S::FRAGMENTS + i) * S::F::BYTES, lane) : S::F::none();
}

// Multiplies a warp's features with its rows of x, tile by tile; `fetch` puts one of them on its way to its stage.
template <class S, class Fetch>
DEVICE void multiply_tiles(float (&acc)[S::TILES][S::GROUPS][4], typename S::F::Fragment (&ring)[S::DEPTH][S::TILES],
                           const u8* w, u32 stages, const Fetch& fetch) {
    using F = typename S::F;
    constexpr int TILES = S::TILES, GROUPS = S::GROUPS;
    const int lane = threadIdx.x & 31, along = threadIdx.x >> 7;
#pragma unroll
    for (int i = 0; i < S::STAGES - 1; i++) fetch(i);
    // Lanes 0 .. 16 have the addresses of eight rows' two parts of a step, lanes 16 .. 32 those of the next eight rows.
    const int row = 8 * GROUPS * along + (lane >> 4) * 8 + (lane & 7);
    const u32 row_at = stages + row * 128;
#pragma unroll 1
    for (int round = 0; round < S::FRAGMENTS; round += S::DEPTH) {
#pragma unroll
        for (int j = 0; j < S::DEPTH; j++) {
            const int i = round + j;
            if (S::FRAGMENTS % S::DEPTH && i >= S::FRAGMENTS) break;
            // Tile i is there, for all threads; and all have done with the one before, whose stage is free.
            copies_wait<S::STAGES - 2>();
            __syncthreads();
            fetch(i + S::STAGES - 1);
            const u32 stage = row_at + i % S::STAGES * S::STAGE_BYTES;
#pragma unroll
            for (int step = 0; step < 4; step++) {
                u32 a[TILES][4];
#pragma unroll
                for (int r = 0; r < TILES; r++) F::dequantise(ring[j][r], step, a[r]);
                const u32 at = stage + (((2 * step + (lane >> 3 & 1)) ^ (lane & 7)) << 4);
#pragma unroll
                for (int n = 0; n < GROUPS; n += 2) {
                    const U4 b = load_matrices(at + n * 8 * 128);
#pragma unroll
                    for (int r = 0; r < TILES; r++) {
                        multiply(acc[r][n], a[r], b.x, b.y);
                        multiply(acc[r][n + 1], a[r], b.z, b.w);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < TILES; r++)
                if (i + S::DEPTH < S::FRAGMENTS)
                    ring[j][r] = F::load(w + (u64)(r * S::FRAGMENTS + i + S::DEPTH) * F::BYTES, lane);
        }
    }
    copies_wait<0>();
}

// Lane 4g + t: features g and g + 8 of a tile's 16, rows 2t and 2t + 1 of a group's eight.
template <class S>
DEVICE void store_sums(const float (&acc)[S::TILES][S::GROUPS][4], float* sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, across = warp & 3, along = warp >> 2;
    const int g = lane >> 2, t = lane & 3;
    float* mine = sums + (8 * S::GROUPS * along + 2 * t) * S::STRIDE + across * S::TILES * 16 + g;
#pragma unroll
    for (int r = 0; r < S::TILES; r++)
#pragma unroll
        for (int n = 0; n < S::GROUPS; n++) {
            float* p = mine + 8 * n * S::STRIDE + 16 * r;
            p[0] = acc[r][n][0], p[S::STRIDE] = acc[r][n][1];
            p[8] = acc[r][n][2], p[S::STRIDE + 8] = acc[r][n][3];
        }
}

template <class S, class Segments>
DEVICE void matmul_many(const Counts* counts, const u16* x, const Segments& segments) {
    using F = typename S::F;
    extern __shared__ __align__(128) u8 shared[];
    const int across = threadIdx.x >> 5 & 3;
    // CTAs that share weights run side by side.
    const int token_tile = blockIdx.x, item = blockIdx.y;
    const u8* w = segments.item(item) + across * S::TILES * (u64)S::FRAGMENTS * F::BYTES;
    typename F::Fragment ring[S::DEPTH][S::TILES];
    load_first<S>(ring, w);
    let_next_start();
    // The step's sizes are there before the first launch.
    const int rows = (int)counts->tokens_or_rows(Segments::OF_ROWS) - token_tile * S::ROWS;
    wait_for_previous();
    if (rows <= 0) return;

    const u8* from = (const u8*)x + (u64)token_tile * S::FRAGMENTS * S::STAGE_BYTES + threadIdx.x * 16;
    const u32 stages = shared_address(shared), to = stages + threadIdx.x * 16;
    auto fetch = [&](int i) {
        if (i < S::FRAGMENTS)
#pragma unroll
            for (int j = 0; j < S::STAGE_BYTES; j += S::THREADS * 16)
                copy_async(to + i % S::STAGES * S::STAGE_BYTES + j, from + (u64)i * S::STAGE_BYTES + j);
        // An empty group too counts for one.
        copies_commit();
    };
    float acc[S::TILES][S::GROUPS][4] = {};
    multiply_tiles<S>(acc, ring, w, stages, fetch);
    __syncthreads();
    float* sums = (float*)shared;
    store_sums<S>(acc, sums);
    __syncthreads();
    segments.finish(item, token_tile * S::ROWS, sums, S::STRIDE, rows < S::ROWS ? rows : S::ROWS);
}

// Blocks of up to S::ROWS pairs of one expert, of which there are BLOCKS at most (matmul_experts.cuh); each CTA takes as many of
// their items. A thread copies 16 bytes of some pairs' rows of x, from where it lies in tiles to where the swizzle of
// its place in the stage has it.
template <class S, int E, int BLOCKS, bool BY_TOKENS, bool AHEAD, class Segments>
DEVICE void matmul_many_experts(const u16* x, const u32* tokens, const u32* starts, const Segments& segments) {
    using F = typename S::F;
    constexpr int ITEMS = Segments::ITEMS, APART = S::THREADS / 8, COPIES = S::ROWS / APART;
    extern __shared__ __align__(128) u8 shared[];
    const ExpertBlocks blocks{(U2*)(shared + S::SHARED)};
    const u32 stages = shared_address(shared);
    const int across = threadIdx.x >> 5 & 3, part = threadIdx.x & 7, own = threadIdx.x >> 3;
    if (!AHEAD) wait_for_previous();
    let_next_start();
    const int units = find_blocks<E, S::ROWS, S::THREADS>(starts, blocks.table) * ITEMS;
    const int first = (int)((u64)units * blockIdx.x / gridDim.x), last = (int)((u64)units * (blockIdx.x + 1) / gridDim.x);
    if (AHEAD) wait_for_previous();
    for (int unit = first; unit < last; unit++) {
        const int item = unit % ITEMS;
        const ExpertRows block = blocks[unit / ITEMS];
        const u8* w = segments.item(item) + block.expert * segments.expert_bytes(item) +
                      across * S::TILES * (u64)S::FRAGMENTS * F::BYTES;
        typename F::Fragment ring[S::DEPTH][S::TILES];
        load_first<S>(ring, w);
        u32 from[COPIES];
#pragma unroll
        for (int j = 0; j < COPIES; j++) {
            const u32 r = APART * j + own, pair = block.first + (r < block.rows ? r : block.rows - 1);
            const u32 row = BY_TOKENS ? tokens[pair] : pair;
            from[j] = row / 128 * (S::FRAGMENTS * 128 * 128) + row % 128 * 128 + ((part ^ row & 7) << 4);
        }
        const u32 to = stages + own * 128 + ((part ^ own & 7) << 4);
        auto fetch = [&](int i) {
            if (i < S::FRAGMENTS)
#pragma unroll
                for (int j = 0; j < COPIES; j++)
                    copy_async(to + i % S::STAGES * S::STAGE_BYTES + j * APART * 128, (const u8*)x + from[j] + i * (128 * 128));
            copies_commit();
        };
        float acc[S::TILES][S::GROUPS][4] = {};
        multiply_tiles<S>(acc, ring, w, stages, fetch);
        __syncthreads();
        float* sums = (float*)shared;
        store_sums<S>(acc, sums);
        __syncthreads();
        segments.finish(item, block.first, sums, S::STRIDE, block.rows);
        // Sums lie where stages do.
        __syncthreads();
    }
}

// Matrix products of few rows of activations: out[n, m] = sum over k of x[n, k] w[m, k], for up to 64 rows n.
//
// They are bound by reading weights, so all is about keeping reads in flight. A CTA works on items of GROUP tiles, one
// after the other; its warps divide an item's tiles (TILES of them each) and columns among them, and each has DEPTH
// fragments on their way in registers. Sums meet in shared memory, where the segment's epilogue takes them. Weights take
// the place of the matrix unit's first factor: rows of activations are its columns, so that one row costs 8 of them, and
// not 16 rows of weights.
//
// Segments are what a launch multiplies with, one weight each:
//   ITEMS                        of all segments
//   const u8* item(int)          its first tile
//   void finish(int item, int row0, const float* sums, int stride, int rows)
//                                takes the sums [rows][stride] of an item's GROUP * 16 features, of rows from row0 on; all
//                                threads call it
//
// A prologue, of one row, makes x: each block does it all, and one of them stores what else comes of it (region.cuh).
//
// One row: x and the sums of its blocks of 32, times what codes are off by as they are multiplied, are put into shared
// memory first; codes are multiplied without being dequantised, and sums scaled. More rows: codes are dequantised to f16,
// and x comes through the first cache.

template <class Format, int K_, int WARPS_, int GROUP_, int TILES_, int DEPTH_, int COLUMNS_>
struct MatMulShape {
    using F = Format;
    static constexpr int K = K_, WARPS = WARPS_, GROUP = GROUP_, TILES = TILES_, DEPTH = DEPTH_;
    // Groups of eight rows of activations; 0: one row.
    static constexpr int COLUMNS = COLUMNS_;
    static constexpr bool ONE = COLUMNS == 0;
    static constexpr int NT = ONE ? 1 : COLUMNS;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int FRAGMENTS = K / 64;
    // Warps that share an item's tiles, and that share its columns.
    static constexpr int ACROSS = GROUP / TILES, ALONG = WARPS / ACROSS;
    // Fragments of a warp in an item, rounded up to whole rounds of DEPTH.
    static constexpr int ROUNDS = ((FRAGMENTS + ALONG - 1) / ALONG + DEPTH - 1) / DEPTH;
    static constexpr bool EVEN = FRAGMENTS == ROUNDS * DEPTH * ALONG;
    static constexpr int ROWS = ONE ? 1 : 8 * NT;
    static constexpr int STRIDE = GROUP * 16 + 4;
    static_assert(K % 64 == 0 && GROUP % TILES == 0 && WARPS % ACROSS == 0, "warps divide an item evenly");
    // Shared memory: x and the blocks' corrections, two sets of sums.
    static constexpr int X_BYTES = ONE ? 2 * K + K / 32 * 16 : 0;
    static constexpr int SUMS = ALONG * ROWS * STRIDE;
    static constexpr int SHARED = X_BYTES + 2 * SUMS * 4;
};

// 0, once a value is there: the assembler doesn't know that blocks have one row of threads.
DEVICE u32 behind(float value) {
    return __float_as_uint(value) & threadIdx.y;
}

// Where x is there.
struct NoPrologue {
    static constexpr bool IS = false;
};

// x of one row, made by all threads of the block, in shared memory.
template <int K, int THREADS, class P>
DEVICE void make_row(P prologue, u16* x) {
    __shared__ float warps[64];
    int set = 0, unit[(K + THREADS - 1) / THREADS], c[(K + THREADS - 1) / THREADS];
    bool live[(K + THREADS - 1) / THREADS];
#pragma unroll
    for (int j = 0; j < (K + THREADS - 1) / THREADS; j++) {
        const int e = j * THREADS + threadIdx.x;
        unit[j] = e / P::WIDTH, c[j] = e % P::WIDTH;
        live[j] = K % THREADS == 0 || e < K;
    }
    prologue.keep(x);
    prologue.run(NoTile{}, BlockSums<THREADS>{warps, &set}, 0, unit, c, live);
    __syncthreads();
}

template <class S, class Segments, class Prologue>
DEVICE void matmul_few(const Counts* counts, const u16* x, const Segments& segments, const Prologue& prologue) {
    using F = typename S::F;
    using Fragment = typename F::Fragment;
    constexpr int K = S::K, DEPTH = S::DEPTH, NT = S::NT, TILES = S::TILES;
    extern __shared__ __align__(128) u8 shared[];
    float* sums = (float*)(shared + S::X_BYTES);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int across = warp % S::ACROSS, along = warp / S::ACROSS;
    const int first = (int)((u64)Segments::ITEMS * blockIdx.x / gridDim.x);
    const int last = (int)((u64)Segments::ITEMS * (blockIdx.x + 1) / gridDim.x);
    const int begin = along * S::FRAGMENTS / S::ALONG;
    const int count = (along + 1) * S::FRAGMENTS / S::ALONG - begin;
    constexpr u64 TILE_BYTES = (u64)S::FRAGMENTS * F::BYTES;
    const u64 within = (u64)(across * TILES) * TILE_BYTES + (u64)begin * F::BYTES;

    // The reads of weights depend on nothing: they are on their way before the launch before this one has ended.
    Fragment ring[DEPTH][TILES];
    const u8* p = segments.item(first < Segments::ITEMS ? first : 0) + within;
#pragma unroll
    for (int i = 0; i < DEPTH; i++)
#pragma unroll
        for (int r = 0; r < TILES; r++)
            ring[i][r] = first < last && (S::EVEN || i < count) ? F::load(p + r * TILE_BYTES + i * F::BYTES, lane)
                                                                 : F::none();
    if constexpr (Prologue::IS) prologue.fetch();
    let_next_start();
    wait_for_previous();
    // A step of more rows than a CTA takes is cut along y.
    const int row0 = blockIdx.y * S::ROWS, all = (int)counts->tokens_or_rows(Segments::OF_ROWS) - row0;
    if (all <= 0) return;
    const int rows = all < S::ROWS ? all : S::ROWS;
    x += (u64)row0 * K;

    u32 x_at = 0, corrections_at = 0;
    if (S::ONE) {
        float* corrections = (float*)(shared + 2 * K);
        if constexpr (Prologue::IS) make_row<K, S::THREADS>(prologue, (u16*)shared);
        for (int i = threadIdx.x; i < K / 8; i += S::THREADS) {
            U4 v;
            if constexpr (Prologue::IS) {
                v = ((const U4*)shared)[i];
            } else {
                v = load_shared_line((const U4*)x + i);
                ((U4*)shared)[i] = v;
            }
            if (F::RAW) {
                float sum = low_half(v.x) + high_half(v.x) + low_half(v.y) + high_half(v.y) + low_half(v.z) +
                            high_half(v.z) + low_half(v.w) + high_half(v.w);
                // K / 8 is a multiple of 8: the four lanes of a block are all here.
                unsigned lanes = __activemask();
                sum += __shfl_xor_sync(lanes, sum, 1);
                sum += __shfl_xor_sync(lanes, sum, 2);
                if (i % 4 == 0) {
                    float* c = corrections + i / 4 * 4;
                    c[0] = c[1] = -F::BIAS_LOW * sum;
                    c[2] = -F::BIAS_HIGH * sum;
                    c[3] = sum;
                }
            }
        }
        __syncthreads();
        x_at = shared_address(shared) + begin * 128 + t * 16;
        corrections_at = shared_address(corrections) + begin * 32;
    }
    // Rows that are not there are those that are: what they yield is not used.
    const u16* x_row[NT];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        int row = 8 * n + g;
        x_row[n] = x + (u64)(row < rows ? row : rows - 1) * K + begin * 64 + 8 * t;
    }

    float acc[TILES][NT][4] = {};
    int set = 0;
    // With many sums, a number that the assembler doesn't know: it would unroll a few rounds and move all their reads ahead,
    // into more registers than there are. Blocks have one row of threads. Of one round it knows best.
    const int rounds = S::ROUNDS + (NT > 1 && S::ROUNDS > 1 ? threadIdx.y & 1 : 0);
    for (int item = first; item < last; item++) {
        const u8* next = item + 1 < last ? segments.item(item + 1) + within : p;
#pragma unroll 1
        for (int round = 0; round < rounds; round++) {
            const bool wraps = round + 1 == rounds;
            const u8* from = wraps ? next : p + (u64)(round + 1) * DEPTH * F::BYTES;
            const bool more = !wraps || item + 1 < last;
#pragma unroll
            for (int i = 0; i < DEPTH; i++) {
                const int c = round * DEPTH + i;
                const bool here = S::EVEN || c < count;
                const int column = here ? c : 0;
                U4 b[NT][2];
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        b[n][half] = S::ONE ? load_from_shared(x_at + column * 128 + half * 64)
                                            : load_shared_line((const U4*)(x_row[n] + column * 64 + half * 32));
                if (S::ONE && F::RAW) {
#pragma unroll
                    for (int r = 0; r < TILES; r++)
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            U4 c4 = load_from_shared(corrections_at + (2 * column + half) * 16);
                            float sum[4] = {__uint_as_float(c4.x), __uint_as_float(c4.x), __uint_as_float(c4.z),
                                            __uint_as_float(c4.z)};
                            u32 a[4];
                            F::raw(ring[i][r], 2 * half, a);
                            multiply(sum, a, b[0][half].x, b[0][half].y);
                            F::raw(ring[i][r], 2 * half + 1, a);
                            multiply(sum, a, b[0][half].z, b[0][half].w);
                            float low, high;
                            F::scales(ring[i][r], half, low, high);
                            acc[r][0][0] = fmaf(low, sum[0], acc[r][0][0]);
                            acc[r][0][2] = fmaf(high, sum[2], acc[r][0][2]);
                            if (F::HAS_MIN) {
                                F::minima(ring[i][r], half, low, high);
                                acc[r][0][0] = fmaf(low, __uint_as_float(c4.w), acc[r][0][0]);
                                acc[r][0][2] = fmaf(high, __uint_as_float(c4.w), acc[r][0][2]);
                            }
                        }
                } else {
#pragma unroll
                    for (int r = 0; r < TILES; r++)
#pragma unroll
                        for (int step = 0; step < 4; step++) {
                            u32 a[4];
                            F::dequantise(ring[i][r], step, a);
#pragma unroll
                            for (int n = 0; n < NT; n++) {
                                const U4& v = b[n][step / 2];
                                multiply(acc[r][n], a, step % 2 ? v.z : v.x, step % 2 ? v.w : v.y);
                            }
                        }
                }
                // This slot's next fragment: DEPTH further, or of the next item.
                const bool there = more && (S::EVEN || (wraps ? i : c + DEPTH) < count);
#pragma unroll
                for (int r = 0; r < TILES; r++) {
                    // A read that waits for these sums: all of an item's at once would need twice the registers.
                    if (there)
                        ring[i][r] = F::load(from + r * TILE_BYTES + i * F::BYTES + (S::ONE ? behind(acc[r][0][0]) : 0),
                                             lane);
                    else if (!S::EVEN)
                        ring[i][r] = F::none();
                }
            }
        }
        p = next;

        float* mine = sums + set * S::SUMS + along * S::ROWS * S::STRIDE + across * TILES * 16 + g;
#pragma unroll
        for (int r = 0; r < TILES; r++)
#pragma unroll
            for (int n = 0; n < NT; n++) {
                float* at = mine + r * 16;
                if (S::ONE) {
                    if (t == 0) at[0] = acc[r][0][0], at[8] = acc[r][0][2];
                } else {
                    at += (8 * n + 2 * t) * S::STRIDE;
                    at[0] = acc[r][n][0], at[S::STRIDE] = acc[r][n][1];
                    at[8] = acc[r][n][2], at[S::STRIDE + 8] = acc[r][n][3];
                }
#pragma unroll
                for (int j = 0; j < 4; j++) acc[r][n][j] = 0;
            }
        __syncthreads();
        // Always in this order: the same bits whatever runs beside it.
        float* total = sums + set * S::SUMS;
        const int live = S::ONE ? 1 : rows;
        for (int i = threadIdx.x; i < live * S::GROUP * 16; i += S::THREADS) {
            int at = i / (S::GROUP * 16) * S::STRIDE + i % (S::GROUP * 16);
            float v = total[at];
#pragma unroll 4
            for (int k = 1; k < S::ALONG; k++) v += total[at + k * S::ROWS * S::STRIDE];
            total[at] = v;
        }
        __syncthreads();
        segments.finish(item, row0, total, S::STRIDE, live);
        // The other set of sums is free: whoever still reads this one is before the next barrier.
        set ^= 1;
    }
}

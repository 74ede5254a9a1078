// Matrix products of few rows of activations: out[n, m] = sum over k of x[n, k] w[m, k], for 2 to 64 rows n.
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
// Codes are dequantised to f16, and x comes through the first cache.

template <class Format, int K_, int WARPS_, int GROUP_, int TILES_, int DEPTH_, int COLUMNS_>
struct MatMulShape {
    using F = Format;
    static constexpr int K = K_, WARPS = WARPS_, GROUP = GROUP_, TILES = TILES_, DEPTH = DEPTH_;
    // Groups of eight rows of activations.
    static constexpr int NT = COLUMNS_;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int FRAGMENTS = K / 64;
    // Warps that share an item's tiles, and that share its columns.
    static constexpr int ACROSS = GROUP / TILES, ALONG = WARPS / ACROSS;
    // Fragments of a warp in an item, rounded up to whole rounds of DEPTH.
    static constexpr int ROUNDS = ((FRAGMENTS + ALONG - 1) / ALONG + DEPTH - 1) / DEPTH;
    static constexpr bool EVEN = FRAGMENTS == ROUNDS * DEPTH * ALONG;
    static constexpr int ROWS = 8 * NT;
    static constexpr int STRIDE = GROUP * 16 + 4;
    static_assert(K % 64 == 0 && GROUP % TILES == 0 && WARPS % ACROSS == 0, "warps divide an item evenly");
    // Shared memory: two sets of sums.
    static constexpr int SUMS = ALONG * ROWS * STRIDE;
    static constexpr int SHARED = 2 * SUMS * 4;
};

// Adds half a fragment of each of a warp's tiles times its 32 columns of x.
template <class S>
DEVICE void add_half(float (&acc)[S::TILES][S::NT][4], const typename S::F::Fragment (&fragment)[S::TILES], const U4 (&x)[S::NT],
                     int half) {
#pragma unroll
    for (int r = 0; r < S::TILES; r++)
#pragma unroll
        for (int step = 0; step < 2; step++) {
            u32 a[4];
            S::F::dequantise(fragment[r], 2 * half + step, a);
#pragma unroll
            for (int n = 0; n < S::NT; n++) multiply(acc[r][n], a, step ? x[n].z : x[n].x, step ? x[n].w : x[n].y);
        }
}

// Adds a fragment of each of a warp's tiles times the 64 columns of x at `column`.
template <class S>
DEVICE void add_column(float (&acc)[S::TILES][S::NT][4], const typename S::F::Fragment (&fragment)[S::TILES],
                       const u16* const (&x_row)[S::NT], int column) {
    U4 x[2][S::NT];
#pragma unroll
    for (int n = 0; n < S::NT; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) x[half][n] = load_shared_line((const U4*)(x_row[n] + column * 64 + half * 32));
    add_half<S>(acc, fragment, x[0], 0);
    add_half<S>(acc, fragment, x[1], 1);
}

// A warp's sums of an item, [S::ALONG][S::ROWS][S::STRIDE] in shared memory; they are zero then.
template <class S>
DEVICE void put_sums(float (&acc)[S::TILES][S::NT][4], float* sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int across = warp % S::ACROSS, along = warp / S::ACROSS;
    float* mine = sums + along * S::ROWS * S::STRIDE + across * S::TILES * 16 + g;
#pragma unroll
    for (int r = 0; r < S::TILES; r++)
#pragma unroll
        for (int n = 0; n < S::NT; n++) {
            float* at = mine + r * 16 + (8 * n + 2 * t) * S::STRIDE;
            at[0] = acc[r][n][0], at[S::STRIDE] = acc[r][n][1];
            at[8] = acc[r][n][2], at[S::STRIDE + 8] = acc[r][n][3];
#pragma unroll
            for (int j = 0; j < 4; j++) acc[r][n][j] = 0;
        }
}

// The sums of an item over all warps that share its columns, [rows][S::STRIDE] in shared memory.
template <class S>
DEVICE const float* add_up(float (&acc)[S::TILES][S::NT][4], float* sums, int rows) {
    put_sums<S>(acc, sums);
    __syncthreads();
    // Always in this order: the same bits whatever runs beside it.
    for (int i = threadIdx.x; i < rows * S::GROUP * 16; i += S::THREADS) {
        int at = i / (S::GROUP * 16) * S::STRIDE + i % (S::GROUP * 16);
        float v = sums[at];
#pragma unroll 4
        for (int k = 1; k < S::ALONG; k++) v += sums[at + k * S::ROWS * S::STRIDE];
        sums[at] = v;
    }
    __syncthreads();
    return sums;
}

template <class S, class Segments>
DEVICE void matmul_few(const Counts* counts, const u16* x, const Segments& segments) {
    using F = typename S::F;
    using Fragment = typename F::Fragment;
    constexpr int K = S::K, DEPTH = S::DEPTH, NT = S::NT, TILES = S::TILES;
    extern __shared__ __align__(128) u8 shared[];
    float* sums = (float*)shared;
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
    let_next_start();
    // A step of more rows than a CTA takes is cut along y. Its sizes are there before the first launch.
    const int row0 = blockIdx.y * S::ROWS, all = (int)counts->tokens_or_rows(Segments::OF_ROWS) - row0;
    wait_for_previous();
    if (all <= 0) return;
    const int rows = all < S::ROWS ? all : S::ROWS;
    x += (u64)row0 * K;

    // Rows that are not there are those that are: what they yield is not used. Each pointer is at the round's first column,
    // so that others are at distances that instructions hold.
    const u16* x_row[NT];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        int row = 8 * n + g;
        x_row[n] = x + (u64)(row < rows ? row : rows - 1) * K + begin * 64 + 8 * t;
    }
    // What is multiplied, and what is multiplied next.
    U4 b[2][NT];
#pragma unroll
    for (int n = 0; n < NT; n++) b[0][n] = load_shared_line((const U4*)x_row[n]);

    float acc[TILES][NT][4] = {};
    int set = 0;
    // With many sums, a number that the assembler doesn't know: it would unroll rounds and move their reads ahead, into more
    // registers than there are. Blocks have one row of threads. Of one round it knows best.
    const int rounds = NT > 1 && S::ROUNDS > 1 ? S::ROUNDS * (1 + threadIdx.y) : S::ROUNDS;
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
                const bool here = S::EVEN || c < count, ends = i + 1 == DEPTH;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    // A column that is not there counts for nothing: its weights are zero.
                    const bool moves = ends && half == 1;
                    if (moves)
#pragma unroll
                        for (int n = 0; n < NT; n++) x_row[n] += wraps ? (1 - rounds) * DEPTH * 64 : DEPTH * 64;
                    if (S::EVEN || (half == 0 ? here : (moves && wraps) || c + 1 < count))
#pragma unroll
                        for (int n = 0; n < NT; n++) {
                            const u16* at = x_row[n] + (moves ? 0 : i * 64 + half * 32 + 32);
                            b[half ^ 1][n] = load_shared_line((const U4*)at);
                        }
                    add_half<S>(acc, ring[i], b[half], half);
                }
                // This slot's next fragment: DEPTH further, or of the next item.
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

        const float* total = add_up<S>(acc, sums + set * S::SUMS, rows);
        segments.finish(item, row0, total, S::STRIDE, rows);
        // The other set of sums is free: whoever still reads this one is before the next barrier.
        set ^= 1;
    }
}

// Matrix products on RDNA 3.5: out[n, m] = sum over k of x[n, k] w[m, k], weights in fragments (fragment.cuh).
//
// Segments are what a launch multiplies with, as for CUDA (matmul.cuh): ITEMS, item(i), finish(i, row0, sums, stride, rows), and
// tiles(i), how many tiles there are from an item's first one on. A block takes an item: GROUP tiles of 16 features; those that
// are not there are the last one, whose sums are not used twice. Blocks are many and short; those that a processor runs at a time cover one
// another's waits, so nothing is carried from an item to the next.
//
// Memory has 212 GB/s, and 80 units issue 232 G instructions a second: 1.1 instructions of a wavefront a byte, while a lane's
// 32 nibbles of 4.5 bits (576 bytes a wavefront) take about 50 for one row. So few rows are bound by memory alone, and all
// that matters is reads under way: whole fragments, DEPTH of them a wavefront, coalesced, each byte read once.

typedef _Float16 H16 __attribute__((ext_vector_type(16)));
typedef float F8 __attribute__((ext_vector_type(8)));

// c[16, 16] += a[16, 16] b[16, 16]. Lane l has of a row l % 16, of b column l % 16, as has lane l + 16; of c column l % 16 of rows
// 2 v + l / 16.
DEVICE void multiply(F8& c, const u32 (&a)[8], const u32 (&b)[8]) {
    c = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(__builtin_bit_cast(H16, a), __builtin_bit_cast(H16, b), c);
}

// The number of a wavefront in its block, for the scalar unit.
DEVICE u32 wave_index() { return __builtin_amdgcn_readfirstlane(threadIdx.x >> 5); }

// Which rows a block multiplies, with which weights:
//   weights(segments, item)  bytes from an item's first ones to this block's
//   row0, rows()             its rows of results: the first, and how many there are, which may be none
//   INDEXED, x_row(i)        the row of x that its row i is made of, and whether that is looked up
//
// Blocks of all rows, in their order. Grids are as long as the step that they were captured for.
template <int ROWS, bool OF_ROWS>
struct InOrder {
    static constexpr bool INDEXED = false;
    const Counts* counts;
    int row0;
    __device__ explicit InOrder(const Counts* counts) : counts(counts), row0(blockIdx.y * ROWS) {}
    template <class Segments>
    __device__ u64 weights(const Segments&, int) const {
        return 0;
    }
    __device__ int rows() const {
        const int left = (int)counts->tokens_or_rows(OF_ROWS) - row0;
        return left < ROWS ? left : ROWS;
    }
    __device__ u32 x_row(int i) const { return row0 + i; }
};

// A tile's number in its item, or that of the last one there is.
DEVICE u32 there(u32 tile, int tiles) { return tile < (u32)tiles ? tile : tiles - 1; }

// ---- One row ----

template <class Format, int K_, int ACROSS_, int ALONG_, int PLACES_, int DEPTH_, bool STAGED_>
struct OneShape {
    using F = Format;
    static constexpr int K = K_, DEPTH = DEPTH_, FRAGMENTS = K / 64;
    // Wavefronts that share an item's tiles, and that share its columns; as many for each of PLACES rows of x, which have weights
    // of their own.
    static constexpr int ACROSS = ACROSS_, ALONG = ALONG_, PLACES = PLACES_;
    static constexpr int THREADS = 32 * ACROSS * ALONG * PLACES, STRIDE = ACROSS * 16 + 4;
    // Whether x is copied to shared memory.
    static constexpr bool STAGED = STAGED_;
    // Fragments of a wavefront, rounded up to whole rounds of DEPTH.
    static constexpr int ROUNDS = ((FRAGMENTS + ALONG - 1) / ALONG + DEPTH - 1) / DEPTH;
    static constexpr bool EVEN = FRAGMENTS == ROUNDS * DEPTH * ALONG;
    static constexpr int X_BYTES = STAGED ? 2 * K * PLACES : 0, SHARED = X_BYTES + ALONG * PLACES * STRIDE * 4;
    static_assert(K % 64 == 0, "columns are whole fragments");
    // A wavefront's place.
    DEVICE u32 place() { return wave_index() / ACROSS % PLACES; }
};

// A fragment's sums of a row g and g + 8, over the 8 columns of each block that lane 4 g + t has. Codes that can be are multiplied
// as they are, above 1024, and the sums scaled.
template <class F>
DEVICE void multiply_fragment(const typename F::Fragment& f, const U4 (&x)[2], float& low, float& high) {
#pragma unroll
    for (int block = 0; block < 2; block++) {
        u32 a[4], b[4];
        const U4& v = x[block];
        if constexpr (F::RAW) {
            const u32 ones = 0x3c003c00;
            const float sum = dot2(v.x, ones, dot2(v.y, ones, dot2(v.z, ones, dot2(v.w, ones, 0.f))));
            F::raw(f, 2 * block, a);
            F::raw(f, 2 * block + 1, b);
            float l = -F::BIAS_LOW * sum, h = -F::BIAS_HIGH * sum, scale_low, scale_high;
            l = dot2(a[0], v.x, l), h = dot2(a[1], v.x, h), l = dot2(a[2], v.y, l), h = dot2(a[3], v.y, h);
            l = dot2(b[0], v.z, l), h = dot2(b[1], v.z, h), l = dot2(b[2], v.w, l), h = dot2(b[3], v.w, h);
            F::scales(f, block, scale_low, scale_high);
            low = fmaf(scale_low, l, low), high = fmaf(scale_high, h, high);
            if constexpr (F::HAS_MIN) {
                F::minima(f, block, scale_low, scale_high);
                low = fmaf(scale_low, sum, low), high = fmaf(scale_high, sum, high);
            }
        } else {
            F::dequantise(f, 2 * block, a);
            F::dequantise(f, 2 * block + 1, b);
            low = dot2(a[0], v.x, low), high = dot2(a[1], v.x, high);
            low = dot2(a[2], v.y, low), high = dot2(a[3], v.y, high);
            low = dot2(b[0], v.z, low), high = dot2(b[1], v.z, high);
            low = dot2(b[2], v.w, low), high = dot2(b[3], v.w, high);
        }
    }
}

// An item's row of x, which a prologue (region.cuh) may make; of more than one place, the block is that of a wavefront's place. Results
// for all places are finished together.
//
// Reads come back in their order: those of a prologue go out first, so that it need not wait for weights.
template <class S, class Segments, class Block, class Prologue>
DEVICE void matmul_one(const u16* x, const Segments& segments, const Block& block, const Prologue& prologue, u32 item) {
    using F = typename S::F;
    using Fragment = typename F::Fragment;
    constexpr int DEPTH = S::DEPTH, PLACES = S::PLACES;
    static_assert(!Prologue::IS || S::STAGED && PLACES == 1, "what a prologue makes lies in shared memory");
    extern __shared__ __align__(16) u8 shared[];
    float* sums = (float*)(shared + S::X_BYTES);
    const u32 lane = threadIdx.x & 31, wave = wave_index(), t = lane & 3;
    const u32 across = wave % S::ACROSS, place = S::place(), along = wave / (S::ACROSS * PLACES);
    const int begin = along * S::FRAGMENTS / S::ALONG;
    const int count = (along + 1) * S::FRAGMENTS / S::ALONG - begin;
    constexpr u64 TILE_BYTES = (u64)S::FRAGMENTS * F::BYTES;
    const u8* const p = segments.item(item) + block.weights(segments, item) +
                        there(across, segments.tiles(item)) * TILE_BYTES + (u64)begin * F::BYTES;

    const RowAhead<S::K, S::THREADS, Prologue> row(prologue);
    Fragment ring[DEPTH];
#pragma unroll
    for (int i = 0; i < DEPTH; i++) ring[i] = S::EVEN || i < count ? F::load(p + i * F::BYTES, lane) : F::none();
    // Of several places, each wavefront has its own, and there are all.
    if (PLACES == 1 && block.rows() <= 0) return;
    if constexpr (Prologue::IS) {
        make_row<S::K, S::THREADS, S::THREADS>(prologue, row, (u16*)shared);
    } else if constexpr (S::STAGED) {
        const U4* const from = (const U4*)(PLACES > 1 ? x : x + (u64)block.x_row(0) * S::K);
        for (int i = threadIdx.x; i < S::K / 8 * PLACES; i += S::THREADS) ((U4*)shared)[i] = from[i];
        shared_barrier();
    }
    const u8* const own = S::STAGED ? shared + place * (2 * S::K) : (const u8*)x + (u64)block.x_row(0) * (2 * S::K);
    const u8* const x_at = own + begin * 128 + t * 16;

    float low = 0, high = 0;
#pragma unroll 1
    for (int round = 0; round < S::ROUNDS; round++) {
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            const int c = round * DEPTH + i;
            const bool here = S::EVEN || c < count;
            const u8* at = x_at + (here ? c : 0) * 128;
            const U4 v[2] = {*(const U4*)at, *(const U4*)(at + 64)};
            multiply_fragment<F>(ring[i], v, low, high);
            const int next = c + DEPTH;
            if (round + 1 < S::ROUNDS)
                ring[i] = S::EVEN || next < count ? F::load(p + (u64)next * F::BYTES, lane) : F::none();
            __builtin_amdgcn_sched_barrier(0);
        }
    }
    // The four lanes of a row, then the wavefronts, always in this order.
    low += lane_xor<1>(low), high += lane_xor<1>(high);
    low += lane_xor<2>(low), high += lane_xor<2>(high);
    float* mine = sums + (along * PLACES + place) * S::STRIDE + across * 16 + lane / 4;
    if (t == 0) mine[0] = low, mine[8] = high;
    shared_barrier();
    if (S::ALONG > 1) {
        constexpr int FEATURES = S::ACROSS * 16;
        for (int i = threadIdx.x; i < PLACES * FEATURES; i += S::THREADS) {
            float* at = sums + i / FEATURES * S::STRIDE + i % FEATURES;
            float v = *at;
#pragma unroll
            for (int k = 1; k < S::ALONG; k++) v += at[k * PLACES * S::STRIDE];
            *at = v;
        }
        shared_barrier();
    }
    segments.finish(item, block.row0, sums, S::STRIDE, 1);
}

// ---- More rows ----

template <class Format, int K_, int ACROSS_, int ALONG_, int TILES_, int COLUMNS_>
struct ManyShape {
    using F = Format;
    static constexpr int K = K_, FRAGMENTS = K / 64;
    // Wavefronts that share an item's tiles, TILES each, and that share its columns.
    static constexpr int ACROSS = ACROSS_, ALONG = ALONG_, TILES = TILES_, GROUP = ACROSS * TILES;
    // Groups of 16 rows of activations.
    static constexpr int COLUMNS = COLUMNS_, ROWS = 16 * COLUMNS;
    static constexpr int THREADS = 32 * ACROSS * ALONG;
    // A stage has the columns of a fragment for each of ALONG wavefronts. Rows are an odd number of 16 bytes apart: eight of them
    // hit different banks.
    static constexpr int X_STRIDE = 128 * ALONG + 16, STAGE = ROWS * X_STRIDE;
    static constexpr int ROUNDS = (FRAGMENTS + ALONG - 1) / ALONG;
    static constexpr bool EVEN = FRAGMENTS % ALONG == 0;
    // Copies of 16 bytes a thread makes.
    static constexpr int PIECES = ROWS * 8 * ALONG, COPIES = (PIECES + THREADS - 1) / THREADS;
    // Sums of as many groups of 16 rows at a time as two stages have room for.
    static constexpr int STRIDE = GROUP * 16 + 4, GROUP_SUMS = ALONG * 16 * STRIDE * 4;
    static constexpr int AT_ONCE = COLUMNS >= 2 && 2 * GROUP_SUMS <= 2 * STAGE ? 2 : 1;
    static constexpr int SHARED = 2 * STAGE > GROUP_SUMS ? 2 * STAGE : GROUP_SUMS;
    static_assert(K % 64 == 0, "columns are whole fragments");
};

template <class S, class Segments, class Block>
DEVICE void matmul_many(const u16* x, const Segments& segments, const Block& block) {
    using F = typename S::F;
    using R = Rows<F>;
    constexpr int TILES = S::TILES, COLUMNS = S::COLUMNS;
    extern __shared__ __align__(16) u8 shared[];
    const u32 lane = threadIdx.x & 31, wave = wave_index(), n = lane & 15, g = lane & 7, high = lane >> 3 & 1;
    const u32 across = wave % S::ACROSS, along = wave / S::ACROSS;
    const int item = blockIdx.x, row0 = block.row0;
    constexpr u64 TILE_BYTES = (u64)S::FRAGMENTS * F::BYTES;
    const u8* const weights = segments.item(item) + block.weights(segments, item);
    const u8* w[TILES];
#pragma unroll
    for (int r = 0; r < TILES; r++)
        w[r] = weights + there(across * TILES + r, segments.tiles(item)) * TILE_BYTES + along * F::BYTES;
    const int rows = block.rows();
    if (rows <= 0) return;

    // Fragment `along` of each stage. Where the last stage has none for this wavefront, it multiplies another's with nothing.
    typename R::Part part[TILES][4];
    typename R::Scales scales[TILES];
    auto fragment = [&](int r, int round) {
        const bool here = S::EVEN || round * S::ALONG + (int)along < S::FRAGMENTS;
        return w[r] + (u64)(here ? round : 0) * S::ALONG * F::BYTES;
    };
#pragma unroll
    for (int r = 0; r < TILES; r++) {
        scales[r] = R::load_scales(fragment(r, 0), g);
#pragma unroll
        for (int t = 0; t < 4; t++) part[r][t] = R::load(fragment(r, 0), g, t, high);
    }

    // Rows that are not there are those that are; what they yield is not used. Columns that are not there are zeros.
    auto row_of = [&](int i) {
        const int row = (i * S::THREADS + threadIdx.x) / (8 * S::ALONG);
        return block.x_row(row < rows ? row : rows - 1);
    };
    u32 looked_up[S::COPIES];
    if constexpr (Block::INDEXED) {
#pragma unroll
        for (int i = 0; i < S::COPIES; i++) looked_up[i] = row_of(i);
    }
    U4 copies[S::COPIES];
    auto fetch = [&](int round) {
#pragma unroll
        for (int i = 0; i < S::COPIES; i++) {
            const int piece = i * S::THREADS + threadIdx.x, at = piece % (8 * S::ALONG);
            const int column = round * S::ALONG * 8 + at;
            copies[i] = U4{0, 0, 0, 0};
            if (S::PIECES % S::THREADS == 0 || piece < S::PIECES)
                if (S::EVEN || column < S::K / 8)
                    copies[i] = *((const U4*)(x + (u64)(Block::INDEXED ? looked_up[i] : row_of(i)) * S::K) + column);
        }
    };
    auto stage = [&](int round) {
        u8* to = shared + (round & 1) * S::STAGE;
#pragma unroll
        for (int i = 0; i < S::COPIES; i++) {
            const int piece = i * S::THREADS + threadIdx.x, row = piece / (8 * S::ALONG), at = piece % (8 * S::ALONG);
            if (S::PIECES % S::THREADS == 0 || piece < S::PIECES) *(U4*)(to + row * S::X_STRIDE + at * 16) = copies[i];
        }
    };
    fetch(0);
    stage(0);

    F8 acc[TILES][COLUMNS] = {};
    const u8* x_at = shared + n * S::X_STRIDE + along * 128;
#pragma unroll 1
    for (int round = 0; round < S::ROUNDS; round++) {
        // Stage `round` is there, and all have done with the one whose place the next takes.
        shared_barrier();
        // Without branches, whose blocks the compiler would move reads across: the last round reads again what it has.
        const int next = round + 1 < S::ROUNDS ? round + 1 : round;
        fetch(next);
        const u8* from = x_at + (round & 1) * S::STAGE;
        typename R::Scales mine[TILES];
#pragma unroll
        for (int r = 0; r < TILES; r++) mine[r] = R::of_row(scales[r], high);
#pragma unroll
        for (int t = 0; t < 4; t++) {
            u32 a[TILES][8];
#pragma unroll
            for (int r = 0; r < TILES; r++) {
                R::dequantise(part[r][t], mine[r], t, high, a[r]);
                part[r][t] = R::load(fragment(r, next), g, t, high);
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                const U4 lower = *(const U4*)(from + j * 16 * S::X_STRIDE + t * 16);
                const U4 upper = *(const U4*)(from + j * 16 * S::X_STRIDE + t * 16 + 64);
                const u32 b[8] = {lower.x, lower.y, lower.z, lower.w, upper.x, upper.y, upper.z, upper.w};
#pragma unroll
                for (int r = 0; r < TILES; r++) multiply(acc[r][j], a[r], b);
            }
            // What the next step is made of needs registers that this one has.
            __builtin_amdgcn_sched_barrier(0);
        }
#pragma unroll
        for (int r = 0; r < TILES; r++) scales[r] = R::load_scales(fragment(r, next), g);
        stage(round + 1);
    }

    // Sums take the place of activations, some groups of rows at a time.
    float* sums = (float*)shared;
    constexpr int SET = S::AT_ONCE * 16 * S::STRIDE;
#pragma unroll
    for (int j = 0; j < COLUMNS; j += S::AT_ONCE) {
        shared_barrier();
        if (16 * j >= rows) break;
#pragma unroll
        for (int k = 0; k < S::AT_ONCE; k++) {
            float* at = sums + along * SET + (16 * k + n) * S::STRIDE + across * TILES * 16 + lane / 16;
#pragma unroll
            for (int r = 0; r < TILES; r++)
#pragma unroll
                for (int v = 0; v < 8; v++) at[16 * r + 2 * v] = acc[r][j + k][v];
        }
        shared_barrier();
        const int left = rows - 16 * j, live = left < 16 * S::AT_ONCE ? left : 16 * S::AT_ONCE;
        if (S::ALONG > 1) {
            for (int i = threadIdx.x; i < live * S::GROUP * 16; i += S::THREADS) {
                float* at = sums + i / (S::GROUP * 16) * S::STRIDE + i % (S::GROUP * 16);
                float v = *at;
#pragma unroll
                for (int k = 1; k < S::ALONG; k++) v += at[k * SET];
                *at = v;
            }
            shared_barrier();
        }
        segments.finish(item, row0 + 16 * j, sums, S::STRIDE, live);
    }
}

// Products with matrices of f32, row after row, as routers have them: out[n, m] = sum over k of x[n, k] w[m, k], in f32. A warp has a
// feature, or some warps; its first numbers are on their way before the launch before this one has ended.
//
// Segments are as in matmul.cuh, an item a block's features, and
//   int features(int item)       how many there are of an item

// Of one row, which a prologue (region.cuh) may make.
template <int K, int THREADS, class Segments, class Prologue>
DEVICE void matmul_floats(const Counts* counts, const u16* x, const Segments& segments, const Prologue& prologue) {
    constexpr int STEPS = (K + 127) / 128, AHEAD = STEPS < 16 ? STEPS : 16, FEATURES = THREADS / 32;
    __shared__ float sums[FEATURES];
    const int lane = threadIdx.x & 31, feature = threadIdx.x >> 5, item = blockIdx.x;
    const bool works = feature < segments.features(item);
    const float* w = (const float*)segments.item(item) + (works ? feature : 0) * K + 4 * lane;
    auto is_there = [&](int step) { return K % 128 == 0 || step * 128 + 4 * lane < K; };
    auto load = [&](int step) { return is_there(step) ? *(const float4*)(w + step * 128) : make_float4(0, 0, 0, 0); };
    const RowAhead<K, THREADS, Prologue> row(prologue);
    float4 ahead[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) ahead[i] = load(i);
    let_next_start();
    const int rows = (int)counts->tokens_or_rows(Segments::OF_ROWS);
    if constexpr (Prologue::IS) {
        __shared__ __align__(16) u16 made[K];
        make_row<K, THREADS, THREADS>(prologue, row, made);
        x = made;
    } else {
        wait_for_previous();
    }
    if (rows <= 0) return;
    float acc = 0;
    auto add = [&](int step, const float4& v) {
        steps_apart();
        if (!is_there(step)) return;
        const U2 h = *(const U2*)(x + step * 128 + 4 * lane);
        acc = fmaf(v.x, low_half(h.x), acc), acc = fmaf(v.y, high_half(h.x), acc);
        acc = fmaf(v.z, low_half(h.y), acc), acc = fmaf(v.w, high_half(h.y), acc);
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) add(i, ahead[i]);
#pragma unroll 4
    for (int i = AHEAD; i < STEPS; i++) add(i, load(i));
    const float sum = warp_sum(acc);
    if (lane == 0) sums[feature] = sum;
    __syncthreads();
    segments.finish(item, 0, sums, FEATURES, 1);
}

// Of more rows, ROWS at a time, which lie in tiles (region.cuh) where TILED is set. SPLIT warps have parts of a feature's columns,
// a lane eight of them at a time: those whose f16 lie together.
template <int K, int ROWS, bool TILED, int SPLIT, int THREADS, class Segments>
DEVICE void matmul_floats_rows(const Counts* counts, const u16* x, const Segments& segments) {
    constexpr int STEPS = (K + 255) / 256, OWN = (STEPS + SPLIT - 1) / SPLIT, AHEAD = OWN < 2 ? OWN : 2;
    constexpr int FEATURES = THREADS / 32 / SPLIT;
    __shared__ float sums[SPLIT][ROWS * FEATURES];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, feature = warp / SPLIT, part = warp % SPLIT, item = blockIdx.x;
    const bool works = feature < segments.features(item);
    const float* w = (const float*)segments.item(item) + (works ? feature : 0) * K;
    // Columns of a lane's eight numbers: pairs, in tiles eight columns apart.
    const int q = lane % 8, in_tile = 32 * (q / 4) + 4 * (q / 2 % 2) + 2 * (q % 2), first = TILED ? lane / 8 * 64 + in_tile : 8 * lane;
    constexpr int APART = TILED ? 8 : 2;
    auto is_there = [&](int i) {
        const int step = part + i * SPLIT;
        return step < STEPS && (K % 256 == 0 || step * 256 + 8 * lane < K);
    };
    struct Weights {
        float2 pairs[4];
    };
    auto load = [&](int i) {
        Weights v;
#pragma unroll
        for (int t = 0; t < 4; t++)
            v.pairs[t] = is_there(i) ? *(const float2*)(w + (part + i * SPLIT) * 256 + first + APART * t) : make_float2(0, 0);
        return v;
    };
    Weights ahead[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) ahead[i] = load(i);
    let_next_start();
    const int row0 = blockIdx.y * ROWS, all = (int)counts->tokens_or_rows(Segments::OF_ROWS) - row0;
    wait_for_previous();
    if (all <= 0) return;
    const int rows = all < ROWS ? all : ROWS;
    float acc[ROWS] = {};
    auto add = [&](int i, const Weights& v) {
        steps_apart();
        if (!is_there(i)) return;
        const int step = part + i * SPLIT;
#pragma unroll
        for (int n = 0; n < ROWS; n++) {
            // Rows that are not there are the last one.
            const int row = row0 + (n < rows ? n : rows - 1);
            const u32 at = TILED ? (row / 128 * (K / 64) + step * 4 + lane / 8) * (128 * 64) + row % 128 * 64 + (q ^ row % 8) * 8
                                 : row * K + step * 256 + 8 * lane;
            const U4 h = *(const U4*)(x + at);
#pragma unroll
            for (int t = 0; t < 4; t++) {
                acc[n] = fmaf(v.pairs[t].x, low_half(part_of(h, t)), acc[n]);
                acc[n] = fmaf(v.pairs[t].y, high_half(part_of(h, t)), acc[n]);
            }
        }
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) add(i, ahead[i]);
#pragma unroll 1
    for (int i = AHEAD; i < OWN; i++) add(i, load(i));
#pragma unroll
    for (int n = 0; n < ROWS; n++) {
        const float sum = warp_sum(acc[n]);
        if (lane == 0) sums[part][n * FEATURES + feature] = sum;
    }
    __syncthreads();
    if (threadIdx.x < ROWS * FEATURES) {
        float v = sums[0][threadIdx.x];
#pragma unroll
        for (int p = 1; p < SPLIT; p++) v += sums[p][threadIdx.x];
        sums[0][threadIdx.x] = v;
    }
    __syncthreads();
    segments.finish(item, row0, sums[0], FEATURES, rows);
}

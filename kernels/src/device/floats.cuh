// Products with matrices of f32, row after row, as routers have them: out[n, m] = sum over k of x[n, k] w[m, k], in f32. A warp has a
// feature, for all of a block's rows; its first numbers are on their way before the launch before this one has ended.
//
// Segments are as in matmul.cuh, an item a block's features, and
//   int features(int item)       how many there are of an item
// ROWS of x at a time, which lie in tiles (region.cuh) where TILED is set.
// A prologue (region.cuh) makes x of one row.
template <int K, int ROWS, bool TILED, int THREADS, class Segments, class Prologue>
DEVICE void matmul_floats(const Counts* counts, const u16* x, const Segments& segments, const Prologue& prologue) {
    static_assert(!Prologue::IS || ROWS == 1, "a prologue makes a row");
    constexpr int STEPS = (K + 127) / 128, AHEAD = STEPS < 16 ? STEPS : 16, FEATURES = THREADS / 32;
    __shared__ float sums[ROWS][FEATURES];
    const int lane = threadIdx.x & 31, feature = threadIdx.x >> 5, item = blockIdx.x;
    const bool works = feature < segments.features(item);
    const float* w = (const float*)segments.item(item) + (works ? feature : 0) * K + 4 * lane;
    auto load = [&](int step) {
        return K % 128 == 0 || step * 128 + 4 * lane < K ? *(const float4*)(w + step * 128) : make_float4(0, 0, 0, 0);
    };
    float4 ahead[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) ahead[i] = load(i);
    let_next_start();
    const int row0 = blockIdx.y * ROWS, all = (int)counts->tokens_or_rows(Segments::OF_ROWS) - row0;
    if constexpr (Prologue::IS) {
        __shared__ __align__(16) u16 made[K];
        make_row<K, THREADS>(prologue, made);
        x = made;
    } else {
        wait_for_previous();
    }
    if (all <= 0) return;
    const int rows = all < ROWS ? all : ROWS;

    // Four columns of each row: two pairs. Rows that are not there are the last one.
    u32 at[ROWS];
#pragma unroll
    for (int n = 0; n < ROWS; n++)
        at[n] = (u32)activation_at<TILED>(row0 + (n < rows ? n : rows - 1), K % 128 == 0 || 4 * lane < K ? 4 * lane : 0, K);
    float acc[ROWS] = {};
    auto add = [&](int step, const float4& v) {
        steps_apart();
        const u32 column = K % 128 == 0 || step * 128 + 4 * lane < K ? step * (TILED ? 2 * 128 * 64 : 128) : 0;
#pragma unroll
        for (int n = 0; n < ROWS; n++) {
            const u32 first = *(const u32*)(x + at[n] + column);
            const u32 second = *(const u32*)(x + (TILED ? at[n] ^ 8 : at[n] + 2) + column);
            acc[n] = fmaf(v.x, low_half(first), acc[n]), acc[n] = fmaf(v.y, high_half(first), acc[n]);
            acc[n] = fmaf(v.z, low_half(second), acc[n]), acc[n] = fmaf(v.w, high_half(second), acc[n]);
        }
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) add(i, ahead[i]);
#pragma unroll 4
    for (int i = AHEAD; i < STEPS; i++) add(i, load(i));
#pragma unroll
    for (int n = 0; n < ROWS; n++) {
        const float sum = warp_sum(acc[n]);
        if (lane == 0) sums[n][feature] = sum;
    }
    __syncthreads();
    segments.finish(item, row0, &sums[0][0], FEATURES, rows);
}

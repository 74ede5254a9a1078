// Element-wise code. The compiler makes a struct of each region:
//
//   UNIT, WIDTH, COLS, FLAT    as in bundle_format::region
//   run<J>(tile, sums, row, unit, c, live)
//                              evaluates J elements (unit[j], c[j]) of a row, those that are live. tile(offset, j) is the
//                              tile's number at `offset + c[j]` of the unit, sums.unit(x) and sums.row(x) add over all
//                              elements of the unit or row, of which other threads have the rest
//
// and what is here gives it its elements.

// Where a row of f16 activations has a column. Few rows lie one after the other. Many lie in tiles of 128 rows by 64
// columns, each as the matrix unit reads it from shared memory: in the order in which a fragment's steps take columns, and
// with the 16-byte parts of row r moved by r % 8.
template <bool TILED>
DEVICE u64 activation_at(int row, int col, int cols) {
    if (!TILED) return (u64)row * cols + col;
    int within = col % 64, block = within / 32, t = within % 32 / 8, step = within % 8 / 4, j = within % 4;
    int place = 32 * block + 16 * step + (j < 2 ? 2 * t + j : 8 + 2 * t + j - 2);
    int part = place / 8 ^ row % 8;
    return ((u64)(row / 128) * (cols / 64) + col / 64) * (128 * 64) + row % 128 * 64 + part * 8 + place % 8;
}

// 32 consecutive dimensions of a KV head at a position, one a lane: 8 bits each, and a scale (KvDType::Q8Rows).
template <int DIMS>
DEVICE void store_kv_q8(u8* head, int position, int dim, float x) {
    const float most = warp_max(fabsf(x));
    const float inverse = most > 0.f ? __fdiv_rn(127.f, most) : 0.f;
    head[position * DIMS + dim] = (u8)__float2int_rn(__fmul_rn(x, inverse));
    if (dim % 32 == 0) ((u16*)(head + 16 * DIMS))[position * (DIMS / 32) + dim / 32] = float_to_half(__fdiv_rn(most, 127.f));
}

struct NoTile {
    __device__ float operator()(int, int) const { return 0; }
};

// Nothing is summed.
struct NoSums {
    template <int J>
    __device__ void unit(const float (&)[J], float (&)[J]) const {}
    template <int J>
    __device__ void row(const float (&)[J], float (&)[J]) const {}
};

// A warp has the unit.
struct WarpSums {
    template <int J>
    __device__ void unit(const float (&x)[J], float (&out)[J]) const {
        float v = 0;
#pragma unroll
        for (int j = 0; j < J; j++) v += x[j];
        v = warp_sum(v);
#pragma unroll
        for (int j = 0; j < J; j++) out[j] = v;
    }
    template <int J>
    __device__ void row(const float (&)[J], float (&)[J]) const {}
};

// A CTA has the row.
template <int THREADS>
struct BlockSums {
    float* warps;  // [2][32]: one set is read while the other is written
    int* set;
    template <int J>
    __device__ void unit(const float (&)[J], float (&)[J]) const {}
    template <int J>
    __device__ void row(const float (&x)[J], float (&out)[J]) const {
        float v = 0;
#pragma unroll
        for (int j = 0; j < J; j++) v += x[j];
        v = warp_sum(v);
        float* mine = warps + 32 * *set;
        *set ^= 1;
        if ((threadIdx.x & 31) == 0) mine[threadIdx.x >> 5] = v;
        shared_barrier();
        const int count = block_threads<THREADS>() >> 5, lane = threadIdx.x & 31;
        v = warp_sum(lane < count ? mine[lane] : 0.f);
#pragma unroll
        for (int j = 0; j < J; j++) out[j] = v;
    }
};

// An epilogue over sums [rows][stride] of consecutive features from `first` on, by all threads of a block; by one warp where
// THREADS is 32.
template <int THREADS = 0, class R>
DEVICE void finish_features(const R& region, const float* sums, int stride, int row0, int rows, int first, int features) {
    for (int i = block_thread<THREADS>(); i < rows * features; i += block_threads<THREADS>()) {
        const int n = i / features, f = i % features;
        const int unit[1] = {(first + f) / R::UNIT}, c[1] = {(first + f) % R::UNIT};
        const bool live[1] = {first + f < R::COLS};
        auto tile = [&](int, int) { return sums[n * stride + f]; };
        region.template run<1>(tile, NoSums{}, row0 + n, unit, c, live);
    }
}

// The same where tiles of 16 features are 8 elements of a unit's first half and the 8 that go with them.
template <int THREADS = 0, class R>
DEVICE void finish_pairs(const R& region, const float* sums, int stride, int row0, int rows, int first, int features) {
    const int elements = features / 2;
    for (int i = block_thread<THREADS>(); i < rows * elements; i += block_threads<THREADS>()) {
        const int n = i / elements, e = i % elements, all = first / 2 + e;
        const int unit[1] = {all / R::WIDTH}, c[1] = {all % R::WIDTH};
        const bool live[1] = {unit[0] * R::UNIT < R::COLS};
        const float* at = sums + n * stride + e / 8 * 16 + e % 8;
        auto tile = [&](int offset, int) { return at[offset ? 8 : 0]; };
        region.template run<1>(tile, NoSums{}, row0 + n, unit, c, live);
    }
}

// The same for whole units, one a warp, which may add over them.
template <int THREADS = 0, class R>
DEVICE void finish_units(const R& region, const float* sums, int stride, int row0, int rows, int first, int features) {
    constexpr int J = (R::WIDTH + 31) / 32;
    const int lane = threadIdx.x & 31, units = features / R::UNIT;
    for (int i = block_thread<THREADS>() >> 5; i < rows * units; i += block_threads<THREADS>() >> 5) {
        const int n = i / units, u = i % units;
        int unit[J], c[J];
        bool live[J];
#pragma unroll
        for (int j = 0; j < J; j++) {
            unit[j] = first / R::UNIT + u, c[j] = 32 * j + lane;
            live[j] = c[j] < R::WIDTH && unit[j] * R::UNIT < R::COLS;
        }
        const float* at = sums + n * stride + u * R::UNIT + lane;
        auto tile = [&](int offset, int j) { return live[j] ? at[offset + 32 * j] : 0.f; };
        region.template run<J>(tile, WarpSums{}, row0 + n, unit, c, live);
    }
}

// What a region makes of the sums of consecutive features from `first` on for all places of a token, [places][stride].
template <int THREADS = 0, class R>
DEVICE void finish_places(const R& region, const float* sums, int stride, int first, int features) {
    for (int i = block_thread<THREADS>(); i < features; i += block_threads<THREADS>()) {
        const int unit[1] = {first + i}, c[1] = {0};
        const bool live[1] = {first + i < R::COLS};
        auto tile = [&](int place, int) { return sums[place * stride + i]; };
        region.template run<1>(tile, NoSums{}, 0, unit, c, live);
    }
}

// A launch of its own: a CTA a row, of which there are EACH a token (0: those of logits). J elements a thread.
template <class R, int J, int EACH, int THREADS = 0>
DEVICE void run_rows(const Counts* counts, const R& region) {
    __shared__ float warps[64];
    int set = 0;
    let_next_start();
    region.fetch();
    // The step's sizes are there before the first launch.
    const int row = blockIdx.x, rows = (int)counts->rows_of(EACH);
    wait_for_previous();
    if (row >= rows) return;
    int unit[J], c[J];
    bool live[J];
#pragma unroll
    for (int j = 0; j < J; j++) {
        const int e = j * block_threads<THREADS>() + threadIdx.x;
        unit[j] = e / R::WIDTH, c[j] = e % R::WIDTH;
        live[j] = e < R::COLS / R::UNIT * R::WIDTH;
    }
    region.template run<J>(NoTile{}, BlockSums<THREADS>{warps, &set}, row, unit, c, live);
}

// The same for regions that add over units: a warp a unit.
template <class R, int EACH, int THREADS = 0>
DEVICE void run_units(const Counts* counts, const R& region) {
    constexpr int J = (R::WIDTH + 31) / 32;
    let_next_start();
    region.fetch();
    const int row = blockIdx.x, lane = threadIdx.x & 31, rows = (int)counts->rows_of(EACH);
    wait_for_previous();
    if (row >= rows) return;
    for (int u = threadIdx.x >> 5; u < R::COLS / R::UNIT; u += block_threads<THREADS>() >> 5) {
        int unit[J], c[J];
        bool live[J];
#pragma unroll
        for (int j = 0; j < J; j++) unit[j] = u, c[j] = 32 * j + lane, live[j] = c[j] < R::WIDTH;
        region.template run<J>(NoTile{}, WarpSums{}, row, unit, c, live);
    }
}

// The prologue of a product whose input is there.
struct NoPrologue {
    static constexpr bool IS = false;
};

// What each of the first WORKERS threads of a block has of a row that a prologue makes: its elements, and what is loaded for them ahead.
template <int K, int WORKERS, class P>
struct RowAhead {
    static constexpr int J = (K + WORKERS - 1) / WORKERS;
    int unit[J], c[J];
    bool live[J];
    typename P::template Ahead<J> values;
    __device__ explicit RowAhead(const P& prologue) {
#pragma unroll
        for (int j = 0; j < J; j++) {
            const int e = j * WORKERS + threadIdx.x;
            unit[j] = e / P::WIDTH, c[j] = e % P::WIDTH;
            live[j] = threadIdx.x < WORKERS && (K % WORKERS == 0 || e < K);
        }
        values = prologue.load_ahead(unit, c, live);
    }
};
template <int K, int WORKERS>
struct RowAhead<K, WORKERS, NoPrologue> {
    __device__ explicit RowAhead(const NoPrologue&) {}
};

// x of one row, made by the first WORKERS threads of a block, as f16 in shared memory; once the launch before this one has ended.
// THREADS are those of the block, where that is told.
template <int K, int WORKERS, int THREADS = 0, class P>
DEVICE void make_row(P prologue, const RowAhead<K, WORKERS, P>& ahead, u16* x) {
    __shared__ float warps[64];
    int set = 0;
    wait_for_previous();
    prologue.keep(x);
    prologue.run(NoTile{}, BlockSums<THREADS>{warps, &set}, 0, ahead.unit, ahead.c, ahead.live, ahead.values);
    shared_barrier();
}

// The id of a token, which may be one that is being drawn: then it is an entry of `drawn`.
DEVICE u32 token_id(u32 token, const U2* drawn) {
    return token >> 31 ? drawn[token & ~(1u << 31)].x : token;
}

// out[t] = table[tokens[t]] * scale, of a table in fragments: a CTA a token.
template <class F, int K, int THREADS = 0>
DEVICE void embed(const Counts* counts, const u32* tokens, const U2* drawn, const u8* table, float* out, float scale) {
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.x;
    if (row >= (int)counts->tokens) return;
    const u32 token = token_id(tokens[row], drawn), g = token % 8, high = token / 8 % 2;
    const u8* tile = table + (u64)(token / 16) * (K / 64) * F::BYTES;
    for (int i = threadIdx.x; i < K / 64 * 16; i += block_threads<THREADS>()) {
        // Four columns: a lane's of a step.
        const int fragment = i / 16, t = i % 16 / 4, step = i % 4, column = 32 * (step / 2) + 8 * t + 4 * (step % 2);
        typename F::Fragment f = F::load(tile + (u64)fragment * F::BYTES, 4 * g + t);
        u32 a[4];
        dequantise_step<F>(f, step, a);
        u32 first = high ? a[1] : a[0], second = high ? a[3] : a[2];
        float* to = out + (u64)row * K + fragment * 64 + column;
        to[0] = low_half(first) * scale, to[1] = high_half(first) * scale;
        to[2] = low_half(second) * scale, to[3] = high_half(second) * scale;
    }
}

// Sine and cosine for up to 2^20 radians. Quarter turns are taken off by a constant of three parts: the first subtraction is
// exact, the others leave less than a unit in the last place of the remainder's largest value. (A compiler's own may keep a table of
// its in local memory.)
DEVICE void sine_and_cosine(float x, float& sine, float& cosine) {
    const int quarter = __float2int_rn(x * 0.636619772f);
    const float turns = (float)quarter;
    float r = fmaf(turns, -1.57079637f, x);
    r = fmaf(turns, 4.37113883e-8f, r);
    r = fmaf(turns, 1.71512475e-15f, r);
    const float z = r * r;
    float s = fmaf(z, -1.9515296e-4f, 8.3321609e-3f);
    s = fmaf(z, s, -1.6666655e-1f);
    s = fmaf(z * r, s, r);
    float c = fmaf(z, 2.4433157e-5f, -1.3887316e-3f);
    c = fmaf(z, c, 4.1666646e-2f);
    c = fmaf(z * z, c, fmaf(z, -0.5f, 1.f));
    const float a = quarter & 1 ? c : s, b = quarter & 1 ? s : c;
    sine = quarter & 2 ? -a : a;
    cosine = (quarter + 1) & 2 ? -b : b;
}

// Cosines and sines of each position: N angles.
template <int N, int THREADS = 0>
DEVICE void rope_table(const Counts* counts, const u32* positions, const float* freqs, float* out, float mscale) {
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.x;
    if (row >= (int)counts->tokens) return;
    for (int i = threadIdx.x; i < N; i += block_threads<THREADS>()) {
        float s, c;
        sine_and_cosine((float)positions[row] * freqs[i], s, c);
        out[(u64)row * 2 * N + i] = mscale * c;
        out[(u64)row * 2 * N + N + i] = mscale * s;
    }
}

// One head's results, a warp's: a unit of attention's epilogue.
template <class R>
DEVICE void finish_head(const R& region, int row, int head, const float* results) {
    constexpr int J = (R::WIDTH + 31) / 32;
    const int lane = threadIdx.x & 31;
    int unit[J], c[J];
    bool live[J];
#pragma unroll
    for (int j = 0; j < J; j++) unit[j] = head, c[j] = 32 * j + lane, live[j] = c[j] < R::WIDTH;
    auto tile = [&](int offset, int j) { return live[j] ? results[offset + 32 * j + lane] : 0.f; };
    region.template run<J>(tile, WarpSums{}, row, unit, c, live);
}

// Matrix products of one row of activations: out[m] = sum over k of x[k] w[m, k].
//
// They are bound by reading weights only as long as what is read is multiplied faster than it comes, so all is about few
// instructions for each fragment, and about nobody waiting for anybody. A CTA works on items of GROUP tiles, one after the
// other; its warps divide an item's tiles and columns among them, and each has DEPTH steps on their way in registers. Sums go
// to a warp of their own, which adds them up and calls the segment's epilogue, while the others are at the next items.
//
// Segments are as for few rows (matmul.cuh), but `finish` is called by one warp. A prologue makes x: each block does it all, and
// one of them stores what else comes of it (region.cuh). x is put into shared memory first, in the form that its multiplier
// takes.

// A thread's parts of x, eight numbers each, which are there as f16, or in global memory: all reads at once.
template <int K, int THREADS, bool THERE>
DEVICE void load_row(U4 (&parts)[(K / 8 + THREADS - 1) / THREADS], const u8* shared, const u16* x) {
#pragma unroll
    for (int n = 0; n < (K / 8 + THREADS - 1) / THREADS; n++) {
        const int i = n * THREADS + threadIdx.x;
        if (i < K / 8) parts[n] = THERE ? ((const U4*)shared)[i] : load_shared_line((const U4*)x + i);
    }
}

// Codes as bytes, times x as integers of 15 bits (128 * high + low), exactly; then scales. The matrix unit multiplies with eight columns at
// a time. These are the upper and the lower bytes of four blocks of 32, one after the other, each zero but for its own block:
// lane 4g + t has the sums of block t, so that scales are applied once for two fragments.
template <class F, int K>
struct ByBytes {
    static constexpr int FRAGMENTS = 2, BLOCKS = (K / 64 + 1) / 2 * 4;
    // x, then of each block: its scale, what codes are off by for rows g and g + 8, and the sum of its elements.
    static constexpr int SHARED = BLOCKS * (64 + 16);
    struct Step {
        typename F::C codes[2];
        typename F::S::Lane scales;
    };
    u32 x_at, blocks_at;
    // The upper (g even) or lower bytes of block g / 2.
    u32 x[4][2];

    __device__ ByBytes(const u8* shared, int lane) {
        x_at = shared_address(shared) + (lane >> 2 & 1) * 32 + (lane & 3) * 8;
        blocks_at = shared_address(shared + BLOCKS * 64) + (lane & 3) * 16;
#pragma unroll
        for (int b = 0; b < 4; b++) x[b][0] = x[b][1] = 0;
    }
    // x, which is there as f16, or in global memory.
    template <int THREADS, bool THERE>
    DEVICE void prepare(u8* shared, const u16* x) {
        float* blocks = (float*)(shared + BLOCKS * 64);
        U4 parts[(K / 8 + THREADS - 1) / THREADS];
        load_row<K, THREADS, THERE>(parts, shared, x);
#pragma unroll
        for (int n = 0; n < (K / 8 + THREADS - 1) / THREADS; n++) {
            const int i = n * THREADS + threadIdx.x;
            if (i >= K / 8) break;
            // K / 8 is a multiple of 8: the four lanes of a block are all here.
            const unsigned lanes = __activemask();
            const U4 v = parts[n];
            float e[8], most = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) e[2 * j] = low_half(part_of(v, j)), e[2 * j + 1] = high_half(part_of(v, j));
#pragma unroll
            for (int j = 0; j < 8; j++) most = fmaxf(most, fabsf(e[j]));
            most = fmaxf(most, __shfl_xor_sync(lanes, most, 1));
            most = fmaxf(most, __shfl_xor_sync(lanes, most, 2));
            const float inverse = most > 0.f ? __fdividef(16256.f, most) : 0.f, scale = most * (1.f / 16256.f);
            u32 high[2] = {0, 0}, low[2] = {0, 0};
            int sum = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int q = __float2int_rn(e[j] * inverse), h = q + 64 >> 7;
                // The order of bytes in which codes have columns.
                const int place = F::C::place(j % 4) * 8;
                high[j / 4] |= (h & 0xff) << place;
                low[j / 4] |= (q - 128 * h & 0xff) << place;
                sum += q;
            }
            sum += __shfl_xor_sync(lanes, sum, 1);
            sum += __shfl_xor_sync(lanes, sum, 2);
            // A block's bytes take its halves' place.
            __syncwarp(lanes);
            const int block = i / 4;
            U2* to = (U2*)(shared + block * 64) + i % 4;
            to[0] = U2{high[0], high[1]}, to[4] = U2{low[0], low[1]};
            if (i % 4 == 0) {
                const float s = scale * sum;
                float* of = blocks + block * 4;
                of[0] = scale, of[1] = -F::OFF * s, of[2] = -F::OFF * F::FACTOR_HIGH * s, of[3] = s;
            }
        }
        if (BLOCKS > K / 32 && threadIdx.x < 8) blocks[K / 32 * 4 + threadIdx.x] = 0;
    }
    // The step at `at`, number `step` of its tile; a last one may have one fragment.
    DEVICE Step load(const u8* at, int step, int lane) {
        Step s;
        const bool both = K / 64 % 2 == 0 || 2 * step + 1 < K / 64;
        s.codes[0] = F::C::load(at, lane);
        s.codes[1] = both ? F::C::load(at + F::BYTES, lane) : F::C::none();
        const bool second = lane & 2;
        s.scales = both || !second ? F::S::Lane::load(at + (second ? F::BYTES : 0) + F::C::BYTES, lane) : F::S::Lane::none();
        return s;
    }
    DEVICE Step none() { return Step{{F::C::none(), F::C::none()}, F::S::Lane::none()}; }
    // Gives 0, once the step's codes have been taken from where they are.
    __device__ u32 add(const Step& s, int step, int lane, float (&acc)[4]) {
#pragma unroll
        for (int b = 0; b < 4; b++) load_where(lane >> 3 == b, x[b][0], x[b][1], x_at + step * 256 + b * 64);
        const U4 c = load_from_shared(blocks_at + step * 64);
        int sum[4] = {0, 0, 0, 0};
        u32 a[4];
#pragma unroll
        for (int b = 0; b < 4; b++) {
            F::C::bytes(s.codes[b / 2], b % 2, a);
            multiply_bytes(sum, a, x[b][0], x[b][1]);
        }
        float factor_low, factor_high;
        F::S::Lane::floats(s.scales, factor_low, factor_high);
        const float scale = __uint_as_float(c.x);
        acc[0] = fmaf(factor_low, fmaf((float)(sum[0] * 128 + sum[1]), scale, __uint_as_float(c.y)), acc[0]);
        acc[2] = fmaf(factor_high, fmaf((float)(sum[2] * 128 + sum[3]), scale, __uint_as_float(c.z)), acc[2]);
        if constexpr (F::HAS_MIN) {
            F::S::Lane::minima(s.scales, factor_low, factor_high);
            acc[0] = fmaf(factor_low, __uint_as_float(c.w), acc[0]);
            acc[2] = fmaf(factor_high * F::FACTOR_HIGH, __uint_as_float(c.w), acc[2]);
        }
        return a[3] & threadIdx.y;
    }
    // Of a tile, all lanes of a row: the sums of the blocks that each had.
    DEVICE void finish(float (&acc)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) acc[i] += lane_xor<1>(acc[i]), acc[i] += lane_xor<2>(acc[i]);
        acc[2] *= 1.f / F::FACTOR_HIGH;
    }
};

// Codes, or the numbers that they stand for, as f16, times x as it is. Of codes, scales are applied to the sums of blocks of 32, with
// what codes are off by taken from x.
template <class F, int K>
struct ByFloats {
    static constexpr int FRAGMENTS = 1;
    // x, then of each block what codes are off by times the sum of its elements: of row g twice, of row g + 8, and that sum.
    static constexpr int SHARED = 2 * K + K / 32 * 16;
    using Step = typename F::Fragment;
    u32 x_at, blocks_at;

    __device__ ByFloats(const u8* shared, int lane) {
        x_at = shared_address(shared) + (lane & 3) * 16;
        blocks_at = shared_address(shared + 2 * K);
    }
    template <int THREADS, bool THERE>
    DEVICE void prepare(u8* shared, const u16* x) {
        float* blocks = (float*)(shared + 2 * K);
        U4 parts[(K / 8 + THREADS - 1) / THREADS];
        load_row<K, THREADS, THERE>(parts, shared, x);
#pragma unroll
        for (int n = 0; n < (K / 8 + THREADS - 1) / THREADS; n++) {
            const int i = n * THREADS + threadIdx.x;
            if (i >= K / 8) break;
            const U4 v = parts[n];
            if (!THERE) ((U4*)shared)[i] = v;
            if (F::RAW) {
                float sum = low_half(v.x) + high_half(v.x) + low_half(v.y) + high_half(v.y) + low_half(v.z) +
                            high_half(v.z) + low_half(v.w) + high_half(v.w);
                // K / 8 is a multiple of 8: the four lanes of a block are all here.
                const unsigned lanes = __activemask();
                sum += __shfl_xor_sync(lanes, sum, 1);
                sum += __shfl_xor_sync(lanes, sum, 2);
                if (i % 4 == 0) {
                    float* of = blocks + i / 4 * 4;
                    of[0] = of[1] = -F::BIAS_LOW * sum;
                    of[2] = -F::BIAS_HIGH * sum;
                    of[3] = sum;
                }
            }
        }
    }
    DEVICE Step load(const u8* at, int, int lane) { return F::load(at, lane); }
    DEVICE Step none() { return F::none(); }
    __device__ u32 add(const Step& f, int step, int, float (&acc)[4]) {
        const U4 b[2] = {load_from_shared(x_at + step * 128), load_from_shared(x_at + step * 128 + 64)};
        if constexpr (F::RAW) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const U4 c = load_from_shared(blocks_at + (2 * step + half) * 16);
                // All columns are the same: of each two sums one is used.
                float sum[4] = {__uint_as_float(c.x), __uint_as_float(c.y), __uint_as_float(c.z), __uint_as_float(c.w)};
                u32 a[4];
                F::raw(f, 2 * half, a);
                multiply(sum, a, b[half].x, b[half].y);
                F::raw(f, 2 * half + 1, a);
                multiply(sum, a, b[half].z, b[half].w);
                float low, high;
                F::scales(f, half, low, high);
                acc[0] = fmaf(low, sum[0], acc[0]);
                acc[2] = fmaf(high, sum[2], acc[2]);
                if (F::HAS_MIN) {
                    F::minima(f, half, low, high);
                    acc[0] = fmaf(low, __uint_as_float(c.w), acc[0]);
                    acc[2] = fmaf(high, __uint_as_float(c.w), acc[2]);
                }
            }
        } else {
#pragma unroll
            for (int step = 0; step < 4; step++) {
                u32 a[4];
                F::dequantise(f, step, a);
                multiply(acc, a, step % 2 ? b[step / 2].z : b[step / 2].x, step % 2 ? b[step / 2].w : b[step / 2].y);
            }
        }
        return __float_as_uint(acc[0]) & threadIdx.y;
    }
    DEVICE void finish(float (&)[4]) {}
};

template <class F, int K, bool BYTES>
struct MultiplierOf {
    using Type = ByFloats<F, K>;
};
template <class F, int K>
struct MultiplierOf<F, K, true> {
    using Type = ByBytes<F, K>;
};

// XS: rows of x, where each tile of an item has one of its own (matmul_experts.cuh).
template <class Format, int K_, int WARPS_, int GROUP_, int DEPTH_, int XS_ = 1>
struct OneShape {
    using F = Format;
    static constexpr int K = K_, WARPS = WARPS_, GROUP = GROUP_, DEPTH = DEPTH_, XS = XS_;
    using Multiplier = typename MultiplierOf<F, XS * K, F::AS_BYTES>::Type;
    static constexpr int WORKERS = 32 * WARPS, THREADS = WORKERS + 32;
    static constexpr int STEPS = (K / 64 + Multiplier::FRAGMENTS - 1) / Multiplier::FRAGMENTS;
    // Warps that share a tile's columns.
    static constexpr int ALONG = WARPS / GROUP;
    // Steps of a warp in an item. DEPTH of them are of one item, or of several, each with SLOTS; then in rounds.
    static constexpr int OWN = (STEPS + ALONG - 1) / ALONG;
    static constexpr int ITEMS = OWN < DEPTH ? DEPTH / OWN : 1, SLOTS = OWN < DEPTH ? OWN : DEPTH;
    static constexpr int ROUNDS = (OWN + SLOTS - 1) / SLOTS;
    static constexpr bool EVEN = STEPS == ROUNDS * SLOTS * ALONG;
    static constexpr u32 STEP_BYTES = Multiplier::FRAGMENTS * F::BYTES, TILE_BYTES = K / 64 * F::BYTES;
    static constexpr int FEATURES = 16 * GROUP;
    // Sets of sums that are under way to the warp that adds them up.
    static constexpr int SETS = 4;
    static_assert(K % 64 == 0 && WARPS % GROUP == 0, "warps divide an item evenly");
    static_assert(XS == 1 || XS == GROUP && K / 64 % Multiplier::FRAGMENTS == 0, "rows of x are whole steps");
    // Shared memory: x, sets of sums, totals, two barriers for each set.
    static constexpr int SUMS = ALONG * FEATURES;
    static constexpr int SHARED = Multiplier::SHARED + (SETS * SUMS + FEATURES) * 4 + SETS * 16;
};

// The sums of all items, added up in the order of warps, always the same, whatever runs beside it.
template <class S, class Segments>
DEVICE void finish_items(const Segments& segments, const float* sums, float* totals, u32 full, int first, int last) {
    const int lane = threadIdx.x & 31;
    for (int item = first; item < last; item++) {
        const int n = item - first, set = n % S::SETS;
        wait_until(full + 16 * set, n / S::SETS & 1);
        const float* from = sums + set * S::SUMS;
        if constexpr (S::FEATURES == 16) {
            // Two lanes a feature.
            float v = 0;
#pragma unroll
            for (int k = 0; k < S::ALONG; k++)
                if (k % 2 == lane / 16) v += from[k * 16 + lane % 16];
            v += lane_xor<16>(v);
            if (lane < 16) totals[lane] = v;
        } else {
            for (int i = lane; i < S::FEATURES; i += 32) {
                float v = 0;
#pragma unroll
                for (int k = 0; k < S::ALONG; k++) v += from[k * S::FEATURES + i];
                totals[i] = v;
            }
        }
        arrive(full + 16 * set + 8);
        __syncwarp();
        segments.finish(item, 0, totals, S::FEATURES, 1);
        __syncwarp();
    }
}

// What a warp has of items: its tile of each, and of that tile's columns some.
template <class S>
struct OneWarp {
    using Step = typename S::Multiplier::Step;
    int lane, across, along, begin, count;
    bool works;
    // Steps that are on their way.
    Step ring[S::ITEMS][S::SLOTS];

    __device__ OneWarp() {
        const int warp = threadIdx.x >> 5;
        lane = threadIdx.x & 31, across = warp % S::GROUP, along = warp / S::GROUP;
        begin = along * S::STEPS / S::ALONG, count = (along + 1) * S::STEPS / S::ALONG - begin;
        works = warp < S::WARPS;
    }
    // The first reads. `at` says where the warp's part of an item begins.
    template <class At>
    __device__ void load_ahead(const At& at, int first, int last) {
#pragma unroll
        for (int j = 0; j < S::ITEMS; j++) {
            const bool there = works && first + j < last;
            const u8* p = at(there ? first + j : first);
#pragma unroll
            for (int i = 0; i < S::SLOTS; i++)
                ring[j][i] = there && (S::EVEN || i < count) ? S::Multiplier::load(p + i * S::STEP_BYTES, begin + i, lane)
                                                             : S::Multiplier::none();
        }
    }
    // Multiplies items with x, and hands sums on.
    template <class At>
    __device__ void multiply(const At& at, int first, int last, const u8* x, float* sums, u32 barriers) {
        using M = typename S::Multiplier;
        M multiplier(x, lane);
        const int x_begin = begin + (S::XS > 1 ? across * S::STEPS : 0);
        float acc[4] = {};
        for (int base = first; base < last; base += S::ITEMS) {
#pragma unroll
            for (int j = 0; j < S::ITEMS; j++) {
                const int item = base + j, after = item + S::ITEMS, n = item - first, set = n % S::SETS;
                if (item >= last) break;
                const u8* p = at(S::ROUNDS > 1 ? item : first);
                const u8* next = at(after < last ? after : item);
#pragma unroll 1
                for (int round = 0; round < S::ROUNDS; round++) {
                    const bool wraps = round + 1 == S::ROUNDS;
                    const u8* from = wraps ? next : p + (u64)(round + 1) * S::SLOTS * S::STEP_BYTES;
                    const bool more = !wraps || after < last;
#pragma unroll
                    for (int i = 0; i < S::SLOTS; i++) {
                        const int step = round * S::SLOTS + i;
                        const bool here = S::EVEN || step < count;
                        const u32 behind = multiplier.add(ring[j][i], here ? x_begin + step : 0, lane, acc);
                        // This slot's next step: SLOTS further, or of an item behind. A read that waits: all of a round at once
                        // would need twice the registers.
                        const int to = wraps ? i : step + S::SLOTS;
                        if (more && (S::EVEN || to < count))
                            ring[j][i] = M::load(from + i * S::STEP_BYTES + behind, begin + to, lane);
                        else if (!S::EVEN)
                            ring[j][i] = M::none();
                    }
                }
                M::finish(acc);
                if (n >= S::SETS) wait_until(barriers + 16 * set + 8, n / S::SETS + 1 & 1);
                if (lane % 4 == 0) {
                    float* to = sums + set * S::SUMS + along * S::FEATURES + across * 16 + lane / 4;
                    to[0] = acc[0], to[8] = acc[2];
                    // Each lane for itself: racecheck does not follow one that arrives for others.
                    arrive(barriers + 16 * set);
                }
                acc[0] = acc[1] = acc[2] = acc[3] = 0;
            }
        }
    }
};

// Two barriers for each set of sums: that it is full, and that it is free.
template <class S>
DEVICE void make_barriers(u32 barriers) {
    if (threadIdx.x < 2 * S::SETS) make_barrier(barriers + 8 * threadIdx.x, threadIdx.x % 2 ? 32 : 8 * S::WARPS);
}

template <class S, class Segments, class Prologue>
DEVICE void matmul_one(const Counts* counts, const u16* x, const Segments& segments, const Prologue& prologue) {
    using M = typename S::Multiplier;
    extern __shared__ __align__(128) u8 shared[];
    float* sums = (float*)(shared + M::SHARED);
    float* totals = sums + S::SETS * S::SUMS;
    const u32 barriers = shared_address(totals + S::FEATURES);
    const int first = (int)((u64)Segments::ITEMS * blockIdx.x / gridDim.x);
    const int last = (int)((u64)Segments::ITEMS * (blockIdx.x + 1) / gridDim.x);
    OneWarp<S> warp;
    const u32 within = warp.across * S::TILE_BYTES + warp.begin * S::STEP_BYTES;
    auto at = [&](int item) { return segments.item(item) + within; };

    // The reads of weights depend on nothing: they are on their way before the launch before this one has ended.
    warp.load_ahead(at, first, last);
    make_barriers<S>(barriers);
    let_next_start();
    if constexpr (Prologue::IS)
        make_row<S::K, S::WORKERS>(prologue, RowAhead<S::K, S::WORKERS, Prologue>(prologue), (u16*)shared);
    else
        wait_for_previous();
    M::template prepare<S::THREADS, Prologue::IS>(shared, x);
    __syncthreads();
    if (!warp.works) return finish_items<S>(segments, sums, totals, barriers, first, last);
    warp.multiply(at, first, last, shared, sums, barriers);
}

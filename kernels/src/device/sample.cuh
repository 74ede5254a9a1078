// Drawing a token from each row of logits, so that a step ends with ids and the next one can begin without the host.
//
//   likeliest   the token with the largest logit; for greedy rows that is all
//   weigh       how many tokens lie how far below it, and so between which distances the last token lies that is kept
//   select      that token, by bisection among the few between these distances
//   draw        a token among those kept, by weight
//
// A row is cut into slices, a block of threads each, so that few rows of a large vocabulary fill the chip too; the last block
// of a row to end goes on with what all have found. Rows that need no more leave at once.
//
// The token is the one that the runner's sampler draws on the host, for:
//   - Tokens are ordered by key: the logit, and among equal logits the lower id first. What top-k, top-p and min-p keep are
//     the tokens from some key on.
//   - A weight is e^((logit - largest) / temperature), by the host's sequence of f32 operations, none of them fused: the
//     same bits.
//   - Sums of weights are whole numbers of 2^-44, exact in any order, so that neither slices nor timing change a result. The
//     host adds in f64. A weight loses less than 2^-45; it loses nothing from 2^-21 on. Two sums of the same weights hence
//     differ by less than 2^-27 of the largest weight, for 262,144 tokens far down, and the drawn tokens differ only where
//     the random number, or the share of top-p, lies so near to a border.

namespace sample {

constexpr int THREADS = 256, EACH = 16, SLICE = THREADS * EACH;

// Distances from the largest logit are counted in bins of a 32nd; the last bin has all that are longer.
constexpr int BINS = 1024;
constexpr float BINS_PER_UNIT = 32.f;

// Tokens that `select` looks among; where there are more it looks at all of the row, which is slow.
constexpr int LIST = 8192;

enum Kind { NONE, LIKELIEST, ANY, SELECTED };
enum Fault { FINE, NOT_A_NUMBER, INFINITE };

// How to draw from a row (bundle_format::gpu::Arg::Draws).
struct alignas(16) Draw {
    u32 kind, to, top_k;
    float top_p, lowest, temperature;
    double random;
};
struct alignas(8) Drawn {
    u32 token, fault;
};

// What the kernels hand on, of a row.
template <int V>
struct Work {
    static constexpr int SLICES = (V + SLICE - 1) / SLICE;
    static constexpr u32 COUNTERS = 2 + BINS;
    static_assert(V <= 1 << 19, "sums of weights are to fit 64 bits");
    u64 best;         // key of the likeliest token; 0: there is nothing to draw
    u64 least;        // key from which on tokens are kept
    u64 goal;         // how many tokens are kept at least, or what they weigh
    u32 first, last;  // bins among whose tokens the last kept one is
    u64 parts[SLICES];
    u64 list[LIST];
};

// 0 between launches.
struct Counters {
    u32 blocks, listed, bins[BINS];
};

// ---- Keys ----

// Larger for larger numbers, largest for what is no number; the two zeros are equal.
DEVICE u32 order(float x) {
    const u32 bits = __float_as_uint(__fadd_rn(x, 0.f));
    return x != x ? ~0u : bits >> 31 ? ~bits : bits | 1u << 31;
}
DEVICE u64 key(float logit, u32 id) {
    return (u64)order(logit) << 32 | ~id;
}
DEVICE float logit_of(u64 key) {
    const u32 bits = (u32)(key >> 32);
    return __uint_as_float(bits >> 31 ? bits & ~(1u << 31) : ~bits);
}
DEVICE u32 id_of(u64 key) {
    return ~(u32)key;
}

// ---- Weights ----

// e^x for x <= 0, 0 below -87: sampler/vector.rs says how it works.
DEVICE float exp_below_zero(float x) {
    const float rounder = 12582912.f;
    const float clamped = x > -87.f ? x : -87.f;
    const float shifted = __fadd_rn(__fmul_rn(clamped, 1.44269504088896340736f), rounder);
    const float whole = __fsub_rn(shifted, rounder);
    const float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(whole, 0.6933594f)), __fmul_rn(whole, -2.1219444e-4f));
    float series = 1.f / 5040.f;
    series = __fadd_rn(__fmul_rn(series, r), 1.f / 720.f);
    series = __fadd_rn(__fmul_rn(series, r), 1.f / 120.f);
    series = __fadd_rn(__fmul_rn(series, r), 1.f / 24.f);
    series = __fadd_rn(__fmul_rn(series, r), 1.f / 6.f);
    series = __fadd_rn(__fmul_rn(series, r), 0.5f);
    series = __fadd_rn(__fmul_rn(series, r), 1.f);
    series = __fadd_rn(__fmul_rn(series, r), 1.f);
    const float power = __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23));
    return x > -87.f ? __fmul_rn(series, power) : 0.f;
}
// In units of 2^-44, rounded. The product is exact: only an exponent changes.
DEVICE u64 fixed(float weight) {
    return __float2ull_rn(__fmul_rn(weight, 17592186044416.f));
}
// By the model's own distribution.
DEVICE u64 plain_weight(float logit, float largest) {
    return fixed(exp_below_zero(__fsub_rn(logit, largest)));
}
DEVICE u32 bin_of(float logit, float largest) {
    return (u32)fminf(__fsub_rn(largest, logit) * BINS_PER_UNIT, BINS - 1.f);
}

// ---- Blocks ----

// Of the values of all threads, to all threads.
template <class F>
DEVICE u64 reduce(u64 v, F f) {
    __shared__ u64 of_warps[THREADS / 32];
    v = f(v, lane_xor<16>(v)), v = f(v, lane_xor<8>(v)), v = f(v, lane_xor<4>(v)), v = f(v, lane_xor<2>(v)), v = f(v, lane_xor<1>(v));
    __syncthreads();  // what it held before has been read
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = of_warps[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++) v = f(v, of_warps[i]);
    return v;
}
DEVICE u64 sum(u64 v) {
    return reduce(v, [](u64 a, u64 b) { return a + b; });
}
DEVICE u64 largest_of(u64 v) {
    return reduce(v, [](u64 a, u64 b) { return a > b ? a : b; });
}
DEVICE u64 smallest_of(u64 v) {
    return reduce(v, [](u64 a, u64 b) { return a < b ? a : b; });
}

// The sum of the values of the threads before this one, and of all.
DEVICE u64 sum_before(u64 v, u64& total) {
    __shared__ u64 of_warps[THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 up_to = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const u64 other = lane_up(up_to, d);
        if (lane >= d) up_to += other;
    }
    __syncthreads();
    if (lane == 31) of_warps[warp] = up_to;
    __syncthreads();
    u64 before = 0;
    total = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) {
        if (i < warp) before += of_warps[i];
        total += of_warps[i];
    }
    return before + up_to - v;
}

// Whether all other blocks of the row have come here: then it sees what they wrote. The barriers hand what all threads wrote
// to the thread whose ticket releases it, and back.
template <int BLOCKS>
DEVICE bool is_last(u32* blocks) {
    __shared__ u32 ticket;
    __syncthreads();
    if (threadIdx.x == 0) ticket = next_ticket(blocks, grid_blocks<BLOCKS>() - 1);
    __syncthreads();
    return ticket == grid_blocks<BLOCKS>() - 1;
}

// f(id, logit) for each token of the block's slice.
template <int V, class F>
DEVICE void each(const float* logits, F f) {
    float4 x[EACH / 4];
    const u32 first = blockIdx.x * SLICE + threadIdx.x * 4;
    // Rows are whole cache lines: where one element is, four can be read.
#pragma unroll
    for (int i = 0; i < EACH / 4; i++)
        if (first + i * THREADS * 4 < V) x[i] = *(const float4*)(logits + first + i * THREADS * 4);
#pragma unroll
    for (int i = 0; i < EACH / 4; i++) {
        const u32 id = first + i * THREADS * 4;
        if (id < V) f(id, x[i].x);
        if (id + 1 < V) f(id + 1, x[i].y);
        if (id + 2 < V) f(id + 2, x[i].z);
        if (id + 3 < V) f(id + 3, x[i].w);
    }
}

// ---- Kernels ----
//   grid = (Work<V>::SLICES, rows), block = THREADS; logits are STRIDE apart; a Work<V> and a Counters for each row
// Each returns where the row wants less.

template <int V, int STRIDE>
DEVICE void likeliest(const Counts* counts, const float* logits, const Draw* draws, Drawn* drawn, u8* work, u32* counters) {
    let_next_start();
    wait_for_previous();
    const u32 row = blockIdx.y;
    if (row >= counts->rows) return;
    const Draw* draw = draws + row;
    if (draw->kind == NONE) return;
    Work<V>& w = ((Work<V>*)work)[row];
    Counters& c = ((Counters*)counters)[row];

    u64 best = 0;
    each<V>(logits + (u64)row * STRIDE, [&](u32 id, float x) {
        const u64 k = key(x, id);
        best = k > best ? k : best;
    });
    best = largest_of(best);
    if (threadIdx.x == 0) w.parts[blockIdx.x] = best;
    if (!is_last<Work<V>::SLICES>(&c.blocks)) return;

    best = largest_of(threadIdx.x < Work<V>::SLICES ? load_fresh(&w.parts[threadIdx.x]) : 0);
    if (threadIdx.x > 0) return;
    const float largest = logit_of(best);
    const bool no_number = best >> 32 == ~0u, infinite = fabsf(largest) > 3.40282347e38f;
    // Some token must stand in where there is none.
    if (draw->kind == LIKELIEST || no_number || infinite)
        drawn[draw->to] = Drawn{id_of(best), no_number ? NOT_A_NUMBER : infinite ? INFINITE : FINE};
    w.best = no_number || infinite ? 0 : best;
    w.least = 0;
}

template <int V, int STRIDE>
DEVICE void weigh(const Counts* counts, const float* logits, const Draw* draws, u8* work, u32* counters) {
    __shared__ u32 bins[BINS];
    let_next_start();
    for (int i = threadIdx.x; i < BINS; i += THREADS) bins[i] = 0;
    __syncthreads();
    wait_for_previous();
    const u32 row = blockIdx.y;
    if (row >= counts->rows) return;
    const Draw* draw = draws + row;
    Work<V>& w = ((Work<V>*)work)[row];
    Counters& c = ((Counters*)counters)[row];
    u64 best;
    if (draw->kind != SELECTED || (best = load_fresh(&w.best)) == 0) return;
    const float largest = logit_of(best);
    const u32 top_k = draw->top_k;

    u64 mass = 0;
    each<V>(logits + (u64)row * STRIDE, [&](u32, float x) {
        atomicAdd(&bins[bin_of(x, largest)], 1u);
        if (top_k == 0) mass += plain_weight(x, largest);
    });
    mass = sum(mass);
    if (threadIdx.x == 0) w.parts[blockIdx.x] = mass;
    for (int i = threadIdx.x; i < BINS; i += THREADS)
        if (bins[i] > 0) atomicAdd(&c.bins[i], bins[i]);
    if (!is_last<Work<V>::SLICES>(&c.blocks)) return;

    mass = sum(threadIdx.x < Work<V>::SLICES ? load_fresh(&w.parts[threadIdx.x]) : 0);
    u64 goal = top_k;
    if (top_k == 0) {
        goal = (u64)ceil((double)draw->top_p * (double)mass);
        goal = goal > 0 ? goal : 1;  // one token at least
    }
    // What the tokens of the bins up to each of a thread's can weigh: no less than `low`, no more than `high`.
    constexpr int MINE = BINS / THREADS;
    u64 low[MINE], high[MINE], of_low = 0, of_high = 0, all;
#pragma unroll
    for (int j = 0; j < MINE; j++) {
        const int bin = threadIdx.x * MINE + j;
        const u32 count = load_fresh(&c.bins[bin]);
        c.bins[bin] = 0;
        if (top_k > 0) {
            low[j] = high[j] = count;
        } else {
            // A little more room than need be, against rounding.
            const float longest = __expf(-(bin + 1) / BINS_PER_UNIT), shortest = __expf(-bin / BINS_PER_UNIT);
            low[j] = bin + 1 < BINS ? fixed(count * longest * 0.9999f) : 0;
            high[j] = fixed(count * shortest * 1.0001f);
        }
        low[j] = of_low += low[j];
        high[j] = of_high += high[j];
    }
    of_low = sum_before(of_low, all);
    of_high = sum_before(of_high, all);
    u32 first = 0, last = 0;
#pragma unroll
    for (int j = 0; j < MINE; j++) {
        first += of_high + high[j] < goal;
        last += of_low + low[j] < goal;
    }
    const u64 both = sum((u64)first << 32 | last);
    if (threadIdx.x > 0) return;
    w.goal = goal;
    // Where top-p follows on top-k, all tokens of the latter are needed.
    w.first = top_k > 0 ? 0 : (u32)(both >> 32);
    w.last = (u32)both < BINS ? (u32)both : BINS - 1;
}

// The key from which on keys reach the goal: the largest such, or some key between it and the next one below that is among
// `count` keys. keys(i) is 0 for no key. Keys below `floor` count nothing; `value` is what a key counts.
template <class Keys, class Value>
DEVICE u64 least_kept(u32 count, u64 floor, u64 before, u64 goal, const Keys& keys, const Value& value) {
    u64 low = ~0ull, high = 0, active = 0;
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        const u64 k = keys(i);
        if (k == 0 || k < floor) continue;
        low = k < low ? k : low, high = k > high ? k : high;
        active++;
    }
    low = smallest_of(low), high = largest_of(high) + 1, active = sum(active);
    if (active == 0) return floor;
    // From `low` on they reach the goal, from `high` on they don't; `active` are between.
    while (active > 1 && high - low > 1) {
        const u64 middle = low + (high - low) / 2;
        u64 above = 0, more = 0;
        for (u32 i = threadIdx.x; i < count; i += THREADS) {
            const u64 k = keys(i);
            if (k < middle || k >= high) continue;
            above++;
            more += value(k);
        }
        above = sum(above), more = sum(more);
        if (before + more >= goal) {
            low = middle, active = above;
        } else {
            high = middle, active -= above, before += more;
        }
    }
    return low;
}

template <int V, int STRIDE>
DEVICE void select(const Counts* counts, const float* logits, const Draw* draws, u8* work, u32* counters) {
    __shared__ u64 found[SLICE];
    __shared__ u32 found_count, found_at;
    let_next_start();
    if (threadIdx.x == 0) found_count = 0;
    __syncthreads();
    wait_for_previous();
    const u32 row = blockIdx.y;
    if (row >= counts->rows) return;
    const Draw* draw = draws + row;
    Work<V>& w = ((Work<V>*)work)[row];
    Counters& c = ((Counters*)counters)[row];
    u64 best;
    if (draw->kind != SELECTED || (best = load_fresh(&w.best)) == 0) return;
    const float largest = logit_of(best);
    const u32 first = load_fresh(&w.first), last = load_fresh(&w.last), top_k = draw->top_k;
    const float* mine = logits + (u64)row * STRIDE;

    u64 mass = 0;  // of what is kept anyway
    each<V>(mine, [&](u32 id, float x) {
        const u32 bin = bin_of(x, largest);
        if (bin < first) mass += plain_weight(x, largest);
        else if (bin <= last) found[atomicAdd(&found_count, 1u)] = key(x, id);
    });
    mass = sum(mass);
    if (threadIdx.x == 0) {
        w.parts[blockIdx.x] = mass;
        found_at = atomicAdd(&c.listed, found_count);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < found_count; i += THREADS)
        if (found_at + i < LIST) w.list[found_at + i] = found[i];
    if (!is_last<Work<V>::SLICES>(&c.blocks)) return;

    mass = sum(threadIdx.x < Work<V>::SLICES ? load_fresh(&w.parts[threadIdx.x]) : 0);
    const u32 listed = load_fresh(&c.listed);
    const u64 goal = load_fresh(&w.goal);
    __syncthreads();
    if (threadIdx.x == 0) c.listed = 0;
    const bool fits = listed <= LIST;
    const u32 count = fits ? listed : V;
    auto keys = [&](u32 i) -> u64 {
        if (fits) return w.list[i];
        const float x = mine[i];
        const u32 bin = bin_of(x, largest);
        return bin < first || bin > last ? 0 : key(x, i);
    };
    auto weight = [&](u64 k) { return plain_weight(logit_of(k), largest); };
    u64 least = 0;
    if (top_k > 0) least = least_kept(count, 0, 0, goal, keys, [](u64) { return (u64)1; });
    if (draw->top_p < 1.f) {
        u64 share = goal;
        if (top_k > 0) {
            u64 total = 0;
            for (u32 i = threadIdx.x; i < count; i += THREADS) {
                const u64 k = keys(i);
                if (k >= least) total += weight(k);
            }
            share = (u64)ceil((double)draw->top_p * (double)sum(total));
            share = share > 0 ? share : 1;
        }
        least = least_kept(count, least, mass, share, keys, weight);
    }
    if (threadIdx.x == 0) w.least = least;
}

template <int V, int STRIDE>
DEVICE void draw(const Counts* counts, const float* logits, const Draw* draws, Drawn* drawn, u8* work, u32* counters) {
    __shared__ u64 rest;
    __shared__ u32 slice;
    let_next_start();
    wait_for_previous();
    const u32 row = blockIdx.y;
    if (row >= counts->rows) return;
    const Draw* draw = draws + row;
    Work<V>& w = ((Work<V>*)work)[row];
    Counters& c = ((Counters*)counters)[row];
    u64 best;
    if (draw->kind < ANY || (best = load_fresh(&w.best)) == 0) return;
    const u64 least = load_fresh(&w.least);
    const float largest = logit_of(best), lowest = __fadd_rn(largest, draw->lowest), temperature = draw->temperature;
    const float* mine = logits + (u64)row * STRIDE;
    auto weight = [&](u32 id, float x) -> u64 {
        if (key(x, id) < least || !(x >= lowest)) return 0;
        return fixed(exp_below_zero(__fdiv_rn(__fsub_rn(x, largest), temperature)));
    };

    u64 mass = 0;
    each<V>(mine, [&](u32 id, float x) { mass += weight(id, x); });
    mass = sum(mass);
    if (threadIdx.x == 0) w.parts[blockIdx.x] = mass;
    if (!is_last<Work<V>::SLICES>(&c.blocks)) return;

    // The token at which the running sum exceeds the target: first its slice, then its thread, then itself.
    u64 total, part = threadIdx.x < Work<V>::SLICES ? load_fresh(&w.parts[threadIdx.x]) : 0;
    u64 before = sum_before(part, total);
    u64 target = (u64)(draw->random * (double)total);
    target = target < total ? target : total - 1;
    if (before <= target && target - before < part) slice = threadIdx.x, rest = target - before;
    __syncthreads();
    const u64 left = rest;
    const u32 id = slice * SLICE + threadIdx.x * EACH;
    u64 weights[EACH];
    part = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) part += weights[i] = id + i < V ? weight(id + i, mine[id + i]) : 0;
    before = sum_before(part, total);
    if (before > left || left - before >= part) return;
    u32 drawn_id = id;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (before <= left && left - before < weights[i]) drawn_id = id + i;
        before += weights[i];
    }
    drawn[draw->to] = Drawn{drawn_id, FINE};
}

}  // namespace sample

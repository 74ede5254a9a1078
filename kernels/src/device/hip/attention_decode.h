// Attention of single tokens (attention.h): few queries, bound by reading keys and values.

namespace attention {

// One block of threads takes a token, up to MOST query heads of one KV head, and a share of the positions:
//   grid = (PAIRS, rows, SPLITS), workspace = PAIRS * rows * SPLITS * PARTIAL floats, tickets = PAIRS * rows (none of either is
//   touched if SPLITS = 1)
// A wavefront takes a block of 16 positions at a time. Of keys, lane p + 16 h has every other 16 bytes of position p, so that a
// score is its own sum and the other half's; of values, a lane has 8 dims of PER positions, which meet in shared memory at the
// end. Both are dot products of f16 pairs: a block is 4 to 16 KB of memory, and matrix instructions would save time that is
// not what is short.
template <class C>
struct Decode {
    static constexpr int D = C::D, G = C::HEADS / C::KV_HEADS, MOST = D <= 128 ? 8 : 4;
    static constexpr int GROUPS = (G + MOST - 1) / MOST, HG = (G + GROUPS - 1) / GROUPS, PAIRS = C::KV_HEADS * GROUPS;
    static constexpr int WAVES = 4, THREADS = 32 * WAVES;
    static constexpr int ROW = D + 4;  // a partial result: D sums, their maximum, their weight; keeps 16-byte alignment
    static constexpr int PARTIAL = HG * ROW;
    // Pieces of 16 bytes of a lane's keys; lanes of a position's values, lanes' sets, positions of a lane, words of its dims.
    static constexpr int KEYS = Kv<C>::ROW / 32, LANES = D / 8, FIT = 32 / LANES;
    static constexpr int SETS = FIT >= 8 ? 8 : FIT >= 4 ? 4 : FIT >= 2 ? 2 : 1, PER = 16 / SETS, WORDS = C::Q8 ? 2 : 4;
    // Queries as f16, weights of a wavefront's positions as f16, then partial results.
    static constexpr int Q_BYTES = HG * D * 2, P_BYTES = WAVES * HG * 32, PARTS_BYTES = WAVES * PARTIAL * 4;
    static constexpr int SHARED = Q_BYTES + P_BYTES + PARTS_BYTES + C::TABLE * 4 + 16;
    // Up to this many blocks of 16 positions (128 KB of K and V) one split is faster than a merge; above it a split gets at
    // least SHARE.
    static constexpr u32 ALONE = 2048 / D, SHARE = 512 / D;
};

// A lane's part of a block's keys and values.
template <class C>
struct DecodeKeys {
    U4 piece[Decode<C>::KEYS];
    u32 scale[C::Q8 ? Kv<C>::SCALES : 1];
};
template <class C>
struct DecodeValues {
    u32 word[Decode<C>::PER][Decode<C>::WORDS];
    u32 scale[C::Q8 ? Decode<C>::PER : 1];
};

template <class C>
DEVICE void load_keys(DecodeKeys<C>& k, const char* head, u32 lane, Slots seen) {
    const u32 p = nearest(seen, lane & 15), h = lane >> 4;
#pragma unroll
    for (int i = 0; i < Decode<C>::KEYS; i++) k.piece[i] = load_once((const U4*)(head + p * Kv<C>::ROW + 16 * h) + 2 * i);
    if constexpr (C::Q8) {
#pragma unroll
        for (int i = 0; i < Kv<C>::SCALES; i++)
            k.scale[i] = ((const u16*)(head + 16 * Kv<C>::ROW))[p * Kv<C>::SCALES + i];
    }
}
template <class C>
DEVICE void load_values(DecodeValues<C>& v, const char* head, u32 set, u32 chunk, Slots seen) {
    using S = Decode<C>;
#pragma unroll
    for (int i = 0; i < S::PER; i++) {
        const u32 slot = nearest(seen, set * S::PER + i);
        const char* p = head + slot * Kv<C>::ROW + chunk * 4 * S::WORDS;
        if constexpr (C::Q8) {
            const U2 x = load_once((const U2*)p);
            v.word[i][0] = x.x, v.word[i][1] = x.y;
            v.scale[i] = ((const u16*)(head + 16 * Kv<C>::ROW))[slot * Kv<C>::SCALES + chunk / 4];
        } else {
            const U4 x = load_once((const U4*)p);
            v.word[i][0] = x.x, v.word[i][1] = x.y, v.word[i][2] = x.z, v.word[i][3] = x.w;
        }
    }
}

// Scores of a lane's position: half of each; q lies in shared memory.
template <class C>
DEVICE void add_scores(float (&s)[Decode<C>::HG], const DecodeKeys<C>& k, const u8* q, u32 h) {
    using S = Decode<C>;
#pragma unroll
    for (int i = 0; i < S::KEYS; i++) {
        const U4 x = k.piece[i];
        if constexpr (C::Q8) {
            u32 a[8];
            expand(x.x, a[0], a[1]), expand(x.y, a[2], a[3]), expand(x.z, a[4], a[5]), expand(x.w, a[6], a[7]);
            const float scale = half_to_float((u16)k.scale[i]);
#pragma unroll
            for (int j = 0; j < S::HG; j++) {
                const U4* at = (const U4*)(q + j * S::D * 2 + (2 * i + h) * 32);
                const U4 y = at[0], z = at[1];
                float sum = dot2(a[0], y.x, dot2(a[1], y.y, dot2(a[2], y.z, dot2(a[3], y.w, 0.f))));
                sum = dot2(a[4], z.x, dot2(a[5], z.y, dot2(a[6], z.z, dot2(a[7], z.w, sum))));
                s[j] = fmaf(scale, sum, s[j]);
            }
        } else {
#pragma unroll
            for (int j = 0; j < S::HG; j++) {
                const U4 y = *(const U4*)(q + j * S::D * 2 + (2 * i + h) * 16);
                s[j] = dot2(x.x, y.x, dot2(x.y, y.y, dot2(x.z, y.z, dot2(x.w, y.w, s[j]))));
            }
        }
        // Registers have room for a few queries ahead, not for all.
        __builtin_amdgcn_sched_barrier(0);
    }
}

// o += the values of a lane's positions by their weights, which lie in shared memory.
template <class C>
DEVICE void add_values(float (&o)[Decode<C>::HG][8], const DecodeValues<C>& v, const u16* weights, u32 set) {
    using S = Decode<C>;
#pragma unroll
    for (int i = 0; i < S::PER; i += 2) {
        u32 pair[8];  // a dim of two positions each
        if constexpr (C::Q8) {
            const u32 scales = low_halves(v.scale[i], v.scale[i + 1]);
#pragma unroll
            for (int w = 0; w < 2; w++) {
                expand(permute(v.word[i][w], v.word[i + 1][w], 0x5140), pair[4 * w], pair[4 * w + 1]);
                expand(permute(v.word[i][w], v.word[i + 1][w], 0x7362), pair[4 * w + 2], pair[4 * w + 3]);
            }
#pragma unroll
            for (int d = 0; d < 8; d++) pair[d] = half2_mul(pair[d], scales);
        } else {
#pragma unroll
            for (int w = 0; w < 4; w++) {
                pair[2 * w] = low_halves(v.word[i][w], v.word[i + 1][w]);
                pair[2 * w + 1] = high_halves(v.word[i][w], v.word[i + 1][w]);
            }
        }
#pragma unroll
        for (int j = 0; j < S::HG; j++) {
            const u32 weight = *(const u32*)(weights + j * 16 + set * S::PER + i);
#pragma unroll
            for (int d = 0; d < 8; d++) o[j][d] = dot2(pair[d], weight, o[j][d]);
        }
        __builtin_amdgcn_sched_barrier(0);
    }
}

// Merges N partial rows in shared memory, `apart` apart; `to` may be the first of them. The result is final or one partial row
// more.
template <class C, int N>
DEVICE void merge(float* to, const float* from, bool final, u32 lane) {
    constexpr int D = C::D, APART = Decode<C>::PARTIAL;
    float m = LOWEST, l = 0, w[N];
#pragma unroll
    for (int i = 0; i < N; i++) m = fmaxf(m, w[i] = from[i * APART + D]);
#pragma unroll
    for (int i = 0; i < N; i++) l += from[i * APART + D + 1] * (w[i] = exp2_fast(w[i] - m));
    const float r = final ? 1.0f / l : 1.0f;
    wave_barrier();
#pragma unroll
    for (int d = 0; d < D; d += 32) {
        const int at = d + lane;
        float sum = 0;
        if (D % 32 == 0 || at < D) {
#pragma unroll
            for (int i = 0; i < N; i++) sum = fmaf(w[i], from[i * APART + at], sum);
            to[at] = sum * r;
        }
    }
    if (!final && lane == 0) to[D] = m, to[D + 1] = l;
    wave_barrier();
}

template <class C, class Epilogue>
DEVICE void decode(const Args& a, const Epilogue& epilogue) {
    using S = Decode<C>;
    constexpr int D = C::D, WAVES = S::WAVES, HG = S::HG, ROW = S::ROW;
    extern __shared__ __align__(16) u8 shared[];
    u16* weights_of_waves = (u16*)(shared + S::Q_BYTES);
    float* parts = (float*)(shared + S::Q_BYTES + S::P_BYTES);
    u32* entries = (u32*)(shared + S::Q_BYTES + S::P_BYTES + S::PARTS_BYTES);
    u32* note = entries + C::TABLE;
    const u32 lane = threadIdx.x & 31, wave = wave_index(), p = lane & 15, h = lane >> 4;
    const u32 pair = blockIdx.x, token = blockIdx.y, split = blockIdx.z;
    if (token >= a.counts[0]) return;
    const u32 kv_head = pair / S::GROUPS, first_head = pair % S::GROUPS * HG;
    const u32 heads = S::G - first_head < (u32)HG ? S::G - first_head : HG;
    const u32 position = a.positions[token];
    const u32* table = a.tables + (u64)a.sequences[token] * a.table_stride;
    const u32 start = C::WINDOW && position >= (u32)C::WINDOW ? position + 1 - C::WINDOW : 0, range = position - start;
    const u32 first = start >> 4, count = (position >> 4) - first + 1;
    const u32 wanted = count <= S::ALONE ? 1 : (count + S::SHARE - 1) / S::SHARE;
    const u32 used = wanted < (u32)C::SPLITS ? wanted : C::SPLITS;
    if (split >= used) return;
    const u32 begin = first + (u32)((u64)count * split / used), end = first + (u32)((u64)count * (split + 1) / used);

    for (u32 i = threadIdx.x; i < HG * D / 2; i += S::THREADS) {
        const u32 head = i / (D / 2), d = i % (D / 2) * 2;
        const bool real = head < heads;
        const float* row = a.q + ((u64)token * C::HEADS + kv_head * S::G + first_head + (real ? head : 0)) * D + d;
        const float scale = real ? query_scale<C>() : 0.f;
        ((u32*)shared)[i] = floats_to_half2(row[0] * scale, row[1] * scale);
    }

    const char* keys = a.keys + kv_head * Kv<C>::HEAD;
    const char* values = a.values + kv_head * Kv<C>::HEAD;
    u16* weights = weights_of_waves + wave * HG * 16;
    // Lanes beyond the last set repeat it; what they get is not used.
    const u32 set = lane / S::LANES < (u32)S::SETS ? lane / S::LANES : S::SETS - 1, chunk = lane % S::LANES;
    float o[HG][8] = {}, m[HG], l[HG];
#pragma unroll
    for (int j = 0; j < HG; j++) m[j] = LOWEST, l[j] = 0;
    DecodeKeys<C> k;
    DecodeValues<C> v;

    // Stretches of the table, of which each wavefront takes every WAVES'th block.
    for (u32 from = begin; from < end;) {
        const u32 left = end - from, stretch = C::TABLE && left > (u32)C::TABLE ? C::TABLE : left;
        if (C::TABLE) {
            shared_barrier();
            for (u32 i = threadIdx.x; i < stretch; i += S::THREADS) entries[i] = clamped(table[from + i], a.blocks);
        }
        shared_barrier();
        auto at = [&](u32 i) { return (C::TABLE ? entries[i] : table[from + i]) * a.block_stride; };
        auto visible = [&](u32 i) { return visible_slots<C>((from + i) * 16, start, position); };
        if (C::AHEAD && wave < stretch) {
            const u64 block = at(wave);
            load_keys<C>(k, keys + block, lane, visible(wave));
            load_values<C>(v, values + block, set, chunk, visible(wave));
        }
#pragma unroll 1
        for (u32 i = wave; i < stretch; i += WAVES) {
            const bool more = C::AHEAD && i + WAVES < stretch;
            const u64 block = C::AHEAD ? (more ? at(i + WAVES) : 0) : at(i);
            const Slots slots = visible(C::AHEAD ? i + WAVES : i);
            if (!C::AHEAD) load_keys<C>(k, keys + block, lane, slots);
            float s[HG] = {};
            add_scores<C>(s, k, shared, h);
            if (more) load_keys<C>(k, keys + block, lane, slots);
            if (!C::AHEAD) {
                if (D * HG > 512) __builtin_amdgcn_sched_barrier(0);
                load_values<C>(v, values + block, set, chunk, slots);
            }
            const u32 base = (from + i) * 16 - start;  // visible: base + slot <= range, unsigned
            const bool seen = base + p <= range;
            float top[HG];
            bool up = false;
#pragma unroll
            for (int j = 0; j < HG; j++) {
                s[j] += lane_xor<16>(s[j]);
                s[j] = seen ? s[j] : masked();
                float x = s[j];
                x = fmaxf(x, lane_xor<8>(x)), x = fmaxf(x, lane_xor<4>(x)), x = fmaxf(x, lane_xor<2>(x));
                top[j] = fmaxf(x, lane_xor<1>(x));
                up |= top[j] > m[j] + SLACK;
            }
            if (any_lane(up)) {
#pragma unroll
                for (int j = 0; j < HG; j++) {
                    const bool mine = top[j] > m[j] + SLACK;
                    const float f = mine ? exp2_fast(m[j] - top[j]) : 1.f;
                    m[j] = mine ? top[j] : m[j];
                    l[j] *= f;
#pragma unroll
                    for (int d = 0; d < 8; d++) o[j][d] *= f;
                }
            }
            wave_barrier();
#pragma unroll
            for (int j = 0; j < HG; j++) {
                const float x = exp2_fast(s[j] - m[j]);
                l[j] += x;
                weights[j * 16 + p] = float_to_half(x);
            }
            wave_barrier();
            add_values<C>(o, v, weights, set);
            if (more) load_values<C>(v, values + block, set, chunk, slots);
        }
        from += stretch;
    }

    // A wavefront's sets add up in shared memory, one after the other; then the wavefronts are merged, by one of them a head.
    float* part = parts + wave * S::PARTIAL;
#pragma unroll
    for (int turn = 0; turn < S::SETS; turn++) {
        if (lane / S::LANES == (u32)turn) {
#pragma unroll
            for (int j = 0; j < HG; j++) {
                float4* to = (float4*)(part + j * ROW + chunk * 8);
                float4 x = make_float4(o[j][0], o[j][1], o[j][2], o[j][3]), y = make_float4(o[j][4], o[j][5], o[j][6], o[j][7]);
                if (turn > 0) {
                    const float4 before = to[0], behind = to[1];
                    x = make_float4(x.x + before.x, x.y + before.y, x.z + before.z, x.w + before.w);
                    y = make_float4(y.x + behind.x, y.y + behind.y, y.z + behind.z, y.w + behind.w);
                }
                to[0] = x, to[1] = y;
            }
        }
        wave_barrier();
    }
#pragma unroll
    for (int j = 0; j < HG; j++) {
        float x = l[j];
        x += lane_xor<8>(x), x += lane_xor<4>(x), x += lane_xor<2>(x), x += lane_xor<1>(x);
        if (lane == 0) part[j * ROW + D] = m[j], part[j * ROW + D + 1] = x;
    }
    shared_barrier();
    const u64 cell = (u64)token * S::PAIRS + pair;
    float* partials = a.workspace + cell * C::SPLITS * S::PARTIAL;
    for (u32 j = wave; j < heads; j += WAVES) {
        float* tile = parts + j * ROW;
        merge<C, WAVES>(used == 1 ? tile : partials + split * S::PARTIAL + j * ROW, tile, used == 1, lane);
        if (used == 1) epilogue.store(token, kv_head * S::G + first_head + j, (const float*)tile);
    }
    if (C::SPLITS == 1 || used == 1) return;

    // The last of the splits to arrive merges them in their order, whichever it is: results do not depend on timing.
    __syncthreads();
    if (threadIdx.x == 0) *note = next_ticket(a.tickets + cell, used - 1);
    __syncthreads();
    if (*note != used - 1) return;
    for (u32 j = wave; j < heads; j += WAVES) {
        constexpr int PIECES = (D + 31) / 32;
        const float* from = partials + j * ROW;
        float top = LOWEST, weight = 0, sum[PIECES] = {};
#pragma unroll 1
        for (u32 z = 0; z < used; z++, from += S::PARTIAL) {
            const float x = from[D], y = from[D + 1], next = fmaxf(top, x);
            const float f = exp2_fast(top - next), w = exp2_fast(x - next);
            top = next, weight = fmaf(weight, f, w * y);
#pragma unroll
            for (int i = 0; i < PIECES; i++)
                if (D % 32 == 0 || 32 * i + lane < D) sum[i] = fmaf(sum[i], f, w * from[32 * i + lane]);
        }
        float* tile = parts + j * ROW;
        const float r = 1.0f / weight;
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (D % 32 == 0 || 32 * i + lane < D) tile[32 * i + lane] = sum[i] * r;
        wave_barrier();
        epilogue.store(token, kv_head * S::G + first_head + j, (const float*)tile);
    }
}

}  // namespace attention

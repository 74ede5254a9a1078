// Attention of many tokens of a sequence (attention.h): bound by the matrix unit.

namespace attention {

// One block of threads takes a tile of up to BM consecutive tokens of a sequence and one head: grid = (tiles, HEADS).
// A wavefront has 16 queries as the columns of its products: scores are keys times queries, results transposed values times
// weights. So a lane's scores and results are all of one query, and what softmax does is its own business but for one exchange
// between the halves of the wavefront, which have every other key.
template <class C>
struct Prefill {
    static constexpr int D = C::D, WAVES = 4, THREADS = 32 * WAVES, BM = 16 * WAVES;
    static constexpr int BN = D <= 128 ? 32 : 16, NB = BN / 16;
    static constexpr bool Q_REGISTERS = D <= 64;
    // Rows are an odd number of 16 bytes apart: eight of them hit different banks.
    static constexpr int Q_STRIDE = 2 * D + 16, K_STRIDE = 2 * D + 16, V_STRIDE = 2 * BN + 16;
    static constexpr int Q_BYTES = Q_REGISTERS ? 0 : BM * Q_STRIDE, K_BYTES = BN * K_STRIDE, V_BYTES = D * V_STRIDE;
    // Results, of half of a wavefront's queries at a time.
    static constexpr int OUT = D + 4, OUT_BYTES = WAVES * 8 * OUT * 4, LOOP_BYTES = Q_BYTES + K_BYTES + V_BYTES;
    static constexpr int USED = LOOP_BYTES + C::TABLE * 4, SHARED = OUT_BYTES > USED ? OUT_BYTES : USED;
    static_assert(C::TABLE % NB == 0, "a step's entries are copied together");
    // What a thread copies of a step: pieces of 8 dims of a key, and of two values.
    static constexpr int K_PIECES = BN * D / 8, K_COPIES = (K_PIECES + THREADS - 1) / THREADS;
    static constexpr int V_PIECES = BN / 2 * D / 8, V_COPIES = (V_PIECES + THREADS - 1) / THREADS;
};

// The 8 dims of a position from `piece` on, as f16.
template <class C>
DEVICE U4 load_piece(const char* head, u32 position, u32 piece) {
    if constexpr (C::Q8) {
        const U2 x = *(const U2*)(head + position * Kv<C>::ROW + piece * 8);
        const u32 scale = ((const u16*)(head + 16 * Kv<C>::ROW))[position * Kv<C>::SCALES + piece / 4] * 0x10001u;
        u32 a[4];
        expand(x.x, a[0], a[1]), expand(x.y, a[2], a[3]);
        return U4{half2_mul(a[0], scale), half2_mul(a[1], scale), half2_mul(a[2], scale), half2_mul(a[3], scale)};
    } else {
        return *(const U4*)(head + position * Kv<C>::ROW + piece * 16);
    }
}
// 16 numbers of a row in shared memory.
DEVICE void load_row(u32 (&r)[8], const u8* p) {
    const U4 x = ((const U4*)p)[0], y = ((const U4*)p)[1];
    r[0] = x.x, r[1] = x.y, r[2] = x.z, r[3] = x.w, r[4] = y.x, r[5] = y.y, r[6] = y.z, r[7] = y.w;
}

template <class C, class Epilogue>
DEVICE void prefill(const Args& a, const Epilogue& epilogue) {
    using S = Prefill<C>;
    constexpr int D = C::D, NB = S::NB, BN = S::BN, DT = D / 16;
    extern __shared__ __align__(16) u8 shared[];
    u8 *q_at = shared, *k_at = shared + S::Q_BYTES, *v_at = k_at + S::K_BYTES;
    u32* entries = (u32*)(shared + S::LOOP_BYTES);
    const u32 lane = threadIdx.x & 31, wave = wave_index(), n = lane & 15, h = lane >> 4;
    const u32 head = blockIdx.y, kv_head = head / (C::HEADS / C::KV_HEADS), tiles = a.counts[3];
    if (blockIdx.x >= tiles) return;
    // Last tiles first: those of a long prompt see the most positions, and should not start when the others end.
    const u32* tile = a.tiles + 4 * (tiles - 1 - blockIdx.x);
    const u32 row0 = tile[0], rows = tile[1], p0 = tile[3], last = p0 + rows - 1;
    const u32* table = a.tables + (u64)tile[2] * a.table_stride;
    const u32 start = C::WINDOW && p0 >= (u32)C::WINDOW ? p0 + 1 - C::WINDOW : 0;
    const u32 first = start >> 4, blocks = (last >> 4) - first + 1, steps = (blocks + NB - 1) / NB;
    const char* keys = a.keys + kv_head * Kv<C>::HEAD;
    const char* values = a.values + kv_head * Kv<C>::HEAD;

    // Queries of this wavefront: rows that are not there are the first one.
    const u32 mine = wave * 16 + n, p_mine = p0 + mine;
    const float* q_row = a.q + ((u64)(row0 + (mine < rows ? mine : 0)) * C::HEADS + head) * D;
    u32 q[S::Q_REGISTERS ? DT : 1][8];
#pragma unroll
    for (int d = 0; d < DT; d++) {
        u32 x[8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float4 y = *(const float4*)(q_row + 16 * d + 4 * i);
            const float scale = query_scale<C>();
            x[2 * i] = floats_to_half2(y.x * scale, y.y * scale), x[2 * i + 1] = floats_to_half2(y.z * scale, y.w * scale);
        }
        if constexpr (S::Q_REGISTERS) {
#pragma unroll
            for (int i = 0; i < 8; i++) q[d][i] = x[i];
        } else if (h == 0) {
            U4* to = (U4*)(q_at + mine * S::Q_STRIDE + d * 32);
            to[0] = U4{x[0], x[1], x[2], x[3]}, to[1] = U4{x[4], x[5], x[6], x[7]};
        }
    }

    // What is copied of a step: keys row by row; values in pairs of positions, transposed. The matrix unit adds over a block's
    // keys in the order in which lanes have weights: even ones, then odd ones.
    U4 k[S::K_COPIES], v[S::V_COPIES][2];
    // Of a position that nobody sees, the nearest visible one is read: nobody may have written it, and a NaN that lies there would
    // survive a weight of zero.
    auto nearest = [&](u32 position) {
        const u32 most = position < last ? position : last;
        return most > start ? most : start;
    };
    // Entries of the blocks from a step's first one on.
    auto copy_entries = [&](u32 step) {
        if constexpr (C::TABLE > 0) {
            const u32 from = step * NB, left = blocks - from, count = left < (u32)C::TABLE ? left : C::TABLE;
            for (u32 i = threadIdx.x; i < count; i += S::THREADS) entries[i] = clamped(table[first + from + i], a.blocks);
        }
    };
    auto head_of = [&](const char* part, u32 position) {
        const u32 block = position / 16;
        if constexpr (C::TABLE > 0) return part + entries[(block - first) % C::TABLE] * a.block_stride;
        return part + table[block] * a.block_stride;
    };
    auto fetch = [&](u32 step) {
        const u32 base = (first + step * NB) * 16;
#pragma unroll
        for (int i = 0; i < S::K_COPIES; i++) {
            const u32 piece = i * S::THREADS + threadIdx.x, at = piece % (D / 8), p = nearest(base + piece / (D / 8));
            if (S::K_PIECES % S::THREADS == 0 || piece < (u32)S::K_PIECES) k[i] = load_piece<C>(head_of(keys, p), p % 16, at);
        }
#pragma unroll
        for (int i = 0; i < S::V_COPIES; i++) {
            // Eight pairs of a block side by side.
            const u32 piece = i * S::THREADS + threadIdx.x, r = piece % 8, at = piece / 8 % (D / 8), j = piece / D;
            const u32 low = base + j * 16 + (r < 4 ? 4 * r : 4 * r - 15), p = nearest(low);
            if (S::V_PIECES % S::THREADS == 0 || piece < (u32)S::V_PIECES) {
                const char* from = head_of(values, p);
                v[i][0] = load_piece<C>(from, p % 16, at);
                v[i][1] = load_piece<C>(from, nearest(low + 2) % 16, at);  // of the same block, always
            }
        }
    };
    auto stage = [&]() {
#pragma unroll
        for (int i = 0; i < S::K_COPIES; i++) {
            const u32 piece = i * S::THREADS + threadIdx.x, row = piece / (D / 8), at = piece % (D / 8);
            if (S::K_PIECES % S::THREADS == 0 || piece < (u32)S::K_PIECES) *(U4*)(k_at + row * S::K_STRIDE + at * 16) = k[i];
        }
#pragma unroll
        for (int i = 0; i < S::V_COPIES; i++) {
            const u32 piece = i * S::THREADS + threadIdx.x, r = piece % 8, at = piece / 8 % (D / 8), j = piece / D;
            if (S::V_PIECES % S::THREADS == 0 || piece < (u32)S::V_PIECES) {
                u8* to = v_at + at * 8 * S::V_STRIDE + j * 32 + r * 4;
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    const u32 x = part_of(v[i][0], w), y = part_of(v[i][1], w);
                    *(u32*)(to + 2 * w * S::V_STRIDE) = low_halves(x, y);
                    *(u32*)(to + (2 * w + 1) * S::V_STRIDE) = high_halves(x, y);
                }
            }
        }
    };

    F8 o[DT] = {};
    float highest = LOWEST, sum = 0;
    const u32 low = p0 + wave * 16, high = low + 15;  // positions of the wavefront's queries
    copy_entries(0);
    if (C::TABLE > 0) shared_barrier();
    fetch(0);
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        shared_barrier();
        stage();
        if (C::TABLE > 0 && step + 1 < steps && (step + 1) * NB % C::TABLE == 0) copy_entries(step + 1);
        shared_barrier();
        fetch(step + 1 < steps ? step + 1 : step);
        __builtin_amdgcn_sched_barrier(0);
        const u32 base = first * 16 + step * BN;
        if (base > high || (C::WINDOW && base + BN + C::WINDOW <= low + 1)) continue;  // nothing that this wavefront sees

        F8 s[NB] = {};
#pragma unroll
        for (int d = 0; d < DT; d++) {
            u32 x[8];
            if constexpr (S::Q_REGISTERS) {
#pragma unroll
                for (int i = 0; i < 8; i++) x[i] = q[d][i];
            } else {
                load_row(x, q_at + mine * S::Q_STRIDE + d * 32);
            }
#pragma unroll
            for (int j = 0; j < NB; j++) {
                u32 y[8];
                load_row(y, k_at + (16 * j + n) * S::K_STRIDE + d * 32);
                multiply(s[j], y, x);
            }
            // Registers have room for a few reads ahead, not for all.
            if (D > 128 || d % 2) __builtin_amdgcn_sched_barrier(0);
        }
        // A query at p sees p - WINDOW + 1 ..= p.
        if (base + BN - 1 > low || (C::WINDOW && base + C::WINDOW <= high)) {
#pragma unroll
            for (int j = 0; j < NB; j++)
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const u32 at = base + 16 * j + 2 * i + h;
                    if (C::WINDOW ? p_mine - at >= (u32)C::WINDOW : at > p_mine) s[j][i] = masked();
                }
        }
        float top = masked();
#pragma unroll
        for (int j = 0; j < NB; j++)
#pragma unroll
            for (int i = 0; i < 8; i++) top = fmaxf(top, s[j][i]);
        top = fmaxf(top, lane_xor<16>(top));
        const bool up = top > highest + SLACK;
        if (any_lane(up)) {
            const float f = up ? exp2_fast(highest - top) : 1.f;
            highest = up ? top : highest;
            sum *= f;
#pragma unroll
            for (int d = 0; d < DT; d++) o[d] *= f;
        }
#pragma unroll
        for (int j = 0; j < NB; j++) {
            u32 p[8];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float x = exp2_fast(s[j][2 * i] - highest), y = exp2_fast(s[j][2 * i + 1] - highest);
                sum += x + y;
                const u32 own = floats_to_half2(x, y), other = lane_xor<16>(own);
                p[i] = h ? other : own, p[4 + i] = h ? own : other;
            }
#pragma unroll
            for (int d = 0; d < DT; d++) {
                u32 y[8];
                load_row(y, v_at + (16 * d + n) * S::V_STRIDE + j * 32);
                multiply(o[d], y, p);
                if (D > 128 || d % 2) __builtin_amdgcn_sched_barrier(0);
            }
        }
    }

    sum += lane_xor<16>(sum);
    const float f = 1.0f / sum;
    shared_barrier();  // results take the place of queries, keys and values
    float* out = (float*)shared + wave * 8 * S::OUT;
    const int from = wave * 16, live = (int)rows - from;
#pragma unroll 1
    for (int part = 0; part < 2; part++) {
        wave_barrier();
        if ((int)(n >> 3) == part) {
#pragma unroll
            for (int d = 0; d < DT; d++)
#pragma unroll
                for (int i = 0; i < 8; i++) out[(n & 7) * S::OUT + 16 * d + 2 * i + h] = o[d][i] * f;
        }
        wave_barrier();
#pragma unroll 1
        for (int r = 0; r < 8 && 8 * part + r < live; r++)
            epilogue.store(row0 + from + 8 * part + r, head, (const float*)(out + r * S::OUT));
    }
}

}  // namespace attention

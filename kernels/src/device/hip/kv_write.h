// Keys and values of new tokens from rows of f32 to the slots of a paged KV cache (attention.h): what writes them where a product's
// epilogue doesn't.

namespace attention {

// A pool, for Kv.
template <int KV_HEADS_, int D_, bool Q8_>
struct Stored {
    static constexpr int D = D_, HEADS = KV_HEADS_, KV_HEADS = KV_HEADS_;
    static constexpr bool Q8 = Q8_;
};

// A block of threads takes a row's keys, or its values: grid = (rows, parts). `rows` lie STRIDE numbers apart, and have one part from
// column FIRST on, the other from SECOND on. A lane has 8 dims, so that a wavefront writes whole lines of a head's position. A
// slot that is beyond the pool is not written.
template <class C, int STRIDE, int FIRST, int SECOND, int THREADS>
DEVICE void kv_scatter(const Counts* counts, const float* rows, const u32* slots, char* first, char* second, u32 blocks) {
    const u32 row = blockIdx.x;
    if (row >= counts->tokens) return;
    const u32 slot = slots[row], block = slot / 16, position = slot % 16;
    if (block >= blocks) return;
    const float* from = rows + (u64)row * STRIDE + (blockIdx.y ? SECOND : FIRST);
    char* to = (blockIdx.y ? second : first) + (u64)block * (C::KV_HEADS * Kv<C>::HEAD);
    for (u32 i = threadIdx.x; i < C::KV_HEADS * C::D / 8; i += THREADS) {
        char* head = to + i / (C::D / 8) * Kv<C>::HEAD;
        const u32 piece = i % (C::D / 8);
        const float4 a = ((const float4*)from)[2 * i], b = ((const float4*)from)[2 * i + 1];
        if constexpr (C::Q8) {
            // Four lanes have the 32 dims of a scale (KvDType::Q8Rows).
            const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
            float most = 0;
#pragma unroll
            for (int d = 0; d < 8; d++) most = fmaxf(most, fabsf(x[d]));
            most = fmaxf(most, lane_xor<1>(most)), most = fmaxf(most, lane_xor<2>(most));
            const float inverse = most > 0.f ? __fdiv_rn(127.f, most) : 0.f;
            u32 words[2] = {};
#pragma unroll
            for (int d = 0; d < 8; d++) words[d / 4] |= (u32)(u8)__float2int_rn(__fmul_rn(x[d], inverse)) << d % 4 * 8;
            *(U2*)(head + position * Kv<C>::ROW + piece * 8) = U2{words[0], words[1]};
            if (piece % 4 == 0)
                ((u16*)(head + 16 * Kv<C>::ROW))[position * Kv<C>::SCALES + piece / 4] = float_to_half(__fdiv_rn(most, 127.f));
        } else {
            *(U4*)(head + position * Kv<C>::ROW + piece * 16) = U4{floats_to_half2(a.x, a.y), floats_to_half2(a.z, a.w),
                                                                    floats_to_half2(b.x, b.y), floats_to_half2(b.z, b.w)};
        }
    }
}

}  // namespace attention

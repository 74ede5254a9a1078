// Products of pairs of a token and one of its experts, by the kernels of matmul.h: a block has up to ROWS pairs of one expert, which
// stand together in the list of pairs. Each wavefront finds its block's for itself, from where the experts' pairs begin: grids are
// the same whatever the routing, and there is nothing to wait for but that one read.
//
// USED is the number of experts of a token. x has rows of tokens, which the list names, where BY_TOKENS is set, else rows of pairs. Where CHECKED is
// set, no address depends on what memory says: places stay in the list, and tokens below the step's number.
template <int E, int USED, int ROWS, bool BY_TOKENS, bool CHECKED>
struct Pairs {
    static constexpr bool INDEXED = BY_TOKENS;
    const Counts* counts;
    const u32* tokens;
    u32 expert;
    int row0, count;

    // Those of a block; none where there are fewer blocks.
    __device__ Pairs(const Counts* counts, const u32* tokens, const u32* starts, u32 block)
        : counts(counts), tokens(tokens), expert(0), row0(0), count(0) {
        const u32 lane = threadIdx.x & 31, all = CHECKED ? counts->tokens * USED : 0;
        u32 before = 0;
        for (int base = 0; base < E; base += 32) {
            const u32 e = base + lane;
            u32 first = e < E ? starts[e] : 0, end = e < E ? starts[e + 1] : 0;
            if (CHECKED) {
                end = end < all ? end : all;
                first = first < end ? first : end;
            }
            const u32 own = (end - first + ROWS - 1) / ROWS;
            u32 through = own;
#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                const u32 below = word_from(through, lane < (u32)d ? lane : lane - d);
                if (lane >= (u32)d) through += below;
            }
            // The block's number among those of this lane's expert.
            const u32 at = block - before - (through - own);
            const u32 mine = __builtin_amdgcn_ballot_w32(at < own);
            if (mine) {
                const u32 from = __builtin_ctz(mine), row = first + at * ROWS, left = end - row;
                expert = base + from;
                row0 = __builtin_amdgcn_readlane(row, from);
                count = __builtin_amdgcn_readlane(left < ROWS ? left : ROWS, from);
                return;
            }
            before += __builtin_amdgcn_readlane(through, 31);
        }
    }
    template <class Segments>
    __device__ u64 weights(const Segments& segments, int item) const {
        return expert * segments.expert_bytes(item);
    }
    __device__ int rows() const { return count; }
    __device__ u32 x_row(int i) const {
        const u32 row = row0 + i;
        if (!BY_TOKENS) return row;
        const u32 token = tokens[row];
        return CHECKED && token >= counts->tokens ? counts->tokens - 1 : token;
    }
};

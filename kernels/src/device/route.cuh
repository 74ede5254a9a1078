// Sends each token to the USED of E experts that have its highest logits, and lists the pairs of a token and an expert: by expert, and
// of one expert by token.
//
// A thread has one expert of a token. Its rank is the number of experts that come before it: those with a higher logit, and of
// equal ones those with a lower number. So there is no search for one maximum after the other, and nothing depends on who is
// first. The list is a counting sort that needs no order of its atomics either: of each expert a bit for each token, whose sums are
// the places.
namespace route {

template <int E_, int USED_, int MAX_TOKENS>
struct Shape {
    static constexpr int E = E_, USED = USED_;
    // Threads of a token, and tokens of a block.
    static constexpr int GROUP = (E + 31) / 32 * 32, TOKENS = GROUP < 256 ? 256 / GROUP : 1, THREADS = GROUP * TOKENS;
    // Words with a bit for each token; an odd number apart, for the banks of shared memory.
    static constexpr int WORDS = (MAX_TOKENS + 31) / 32, STRIDE = WORDS | 1;
    static_assert(MAX_TOKENS * USED < 1 << 16, "a sum has sixteen bits");
    static_assert(E <= 1024 && USED <= E && USED <= 32, "a thread an expert");
};

// In the word of a chosen expert: the token's logits are not all finite.
constexpr u32 BAD = 1u << 31;

// Takes note of how many experts have tokens, and of the first token of this launch whose logits are not finite, where there is one.
DEVICE void finish(Counts* counts, u32 bad_token, u32 experts) {
    counts->experts += experts;
    const u32 route = counts->routes;
    counts->routes = route + 1;
    if (bad_token != ~0u && counts->bad_route == ~0u) counts->bad_route = route, counts->bad_token = bad_token;
}

// The experts of a block's tokens, by rank; of one whose logits are not finite with BAD.
template <class S>
using Chosen = u32[S::TOKENS][S::USED];

// A thread's expert of a token: how many come before it, whether it is one of the token's, and whether all logits are finite.
struct Rank {
    int rank;
    bool is_chosen, finite;
};

// Ranks the experts of the block's token number `own`, of which this thread has one with the logit v, if it is there; writes down
// and weighs those that are chosen, weights from `weights` on.
template <class S, bool RENORMALISE>
DEVICE Rank choose(float v, bool token_there, int own, int expert, Chosen<S>& chosen, float* weights, float scale) {
    constexpr int USED = S::USED, GROUP = S::GROUP;
    const bool there = token_there && expert < S::E;
    __shared__ __align__(16) float values[S::TOKENS][GROUP];
    __shared__ __align__(16) float shares[S::TOKENS][GROUP];
    __shared__ float slots[S::TOKENS][USED];
    // What is not there comes last of all.
    if (!there) v = -3.40282347e38f;
    values[own][expert] = v;
    __syncthreads();

    int rank = 0;
    // Not zero where a logit is not finite.
    float most = -3.40282347e38f, zero = 0;
    // A warp is of one token.
    if (token_there)
#pragma unroll 4
        for (int j = 0; j < GROUP; j += 4) {
            const float4 w = *(const float4*)&values[own][j];
            auto meet = [&](float other, int at) {
                zero = fmaf(other, 0.f, zero);
                most = fmaxf(most, other);
                const bool before = at < expert ? other >= v : other > v;
                rank += before ? 1 : 0;
            };
            meet(w.x, j), meet(w.y, j + 1), meet(w.z, j + 2), meet(w.w, j + 3);
        }
    const bool finite = zero == 0.f;
    // Such a token goes somewhere, so that there is a list; what comes of it is not used.
    if (!finite) rank = expert;
    const float share = there && finite ? __expf(v - most) : 0.f;
    const bool is_chosen = there && rank < USED;
    shares[own][expert] = share;
    if (is_chosen) {
        slots[own][rank] = share;
        chosen[own][rank] = expert | (finite ? 0 : BAD);
    }
    __syncthreads();
    if (is_chosen) {
        float sum = 0;
        if (RENORMALISE) {
#pragma unroll
            for (int s = 0; s < USED; s++) sum += slots[own][s];
        } else {
            float part[4] = {};
#pragma unroll 4
            for (int j = 0; j < GROUP; j += 4) {
                const float4 w = *(const float4*)&shares[own][j];
                part[0] += w.x, part[1] += w.y, part[2] += w.z, part[3] += w.w;
            }
            sum = (part[0] + part[1]) + (part[2] + part[3]);
        }
        weights[rank] = finite ? __fdiv_rn(share, sum) * scale : 0.f;
    }
    return Rank{rank, is_chosen, finite};
}

// The list of one token's pairs: each place is the number of its experts with a lower number. By the threads of the token.
template <class S>
DEVICE void list_one(Counts* counts, const Chosen<S>& chosen, const Rank& own, int expert, u32* places, u32* tokens, u32* starts) {
    u32 below = 0;
#pragma unroll
    for (int s = 0; s < S::USED; s++) below += (chosen[0][s] & ~BAD) < (u32)expert;
    if (expert < S::E) starts[expert] = below;
    if (own.is_chosen) places[own.rank] = below, tokens[below] = 0;
    if (expert == 0) {
        starts[S::E] = S::USED;
        finish(counts, own.finite ? ~0u : 0, S::USED);
    }
}

// Of one token, whose logits BLOCKS blocks of S::THREADS threads have written: by the last of them.
template <class S, bool RENORMALISE, int BLOCKS>
DEVICE void send_behind(const Counts* counts, const float* logits, float* weights, u32* places, u32* tokens, u32* starts, u32* ticket,
                        float scale) {
    __shared__ Chosen<S> chosen;
    __shared__ u32 taken;
    __syncthreads();
    if (threadIdx.x == 0) taken = next_ticket(ticket, BLOCKS - 1);
    __syncthreads();
    if (taken + 1 < BLOCKS) return;
    const int expert = threadIdx.x % S::GROUP, own = threadIdx.x / S::GROUP;
    const float v = own == 0 && expert < S::E ? __uint_as_float(load_fresh((const u32*)logits + expert)) : 0.f;
    const Rank rank = choose<S, RENORMALISE>(v, own == 0, own, expert, chosen, weights, scale);
    if (own == 0) list_one<S>((Counts*)counts, chosen, rank, expert, places, tokens, starts);
}

// grid: a block for each S::TOKENS tokens. Logits are LOGITS apart, weights and places of a token ROW. `work` has S::USED words for
// each token, `ticket` is a counter.
template <class S, int LOGITS, int ROW, bool RENORMALISE>
DEVICE void send(const Counts* counts, const float* logits, float* weights, u32* places, u32* tokens, u32* starts, u32* work,
                 u32* ticket, float scale) {
    constexpr int E = S::E, USED = S::USED, GROUP = S::GROUP;
    __shared__ Chosen<S> chosen;
    let_next_start();
    wait_for_previous();
    const int count = (int)counts->tokens, blocks = (count + S::TOKENS - 1) / S::TOKENS;
    if ((int)blockIdx.x >= blocks) return;
    const int expert = threadIdx.x % GROUP, own = threadIdx.x / GROUP, token = blockIdx.x * S::TOKENS + own;
    const float v = expert < E && token < count ? logits[(u64)token * LOGITS + expert] : 0.f;
    const Rank rank = choose<S, RENORMALISE>(v, token < count, own, expert, chosen, weights + (u64)token * ROW, scale);
    if (count == 1) {
        if (own == 0) list_one<S>((Counts*)counts, chosen, rank, expert, places, tokens, starts);
        return;
    }

    if (blocks > 1) {
        __shared__ u32 taken;
        if (rank.is_chosen) work[(u64)token * USED + rank.rank] = chosen[own][rank.rank];
        __syncthreads();
        if (threadIdx.x == 0) taken = next_ticket(ticket, blocks - 1);
        __syncthreads();
        if ((int)taken + 1 < blocks) return;
    }
    // The last expert's row is that of tokens whose logits are not finite.
    __shared__ u32 masks[(E + 1) * S::STRIDE];
    __shared__ u32 begins[GROUP], warps[S::THREADS / 32];
    for (int i = threadIdx.x; i < (E + 1) * S::STRIDE; i += S::THREADS) masks[i] = 0;
    __syncthreads();
    const int pairs = count * USED;
    auto chosen_at = [&](int p) { return blocks > 1 ? load_fresh(work + p) : chosen[p / USED][p % USED]; };
    for (int p = threadIdx.x; p < pairs; p += S::THREADS) {
        const u32 c = chosen_at(p), t = p / USED;
        atomicOr(&masks[(c & ~BAD) * S::STRIDE + t / 32], 1u << t % 32);
        if (c & BAD) atomicOr(&masks[E * S::STRIDE + t / 32], 1u << t % 32);
    }
    __syncthreads();
    const int words = (count + 31) / 32;
    u32 own_pairs = 0, all;
    if (threadIdx.x < E)
        for (int w = 0; w < words; w++) own_pairs += __popc(masks[threadIdx.x * S::STRIDE + w]);
    // In the upper half, experts that have any.
    const u32 begin = sum_before<S::THREADS>(own_pairs > 0 ? 1u << 16 | own_pairs : 0, warps, all) & 0xffff;
    if (threadIdx.x < E) starts[threadIdx.x] = begins[threadIdx.x] = begin;
    if (threadIdx.x == 0) starts[E] = all & 0xffff;
    __syncthreads();
    for (int p = threadIdx.x; p < pairs; p += S::THREADS) {
        const u32 e = chosen_at(p) & ~BAD, t = p / USED;
        const u32* mask = masks + e * S::STRIDE;
        u32 place = begins[e] + __popc(mask[t / 32] & ((1u << t % 32) - 1));
        for (u32 w = 0; w < t / 32; w++) place += __popc(mask[w]);
        places[(u64)t * ROW + p % USED] = place;
        tokens[place] = t;
    }
    if (threadIdx.x == 0) {
        u32 bad = ~0u;
        for (int w = words - 1; w >= 0; w--) {
            const u32 mask = masks[E * S::STRIDE + w];
            if (mask) bad = 32 * w + __popc((mask & -mask) - 1);
        }
        finish((Counts*)counts, bad, all >> 16);
    }
}

}  // namespace route

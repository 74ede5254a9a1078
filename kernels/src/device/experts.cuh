// Mixtures of experts: which pairs of a token and an expert a block of threads multiplies, found by each block for itself.

// The sum of what the threads before this one have, and of what all have. All threads of a block call it; `warps` is shared memory
// that nobody uses before the next barrier.
template <int THREADS>
DEVICE u32 sum_before(u32 v, u32* warps, u32& all) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u64 sum = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const u64 below = lane_up(sum, d);
        if (lane >= d) sum += below;
    }
    if (lane == 31) warps[warp] = (u32)sum;
    __syncthreads();
    u32 before = (u32)sum - v;
    all = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) {
        const u32 n = warps[w];
        if (w < warp) before += n;
        all += n;
    }
    return before;
}

// Up to ROWS pairs of one expert, which stand together in the list of pairs.
struct ExpertRows {
    u32 expert, rows, first;
};
struct ExpertBlocks {
    // expert << 8 | rows, and the first pair.
    U2* table;
    DEVICE U2 packed(u32 expert, u32 rows, u32 first) { return U2{expert << 8 | rows, first}; }
    __device__ ExpertRows operator[](int block) const {
        const U2 v = table[block];
        return ExpertRows{v.x >> 8, v.x & 255, v.y};
    }
};

// Divides the list of pairs, in which expert e has the places from starts[e] on, into blocks of up to ROWS pairs of one expert, in
// its order; gives their number. The table is there for all threads.
template <int E, int ROWS, int THREADS>
DEVICE int find_blocks(const u32* starts, U2* table) {
    static_assert(ROWS < 256, "a block's rows have eight bits");
    __shared__ u32 warps[2][THREADS / 32];
    u32 count = 0;
#pragma unroll
    for (int base = 0; base < E; base += THREADS) {
        const int expert = base + threadIdx.x;
        const u32 first = expert < E ? load_fresh(starts + expert) : 0, end = expert < E ? load_fresh(starts + expert + 1) : 0;
        u32 all, at = count + sum_before<THREADS>((end - first + ROWS - 1) / ROWS, warps[base / THREADS % 2], all);
        for (u32 pair = first; pair < end; pair += ROWS, at++)
            table[at] = ExpertBlocks::packed(expert, end - pair < ROWS ? end - pair : ROWS, pair);
        count += all;
    }
    __syncthreads();
    return (int)count;
}

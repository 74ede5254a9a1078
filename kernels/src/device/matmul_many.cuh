// Matrix products of many rows of activations on the matrix unit of Hopper: out[n, m] = sum over k of x[n, k] w[m, k].
//
// A CTA makes 128 features of 128 rows. Two warpgroups have 64 features each; their weights come from memory straight into
// registers, are dequantised there, and are the first factor. The second is a tile of activations in shared memory, 128
// rows by 64 columns, which a fifth pair of hands fetches with one bulk copy: whoever wrote them wrote them in tiles
// (`Tiled`), in the order of columns in which fragments hold theirs, and swizzled as the matrix unit wants it.
//
// The dequantised registers of one tile are multiplied while those of the next are made. Numbers that are multiplied as they
// were read are so from the registers of the ring, whose next read waits until they have been.

#if __CUDA_ARCH__ >= 900

DEVICE void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DEVICE void barrier_wait(u32 barrier, u32 phase) {
    asm volatile(
        "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra again;\ndone:\n}"
        ::"r"(barrier), "r"(phase) : "memory");
}
DEVICE void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
DEVICE void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

// c[64, 128] += a[64, 16] b[128, 16]^T
DEVICE void multiply_many(float (&c)[64], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
        "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
        "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
          "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
          "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
          "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]),
          "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]),
          "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),
          "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]),
          "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// c[64, 64] += a[64, 16] b[64, 16]^T
DEVICE void multiply_many(float (&c)[32], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
        "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
          "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
          "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
          "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <class Format, int K_, int ROWS_ = 128, int STAGES_ = 6>
struct ManyShape {
    using F = Format;
    static constexpr int K = K_, FRAGMENTS = K / 64;
    static constexpr int ROWS = ROWS_, FEATURES = 128;
    static constexpr int STAGES = STAGES_, STAGE_BYTES = ROWS * 128;
    // Fragments on their way: as many as registers allow. Of fewer rows there are fewer sums.
    static constexpr int DEPTH = (!F::AS_READ && sizeof(typename F::Fragment) > 48 ? 2 : 4) * (ROWS < 128 ? 2 : 1);
    static constexpr int THREADS = 256 + 32;
    static constexpr int STRIDE = FEATURES + 4;
    static constexpr int SUMS_BYTES = ROWS * STRIDE * 4;
    static constexpr int SHARED = (STAGES * STAGE_BYTES > SUMS_BYTES ? STAGES * STAGE_BYTES : SUMS_BYTES) + 1024;
};

// The tile of 64 columns that a descriptor points at: rows of 128 bytes, eight of them a swizzled group.
DEVICE u64 tile_descriptor(u32 at) {
    return (u64)((at & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

template <class F>
DEVICE void dequantise_fragment(const typename F::Fragment& f, u32 (&a)[4][4]) {
#pragma unroll
    for (int step = 0; step < 4; step++) F::dequantise(f, step, a[step]);
}

// The fragments of a warp's 16 features that are on their way first.
template <class S>
DEVICE void load_first(typename S::F::Fragment (&ring)[S::DEPTH], const u8* w) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < S::DEPTH; i++) ring[i] = i < S::FRAGMENTS ? S::F::load(w + i * S::F::BYTES, lane) : S::F::none();
}

// Multiplies a warp's 16 features with tiles of x that come through stages, the first of which is number `base` of all that came;
// the last one's stage is not free yet.
template <class S>
DEVICE void multiply_tiles(float (&acc)[S::ROWS / 2], typename S::F::Fragment (&ring)[S::DEPTH], const u8* w, u32 stages,
                           u32 full, u32 empty, int base) {
    using F = typename S::F;
    const int lane = threadIdx.x & 31;
    u32 a[2][4][4];
    if (!F::AS_READ) dequantise_fragment<F>(ring[0], a[0]);
    // A slot's next fragment, once that of tile i is used up.
    auto refill = [&](typename F::Fragment& slot, int i) {
        if (i >= 0) slot = i + S::DEPTH < S::FRAGMENTS ? F::load(w + (u64)(i + S::DEPTH) * F::BYTES, lane) : F::none();
    };
#pragma unroll 1
    for (int round = 0; round < S::FRAGMENTS; round += S::DEPTH) {
#pragma unroll
        for (int j = 0; j < S::DEPTH; j++) {
            const int i = round + j;
            if (S::FRAGMENTS % S::DEPTH && i >= S::FRAGMENTS) break;
            const int stage = (base + i) % S::STAGES;
            barrier_wait(full + 8 * stage, ((base + i) / S::STAGES) & 1);
            const u64 b = tile_descriptor(stages + stage * S::STAGE_BYTES);
            products_fence();
#pragma unroll
            for (int step = 0; step < 4; step++) {
                if (F::AS_READ) {
                    u32 numbers[4];
                    F::dequantise(ring[j], step, numbers);
                    multiply_many(acc, numbers, b + 2 * step);
                } else {
                    multiply_many(acc, a[j % 2][step], b + 2 * step);
                }
            }
            products_commit();
            // The slot that this tile came from is free: its next fragment.
            if (!F::AS_READ) refill(ring[j], i);
            // The products before these are done, so their registers and their stage are free.
            products_wait<1>();
            if (i > 0 && lane == 0) barrier_arrive(empty + 8 * ((base + i - 1) % S::STAGES));
            if (F::AS_READ)
                refill(ring[(j + S::DEPTH - 1) % S::DEPTH], i - 1);
            else
                dequantise_fragment<F>(ring[(j + 1) % S::DEPTH], a[(j + 1) % 2]);
        }
    }
    products_wait<0>();
}

// Lane 4g + t: features g and g + 8 of the warp's 16, rows 8j + 2t and 8j + 2t + 1.
template <class S>
DEVICE void store_sums(const float (&acc)[S::ROWS / 2], float* sums, int warp) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    float* at = sums + 2 * t * S::STRIDE + warp * 16 + g;
#pragma unroll
    for (int j = 0; j < S::ROWS / 8; j++) {
        float* p = at + 8 * j * S::STRIDE;
        p[0] = acc[4 * j], p[S::STRIDE] = acc[4 * j + 1];
        p[8] = acc[4 * j + 2], p[S::STRIDE + 8] = acc[4 * j + 3];
    }
}

// Barriers of stages: that one is full, by so many arrivals, and that it is empty, by each of eight warps.
template <class S>
DEVICE void init_stages(u32 full, u32 empty, u32 arrivals) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(full + 8 * i, arrivals);
            barrier_init(empty + 8 * i, 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
}

template <class S, class Segments>
DEVICE void matmul_many(const Counts* counts, const u16* x, const Segments& segments) {
    using F = typename S::F;
    extern __shared__ u8 raw_shared[];
    // Swizzled tiles start at multiples of 1024 bytes.
    u8* shared = raw_shared + (-shared_address(raw_shared) & 1023);
    __shared__ u64 barriers[2 * S::STAGES];
    const u32 full = shared_address(barriers), empty = full + 8 * S::STAGES;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    // CTAs that share weights run side by side.
    const int token_tile = blockIdx.x, item = blockIdx.y;
    init_stages<S>(full, empty, 1);
    const u8* w = segments.item(item) + (u64)(warp & 7) * S::FRAGMENTS * F::BYTES;
    typename F::Fragment ring[S::DEPTH];
    if (warp < 8) load_first<S>(ring, w);
    __syncthreads();
    let_next_start();
    // The step's sizes are there before the first launch.
    const int rows = (int)counts->tokens_or_rows(Segments::OF_ROWS) - token_tile * S::ROWS;
    wait_for_previous();
    if (rows <= 0) return;

    if (warp == 8) {
        if (lane == 0) {
            const u8* from = (const u8*)x + (u64)token_tile * S::FRAGMENTS * S::STAGE_BYTES;
            for (int i = 0; i < S::FRAGMENTS; i++) {
                int stage = i % S::STAGES;
                if (i >= S::STAGES) barrier_wait(empty + 8 * stage, (i / S::STAGES - 1) & 1);
                barrier_expect(full + 8 * stage, S::STAGE_BYTES);
                bulk_copy(shared_address(shared) + stage * S::STAGE_BYTES, from + (u64)i * S::STAGE_BYTES, S::STAGE_BYTES,
                          full + 8 * stage);
            }
        }
        // Its lanes are needed no more, but the barrier below counts all.
    }
    float acc[S::ROWS / 2];
#pragma unroll
    for (int i = 0; i < S::ROWS / 2; i++) acc[i] = 0;
    if (warp < 8) multiply_tiles<S>(acc, ring, w, shared_address(shared), full, empty, 0);
    __syncthreads();
    float* sums = (float*)shared;
    if (warp < 8) store_sums<S>(acc, sums, warp);
    __syncthreads();
    segments.finish(item, token_tile * S::ROWS, sums, S::STRIDE, rows < S::ROWS ? rows : S::ROWS);
}

// ---- Pairs of a token and one of its experts (matmul_experts.cuh) ----

DEVICE void copy_async(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
// What was written to shared memory, for the matrix unit, which reads it on another way.
DEVICE void shared_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Of the first eight warps.
DEVICE void workers_barrier() { meet_at(1, 256); }

// Blocks of up to S::ROWS pairs of one expert, of which there are BLOCKS at most; each CTA takes as many of their items. A warp of
// its own copies each pair's row of x, 16 bytes at a time, from where it lies in tiles to where the swizzle of its place in the
// stage has it. Sums have their own shared memory: it goes on with the next item meanwhile.
template <class S, int E, int BLOCKS, bool BY_TOKENS, bool AHEAD, class Segments>
DEVICE void matmul_many_experts(const u16* x, const u32* tokens, const u32* starts, const Segments& segments) {
    using F = typename S::F;
    constexpr int ITEMS = Segments::ITEMS, COPIES = S::ROWS / 4, LAG = S::STAGES - 3;
    extern __shared__ u8 raw_shared[];
    u8* shared = raw_shared + (-shared_address(raw_shared) & 1023);
    float* sums = (float*)(shared + S::STAGES * S::STAGE_BYTES);
    const ExpertBlocks blocks{(U2*)((u8*)sums + S::SUMS_BYTES)};
    __shared__ u64 barriers[2 * S::STAGES];
    const u32 full = shared_address(barriers), empty = full + 8 * S::STAGES, stages = shared_address(shared);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    init_stages<S>(full, empty, 32);
    if (!AHEAD) wait_for_previous();
    let_next_start();
    const int units = find_blocks<E, S::ROWS, S::THREADS>(starts, blocks.table) * ITEMS;
    const int first = (int)((u64)units * blockIdx.x / gridDim.x), last = (int)((u64)units * (blockIdx.x + 1) / gridDim.x);

    if (warp == 8) {
        if (AHEAD) wait_for_previous();
        // A lane has 16 bytes of every fourth row.
        const int part = lane & 7;
        int filled = 0;
        for (int unit = first; unit < last; unit++) {
            const ExpertRows block = blocks[unit / ITEMS];
            u32 from[COPIES];
#pragma unroll
            for (int j = 0; j < COPIES; j++) {
                const u32 r = 4 * j + (lane >> 3), pair = block.first + (r < block.rows ? r : block.rows - 1);
                const u32 row = BY_TOKENS ? tokens[pair] : pair;
                from[j] = row / 128 * (S::FRAGMENTS * 128 * 128) + row % 128 * 128 + ((part ^ row & 7) << 4);
            }
            for (int i = 0; i < S::FRAGMENTS; i++, filled++) {
                const int stage = filled % S::STAGES;
                if (filled >= S::STAGES) barrier_wait(empty + 8 * stage, (filled / S::STAGES - 1) & 1);
                const u32 to = stages + stage * S::STAGE_BYTES + (lane >> 3) * 128;
#pragma unroll
                for (int j = 0; j < COPIES; j++)
                    copy_async(to + j * 512 + ((part ^ (4 * j + (lane >> 3)) & 7) << 4), (const u8*)x + from[j] + i * (128 * 128));
                copies_commit();
                if (filled >= LAG) {
                    copies_wait<LAG>();
                    shared_fence();
                    barrier_arrive(full + 8 * ((filled - LAG) % S::STAGES));
                }
            }
        }
        copies_wait<0>();
        shared_fence();
        for (int i = filled < LAG ? 0 : filled - LAG; i < filled; i++) barrier_arrive(full + 8 * (i % S::STAGES));
        return;
    }
    auto at = [&](int unit) {
        const int item = unit % ITEMS;
        return segments.item(item) + blocks[unit / ITEMS].expert * segments.expert_bytes(item) +
               (u64)warp * S::FRAGMENTS * F::BYTES;
    };
    if (first >= last) return wait_for_previous();
    typename F::Fragment ring[S::DEPTH];
    const u8* w = at(first);
    load_first<S>(ring, w);
    if (AHEAD) wait_for_previous();
    for (int unit = first; unit < last; unit++) {
        float acc[S::ROWS / 2];
#pragma unroll
        for (int i = 0; i < S::ROWS / 2; i++) acc[i] = 0;
        const int base = (unit - first) * S::FRAGMENTS;
        multiply_tiles<S>(acc, ring, w, stages, full, empty, base);
        if (lane == 0) barrier_arrive(empty + 8 * ((base + S::FRAGMENTS - 1) % S::STAGES));
        // The next item's weights are on their way while this one's sums are stored.
        if (unit + 1 < last) {
            w = at(unit + 1);
            load_first<S>(ring, w);
        }
        // All have read the sums before these.
        workers_barrier();
        store_sums<S>(acc, sums, warp);
        workers_barrier();
        const ExpertRows block = blocks[unit / ITEMS];
        segments.finish(unit % ITEMS, block.first, sums, S::STRIDE, block.rows);
    }
}

#endif

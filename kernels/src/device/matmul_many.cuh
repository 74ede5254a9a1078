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

template <class Format, int K_>
struct ManyShape {
    using F = Format;
    static constexpr int K = K_, FRAGMENTS = K / 64;
    static constexpr int ROWS = 128, FEATURES = 128;
    static constexpr int STAGES = 6, STAGE_BYTES = ROWS * 128;
    // Fragments on their way: as many as registers allow.
    static constexpr int DEPTH = !F::AS_READ && sizeof(typename F::Fragment) > 48 ? 2 : 4;
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
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    const u8* w = segments.item(item) + (u64)(warp & 7) * S::FRAGMENTS * F::BYTES;
    typename F::Fragment ring[S::DEPTH];
    if (warp < 8)
#pragma unroll
        for (int i = 0; i < S::DEPTH; i++) ring[i] = i < S::FRAGMENTS ? F::load(w + i * F::BYTES, lane) : F::none();
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
    float acc[64];
#pragma unroll
    for (int i = 0; i < 64; i++) acc[i] = 0;
    if (warp < 8) {
        u32 a[2][4][4];
        if (!F::AS_READ) dequantise_fragment<F>(ring[0], a[0]);
        // A slot's next fragment, once that of tile i is used up.
        auto refill = [&](typename F::Fragment& slot, int i) {
            if (i >= 0)
                slot = i + S::DEPTH < S::FRAGMENTS ? F::load(w + (u64)(i + S::DEPTH) * F::BYTES, lane) : F::none();
        };
#pragma unroll 1
        for (int round = 0; round < S::FRAGMENTS; round += S::DEPTH) {
#pragma unroll
            for (int j = 0; j < S::DEPTH; j++) {
                const int i = round + j;
                if (S::FRAGMENTS % S::DEPTH && i >= S::FRAGMENTS) break;
                const int stage = i % S::STAGES;
                barrier_wait(full + 8 * stage, (i / S::STAGES) & 1);
                const u64 b = tile_descriptor(shared_address(shared) + stage * S::STAGE_BYTES);
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
                if (i > 0 && lane == 0) barrier_arrive(empty + 8 * ((i - 1) % S::STAGES));
                if (F::AS_READ)
                    refill(ring[(j + S::DEPTH - 1) % S::DEPTH], i - 1);
                else
                    dequantise_fragment<F>(ring[(j + 1) % S::DEPTH], a[(j + 1) % 2]);
            }
        }
        products_wait<0>();
    }
    __syncthreads();
    // Lane 4g + t: features g and g + 8 of the warp's 16, rows 8j + 2t and 8j + 2t + 1.
    float* sums = (float*)shared;
    if (warp < 8) {
        const int g = lane >> 2, t = lane & 3;
        float* at = sums + 2 * t * S::STRIDE + warp * 16 + g;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            float* p = at + 8 * j * S::STRIDE;
            p[0] = acc[4 * j], p[S::STRIDE] = acc[4 * j + 1];
            p[8] = acc[4 * j + 2], p[S::STRIDE + 8] = acc[4 * j + 3];
        }
    }
    __syncthreads();
    segments.finish(item, token_tile * S::ROWS, sums, S::STRIDE, rows < S::ROWS ? rows : S::ROWS);
}

#endif

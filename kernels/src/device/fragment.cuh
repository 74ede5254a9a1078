// Weights in fragments: what `kernels::pack::fragment` lays out, read back. A fragment is 16 rows by 64 columns; lane
// 4g + t of a warp reads the codes of rows g and g + 8, and multiplies them in four steps.
//
// Each format says:
//   BYTES            of a fragment
//   Fragment         a lane's part of one, in registers
//   load(p, lane)    of the fragment at p
//   none()           one that counts for nothing
//   dequantise(f, step, a)   a step's numbers as f16, ready to multiply
// and, where its codes can be multiplied as they are (RAW), with the scale applied to the sums of 32 columns:
//   raw(f, step, a)  codes as f16: BIAS_LOW + code in row g, BIAS_HIGH + FACTOR_HIGH * code in row g + 8
//   scales(f, block, low, high)   of the two rows, HIGH's divided by FACTOR_HIGH
//   minima(f, block, low, high)   what is added for each unit of the sum of activations; where HAS_MIN

// An f16 whose bits are 0x6400 | n is 1024 + n, for n below 1024: integers become floats by an `or`.
#define MAGIC 0x64006400u

template <bool MIN>
struct Nibbles {
    static constexpr bool RAW = true, HAS_MIN = MIN;
    static constexpr int CODES = 512, BYTES = CODES + (MIN ? 128 : 64);
    // The nibbles of row g + 8 are taken 4 bits higher.
    static constexpr float OFFSET = MIN ? 0.f : 8.f;
    static constexpr float BIAS_LOW = 1024.f + OFFSET, BIAS_HIGH = 1024.f + 16.f * OFFSET, FACTOR_HIGH = 16.f;
    struct Fragment {
        U4 codes;
        u32 scale[2], minimum[2];
    };
    DEVICE Fragment load(const u8* p, int lane) {
        Fragment f;
        f.codes = load_once((const U4*)p + lane);
        if (MIN) {
            U4 s = load_once((const U4*)(p + CODES) + (lane >> 2));
            f.scale[0] = s.x, f.minimum[0] = s.y, f.scale[1] = s.z, f.minimum[1] = s.w;
        } else {
            U2 s = load_once((const U2*)(p + CODES) + (lane >> 2));
            f.scale[0] = s.x, f.scale[1] = s.y;
        }
        return f;
    }
    DEVICE Fragment none() { return Fragment{{0, 0, 0, 0}, {0, 0}, {0, 0}}; }
    DEVICE u32 word(const Fragment& f, int step) {
        return step == 0 ? f.codes.x : step == 1 ? f.codes.y : step == 2 ? f.codes.z : f.codes.w;
    }
    DEVICE void raw(const Fragment& f, int step, u32 (&a)[4]) {
        u32 w = word(f, step), v = w >> 8;
        a[0] = and_or(w, 0x000f000f, MAGIC);
        a[1] = and_or(w, 0x00f000f0, MAGIC);
        a[2] = and_or(v, 0x000f000f, MAGIC);
        a[3] = and_or(v, 0x00f000f0, MAGIC);
    }
    DEVICE void scales(const Fragment& f, int block, float& low, float& high) {
        low = low_half(f.scale[block]);
        high = high_half(f.scale[block]) * (1.f / FACTOR_HIGH);
    }
    DEVICE void minima(const Fragment& f, int block, float& low, float& high) {
        low = low_half(f.minimum[block]);
        high = high_half(f.minimum[block]);
    }
    DEVICE void dequantise(const Fragment& f, int step, u32 (&a)[4]) {
        raw(f, step, a);
        u32 low = permute(f.scale[step / 2], 0, 0x1010), high = permute(f.scale[step / 2], 0, 0x3232);
        // 1024 + code - (1024 + offset), and (1024 + 16 code) / 16 - (64 + offset): exact.
        u32 less = MIN ? 0x64006400u : 0x64086408u, plus = MIN ? 0xd400d400u : 0xd480d480u;
        a[0] = half2_sub(a[0], less);
        a[1] = half2_fma(a[1], 0x2c002c00u, plus);
        a[2] = half2_sub(a[2], less);
        a[3] = half2_fma(a[3], 0x2c002c00u, plus);
        if (MIN) {
            u32 m = permute(f.minimum[step / 2], 0, 0x1010), n = permute(f.minimum[step / 2], 0, 0x3232);
            a[0] = half2_fma(a[0], low, m);
            a[1] = half2_fma(a[1], high, n);
            a[2] = half2_fma(a[2], low, m);
            a[3] = half2_fma(a[3], high, n);
        } else {
            a[0] = half2_mul(a[0], low);
            a[1] = half2_mul(a[1], high);
            a[2] = half2_mul(a[2], low);
            a[3] = half2_mul(a[3], high);
        }
    }
};
using Q4_0 = Nibbles<false>;
using Q4_1 = Nibbles<true>;

// Codes of a byte, plus 128.
struct Bytes {
    U4 codes[2];
    DEVICE Bytes load(const u8* p, int lane) {
        return Bytes{{load_once((const U4*)p + lane), load_once((const U4*)p + 32 + lane)}};
    }
    DEVICE void raw(const Bytes& f, int step, u32 (&a)[4]) {
        const U4& c = f.codes[step / 2];
        u32 low = step % 2 ? c.z : c.x, high = step % 2 ? c.w : c.y;
        a[0] = permute(low, MAGIC, 0x5150);
        a[1] = permute(high, MAGIC, 0x5150);
        a[2] = permute(low, MAGIC, 0x5352);
        a[3] = permute(high, MAGIC, 0x5352);
    }
};

struct Q8_0 {
    static constexpr bool RAW = true, HAS_MIN = false;
    static constexpr int CODES = 1024, BYTES = CODES + 64;
    static constexpr float BIAS_LOW = 1152.f, BIAS_HIGH = 1152.f, FACTOR_HIGH = 1.f;
    struct Fragment {
        Bytes codes;
        u32 scale[2];
    };
    DEVICE Fragment load(const u8* p, int lane) {
        Fragment f;
        f.codes = Bytes::load(p, lane);
        U2 s = load_once((const U2*)(p + CODES) + (lane >> 2));
        f.scale[0] = s.x, f.scale[1] = s.y;
        return f;
    }
    DEVICE Fragment none() { return Fragment{{{{0, 0, 0, 0}, {0, 0, 0, 0}}}, {0, 0}}; }
    DEVICE void raw(const Fragment& f, int step, u32 (&a)[4]) { Bytes::raw(f.codes, step, a); }
    DEVICE void scales(const Fragment& f, int block, float& low, float& high) {
        low = low_half(f.scale[block]);
        high = high_half(f.scale[block]);
    }
    DEVICE void minima(const Fragment&, int, float& low, float& high) { low = high = 0; }
    DEVICE void dequantise(const Fragment& f, int step, u32 (&a)[4]) {
        raw(f, step, a);
        u32 low = permute(f.scale[step / 2], 0, 0x1010), high = permute(f.scale[step / 2], 0, 0x3232);
        a[0] = half2_mul(half2_sub(a[0], 0x64806480u), low);
        a[1] = half2_mul(half2_sub(a[1], 0x64806480u), high);
        a[2] = half2_mul(half2_sub(a[2], 0x64806480u), low);
        a[3] = half2_mul(half2_sub(a[3], 0x64806480u), high);
    }
};

// Any quantised encoding: integers of a byte with an f32 factor and minimum for each 16 columns.
struct Wide {
    static constexpr bool RAW = false, HAS_MIN = true;
    static constexpr int CODES = 1024, BYTES = CODES + 512;
    static constexpr float BIAS_LOW = 0, BIAS_HIGH = 0, FACTOR_HIGH = 1;
    struct Fragment {
        Bytes codes;
        // Of each block of 32, the lane's 16 columns: factors of rows g and g + 8, then minima.
        U4 scale[2];
    };
    DEVICE Fragment load(const u8* p, int lane) {
        Fragment f;
        f.codes = Bytes::load(p, lane);
        // Columns 8t .. 8t + 8 of a block lie in its first 16 for t below 2.
        const U4* s = (const U4*)(p + CODES) + (lane >> 2) * 4 + (lane >> 1 & 1);
        f.scale[0] = load_once(s);
        f.scale[1] = load_once(s + 2);
        return f;
    }
    DEVICE Fragment none() {
        return Fragment{{{{0, 0, 0, 0}, {0, 0, 0, 0}}}, {{0, 0, 0, 0}, {0, 0, 0, 0}}};
    }
    DEVICE void raw(const Fragment&, int, u32 (&)[4]) {}
    DEVICE void scales(const Fragment&, int, float&, float&) {}
    DEVICE void minima(const Fragment&, int, float&, float&) {}
    DEVICE u32 element_pair(u32 codes, float s, float n) {
        u32 q = half2_sub(codes, 0x64806480u);
        return floats_to_half2(fmaf(low_half(q), s, -n), fmaf(high_half(q), s, -n));
    }
    DEVICE void dequantise(const Fragment& f, int step, u32 (&a)[4]) {
        Bytes::raw(f.codes, step, a);
        const U4& s = f.scale[step / 2];
        float low = __uint_as_float(s.x), high = __uint_as_float(s.y);
        float low_min = __uint_as_float(s.z), high_min = __uint_as_float(s.w);
        a[0] = element_pair(a[0], low, low_min);
        a[1] = element_pair(a[1], high, high_min);
        a[2] = element_pair(a[2], low, low_min);
        a[3] = element_pair(a[3], high, high_min);
    }
};

struct F16 {
    static constexpr bool RAW = false, HAS_MIN = false;
    static constexpr int CODES = 2048, BYTES = CODES;
    static constexpr float BIAS_LOW = 0, BIAS_HIGH = 0, FACTOR_HIGH = 1;
    struct Fragment {
        U4 step[4];
    };
    DEVICE Fragment load(const u8* p, int lane) {
        Fragment f;
#pragma unroll
        for (int i = 0; i < 4; i++) f.step[i] = load_once((const U4*)p + 32 * i + lane);
        return f;
    }
    DEVICE Fragment none() {
        return Fragment{{{0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}};
    }
    DEVICE void raw(const Fragment&, int, u32 (&)[4]) {}
    DEVICE void scales(const Fragment&, int, float&, float&) {}
    DEVICE void minima(const Fragment&, int, float&, float&) {}
    DEVICE void dequantise(const Fragment& f, int step, u32 (&a)[4]) {
        const U4& s = f.step[step];
        a[0] = s.x, a[1] = s.y, a[2] = s.z, a[3] = s.w;
    }
};

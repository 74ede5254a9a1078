// Weights in fragments: what `kernels::pack::fragment` lays out, read back. A fragment is 16 rows by 64 columns; lane
// 4g + t of a warp reads the codes of rows g and g + 8, and multiplies them in four steps.
//
// Each format says:
//   BYTES            of a fragment
//   Fragment         a lane's part of one, in registers
//   load(p, lane)    of the fragment at p
//   none()           one that counts for nothing
//   dequantise(f, step, a)   a step's numbers as f16, ready to multiply
//   AS_READ          whether those are the registers that were read
//   AS_BYTES         whether its codes can be multiplied as bytes (bytes, and scales of a lane's block)
// and, where its codes can be multiplied as they are (RAW), with the scale applied to the sums of 32 columns:
//   raw(f, step, a)  codes as f16: BIAS_LOW + code in row g, BIAS_HIGH + FACTOR_HIGH * code in row g + 8
//   scales(f, block, low, high)   of the two rows, HIGH's divided by FACTOR_HIGH
//   minima(f, block, low, high)   what is added for each unit of the sum of activations; where HAS_MIN
//
// A format of integers is made of codes and scales, as the packing is.

// An f16 whose bits are 0x6400 | n is 1024 + n, for n below 1024: integers become floats by an `or`.
#define MAGIC 0x64006400u

DEVICE U4 zeros() { return U4{0, 0, 0, 0}; }
DEVICE u32 part_of(const U4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Both halves: the f16 in the low or the high half of a word.
DEVICE u32 both_low(u32 v) { return permute(v, 0, 0x1010); }
DEVICE u32 both_high(u32 v) { return permute(v, 0, 0x3232); }
DEVICE u32 both(float v) { return floats_to_half2(v, v); }

// Byte I of a word as a float, by the same trick.
template <int I>
DEVICE float byte_to_float(u32 v) {
    return __uint_as_float(permute(v, 0x4b000000u, 0x7440 + I)) - 8388608.f;
}

// Codes: of BITS each, the part above four in words of its own.
template <int BITS>
struct Codes {
    // Whether they become bytes at once, and which byte of four has column I of four.
    static constexpr bool AS_BYTES = BITS == 4;
    DEVICE int place(int i) { return i == 1 ? 2 : i == 2 ? 1 : i; }
    static_assert(BITS == 4 || BITS == 5 || BITS == 6, "others have no nibbles");
    static constexpr int BYTES = BITS * 128;
    // The nibbles of row g + 8 are taken 4 bits higher.
    static constexpr int FACTOR_HIGH = 16;
    U4 nibbles;
    u32 high[2];
    DEVICE Codes load(const u8* p, int lane) {
        Codes c;
        c.nibbles = load_once((const U4*)p + lane);
        if (BITS == 5) c.high[0] = load_once((const u32*)(p + 512) + lane);
        if (BITS == 6) {
            U2 h = load_once((const U2*)(p + 512) + lane);
            c.high[0] = h.x, c.high[1] = h.y;
        }
        return c;
    }
    DEVICE Codes none() { return Codes{zeros(), {0, 0}}; }
    // Of a block of 32: FACTOR_HIGH times the code in row g + 8.
    DEVICE void bytes(const Codes& c, int block, u32 (&a)[4]) {
        const u32 w = part_of(c.nibbles, 2 * block), v = part_of(c.nibbles, 2 * block + 1);
        a[0] = w & 0x0f0f0f0f, a[1] = w & 0xf0f0f0f0, a[2] = v & 0x0f0f0f0f, a[3] = v & 0xf0f0f0f0;
    }
    // The bits of register R of a step above its nibbles' four, which are at bit TO.
    template <int R>
    DEVICE u32 above(const Codes& c, int step) {
        constexpr int TO = R % 2 ? 8 : 4;
        if (BITS == 4) return 0;
        const u32 h = BITS == 5 ? c.high[0] : c.high[step / 2];
        const int from = BITS == 5 ? 4 * step + R : 8 * (step % 2) + 2 * R;
        const u32 mask = (BITS == 5 ? 0x00010001u : 0x00030003u) << TO;
        return (from >= TO ? h >> (from - TO) : h << (TO - from)) & mask;
    }
    DEVICE void raw(const Codes& c, int step, u32 (&a)[4]) {
        u32 w = part_of(c.nibbles, step), v = w >> 8;
        a[0] = and_or(w, 0x000f000f, MAGIC) | above<0>(c, step);
        a[1] = and_or(w, 0x00f000f0, MAGIC) | above<1>(c, step);
        a[2] = and_or(v, 0x000f000f, MAGIC) | above<2>(c, step);
        a[3] = and_or(v, 0x00f000f0, MAGIC) | above<3>(c, step);
    }
};

// Codes of a byte.
template <>
struct Codes<8> {
    static constexpr bool AS_BYTES = true;
    DEVICE int place(int i) { return i; }
    DEVICE void bytes(const Codes& c, int block, u32 (&a)[4]) {
        const U4& w = c.words[block];
        a[0] = w.x, a[1] = w.y, a[2] = w.z, a[3] = w.w;
    }
    static constexpr int BYTES = 1024, FACTOR_HIGH = 1;
    U4 words[2];
    DEVICE Codes load(const u8* p, int lane) {
        return Codes{{load_once((const U4*)p + lane), load_once((const U4*)p + 32 + lane)}};
    }
    DEVICE Codes none() { return Codes{{zeros(), zeros()}}; }
    DEVICE void raw(const Codes& c, int step, u32 (&a)[4]) {
        const U4& w = c.words[step / 2];
        u32 low = step % 2 ? w.z : w.x, high = step % 2 ? w.w : w.y;
        a[0] = permute(low, MAGIC, 0x5150);
        a[1] = permute(high, MAGIC, 0x5150);
        a[2] = permute(low, MAGIC, 0x5352);
        a[3] = permute(high, MAGIC, 0x5352);
    }
};

// Scales: of rows g and g + 8, `halves` as pairs of two equal f16, `floats` as they are. Where there are minima, those
// likewise; they are added.

// An f16 for each block of 32; with MIN, a minimum too.
template <bool MIN>
struct Blocks {
    static constexpr bool HAS_MIN = MIN, RAW = true;
    static constexpr int BYTES = MIN ? 128 : 64;
    u32 scale[2], minimum[2];
    DEVICE Blocks load(const u8* p, int lane) {
        Blocks s;
        if (MIN) {
            U4 v = load_once((const U4*)p + (lane >> 2));
            s.scale[0] = v.x, s.minimum[0] = v.y, s.scale[1] = v.z, s.minimum[1] = v.w;
        } else {
            U2 v = load_once((const U2*)p + (lane >> 2));
            s.scale[0] = v.x, s.scale[1] = v.y;
        }
        return s;
    }
    DEVICE Blocks none() { return Blocks{{0, 0}, {0, 0}}; }
    // Of one block: the first for even lanes, the second for odd ones.
    struct Lane {
        u32 scale, minimum;
        DEVICE Lane load(const u8* p, int lane) {
            const int at = (lane >> 2) * 2 + (lane & 1);
            if (!MIN) return Lane{load_once((const u32*)p + at), 0};
            const U2 v = load_once((const U2*)p + at);
            return Lane{v.x, v.y};
        }
        DEVICE Lane none() { return Lane{0, 0}; }
        DEVICE void floats(const Lane& s, float& low, float& high) { low = low_half(s.scale), high = high_half(s.scale); }
        DEVICE void minima(const Lane& s, float& low, float& high) { low = low_half(s.minimum), high = high_half(s.minimum); }
    };
    DEVICE void halves(const Blocks& s, int block, u32& low, u32& high) {
        low = both_low(s.scale[block]), high = both_high(s.scale[block]);
    }
    DEVICE void floats(const Blocks& s, int block, float& low, float& high) {
        low = low_half(s.scale[block]), high = high_half(s.scale[block]);
    }
    DEVICE void minimum_halves(const Blocks& s, int block, u32& low, u32& high) {
        low = both_low(s.minimum[block]), high = both_high(s.minimum[block]);
    }
    DEVICE void minimum_floats(const Blocks& s, int block, float& low, float& high) {
        low = low_half(s.minimum[block]), high = high_half(s.minimum[block]);
    }
};

// Two f16 for 256 columns, and of each block of 32 two integers that multiply them. Codes are taken less OFFSET, their middle:
// a minimum that is near that many units is rounded to f16 after they are added.
template <int OFFSET>
struct Super {
    static constexpr bool HAS_MIN = true, RAW = true;
    static constexpr int BYTES = 128;
    U4 v;
    DEVICE Super load(const u8* p, int lane) { return Super{load_once((const U4*)p + (lane >> 2))}; }
    DEVICE Super none() { return Super{zeros()}; }
    // Of one block: the first for even lanes, the second for odd ones.
    struct Lane {
        U4 v;
        DEVICE Lane load(const u8* p, int lane) {
            Lane l{load_once((const U4*)p + (lane >> 2))};
            l.v.z >>= 16 * (lane & 1), l.v.w >>= 16 * (lane & 1);
            return l;
        }
        DEVICE Lane none() { return Lane{zeros()}; }
        DEVICE void floats(const Lane& l, float& low, float& high) { Super::floats(Super{l.v}, 0, low, high); }
        DEVICE void minima(const Lane& l, float& low, float& high) { Super::minimum_floats(Super{l.v}, 0, low, high); }
    };
    DEVICE void floats(const Super& s, int block, float& low, float& high) {
        low = low_half(s.v.x) * (block ? byte_to_float<2>(s.v.z) : byte_to_float<0>(s.v.z));
        high = low_half(s.v.y) * (block ? byte_to_float<2>(s.v.w) : byte_to_float<0>(s.v.w));
    }
    DEVICE void minimum_floats(const Super& s, int block, float& low, float& high) {
        float l, h;
        floats(s, block, l, h);
        low = l * OFFSET - high_half(s.v.x) * (block ? byte_to_float<3>(s.v.z) : byte_to_float<1>(s.v.z));
        high = h * OFFSET - high_half(s.v.y) * (block ? byte_to_float<3>(s.v.w) : byte_to_float<1>(s.v.w));
    }
    DEVICE void halves(const Super& s, int block, u32& low, u32& high) {
        float l, h;
        floats(s, block, l, h);
        low = both(l), high = both(h);
    }
    DEVICE void minimum_halves(const Super& s, int block, u32& low, u32& high) {
        float l, h;
        minimum_floats(s, block, l, h);
        low = both(l), high = both(h);
    }
};

// The same of each part of 16, of which a lane has one in each block: the low and the high half of a byte.
struct PartsMin {
    static constexpr bool HAS_MIN = true, RAW = false;
    static constexpr int BYTES = 128;
    U4 v;
    DEVICE PartsMin load(const u8* p, int lane) {
        PartsMin s{load_once((const U4*)p + (lane >> 2))};
        // Columns 8t .. 8t + 8 of a block lie in its first 16 for t below 2.
        const int shift = (lane & 2) * 4;
        s.v.z >>= shift, s.v.w >>= shift;
        return s;
    }
    DEVICE PartsMin none() { return PartsMin{zeros()}; }
    DEVICE void halves(const PartsMin& s, int block, u32& low, u32& high) {
        u32 z = s.v.z & 0x000f000f, w = s.v.w & 0x000f000f;
        low = both(low_half(s.v.x) * (block ? byte_to_float<2>(z) : byte_to_float<0>(z)));
        high = both(low_half(s.v.y) * (block ? byte_to_float<2>(w) : byte_to_float<0>(w)));
    }
    DEVICE void minimum_halves(const PartsMin& s, int block, u32& low, u32& high) {
        u32 z = s.v.z >> 4 & 0x000f000f, w = s.v.w >> 4 & 0x000f000f;
        low = both(-high_half(s.v.x) * (block ? byte_to_float<2>(z) : byte_to_float<0>(z)));
        high = both(-high_half(s.v.y) * (block ? byte_to_float<2>(w) : byte_to_float<0>(w)));
    }
};

// An f16 for 256 columns, and of each part of 16 an integer that multiplies it, plus 128.
struct Parts {
    static constexpr bool HAS_MIN = false, RAW = false;
    static constexpr int BYTES = 96;
    u32 low, high, d;
    DEVICE Parts load(const u8* p, int lane) {
        U2 v = load_once((const U2*)p + (lane >> 2));
        const int shift = (lane & 2) * 4;
        return Parts{v.x >> shift, v.y >> shift, load_once((const u32*)(p + 64) + (lane >> 2))};
    }
    // Codes of nothing are multiplied with zero.
    DEVICE Parts none() { return Parts{0, 0, 0}; }
    DEVICE void halves(const Parts& s, int block, u32& low, u32& high) {
        low = both(low_half(s.d) * ((block ? byte_to_float<2>(s.low) : byte_to_float<0>(s.low)) - 128.f));
        high = both(high_half(s.d) * ((block ? byte_to_float<2>(s.high) : byte_to_float<0>(s.high)) - 128.f));
    }
};

// Integers less OFFSET, times a scale.
template <int BITS, int OFFSET, class Scale>
struct Packed {
    using C = Codes<BITS>;
    using S = Scale;
    static constexpr bool RAW = S::RAW, HAS_MIN = S::HAS_MIN, AS_READ = false, AS_BYTES = RAW && C::AS_BYTES;
    static constexpr float OFF = OFFSET;
    static constexpr int BYTES = C::BYTES + S::BYTES;
    static constexpr float FACTOR_HIGH = C::FACTOR_HIGH;
    static constexpr float BIAS_LOW = 1024.f + OFFSET, BIAS_HIGH = 1024.f + FACTOR_HIGH * OFFSET;
    struct Fragment {
        C codes;
        S scales;
    };
    DEVICE Fragment load(const u8* p, int lane) {
        Fragment f;
        f.codes = C::load(p, lane);
        f.scales = S::load(p + C::BYTES, lane);
        return f;
    }
    DEVICE Fragment none() { return Fragment{C::none(), S::none()}; }
    DEVICE void raw(const Fragment& f, int step, u32 (&a)[4]) { C::raw(f.codes, step, a); }
    DEVICE void scales(const Fragment& f, int block, float& low, float& high) {
        if constexpr (RAW) {
            S::floats(f.scales, block, low, high);
            high *= 1.f / FACTOR_HIGH;
        }
    }
    DEVICE void minima(const Fragment& f, int block, float& low, float& high) {
        if constexpr (RAW && HAS_MIN) S::minimum_floats(f.scales, block, low, high);
    }
    // 1024 + code - (1024 + OFFSET), and (1024 + 16 code) / 16 - (64 + OFFSET): exact.
    DEVICE u32 low_codes(u32 a) { return half2_sub(a, MAGIC + OFFSET * 0x00010001u); }
    DEVICE u32 high_codes(u32 a) {
        if (C::FACTOR_HIGH == 1) return low_codes(a);
        return half2_fma(a, 0x2c002c00u, 0xd400d400u + OFFSET * 0x00100010u);
    }
    DEVICE void dequantise(const Fragment& f, int step, u32 (&a)[4]) {
        raw(f, step, a);
        u32 low, high;
        S::halves(f.scales, step / 2, low, high);
        a[0] = low_codes(a[0]), a[1] = high_codes(a[1]);
        a[2] = low_codes(a[2]), a[3] = high_codes(a[3]);
        if constexpr (HAS_MIN) {
            u32 m, n;
            S::minimum_halves(f.scales, step / 2, m, n);
            a[0] = half2_fma(a[0], low, m), a[1] = half2_fma(a[1], high, n);
            a[2] = half2_fma(a[2], low, m), a[3] = half2_fma(a[3], high, n);
        } else {
            a[0] = half2_mul(a[0], low), a[1] = half2_mul(a[1], high);
            a[2] = half2_mul(a[2], low), a[3] = half2_mul(a[3], high);
        }
    }
};
using Q4_0 = Packed<4, 8, Blocks<false>>;
using Q4_1 = Packed<4, 0, Blocks<true>>;
using Q5_0 = Packed<5, 16, Blocks<false>>;
using Q5_1 = Packed<5, 0, Blocks<true>>;
using Q8_0 = Packed<8, 128, Blocks<false>>;
using Q2_K = Packed<4, 0, PartsMin>;
using Q3_K = Packed<4, 4, Parts>;
using Q4_K = Packed<4, 8, Super<8>>;
using Q5_K = Packed<5, 16, Super<16>>;
using Q6_K = Packed<6, 32, Parts>;
using IQ4_XS = Packed<8, 128, Parts>;

// Integers of a byte with an f32 factor and minimum for each 16 columns, for factors that are no f16.
struct Wide {
    static constexpr bool RAW = false, HAS_MIN = true, AS_READ = false, AS_BYTES = false;
    static constexpr int BYTES = 1024 + 512;
    static constexpr float BIAS_LOW = 0, BIAS_HIGH = 0, FACTOR_HIGH = 1;
    struct Fragment {
        Codes<8> codes;
        // Of each block of 32, the lane's 16 columns: factors of rows g and g + 8, then minima.
        U4 scale[2];
    };
    DEVICE Fragment load(const u8* p, int lane) {
        Fragment f;
        f.codes = Codes<8>::load(p, lane);
        // Columns 8t .. 8t + 8 of a block lie in its first 16 for t below 2.
        const U4* s = (const U4*)(p + 1024) + (lane >> 2) * 4 + (lane >> 1 & 1);
        f.scale[0] = load_once(s);
        f.scale[1] = load_once(s + 2);
        return f;
    }
    DEVICE Fragment none() { return Fragment{Codes<8>::none(), {zeros(), zeros()}}; }
    DEVICE void raw(const Fragment&, int, u32 (&)[4]) {}
    DEVICE void scales(const Fragment&, int, float&, float&) {}
    DEVICE void minima(const Fragment&, int, float&, float&) {}
    DEVICE u32 element_pair(u32 codes, float s, float n) {
        u32 q = half2_sub(codes, 0x64806480u);
        return floats_to_half2(fmaf(low_half(q), s, -n), fmaf(high_half(q), s, -n));
    }
    DEVICE void dequantise(const Fragment& f, int step, u32 (&a)[4]) {
        Codes<8>::raw(f.codes, step, a);
        const U4& s = f.scale[step / 2];
        float low = __uint_as_float(s.x), high = __uint_as_float(s.y);
        float low_min = __uint_as_float(s.z), high_min = __uint_as_float(s.w);
        a[0] = element_pair(a[0], low, low_min);
        a[1] = element_pair(a[1], high, high_min);
        a[2] = element_pair(a[2], low, low_min);
        a[3] = element_pair(a[3], high, high_min);
    }
};

// Numbers of 16 bits: f16, or with BRAIN bf16, which becomes the nearest f16.
template <bool BRAIN>
struct Numbers {
    static constexpr bool RAW = false, HAS_MIN = false, AS_READ = !BRAIN, AS_BYTES = false;
    static constexpr int BYTES = 2048;
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
    DEVICE Fragment none() { return Fragment{{zeros(), zeros(), zeros(), zeros()}}; }
    DEVICE void raw(const Fragment&, int, u32 (&)[4]) {}
    DEVICE void scales(const Fragment&, int, float&, float&) {}
    DEVICE void minima(const Fragment&, int, float&, float&) {}
    DEVICE void dequantise(const Fragment& f, int step, u32 (&a)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 v = part_of(f.step[step], i);
            a[i] = BRAIN ? floats_to_half2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u)) : v;
        }
    }
};
using F16 = Numbers<false>;
using BF16 = Numbers<true>;

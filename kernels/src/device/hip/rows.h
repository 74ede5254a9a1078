// Weights in fragments (fragment.cuh), as RDNA's matrix instruction takes them: lane l of a wavefront has 16 columns of row
// l % 16, and so has lane l + 16 the same ones. A fragment of 64 columns makes four such steps: step t takes the 8 columns
// that begin at 8 t in each of its blocks of 32, which is what lane 4 g + t has of rows g and g + 8 in memory. So a lane
// reads that lane's 16 bytes and takes its own row's half of them; the other half of the wavefront reads the same bytes,
// which cost it the first cache alone.
//
// Rows<F> says:
//   Part, load(p, g, t, high)    what step t is made of, of the fragment at p
//   Scales, load_scales(p, g)    and what all of its steps share; then of_row(scales, high) once, high being row / 8
//   dequantise(part, scales, t, high, a)     a step's 16 numbers as f16, in the order of columns

template <class F>
struct Rows;

// Codes above MAGIC: 1024 + code, two columns a register.
template <int BITS>
struct RowCodes {
    U4 nibbles;
    u32 above;
    DEVICE RowCodes load(const u8* p, u32 slot, u32 high) {
        RowCodes c;
        c.nibbles = *((const U4*)p + slot);
        c.above = 0;
        if (BITS == 5) c.above = ((const u32*)(p + 512))[slot];
        return c;
    }
    DEVICE void raw(const RowCodes& c, u32 high, u32 (&a)[8]) {
        const u32 above = c.above >> high;
#pragma unroll
        for (int step = 0; step < 4; step++) {
            const u32 w = part_of(c.nibbles, step) >> 4 * high;
            a[2 * step] = and_or(w, 0x000f000f, MAGIC);
            a[2 * step + 1] = and_or(w >> 8, 0x000f000f, MAGIC);
            if (BITS == 5) {
                const int at = 4 * step;
                a[2 * step] = and_or(at < 4 ? above << (4 - at) : above >> (at - 4), 0x00100010, a[2 * step]);
                a[2 * step + 1] = and_or(at < 2 ? above << (2 - at) : above >> (at - 2), 0x00100010, a[2 * step + 1]);
            }
        }
    }
};
template <>
struct RowCodes<6> {
    U4 nibbles;
    U2 above;
    DEVICE RowCodes load(const u8* p, u32 slot, u32 high) {
        return RowCodes{*((const U4*)p + slot), *((const U2*)(p + 512) + slot)};
    }
    DEVICE void raw(const RowCodes& c, u32 high, u32 (&a)[8]) {
#pragma unroll
        for (int step = 0; step < 4; step++) {
            const u32 w = part_of(c.nibbles, step) >> 4 * high, h = (step < 2 ? c.above.x : c.above.y) >> 2 * high;
            a[2 * step] = and_or(w, 0x000f000f, MAGIC);
            a[2 * step + 1] = and_or(w >> 8, 0x000f000f, MAGIC);
            a[2 * step] = and_or(step % 2 ? h >> 4 : h << 4, 0x00300030, a[2 * step]);
            a[2 * step + 1] = and_or(step % 2 ? h >> 8 : h, 0x00300030, a[2 * step + 1]);
        }
    }
};
// Where a row's numbers are whole words, only those are read.
template <>
struct RowCodes<8> {
    u32 words[4];
    DEVICE RowCodes load(const u8* p, u32 slot, u32 high) {
        const u32* at = (const u32*)p + 4 * slot + high;
        return RowCodes{{at[0], at[2], at[128], at[130]}};
    }
    DEVICE void raw(const RowCodes& c, u32, u32 (&a)[8]) {
#pragma unroll
        for (int step = 0; step < 4; step++) {
            a[2 * step] = permute(c.words[step], MAGIC, 0x5150);
            a[2 * step + 1] = permute(c.words[step], MAGIC, 0x5352);
        }
    }
};

// The scales of row g + 8 in the place of row g's, for lanes that have that one.
template <bool MIN>
DEVICE Blocks<MIN> of_row(Blocks<MIN> s, u32 high) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        s.scale[i] >>= 16 * high;
        if (MIN) s.minimum[i] >>= 16 * high;
    }
    return s;
}
template <int OFFSET>
DEVICE Super<OFFSET> of_row(Super<OFFSET> s, u32 high) {
    s.v.x = high ? s.v.y : s.v.x, s.v.z = high ? s.v.w : s.v.z;
    return s;
}
DEVICE PartsMin of_row(PartsMin s, u32 high) {
    s.v.x = high ? s.v.y : s.v.x, s.v.z = high ? s.v.w : s.v.z;
    return s;
}
DEVICE Parts of_row(Parts s, u32 high) {
    s.low = high ? s.high : s.low, s.d >>= 16 * high;
    return s;
}
// Those of the second 16 columns of each block, where parts of 16 have their own.
template <class S>
DEVICE S second_part(S s) {
    return s;
}
DEVICE PartsMin second_part(PartsMin s) {
    s.v.z >>= 8;
    return s;
}
DEVICE Parts second_part(Parts s) {
    s.low >>= 8;
    return s;
}

template <int BITS, int OFFSET, class S>
struct Rows<Packed<BITS, OFFSET, S>> {
    using F = Packed<BITS, OFFSET, S>;
    using Part = RowCodes<BITS>;
    using Scales = S;
    DEVICE Part load(const u8* p, u32 g, int t, u32 high) { return Part::load(p, 4 * g + t, high); }
    DEVICE Scales load_scales(const u8* p, u32 g) { return S::load(p + F::C::BYTES, 4 * g); }
    DEVICE Scales of_row(const Scales& s, u32 high) { return ::of_row(s, high); }
    DEVICE void dequantise(const Part& part, const Scales& scales, int t, u32 high, u32 (&a)[8]) {
        Part::raw(part, high, a);
        const Scales s = t < 2 ? scales : second_part(scales);
#pragma unroll
        for (int block = 0; block < 2; block++) {
            u32 scale, minimum = 0, unused;
            S::halves(s, block, scale, unused);
            if constexpr (F::HAS_MIN) S::minimum_halves(s, block, minimum, unused);
#pragma unroll
            for (int i = 4 * block; i < 4 * block + 4; i++) {
                a[i] = F::low_codes(a[i]);
                if constexpr (F::HAS_MIN)
                    a[i] = half2_fma(a[i], scale, minimum);
                else
                    a[i] = half2_mul(a[i], scale);
            }
        }
    }
};

template <>
struct Rows<Wide> {
    using Part = RowCodes<8>;
    // Of the four parts of 16 columns: factors of rows g and g + 8, then minima.
    struct Scales {
        U4 part[4];
    };
    DEVICE Part load(const u8* p, u32 g, int t, u32 high) { return Part::load(p, 4 * g + t, high); }
    DEVICE Scales load_scales(const u8* p, u32 g) {
        Scales s;
#pragma unroll
        for (int i = 0; i < 4; i++) s.part[i] = *((const U4*)(p + 1024) + 4 * g + i);
        return s;
    }
    DEVICE Scales of_row(Scales s, u32 high) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s.part[i].x = high ? s.part[i].y : s.part[i].x;
            s.part[i].z = high ? s.part[i].w : s.part[i].z;
        }
        return s;
    }
    DEVICE void dequantise(const Part& part, const Scales& scales, int t, u32 high, u32 (&a)[8]) {
        Part::raw(part, high, a);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const U4 s = scales.part[2 * (i / 4) + t / 2];
            a[i] = Wide::element_pair(a[i], __uint_as_float(s.x), __uint_as_float(s.z));
        }
    }
};

template <bool BRAIN>
struct Rows<Numbers<BRAIN>> {
    struct Part {
        u32 words[8];
    };
    struct Scales {};
    DEVICE Part load(const u8* p, u32 g, int t, u32 high) {
        Part f;
        const u32* at = (const u32*)p + 4 * (4 * g + t) + high;
#pragma unroll
        for (int i = 0; i < 8; i++) f.words[i] = at[128 * (i / 2) + 2 * (i % 2)];
        return f;
    }
    DEVICE Scales load_scales(const u8*, u32) { return Scales{}; }
    DEVICE Scales of_row(const Scales& s, u32) { return s; }
    DEVICE void dequantise(const Part& part, const Scales&, int, u32, u32 (&a)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 v = part.words[i];
            a[i] = BRAIN ? floats_to_half2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u)) : v;
        }
    }
};

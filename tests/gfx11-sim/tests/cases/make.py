#!/usr/bin/env python3
"""Writes cases.txt: what single instructions do, by the pseudo-code of AMD's "RDNA3.5 Instruction Set Architecture" reference
guide, written down again here in exact arithmetic (integers and fractions), with nothing of the simulator.

  python3 make.py > cases.txt

A line is a case: instructions, inputs, outputs, separated by |. Registers and memory hold hexadecimal words; a list is one
for each lane, whose last one stands for all that follow, or one for each dword. `nan` stands for any NaN. `mem` is a piece of global
memory whose address is in s[20:21] and in v[20:21] of every lane; `lds` is the start of LDS.
"""
import struct
from fractions import Fraction as F

LANES = 32
MASK = 0xffffffff
INF, NAN = 'inf', 'nan'


# ---- floats, exactly -------------------------------------------------------------------------------------------------
class Format:
    """A binary format of IEEE 754: bits of the exponent and of the fraction."""

    def __init__(self, exponent, fraction):
        self.e, self.f = exponent, fraction
        self.bias = (1 << exponent - 1) - 1
        self.sign = 1 << exponent + fraction
        self.inf = ((1 << exponent) - 1) << fraction
        self.quiet = 1 << fraction - 1

    def is_nan(self, x):
        return x & ~self.sign > self.inf

    def is_signalling(self, x):
        return self.is_nan(x) and not x & self.quiet

    def value(self, x):
        """A finite number's value."""
        sign = -1 if x & self.sign else 1
        exponent, fraction = (x & self.inf) >> self.f, x & ((1 << self.f) - 1)
        if exponent:
            fraction |= 1 << self.f
        return sign * F(fraction) * F(2) ** (max(exponent, 1) - self.bias - self.f)

    def is_inf(self, x):
        return x & ~self.sign == self.inf

    def round(self, v, negative_zero=False):
        """The nearest number, to even where two are."""
        if v == 0:
            return self.sign if negative_zero else 0
        sign, v = (self.sign if v < 0 else 0), abs(v)
        exponent = 1 - self.bias
        while v >= F(2) ** (exponent + 1):
            exponent += 1
        scaled = v / F(2) ** (exponent - self.f)
        whole = scaled.numerator // scaled.denominator
        rest = scaled - whole
        if rest > F(1, 2) or rest == F(1, 2) and whole & 1:
            whole += 1
        # A fraction below 2^f is a denormal; a carry goes into the exponent.
        bits = whole + ((exponent - 1 + self.bias) << self.f)
        return sign | min(bits, self.inf)


F16, F32, F64, BF16 = Format(5, 10), Format(8, 23), Format(11, 52), Format(8, 7)


def f(x):
    return struct.unpack('<I', struct.pack('<f', x))[0]


def h(x):
    return struct.unpack('<H', struct.pack('<e', x))[0]


def d(x):
    return struct.unpack('<Q', struct.pack('<d', x))[0]


def fma(t, a, b, c):
    """a * b + c, rounded once."""
    if any(map(t.is_nan, (a, b, c))):
        return NAN
    sign = (a ^ b) & t.sign
    if t.is_inf(a) or t.is_inf(b):
        if t.value(a) == 0 and not t.is_inf(a) or t.value(b) == 0 and not t.is_inf(b):
            return NAN
        if t.is_inf(c) and c & t.sign != sign:
            return NAN
        return t.inf | sign
    if t.is_inf(c):
        return c
    product = t.value(a) * t.value(b)
    total = product + t.value(c)
    return t.round(total, total == 0 and bool(c & t.sign) and (product < 0 or product == 0 and bool(sign)))


def add(t, a, b):
    return fma(t, a, t.round(F(1)), b)


def mul(t, a, b):
    if any(map(t.is_nan, (a, b))):
        return NAN
    sign = (a ^ b) & t.sign
    if t.is_inf(a) or t.is_inf(b):
        zero = [not t.is_inf(x) and t.value(x) == 0 for x in (a, b)]
        return NAN if any(zero) else t.inf | sign
    return t.round(t.value(a) * t.value(b), bool(sign))


def neg(t, a):
    return a ^ t.sign


def order(t, x):
    """As integers order like numbers, with -0 below +0."""
    return -(x & ~t.sign) - 1 if x & t.sign else x


def minimum(t, a, b, most=False):
    for x in (a, b):
        if t.is_signalling(x):
            return x | t.quiet
    if t.is_nan(b):
        return a
    if t.is_nan(a):
        return b
    pick = max if most else min
    return pick(a, b, key=lambda x: order(t, x))


def maximum(t, a, b):
    return minimum(t, a, b, True)


def integral(t, a, how):
    """Rounded to a whole number: 'trunc', 'floor', 'ceil', 'even'."""
    if t.is_nan(a):
        return NAN
    if t.is_inf(a):
        return a
    v = t.value(a)
    floor = v.numerator // v.denominator
    if how == 'trunc':
        whole = floor if v >= 0 or v == floor else floor + 1
    elif how == 'floor':
        whole = floor
    elif how == 'ceil':
        whole = floor if v == floor else floor + 1
    else:
        rest = v - floor
        whole = floor + (rest > F(1, 2) or rest == F(1, 2) and floor & 1)
    return t.round(F(whole), bool(a & t.sign))


def to_integer(t, a, low, high):
    """Truncated and saturated; NaN is zero."""
    if t.is_nan(a):
        return 0
    if t.is_inf(a):
        return low if a & t.sign else high
    v = t.value(a)
    whole = abs(v).numerator // abs(v).denominator * (-1 if v < 0 else 1)
    return max(low, min(high, whole))


def widen(a, frm, to):
    if frm.is_nan(a):
        return NAN
    if frm.is_inf(a):
        return to.inf | (to.sign if a & frm.sign else 0)
    return to.round(frm.value(a), bool(a & frm.sign))


def i32(x):
    return (x & MASK) - (1 << 32 if x & 1 << 31 else 0)


def i64(x):
    x &= (1 << 64) - 1
    return x - (1 << 64 if x >> 63 else 0)


def i16(x):
    return (x & 0xffff) - (1 << 16 if x & 1 << 15 else 0)


# ---- lines -----------------------------------------------------------------------------------------------------------
def word(x):
    return x if isinstance(x, str) else f'{x & MASK:x}'


def words(values, lanes):
    values = [word(x) for x in values]
    while lanes and len(values) > 1 and values[-1] == values[-2]:
        values.pop()
    return ','.join(values)


def fill(values):
    values = list(values)
    return values + [values[-1]] * (LANES - len(values))


def case(text, inputs, outputs):
    def side(pairs):
        return ' '.join(f'{name}={words(v if isinstance(v, (list, tuple)) else [v], name[0] == "v")}' for name, v in pairs.items())
    print(f'{text} | {side(inputs)} | {side(outputs)}'.rstrip())


def pairs64(name, values):
    """A 64-bit list as two registers: {vN: low, vN+1: high}."""
    n = int(name[1:])
    return {f'{name[0]}{n}': [v & MASK if v != NAN else NAN for v in values],
            f'{name[0]}{n + 1}': [v >> 32 & MASK if v != NAN else NAN for v in values]}


def unary(op, fn, a, mods='', dst='v0'):
    case(f'{op} {dst}, v1{mods}', {'v1': a}, {dst: [fn(x) for x in a]})


def binary(op, fn, a, b, text=None):
    case(text or f'{op} v0, v1, v2', {'v1': a, 'v2': b}, {'v0': [fn(x, y) for x, y in zip(fill(a), fill(b))]})


def ternary(op, fn, a, b, c, text=None):
    a, b, c = fill(a), fill(b), fill(c)
    case(text or f'{op} v0, v1, v2, v3', {'v1': a, 'v2': b, 'v3': c}, {'v0': [fn(*x) for x in zip(a, b, c)]})


def cross(values, others=None):
    """Every pair, 32 at most."""
    others = values if others is None else others
    both = [(a, b) for a in values for b in others]
    step = max(1, -(-len(both) // LANES))
    both = both[::step][:LANES]
    return [a for a, _ in both], [b for _, b in both]


# Ones of each kind: zeros, ordinary ones, ties, the ends, denormals, infinities, NaNs.
FS = [f(0.0), f(-0.0), f(1.0), f(-1.5), f(3.25), 0x33800000, 0x3f800001, 0x7f7fffff, 0xff7fffff, 0x00800000, 0x00000001,
      0x807fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001]
NUMBERS = [x for x in FS if not F32.is_nan(x)]
HS = [h(0.0), h(-0.0), h(1.0), h(-1.5), h(3.25), 0x1000, 0x3c01, 0x7bff, 0xfbff, 0x0400, 0x0001, 0x83ff, 0x7c00, 0xfc00, 0x7e00]
US = [0, 1, 2, 31, 32, 33, 0x7fffffff, 0x80000000, 0x80000001, 0xfffffffe, 0xffffffff, 0x00ffffff, 0x01000000, 0x12345678,
      0xdeadbeef, 0xff00ff00]
U64 = [0, 1, 0xffffffff, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 0x123456789abcdef0]


def vector_f32():
    a, b = cross(FS)
    a2, b2 = cross(NUMBERS, NUMBERS[::-1])
    for op, fn in [('v_add_f32', lambda x, y: add(F32, x, y)), ('v_sub_f32', lambda x, y: add(F32, x, neg(F32, y))),
                   ('v_subrev_f32', lambda x, y: add(F32, y, neg(F32, x))), ('v_mul_f32', lambda x, y: mul(F32, x, y))]:
        binary(op, fn, a, b)
        binary(op, fn, a2, b2)
    for op, fn in [('v_min_f32', lambda x, y: minimum(F32, x, y)), ('v_max_f32', lambda x, y: maximum(F32, x, y))]:
        binary(op, fn, a, b)
        binary(op, fn, b2, a2)
        binary(op, fn, [0x7f800001, 0x7fc00000, f(1), f(1), f(0.0), f(-0.0)], [f(1), f(1), 0x7f800001, 0x7fc00000, f(-0.0), f(0.0)])
    # The difference of the once and the twice rounded: a product of 48 bits, then a sum that meets its last one.
    x, y, z = [0x3f800001, f(3), 0x7f7fffff, f(0), f(-0.0), 0x7f800000, f(1)], [0x3f7fffff, f(1 / 3), f(2), f(-1), f(1), f(1), f(2)], \
        [0xbf800000, f(-1), 0xff7fffff, f(0), f(-0.0), 0xff800000, f(0.5)]
    ternary('v_fma_f32', lambda p, q, r: fma(F32, p, q, r), x, y, z)
    ternary('v_fma_f32', lambda p, q, r: fma(F32, neg(F32, p), q & ~F32.sign, r), x, y, z, 'v_fma_f32 v0, -v1, |v2|, v3')
    case('v_fmac_f32 v0, v1, v2', {'v0': z, 'v1': x, 'v2': y}, {'v0': [fma(F32, p, q, r) for p, q, r in zip(x, y, z)]})
    k = f(-0.75)
    binary('v_fmamk_f32', lambda p, q: fma(F32, p, k, q), x, z, f'v_fmamk_f32 v0, v1, 0x{k:x}, v2')
    binary('v_fmaak_f32', lambda p, q: fma(F32, p, q, k), x, y, f'v_fmaak_f32 v0, v1, v2, 0x{k:x}')
    ternary('v_max3_f32', lambda p, q, r: maximum(F32, maximum(F32, p, q), r), a, b, a2)
    ternary('v_min3_f32', lambda p, q, r: minimum(F32, minimum(F32, p, q), r), a2, b2, b2[::-1])
    ternary('v_med3_f32', lambda p, q, r: sorted((p, q, r), key=lambda n: order(F32, n))[1],
            [f(1), f(2), f(3), f(-1)], [f(2), f(3), f(1), f(5)], [f(3), f(1), f(2), f(0)])
    # Clamping: into 0..1, NaN to 0.
    def clamp(x):
        return 0 if x == NAN or F32.is_nan(x) else max(0, min(f(1), x)) if not x & F32.sign else 0
    binary('v_add_f32', lambda p, q: clamp(add(F32, p, q)), a, b, 'v_add_f32_e64 v0, v1, v2 clamp')
    wholes = [f(2.5), f(3.5), f(-2.5), f(-0.25), f(0.5), f(-1.5), f(8388607.5), f(1e30), 0x7f800000, 0xff800000, f(-0.0), 0x7fc00000]
    for op, how in [('v_trunc_f32', 'trunc'), ('v_floor_f32', 'floor'), ('v_ceil_f32', 'ceil'), ('v_rndne_f32', 'even')]:
        unary(op, lambda x, how=how: integral(F32, x, how), wholes)
    # Where the result is exact, and what the flushing of denormals makes of the rest.
    unary('v_rcp_f32', {f(2): f(0.5), f(-4): f(-0.25), f(0.0): 0x7f800000, f(-0.0): 0xff800000, 0x7f800000: 0, 0xff800000: f(-0.0),
                        0x00000001: 0x7f800000, 0x7fc00000: NAN, f(2.0 ** 127): 0}.get,
          [f(2), f(-4), f(0.0), f(-0.0), 0x7f800000, 0xff800000, 1, 0x7fc00000, f(2.0 ** 127)])
    unary('v_rcp_iflag_f32', {f(2): f(0.5), f(0.0): 0x7f800000, f(2.0 ** 32): f(2.0 ** -32)}.get, [f(2), f(0.0), f(2.0 ** 32)])
    unary('v_sqrt_f32', {f(4): f(2), f(2.25): f(1.5), f(0.0): 0, f(-0.0): f(-0.0), f(-1): NAN, 0x7f800000: 0x7f800000}.get,
          [f(4), f(2.25), f(0.0), f(-0.0), f(-1), 0x7f800000])
    unary('v_rsq_f32', {f(4): f(0.5), f(0.25): f(2), f(0.0): 0x7f800000, f(-0.0): 0xff800000, 0x7f800000: 0, f(-1): NAN}.get,
          [f(4), f(0.25), f(0.0), f(-0.0), 0x7f800000, f(-1)])
    unary('v_exp_f32', {f(0.0): f(1), f(-1): f(0.5), f(10): f(1024), f(128): 0x7f800000, f(-127): 0, 0xff800000: 0,
                        0x7f800000: 0x7f800000, 0x7fc00000: NAN}.get,
          [f(0.0), f(-1), f(10), f(128), f(-127), 0xff800000, 0x7f800000, 0x7fc00000])
    unary('v_log_f32', {f(1): 0, f(8): f(3), f(0.0): 0xff800000, f(-1): NAN, 0x7f800000: 0x7f800000, 1: 0xff800000}.get,
          [f(1), f(8), f(0.0), f(-1), 0x7f800000, 1])
    unary('v_fract_f32', {f(1.25): f(0.25), f(-1.25): f(0.75), f(2): 0, f(-2.0 ** -30): 0x3f7fffff}.get,
          [f(1.25), f(-1.25), f(2), f(-2.0 ** -30)])
    unary('v_frexp_mant_f32', {f(6): f(0.75), f(-1): f(-0.5), 1: f(0.5), f(0.0): 0}.get, [f(6), f(-1), 1, f(0.0)])
    unary('v_frexp_exp_i32_f32', {f(6): 3, f(-1): 1, 1: -148, f(0.0): 0, 0x7f800000: 0}.get, [f(6), f(-1), 1, f(0.0), 0x7f800000])
    binary('v_ldexp_f32', lambda x, n: F32.round(F32.value(x) * F(2) ** i32(n), bool(x & F32.sign)),
           [f(1), f(1), f(-1.5), 0x3f800003, 0x7f7fffff], [3, (-149) & MASK, (-150) & MASK, (-148) & MASK, 1])
    division()


def division():
    """What scales, corrects and finishes a quotient."""
    def exponent(x):
        return x >> 23 & 0xff

    def denormal(x):
        return exponent(x) == 0 and x & 0x7fffff

    def tiny(v):
        return 0 < abs(v) < F(2) ** -126

    def scale(s0, s1, s2):
        v1, v2 = F32.value(s1), F32.value(s2)
        up, down = (lambda x: F32.round(F32.value(x) * F(2) ** 64)), (lambda x: F32.round(F32.value(x) / F(2) ** 64))
        if v1 == 0 or v2 == 0:
            return NAN, 0
        if exponent(s2) - exponent(s1) >= 96:
            return (up(s0) if s0 == s1 else s0), 1
        if denormal(s1):
            return up(s0), 0
        if tiny(1 / v1) and tiny(v2 / v1):
            return (up(s0) if s0 == s1 else s0), 1
        if tiny(1 / v1):
            return down(s0), 0
        if tiny(v2 / v1):
            return (up(s0) if s0 == s2 else s0), 1
        if exponent(s2) <= 23:
            return up(s0), 0
        return s0, 0
    rows = [(f(3), f(3), f(2)), (f(2), f(3), f(2)), (1, 1, f(1)), (f(1), 1, f(1)), (f(2.0 ** 127), f(2.0 ** 127), f(2.0 ** 80)),
            (f(2.0 ** 80), f(2.0 ** 127), f(2.0 ** 80)), (f(2.0 ** -40), f(2.0 ** -40), f(2.0 ** 80)), (f(2.0 ** 80), f(2.0 ** -40), f(2.0 ** 80)),
            (f(2.0 ** -120), f(2.0 ** 20), f(2.0 ** -120)), (f(2.0 ** 20), f(2.0 ** 20), f(2.0 ** -120)),
            (f(2.0 ** -110), f(2.0 ** -110), f(2.0 ** -110)), (f(0.0), f(1), f(0.0)), (f(1), f(0.0), f(1))]
    done = [scale(*row) for row in rows]
    mask = sum(bit << i for i, (_, bit) in enumerate(done)) | sum(done[-1][1] << i for i in range(len(rows), LANES))
    case('v_div_scale_f32 v0, vcc_lo, v1, v2, v3', dict(zip(('v1', 'v2', 'v3'), map(list, zip(*rows)))),
         {'v0': [x for x, _ in done], 'vcc': mask})
    # The addend's exponent says in which direction the quotient had been moved.
    def fmas(a, b, c, vcc):
        v = F32.value(a) * F32.value(b) + F32.value(c)
        if vcc:
            v *= F(2) ** (64 if exponent(c) > 127 else -64)
        return F32.round(v)
    a, b, c = [f(3), f(3), f(3), f(1.5)], [f(0.5), f(0.5), f(2.0 ** 70), f(2)], [f(2), f(0.5), f(2.0 ** 60), f(0.25)]
    case('v_div_fmas_f32 v0, v1, v2, v3', {'v1': a, 'v2': b, 'v3': c, 'vcc': 0x0000000b},
         {'v0': [fmas(*x, 0xb >> i & 1) for i, x in enumerate(zip(*map(fill, (a, b, c))))]})
    # quotient, denominator, numerator
    rows = [((f(1.5), f(2), f(3)), f(1.5)), ((f(-1.5), f(2), f(3)), f(1.5)), ((f(1), f(-2), f(3)), f(-1)), ((f(1), f(0.0), f(0.0)), NAN),
            ((f(1), 0x7f800000, 0xff800000), NAN), ((f(1), f(-0.0), f(3)), 0xff800000), ((f(1), f(2), 0xff800000), 0xff800000),
            ((f(1), 0xff800000, f(3)), f(-0.0)), ((f(1), f(2), f(-0.0)), f(-0.0)), ((f(1), 0x7fc00000, f(1)), NAN), ((f(1), f(1), 0x7fc00000), NAN)]
    case('v_div_fixup_f32 v0, v1, v2, v3', {f'v{i + 1}': [row[0][i] for row in rows] for i in range(3)}, {'v0': [row[1] for row in rows]})


def conversions():
    unary('v_cvt_u32_f32', lambda x: to_integer(F32, x, 0, MASK), FS + [f(4294967040.0), f(4.5e9), f(2.9)])
    unary('v_cvt_i32_f32', lambda x: to_integer(F32, x, -1 << 31, (1 << 31) - 1), FS + [f(2147483520.0), f(-3e9), f(-2.9)])
    unary('v_cvt_f32_u32', lambda x: F32.round(F(x)), US + [0x01000001, 0x01000003, 0xffffff7f, 0xffffff80])
    unary('v_cvt_f32_i32', lambda x: F32.round(F(i32(x))), US + [0x01000001, 0xfeffffff, 0xfefffffd])
    for i in range(4):
        unary(f'v_cvt_f32_ubyte{i}', lambda x, i=i: f(x >> 8 * i & 0xff), US)
    unary('v_cvt_f32_f16', lambda x: widen(x & 0xffff, F16, F32), [x | 0xabcd0000 for x in HS])
    halves = FS + [f(65504.0), f(65519.0), f(65520.0), 0x33000000, 0x33000001, 0x32ffffff, f(1 + 2 ** -11), f(1 + 3 * 2 ** -11), f(2 ** -14 - 2 ** -25)]
    def half(x):
        return 'nan16' if F32.is_nan(x) else widen(x, F32, F16)
    case('v_cvt_f16_f32 v0, v1', {'v0': 0x56780000, 'v1': halves}, {'v0': ['nan16' if half(x) == 'nan16' else 0x56780000 | half(x) for x in halves]})
    a = NUMBERS
    case('v_cvt_f64_f32 v[0:1], v2', {'v2': a}, pairs64('v0', [widen(x, F32, F64) for x in a]))
    case('v_cvt_f64_u32 v[0:1], v2', {'v2': US}, pairs64('v0', [d(x) for x in US]))
    wide = [d(0.0), d(1.5), d(-1.0), d(4294967295.0), d(4294967296.0), d(1e300), F64.inf, F64.inf | F64.sign, 0x7ff8000000000000]
    case('v_cvt_u32_f64 v0, v[2:3]', pairs64('v2', wide), {'v0': [to_integer(F64, x, 0, MASK) for x in wide]})
    def packed(op, fn, a, b):
        binary(op, fn, a, b)
    packed('v_pack_b32_f16', lambda x, y: x & 0xffff | (y & 0xffff) << 16, [0x11113c00, 0x22220001], [0x3333bc00, 0x44447bff])
    def toward_zero(x):
        n = widen(x, F32, F16)
        return n - 1 if abs(F16.value(n) if not F16.is_inf(n) else F(10) ** 9) > abs(F32.value(x)) else n
    packed('v_cvt_pk_rtz_f16_f32', lambda x, y: toward_zero(x) | toward_zero(y) << 16, [f(1 + 2 ** -11 + 2 ** -12), f(-3.0), f(65519.0)],
           [f(-1 - 2 ** -10 + 2 ** -13), f(0.1), f(2 ** -25)])


def vector_f64():
    def lanes(op, fn, *operands):
        regs, names = {}, []
        for i, values in enumerate(operands):
            regs.update(pairs64(f'v{2 + 2 * i}', values))
            names.append(f'v[{2 + 2 * i}:{3 + 2 * i}]')
        case(f'{op} v[0:1], ' + ', '.join(names), regs, pairs64('v0', [fn(*x) for x in zip(*operands)]))
    a = [d(1.0), d(-1.5), d(1e300), d(0.1), d(0.0), F64.inf, 1]
    b = [d(2.0 ** -53), d(3.0), d(1e10), d(0.2), d(-0.0), d(1.0), d(0.5)]
    c = [d(-1.0), d(4.5), d(-1e300), d(0.3), d(-0.0), d(1.0), 1]
    lanes('v_add_f64', lambda x, y: add(F64, x, y), a, b)
    lanes('v_mul_f64', lambda x, y: mul(F64, x, y), a, b)
    lanes('v_fma_f64', lambda x, y, z: fma(F64, x, y, z), a, b, c)
    wholes = [d(2.5), d(-2.5), d(-0.25), d(0.75), d(1e300), F64.inf, d(-0.0)]
    for op, how in [('v_trunc_f64', 'trunc'), ('v_floor_f64', 'floor'), ('v_ceil_f64', 'ceil'), ('v_rndne_f64', 'even')]:
        lanes(op, lambda x, how=how: integral(F64, x, how), wholes)
    n = [3, -3, 1, -1100]
    x = [d(1.5), d(1.5), d(-1e10), d(3.0)]
    case('v_ldexp_f64 v[0:1], v[2:3], v4', {**pairs64('v2', x), 'v4': [i & MASK for i in n]},
         pairs64('v0', [F64.round(F64.value(v) * F(2) ** i, bool(v & F64.sign)) for v, i in zip(x, n)]))


def vector_integers():
    a, b = cross(US)
    c = US[::-1] + US
    plain = {
        'v_add_nc_u32': lambda x, y: x + y, 'v_sub_nc_u32': lambda x, y: x - y, 'v_subrev_nc_u32': lambda x, y: y - x,
        'v_and_b32': lambda x, y: x & y, 'v_or_b32': lambda x, y: x | y, 'v_xor_b32': lambda x, y: x ^ y,
        'v_xnor_b32': lambda x, y: ~(x ^ y), 'v_lshlrev_b32': lambda x, y: y << (x & 31), 'v_lshrrev_b32': lambda x, y: y >> (x & 31),
        'v_ashrrev_i32': lambda x, y: i32(y) >> (x & 31), 'v_mul_lo_u32': lambda x, y: x * y, 'v_mul_hi_u32': lambda x, y: x * y >> 32,
        'v_mul_hi_i32': lambda x, y: i32(x) * i32(y) >> 32, 'v_mul_u32_u24': lambda x, y: (x & 0xffffff) * (y & 0xffffff),
        'v_mul_hi_u32_u24': lambda x, y: (x & 0xffffff) * (y & 0xffffff) >> 32,
        'v_mul_i32_i24': lambda x, y: (i32(x << 8) >> 8) * (i32(y << 8) >> 8),
        'v_mul_hi_i32_i24': lambda x, y: (i32(x << 8) >> 8) * (i32(y << 8) >> 8) >> 32,
        'v_min_u32': min, 'v_max_u32': max, 'v_min_i32': lambda x, y: min(i32(x), i32(y)), 'v_max_i32': lambda x, y: max(i32(x), i32(y)),
        'v_bfm_b32': lambda x, y: ((1 << (x & 31)) - 1) << (y & 31), 'v_bcnt_u32_b32': lambda x, y: bin(x).count('1') + y,
    }
    for op, fn in plain.items():
        binary(op, fn, a, b)
    binary('v_add_nc_u32', lambda x, y: min(x + y, MASK), a, b, 'v_add_nc_u32_e64 v0, v1, v2 clamp')
    binary('v_sub_nc_u32', lambda x, y: max(x - y, 0), a, b, 'v_sub_nc_u32_e64 v0, v1, v2 clamp')
    binary('v_add_nc_i32', lambda x, y: max(-1 << 31, min((1 << 31) - 1, i32(x) + i32(y))), a, b, 'v_add_nc_i32 v0, v1, v2 clamp')
    def perm(s0, s1, select):
        data, out = s0 << 32 | s1, 0
        for i in range(4):
            n = select >> 8 * i & 0xff
            if n >= 13:
                byte = 0xff
            elif n == 12:
                byte = 0
            elif n >= 8:
                byte = 0xff * (data >> (16 * (n - 8) + 15) & 1)
            else:
                byte = data >> 8 * n & 0xff
            out |= byte << 8 * i
        return out
    three = {
        'v_and_or_b32': lambda x, y, z: x & y | z, 'v_or3_b32': lambda x, y, z: x | y | z, 'v_lshl_or_b32': lambda x, y, z: x << (y & 31) | z,
        'v_lshl_add_u32': lambda x, y, z: (x << (y & 31)) + z, 'v_add_lshl_u32': lambda x, y, z: (x + y & MASK) << (z & 31),
        'v_add3_u32': lambda x, y, z: x + y + z, 'v_xad_u32': lambda x, y, z: (x ^ y) + z, 'v_xor3_b32': lambda x, y, z: x ^ y ^ z,
        'v_mad_u32_u24': lambda x, y, z: (x & 0xffffff) * (y & 0xffffff) + z,
        'v_mad_i32_i24': lambda x, y, z: (i32(x << 8) >> 8) * (i32(y << 8) >> 8) + z,
        'v_bfe_u32': lambda x, y, z: x >> (y & 31) & (1 << (z & 31)) - 1,
        'v_bfe_i32': lambda x, y, z: (lambda n, v: 0 if n == 0 else v - (1 << n if v >> n - 1 & 1 else 0))(z & 31, x >> (y & 31) & (1 << (z & 31)) - 1),
        'v_bfi_b32': lambda x, y, z: x & y | ~x & z, 'v_alignbit_b32': lambda x, y, z: (x << 32 | y) >> (z & 31),
        'v_alignbyte_b32': lambda x, y, z: (x << 32 | y) >> 8 * (z & 3),
        'v_min3_u32': lambda x, y, z: min(x, y, z), 'v_max3_u32': lambda x, y, z: max(x, y, z),
        'v_min3_i32': lambda x, y, z: min(map(i32, (x, y, z))), 'v_max3_i32': lambda x, y, z: max(map(i32, (x, y, z))),
        'v_med3_i32': lambda x, y, z: sorted(map(i32, (x, y, z)))[1],
        'v_med3_u32': lambda x, y, z: sorted((x, y, z))[1],
        'v_minmax_u32': lambda x, y, z: max(min(x, y), z), 'v_maxmin_u32': lambda x, y, z: min(max(x, y), z),
        'v_minmax_i32': lambda x, y, z: max(min(i32(x), i32(y)), i32(z)), 'v_maxmin_i32': lambda x, y, z: min(max(i32(x), i32(y)), i32(z)),
    }
    for op, fn in three.items():
        ternary(op, fn, a, b, c)
        ternary(op, fn, [0x12345678, 0xdeadbeef, 0x80000000], [4, 8, 31], [5, 0, 1])
    ternary('v_perm_b32', perm, [0x80112233, 0xffeeddcc, 0x12345678, 0], [0x44558677, 0xbbaa9988, 0x9abcdef0, MASK],
            [0x07060504, 0x03020100, 0x080c0d09, 0x0b0a0a01])
    ternary('v_perm_b32', perm, a, b, [0x05040100] * 32)
    # Of 16 bits: the upper half of the result's register stays.
    halves = {
        'v_lshlrev_b16': lambda x, y: y << (x & 15), 'v_lshrrev_b16': lambda x, y: (y & 0xffff) >> (x & 15),
        'v_ashrrev_i16': lambda x, y: i16(y) >> (x & 15), 'v_mul_lo_u16': lambda x, y: x * y,
        'v_add_nc_u16': lambda x, y: x + y, 'v_sub_nc_u16': lambda x, y: x - y,
        'v_min_u16': lambda x, y: min(x & 0xffff, y & 0xffff), 'v_max_u16': lambda x, y: max(x & 0xffff, y & 0xffff),
        'v_min_i16': lambda x, y: min(i16(x), i16(y)), 'v_max_i16': lambda x, y: max(i16(x), i16(y)),
    }
    for op, fn in halves.items():
        case(f'{op} v0, v1, v2', {'v0': 0xabcd1234, 'v1': a, 'v2': b}, {'v0': [0xabcd0000 | fn(x, y) & 0xffff for x, y in zip(a, b)]})
    unary('v_not_b32', lambda x: ~x, US)
    unary('v_mov_b32', lambda x: x, US)
    unary('v_bfrev_b32', lambda x: int(f'{x:032b}'[::-1], 2), US)
    unary('v_clz_i32_u32', lambda x: 32 - x.bit_length() if x else MASK, US)
    unary('v_ctz_i32_b32', lambda x: (x & -x).bit_length() - 1 if x else MASK, US)
    case('v_mov_b32 v0, 0x12345678', {}, {'v0': 0x12345678})
    case('v_mov_b32 v0, -16', {}, {'v0': -16})
    case('v_mov_b32 v0, 0.5', {}, {'v0': f(0.5)})
    case('v_mov_b32 v0, v1', {'v0': 7, 'v1': 9, 'exec': 0x0000ff01}, {'v0': [9 if 0xff01 >> i & 1 else 7 for i in range(32)]})
    case('v_cndmask_b32 v0, v1, v2, vcc_lo', {'v1': 1, 'v2': 2, 'vcc': 0xf0f00f0f}, {'v0': [1 + (0xf0f00f0f >> i & 1) for i in range(32)]})
    case('v_cndmask_b32 v0, -v1, |v2|, s4', {'v1': f(1), 'v2': f(-2), 's4': 0x3}, {'v0': [f(2), f(2), f(-1)]})
    for op, fn in [('v_lshlrev_b64', lambda n, x: x << (n & 63)), ('v_lshrrev_b64', lambda n, x: x >> (n & 63)),
                   ('v_ashrrev_i64', lambda n, x: i64(x) >> (n & 63))]:
        n, x = cross([0, 1, 31, 33, 63, 64], U64[1:6])
        case(f'{op} v[0:1], v2, v[4:5]', {'v2': n, **pairs64('v4', x)}, pairs64('v0', [fn(i, y) & (1 << 64) - 1 for i, y in zip(n, x)]))
    carries()


def carries():
    a, b = cross(US[6:])
    def out(bits):
        bits = fill(bits)
        return sum(int(x) << i for i, x in enumerate(bits))
    case('v_add_co_u32 v0, vcc_lo, v1, v2', {'v1': a, 'v2': b}, {'v0': [x + y for x, y in zip(a, b)], 'vcc': out([x + y > MASK for x, y in zip(a, b)])})
    case('v_sub_co_u32 v0, vcc_lo, v1, v2', {'v1': a, 'v2': b}, {'v0': [x - y for x, y in zip(a, b)], 'vcc': out([x < y for x, y in zip(a, b)])})
    case('v_subrev_co_u32 v0, s4, v1, v2', {'v1': a, 'v2': b}, {'v0': [y - x for x, y in zip(a, b)], 's4': out([y < x for x, y in zip(a, b)])})
    carry = 0xa5a5c3c3
    bit = [carry >> i & 1 for i in range(32)]
    a, b = fill(a), fill(b)
    case('v_add_co_ci_u32 v0, vcc_lo, v1, v2, vcc_lo', {'v1': a, 'v2': b, 'vcc': carry},
         {'v0': [x + y + c for x, y, c in zip(a, b, bit)], 'vcc': out([x + y + c > MASK for x, y, c in zip(a, b, bit)])})
    case('v_add_co_ci_u32 v0, s5, v1, v2, s4', {'v1': a, 'v2': b, 's4': carry},
         {'v0': [x + y + c for x, y, c in zip(a, b, bit)], 's5': out([x + y + c > MASK for x, y, c in zip(a, b, bit)])})
    case('v_sub_co_ci_u32 v0, vcc_lo, v1, v2, vcc_lo', {'v1': a, 'v2': b, 'vcc': carry},
         {'v0': [x - y - c for x, y, c in zip(a, b, bit)], 'vcc': out([x < y + c for x, y, c in zip(a, b, bit)])})
    case('v_subrev_co_ci_u32 v0, vcc_lo, v1, v2, vcc_lo', {'v1': a, 'v2': b, 'vcc': carry},
         {'v0': [y - x - c for x, y, c in zip(a, b, bit)], 'vcc': out([y < x + c for x, y, c in zip(a, b, bit)])})
    # Inactive lanes carry nothing.
    case('v_add_co_u32 v0, vcc_lo, v1, v2', {'v1': MASK, 'v2': 1, 'exec': 0xff, 'vcc': MASK}, {'v0': [0] * 8, 'vcc': 0xff})
    x, y, z = [MASK, 0x80000000, 5, MASK], [MASK, 2, 7, MASK], [(1 << 64) - 1, 1, 0, 1 << 63]
    full = (1 << 64) - 1
    case('v_mad_u64_u32 v[0:1], vcc_lo, v2, v3, v[4:5]', {'v2': x, 'v3': y, **pairs64('v4', z)},
         {**pairs64('v0', [p * q + r & full for p, q, r in zip(x, y, z)]), 'vcc': out([p * q + r > full for p, q, r in zip(x, y, z)])})
    case('v_mad_i64_i32 v[0:1], null, v2, v3, v[4:5]', {'v2': x, 'v3': y, **pairs64('v4', z)},
         pairs64('v0', [i32(p) * i32(q) + r & full for p, q, r in zip(x, y, z)]))


def comparisons():
    def mask(bits):
        return sum(int(x) << i for i, x in enumerate(fill(bits)))
    tests = {'lt': lambda x, y: x < y, 'eq': lambda x, y: x == y, 'le': lambda x, y: x <= y, 'gt': lambda x, y: x > y,
             'ne': lambda x, y: x != y, 'ge': lambda x, y: x >= y}
    a, b = cross(US)
    for ty, view in [('u32', lambda x: x), ('i32', i32)]:
        for name, test in tests.items():
            want = mask([test(view(x), view(y)) for x, y in zip(a, b)])
            case(f'v_cmp_{name}_{ty} vcc_lo, v1, v2', {'v1': a, 'v2': b}, {'vcc': want})
            case(f'v_cmp_{name}_{ty} s4, v1, v2', {'v1': a, 'v2': b, 'exec': 0x0ff0ffff}, {'s4': want & 0x0ff0ffff})
            case(f'v_cmpx_{name}_{ty} v1, v2', {'v1': a, 'v2': b, 'exec': 0x0ff0ffff}, {'exec': want & 0x0ff0ffff})
    for ty, view in [('u16', lambda x: x & 0xffff), ('i16', i16)]:
        for name, test in tests.items():
            want = mask([test(view(x), view(y)) for x, y in zip(a, b)])
            case(f'v_cmp_{name}_{ty} vcc_lo, v1, v2', {'v1': a, 'v2': b}, {'vcc': want})
    a, b = cross(U64)
    for ty, view in [('u64', lambda x: x), ('i64', i64)]:
        for name, test in tests.items():
            want = mask([test(view(x), view(y)) for x, y in zip(a, b)])
            regs = {**pairs64('v2', a), **pairs64('v4', b)}
            case(f'v_cmp_{name}_{ty} vcc_lo, v[2:3], v[4:5]', regs, {'vcc': want})
            case(f'v_cmpx_{name}_{ty} v[2:3], v[4:5]', regs, {'exec': want})
    a, b = cross([f(0.0), f(-0.0), f(1), f(-1), 0x7f800000, 0x7fc00000, 1])
    def floats(test):
        def of(x, y):
            if F32.is_nan(x) or F32.is_nan(y):
                return None
            v = [order(F32, n) if F32.value(n) or F32.is_inf(n) else 0 for n in (x, y)]
            return test(*v)
        return of
    names = {**{n: t for n, t in tests.items() if n != 'ne'}, 'lg': tests['ne']}
    for name, test in names.items():
        found = [floats(test)(x, y) for x, y in zip(a, b)]
        case(f'v_cmp_{name}_f32 vcc_lo, v1, v2', {'v1': a, 'v2': b}, {'vcc': mask([bool(x) for x in found])})
        case(f'v_cmpx_{name}_f32 v1, v2', {'v1': a, 'v2': b}, {'exec': mask([bool(x) for x in found])})
        case(f'v_cmp_n{name}_f32 vcc_lo, v1, v2', {'v1': a, 'v2': b}, {'vcc': mask([not x for x in found])})
        case(f'v_cmpx_n{name}_f32 v1, v2', {'v1': a, 'v2': b}, {'exec': mask([not x for x in found])})
    ordered = [not F32.is_nan(x) and not F32.is_nan(y) for x, y in zip(a, b)]
    case('v_cmp_o_f32 vcc_lo, v1, v2', {'v1': a, 'v2': b}, {'vcc': mask(ordered)})
    case('v_cmp_u_f32 vcc_lo, v1, v2', {'v1': a, 'v2': b}, {'vcc': mask([not x for x in ordered])})
    # One bit a class: signalling and quiet NaN, -inf, -normal, -denormal, -0, +0, +denormal, +normal, +inf.
    classes = [0x7f800001, 0x7fc00000, 0xff800000, f(-1), 0x80000001, f(-0.0), f(0.0), 1, f(1), 0x7f800000]
    for bits in [1 << i for i in range(10)] + [0x3ff, 0x204]:
        case('v_cmp_class_f32 vcc_lo, v1, v2', {'v1': classes, 'v2': bits}, {'vcc': mask([bits >> i & 1 for i in range(10)])})


def halves():
    a, b = cross([x for x in HS if not F16.is_nan(x)])
    both = [x | y << 16 for x, y in zip(a, b[::-1])]
    other = [y | x << 16 for x, y in zip(a, b)]
    third = both[::-1]
    def pk(fn, *operands):
        def lane(*x):
            low, high = fn(*[n & 0xffff for n in x]), fn(*[n >> 16 for n in x])
            return NAN if NAN in (low, high) else low | high << 16
        return [lane(*x) for x in zip(*operands)]
    def keep(fn, op, *operands):
        """Lanes without a NaN."""
        results = pk(fn, *operands)
        good = [i for i, x in enumerate(results) if x != NAN]
        regs = {f'v{n + 1}': [operand[i] for i in good] for n, operand in enumerate(operands)}
        case(f'{op} v0, ' + ', '.join(regs), regs, {'v0': [results[i] for i in good]})
    keep(lambda x, y: add(F16, x, y), 'v_pk_add_f16', both, other)
    keep(lambda x, y: mul(F16, x, y), 'v_pk_mul_f16', both, other)
    keep(lambda x, y, z: fma(F16, x, y, z), 'v_pk_fma_f16', both, other, third)
    keep(lambda x, y: minimum(F16, x, y), 'v_pk_min_f16', both, other)
    keep(lambda x, y: maximum(F16, x, y), 'v_pk_max_f16', both, other)
    case('v_pk_fma_f16 v0, v1, v2, v3 op_sel:[1,0,0] op_sel_hi:[0,1,1] neg_lo:[0,1,0] neg_hi:[0,0,1]',
         {'v1': h(2) | h(3) << 16, 'v2': h(5) | h(7) << 16, 'v3': h(1) | h(-11) << 16}, {'v0': h(3 * -5 + 1) | h(2 * 7 + 11) << 16})
    case('v_pk_mul_f16 v0, v1, 2.0 op_sel_hi:[1,0]', {'v1': h(2) | h(3) << 16}, {'v0': h(4) | h(6) << 16})
    # Exact sums: the order of rounding is not published.
    case('v_dot2acc_f32_f16 v0, v1, v2', {'v0': [f(0.5), f(100)], 'v1': [h(1.5) | h(-2) << 16, h(0.25) | h(8) << 16], 'v2': [h(4) | h(3) << 16, h(-4) | h(0.5) << 16]},
         {'v0': [f(0.5), f(103)]})
    case('v_dot2_f32_f16 v0, v1, v2, v3', {'v3': [f(0.5), f(100)], 'v1': [h(1.5) | h(-2) << 16, h(0.25) | h(8) << 16], 'v2': [h(4) | h(3) << 16, h(-4) | h(0.5) << 16]},
         {'v0': [f(0.5), f(103)]})
    mixed = {'v1': h(1.5) | h(-2.5) << 16, 'v2': f(3.0), 'v3': h(0.25) | h(8) << 16}
    case('v_fma_mix_f32 v0, v1, v2, v3 op_sel_hi:[1,0,1]', mixed, {'v0': f(4.75)})
    case('v_fma_mix_f32 v0, v1, -v2, |v3| op_sel:[1,0,1] op_sel_hi:[1,0,1]', mixed, {'v0': f(15.5)})
    case('v_fma_mixlo_f16 v0, v1, v2, v3 op_sel_hi:[1,0,1]', {**mixed, 'v0': 0xabcd1234}, {'v0': 0xabcd0000 | h(4.75)})
    case('v_fma_mixhi_f16 v0, v1, v2, v3 op_sel_hi:[1,0,1]', {**mixed, 'v0': 0xabcd1234}, {'v0': 0x1234 | h(4.75) << 16})
    dots()


def dots():
    a, b, c = [0x01020304, 0x80ff7f01, 0xffffffff, 0x80808080], [0x05060708, 0x7f80ff02, 0xffffffff, 0x80808080], [10, 0xfffffff0, 0x7fffffff, 0x7fffffff]
    def byte(x, i, bits, signed):
        n = x >> bits * i & (1 << bits) - 1
        return n - (1 << bits) if signed and n >> bits - 1 else n
    for signed in range(4):
        s = (signed & 1, signed >> 1)
        neg_lo = f' neg_lo:[{s[0]},{s[1]},0]' if signed else ''
        for name, bits in [('v_dot4_i32_iu8', 8), ('v_dot8_i32_iu4', 4)]:
            sums = [sum(byte(x, i, bits, s[0]) * byte(y, i, bits, s[1]) for i in range(32 // bits)) + i32(z) for x, y, z in zip(a, b, c)]
            regs = {'v1': a, 'v2': b, 'v3': c}
            case(f'{name} v0, v1, v2, v3{neg_lo}', regs, {'v0': sums})
            case(f'{name} v0, v1, v2, v3{neg_lo} clamp', regs, {'v0': [max(-1 << 31, min((1 << 31) - 1, x)) for x in sums]})
    for name, bits in [('v_dot4_u32_u8', 8), ('v_dot8_u32_u4', 4)]:
        sums = [sum(byte(x, i, bits, 0) * byte(y, i, bits, 0) for i in range(32 // bits)) + z for x, y, z in zip(a, b, c)]
        case(f'{name} v0, v1, v2, v3', {'v1': a, 'v2': b, 'v3': c}, {'v0': sums})


def matrices():
    """Lane l has row l % 16 of A and column l % 16 of B; register v of C and D is row 2 v + l / 16, column l % 16."""
    def number(i, j, seed):
        return (i * 7 + j * 3 + seed * (i ^ j)) % 11 - 5
    def lanes(element, per, bits):
        """Registers of a factor: element(l, k) packed `per` to a register."""
        return [[sum((element(l % 16, r * per + i) & (1 << bits) - 1) << bits * i for i in range(per)) for l in range(32)] for r in range(16 // per)]
    def result(fn):
        return {f'v{v}': [fn(2 * v + l // 16, l % 16) for l in range(32)] for v in range(8)}
    A, B, C = (lambda i, k: number(i, k, 1)), (lambda j, k: number(k, j, 2)), (lambda i, j: number(i, j, 5))
    D = lambda i, j: sum(A(i, k) * B(j, k) for k in range(16)) + C(i, j)
    c = result(lambda i, j: f(float(C(i, j))))
    for name, bits in [('f16', lambda x: h(float(x))), ('bf16', lambda x: f(float(x)) >> 16)]:
        regs = dict(c)
        for first, element in [(8, A), (16, B)]:
            for r, values in enumerate(lanes(lambda l, k: bits(element(l, k)), 2, 16)):
                regs[f'v{first + r}'] = values
        case(f'v_wmma_f32_16x16x16_{name} v[0:7], v[8:15], v[16:23], v[0:7]', regs, result(lambda i, j: f(float(D(i, j)))))
    c = result(lambda i, j: C(i, j))
    for name, bits in [('iu8', 8), ('iu4', 4)]:
        per, n = 32 // bits, 16 * bits // 32
        regs = dict(c)
        small = (lambda x: max(-8, min(7, x)))
        for first, element in [(8, A), (16, B)]:
            for r, values in enumerate(lanes(element, per, bits)):
                regs[f'v{first + r}'] = values
        case(f'v_wmma_i32_16x16x16_{name} v[0:7], v[8:{7 + n}], v[16:{15 + n}], v[0:7] neg_lo:[1,1,0]', regs, result(D))
        unsigned = lambda i, j: sum(A(i, k) % (1 << bits) * (B(j, k) % (1 << bits)) for k in range(16)) + C(i, j)
        case(f'v_wmma_i32_16x16x16_{name} v[0:7], v[8:{7 + n}], v[16:{15 + n}], v[0:7]', regs, result(unsigned))


def crossing():
    """Lanes that take from others."""
    x = [100 + i for i in range(32)]
    old = [1000 + i for i in range(32)]
    def dpp(control, source, text='', bound=False, rows=0xf, banks=0xf):
        out = []
        for i in range(32):
            j = source(i)
            if not rows >> i // 16 & 1 or not banks >> i % 16 // 4 & 1:
                out.append(old[i])
            elif j is None:
                out.append(0 if bound else old[i])
            else:
                out.append(x[j])
        tail = f' row_mask:0x{rows:x} bank_mask:0x{banks:x}' + (' bound_ctrl:1' if bound else '')
        case(f'v_mov_b32_dpp v0, v1 {control}{tail}', {'v0': old, 'v1': x}, {'v0': out})
    row = lambda i: i & ~15
    quad = [2, 0, 3, 1]
    dpp('quad_perm:[2,0,3,1]', lambda i: i & ~3 | quad[i & 3])
    dpp('quad_perm:[1,0,3,2]', lambda i: i ^ 1, rows=0x1, banks=0x6)
    dpp('row_shl:3', lambda i: i + 3 if i % 16 + 3 < 16 else None)
    dpp('row_shl:1', lambda i: i + 1 if i % 16 + 1 < 16 else None, bound=True)
    dpp('row_shr:2', lambda i: i - 2 if i % 16 >= 2 else None)
    dpp('row_shr:8', lambda i: i - 8 if i % 16 >= 8 else None, bound=True)
    dpp('row_ror:5', lambda i: row(i) | (i - 5) % 16)
    dpp('row_mirror', lambda i: row(i) | 15 - i % 16)
    dpp('row_half_mirror', lambda i: i & ~7 | 7 - i % 8)
    dpp('row_share:6', lambda i: row(i) | 6)
    dpp('row_xmask:9', lambda i: i ^ 9)
    case('v_mov_b32_dpp v0, v1 dpp8:[7,6,5,4,3,2,1,0]', {'v0': old, 'v1': x}, {'v0': [100 + (i ^ 7) for i in range(32)]})
    case('v_add_f32_dpp v0, v1, v2 row_xmask:1 row_mask:0xf bank_mask:0xf', {'v1': [f(i) for i in range(32)], 'v2': [f(10 * i) for i in range(32)]},
         {'v0': [f(float((i ^ 1) + 10 * i)) for i in range(32)]})
    # Lane 4 is inactive: who takes from it is left alone, or reads zero.
    case('v_mov_b32_dpp v0, v1 row_shl:1 row_mask:0xf bank_mask:0xf', {'v0': old, 'v1': x, 'exec': MASK ^ 1 << 4},
         {'v0': [old[i] if i in (3, 4) or i % 16 == 15 else x[i + 1] for i in range(32)]})
    case('v_mov_b32_dpp v0, v1 row_shl:1 row_mask:0xf bank_mask:0xf bound_ctrl:1', {'v0': old, 'v1': x, 'exec': MASK ^ 1 << 4},
         {'v0': [old[i] if i == 4 else 0 if i == 3 or i % 16 == 15 else x[i + 1] for i in range(32)]})
    low, high = 0x76543210, 0xfedcba98
    rotate = 0x07654321 | 8 << 28, 0x0fedcba9
    nibble = lambda pair, i: (pair[0] | pair[1] << 32) >> 4 * (i % 16) & 15
    for cross_row, name in [(0, 'v_permlane16_b32'), (16, 'v_permlanex16_b32')]:
        for pair in [(low, high), rotate, (0xaaaaaaaa, 0x33333333)]:
            case(f'{name} v0, v1, s4, s5', {'v0': old, 'v1': x, 's4': pair[0], 's5': pair[1]},
                 {'v0': [x[(row(i) ^ cross_row) + nibble(pair, i)] for i in range(32)]})
        case(f'{name} v0, v1, s4, s5', {'v0': old, 'v1': x, 's4': low, 's5': high, 'exec': 0xffffffef},
             {'v0': [old[i] if i == 4 or i ^ cross_row == 4 else x[i ^ cross_row] for i in range(32)]})
        case(f'{name} v0, v1, s4, s5 op_sel:[1,0]', {'v0': old, 'v1': x, 's4': low, 's5': high, 'exec': 0xffffffef},
             {'v0': [old[i] if i == 4 else x[i ^ cross_row] for i in range(32)]})
    case('v_readfirstlane_b32 s0, v1', {'v1': x, 'exec': 0xfff0}, {'s0': x[4]})
    case('v_readfirstlane_b32 s0, v1', {'v1': x, 'exec': 0}, {'s0': x[0]})
    case('v_readlane_b32 s0, v1, s4', {'v1': x, 's4': 37, 'exec': 0}, {'s0': x[5]})
    case('v_writelane_b32 v0, s4, 9', {'v0': old, 's4': 77, 'exec': 0}, {'v0': [77 if i == 9 else old[i] for i in range(32)]})
    case('v_mbcnt_lo_u32_b32 v0, v1, v2', {'v1': 0xf0f0f0f1, 'v2': 5}, {'v0': [bin(0xf0f0f0f1 & (1 << i) - 1).count('1') + 5 for i in range(32)]})
    case('v_mbcnt_hi_u32_b32 v0, v1, v2', {'v1': MASK, 'v2': 5}, {'v0': 5})
    index = [4 * (7 * i % 32) + 128 * (i & 1) for i in range(32)]
    case('ds_bpermute_b32 v0, v1, v2', {'v1': index, 'v2': x}, {'v0': [x[7 * i % 32] for i in range(32)]})
    case('ds_bpermute_b32 v0, v1, v2', {'v1': index, 'v2': x, 'exec': 0xfffffffe, 'v0': 5}, {'v0': [5] + [x[7 * i % 32] if 7 * i % 32 else 0 for i in range(1, 32)]})
    case('ds_bpermute_b32 v0, v1, v2 offset:8', {'v1': [4 * i for i in range(32)], 'v2': x}, {'v0': [x[(i + 2) % 32] for i in range(32)]})
    sent = [0] * 32
    for i in range(32):
        sent[7 * i % 32] = x[i]
    case('ds_permute_b32 v0, v1, v2', {'v1': index, 'v2': x}, {'v0': sent})
    case('ds_swizzle_b32 v0, v1 offset:0x041f', {'v1': x}, {'v0': [x[i ^ 1] for i in range(32)]})
    case('ds_swizzle_b32 v0, v1 offset:0x80b1', {'v1': x}, {'v0': [x[i & ~3 | (0xb1 >> 2 * (i & 3) & 3)] for i in range(32)]})


def pairs():
    """VOPD: both read before either writes."""
    x, y = [f(1.5), f(2)], [f(4), f(-3)]
    regs = {'v0': x, 'v1': y, 'v2': [f(10), f(20)], 'v3': [f(0.5), f(0.25)]}
    for op, fn in [('v_dual_add_f32', lambda a, b, c: add(F32, a, b)), ('v_dual_sub_f32', lambda a, b, c: add(F32, a, neg(F32, b))),
                   ('v_dual_subrev_f32', lambda a, b, c: add(F32, b, neg(F32, a))),
                   ('v_dual_mul_f32', lambda a, b, c: mul(F32, a, b)), ('v_dual_max_f32', lambda a, b, c: maximum(F32, a, b)),
                   ('v_dual_min_f32', lambda a, b, c: minimum(F32, a, b)), ('v_dual_fmac_f32', lambda a, b, c: fma(F32, a, b, c))]:
        case(f'{op} v4, v0, v1 :: {op} v5, v3, v2', {**regs, 'v4': f(1), 'v5': f(2)},
             {'v4': [fn(a, b, f(1)) for a, b in zip(x, y)], 'v5': [fn(a, b, f(2)) for a, b in zip(regs['v3'], regs['v2'])]})
    case('v_dual_mov_b32 v0, v1 :: v_dual_mov_b32 v1, v0', {'v0': x, 'v1': y}, {'v0': y, 'v1': x})
    case('v_dual_add_f32 v0, v0, v1 :: v_dual_mul_f32 v1, v2, v0', regs,
         {'v0': [add(F32, a, b) for a, b in zip(x, y)], 'v1': [mul(F32, a, b) for a, b in zip(regs['v2'], x)]})
    case('v_dual_cndmask_b32 v4, v0, v1 :: v_dual_cndmask_b32 v5, v3, v2', {**regs, 'vcc': 2}, {'v4': [x[0], y[1], x[1]], 'v5': [regs['v3'][0], regs['v2'][1], regs['v3'][1]]})
    case('v_dual_dot2acc_f32_f16 v4, v0, v1 :: v_dual_mov_b32 v5, v2', {'v4': f(1), 'v0': h(2) | h(3) << 16, 'v1': h(5) | h(7) << 16, 'v2': 9}, {'v4': f(32), 'v5': 9})
    k = f(2.5)
    case(f'v_dual_fmaak_f32 v4, v0, v1, 0x{k:x} :: v_dual_mov_b32 v5, v2', regs, {'v4': [fma(F32, a, b, k) for a, b in zip(x, y)], 'v5': regs['v2']})
    case(f'v_dual_fmamk_f32 v4, v0, 0x{k:x}, v1 :: v_dual_mov_b32 v5, v2', regs, {'v4': [fma(F32, a, k, b) for a, b in zip(x, y)], 'v5': regs['v2']})
    case('v_dual_mov_b32 v4, v0 :: v_dual_add_nc_u32 v5, v2, v1', {'v0': 3, 'v1': MASK, 'v2': 5}, {'v4': 3, 'v5': 4})
    case('v_dual_mov_b32 v4, v0 :: v_dual_lshlrev_b32 v5, v2, v1', {'v0': 3, 'v1': 0x81, 'v2': 36}, {'v4': 3, 'v5': 0x810})
    case('v_dual_mov_b32 v4, v0 :: v_dual_and_b32 v5, v2, v1', {'v0': 3, 'v1': 0xf0f, 'v2': 0xff}, {'v4': 3, 'v5': 0xf})


def memory():
    data = [0x03020100 + 0x04040404 * i for i in range(64)]
    lane4 = [4 * (31 - i) for i in range(32)]
    at = lambda byte, n=4: sum((data[(byte + i) // 4] >> 8 * ((byte + i) % 4) & 0xff) << 8 * i for i in range(n))
    for n in (1, 2, 3, 4):
        case(f'global_load_b{32 * n} v{"0" if n == 1 else f"[0:{n - 1}]"}, v4, s[20:21] offset:16', {'mem': data, 'v4': lane4},
             {f'v{r}': [at(x + 16 + 4 * r) for x in lane4] for r in range(n)})
    case('global_load_b32 v0, v[20:21], off offset:-4 ', {'mem': data, 'v20': '+8'}, {'v0': data[1]})
    odd = [i + 1 for i in range(32)]
    signed = lambda v, n: v - (1 << n) if v >> n - 1 else v
    case('global_load_u8 v0, v4, s[20:21] offset:128', {'mem': data, 'v4': odd}, {'v0': [at(x + 128, 1) for x in odd]})
    case('global_load_i8 v0, v4, s[20:21] offset:128', {'mem': data, 'v4': odd}, {'v0': [signed(at(x + 128, 1), 8) for x in odd]})
    case('global_load_u16 v0, v4, s[20:21] offset:128', {'mem': data, 'v4': odd}, {'v0': [at(x + 128, 2) for x in odd]})
    case('global_load_i16 v0, v4, s[20:21] offset:128', {'mem': data, 'v4': odd}, {'v0': [signed(at(x + 128, 2), 16) for x in odd]})
    case('global_load_d16_b16 v0, v4, s[20:21]', {'mem': data, 'v4': odd, 'v0': 0xabcd1234}, {'v0': [0xabcd0000 | at(x, 2) for x in odd]})
    case('global_load_d16_hi_b16 v0, v4, s[20:21]', {'mem': data, 'v4': odd, 'v0': 0xabcd1234}, {'v0': [0x1234 | at(x, 2) << 16 for x in odd]})
    case('flat_load_b32 v0, v[20:21] offset:8', {'mem': data}, {'v0': data[2]})
    flat = [0] * 64
    case('flat_store_b32 v[20:21], v1 offset:8', {'mem': flat, 'v1': [5], 'exec': 1}, {'mem': [0, 0, 5, 0]})
    case('global_store_b8 v4, v1, s[20:21]', {'mem': [MASK] * 9, 'v4': odd, 'v1': [0x1100 + i for i in range(32)]},
         {'mem': [0x020100ff] + [0x06050403 + 0x04040404 * i for i in range(7)] + [0xffffff1f]})
    case('global_store_b16 v4, v1, s[20:21]', {'mem': [MASK] * 16, 'v4': [2 * i for i in range(32)], 'v1': [0x110000 + i for i in range(32)]},
         {'mem': [2 * i | 2 * i + 1 << 16 for i in range(16)]})
    case('global_store_d16_hi_b16 v4, v1, s[20:21]', {'mem': [MASK], 'v4': 2, 'v1': 0xabcd1234, 'exec': 1}, {'mem': [0xabcdffff]})
    for n in (1, 2, 3, 4):
        regs = {f'v{r}': [100 * r + i for i in range(32)] for r in range(n)}
        stored = [None] * (32 * n)
        for i in range(32):
            for r in range(n):
                stored[n * (31 - i) + r] = 100 * r + i
        case(f'global_store_b{32 * n} v4, v{"0" if n == 1 else f"[0:{n - 1}]"}, s[20:21]', {'mem': [0] * (32 * n), 'v4': [4 * n * (31 - i) for i in range(32)], **regs}, {'mem': stored})
    # Lanes one after the other on one dword.
    case('global_atomic_add_u32 v0, v4, v1, s[20:21] glc', {'mem': [10], 'v4': 0, 'v1': [1, 2, 3, 4], 'exec': 0xf}, {'mem': [20], 'v0': [10, 11, 13, 16, 0]})
    case('global_atomic_add_u32 v4, v1, s[20:21]', {'mem': [10], 'v4': 0, 'v1': [1, 2], 'exec': 3, 'v0': 9}, {'mem': [13], 'v0': 9})
    case('global_atomic_inc_u32 v0, v4, v1, s[20:21] glc', {'mem': [1], 'v4': 0, 'v1': 2, 'exec': 0xf}, {'mem': [2], 'v0': [1, 2, 0, 1, 0]})
    case('global_atomic_cmpswap_b32 v0, v4, v[1:2], s[20:21] glc', {'mem': [7], 'v4': 0, 'v1': [9, 11], 'v2': [7, 7], 'exec': 3}, {'mem': [9], 'v0': [7, 9, 0]})
    case('global_atomic_swap_b32 v0, v4, v1, s[20:21] glc', {'mem': [7], 'v4': 0, 'v1': [9], 'exec': 1}, {'mem': [9], 'v0': [7, 0]})
    case('global_atomic_or_b32 v4, v1, s[20:21]', {'mem': [7], 'v4': 0, 'v1': [8, 16], 'exec': 3}, {'mem': [31]})
    case('global_atomic_max_u32 v4, v1, s[20:21]', {'mem': [7], 'v4': 0, 'v1': [8, MASK], 'exec': 3}, {'mem': [MASK]})
    for n, name in [(1, 's0'), (2, 's[0:1]'), (4, 's[0:3]'), (8, 's[0:7]'), (16, 's[0:15]')]:
        case(f's_load_b{32 * n} {name}, s[20:21], 0x8', {'mem': data}, {f's{i}': data[2 + i] for i in range(n)})
    case('s_load_b32 s0, s[20:21], s4 offset:0x4', {'mem': data, 's4': 12}, {'s0': data[4]})
    shared(data, lane4, at)


def shared(data, lane4, at):
    for n in (1, 2, 3, 4):
        case(f'ds_load_b{32 * n} v{"0" if n == 1 else f"[0:{n - 1}]"}, v4 offset:16', {'lds': data, 'v4': lane4},
             {f'v{r}': [at(x + 16 + 4 * r) for x in lane4] for r in range(n)})
        regs = {f'v{r}': [100 * r + i for i in range(32)] for r in range(n)}
        stored = [None] * (32 * n)
        for i in range(32):
            for r in range(n):
                stored[n * (31 - i) + r] = 100 * r + i
        case(f'ds_store_b{32 * n} v4, v{"0" if n == 1 else f"[0:{n - 1}]"}', {'lds': [0] * (32 * n), 'v4': [4 * n * (31 - i) for i in range(32)], **regs}, {'lds': stored})
    case('ds_load_u16 v0, v4 offset:2', {'lds': data, 'v4': lane4}, {'v0': [at(x + 2, 2) for x in lane4]})
    case('ds_load_u8 v0, v4 offset:3', {'lds': data, 'v4': lane4}, {'v0': [at(x + 3, 1) for x in lane4]})
    case('ds_load_u16_d16_hi v0, v4 offset:2', {'lds': data, 'v4': lane4, 'v0': 0x1234}, {'v0': [at(x + 2, 2) << 16 | 0x1234 for x in lane4]})
    case('ds_store_b16 v4, v1', {'lds': [MASK] * 16, 'v4': [2 * i for i in range(32)], 'v1': [0x110000 + i for i in range(32)]}, {'lds': [2 * i | 2 * i + 1 << 16 for i in range(16)]})
    case('ds_store_b8 v4, v1 offset:1', {'lds': [MASK], 'v4': 0, 'v1': 0x1234, 'exec': 1}, {'lds': [0xffff34ff]})
    case('ds_load_2addr_b32 v[0:1], v4 offset0:1 offset1:9', {'lds': data, 'v4': lane4}, {'v0': [at(x + 4) for x in lane4], 'v1': [at(x + 36) for x in lane4]})
    case('ds_load_2addr_b64 v[0:3], v4 offset0:1 offset1:3', {'lds': data, 'v4': lane4}, {f'v{r}': [at(x + (8, 12, 24, 28)[r]) for x in lane4] for r in range(4)})
    wide = [i for i in range(256)]
    case('ds_load_2addr_stride64_b32 v[0:1], v4 offset0:1 offset1:2', {'lds': wide, 'v4': lane4}, {'v0': [64 + x // 4 for x in lane4], 'v1': [128 + x // 4 for x in lane4]})
    case('ds_load_2addr_stride64_b64 v[0:3], v4 offset1:1', {'lds': wide, 'v4': lane4}, {f'v{r}': [(0, 1, 128, 129)[r] + x // 4 for x in lane4] for r in range(4)})
    case('ds_store_2addr_b32 v4, v1, v2 offset0:0 offset1:32', {'lds': [0] * 64, 'v4': [4 * i for i in range(32)], 'v1': [i for i in range(32)], 'v2': [1000 + i for i in range(32)]},
         {'lds': [i for i in range(32)] + [1000 + i for i in range(32)]})
    case('ds_store_2addr_b64 v4, v[0:1], v[2:3] offset0:0 offset1:1', {'lds': [0] * 4, 'v4': 0, 'v0': 1, 'v1': 2, 'v2': 3, 'v3': 4, 'exec': 1}, {'lds': [1, 2, 3, 4]})
    case('ds_store_2addr_stride64_b32 v4, v1, v2 offset0:0 offset1:1', {'lds': [0] * 65, 'v4': 0, 'v1': 1, 'v2': 2, 'exec': 1}, {'lds': [1] + [0] * 63 + [2]})
    case('ds_add_u32 v4, v1', {'lds': [10], 'v4': 0, 'v1': [i for i in range(32)]}, {'lds': [10 + 31 * 16]})
    case('ds_add_rtn_u32 v0, v4, v1', {'lds': [10], 'v4': 0, 'v1': [1, 2, 3], 'exec': 7}, {'lds': [16], 'v0': [10, 11, 13, 0]})
    case('ds_max_u32 v4, v1', {'lds': [10], 'v4': 0, 'v1': [i for i in range(32)]}, {'lds': [31]})
    case('ds_or_b32 v4, v1', {'lds': [1], 'v4': 0, 'v1': [2, 4, 8]}, {'lds': [15]})
    case('ds_add_f32 v4, v1', {'lds': [f(1)], 'v4': 0, 'v1': [f(0.5), f(0.25)], 'exec': 3}, {'lds': [f(1.75)]})


def scalar():
    vals = [0, 1, 5, 31, 33, 0x7fffffff, 0x80000000, 0xffffffff, 0x12345678]
    def over(x):
        return not -1 << 31 <= x < 1 << 31
    two = {
        's_add_u32': lambda x, y: (x + y, x + y > MASK), 's_sub_u32': lambda x, y: (x - y, x < y),
        's_add_i32': lambda x, y: (x + y, over(i32(x) + i32(y))), 's_sub_i32': lambda x, y: (x - y, over(i32(x) - i32(y))),
        's_mul_i32': lambda x, y: (x * y, None), 's_mul_hi_u32': lambda x, y: (x * y >> 32, None), 's_mul_hi_i32': lambda x, y: (i32(x) * i32(y) >> 32, None),
        's_min_u32': lambda x, y: (min(x, y), x < y), 's_min_i32': lambda x, y: (min(i32(x), i32(y)), i32(x) < i32(y)),
        's_cselect_b32': None, 's_bfm_b32': lambda x, y: ((1 << (x & 31)) - 1 << (y & 31), None),
        's_pack_ll_b32_b16': lambda x, y: (x & 0xffff | (y & 0xffff) << 16, None), 's_pack_lh_b32_b16': lambda x, y: (x & 0xffff | y >> 16 << 16, None),
        's_pack_hh_b32_b16': lambda x, y: (x >> 16 | y >> 16 << 16, None), 's_pack_hl_b32_b16': lambda x, y: (x >> 16 | (y & 0xffff) << 16, None),
        's_lshl1_add_u32': lambda x, y: ((x << 1) + y, (x << 1) + y > MASK), 's_lshl2_add_u32': lambda x, y: ((x << 2) + y, (x << 2) + y > MASK),
        's_lshl3_add_u32': lambda x, y: ((x << 3) + y, (x << 3) + y > MASK), 's_lshl4_add_u32': lambda x, y: ((x << 4) + y, (x << 4) + y > MASK),
    }
    zero = {
        's_and_b32': lambda x, y: x & y, 's_or_b32': lambda x, y: x | y, 's_xor_b32': lambda x, y: x ^ y, 's_and_not1_b32': lambda x, y: x & ~y,
        's_or_not1_b32': lambda x, y: x | ~y, 's_nand_b32': lambda x, y: ~(x & y), 's_nor_b32': lambda x, y: ~(x | y), 's_xnor_b32': lambda x, y: ~(x ^ y),
        's_lshl_b32': lambda x, y: x << (y & 31), 's_lshr_b32': lambda x, y: x >> (y & 31), 's_ashr_i32': lambda x, y: i32(x) >> (y & 31),
        's_bfe_u32': lambda x, y: x >> (y & 31) & (1 << (y >> 16 & 0x7f)) - 1,
        's_bfe_i32': lambda x, y: (lambda n, v: 0 if n == 0 else v - (1 << n if v >> n - 1 & 1 else 0))(y >> 16 & 0x7f, x >> (y & 31) & (1 << (y >> 16 & 0x7f)) - 1),
    }
    for op, fn in two.items():
        if fn is None:
            continue
        for x, y in [(1, 2), (2, 1), (0x7fffffff, 1), (0x80000000, 0xffffffff), (0xffffffff, 1), (5, 0xffffffff), (0x12345678, 0x9abcdef0)]:
            value, scc = fn(x, y)
            case(f'{op} s0, s1, s2', {'s1': x, 's2': y, 'scc': 1}, {'s0': value, 'scc': 1 if scc is None else int(scc)})
    for op, fn in [('s_max_u32', lambda x: x), ('s_max_i32', i32)]:
        for x, y in [(1, 2), (2, 1), (0x80000000, 1), (1, 0x80000000)]:
            case(f'{op} s0, s1, s2', {'s1': x, 's2': y}, {'s0': max((x, y), key=fn), 'scc': int(fn(x) > fn(y))})
    for op, fn in zero.items():
        fields = [(0x12345678, 4 | 8 << 16), (0x12345678, 8 | 4 << 16), (0xffffffff, 0), (0, 3), (0x80000001, 31), (0x80000001, 32), (0xf0, 0x0f)]
        for x, y in fields:
            value = fn(x, y) & MASK
            case(f'{op} s0, s1, s2', {'s1': x, 's2': y, 'scc': 1}, {'s0': value, 'scc': int(value != 0)})
    for scc in (0, 1):
        case('s_cselect_b32 s0, s1, s2', {'s1': 3, 's2': 4, 'scc': scc}, {'s0': 3 if scc else 4, 'scc': scc})
        for x, y in [(0xffffffff, 0), (1, 2), (0x80000000, 0x80000000)]:
            case('s_addc_u32 s0, s1, s2', {'s1': x, 's2': y, 'scc': scc}, {'s0': x + y + scc, 'scc': int(x + y + scc > MASK)})
            case('s_subb_u32 s0, s1, s2', {'s1': y, 's2': x, 'scc': scc}, {'s0': y - x - scc, 'scc': int(y < x + scc)})
        case('s_cmovk_i32 s0, 0x1234', {'s0': 9, 'scc': scc}, {'s0': 0x1234 if scc else 9})
        case('s_cmov_b32 s0, s1', {'s0': 9, 's1': 8, 'scc': scc}, {'s0': 8 if scc else 9})
    full = (1 << 64) - 1
    for op, fn in [('s_lshl_b64', lambda x, n: x << (n & 63)), ('s_lshr_b64', lambda x, n: x >> (n & 63)), ('s_ashr_i64', lambda x, n: i64(x) >> (n & 63))]:
        for x, n in [(0x8000000180000001, 1), (1, 63), (0xf, 64), (0, 5), (1 << 63, 63)]:
            v = fn(x, n) & full
            case(f'{op} s[0:1], s[2:3], s4', {'s2': x & MASK, 's3': x >> 32, 's4': n}, {'s0': v & MASK, 's1': v >> 32, 'scc': int(v != 0)})
    for op, fn in [('s_and_b64', lambda x, y: x & y), ('s_or_b64', lambda x, y: x | y), ('s_xor_b64', lambda x, y: x ^ y), ('s_and_not1_b64', lambda x, y: x & ~y)]:
        for x, y in [(0xff00ff00ff00ff00, 0x0ff00ff00ff00ff0), (0, 0)]:
            v = fn(x, y) & full
            case(f'{op} s[0:1], s[2:3], s[4:5]', {'s2': x & MASK, 's3': x >> 32, 's4': y & MASK, 's5': y >> 32}, {'s0': v & MASK, 's1': v >> 32, 'scc': int(v != 0)})
    one = {'s_not_b32': lambda x: ~x & MASK, 's_bcnt1_i32_b32': lambda x: bin(x).count('1'), 's_bcnt0_i32_b32': lambda x: 32 - bin(x).count('1'),
           's_abs_i32': lambda x: abs(i32(x)) & MASK}
    for op, fn in one.items():
        for x in (0, MASK, 0x80000000, 0xf0f0):
            case(f'{op} s0, s1', {'s1': x, 'scc': 1}, {'s0': fn(x), 'scc': int(fn(x) != 0)})
    keep = {'s_mov_b32': lambda x: x, 's_brev_b32': lambda x: int(f'{x:032b}'[::-1], 2), 's_clz_i32_u32': lambda x: 32 - x.bit_length() if x else MASK,
            's_ctz_i32_b32': lambda x: (x & -x).bit_length() - 1 if x else MASK, 's_sext_i32_i16': lambda x: i16(x), 's_sext_i32_i8': lambda x: i32(x << 24) >> 24}
    for op, fn in keep.items():
        for x in (0, 1, 0x8080, 0x80000000, MASK):
            case(f'{op} s0, s1', {'s1': x, 'scc': 1}, {'s0': fn(x), 'scc': 1})
    case('s_mov_b64 s[0:1], s[2:3]', {'s2': 1, 's3': 2}, {'s0': 1, 's1': 2})
    case('s_mov_b64 s[0:1], -1', {}, {'s0': MASK, 's1': MASK})
    case('s_bitset1_b32 s0, s1', {'s0': 1, 's1': 36}, {'s0': 0x11})
    case('s_bitset0_b32 s0, s1', {'s0': 0x11, 's1': 36}, {'s0': 1})
    # D is EXEC before; EXEC becomes the operation of the source and EXEC.
    for op, fn in [('and', lambda s, e: s & e), ('or', lambda s, e: s | e), ('xor', lambda s, e: s ^ e), ('and_not1', lambda s, e: s & ~e), ('and_not0', lambda s, e: ~s & e),
                   ('or_not1', lambda s, e: s | ~e)]:
        for s, e in [(0xff00ff00, 0x0ff00ff0), (0xf, 0xf0), (0xf, 0xf)]:
            v = fn(s, e) & MASK
            case(f's_{op}_saveexec_b32 s0, s1', {'s1': s, 'exec': e}, {'s0': e, 'exec': v, 'scc': int(v != 0)})
    tests = {'eq': lambda x, y: x == y, 'lg': lambda x, y: x != y, 'gt': lambda x, y: x > y, 'ge': lambda x, y: x >= y, 'lt': lambda x, y: x < y, 'le': lambda x, y: x <= y}
    for ty, view in [('u32', lambda x: x & MASK), ('i32', i32)]:
        for name, test in tests.items():
            for x, y in [(1, 1), (1, 2), (0xffffffff, 1), (1, 0xffffffff)]:
                case(f's_cmp_{name}_{ty} s1, s2', {'s1': x, 's2': y}, {'scc': int(test(view(x), view(y)))})
            for x, k in [(5, 5), (4, 5), (6, 5), (0xffffffff, 5)]:
                case(f's_cmpk_{name}_{ty} s1, 0x{k:x}', {'s1': x}, {'scc': int(test(view(x), k))})
    # The constant is extended as the comparison's type is.
    case('s_cmpk_eq_i32 s1, 0xffff', {'s1': MASK}, {'scc': 1})
    case('s_cmpk_eq_u32 s1, 0xffff', {'s1': 0xffff}, {'scc': 1})
    for name, test in [('eq', lambda x, y: x == y), ('lg', lambda x, y: x != y)]:
        for hi in (0, 1):
            case(f's_cmp_{name}_u64 s[2:3], s[4:5]', {'s2': 7, 's3': hi, 's4': 7, 's5': 1}, {'scc': int(test(hi, 1))})
    for bit in (0, 1):
        for n in (4, 36):
            case(f's_bitcmp{bit}_b32 s1, s2', {'s1': 0x10, 's2': n}, {'scc': bit})
        case(f's_bitcmp{bit}_b32 s1, s2', {'s1': 0x10, 's2': 3}, {'scc': 1 - bit})
    case('s_movk_i32 s0, 0x8000', {}, {'s0': 0xffff8000})
    case('s_addk_i32 s0, 0xffff', {'s0': 0x80000000}, {'s0': 0x7fffffff, 'scc': 1})
    case('s_addk_i32 s0, 0x10', {'s0': 5, 'scc': 1}, {'s0': 21, 'scc': 0})
    case('s_mulk_i32 s0, 0xfffe', {'s0': 5, 'scc': 1}, {'s0': -10, 'scc': 1})
    scalar_floats()
    control()


def scalar_floats():
    a = [f(1.5), f(-0.0), 0x7f800000, f(1 / 3), 0x7f7fffff, 1]
    for x, y in zip(a, [f(2), f(0.0), f(1), f(3), f(2), f(0.5)]):
        for op, v in [('s_add_f32', add(F32, x, y)), ('s_sub_f32', add(F32, x, neg(F32, y))), ('s_mul_f32', mul(F32, x, y)), ('s_max_f32', maximum(F32, x, y)),
                      ('s_min_f32', minimum(F32, x, y))]:
            case(f'{op} s0, s1, s2', {'s1': x, 's2': y}, {'s0': v})
        k = f(0.75)
        case(f's_fmamk_f32 s0, s1, 0x{k:x}, s2', {'s1': x, 's2': y}, {'s0': fma(F32, x, k, y)})
        case(f's_fmaak_f32 s0, s1, s2, 0x{k:x}', {'s1': x, 's2': y}, {'s0': fma(F32, x, y, k)})
        case('s_fmac_f32 s0, s1, s2', {'s0': f(1), 's1': x, 's2': y}, {'s0': fma(F32, x, y, f(1))})
    for x in [f(2.5), f(-2.5), f(-0.25), f(3.5)]:
        for op, how in [('s_trunc_f32', 'trunc'), ('s_floor_f32', 'floor'), ('s_ceil_f32', 'ceil'), ('s_rndne_f32', 'even')]:
            case(f'{op} s0, s1', {'s1': x}, {'s0': integral(F32, x, how)})
    for x in FS[:14]:
        case('s_cvt_u32_f32 s0, s1', {'s1': x}, {'s0': to_integer(F32, x, 0, MASK)})
        case('s_cvt_i32_f32 s0, s1', {'s1': x}, {'s0': to_integer(F32, x, -1 << 31, (1 << 31) - 1)})
    for x in (0, 1, 0x01000001, 0x01000003, MASK):
        case('s_cvt_f32_u32 s0, s1', {'s1': x}, {'s0': F32.round(F(x))})
        case('s_cvt_f32_i32 s0, s1', {'s1': x}, {'s0': F32.round(F(i32(x)))})


def control():
    """Whether what is behind is executed; a branch counts dwords from behind itself."""
    case('s_branch 1; s_mov_b32 s0, 1; s_mov_b32 s1, 1', {}, {'s0': 0, 's1': 1})
    for op, name, yes in [('scc0', 'scc', 0), ('scc1', 'scc', 1), ('vccz', 'vcc', 0), ('vccnz', 'vcc', 0x80000000), ('execz', 'exec', 0), ('execnz', 'exec', 2)]:
        no = 1 if yes == 0 else 0
        case(f's_cbranch_{op} 1; s_mov_b32 s0, 1; s_mov_b32 s1, 1', {name: yes}, {'s0': 0, 's1': 1})
        case(f's_cbranch_{op} 1; s_mov_b32 s0, 1; s_mov_b32 s1, 1', {name: no}, {'s0': 1, 's1': 1})
    for op in ['s_nop 3', 's_waitcnt vmcnt(0)', 's_waitcnt_vscnt null, 0x0', 's_delay_alu instid0(VALU_DEP_1)', 's_clause 0x1', 's_set_inst_prefetch_distance 0x3',
               's_sendmsg sendmsg(MSG_DEALLOC_VGPRS)', 'buffer_gl0_inv', 'buffer_gl1_inv', 's_sleep 1', 's_setprio 1', 's_waitcnt_depctr 0xfff', 's_dcache_inv', 's_icache_inv']:
        case(f'{op}; s_mov_b32 s0, 1', {'exec': 5, 'vcc': 6}, {'s0': 1, 'exec': 5, 'vcc': 6})
    case('s_endpgm; s_mov_b32 s0, 1', {}, {'s0': 0})
    case('s_barrier; s_mov_b32 s0, 1', {}, {'s0': 0})


vector_f32()
conversions()
vector_f64()
vector_integers()
comparisons()
halves()
matrices()
crossing()
pairs()
memory()
scalar()

//! Encoders of the types that leave the choice of scales to the encoder: K-quants, IQ4 and MXFP4.
//!
//! Each part gets the scale (and minimum) that its extremes ask for, tried at a few sizes around that for the least squared
//! error; the block's factor is such that the largest integer scale is the largest one there is; elements then take the nearest
//! level of the scale as it was rounded. `kernels::quant` documents the blocks.

use half::f16;

/// Elements of a block of 32.
const BLOCK: usize = 32;
/// Elements of a large block.
const SUPER: usize = 8 * BLOCK;

/// What IQ4_NL and IQ4_XS make of 4 bits.
const IQ4_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Twice the numbers that e2m1 has.
const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Sizes at which scales are tried, over that which the extremes ask for.
const TRIED: [f32; 7] = [0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15];

/// d and m (f16), 4 bits of scale and minimum a part of 16, 2 bits an element: d s q - m n.
pub fn q2_k(x: &[f32; SUPER], out: &mut [u8; 84]) {
    let coded = WithMinima::<16, 16>::new(x, 3, 15);
    for ((byte, s), n) in out.iter_mut().zip(coded.scales).zip(coded.mins) {
        *byte = s | n << 4;
    }
    pack_crumbs(&coded.quants, 0, &mut out[16..80]);
    out[80..82].copy_from_slice(&coded.d.to_le_bytes());
    out[82..].copy_from_slice(&coded.m.to_le_bytes());
}

/// d and m (f16), 6 bits of scale and minimum a part of 32, 4 bits an element: d s q - m n.
pub fn q4_k(x: &[f32; SUPER], out: &mut [u8; 144]) {
    let coded = WithMinima::<32, 8>::new(x, 15, 63);
    coded.put_header(out);
    pack_halves(&coded.quants, BLOCK, &mut out[16..]);
}

/// As Q4_K with 5 bits: byte i of the fifth ones has those of elements i, 32 + i, ...
pub fn q5_k(x: &[f32; SUPER], out: &mut [u8; 176]) {
    let coded = WithMinima::<32, 8>::new(x, 31, 63);
    coded.put_header(out);
    let fifths = &mut out[16..48];
    fifths.fill(0);
    for (i, quant) in coded.quants.iter().enumerate() {
        fifths[i % BLOCK] |= (quant >> 4) << (i / BLOCK);
    }
    pack_halves(&coded.quants, BLOCK, &mut out[48..]);
}

/// d (f16), 6 bits of scale a part of 16, 3 bits an element: d (s - 32) (q - 4).
pub fn q3_k(x: &[f32; SUPER], out: &mut [u8; 110]) {
    let (d, scales, quants) = symmetric::<16, 16>(x, 4, 31);
    out[..32].fill(0);
    for (i, quant) in quants.iter().enumerate() {
        out[i % BLOCK] |= (quant >> 2) << (i / BLOCK);
    }
    pack_crumbs(&quants, 0, &mut out[32..96]);
    let bytes = &mut out[96..108];
    bytes.fill(0);
    for (part, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        bytes[part % 8] |= (scale & 15) << (part / 8 * 4);
        bytes[8 + part % 4] |= (scale >> 4) << (part / 4 * 2);
    }
    out[108..].copy_from_slice(&d.to_le_bytes());
}

/// d (f16), an i8 scale a part of 16, 6 bits an element: d s (q - 32).
pub fn q6_k(x: &[f32; SUPER], out: &mut [u8; 210]) {
    let (d, scales, quants) = symmetric::<16, 16>(x, 32, 127);
    pack_halves(&quants, 2 * BLOCK, &mut out[..128]);
    pack_crumbs(&quants, 4, &mut out[128..192]);
    for (byte, scale) in out[192..208].iter_mut().zip(scales) {
        *byte = scale as u8;
    }
    out[208..].copy_from_slice(&d.to_le_bytes());
}

/// d (f16), 4 bits an element through a table: element i low, i + 16 high.
pub fn iq4_nl(x: &[f32; BLOCK], out: &mut [u8; 18]) {
    let d = f16::from_f32(best_scale(x));
    out[..2].copy_from_slice(&d.to_le_bytes());
    let codes = iq4_steps(x, reciprocal(d.to_f32()), |_| 1);
    pack_codes(codes, &mut out[2..]);
}

/// d (f16), 6 bits of scale a part of 32, 4 bits an element as in IQ4_NL: d (s - 32) value.
pub fn iq4_xs(x: &[f32; SUPER], out: &mut [u8; 136]) {
    let parts = x.as_chunks::<BLOCK>().0;
    let wanted: [f32; 8] = std::array::from_fn(|part| best_scale(&parts[part]));
    let (d, scales) = integer_scales(&wanted, 31);
    out[..2].copy_from_slice(&d.to_le_bytes());
    let mut high_bits = 0u16;
    out[4..8].fill(0);
    for (part, scale) in scales.iter().enumerate() {
        let bits = (scale + 32) as u8;
        out[4 + part / 2] |= (bits & 15) << (part % 2 * 4);
        high_bits |= u16::from(bits >> 4) << (2 * part);
        let inverse = reciprocal(d.to_f32() * *scale as f32);
        let codes = iq4_steps(&parts[part], inverse, |_| 1);
        pack_codes(codes, &mut out[8 + part * 16..][..16]);
    }
    out[2..4].copy_from_slice(&high_bits.to_le_bytes());
}

/// e, then 4 bits an element, an e2m1 number: times 2^(e - 127). The exponent puts the largest element among the largest
/// numbers.
pub fn mxfp4(x: &[f32; BLOCK], out: &mut [u8; 17]) {
    let largest = x.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    // The exponent of an f32 in its bits, less 2: the largest e2m1 numbers are 4 and 6.
    let e = (largest.to_bits() >> 23).saturating_sub(2) as u8;
    let half = f64::from(e) - 128.0;
    out[0] = e;
    let inverse = reciprocal(half.exp2() as f32);
    pack_codes(x.map(|v| nearest_mxfp4(v * inverse)), &mut out[1..]);
}

/// A large block of P parts of L elements with scales and minima, coded.
struct WithMinima<const L: usize, const P: usize> {
    d: f16,
    m: f16,
    scales: [u8; P],
    mins: [u8; P],
    quants: [u8; SUPER],
}

impl<const L: usize, const P: usize> WithMinima<L, P> {
    /// Quants are 0 to `most`, scales and minima 0 to `most_scale`.
    fn new(x: &[f32; SUPER], most: u8, most_scale: u8) -> Self {
        let parts = x.as_chunks::<L>().0;
        let wanted: [(f32, f32); P] =
            std::array::from_fn(|part| step_and_min(&parts[part], f32::from(most)));
        let largest = |of: fn(&(f32, f32)) -> f32| wanted.iter().map(of).fold(0.0, f32::max);
        let d = f16::from_f32(largest(|w| w.0) / f32::from(most_scale));
        let m = f16::from_f32(largest(|w| w.1) / f32::from(most_scale));
        let scaled = |v: f32, by: f16| {
            let level = v * reciprocal(by.to_f32());
            level.round().min(f32::from(most_scale)) as u8
        };
        let mut coded = WithMinima {
            d,
            m,
            scales: wanted.map(|w| scaled(w.0, d)),
            mins: wanted.map(|w| scaled(w.1, m)),
            quants: [0; SUPER],
        };
        let quants = coded.quants.as_chunks_mut::<L>().0.iter_mut();
        for (part, (quants, x)) in quants.zip(parts).enumerate() {
            let inverse = reciprocal(d.to_f32() * f32::from(coded.scales[part]));
            let min = m.to_f32() * f32::from(coded.mins[part]);
            for (quant, v) in quants.iter_mut().zip(x) {
                *quant = ((v + min) * inverse).round().clamp(0.0, f32::from(most)) as u8;
            }
        }
        coded
    }
}

impl WithMinima<32, 8> {
    /// Both factors and 12 bytes of six-bit scales and minima: of the first four parts in the low bits of bytes 0..8, of the
    /// others in bytes 8..12 and the top bits of bytes 0..8.
    fn put_header(&self, out: &mut [u8]) {
        out[..2].copy_from_slice(&self.d.to_le_bytes());
        out[2..4].copy_from_slice(&self.m.to_le_bytes());
        let bytes = &mut out[4..16];
        for i in 0..4 {
            let (s, n) = (self.scales[4 + i], self.mins[4 + i]);
            bytes[i] = self.scales[i] | s >> 4 << 6;
            bytes[4 + i] = self.mins[i] | n >> 4 << 6;
            bytes[8 + i] = s & 15 | (n & 15) << 4;
        }
    }
}

/// The step between a part's levels and how far the lowest is below zero, for levels 0 to `most`.
fn step_and_min(x: &[f32], most: f32) -> (f32, f32) {
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(low, f32::max);
    let error = |&(step, min): &(f32, f32)| -> f32 {
        let inverse = reciprocal(step);
        let of = |v: &f32| {
            let level = ((v + min) * inverse).round().clamp(0.0, most);
            (level * step - min - v).powi(2)
        };
        x.iter().map(of).sum()
    };
    // The range shrinks from both ends alike.
    let tried = TRIED.map(|size| {
        let cut = (high - low) * (1.0 - size) / 2.0;
        ((high - low) * size / most, (-low - cut).max(0.0))
    });
    least(tried, error)
}

/// The factor, the scales (-`most_scale` to `most_scale`) and the quants of a large block of P parts of L elements with 2 *
/// `zero` levels, of which number `zero` is 0.
fn symmetric<const L: usize, const P: usize>(
    x: &[f32; SUPER],
    zero: i32,
    most_scale: i32,
) -> (f16, [i32; P], [u8; SUPER]) {
    let parts = x.as_chunks::<L>().0;
    let wanted: [f32; P] = std::array::from_fn(|part| {
        let x = &parts[part];
        let extreme = x
            .iter()
            .fold(0.0f32, |e, v| if v.abs() > e.abs() { *v } else { e });
        let nearest = |v: f32, inverse: f32| level(v, inverse, zero) as f32;
        let error = |scale: &f32| -> f32 {
            let inverse = reciprocal(*scale);
            let of = |v: &f32| (nearest(*v, inverse) * scale - v).powi(2);
            x.iter().map(of).sum()
        };
        // The extreme becomes the lowest level, of which there is one more than above zero.
        least(TRIED.map(|size| size * extreme / -zero as f32), error)
    });
    let (d, scales) = integer_scales(&wanted, most_scale);
    let mut quants = [0; SUPER];
    let parts = quants.as_chunks_mut::<L>().0.iter_mut().zip(parts);
    for ((quants, x), scale) in parts.zip(scales) {
        let inverse = reciprocal(d.to_f32() * scale as f32);
        for (quant, v) in quants.iter_mut().zip(x) {
            *quant = (level(*v, inverse, zero) + zero) as u8;
        }
    }
    (d, scales, quants)
}

/// The nearest of the levels -`zero` to `zero` - 1.
fn level(v: f32, inverse: f32, zero: i32) -> i32 {
    ((v * inverse).round() as i32).clamp(-zero, zero - 1)
}

/// A factor, and the scales as integers times it; the largest becomes `most`.
fn integer_scales<const P: usize>(wanted: &[f32; P], most: i32) -> (f16, [i32; P]) {
    let largest = wanted.iter().fold(0.0f32, |max, s| max.max(s.abs()));
    let d = f16::from_f32(largest / most as f32);
    let inverse = reciprocal(d.to_f32());
    let scales = wanted.map(|s| ((s * inverse).round() as i32).clamp(-most, most));
    (d, scales)
}

/// The scale at which [`IQ4_VALUES`] fit best: the extreme is tried as the least and the greatest of them.
fn best_scale(x: &[f32; BLOCK]) -> f32 {
    let extreme = x
        .iter()
        .fold(0.0f32, |e, v| if v.abs() > e.abs() { *v } else { e });
    let error = |scale: &f32| -> f32 {
        let inverse = reciprocal(*scale);
        let values = iq4_steps(x, inverse, |k| IQ4_VALUES[k + 1] - IQ4_VALUES[k]);
        let of = |(v, steps): (&f32, i32)| {
            let value = i32::from(IQ4_VALUES[0]) + steps;
            (value as f32 * scale - v).powi(2)
        };
        x.iter().zip(values).map(of).sum()
    };
    let low = TRIED.map(|size| size * extreme / f32::from(IQ4_VALUES[0]));
    let high = TRIED.map(|size| size * extreme / f32::from(IQ4_VALUES[15]));
    least([least(low, error), least(high, error)], error)
}

/// The sum of `step` over the values of the table, less the last, that each element is beyond the middle of and of the
/// next: with steps of 1, the index of the nearest. Loops over elements, which the compiler makes vectors of.
fn iq4_steps(x: &[f32; BLOCK], inverse: f32, step: impl Fn(usize) -> i8) -> [i32; BLOCK] {
    let mut sums = [0; BLOCK];
    for k in 0..15 {
        let middle = (f32::from(IQ4_VALUES[k]) + f32::from(IQ4_VALUES[k + 1])) / 2.0;
        let step = i32::from(step(k));
        for (sum, v) in sums.iter_mut().zip(x) {
            *sum += if v * inverse > middle { step } else { 0 };
        }
    }
    sums
}

/// The code of the nearest number of MXFP4, the first of equals.
fn nearest_mxfp4(v: f32) -> i32 {
    let apart = |i: usize| (v - f32::from(MXFP4_VALUES[i])).abs();
    (1..16).fold(0, |best, i| if apart(i) < apart(best) { i } else { best }) as i32
}

/// The one of the least error, the first of equals.
fn least<T: Copy, const N: usize>(of: [T; N], error: impl Fn(&T) -> f32) -> T {
    let mut best = (of[0], error(&of[0]));
    for candidate in &of[1..] {
        let error = error(candidate);
        if error < best.1 {
            best = (*candidate, error);
        }
    }
    best.0
}

/// Zero where the scale is, whose quants then don't matter.
fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// 32 codes of 4 bits: i low, i + 16 high.
fn pack_codes(codes: [i32; BLOCK], out: &mut [u8]) {
    let (first, second) = codes.split_at(BLOCK / 2);
    for ((low, high), byte) in first.iter().zip(second).zip(out) {
        *byte = (low | high << 4) as u8;
    }
}

/// Four low bits: of each 2 * `run` elements the first half is in low halves of `run` bytes, the second in their high ones.
fn pack_halves(quants: &[u8; SUPER], run: usize, out: &mut [u8]) {
    for (quants, bytes) in quants.chunks_exact(2 * run).zip(out.chunks_exact_mut(run)) {
        let (low, high) = quants.split_at(run);
        for ((low, high), byte) in low.iter().zip(high).zip(bytes) {
            *byte = low & 15 | (high & 15) << 4;
        }
    }
}

/// Two bits from bit `from` on: of each 128 elements, 32 share the same bits of 32 bytes.
fn pack_crumbs(quants: &[u8; SUPER], from: u32, out: &mut [u8]) {
    out.fill(0);
    for (quants, bytes) in quants.chunks_exact(128).zip(out.chunks_exact_mut(BLOCK)) {
        for (j, quants) in quants.chunks_exact(BLOCK).enumerate() {
            for (quant, byte) in quants.iter().zip(bytes.iter_mut()) {
                *byte |= (quant >> from & 3) << (2 * j);
            }
        }
    }
}

//! Blocks of 256 weights of two groups, unpacked to bytes that hold their integer scales.
//!
//! With Q8K rows a block's sum is one of integers, scales included. A weight times its scale has up to 14 bits, so it is two bytes, each
//! in a *plane* of its own: tiles multiply either plane with all 256 activations, and its sums meet those of the other then
//! ([`Planes`]). Weights of two bits fit one byte with their scales; their other plane is minima.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::cpu::avx2::quant::{Format, Head, Quants, Scales, fetch_part};
use crate::cpu::avx512::part::{join, join_floats, scales};

/// Parts of 32 k of a block.
pub(super) const PARTS: usize = 8;

/// Tiles of weights, of 64 k each, that a block is in either plane.
pub(super) const DEPTHS: usize = PARTS / 2;

/// What the planes of a format are.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Planes {
    /// Weights times the upper three bits of their scale, and times the lower three: 31 * 7 is the most. The former count eightfold. For
    /// weights that aren't negative: both bytes of 16 bits are multiplied at once, as neither product leaves its byte.
    Scales,
    /// The upper and the lower bytes of weights times scales, the former signed.
    Bytes,
    /// Weights times scales, and minima.
    Minima,
}

pub(super) const fn planes<F: Format>() -> Planes {
    match F::QUANTS {
        Quants::Crumbs => Planes::Minima,
        Quants::Nibbles | Quants::Low => Planes::Scales,
        Quants::SignedLow | Quants::Signed => Planes::Bytes,
    }
}

/// 256 k of sixteen rows of weights: for each 64 k a tile of either plane.
#[repr(C, align(64))]
pub(super) struct Panel(pub(super) [[Tile; 2]; DEPTHS]);

/// Words of four bytes of the rows.
pub(super) type Tile = [[u8; 64]; 16];

/// The factors of a block of sixteen rows. What the format hasn't stays uninitialised.
#[repr(C, align(64))]
pub(super) struct Factors {
    pub(super) d: [f32; 16],
    /// Of integer minima.
    pub(super) m: [f32; 16],
    /// Integer minima of two parts each.
    pub(super) mins: [[[i16; 2]; 16]; DEPTHS],
}

impl Factors {
    /// Writes the factors of blocks' heads.
    ///
    /// # Safety
    /// `to` may be written.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    pub(super) unsafe fn unpack<F: Format>(at: [*const u8; 2], to: *mut Factors) {
        // SAFETY: the caller's promise.
        unsafe {
            let heads: [Head; 2] = [F::head(at[0]), F::head(at[1])];
            let d = join_floats(heads[0].d, heads[1].d);
            _mm512_store_ps((&raw mut (*to).d).cast(), d);
            if F::HAS_MIN || F::HAS_HALF_MINS {
                let m = join_floats(heads[0].m, heads[1].m);
                _mm512_store_ps((&raw mut (*to).m).cast(), m);
            }
        }
    }
}

/// A block of two groups that is to be unpacked.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    /// Where its parts begin.
    pub(super) parts: [*const u8; 2],
    pub(super) panel: *mut Panel,
    pub(super) factors: *mut Factors,
    /// Blocks that come later, which are fetched and may be anywhere.
    pub(super) next: [*const u8; 2],
}

impl Packed {
    /// Unpacks all parts, before there are products to do so beside.
    ///
    /// # Safety
    /// As [`Packed::part`].
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    pub(super) unsafe fn block<F: Format>(&self) {
        for depth in 0..DEPTHS {
            // SAFETY: the caller's promise.
            unsafe {
                self.part::<F, 0, false>(depth);
                self.part::<F, 1, false>(depth);
            }
        }
    }

    /// Unpacks part `2 * depth + ODD`, and behind the odd one what integer minima both have. BESIDE products or not, it is another
    /// function, since the compiler inlines what stands but once.
    ///
    /// # Safety
    /// There are both blocks' parts; the panel and the factors may be written.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    pub(super) unsafe fn part<F: Format, const ODD: usize, const BESIDE: bool>(
        &self,
        depth: usize,
    ) {
        // SAFETY: the caller's promise: parts follow one another, and a tile has eight lines for each.
        unsafe {
            let offset = (2 * depth + ODD) * F::PART;
            let part = [self.parts[0].add(offset), self.parts[1].add(offset)];
            fetch_part::<F, _MM_HINT_T1>(self.next[0], 2 * depth + ODD);
            fetch_part::<F, _MM_HINT_T1>(self.next[1], 2 * depth + ODD);
            let [first, second] = scales::<F>(part);
            let tiles = (&raw mut (*self.panel).0).cast::<[Tile; 2]>().add(depth);
            let to = tiles.cast::<[u8; 64]>().add(8 * ODD);
            let low = [F::half::<0>(part[0]), F::half::<0>(part[1])];
            let scale = Scale::new::<F>(first);
            scale.unpack::<F>(join(low[0][0], low[1][0]), to);
            scale.unpack::<F>(join(low[0][1], low[1][1]), to.add(1));
            scale.unpack::<F>(join(low[0][2], low[1][2]), to.add(2));
            scale.unpack::<F>(join(low[0][3], low[1][3]), to.add(3));
            let high = [F::half::<1>(part[0]), F::half::<1>(part[1])];
            let scale = match F::SCALES {
                Scales::Halves => Scale::new::<F>(second),
                _ => scale,
            };
            scale.unpack::<F>(join(high[0][0], high[1][0]), to.add(4));
            scale.unpack::<F>(join(high[0][1], high[1][1]), to.add(5));
            scale.unpack::<F>(join(high[0][2], high[1][2]), to.add(6));
            scale.unpack::<F>(join(high[0][3], high[1][3]), to.add(7));
            if planes::<F>() == Planes::Minima {
                let to = to.add(16);
                if let ([Some(a), Some(b)], [Some(c), Some(d)]) = (
                    [F::half_min::<0>(part[0]), F::half_min::<0>(part[1])],
                    [F::half_min::<1>(part[0]), F::half_min::<1>(part[1])],
                ) {
                    let (first, second) = (in_every_byte(join(a, b)), in_every_byte(join(c, d)));
                    store(to, first);
                    store(to.add(1), first);
                    store(to.add(2), first);
                    store(to.add(3), first);
                    store(to.add(4), second);
                    store(to.add(5), second);
                    store(to.add(6), second);
                    store(to.add(7), second);
                }
            }
            if F::HAS_MIN && ODD == 1 {
                let even = mins([part[0].sub(F::PART), part[1].sub(F::PART)]);
                let pairs = _mm512_or_si512(even, _mm512_slli_epi32::<16>(mins(part)));
                let to = (&raw mut (*self.factors).mins)
                    .cast::<[u8; 64]>()
                    .add(depth);
                store(to, pairs);
            }
        }
    }
}

/// The integer scale of four words of weights, as they are multiplied.
#[derive(Clone, Copy)]
struct Scale {
    /// What the bytes of even numbers are multiplied with, and what those of odd ones are; or the upper and the lower bits; or all.
    by: [__m512i; 2],
    /// Bytes whose scale is negative: weights take the sign, as only one factor of such products may have one.
    negative: __mmask64,
}

impl Scale {
    /// `scale`: twice in a lane, in 16 bits.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    fn new<F: Format>(scale: __m512i) -> Scale {
        match planes::<F>() {
            Planes::Scales => Scale {
                by: [
                    _mm512_srli_epi16::<3>(scale),
                    _mm512_and_si512(scale, _mm512_set1_epi16(7)),
                ],
                negative: 0,
            },
            Planes::Bytes => {
                let even = _mm512_abs_epi16(scale);
                Scale {
                    by: [even, _mm512_slli_epi16::<8>(even)],
                    negative: _mm512_movepi8_mask(_mm512_srai_epi16::<15>(scale)),
                }
            }
            Planes::Minima => Scale {
                by: [scale; 2],
                negative: 0,
            },
        }
    }

    /// Multiplies a word of weights to a line of either plane, or of the first.
    ///
    /// # Safety
    /// `to` is a line of a tile, which the other plane's follows.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn unpack<F: Format>(&self, word: __m512i, to: *mut [u8; 64]) {
        let [high, low] = match planes::<F>() {
            Planes::Scales => [
                _mm512_mullo_epi16(word, self.by[0]),
                _mm512_mullo_epi16(word, self.by[1]),
            ],
            Planes::Minima => {
                // SAFETY: the caller's promise.
                unsafe { store(to, _mm512_mullo_epi16(word, self.by[0])) };
                return;
            }
            Planes::Bytes => {
                let zero = _mm512_setzero_si512();
                let word = _mm512_mask_sub_epi8(word, self.negative, zero, word);
                // Products of one byte and of a zero: nothing saturates.
                let even = _mm512_maddubs_epi16(self.by[0], word);
                let odd = _mm512_maddubs_epi16(self.by[1], word);
                [swapped(odd, EVEN, even), swapped(even, !EVEN, odd)]
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            store(to, high);
            store(to.add(16), low);
        }
    }
}

/// Bytes of even numbers.
const EVEN: __mmask64 = 0x5555_5555_5555_5555;

/// The bytes of 16 bits in turned order.
const SWAPPED: [u8; 64] = {
    let (mut swapped, mut i) = ([0; 64], 0);
    while i < 64 {
        swapped[i] = ((i % 16) ^ 1) as u8;
        i += 1;
    }
    swapped
};

/// `to`, whose `bytes` are those of `from` at the other end of their 16 bits. The compiler would shuffle all and blend.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
fn swapped(mut to: __m512i, bytes: __mmask64, from: __m512i) -> __m512i {
    // SAFETY: the array has 64 bytes; the instruction changes nothing else.
    unsafe {
        let order = _mm512_loadu_si512(SWAPPED.as_ptr().cast());
        asm!(
            "vpshufb {to}{{{bytes}}}, {from}, {order}",
            to = inout(zmm_reg) to,
            bytes = in(kreg) bytes,
            from = in(zmm_reg) from,
            order = in(zmm_reg) order,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    to
}

/// The integer minima of a part of both groups, in 32 bits.
///
/// # Safety
/// Each of `at` points at a part of a format that has them.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn mins(at: [*const u8; 2]) -> __m512i {
    // SAFETY: eight bytes of scales are followed by as many of minima.
    let [first, second] = unsafe {
        [
            _mm_loadl_epi64(at[0].add(8).cast()),
            _mm_loadl_epi64(at[1].add(8).cast()),
        ]
    };
    _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(first, second))
}

/// Numbers below 256 in 16 bits, in both bytes.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
fn in_every_byte(x: __m512i) -> __m512i {
    _mm512_or_si512(x, _mm512_slli_epi16::<8>(x))
}

/// Writes a whole line.
///
/// # Safety
/// It may be written, and begins at a multiple of 64.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn store(to: *mut [u8; 64], line: __m512i) {
    // SAFETY: the caller's promise.
    unsafe { _mm512_store_si512(to.cast(), line) };
}

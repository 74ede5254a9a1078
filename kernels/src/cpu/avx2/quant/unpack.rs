//! Pieces of packed blocks, unpacked to a lane or four bytes a row. `H` is the half of a part, and the four results are its
//! words.

use std::arch::x86_64::*;

use super::Head;
use crate::quant::fields::half_exponent;

/// Bytes of a vector.
const VECTOR: usize = 32;

/// # Safety
/// `at` points at the 4 vectors of a plane of 4 bits.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn nibbles<const H: usize>(at: *const u8) -> [__m256i; 4] {
    let mask = _mm256_set1_epi8(15);
    // SAFETY: two of the four vectors.
    let (a, b) = unsafe { (vector(at, 2 * H), vector(at, 2 * H + 1)) };
    [
        _mm256_and_si256(a, mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(a), mask),
        _mm256_and_si256(b, mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(b), mask),
    ]
}

/// # Safety
/// `at` points at the 8 vectors of a plane of 8 bits.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn bytes<const H: usize>(at: *const u8) -> [__m256i; 4] {
    // SAFETY: four of the eight vectors.
    unsafe {
        [
            vector(at, 4 * H),
            vector(at, 4 * H + 1),
            vector(at, 4 * H + 2),
            vector(at, 4 * H + 3),
        ]
    }
}

/// A plane of 2 bits, moved up by `to` bits.
///
/// # Safety
/// `at` points at its 2 vectors.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn crumbs<const H: usize>(at: *const u8, to: i32) -> [__m256i; 4] {
    // SAFETY: one of the two vectors.
    let v = unsafe { vector(at, H) };
    let mask = _mm256_set1_epi8((3 << to) as i8);
    [
        _mm256_and_si256(shifted(v, to), mask),
        _mm256_and_si256(shifted(v, to - 2), mask),
        _mm256_and_si256(shifted(v, to - 4), mask),
        _mm256_and_si256(shifted(v, to - 6), mask),
    ]
}

/// A plane of 1 bit, moved up by `to` bits.
///
/// # Safety
/// `at` points at its vector.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn bits<const H: usize>(at: *const u8, to: i32) -> [__m256i; 4] {
    // SAFETY: the vector.
    let v = unsafe { vector(at, 0) };
    let mask = _mm256_set1_epi8((1 << to) as i8);
    let first = to - 4 * H as i32;
    [
        _mm256_and_si256(shifted(v, first), mask),
        _mm256_and_si256(shifted(v, first - 1), mask),
        _mm256_and_si256(shifted(v, first - 2), mask),
        _mm256_and_si256(shifted(v, first - 3), mask),
    ]
}

/// The bits of both.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub fn or(a: [__m256i; 4], b: [__m256i; 4]) -> [__m256i; 4] {
    [
        _mm256_or_si256(a[0], b[0]),
        _mm256_or_si256(a[1], b[1]),
        _mm256_or_si256(a[2], b[2]),
        _mm256_or_si256(a[3], b[3]),
    ]
}

/// Takes an offset off every byte.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub fn less(w: [__m256i; 4], offset: i8) -> [__m256i; 4] {
    let offset = _mm256_set1_epi8(offset);
    [
        _mm256_sub_epi8(w[0], offset),
        _mm256_sub_epi8(w[1], offset),
        _mm256_sub_epi8(w[2], offset),
        _mm256_sub_epi8(w[3], offset),
    ]
}

/// Looks every byte (0 to 15) up.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub fn looked_up(w: [__m256i; 4], table: &[i8; 16]) -> [__m256i; 4] {
    // SAFETY: the table has 16 bytes.
    let table = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) };
    [
        _mm256_shuffle_epi8(table, w[0]),
        _mm256_shuffle_epi8(table, w[1]),
        _mm256_shuffle_epi8(table, w[2]),
        _mm256_shuffle_epi8(table, w[3]),
    ]
}

/// Eight unsigned bytes, each twice in its row's lane, in 16 bits.
///
/// # Safety
/// `at` points at them.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn unsigned_pairs(at: *const u8) -> __m256i {
    const ORDER: [u8; 32] = order([true, false, true, false]);
    // SAFETY: the caller's promise.
    unsafe { shuffled(at, &ORDER) }
}

/// Eight signed bytes, each twice in its row's lane, in 16 bits.
///
/// # Safety
/// `at` points at them.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn signed_pairs(at: *const u8) -> __m256i {
    const ORDER: [u8; 32] = order([false, true, false, true]);
    // SAFETY: the caller's promise.
    unsafe { _mm256_srai_epi16::<8>(shuffled(at, &ORDER)) }
}

/// Eight unsigned bytes as f32.
///
/// # Safety
/// `at` points at them.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn floats(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))) }
}

/// Twice eight unsigned bytes, in 16 bits: those of both are side by side in their row's lane.
///
/// # Safety
/// `at` and `next` point at eight each.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn interleaved(at: *const u8, next: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    let (first, second) = unsafe { (_mm_loadl_epi64(at.cast()), _mm_loadl_epi64(next.cast())) };
    _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second))
}

/// A header of eight f16 factors.
///
/// # Safety
/// `at` points at them.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn factor(at: *const u8) -> Head {
    // SAFETY: 16 bytes.
    let d = unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) };
    Head {
        d,
        m: _mm256_setzero_ps(),
    }
}

/// A header of eight f16 factors, and those of minima.
///
/// # Safety
/// `at` points at them.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn factors(at: *const u8) -> Head {
    // SAFETY: twice 16 bytes.
    unsafe {
        Head {
            d: factor(at).d,
            m: factor(at.add(16)).d,
        }
    }
}

/// A header of eight f16 factors, and those of minima that are subtracted.
///
/// # Safety
/// `at` points at them.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn factors_subtracted(at: *const u8) -> Head {
    // SAFETY: the caller's promise.
    let head = unsafe { factors(at) };
    Head {
        d: head.d,
        m: _mm256_xor_ps(head.m, _mm256_set1_ps(-0.0)),
    }
}

/// A header of eight exponents ([`half_exponent`]).
///
/// # Safety
/// `at` points at them.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn exponents(at: *const u8) -> Head {
    // SAFETY: 8 bytes.
    let e = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())) };
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
    let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(half_exponent(0).to_bits() as i32), e);
    let is_subnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    Head {
        d: _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, is_subnormal)),
        m: _mm256_setzero_ps(),
    }
}

/// Vector `i` of those from `at` on.
///
/// # Safety
/// It is there.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn vector(at: *const u8, i: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(at.add(i * VECTOR).cast()) }
}

/// Shifts left by a constant, or right if it is negative. What crosses from byte to byte, the caller masks.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
fn shifted(v: __m256i, by: i32) -> __m256i {
    match by {
        0 => v,
        1.. => _mm256_sll_epi16(v, _mm_cvtsi32_si128(by)),
        _ => _mm256_srl_epi16(v, _mm_cvtsi32_si128(-by)),
    }
}

/// The index of `vpshufb` that gives a zero byte.
const ZERO: u8 = 0x80;

/// Lane r of eight: byte r where `bytes` has true, else a zero byte.
const fn order(bytes: [bool; 4]) -> [u8; 32] {
    let mut order = [ZERO; 32];
    let mut i = 0;
    while i < 32 {
        if bytes[i % 4] {
            order[i] = (i / 4) as u8;
        }
        i += 1;
    }
    order
}

/// Eight bytes, shuffled to the lanes.
///
/// # Safety
/// `at` points at the bytes.
#[inline]
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn shuffled(at: *const u8, order: &[u8; 32]) -> __m256i {
    // SAFETY: the caller's promise.
    let (bytes, order) = unsafe {
        (
            _mm256_set1_epi64x(at.cast::<i64>().read_unaligned()),
            _mm256_loadu_si256(order.as_ptr().cast()),
        )
    };
    _mm256_shuffle_epi8(bytes, order)
}

//! The softmax of attention, sixteen positions a vector.

use std::arch::x86_64::*;

use crate::cpu::TILE;
use crate::cpu::avx2::attention::{LANES, Lanes, Query, horizontal_sum, softmax_of};
use crate::cpu::math::exp_constants as exp_of;

/// Elements of a vector.
const WIDE: usize = 16;

softmax_of!("avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma");

/// The maximum of a query with its scores of the tile at position `base`. Where it doesn't see the tile, these become the least.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
fn maximum(query: &Query, base: usize, p: &mut [f32; TILE]) -> f32 {
    let seen = query.seen(base);
    let unseen = !(u64::MAX << (seen.start - base) & u64::MAX >> (base + TILE - seen.end));
    if unseen != 0 {
        // It may be anything, NaN included.
        let least = _mm512_set1_ps(f32::NEG_INFINITY);
        for i in 0..TILE / WIDE {
            let unseen = (unseen >> (WIDE * i)) as __mmask16;
            // SAFETY: sixteen elements of the row.
            unsafe { _mm512_mask_storeu_ps(p.as_mut_ptr().add(WIDE * i), unseen, least) };
        }
    }
    // From a number on, so that NaN is never the greater.
    let mut maxima = _mm512_set1_ps(query.max);
    for i in 0..TILE / WIDE {
        // SAFETY: sixteen elements of the row.
        maxima = _mm512_max_ps(
            unsafe { _mm512_loadu_ps(p.as_mut_ptr().add(WIDE * i)) },
            maxima,
        );
    }
    let eight = _mm256_max_ps(
        _mm512_castps512_ps256(maxima),
        _mm512_extractf32x8_ps::<1>(maxima),
    );
    let four = _mm_max_ps(
        _mm256_castps256_ps128(eight),
        _mm256_extractf128_ps::<1>(eight),
    );
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

/// Turns a row of scores into probabilities, and returns their sum.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
fn probabilities(p: &mut [f32; TILE], max: f32) -> f32 {
    let max = _mm512_set1_ps(max);
    let mut e = [_mm512_setzero_ps(); TILE / WIDE];
    for (i, e) in e.iter_mut().enumerate() {
        // SAFETY: sixteen elements of the row.
        unsafe {
            *e = exp(_mm512_sub_ps(
                _mm512_loadu_ps(p.as_mut_ptr().add(WIDE * i)),
                max,
            ));
            _mm512_storeu_ps(p.as_mut_ptr().add(WIDE * i), *e);
        }
    }
    // Eight lanes, ascending, as `math::sum_tile`.
    let halves = |e: __m512| (_mm512_castps512_ps256(e), _mm512_extractf32x8_ps::<1>(e));
    let (low, high) = halves(e[0]);
    let mut sums = _mm256_add_ps(low, high);
    for e in &e[1..] {
        let (low, high) = halves(*e);
        sums = _mm256_add_ps(_mm256_add_ps(sums, low), high);
    }
    horizontal_sum(sums)
}

/// `math::exp` of sixteen.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
fn exp(x: __m512) -> __m512 {
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
        _mm512_mul_ps(x, _mm512_set1_ps(exp_of::LOG2_E)),
    );
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-exp_of::LN2_HIGH), x);
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-exp_of::LN2_LOW), r);
    let mut p = _mm512_set1_ps(exp_of::POLYNOMIAL[4]);
    for c in exp_of::POLYNOMIAL[..4].iter().rev() {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
    }
    let one = _mm512_set1_ps(1.0);
    let e = _mm512_fmadd_ps(_mm512_fmadd_ps(p, r, one), r, one);
    let in_range = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(exp_of::MIN));
    // Times 2^n, which is exact: above the limit nothing is subnormal.
    _mm512_maskz_scalef_ps(in_range, e, n)
}

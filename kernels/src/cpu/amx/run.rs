//! A tile of tokens over a chunk of unpacked weights: products by tiles, and scaling by AVX-512 beside them.

use std::arch::asm;
use std::arch::x86_64::*;

use super::panel::{Panel, has_signs, planes, weights};
use super::tiles::{Activations, PIECES, Sums, Tiles, sets};
use crate::cpu::avx2::quant::{Format, Scales, has_inner_sums};
use crate::quant::BLOCK;

/// Steps whose products are ahead of the one that is scaled, at most (NOTES.md, "Chunks").
const AHEAD: usize = 2;

/// Factors of 32 activations of each token of a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Factors {
    pub(super) scales: [f32; 16],
    pub(super) sums: [f32; 16],
}

/// A block for each token below a limit, written out, so that what arrays hold for them stays in registers.
macro_rules! each_token {
    ($t:ident < $limit:ident: $block:block) => {
        each_token!(@ $t $limit $block 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $t:ident $limit:ident $block:block $($i:literal)*) => {$(
        if $i < $limit {
            let $t = $i;
            $block
        }
    )*};
}

/// A tile of tokens by sixteen features, over a chunk.
pub(super) struct Run {
    pub(super) x: Activations,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Whether there are sixteen features, not eight.
    pub(super) pair: bool,
    /// Whether accumulators start from `out`.
    pub(super) resumes: bool,
    /// First rows that are not stored.
    pub(super) done: usize,
}

impl Run {
    /// Step `n` stores panel n's results, scales them and adds them, a token after the other; the products of a step up to AHEAD
    /// further on are issued in pieces between tokens (NOTES.md, "Pieces").
    ///
    /// # Safety
    /// `x` has T rows of `count` blocks, `panels` and `factors` as many elements, `out` T rows; `results` has room for those of
    /// a step; tiles are configured.
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    pub(super) unsafe fn panels<M: Tiles, F: Format, const BYTES: usize, const T: usize>(
        &self,
        count: usize,
        panels: *const Panel,
        factors: *const Factors,
        results: *mut Sums,
    ) {
        let sets = sets(planes::<F, BYTES>(), weights::<F>());
        let zero = _mm512_setzero_ps();
        // Sums, or inner ones of the block in work ([`has_inner_sums`]), and those of its integer minima.
        let (mut acc, mut mins) = ([zero; 16], [zero; 16]);
        // SAFETY: the caller's promise.
        unsafe {
            if self.resumes && !has_inner_sums::<F>() {
                each_token!(t < T: {
                    acc[t] = self.load(t);
                });
            }
            let ahead = AHEAD.min(sets - 1);
            let multiply = |step: usize, piece: usize| {
                if step < count {
                    self.multiply::<M, F, BYTES>(step, piece, panels.add(step));
                }
            };
            for step in 0..ahead {
                (0..PIECES).for_each(|piece| multiply(step, piece));
            }
            for step in 0..count {
                if ahead == 0 {
                    (0..PIECES).for_each(|piece| multiply(step, piece));
                }
                if F::HAS_MIN && has_inner_sums::<F>() && step.is_multiple_of(F::PARTS) {
                    let resumes = self.resumes || step > 0;
                    self.add_mins::<F, T>(panels.add(step), factors.add(step), resumes);
                }
                store::<M, F, BYTES>(step, results);
                let (panel, factors) = (panels.add(step), factors.add(step));
                each_token!(t < T: {
                    // A quarter of the tokens, a piece, and so on.
                    let quarter = T / (PIECES + 1);
                    if t > 0 && t % quarter == 0 && t / quarter <= PIECES {
                        settle(&mut acc);
                        if ahead > 0 {
                            multiply(step + ahead, t / quarter - 1);
                        }
                    }
                    add::<F, BYTES>(panel, factors, results, t, &mut acc[t]);
                    if F::HAS_HALF_MINS {
                        add_min::<F, BYTES>(factors, results, t, &mut mins[t]);
                    }
                });
                settle(&mut acc);
                if has_inner_sums::<F>() && (step + 1).is_multiple_of(F::PARTS) {
                    let resumes = self.resumes || step >= F::PARTS || F::HAS_MIN;
                    each_token!(t < T: {
                        let sum = if resumes { self.load(t) } else { zero };
                        let inner = [&mut acc[t], &mut mins[t]].map(|sum| std::mem::replace(sum, zero));
                        self.store(t, fold::<F>(panel, sum, inner));
                    });
                }
            }
            if !has_inner_sums::<F>() {
                each_token!(t < T: {
                    self.store(t, acc[t]);
                });
            }
        }
    }

    /// Adds what the minima of a block are to what out holds, or writes it.
    ///
    /// # Safety
    /// As [`Run::panels`]; there are the block's panels and factors.
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn add_mins<F: Format, const T: usize>(
        &self,
        panels: *const Panel,
        factors: *const Factors,
        resumes: bool,
    ) {
        let mut acc = [_mm512_setzero_ps(); 16];
        // SAFETY: the caller's promise: what is read of a panel is initialised.
        unsafe {
            if resumes {
                each_token!(t < T: {
                    acc[t] = self.load(t);
                });
            }
            for i in 0..F::PARTS {
                let min = _mm512_load_ps((&raw const (*panels.add(i)).min).cast());
                let factors = factors.add(i);
                each_token!(t < T: {
                    acc[t] = _mm512_fmadd_ps(min, _mm512_set1_ps((*factors).sums[t]), acc[t]);
                });
            }
            each_token!(t < T: {
                self.store(t, acc[t]);
            });
        }
    }

    /// What out holds of token `t`.
    ///
    /// # Safety
    /// It has the row.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn load(&self, t: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let out = self.out.add(t * self.out_stride);
            match self.pair {
                true => _mm512_loadu_ps(out),
                false => _mm512_zextps256_ps512(_mm256_loadu_ps(out)),
            }
        }
    }

    /// Has out hold a token's sums, unless the tile before has done the row.
    ///
    /// # Safety
    /// It has the row.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn store(&self, t: usize, sums: __m512) {
        // SAFETY: the caller's promise.
        unsafe {
            let out = self.out.add(t * self.out_stride);
            match self.pair {
                _ if t < self.done => {}
                true => _mm512_storeu_ps(out, sums),
                false => _mm256_storeu_ps(out, _mm512_castps512_ps256(sums)),
            }
        }
    }

    /// Multiplies the tiles of a panel, or does a piece of that ([`Tiles::multiply`]).
    ///
    /// # Safety
    /// As [`Run::panels`]; the panel is number `step`.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn multiply<M: Tiles, F: Format, const BYTES: usize>(
        &self,
        step: usize,
        piece: usize,
        panel: *const Panel,
    ) {
        let x = Activations {
            at: self.x.at.wrapping_add(BYTES * step * BLOCK),
            ..self.x
        };
        // SAFETY: the caller's promise; the panel's rows are within it.
        unsafe {
            let words = (&raw const (*panel).words).cast::<u8>();
            let mins = (&raw const (*panel).mins).cast::<u8>();
            let at = [words, mins];
            // Two tiles of weights are only those of Q2_K, unsigned, and meet both bytes of Q11.
            match (has_signs::<F>(), planes::<F, BYTES>(), weights::<F>()) {
                (false, 1, _) => M::multiply::<false, 1, 1>(step, piece, x, at),
                (false, _, 1) => M::multiply::<false, 2, 1>(step, piece, x, at),
                (false, _, _) => M::multiply::<false, 2, 2>(step, piece, x, at),
                (true, 1, _) => M::multiply::<true, 1, 1>(step, piece, x, at),
                (true, _, _) => M::multiply::<true, 2, 1>(step, piece, x, at),
            }
        }
    }
}

/// Stores the results of a step.
///
/// # Safety
/// As [`Tiles::store`].
#[inline]
unsafe fn store<M: Tiles, F: Format, const BYTES: usize>(step: usize, to: *mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        match (planes::<F, BYTES>(), weights::<F>()) {
            (1, _) => M::store::<1, 1>(step, to),
            (_, 1) => M::store::<2, 1>(step, to),
            (_, _) => M::store::<2, 2>(step, to),
        }
    }
}

/// Adds a panel's results for token `t`, scaled.
///
/// # Safety
/// The panel and the results are the format's; there are those of the token.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn add<F: Format, const BYTES: usize>(
    panel: *const Panel,
    factors: *const Factors,
    results: *const Sums,
    t: usize,
    acc: &mut __m512,
) {
    // SAFETY: the caller's promise: what is read of the panel is initialised.
    unsafe {
        let load = |floats: *const [f32; 16]| _mm512_load_ps(floats.cast());
        let scale = _mm512_set1_ps((*factors).scales[t]);
        let sum = |plane: usize| sums(results.add(plane), t);
        let scaled = |plane: usize| match F::SCALES {
            Scales::Whole => _mm512_mul_ps(sum(plane), load(&raw const (*panel).scales)),
            // There are none, or weights hold them.
            Scales::None | Scales::Halves => sum(plane),
        };
        let product = combined::<F, BYTES>(scaled);
        if has_inner_sums::<F>() {
            *acc = _mm512_fmadd_ps(product, scale, *acc);
            return;
        }
        let d = load(&raw const (*panel).d);
        *acc = _mm512_fmadd_ps(product, _mm512_mul_ps(d, scale), *acc);
        if F::HAS_MIN {
            let sum = _mm512_set1_ps((*factors).sums[t]);
            *acc = _mm512_fmadd_ps(load(&raw const (*panel).min), sum, *acc);
        }
    }
}

/// Adds a panel's results with integer minima for token `t`, scaled.
///
/// # Safety
/// As [`add`].
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn add_min<F: Format, const BYTES: usize>(
    factors: *const Factors,
    results: *const Sums,
    t: usize,
    acc: &mut __m512,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let sum = |plane: usize| sums(results.add(planes::<F, BYTES>() + plane), t);
        let scale = _mm512_set1_ps((*factors).scales[t]);
        *acc = _mm512_fmadd_ps(combined::<F, BYTES>(sum), scale, *acc);
    }
}

/// Adds the inner sums of a token: those of products and those of integer minima. The panel is one of the block's.
///
/// # Safety
/// The panel is the format's.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn fold<F: Format>(panel: *const Panel, acc: __m512, [inner, mins]: [__m512; 2]) -> __m512 {
    // SAFETY: the caller's promise: what is read of a panel is initialised.
    unsafe {
        let load = |floats: *const [f32; 16]| _mm512_load_ps(floats.cast());
        let acc = _mm512_fmadd_ps(inner, load(&raw const (*panel).d), acc);
        match F::HAS_HALF_MINS {
            true => _mm512_fmadd_ps(mins, load(&raw const (*panel).m), acc),
            false => acc,
        }
    }
}

/// Has accumulators computed here: else their last additions wait until behind the branches to come, and what they add takes
/// the registers.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
fn settle(acc: &mut [__m512; 16]) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = acc;
    // SAFETY: no instruction.
    unsafe {
        asm!(
            "/* {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} */",
            inout(zmm_reg) * a,
            inout(zmm_reg) * b,
            inout(zmm_reg) * c,
            inout(zmm_reg) * d,
            inout(zmm_reg) * e,
            inout(zmm_reg) * f,
            inout(zmm_reg) * g,
            inout(zmm_reg) * h,
            inout(zmm_reg) * i,
            inout(zmm_reg) * j,
            inout(zmm_reg) * k,
            inout(zmm_reg) * l,
            inout(zmm_reg) * m,
            inout(zmm_reg) * n,
            inout(zmm_reg) * o,
            inout(zmm_reg) * p,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// A row of results, in f32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn sums(sums: *const Sums, t: usize) -> __m512 {
    unsafe { _mm512_cvtepi32_ps(_mm512_load_si512(sums.cast::<[i32; 16]>().add(t).cast())) }
}

/// What the tiles of activations make together.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
fn combined<F: Format, const BYTES: usize>(of: impl Fn(usize) -> __m512) -> __m512 {
    match planes::<F, BYTES>() {
        1 => of(0),
        _ => _mm512_fmadd_ps(of(0), _mm512_set1_ps(8.0), of(1)),
    }
}

//! Weights of two groups, unpacked to tiles and to factors that scale their products.

use std::arch::x86_64::*;

use crate::cpu::avx2::quant::{Format, Scales, fetch_part};
use crate::cpu::avx512::part::{
    float_scale, holds_scales, is_joined, is_signed, join, join_floats, min, scales,
};
use crate::quant::BLOCK;

/// 32 k of sixteen rows of weights. What the format hasn't stays uninitialised.
#[repr(C, align(64))]
pub(super) struct Panel {
    /// The words of a tile. Quants that the format raises are as the encoding has them. For both bytes of Q11 in one tile ([`is_joined`]):
    /// eight times the words, and the words.
    pub(super) words: [[u8; 64]; 16],
    /// Integer minima in place of quants, another tile.
    pub(super) mins: [[u8; 64]; 8],
    /// Integer scales, unless the words hold those.
    pub(super) scales: [f32; 16],
    pub(super) d: [f32; 16],
    /// The factor of the integer minima.
    pub(super) m: [f32; 16],
    /// What is added to every weight.
    pub(super) min: [f32; 16],
}

/// Tiles of weights of a panel.
pub(super) const fn weights<F: Format>() -> usize {
    if F::HAS_HALF_MINS { 2 } else { 1 }
}

/// Whether bytes of a panel's words are signed.
pub(super) const fn has_signs<F: Format>() -> bool {
    is_signed::<F>() || F::RAISED != 0
}

/// Tiles of activations of a step.
pub(super) const fn planes<F: Format, const BYTES: usize>() -> usize {
    if is_joined::<F, BYTES>() { 1 } else { BYTES }
}

/// Bytes of a row of a tile of activations.
pub(super) const fn depth<F: Format, const BYTES: usize>() -> usize {
    if is_joined::<F, BYTES>() {
        2 * BLOCK
    } else {
        BLOCK
    }
}

/// Unpacks a block of two groups of weights to the panels of its parts, and fetches those that come next, which may be anywhere. Whole lines are stored: halves of them cost twice the
/// stores (NOTES.md).
///
/// # Safety
/// Each of `at` points at a block, `panels` at as many panels as it has parts.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
pub(super) unsafe fn unpack<F: Format, const BYTES: usize>(
    at: [*const u8; 2],
    panels: *mut Panel,
    next: [*const u8; 2],
) {
    // SAFETY: the caller's promise; a panel's rows have sixteen columns of four bytes.
    unsafe {
        let heads = at.map(|at| F::head(at));
        for i in 0..F::PARTS {
            let part = at.map(|at| at.add(F::HEADER + i * F::PART));
            let panel = panels.add(i);
            for next in next {
                fetch_part::<F, _MM_HINT_T1>(next, i);
            }
            let store = |to: *mut [u8; 64], x| _mm512_store_si512(to.cast(), x);
            let floats = |to: *mut [f32; 16], x| _mm512_store_ps(to.cast(), x);
            let words = (&raw mut (*panel).words).cast::<[u8; 64]>();
            let low = (F::half::<0>(part[0]), F::half::<0>(part[1]));
            let high = (F::half::<1>(part[0]), F::half::<1>(part[1]));
            let scales = scales::<F>(part);
            if F::SCALES == Scales::Whole {
                let scale = float_scale::<F>(part);
                floats(&raw mut (*panel).scales, scale);
            }
            for (h, (half, scale)) in [low, high].into_iter().zip(scales).enumerate() {
                let first = 4 * h;
                for (j, (one, other)) in half.0.into_iter().zip(half.1).enumerate() {
                    let word = join(one, other);
                    let word = match holds_scales::<F>() {
                        // Both bytes of 16 bits at once: neither product leaves its byte.
                        true => _mm512_mullo_epi16(word, scale),
                        false => word,
                    };
                    let less = |word, times: i32| match F::RAISED {
                        0 => word,
                        _ => _mm512_sub_epi8(word, _mm512_set1_epi8((times * F::RAISED) as i8)),
                    };
                    if is_joined::<F, BYTES>() {
                        store(words.add(first + j), less(_mm512_slli_epi16::<3>(word), 8));
                        store(words.add(8 + first + j), less(word, 1));
                    } else {
                        store(words.add(first + j), less(word, 1));
                    }
                }
            }
            for (h, min) in [
                (F::half_min::<0>(part[0]), F::half_min::<0>(part[1])),
                (F::half_min::<1>(part[0]), F::half_min::<1>(part[1])),
            ]
            .into_iter()
            .enumerate()
            {
                let (Some(one), Some(other)) = min else { break };
                let min = join(one, other);
                let min = _mm512_or_si512(min, _mm512_slli_epi16::<8>(min));
                let mins = (&raw mut (*panel).mins).cast::<[u8; 64]>();
                for j in 0..4 {
                    store(mins.add(4 * h + j), min);
                }
                floats(&raw mut (*panel).m, join_floats(heads[0].m, heads[1].m));
            }
            floats(&raw mut (*panel).d, join_floats(heads[0].d, heads[1].d));
            if F::HAS_MIN {
                floats(&raw mut (*panel).min, min::<F>(&heads, part));
            }
        }
    }
}

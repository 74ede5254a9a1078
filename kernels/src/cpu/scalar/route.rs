//! The experts that tokens go to.

use std::slice;

use crate::abi::RouteArgs;
use crate::cpu::math::exp;

/// Chooses each token's experts and weighs them.
///
/// # Safety
/// `logits` has `rows` rows of `experts` elements, `weights` and `chosen` have `rows` rows of `used`, which is 1 to `experts`;
/// `bad` may be written.
pub unsafe fn route(args: &RouteArgs) {
    // SAFETY: the caller's promise.
    unsafe { choose(args) }
}

/// The body, which other levels inline and so compile for their instruction set.
///
/// # Safety
/// As [`route`].
#[inline(always)]
pub unsafe fn choose(args: &RouteArgs) {
    let (experts, used) = (args.experts as usize, args.used as usize);
    let mut bad = None;
    for row in 0..args.rows as usize {
        // SAFETY: the caller promises these rows.
        let (logits, weights, chosen) = unsafe {
            (
                slice::from_raw_parts(args.logits.add(row * args.logits_stride as usize), experts),
                slice::from_raw_parts_mut(
                    args.weights.add(row * args.weights_stride as usize),
                    used,
                ),
                slice::from_raw_parts_mut(args.chosen.add(row * args.chosen_stride as usize), used),
            )
        };
        if logits.iter().all(|l| l.is_finite()) {
            highest(logits, weights, chosen);
            weigh(logits, weights, args.renormalise, args.scale);
            continue;
        }
        bad = bad.or(Some(row));
        weights.fill(0.0);
        for (slot, expert) in chosen.iter_mut().enumerate() {
            *expert = slot as u32;
        }
    }
    if let Some(row) = bad {
        // SAFETY: the caller's promise.
        unsafe { *args.bad = row as u64 };
    }
}

/// The highest logits by descending value, and their indices; of equal ones those with the lower index.
#[inline(always)]
fn highest(logits: &[f32], best: &mut [f32], indices: &mut [u32]) {
    let mut found = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if found == best.len() && logit <= best[found - 1] {
            continue;
        }
        found = (found + 1).min(best.len());
        let mut at = found - 1;
        while at > 0 && logit > best[at - 1] {
            (best[at], indices[at]) = (best[at - 1], indices[at - 1]);
            at -= 1;
        }
        (best[at], indices[at]) = (logit, index as u32);
    }
}

/// Makes weights of the chosen logits: e^(logit - the highest) over the sum of it, ascending over all experts or over the
/// slots, times the scale.
#[inline(always)]
fn weigh(logits: &[f32], weights: &mut [f32], renormalise: bool, scale: f32) {
    let highest = weights[0];
    let mut sum = 0.0;
    if !renormalise {
        for logit in logits {
            sum += exp(logit - highest);
        }
    }
    for weight in weights.iter_mut() {
        *weight = exp(*weight - highest);
        if renormalise {
            sum += *weight;
        }
    }
    for weight in weights {
        *weight = *weight / sum * scale;
    }
}

//! The loops over a whole vocabulary. Each is portable code in an order of operations that allows vectors, compiled for
//! plain x86-64 and for AVX2: the same bits from both, for neither fuses multiplications with additions.

use super::choice::Weigh;

/// Elements that are looked at together before they are looked at one by one.
pub const BLOCK: usize = 256;

/// The function as it is, and compiled for AVX2 and taken where the processor has that.
macro_rules! vectorised {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn portable($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    portable($($arg),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    };
}

/// A row's largest logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Largest {
    /// The block that has it first, and its value; -inf in block 0 where there is no other.
    At { block: usize, value: f32 },
    /// A block with a NaN.
    NotANumber { block: usize },
}

vectorised! {
    /// Finds the largest of some logits by blocks of [`BLOCK`].
    pub fn find_largest(logits: &[f32]) -> Largest {
        let (mut at, mut value) = (0, f32::NEG_INFINITY);
        for (block, chunk) in logits.chunks(BLOCK).enumerate() {
            if chunk.iter().fold(false, |any, x| any | x.is_nan()) {
                return Largest::NotANumber { block };
            }
            let here = largest(chunk);
            if here > value {
                (at, value) = (block, here);
            }
        }
        Largest::At { block: at, value }
    }
}

vectorised! {
    /// Weighs every token into `weights`, and returns their sum.
    pub fn weigh_all(logits: &[f32], weigh: &Weigh, weights: &mut Vec<f32>) -> f64 {
        weights.resize(logits.len(), 0.0);
        let mut total = 0.0;
        for (weights, logits) in weights.chunks_mut(BLOCK).zip(logits.chunks(BLOCK)) {
            weigh_block(logits, weigh, weights);
            total += sum(weights);
        }
        total
    }
}

vectorised! {
    /// The sum of every token's weight.
    pub fn weigh_together(logits: &[f32], weigh: &Weigh) -> f64 {
        let mut weights = [0.0; BLOCK];
        let mut total = 0.0;
        for logits in logits.chunks(BLOCK) {
            let weights = &mut weights[..logits.len()];
            weigh_block(logits, weigh, weights);
            total += sum(weights);
        }
        total
    }
}

vectorised! {
    /// The sum of weight times distance from the largest logit.
    pub fn moment(logits: &[f32], weights: &[f32], largest: f32) -> f64 {
        let mut lanes = [0f64; 8];
        for (logits, weights) in logits.chunks(8).zip(weights.chunks(8)) {
            for ((lane, &logit), &weight) in lanes.iter_mut().zip(logits).zip(weights) {
                let product = weight as f64 * (logit - largest) as f64;
                // An impossible token is infinitely far away.
                *lane += if weight > 0.0 { product } else { 0.0 };
            }
        }
        lanes.iter().sum()
    }
}

vectorised! {
    /// Makes the tokens impossible that a set hasn't: bit `id % 32` of word `id / 32`, and what lies beyond the words.
    pub fn forbid(logits: &mut [f32], words: &[u32]) {
        let known = logits.len().min(words.len().saturating_mul(32));
        let (known, beyond) = logits.split_at_mut(known);
        beyond.fill(f32::NEG_INFINITY);
        for (logits, &word) in known.chunks_mut(32).zip(words) {
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        let kept = word >> bit & 1 == 1;
                        *logit = if kept { *logit } else { f32::NEG_INFINITY };
                    }
                }
            }
        }
    }
}

vectorised! {
    /// Pushes the index and value of every logit for which `at_least` holds its element of `by`.
    pub fn push_at_least(logits: &[f32], by: &[f32], at_least: f32, push: &mut dyn FnMut(usize, f32)) {
        let blocks = logits.chunks(64).zip(by.chunks(64));
        for (i, (logits, by)) in blocks.enumerate() {
            if largest(by) >= at_least {
                for (j, (&logit, &x)) in logits.iter().zip(by).enumerate() {
                    if x >= at_least {
                        push(i * 64 + j, logit);
                    }
                }
            }
        }
    }
}

vectorised! {
    /// Hands on the start and logits of each block of 64 whose largest is above a bar: what `take` gave for the block
    /// before, at first `bar`.
    pub fn blocks_above(logits: &[f32], bar: f32, take: &mut dyn FnMut(usize, &[f32]) -> f32) {
        let mut bar = bar;
        for (i, chunk) in logits.chunks(64).enumerate() {
            if largest(chunk) > bar {
                bar = take(i * 64, chunk);
            }
        }
    }
}

#[inline(always)]
fn weigh_block(logits: &[f32], weigh: &Weigh, weights: &mut [f32]) {
    // Its own copy: the weights might overlap it, for all that the compiler knows.
    let weigh = *weigh;
    for (weight, &logit) in weights.iter_mut().zip(logits) {
        *weight = weigh.weight(logit);
    }
}

/// The largest of some numbers, -inf for none; written so that it becomes vector code.
#[inline(always)]
fn largest(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = xs.chunks_exact(16);
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = x;
    }
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes
        .into_iter()
        .fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// The sum of some weights in f64, in an order that is fixed and allows vector code.
#[inline(always)]
pub fn sum(xs: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    for chunk in xs.chunks(8) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x as f64;
        }
    }
    lanes.iter().sum()
}

/// e^x for x <= 0 to within 2 ulp, 0 below -87: vector code without calls, the same bits on every machine.
#[inline(always)]
pub fn exp_below_zero(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    /// 1.5 * 2^23: adding it rounds to a whole number and leaves that in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    // ln 2 in two parts, the first of few bits, so that its product with a whole number is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let whole = shifted - ROUNDER;
    let r = (clamped - whole * LN2_HIGH) - whole * LN2_LOW;
    // Taylor's coefficients suffice for |r| <= ln(2) / 2.
    let mut series = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        series = series * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x > LOWEST { series * power } else { 0.0 }
}

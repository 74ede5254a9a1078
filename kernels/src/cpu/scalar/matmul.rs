//! Tiles of matrix products.

use std::slice;

use half::f16;

use crate::abi::MatMulArgs;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Bytes before the quants of a packed block, and bytes of the block.
const Q4_0: (usize, usize) = (16, 144);
const Q4_1: (usize, usize) = (32, 160);
const Q8_0: (usize, usize) = (16, 272);

/// F32 weights times f32 rows.
///
/// # Safety
/// As [`tiles`].
pub unsafe fn matmul_f32(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { float(args, 4, |w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])) }
}

/// F16 weights times f32 rows.
///
/// # Safety
/// As [`tiles`].
pub unsafe fn matmul_f16(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { float(args, 2, |w| f16::from_le_bytes([w[0], w[1]]).to_f32()) }
}

macro_rules! quantised {
    ($($name:ident: $doc:literal, $block:ident, $activations:expr, $dot:ident, $min:expr;)*) => {$(
        #[doc = $doc]
        ///
        /// # Safety
        /// As [`tiles`].
        pub unsafe fn $name(args: &MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe { quantised(args, $block, $activations, $dot, $min) }
        }
    )*};
}

quantised! {
    matmul_q4_0: "Q4_0 weights times Q8 rows.", Q4_0, Activations::Q8, dot_nibbles, Some(min_of_scale);
    matmul_q4_1: "Q4_1 weights times Q8 rows.", Q4_1, Activations::Q8, dot_nibbles, Some(min_of_block);
    matmul_q8_0: "Q8_0 weights times Q8 rows.", Q8_0, Activations::Q8, dot_bytes, None;
    matmul_q4_0_q16: "Q4_0 weights times Q16 rows.", Q4_0, Activations::Q16, dot_nibbles, Some(min_of_scale);
    matmul_q4_1_q16: "Q4_1 weights times Q16 rows.", Q4_1, Activations::Q16, dot_nibbles, Some(min_of_block);
    matmul_q8_0_q16: "Q8_0 weights times Q16 rows.", Q8_0, Activations::Q16, dot_bytes, None;
}

/// Types of quantised rows.
#[derive(Clone, Copy)]
enum Activations {
    Q8,
    Q16,
}

/// Calls `group(weights, x, out)` for each group of the tile and each row: the group's packed bytes, the row of
/// activations and the eight outputs.
///
/// # Safety
/// `w` holds the groups of features `col0 .. col0 + cols`, `rows` rows of `x` have `x_bytes` bytes, and rows of `out` have
/// `cols` elements rounded up to 8.
unsafe fn tiles(
    args: &MatMulArgs,
    group_bytes: usize,
    x_bytes: usize,
    mut group: impl FnMut(&[u8], &[u8], &mut [f32]),
) {
    let first = args.col0 as usize / GROUP;
    for g in 0..(args.cols as usize).div_ceil(GROUP) {
        // SAFETY: the caller's promise on `w`.
        let w =
            unsafe { slice::from_raw_parts(args.w.add((first + g) * group_bytes), group_bytes) };
        for row in 0..args.rows as usize {
            // SAFETY: the caller's promises on `x` and `out`.
            let (x, out) = unsafe {
                (
                    slice::from_raw_parts(args.x.add(row * args.x_stride as usize), x_bytes),
                    slice::from_raw_parts_mut(
                        args.out.add(row * args.out_stride as usize + g * GROUP),
                        GROUP,
                    ),
                )
            };
            group(w, x, out);
        }
    }
}

/// # Safety
/// As [`tiles`].
unsafe fn float(args: &MatMulArgs, size: usize, value: impl Fn(&[u8]) -> f32) {
    let k = args.k as usize;
    // SAFETY: the caller's promise; a row of x is k f32.
    unsafe {
        tiles(args, k * size * GROUP, k * 4, |w, x, out| {
            out.fill(0.0);
            for (w, x) in w.chunks_exact(size * GROUP).zip(x.chunks_exact(4)) {
                let x = f32_at(x, 0);
                for (w, acc) in w.chunks_exact(size).zip(out.iter_mut()) {
                    *acc = value(w).mul_add(x, *acc);
                }
            }
        })
    }
}

/// # Safety
/// As [`tiles`].
unsafe fn quantised(
    args: &MatMulArgs,
    (header, block_bytes): (usize, usize),
    activations: Activations,
    dot: fn(&[u8], usize, &[u8]) -> i32,
    min: Option<fn(&[u8], usize) -> f32>,
) {
    let k = args.k as usize;
    let blocks = k / BLOCK;
    let quants_bytes = match activations {
        Activations::Q8 => k,
        Activations::Q16 => 2 * k,
    };
    // SAFETY: the caller's promise; a row has its quants, scales and sums.
    unsafe {
        let x_bytes = quants_bytes + blocks * 8;
        tiles(args, blocks * block_bytes, x_bytes, |w, x, out| {
            let (quants, factors) = x.split_at(quants_bytes);
            let (scales, sums) = factors.split_at(blocks * 4);
            out.fill(0.0);
            for (b, block) in w.chunks_exact(block_bytes).enumerate() {
                let quants = &quants[b * BLOCK..];
                let (scale, sum) = (f32_at(scales, b), f32_at(sums, b));
                for (r, acc) in out.iter_mut().enumerate() {
                    let dot = |quants: &[u8]| dot(&block[header..], r, &quants[..BLOCK]);
                    let isum = match activations {
                        Activations::Q8 => dot(quants),
                        Activations::Q16 => 128 * dot(quants) + dot(&quants[k..]),
                    };
                    *acc = (isum as f32).mul_add(half_at(block, r) * scale, *acc);
                    if let Some(min) = min {
                        *acc = min(block, r).mul_add(sum, *acc);
                    }
                }
            }
        })
    }
}

/// What a Q4_0 block adds to all its elements.
fn min_of_scale(block: &[u8], r: usize) -> f32 {
    -8.0 * half_at(block, r)
}

/// What a Q4_1 block adds to all its elements.
fn min_of_block(block: &[u8], r: usize) -> f32 {
    half_at(block, GROUP + r)
}

/// The inner product of row r's 4-bit quants and 32 activations.
fn dot_nibbles(vectors: &[u8], r: usize, x: &[u8]) -> i32 {
    let mut sum = 0;
    for i in 0..BLOCK / 2 {
        let byte = vectors[i / 4 * 32 + 4 * r + i % 4];
        sum += i32::from(byte & 15) * i32::from(x[i] as i8);
        sum += i32::from(byte >> 4) * i32::from(x[i + BLOCK / 2] as i8);
    }
    sum
}

/// The inner product of row r's 8-bit quants and 32 activations.
fn dot_bytes(vectors: &[u8], r: usize, x: &[u8]) -> i32 {
    let quant = |i: usize| vectors[i / 4 * 32 + 4 * r + i % 4] as i8;
    (0..BLOCK)
        .map(|i| i32::from(quant(i)) * i32::from(x[i] as i8))
        .sum()
}

fn half_at(block: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([block[2 * index], block[2 * index + 1]]).to_f32()
}

fn f32_at(bytes: &[u8], index: usize) -> f32 {
    let word = &bytes[4 * index..][..4];
    f32::from_le_bytes([word[0], word[1], word[2], word[3]])
}

//! Tiles of matrix products.

use std::slice;

use bundle_format::plan::{DType, Encoding, Q8K_BLOCK, row_bytes};
use half::{bf16, f16};

use crate::abi::MatMulArgs;
use crate::pack::{self, GROUP, Min, packed_block_bytes, pairs};
use crate::quant::{BLOCK, block_elements};
use crate::reference::{q11, q14};

macro_rules! float_of {
    ($($name:ident: $doc:literal, $size:literal, $value:expr;)*) => {$(
        #[doc = $doc]
        ///
        /// # Safety
        /// `w` holds the packed groups of features `col0 .. col0 + cols`, `rows` rows of `x` have `k` f32, and rows of
        /// `out` have `cols` elements rounded up to 8.
        pub unsafe fn $name(args: &MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe { float::<$size>(args, $value) }
        }
    )*};
}

float_of! {
    matmul_f32: "F32 weights times f32 rows.", 4, f32::from_le_bytes;
    matmul_f16: "F16 weights times f32 rows.", 2, |w| f16::from_le_bytes(w).to_f32();
    matmul_bf16: "BF16 weights times f32 rows.", 2, |w| bf16::from_le_bytes(w).to_f32();
}

/// Weights in pairs times Q14 rows: those of 32 columns are integers times a factor.
///
/// # Safety
/// As [`groups`] and [`row`], with Q14 rows.
pub unsafe fn matmul_pairs(args: &MatMulArgs) {
    let (k, rows) = (args.k as usize, args.rows as usize);
    let x_bytes = 2 * k + k / BLOCK * 8;
    // SAFETY: the caller's promise.
    let groups = unsafe { groups(args, pairs::bytes_of_group(k / BLOCK)) };
    for (g, w) in groups.enumerate() {
        for i in 0..rows {
            // SAFETY: the caller's promise.
            unsafe { row(args, i, g, x_bytes) }.1.fill(0.0);
        }
        for b in 0..k / BLOCK {
            for r in 0..GROUP {
                let (weights, factor) = pairs::integers(w, k / BLOCK, b, r);
                for i in 0..rows {
                    // SAFETY: the caller's promise.
                    let (x, out) = unsafe { row(args, i, g, x_bytes) };
                    let (quants, factors) = x.split_at(2 * k);
                    let isum = weights.iter().enumerate().fold(0i32, |sum, (i, w)| {
                        sum.wrapping_add(i32::from(*w) * q14::quant(quants, b * BLOCK + i))
                    });
                    out[r] = (isum as f32).mul_add(factor * f32_at(factors, b), out[r]);
                }
            }
        }
    }
}

macro_rules! quantised_of {
    ($($q8:ident, $q11:ident: $encoding:ident,)*) => {$(
        /// Quantised weights times Q8 rows, or Q8K rows where a block has 256 weights.
        ///
        /// # Safety
        /// As [`quantised`].
        pub unsafe fn $q8(args: &MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe { quantised(args, Encoding::$encoding, Activations::of_bytes(Encoding::$encoding)) }
        }

        /// Quantised weights times Q11 rows.
        ///
        /// # Safety
        /// As [`quantised`].
        pub unsafe fn $q11(args: &MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe { quantised(args, Encoding::$encoding, Activations::Q11) }
        }
    )*};
}

each_quantised! { quantised_of! }

/// Types of quantised rows.
#[derive(Clone, Copy)]
enum Activations {
    Q8,
    Q8K,
    Q11,
}

impl Activations {
    /// The type whose quants are bytes and whose blocks fit those of an encoding.
    fn of_bytes(encoding: Encoding) -> Activations {
        match block_elements(encoding) {
            BLOCK => Activations::Q8,
            _ => Activations::Q8K,
        }
    }

    /// Block `b` of 32 activations of a row of k.
    fn block(self, row: &[u8], k: usize, b: usize) -> Activation {
        let quant = |i: usize| match self {
            Activations::Q8 | Activations::Q8K => i32::from(row[b * BLOCK + i] as i8),
            Activations::Q11 => q11::quant(row, b * BLOCK + i),
        };
        let quants = std::array::from_fn(quant);
        match self {
            Activations::Q8K => Activation {
                quants,
                scale: f32_at(&row[k..], b * BLOCK / Q8K_BLOCK),
                sum: f32::NAN,
            },
            Activations::Q8 | Activations::Q11 => {
                let factors = &row[if matches!(self, Activations::Q8) {
                    k
                } else {
                    2 * k
                }..];
                Activation {
                    quants,
                    scale: f32_at(factors, b),
                    sum: f32_at(factors, k / BLOCK + b),
                }
            }
        }
    }
}

/// The packed groups of the tile.
///
/// # Safety
/// `w` holds the groups of features `col0 .. col0 + cols`, which live as long as the caller uses them.
unsafe fn groups<'a>(args: &MatMulArgs, group_bytes: usize) -> impl Iterator<Item = &'a [u8]> {
    let first = args.col0 as usize / GROUP;
    let w = args.w;
    (0..(args.cols as usize).div_ceil(GROUP)).map(move |g| {
        // SAFETY: the caller's promise.
        unsafe { slice::from_raw_parts(w.add((first + g) * group_bytes), group_bytes) }
    })
}

/// Row `row` of the activations and its outputs of group `g`.
///
/// # Safety
/// The tile's rows of `x` have `x_bytes` bytes, and rows of `out` have `cols` elements rounded up to 8; no other reference to
/// these outputs lives.
unsafe fn row<'a>(
    args: &MatMulArgs,
    row: usize,
    g: usize,
    x_bytes: usize,
) -> (&'a [u8], &'a mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let x = args.x_row(row);
        let out = args.out.add(row * args.out_stride as usize + g * GROUP);
        (
            slice::from_raw_parts(x, x_bytes),
            slice::from_raw_parts_mut(out, GROUP),
        )
    }
}

/// # Safety
/// As [`groups`] and [`row`], with rows of k f32.
unsafe fn float<const N: usize>(args: &MatMulArgs, value: impl Fn([u8; N]) -> f32) {
    let k = args.k as usize;
    // SAFETY: the caller's promise.
    for (g, w) in unsafe { groups(args, k * N * GROUP) }.enumerate() {
        for i in 0..args.rows as usize {
            // SAFETY: the caller's promise.
            let (x, out) = unsafe { row(args, i, g, k * 4) };
            out.fill(0.0);
            for (w, x) in w.chunks_exact(N * GROUP).zip(x.as_chunks().0) {
                let x = f32::from_le_bytes(*x);
                for (w, acc) in w.as_chunks().0.iter().zip(out.iter_mut()) {
                    *acc = value(*w).mul_add(x, *acc);
                }
            }
        }
    }
}

/// Outputs are their own accumulators: each block of a row of weights is unpacked once for all rows of activations.
///
/// # Safety
/// As [`groups`] and [`row`], with rows of the type.
unsafe fn quantised(args: &MatMulArgs, encoding: Encoding, activations: Activations) {
    let (k, rows) = (args.k as usize, args.rows as usize);
    let x_bytes = match activations {
        Activations::Q8 => k + k / BLOCK * 8,
        Activations::Q8K => row_bytes(DType::Q8K, args.k as u32) as usize,
        Activations::Q11 => 2 * k + k / BLOCK * 8,
    };
    let block_bytes = packed_block_bytes(encoding);
    let parts = block_elements(encoding) / BLOCK;
    // SAFETY: the caller's promise.
    let groups = unsafe { groups(args, k / BLOCK / parts * block_bytes) };
    for (g, w) in groups.enumerate() {
        for i in 0..rows {
            // SAFETY: the caller's promise.
            unsafe { row(args, i, g, x_bytes) }.1.fill(0.0);
        }
        for (block, w) in w.chunks_exact(block_bytes).enumerate() {
            for r in 0..GROUP {
                let unpacked: Vec<Unpacked> = (0..parts)
                    .map(|part| Unpacked::new(encoding, w, part, r))
                    .collect();
                for i in 0..rows {
                    // SAFETY: the caller's promise.
                    let (x, out) = unsafe { row(args, i, g, x_bytes) };
                    let x = |part: usize| activations.block(x, k, block * parts + part);
                    out[r] = match unpacked.as_slice() {
                        [part] => part.add(&x(0), out[r]),
                        parts if matches!(activations, Activations::Q8K) => {
                            add_exactly(parts, x, out[r])
                        }
                        parts => add_block(parts, x, out[r]),
                    };
                }
            }
        }
    }
}

/// 32 activations of a row.
struct Activation {
    quants: [i32; BLOCK],
    scale: f32,
    /// The scale times the sum of the quants; of Q8K of no meaning.
    sum: f32,
}

/// Adds the product of a block of several parts with a block of Q8K to an accumulator: the exact sums of products and of integer minima,
/// each with its factor, times the activations' scale.
fn add_exactly(parts: &[Unpacked], x: impl Fn(usize) -> Activation, acc: f32) -> f32 {
    let (mut sum, mut min_sum, mut scale) = (0, 0, 0.0);
    for (i, part) in parts.iter().enumerate() {
        let x = x(i);
        scale = x.scale;
        sum += part.isum(&x);
        min_sum += halves(|i| x.quants[i], part.min.integers().0);
    }
    let sum = sum as f32 * parts[0].d;
    let sum = match parts[0].min {
        Min::None | Min::Added(_) => sum,
        Min::Whole { factor, .. } | Min::Halves { factor, .. } => {
            (min_sum as f32).mul_add(factor, sum)
        }
    };
    sum.mul_add(scale, acc)
}

/// Adds the product of a block of several parts, whose factors they share, to an accumulator: first what minima add, part by part,
/// then the parts' exact sums, scaled as the activations are, and all of it with the factor once. Integer minima are summed like these.
fn add_block(parts: &[Unpacked], x: impl Fn(usize) -> Activation, acc: f32) -> f32 {
    let (mut acc, mut sum, mut min_sum) = (acc, 0.0f32, 0.0f32);
    for (i, part) in parts.iter().enumerate() {
        let x = x(i);
        sum = (part.isum(&x) as f32).mul_add(x.scale, sum);
        match part.min {
            Min::None => {}
            Min::Added(min) => acc = min.mul_add(x.sum, acc),
            Min::Whole { factor, min } => acc = (factor * min as f32).mul_add(x.sum, acc),
            Min::Halves { mins, .. } => {
                min_sum = (halves(|i| x.quants[i], mins) as f32).mul_add(x.scale, min_sum);
            }
        }
    }
    acc = sum.mul_add(parts[0].d, acc);
    match parts[0].min {
        Min::Halves { factor, .. } => min_sum.mul_add(factor, acc),
        _ => acc,
    }
}

/// The sums of both halves of 32 integers, multiplied with their factors.
fn halves(of: impl Fn(usize) -> i32, factors: [i32; 2]) -> i32 {
    let half = |h: usize| (h * 16..h * 16 + 16).map(&of).sum::<i32>();
    factors[0] * half(0) + factors[1] * half(1)
}

/// 32 weights of a row, as they are multiplied.
struct Unpacked {
    d: f32,
    quants: [i32; BLOCK],
    scales: [i32; 2],
    min: Min,
}

impl Unpacked {
    fn new(encoding: Encoding, block: &[u8], b: usize, r: usize) -> Unpacked {
        let part = pack::part(encoding, block, b, r);
        Unpacked {
            d: part.d,
            quants: std::array::from_fn(|i| part.quant(i)),
            scales: part.scales,
            min: part.min,
        }
    }

    /// The exact product with 32 activations, integer scales included.
    fn isum(&self, x: &Activation) -> i32 {
        halves(|i| self.quants[i] * x.quants[i], self.scales)
    }

    /// Adds the product of a block that is this part to an accumulator. Only larger blocks have integer minima.
    fn add(&self, x: &Activation, acc: f32) -> f32 {
        let acc = (self.isum(x) as f32).mul_add(self.d * x.scale, acc);
        match self.min {
            Min::Added(min) => min.mul_add(x.sum, acc),
            Min::None | Min::Whole { .. } | Min::Halves { .. } => acc,
        }
    }
}

fn f32_at(bytes: &[u8], index: usize) -> f32 {
    crate::quant::f32_at(bytes, 4 * index)
}

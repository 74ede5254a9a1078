//! F32, F16 and BF16 weights times f32 rows.
//!
//! Every output is one chain of fused multiply-adds, so a tile is several groups by several tokens: at least eight chains
//! cover the latency of the instruction.

use std::arch::x86_64::*;

use crate::abi::MatMulArgs;
use crate::pack::GROUP;

/// Tokens of a full tile.
const TOKENS: usize = 6;

/// F16 weights times f32 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_f16(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<F16>(args) }
}

/// BF16 weights times f32 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_bf16(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<BF16>(args) }
}

/// F32 weights times f32 rows.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
pub unsafe fn matmul_f32(args: &MatMulArgs) {
    // SAFETY: the caller's promise.
    unsafe { matmul::<F32>(args) }
}

/// A type of weights.
pub(in crate::cpu) trait Element {
    /// Bytes of a weight.
    const SIZE: usize;

    /// Eight weights.
    ///
    /// # Safety
    /// `at` points at them, and the processor has the level.
    unsafe fn load(at: *const u8) -> __m256;
}

pub(in crate::cpu) enum F32 {}
pub(in crate::cpu) enum F16 {}
pub(in crate::cpu) enum BF16 {}

impl Element for F32 {
    const SIZE: usize = 4;

    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
}

impl Element for BF16 {
    const SIZE: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        let halves = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
    }
}

/// # Safety
/// As [`matmul_f16`].
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn matmul<E: Element>(args: &MatMulArgs) {
    let rows = args.rows as usize;
    let mut row = 0;
    while row < rows {
        // SAFETY: the caller's promise; the rows are there.
        unsafe {
            match rows - row {
                1 => all_groups::<E, 8, 4, 1>(args, row),
                2 => all_groups::<E, 4, 2, 2>(args, row),
                3 => all_groups::<E, 4, 2, 3>(args, row),
                4 => all_groups::<E, 2, 1, 4>(args, row),
                5 => all_groups::<E, 2, 1, 5>(args, row),
                _ => all_groups::<E, 2, 1, TOKENS>(args, row),
            }
        }
        row += TOKENS;
    }
}

/// Rows `row .. row + T` of all columns: G groups at a time, then H, then one by one.
///
/// # Safety
/// As [`matmul_f16`], and these rows are of the tile.
#[target_feature(enable = "avx2,bmi2,f16c,fma")]
unsafe fn all_groups<E: Element, const G: usize, const H: usize, const T: usize>(
    args: &MatMulArgs,
    row: usize,
) {
    let k = args.k as usize;
    let first = args.col0 as usize / GROUP;
    let groups = (args.cols as usize).div_ceil(GROUP);
    // SAFETY: the caller's promise.
    let x = unsafe { args.x_rows(row) };
    let tile = |g: usize| {
        // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
        unsafe {
            Tile {
                w: args.w.add((first + g) * k * GROUP * E::SIZE),
                k,
                x,
                out: args.out.add(row * args.out_stride as usize + g * GROUP),
                out_stride: args.out_stride as usize,
            }
        }
    };
    let mut g = 0;
    while g + G <= groups {
        // SAFETY: G groups from g on are there.
        unsafe { tile(g).run::<E, G, T>() };
        g += G;
    }
    while g + H <= groups {
        // SAFETY: H groups from g on are there.
        unsafe { tile(g).run::<E, H, T>() };
        g += H;
    }
    for g in g..groups {
        // SAFETY: group g is there.
        unsafe { tile(g).run::<E, 1, T>() };
    }
}

/// Some groups of weights and some tokens.
struct Tile {
    w: *const u8,
    k: usize,
    /// The tokens' activations.
    x: [*const u8; TOKENS],
    out: *mut f32,
    out_stride: usize,
}

impl Tile {
    /// # Safety
    /// `w` has G packed groups of k columns, `x` T rows of k f32, `out` T rows of 8 G columns.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,f16c,fma")]
    unsafe fn run<E: Element, const G: usize, const T: usize>(&self) {
        let vector = GROUP * E::SIZE;
        let mut acc = [[_mm256_setzero_ps(); G]; T];
        for i in 0..self.k {
            // SAFETY: vector i of group g.
            let w: [__m256; G] =
                std::array::from_fn(|g| unsafe { E::load(self.w.add((g * self.k + i) * vector)) });
            for (t, acc) in acc.iter_mut().enumerate() {
                // SAFETY: element i of row t of x.
                let x = unsafe {
                    let row = self.x[t].cast::<f32>();
                    _mm256_broadcast_ss(&*row.add(i))
                };
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = _mm256_fmadd_ps(w, x, *acc);
                }
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            for (g, acc) in acc.iter().enumerate() {
                // SAFETY: row t of out has 8 G columns.
                unsafe {
                    _mm256_storeu_ps(self.out.add(t * self.out_stride + g * GROUP), *acc);
                }
            }
        }
    }
}

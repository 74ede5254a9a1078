//! F32, F16 and BF16 weights times f32 rows, for processors that multiply 512 bits twice a cycle.
//!
//! As at AVX2 every output is one chain of fused multiply-adds; two groups of eight features share a vector. A tile of two
//! vectors by twelve tokens keeps 24 chains in registers, so that joining and converting weights costs an eighth of the
//! multiplications or less. Few tokens wait for memory: AVX2's functions serve them as well.

use std::arch::x86_64::*;

use crate::abi::MatMulArgs;
use crate::cpu::avx2;
use crate::cpu::avx2::float::{BF16, Element, F16, F32};
use crate::pack::GROUP;

/// Tokens below which there is nothing to gain.
const FEW: u64 = 4;

/// Tokens of a full tile.
const TOKENS: usize = 12;

/// Features of a vector.
const WIDE: usize = 2 * GROUP;

macro_rules! matmuls {
    ($($name:ident: $element:ident, $doc:literal;)*) => {$(
        #[doc = $doc]
        ///
        /// # Safety
        /// As the scalar twin, and the processor has the level.
        #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
        pub unsafe fn $name(args: &MatMulArgs) {
            // SAFETY: the caller's promise.
            unsafe {
                match args.rows {
                    ..FEW => avx2::$name(args),
                    _ => matmul::<$element>(args),
                }
            }
        }
    )*};
}

matmuls! {
    matmul_f32: F32, "F32 weights times f32 rows.";
    matmul_f16: F16, "F16 weights times f32 rows.";
    matmul_bf16: BF16, "BF16 weights times f32 rows.";
}

/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn matmul<E: Element>(args: &MatMulArgs) {
    let rows = args.rows as usize;
    let mut row = 0;
    while row < rows {
        // SAFETY: the caller's promise; the rows are there.
        row += unsafe {
            match rows - row {
                1 => all_features::<E, 4, 1>(args, row),
                2 | 3 => all_features::<E, 4, 2>(args, row),
                4 | 5 => all_features::<E, 4, 4>(args, row),
                6 | 7 => all_features::<E, 4, 6>(args, row),
                8..TOKENS => all_features::<E, 2, 8>(args, row),
                _ => all_features::<E, 2, TOKENS>(args, row),
            }
        };
    }
}

/// Rows `row .. row + T` of all columns, V vectors of features at a time and the rest one by one. Returns T.
///
/// # Safety
/// As [`matmul`], and these rows are of the tile.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn all_features<E: Element, const V: usize, const T: usize>(
    args: &MatMulArgs,
    row: usize,
) -> usize {
    let k = args.k as usize;
    let groups = (args.cols as usize).div_ceil(GROUP);
    let first = args.col0 as usize / GROUP;
    let group_bytes = k * GROUP * E::SIZE;
    // SAFETY: the caller's promise.
    let x = unsafe { args.x_rows(row) };
    let tile = |g: usize| {
        // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
        unsafe {
            Tile {
                w: args.w.add((first + g) * group_bytes),
                groups: groups - g,
                group_bytes,
                k,
                x,
                out: args.out.add(row * args.out_stride as usize + g * GROUP),
                out_stride: args.out_stride as usize,
            }
        }
    };
    let mut g = 0;
    while g + 2 * V <= groups {
        // SAFETY: V pairs of groups from g on are there.
        unsafe { tile(g).run::<E, V, T>() };
        g += 2 * V;
    }
    while g < groups {
        // SAFETY: a group from g on is there.
        unsafe { tile(g).run::<E, 1, T>() };
        g += 2;
    }
    T
}

/// Some groups of weights and some tokens.
struct Tile {
    w: *const u8,
    /// Groups from `w` on: where there is but one, it is taken twice.
    groups: usize,
    group_bytes: usize,
    k: usize,
    /// The tokens' activations.
    x: [*const u8; TOKENS],
    out: *mut f32,
    out_stride: usize,
}

impl Tile {
    /// # Safety
    /// `w` has 2 V packed groups of k columns, or one and V is 1; `x` T rows of k f32, `out` T rows of as many columns.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn run<E: Element, const V: usize, const T: usize>(&self) {
        let pair = self.groups > 1;
        let second = if pair { self.group_bytes } else { 0 };
        let mut acc = [[_mm512_setzero_ps(); V]; T];
        for i in 0..self.k {
            let mut w = [_mm512_setzero_ps(); V];
            for (v, w) in w.iter_mut().enumerate() {
                // SAFETY: eight weights of two groups. Each converted by itself: processors convert 512 bits no faster.
                *w = unsafe {
                    let at = self.w.add(2 * v * self.group_bytes + i * GROUP * E::SIZE);
                    let first = _mm512_castps256_ps512(E::load(at));
                    _mm512_insertf32x8::<1>(first, E::load(at.add(second)))
                };
            }
            for (t, acc) in acc.iter_mut().enumerate() {
                // SAFETY: element i of row t of x.
                let x = unsafe {
                    let row = self.x[t].cast::<f32>();
                    _mm512_set1_ps(*row.add(i))
                };
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = _mm512_fmadd_ps(w, x, *acc);
                }
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                // SAFETY: row t of out has these columns.
                unsafe {
                    let out = self.out.add(t * self.out_stride + v * WIDE);
                    match pair {
                        true => _mm512_storeu_ps(out, *acc),
                        false => _mm256_storeu_ps(out, _mm512_castps512_ps256(*acc)),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! Against AVX2, which tests/op_parity compares with the scalar twin: here wherever there is AVX-512, there with AMX.

    use super::*;
    use crate::cpu::Level;

    fn check(wide: unsafe fn(&MatMulArgs), narrow: unsafe fn(&MatMulArgs)) {
        if !Level::Avx512.is_available() {
            println!("not run: this processor lacks AVX-512 VNNI");
            return;
        }
        // Weights of any type are numbers around 1.
        let w: Vec<u32> = (0..6000u32)
            .map(|i| 0x3c00_3c00 | (i.wrapping_mul(0x9e37_79b9) >> 7 & 0x01ff_81ff))
            .collect();
        let x: Vec<f32> = (0..37 * 40).map(|i| (i * 29 % 97) as f32 - 48.0).collect();
        for k in [1, 7, 37] {
            for rows in (1..16).chain([32, 40]) {
                for (col0, cols) in [(0, 8), (8, 61), (16, 64), (0, 83)] {
                    let run = |func: unsafe fn(&MatMulArgs)| {
                        let mut out = vec![f32::NAN; rows * 96];
                        let args = MatMulArgs {
                            x: x.as_ptr().cast(),
                            x_stride: 37 * 4,
                            index: std::ptr::null(),
                            w: w.as_ptr().cast(),
                            out: out.as_mut_ptr(),
                            out_stride: 96,
                            k,
                            rows: rows as u64,
                            col0,
                            cols,
                        };
                        // SAFETY: the buffers hold 40 rows of 37 and 88 packed features of 37; the processor has the level.
                        unsafe { func(&args) };
                        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                    };
                    assert_eq!(
                        run(wide),
                        run(narrow),
                        "k {k} rows {rows} columns {col0}+{cols}"
                    );
                }
            }
        }
    }

    #[test]
    fn f32_as_at_avx2() {
        check(matmul_f32, avx2::matmul_f32);
    }

    #[test]
    fn f16_as_at_avx2() {
        check(matmul_f16, avx2::matmul_f16);
    }

    #[test]
    fn bf16_as_at_avx2() {
        check(matmul_bf16, avx2::matmul_bf16);
    }
}

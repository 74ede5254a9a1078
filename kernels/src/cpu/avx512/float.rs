//! F32, F16 and BF16 weights times f32 rows, for processors that multiply 512 bits twice a cycle.
//!
//! As at AVX2 every output is one chain of fused multiply-adds; two groups of eight features share a vector. A tile of two
//! vectors by twelve tokens keeps 24 chains in registers. Two such tiles and more share what joining and converting weights takes,
//! in a panel of f32 in the L1 cache. Few tokens wait for memory: AVX2's functions serve them as well.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

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

/// Elements of a row that are converted at a time for all tokens of a call: 16 KiB of two vectors.
const DEPTH: usize = 128;

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
    let k = args.k as usize;
    let groups = (args.cols as usize).div_ceil(GROUP);
    let packed = |g: usize| Packed::<E> {
        at: args
            .w
            .wrapping_add((args.col0 as usize / GROUP + g) * k * GROUP * E::SIZE),
        group_bytes: k * GROUP * E::SIZE,
        // Where there is no second group, the first is taken twice.
        second: if g + 1 < groups {
            k * GROUP * E::SIZE
        } else {
            0
        },
        element: PhantomData,
    };
    let out = |g: usize| Out {
        at: args.out.wrapping_add(g * GROUP),
        pair: g + 1 < groups,
    };
    // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
    unsafe {
        if args.rows as usize >= 2 * TOKENS {
            let mut panel = MaybeUninit::<[[f32; 2 * WIDE]; DEPTH]>::uninit();
            let mut g = 0;
            while g < groups {
                let two = g + 4 <= groups;
                for first in (0..k).step_by(DEPTH) {
                    let some = first..k.min(first + DEPTH);
                    let at = panel.as_mut_ptr().cast::<f32>();
                    match two {
                        true => packed(g).convert::<2>(some.clone(), at),
                        false => packed(g).convert::<1>(some.clone(), at),
                    }
                    match two {
                        true => all_tokens::<_, 2, TOKENS>(args, &Panel::<2>(at), some, out(g)),
                        false => all_tokens::<_, 1, TOKENS>(args, &Panel::<1>(at), some, out(g)),
                    }
                }
                g += if two { 4 } else { 2 };
            }
            return;
        }
        let wide = match args.rows {
            1..8 => 4,
            _ => 2,
        };
        let mut g = 0;
        while g < groups {
            let some = 0..k;
            g += match wide {
                4 if g + 8 <= groups => {
                    all_tokens::<_, 4, 6>(args, &packed(g), some, out(g));
                    8
                }
                2 if g + 4 <= groups => {
                    all_tokens::<_, 2, TOKENS>(args, &packed(g), some, out(g));
                    4
                }
                _ => {
                    all_tokens::<_, 1, TOKENS>(args, &packed(g), some, out(g));
                    2
                }
            };
        }
    }
}

/// Where weights come from: a vector of two groups for each of V pairs of these.
///
/// # Safety
/// The functions need the level's instructions.
trait Weights {
    /// Element `i` of the rows of pair `v`, of those that the tile takes.
    ///
    /// # Safety
    /// It is there.
    unsafe fn load(&self, v: usize, i: usize) -> __m512;
}

/// Groups as they are packed.
struct Packed<E> {
    at: *const u8,
    group_bytes: usize,
    /// Bytes from the first group of a pair to the second.
    second: usize,
    element: PhantomData<E>,
}

impl<E: Element> Weights for Packed<E> {
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn load(&self, v: usize, i: usize) -> __m512 {
        // SAFETY: eight weights of two groups. Each converted by itself: processors convert 512 bits no faster.
        unsafe {
            let at = self.at.add(2 * v * self.group_bytes + i * GROUP * E::SIZE);
            let first = _mm512_castps256_ps512(E::load(at));
            _mm512_insertf32x8::<1>(first, E::load(at.add(self.second)))
        }
    }
}

impl<E: Element> Packed<E> {
    /// Writes some elements of V pairs as a [`Panel`].
    ///
    /// # Safety
    /// They are there, and `to` has room.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn convert<const V: usize>(&self, elements: Range<usize>, to: *mut f32) {
        for (n, i) in elements.enumerate() {
            for v in 0..V {
                // SAFETY: the caller's promise.
                unsafe { _mm512_storeu_ps(to.add((n * V + v) * WIDE), self.load(v, i)) };
            }
        }
    }
}

/// Weights of V pairs as f32, from a first element on.
struct Panel<const V: usize>(*const f32);

impl<const V: usize> Weights for Panel<V> {
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn load(&self, v: usize, i: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(self.0.add((i * V + v) * WIDE)) }
    }
}

/// Columns of the result.
#[derive(Clone, Copy)]
struct Out {
    at: *mut f32,
    /// Whether the last vector has two groups.
    pair: bool,
}

/// Elements `some` of V vectors of features and of all tokens, up to MOST at a time. Sums of elements before those are in `out`.
///
/// # Safety
/// As [`matmul`], and the weights are those of these features.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn all_tokens<W: Weights, const V: usize, const MOST: usize>(
    args: &MatMulArgs,
    weights: &W,
    some: Range<usize>,
    out: Out,
) {
    let rows = args.rows as usize;
    let mut row = 0;
    while row < rows {
        // SAFETY: the caller's promise; the rows are there.
        row += unsafe {
            let tile = Tile {
                len: some.len(),
                resumes: some.start > 0,
                x: args
                    .x_rows(row)
                    .map(|x| x.cast::<f32>().wrapping_add(some.start)),
                out: Out {
                    at: out.at.add(row * args.out_stride as usize),
                    ..out
                },
                out_stride: args.out_stride as usize,
            };
            match (rows - row).min(MOST) {
                1 => tile.run::<W, V, 1>(weights),
                2 | 3 => tile.run::<W, V, 2>(weights),
                4 | 5 => tile.run::<W, V, 4>(weights),
                6 | 7 => tile.run::<W, V, 6>(weights),
                8..TOKENS => tile.run::<W, V, 8>(weights),
                _ => tile.run::<W, V, TOKENS>(weights),
            }
        };
    }
}

/// Some features and some tokens.
struct Tile {
    /// Elements to multiply.
    len: usize,
    /// Whether sums start from `out`.
    resumes: bool,
    /// The tokens' activations.
    x: [*const f32; TOKENS],
    out: Out,
    out_stride: usize,
}

impl Tile {
    /// Computes T tokens and returns their number.
    ///
    /// # Safety
    /// The weights have V vectors of `len` elements, x T rows of them, `out` T rows of as many columns.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn run<W: Weights, const V: usize, const T: usize>(&self, weights: &W) -> usize {
        let mut acc = [[_mm512_setzero_ps(); V]; T];
        let Out { at, pair } = self.out;
        // SAFETY: row t of out has these columns, of which the last vector may be half.
        unsafe {
            if self.resumes {
                for (t, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        let at = at.add(t * self.out_stride + v * WIDE);
                        *acc = match pair {
                            true => _mm512_loadu_ps(at),
                            false => _mm512_zextps256_ps512(_mm256_loadu_ps(at)),
                        };
                    }
                }
            }
            for i in 0..self.len {
                let mut w = [_mm512_setzero_ps(); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = weights.load(v, i);
                }
                for (t, acc) in acc.iter_mut().enumerate() {
                    let row = self.x[t];
                    let x = _mm512_set1_ps(*row.add(i));
                    for (acc, w) in acc.iter_mut().zip(w) {
                        *acc = _mm512_fmadd_ps(w, x, *acc);
                    }
                }
            }
            for (t, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    let at = at.add(t * self.out_stride + v * WIDE);
                    match pair {
                        true => _mm512_storeu_ps(at, *acc),
                        false => _mm256_storeu_ps(at, _mm512_castps512_ps256(*acc)),
                    }
                }
            }
        }
        T
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
        let w: Vec<u32> = (0..300 * 88u32)
            .map(|i| 0x3c00_3c00 | (i.wrapping_mul(0x9e37_79b9) >> 7 & 0x01ff_81ff))
            .collect();
        let x: Vec<f32> = (0..300 * 40).map(|i| (i * 29 % 97) as f32 - 48.0).collect();
        for k in [1, 7, 37, 300] {
            for rows in (1..16).chain([32, 40]) {
                for (col0, cols) in [(0, 8), (8, 61), (16, 64), (0, 83)] {
                    let run = |func: unsafe fn(&MatMulArgs)| {
                        let mut out = vec![f32::NAN; rows * 96];
                        let args = MatMulArgs {
                            x: x.as_ptr().cast(),
                            x_stride: 300 * 4,
                            index: std::ptr::null(),
                            w: w.as_ptr().cast(),
                            out: out.as_mut_ptr(),
                            out_stride: 96,
                            k,
                            rows: rows as u64,
                            col0,
                            cols,
                        };
                        // SAFETY: the buffers hold 40 rows of 300 and 88 packed features of 300; the processor has the level.
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

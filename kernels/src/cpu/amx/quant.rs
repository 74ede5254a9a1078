//! Quantised weights times Q8 and Q11 rows, by int8 tiles. Those in blocks of 256 times Q8K rows are [`super::blocks`].
//!
//! A chunk of the k of sixteen rows of weights is unpacked once, to *panels* of 32 k; then for each T tokens the tiles of one panel
//! after the other are multiplied while AVX-512 scales the results of the panel before and adds them to accumulators in
//! registers. Scaling is what takes longest: so its factors are laid side by side first, once for all weights of the call.
//!
//! Every sum of products with one byte of activations, integer scales included, is below 2^24: at most 32 * 32 * 127 * 127, in
//! IQ4_XS. So it is exact in f32, and integer scales are multiplied there. Those of the two bytes of Q11 make 8 * high + low in one
//! rounding, as the conversion of the exact integer does. Weights of 4 and 5 bits are multiplied with both bytes at once
//! ([`is_joined`]): 8 * w * high + w * low, whose sums of 32 are below 2^24, too, and round once, with the integer scale.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::panel::{Panel, depth, unpack};
use super::run::{Factors, Run};
use super::tiles::{Activations, Hardware, RESULTS, Sums, Tiles};
use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::{Format, Scales, has_exact_blocks};
use crate::cpu::avx512;
use crate::cpu::avx512::part::{holds_scales, is_joined};
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// Tokens of a full tile.
const FULL: usize = 16;

/// Tokens below which the level below is faster, but for some (NOTES.md): a tile's loads and the panels' stores are the price of its products.
const FEW: usize = 16;

/// The same of Q8K rows (NOTES.md, "AMX: K-quants").
const FEW_OF_BLOCKS: usize = 9;

/// Whether the level below is always faster: where the bytes of Q11 would meet two halves of weights, with a scale each, four products
/// would each wait for registers of the step before, and AVX-512 multiplies in 16 bits (NOTES.md).
const fn is_below<F: Format>() -> bool {
    matches!(F::SCALES, Scales::Halves) && !holds_scales::<F>()
}

/// Panels of a chunk, at most: 10 to 20 KiB, so that they stay in the L1 cache beside a tile's activations.
const PANELS: usize = 16;

/// Panels of a chunk for a number of tokens. Those of Q11 and its activations are twice as large; many tokens make up for what a
/// chunk's ends cost, few do not wait for the cache (NOTES.md, "Chunks").
const fn panels<F: Format, const BYTES: usize>(tokens: usize) -> usize {
    match BYTES {
        2 if tokens > 2 * FULL => PANELS,
        2 if is_joined::<F, BYTES>() => PANELS / 4,
        2 => PANELS / 2,
        _ => PANELS,
    }
}

/// Tiles of tokens that share a chunk's panels.
const TILES: usize = 4;

/// Weights of a format times rows whose quants have BYTES bytes: 1 in Q8 and Q8K, 2 in Q11.
///
/// # Safety
/// As the scalar twin, and the processor has the level.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
pub unsafe fn matmul<F: Format, const BYTES: usize>(args: &MatMulArgs) {
    let rows = args.rows as usize;
    // In tiles of about one size.
    let tokens = rows.div_ceil(rows.div_ceil(FULL).max(1));
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            FEW_OF_BLOCKS.. if has_exact_blocks::<F, BYTES>() => {
                super::blocks::matmul::<Hardware, F>(args)
            }
            _ if has_exact_blocks::<F, BYTES>() => avx512::quant::matmul::<F, BYTES>(args),
            _ if is_below::<F>() => avx512::quant::matmul::<F, BYTES>(args),
            // Numbers of tokens that fill tiles. The level below multiplies both bytes of Q11 apart.
            8 if is_joined::<F, BYTES>() => tiled::<Hardware, F, BYTES, 8>(args),
            12 => tiled::<Hardware, F, BYTES, 12>(args),
            13..FEW if is_joined::<F, BYTES>() => tiled::<Hardware, F, BYTES, 12>(args),
            ..FEW => avx512::quant::matmul::<F, BYTES>(args),
            _ if tokens <= 12 => tiled::<Hardware, F, BYTES, 12>(args),
            _ => tiled::<Hardware, F, BYTES, FULL>(args),
        }
    }
}

/// The quants of a chunk of each token of a tile: a tile's rows must lie at one distance, which those of an index don't.
type Rows = [[u8; 2 * PANELS * BLOCK]; 16];

/// Memory of a call.
struct Scratch {
    panels: MaybeUninit<[Panel; PANELS]>,
    rows: MaybeUninit<[Rows; TILES]>,
    factors: MaybeUninit<[[Factors; PANELS]; TILES]>,
    results: MaybeUninit<[Sums; RESULTS]>,
}

/// T tokens (up to 16) a tile, of which there are as many at least. For formats that aren't [below](is_below), and rows that aren't Q8K.
///
/// # Safety
/// As [`matmul`]; the processor has the tiles of M.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn tiled<M: Tiles, F: Format, const BYTES: usize, const T: usize>(args: &MatMulArgs) {
    let call = Call {
        args,
        blocks: args.k as usize / (F::PARTS * BLOCK),
        rows: args.rows as usize,
    };
    let mut scratch = Scratch {
        panels: MaybeUninit::uninit(),
        rows: MaybeUninit::uninit(),
        factors: MaybeUninit::uninit(),
        results: MaybeUninit::uninit(),
    };
    // Hidden, lest what is read of it between products is read before them: there are no registers for it.
    let scratch = std::hint::black_box(&mut scratch);
    let tiles = call.rows.div_ceil(T);
    // SAFETY: the caller's promise.
    unsafe {
        M::configure(T, depth::<F, BYTES>());
        for first in (0..tiles).step_by(TILES) {
            call.tiles::<M, F, BYTES, T>(first..tiles.min(first + TILES), scratch);
        }
        M::release();
    }
}

struct Call<'a> {
    args: &'a MatMulArgs,
    /// Blocks of a row of weights.
    blocks: usize,
    rows: usize,
}

impl Call<'_> {
    /// The first row of a tile, and how many of its rows the tile before has done: the last tile is a whole one too.
    fn rows_of<const T: usize>(&self, tile: usize) -> (usize, usize) {
        let first = (tile * T).min(self.rows - T);
        (first, tile * T - first)
    }

    /// Some tiles of tokens, up to TILES.
    ///
    /// # Safety
    /// As [`tiled`]; tiles are configured.
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn tiles<M: Tiles, F: Format, const BYTES: usize, const T: usize>(
        &self,
        tiles: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let args = self.args;
        let group_bytes = self.blocks * (F::HEADER + F::PARTS * F::PART);
        let first_group = args.col0 as usize / GROUP;
        let groups = (args.cols as usize).div_ceil(GROUP);
        // Of equal sizes, about: products have nothing to overlap with at either end of a chunk.
        let most = (panels::<F, BYTES>(self.rows) / F::PARTS).max(1);
        let chunks = self.blocks.div_ceil(most).max(1);
        let chunk_blocks = self.blocks.div_ceil(chunks).max(1);
        let panels = scratch.panels.as_mut_ptr().cast::<Panel>();
        for chunk in (0..self.blocks).step_by(chunk_blocks) {
            let count = chunk_blocks.min(self.blocks - chunk) * F::PARTS;
            let first_part = chunk * F::PARTS;
            let factors = scratch.factors.as_mut_ptr().cast::<[Factors; PANELS]>();
            // SAFETY: the caller promises the groups from `col0` on, and rows of x and out; scratch has room for TILES tiles and
            // PANELS panels, and what is read of it was written before.
            unsafe {
                for (i, tile) in tiles.clone().enumerate() {
                    let (row, _) = self.rows_of::<T>(tile);
                    let to = factors.add(i).cast::<Factors>();
                    let parts = first_part..first_part + count;
                    self.factors::<F, BYTES, T>(row, parts.clone(), to);
                    if !args.index.is_null() {
                        let rows = scratch.rows.as_mut_ptr().cast::<Rows>().add(i);
                        self.collect::<BYTES, T>(row, parts, rows);
                    }
                }
                for g in (0..groups).step_by(2) {
                    let pair = g + 1 < groups;
                    let block_bytes = F::HEADER + F::PARTS * F::PART;
                    let at = args
                        .w
                        .add((first_group + g) * group_bytes + chunk * block_bytes);
                    // Where there is no second group, the first is taken twice.
                    let second = if pair { group_bytes } else { 0 };
                    // What is unpacked next: the next pair of the chunk, the first one of the next chunk, or that of the next
                    // columns.
                    let next = match (g + 2 < groups, chunk + chunk_blocks < self.blocks) {
                        (true, _) => at.wrapping_add(2 * group_bytes),
                        (false, true) => at
                            .wrapping_sub(g * group_bytes)
                            .wrapping_add(chunk_blocks * block_bytes),
                        (false, false) => at
                            .wrapping_add(2 * group_bytes)
                            .wrapping_sub(chunk * block_bytes),
                    };
                    for block in 0..count / F::PARTS {
                        let offset = block * block_bytes;
                        let at = at.add(offset);
                        let next = next.wrapping_add(offset);
                        unpack::<F, BYTES>(
                            [at, at.add(second)],
                            panels.add(block * F::PARTS),
                            [next, next.wrapping_add(group_bytes)],
                        );
                    }
                    for (i, tile) in tiles.clone().enumerate() {
                        let (row, done) = self.rows_of::<T>(tile);
                        let run = Run {
                            x: match args.index.is_null() {
                                true => Activations {
                                    at: args.x_row(row).add(BYTES * first_part * BLOCK),
                                    token: args.x_stride as usize,
                                },
                                false => Activations {
                                    at: scratch.rows.as_ptr().cast::<Rows>().add(i).cast(),
                                    token: 2 * PANELS * BLOCK,
                                },
                            },
                            out: args.out.add(row * args.out_stride as usize + g * GROUP),
                            out_stride: args.out_stride as usize,
                            pair,
                            resumes: chunk > 0,
                            done,
                        };
                        let factors = factors.add(i).cast::<Factors>();
                        let results = scratch.results.as_mut_ptr().cast::<Sums>();
                        run.panels::<M, F, BYTES, T>(count, panels, factors, results);
                    }
                }
            }
        }
    }

    /// Writes the factors of blocks `parts` of the T rows from `row` on, of four blocks at a time: rows by an index have no one distance
    /// to gather by (NOTES.md, "Factors").
    ///
    /// # Safety
    /// The rows have them, and `to` has room.
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn factors<F: Format, const BYTES: usize, const T: usize>(
        &self,
        row: usize,
        parts: std::ops::Range<usize>,
        to: *mut Factors,
    ) {
        let k = self.args.k as usize;
        for (i, part) in parts.clone().step_by(4).enumerate() {
            let count = (parts.end - part).min(4);
            // SAFETY: the quants of a row are followed by a scale and a sum for each 32.
            unsafe {
                let at: [*const f32; T] = std::array::from_fn(|t| {
                    self.args
                        .x_row(row + t)
                        .add(BYTES * k)
                        .cast::<f32>()
                        .add(part)
                });
                let to = to.add(4 * i);
                for (i, scales) in transposed(at, count).into_iter().enumerate().take(count) {
                    _mm512_store_ps((&raw mut (*to.add(i)).scales).cast(), scales);
                }
                if F::HAS_MIN {
                    let at = at.map(|at| at.add(k / BLOCK));
                    for (i, sums) in transposed(at, count).into_iter().enumerate().take(count) {
                        _mm512_store_ps((&raw mut (*to.add(i)).sums).cast(), sums);
                    }
                }
            }
        }
    }

    /// Lays the quants of blocks `parts` of the T rows from `row` on side by side.
    ///
    /// # Safety
    /// The rows have them; a chunk has no more than PANELS parts.
    unsafe fn collect<const BYTES: usize, const T: usize>(
        &self,
        row: usize,
        parts: std::ops::Range<usize>,
        to: *mut Rows,
    ) {
        for t in 0..T {
            // SAFETY: the caller's promise.
            unsafe {
                let quants = (&raw mut (*to)[t]).cast::<u8>();
                let from = self.args.x_row(row + t).add(BYTES * parts.start * BLOCK);
                quants.copy_from_nonoverlapping(from, BYTES * parts.len() * BLOCK);
            }
        }
    }
}

/// The first floats of T rows, those of all rows in one vector, and up to four such vectors, of which `count` count.
///
/// # Safety
/// Each of `rows` points at `count` floats.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn transposed<const T: usize>(rows: [*const f32; T], count: usize) -> [__m512; 4] {
    let some = ((1u32 << count) - 1) as __mmask8;
    // Row 4 i + j is quarter i of vector j.
    let quarter = |row: usize| match row < T {
        // SAFETY: the caller's promise.
        true => unsafe { _mm_maskz_loadu_ps(some, rows[row]) },
        false => _mm_setzero_ps(),
    };
    let [a, b, c, d]: [__m512; 4] = std::array::from_fn(|j| {
        let v = _mm512_zextps128_ps512(quarter(j));
        let v = _mm512_insertf32x4::<1>(v, quarter(4 + j));
        let v = _mm512_insertf32x4::<2>(v, quarter(8 + j));
        _mm512_insertf32x4::<3>(v, quarter(12 + j))
    });
    let pairs = |low, high| (_mm512_castps_pd(low), _mm512_castps_pd(high));
    let first = pairs(_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
    let second = pairs(_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(first.0, first.1)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(first.0, first.1)),
        _mm512_castpd_ps(_mm512_unpacklo_pd(second.0, second.1)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(second.0, second.1)),
    ]
}

#[cfg(test)]
mod tests {
    //! The level with emulated tiles, wherever there is AVX-512, against the scalar twins: all but the instructions themselves.

    use bundle_format::plan::{DType, Encoding, row_bytes};

    use super::*;
    use crate::abi::{MicroFn, id};
    use crate::cpu::amx::blocks;
    use crate::cpu::amx::tiles::emulation::Emulated;
    use crate::cpu::{Level, avx2::quant as formats, lookup_at};
    use crate::pack::pack;
    use crate::quant::activation_types;
    use crate::quant::row_bytes as row_len;
    use crate::reference::{q8, q8k, q11};

    /// (tokens a tile, tokens, features, first column, columns)
    const CASES: &[(usize, usize, usize, usize, usize)] = &[
        (8, 8, 16, 0, 16),
        (8, 15, 24, 8, 16),
        (12, 12, 16, 0, 16),
        (12, 23, 24, 8, 16),
        (16, 16, 8, 0, 8),
        (16, 35, 40, 0, 40),
        (16, 71, 24, 8, 13),
    ];

    /// Numbers that need not be good.
    struct Random(u32);

    impl Random {
        fn next(&mut self) -> u32 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            self.0 >> 8
        }
    }

    fn activations(random: &mut Random, dtype: DType, k: usize, rows: usize) -> Vec<u8> {
        let stride = row_bytes(dtype, k as u32) as usize;
        let mut bytes = vec![0; stride * rows];
        for (i, row) in bytes.chunks_exact_mut(stride).enumerate() {
            let x: Vec<f32> = (0..k)
                .map(|_| (random.next() & 0xffff) as f32 / 32768.0 - 1.0)
                // Some rows have the largest quants only, of either sign or all of one.
                .map(|x| match i % 6 {
                    2 | 4 => x.signum(),
                    5 => 1.0,
                    _ => x,
                })
                .collect();
            match dtype {
                DType::Q8 => q8::quantise_row(&x, row),
                DType::Q8K => q8k::quantise_row(&x, row),
                _ => q11::quantise_row(&x, row),
            }
        }
        bytes
    }

    /// A product of weights and activations, and how it is called.
    struct Case {
        encoding: Encoding,
        dtype: DType,
        k: usize,
        rows: usize,
        /// Whether rows are by an index.
        is_indexed: bool,
        features: usize,
        col0: usize,
        cols: usize,
    }

    impl Case {
        /// Compares a function with the scalar twin, with weights as the encoding has them.
        fn check(&self, w: &[u8], found: unsafe fn(&MatMulArgs)) {
            let Case {
                encoding, dtype, ..
            } = *self;
            let (k, rows, is_indexed) = (self.k, self.rows, self.is_indexed);
            let id = id::matmul(encoding, dtype).expect("a quantised encoding");
            let MicroFn::MatMul(scalar) = lookup_at(Level::Scalar, id).expect("in the table").func
            else {
                panic!("{id:#x} is no matmul");
            };
            let mut random = Random(id);
            let w = pack(encoding, self.features, k, w);
            let x = activations(&mut random, dtype, k, rows);
            let index: Vec<u32> = (0..rows).map(|_| random.next() % rows as u32).collect();
            let stride = self.cols.next_multiple_of(8) + 8;
            let run = |func: unsafe fn(&MatMulArgs)| {
                let mut out = vec![-1.0; rows * stride];
                let args = MatMulArgs {
                    x: x.as_ptr(),
                    x_stride: row_bytes(dtype, k as u32),
                    index: match is_indexed {
                        true => index.as_ptr(),
                        false => std::ptr::null(),
                    },
                    w: w.as_ptr(),
                    out: out.as_mut_ptr(),
                    out_stride: stride as u64,
                    k: k as u64,
                    rows: rows as u64,
                    col0: self.col0 as u64,
                    cols: self.cols as u64,
                };
                // SAFETY: buffers of these sizes; the processor has AVX-512.
                unsafe { func(&args) };
                let bits = |x: f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
                out.into_iter().map(bits).collect::<Vec<_>>()
            };
            assert!(
                run(found) == run(scalar),
                "{encoding:?} x {dtype:?} k {k} rows {rows} by an index {is_indexed}"
            );
        }
    }

    /// Weights of any bytes. Factors that are infinite or no numbers are as good as others; bits of the latter differ.
    fn weights(random: &mut Random, encoding: Encoding, features: usize, k: usize) -> Vec<u8> {
        let len = features as u64 * row_len(encoding, k as u64).expect("whole blocks");
        (0..len).map(|_| random.next() as u8).collect()
    }

    fn check<F: Format, const BYTES: usize>(encoding: Encoding) {
        let dtype = activation_types(encoding)[BYTES - 1];
        if dtype == DType::Q8K {
            return check_blocks::<F>(encoding);
        }
        let mut random = Random(encoding as u32);
        // A short chunk, and one behind a whole one.
        for k in [256, 512 + 256] {
            for &(tile, rows, features, col0, cols) in CASES {
                let case = Case {
                    encoding,
                    dtype,
                    k,
                    rows,
                    is_indexed: false,
                    features,
                    col0,
                    cols,
                };
                let w = weights(&mut random, encoding, features, k);
                match tile {
                    _ if is_below::<F>() => case.check(&w, matmul::<F, BYTES>),
                    8 => case.check(&w, tiled::<Emulated, F, BYTES, 8>),
                    12 => case.check(&w, tiled::<Emulated, F, BYTES, 12>),
                    _ => case.check(&w, tiled::<Emulated, F, BYTES, 16>),
                }
            }
        }
    }

    /// (tokens, features, first column, columns, blocks of k) with Q8K rows: one tile of tokens and two, the last one's tokens its own
    /// or some of the tile's before, and more tokens and columns than are multiplied in turn.
    const BLOCKS: &[(usize, usize, usize, usize, usize)] = &[
        (1, 8, 0, 8, 1),
        (12, 16, 0, 16, 2),
        (16, 24, 8, 16, 3),
        (17, 24, 8, 13, 1),
        (31, 40, 0, 40, 5),
        (32, 16, 0, 16, 4),
        (33, 40, 8, 24, 3),
        (71, 24, 0, 24, 2),
        (128, 16, 0, 16, 1),
        (129, 40, 0, 40, 3),
        (20, 280, 8, 269, 3),
    ];

    fn check_blocks<F: Format>(encoding: Encoding) {
        let mut random = Random(encoding as u32);
        for (i, &(rows, features, col0, cols, blocks)) in BLOCKS.iter().enumerate() {
            let k = 256 * blocks;
            let mut case = Case {
                encoding,
                dtype: DType::Q8K,
                k,
                rows,
                is_indexed: false,
                features,
                col0,
                cols,
            };
            let mut w = weights(&mut random, encoding, features, k);
            case.check(&w, blocks::matmul::<Emulated, F>);
            case.is_indexed = true;
            case.check(&w, blocks::matmul::<Emulated, F>);
            // The largest and the least quants and scales, with a factor of 1.
            let byte = [0xff, 0x7f, 0x80, 0x00][i % 4];
            w.fill(byte);
            let factors: &[usize] = match encoding {
                Encoding::Q2_K => &[80, 82],
                Encoding::Q3_K => &[108],
                Encoding::Q4_K | Encoding::Q5_K => &[0, 2],
                Encoding::Q6_K => &[208],
                _ => &[0],
            };
            let block_len = w.len() / (features * blocks);
            for block in w.chunks_exact_mut(block_len) {
                for &at in factors {
                    block[at..at + 2].copy_from_slice(&0x3c00u16.to_le_bytes());
                }
            }
            case.check(&w, blocks::matmul::<Emulated, F>);
        }
    }

    macro_rules! checks {
        ($($q8:ident, $q11:ident: $format:ident,)*) => {$(
            #[test]
            fn $q8() {
                match Level::Avx512.is_available() {
                    true => check::<formats::$format, 1>(Encoding::$format),
                    false => println!("not run: this processor lacks AVX-512 VNNI"),
                }
            }

            #[test]
            fn $q11() {
                match Level::Avx512.is_available() {
                    true => check::<formats::$format, 2>(Encoding::$format),
                    false => println!("not run: this processor lacks AVX-512 VNNI"),
                }
            }
        )*};
    }

    each_quantised! { checks! }
}

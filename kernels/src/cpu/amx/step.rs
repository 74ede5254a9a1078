//! A block of 256 k of sixteen features by a tile of tokens: products by tiles, and beside them what AVX-512 does meanwhile: scaling
//! the sums of earlier steps, and unpacking the next block of weights.

use std::arch::asm;
use std::arch::x86_64::*;

use super::planes::{DEPTHS, Factors, Packed, Panel, Planes, planes};
use super::tiles::{Activations, Tiles};
use crate::cpu::avx2::quant::Format;

/// Bytes of activations that a product takes of each token.
pub(super) const DEPTH: usize = 64;

/// Tokens of a full tile.
pub(super) const FULL: usize = 16;

/// The exact sums of a step, those of either plane, a line a token.
#[repr(C, align(64))]
pub(super) struct Sums([[[i32; 16]; FULL]; 2]);

/// A step's products. Its results are stored by the next step, since they are done by then, and scaled by that, and the last quarter
/// by the one behind that: so are sums stored a quarter of a step before they are scaled.
pub(super) struct Step {
    /// The tile's first 64 activations.
    pub(super) x: Activations,
    pub(super) panel: *const Panel,
}

/// Shares that the scaling of a step is done in: one behind each piece of products.
const SHARES: usize = 2 * DEPTHS;

/// Sums of a step that are to be scaled and added to those of the blocks before, for a token after the other.
#[derive(Clone, Copy)]
pub(super) struct Scaling {
    /// The next token's line of the first plane.
    pub(super) sums: *const [i32; 16],
    pub(super) factors: *const Factors,
    /// The next token's activations, and those of the tokens behind it.
    pub(super) rows: *const *const u8,
    pub(super) tokens: Share,
    /// Where rows have the block's scale, and its sums.
    pub(super) scale: usize,
    pub(super) row_sums: usize,
    /// What the next token's sums of the blocks before are, lines that follow one another, and where its sums go to: these lines, or
    /// behind the last block rows of out.
    pub(super) acc: *const [f32; 16],
    pub(super) out: *mut f32,
    /// Bytes from a token's to the next.
    pub(super) out_bytes: usize,
    /// Features that are read, none in the first block, and those that are written.
    pub(super) read: __mmask16,
    pub(super) written: __mmask16,
}

/// How many tokens each share is.
#[derive(Clone, Copy)]
pub(super) struct Share {
    least: usize,
    /// Shares that have one more: the first ones.
    more: usize,
    /// Shares that are done.
    done: usize,
}

impl Share {
    pub(super) fn of(tokens: usize) -> Share {
        Share {
            least: tokens / SHARES,
            more: tokens % SHARES,
            done: 0,
        }
    }

    /// The tokens of the next share.
    #[inline]
    fn next(&mut self) -> usize {
        let tokens = self.least + usize::from(self.done < self.more);
        self.done += 1;
        tokens
    }
}

impl Step {
    /// Multiplies a tile of tokens, stores the results of the step before, scales the last quarter of the first of `scaled` and the
    /// others of the second, and unpacks a block if that is so.
    ///
    /// # Safety
    /// Tiles are configured, for [`DEPTH`]; all pointers are good for what is said of them.
    #[inline(never)]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    pub(super) unsafe fn run<M: Tiles, F: Format, const UNPACKS: bool>(
        &self,
        results: *mut Sums,
        scaled: &mut [Scaling; 2],
        packed: Packed,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut held = Held::new::<F>(&scaled[0]);
            for depth in 0..DEPTHS {
                let depth = hidden(depth);
                if depth == 1 {
                    held = Held::new::<F>(&scaled[1]);
                }
                // Tile instructions in pieces, with a share of the scaling behind each (NOTES.md, "Pieces").
                let scaling = &mut scaled[depth.min(1)];
                if depth == 0 {
                    store::<M, 0>(results);
                }
                M::load_activations(self.x(depth));
                multiply::<M, F, 0>(self.weights(depth, 0), depth == 0);
                scaling.share::<F, 0, UNPACKS>(&held);
                if UNPACKS {
                    packed.part::<F, 0, true>(depth);
                }
                if depth == 0 {
                    store::<M, 1>(results);
                }
                multiply::<M, F, 1>(self.weights(depth, 1), depth == 0);
                scaling.share::<F, 1, UNPACKS>(&held);
                if UNPACKS {
                    packed.part::<F, 1, true>(depth);
                }
            }
        }
    }

    /// The tile's activations of 64 k.
    #[inline]
    fn x(&self, depth: usize) -> Activations {
        Activations {
            at: self.x.at.wrapping_add(depth * DEPTH),
            ..self.x
        }
    }

    /// The tile of a plane.
    #[inline]
    fn weights(&self, depth: usize, plane: usize) -> *const u8 {
        let tiles = self.panel.cast::<[u8; 1024]>();
        tiles.wrapping_add(2 * depth + plane).cast()
    }
}

/// Stores the last step's sums, and scales what is left of two.
///
/// # Safety
/// As [`Step::run`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
pub(super) unsafe fn finish<M: Tiles, F: Format>(results: *mut Sums, scaled: &mut [Scaling; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        store::<M, 0>(results);
        store::<M, 1>(results);
        for scaling in scaled {
            let held = Held::new::<F>(scaling);
            while scaling.tokens.done < SHARES {
                scaling.share::<F, 2, false>(&held);
            }
        }
    }
}

/// A number that the compiler knows nothing of, lest it writes out loops of large bodies, which the processor's caches of instructions
/// then have no room for.
#[inline]
fn hidden(mut number: usize) -> usize {
    // SAFETY: no instruction.
    unsafe { asm!("/* {} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    number
}

/// Multiplies the loaded activations with the weights of a plane, whose sums begin there or not.
///
/// # Safety
/// Activations are loaded; `weights` points at a tile.
#[inline]
unsafe fn multiply<M: Tiles, F: Format, const PLANE: usize>(weights: *const u8, begins: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        M::load_weights::<PLANE>(weights);
        if begins {
            M::begin::<PLANE>();
        }
        match (planes::<F>(), PLANE) {
            (Planes::Bytes, 0) => M::add::<true, PLANE>(),
            _ => M::add::<false, PLANE>(),
        }
    }
}

/// Stores the sums of a plane.
///
/// # Safety
/// Tiles are configured; `to` may be written.
#[inline]
unsafe fn store<M: Tiles, const PLANE: usize>(to: *mut Sums) {
    // SAFETY: the caller's promise.
    unsafe { M::store_sums::<PLANE>((&raw mut (*to).0[PLANE]).cast()) };
}

/// What all tokens of a step are scaled with, in registers: the factors of the block, and what features are read and written.
struct Held {
    read: __mmask16,
    written: __mmask16,
    d: __m512,
    m: __m512,
    mins: [__m512i; DEPTHS],
}

impl Held {
    /// # Safety
    /// There are factors.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn new<F: Format>(of: &Scaling) -> Held {
        let from = of.factors;
        let (mut m, mut mins) = (_mm512_setzero_ps(), [_mm512_setzero_si512(); DEPTHS]);
        // SAFETY: the caller's promise.
        unsafe {
            if F::HAS_MIN || F::HAS_HALF_MINS {
                m = _mm512_load_ps((&raw const (*from).m).cast());
            }
            if F::HAS_MIN {
                let from = (&raw const (*from).mins).cast::<__m512i>();
                mins = [
                    _mm512_load_si512(from),
                    _mm512_load_si512(from.add(1)),
                    _mm512_load_si512(from.add(2)),
                    _mm512_load_si512(from.add(3)),
                ];
            }
            Held {
                read: of.read,
                written: of.written,
                d: _mm512_load_ps((&raw const (*from).d).cast()),
                m,
                mins,
            }
        }
    }
}

impl Scaling {
    /// Scales and adds the sums of the next share of the tokens. PIECE and UNPACKS make another function of it wherever it stands, since
    /// the compiler inlines what stands but once.
    ///
    /// # Safety
    /// All pointers are good for what is said of them.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn share<F: Format, const PIECE: usize, const UNPACKS: bool>(&mut self, held: &Held) {
        let mut left = self.tokens.next();
        // A float whose last bit is 1: sums of minima (below 2^21) that are added to its bits are added to it. So they become floats by
        // a subtraction, where a conversion would wait for the pipe that multiplies (NOTES.md, "AMX: K-quants").
        let one_and_a_half = _mm512_set1_ps((3 << 22) as f32);
        let (mut rows, mut line) = (self.rows, self.sums);
        let (mut acc, mut out) = (self.acc, self.out);
        while left > 0 {
            left -= 1;
            // SAFETY: the caller's promise.
            unsafe {
                let row = *rows;
                let first = _mm512_load_si512(line.cast());
                let second = _mm512_load_si512(line.add(FULL).cast());
                let isum = match planes::<F>() {
                    Planes::Scales => _mm512_add_epi32(eightfold(first), second),
                    Planes::Bytes => {
                        // By 256, in a shuffle: shifts wait for the pipe that multiplies.
                        let up = _mm512_loadu_si512(UP.as_ptr().cast());
                        _mm512_add_epi32(_mm512_shuffle_epi8(first, up), second)
                    }
                    Planes::Minima => first,
                };
                let mut sum = _mm512_mul_ps(_mm512_cvtepi32_ps(isum), held.d);
                if F::HAS_MIN {
                    let imin = _mm512_castps_si512(one_and_a_half);
                    let imin = dot::<0>(imin, held.mins[0], row, self.row_sums);
                    let imin = dot::<4>(imin, held.mins[1], row, self.row_sums);
                    let imin = dot::<8>(imin, held.mins[2], row, self.row_sums);
                    let imin = dot::<12>(imin, held.mins[3], row, self.row_sums);
                    let imin = _mm512_sub_ps(_mm512_castsi512_ps(imin), one_and_a_half);
                    sum = _mm512_fmadd_ps(imin, held.m, sum);
                }
                if F::HAS_HALF_MINS {
                    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), held.m, sum);
                }
                let scale = _mm512_set1_ps(row.add(self.scale).cast::<f32>().read_unaligned());
                let before = _mm512_maskz_load_ps(held.read, acc.cast());
                let after = _mm512_fmadd_ps(sum, scale, before);
                _mm512_mask_storeu_ps(out, held.written, after);
                rows = rows.wrapping_add(1);
                line = line.wrapping_add(1);
                acc = acc.wrapping_add(1);
                out = out.wrapping_byte_add(self.out_bytes);
            }
        }
        (self.rows, self.sums) = (rows, line);
        (self.acc, self.out) = (acc, out);
    }
}

/// Eight times a number, by additions: shifts wait for the pipe that multiplies (NOTES.md, "AMX: K-quants").
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
fn eightfold(x: __m512i) -> __m512i {
    let x = doubled(doubled(x));
    doubled(x)
}

/// Twice a number, by an addition that the compiler doesn't make a shift.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
fn doubled(mut x: __m512i) -> __m512i {
    // SAFETY: the instruction changes nothing else.
    unsafe {
        asm!("vpaddd {0}, {0}, {0}", inout(zmm_reg) x, options(pure, nomem, nostack, preserves_flags));
    }
    x
}

/// Adds two integer minima times two sums of activations, OFFSET bytes behind `at` in a row. The compiler would make a multiplication and
/// an addition of some, to shorten the chain.
///
/// # Safety
/// The row has them.
#[inline]
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn dot<const OFFSET: i32>(
    mut imin: __m512i,
    mins: __m512i,
    row: *const u8,
    at: usize,
) -> __m512i {
    // SAFETY: the caller's promise; the instruction changes nothing else.
    unsafe {
        asm!(
            "vpdpwssd {imin}, {mins}, dword ptr [{row} + {at} + {offset}]{{1to16}}",
            imin = inout(zmm_reg) imin,
            mins = in(zmm_reg) mins,
            row = in(reg) row,
            at = in(reg) at,
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    imin
}

/// The bytes of 32 bits, moved up by one.
const UP: [u8; 64] = {
    let (mut up, mut i) = ([0; 64], 0);
    while i < 64 {
        up[i] = if i % 4 == 0 { 0x80 } else { (i % 16 - 1) as u8 };
        i += 1;
    }
    up
};

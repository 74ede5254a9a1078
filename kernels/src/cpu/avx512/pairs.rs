//! F16 and BF16 weights times Q14 rows, by `vpdpwssd`.
//!
//! Weights of two groups of eight rows become integers of a vector's 32 lanes of 16 bits, a pair of columns a row
//! ([`crate::pack::pairs`]), and are multiplied with pairs of a token's quants. Few tokens convert weights as they meet them; more share
//! a panel of what is converted.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::abi::MatMulArgs;
use crate::cpu::avx2::{
    self,
    float::{BF16, Element, F16},
};
use crate::pack::GROUP;
use crate::pack::pairs::{BLOCK_BYTES, PAIR};
use crate::quant::BLOCK;

/// Tokens that meet weights as these are converted, and those of a tile of them.
const FEW: usize = 8;

/// Tokens of a full tile that meets a panel.
const TOKENS: usize = 12;

/// Pairs of columns of a block.
const PAIRS: usize = BLOCK / 2;

/// Blocks of a panel: 16 KiB for two groups, beside the tokens' quants in the L1 cache.
const PANEL: usize = 8;

/// Up to so many tokens, sums are two chains each: the latency of a product is more than as many products take.
const CHAINS: usize = 4;

/// How far ahead of the block in work few tokens' weights are fetched, in bytes.
const AHEAD: usize = 4096;

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
                match args.rows as usize {
                    // It is conversions that take the time, and AVX2's are no slower.
                    1 => avx2::$name(args),
                    ..=FEW => few::<$element>(args),
                    _ => many::<$element>(args),
                }
            }
        }
    )*};
}

matmuls! {
    matmul_f16_q14: F16, "F16 weights times Q14 rows.";
    matmul_bf16_q14: BF16, "BF16 weights times Q14 rows.";
}

/// Up to [`FEW`] tokens.
///
/// # Safety
/// As [`matmul_f16_q14`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn few<E: Element>(args: &MatMulArgs) {
    let groups = (args.cols as usize).div_ceil(GROUP);
    for g in (0..groups).step_by(2) {
        let columns = Columns::new(args, g);
        let blocks = args.k as usize / BLOCK;
        // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
        unsafe {
            let tile = Tile::new(args, 0, &columns, blocks, 0);
            let weights = Packed::<E>::in_order(&columns);
            match args.rows {
                1 => tile.run::<_, 1>(&weights),
                2 => tile.run::<_, 2>(&weights),
                3 => tile.run::<_, 3>(&weights),
                4 => tile.run::<_, 4>(&weights),
                5 => tile.run::<_, 5>(&weights),
                6 => tile.run::<_, 6>(&weights),
                7 => tile.run::<_, 7>(&weights),
                _ => tile.run::<_, FEW>(&weights),
            }
        }
    }
}

/// More tokens. A chunk of k after the other, so that the tokens' quants of it stay in the L2 cache for all groups.
///
/// # Safety
/// As [`few`].
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
unsafe fn many<E: Element>(args: &MatMulArgs) {
    let (rows, blocks) = (args.rows as usize, args.k as usize / BLOCK);
    let groups = (args.cols as usize).div_ceil(GROUP);
    let mut panel = MaybeUninit::<Panel>::uninit();
    for chunk in (0..blocks).step_by(PANEL) {
        let count = PANEL.min(blocks - chunk);
        for g in (0..groups).step_by(2) {
            let columns = Columns::new(args, g);
            // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
            unsafe {
                Packed::<E>::by_chunks(&columns).convert(chunk, count, panel.as_mut_ptr());
                let panel = &*panel.as_ptr();
                let mut row = 0;
                while row < rows {
                    let tile = Tile::new(args, row, &columns, count, chunk);
                    // Tiles of about one size: the last few tokens would wait for their chains.
                    let left = rows - row;
                    let tokens = left.div_ceil(left.div_ceil(TOKENS));
                    match tokens {
                        1 => tile.run::<_, 1>(panel),
                        2 => tile.run::<_, 2>(panel),
                        3 => tile.run::<_, 3>(panel),
                        4 => tile.run::<_, 4>(panel),
                        5 => tile.run::<_, 5>(panel),
                        6 => tile.run::<_, 6>(panel),
                        7 => tile.run::<_, 7>(panel),
                        8 => tile.run::<_, 8>(panel),
                        9 => tile.run::<_, 9>(panel),
                        10 => tile.run::<_, 10>(panel),
                        11 => tile.run::<_, 11>(panel),
                        _ => tile.run::<_, TOKENS>(panel),
                    }
                    row += tokens;
                }
            }
        }
    }
}

/// Two groups of a call; where there is no second, the first is taken twice.
struct Columns {
    w: *const u8,
    /// Bytes from the first group to the second.
    second: usize,
    pair: bool,
    /// The first, of the call's.
    g: usize,
    group_bytes: usize,
}

impl Columns {
    fn new(args: &MatMulArgs, g: usize) -> Columns {
        let group_bytes = args.k as usize / BLOCK * BLOCK_BYTES;
        let groups = (args.cols as usize).div_ceil(GROUP);
        let pair = g + 1 < groups;
        Columns {
            w: args
                .w
                .wrapping_add((args.col0 as usize / GROUP + g) * group_bytes),
            second: if pair { group_bytes } else { 0 },
            pair,
            g,
            group_bytes,
        }
    }
}

/// Where a tile's integers come from.
///
/// # Safety
/// The functions need the level's instructions.
trait Weights {
    /// What the words of a block are converted with.
    type Block: Copy;

    /// Block `b` of those that the tile takes, and the integers' factors.
    ///
    /// # Safety
    /// It is there.
    unsafe fn block(&self, b: usize) -> (Self::Block, __m512);

    /// Word `j` of a block: a pair of columns of each row.
    ///
    /// # Safety
    /// There are [`PAIRS`].
    unsafe fn word(block: Self::Block, j: usize) -> __m512i;
}

/// What is converted of a chunk of two groups.
struct Panel {
    words: [[__m512i; PAIRS]; PANEL],
    factors: [__m512; PANEL],
}

impl Weights for Panel {
    type Block = *const __m512i;

    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn block(&self, b: usize) -> (*const __m512i, __m512) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = self.words.as_ptr().add(b).cast();
            (words, *self.factors.get_unchecked(b))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn word(block: *const __m512i, j: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { *block.add(j) }
    }
}

/// Groups as they are packed.
struct Packed<E> {
    w: *const u8,
    second: usize,
    /// From a block to what is fetched with it.
    ahead: usize,
    /// Where a group's last blocks begin, behind which that is in the next pair of groups.
    last: usize,
    element: PhantomData<E>,
}

/// A packed block of two groups.
struct PackedBlock<E> {
    at: *const u8,
    second: usize,
    /// 2^-x of the rows of each half of a pair.
    inverses: [__m512; 2],
    ahead: usize,
    element: PhantomData<E>,
}

impl<E> Clone for PackedBlock<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for PackedBlock<E> {}

impl<E: Element> Packed<E> {
    /// All blocks one after the other.
    fn in_order(columns: &Columns) -> Packed<E> {
        Packed {
            w: columns.w,
            second: columns.second,
            ahead: AHEAD,
            last: columns.group_bytes.saturating_sub(AHEAD),
            element: PhantomData,
        }
    }

    /// Some of these groups, then as many of the next.
    fn by_chunks(columns: &Columns) -> Packed<E> {
        Packed {
            w: columns.w,
            second: columns.second,
            ahead: 2 * columns.group_bytes,
            last: usize::MAX,
            element: PhantomData,
        }
    }

    /// Converts `count` blocks from `first` on, and fetches those of the next two groups.
    ///
    /// # Safety
    /// They are there, and no more than a panel's; `to` may be written.
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn convert(&self, first: usize, count: usize, to: *mut Panel) {
        for b in 0..count {
            // SAFETY: the caller's promise.
            unsafe {
                let (block, factors) = self.block(first + b);
                (*to).factors[b] = factors;
                for j in 0..PAIRS {
                    (*to).words[b][j] = Self::word(block, j);
                }
            }
        }
    }
}

impl<E: Element> Weights for Packed<E> {
    type Block = PackedBlock<E>;

    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn block(&self, b: usize) -> (PackedBlock<E>, __m512) {
        // SAFETY: the caller's promise; a block begins with eight exponents.
        unsafe {
            let at = self.w.add(b * BLOCK_BYTES);
            let exponents = |at: *const u8| _mm_loadl_epi64(at.cast());
            let both = _mm_unpacklo_epi64(exponents(at), exponents(at.add(self.second)));
            let exponents = _mm512_cvtepi8_epi32(both);
            let bias = _mm512_set1_epi32(127);
            let power = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<23>(x));
            let inverse = power(_mm512_sub_epi32(bias, exponents));
            // Of 128 bits of each half of a pair: two rows of the lower four and two of the others, twice each.
            let first = _mm512_setr_epi32(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13);
            let second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
            let block = PackedBlock {
                at: at.add(GROUP),
                second: self.second,
                inverses: [first, second].map(|rows| _mm512_permutexvar_ps(rows, inverse)),
                ahead: match b * BLOCK_BYTES >= self.last {
                    true => self.ahead + self.second,
                    false => self.ahead,
                },
                element: self.element,
            };
            (block, power(_mm512_add_epi32(bias, exponents)))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn word(block: PackedBlock<E>, j: usize) -> __m512i {
        // SAFETY: the caller's promise: the pair is in both groups.
        unsafe {
            let at = block.at.add(j * PAIR);
            if j.is_multiple_of(2) {
                for at in [at, at.add(block.second)] {
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(block.ahead).cast());
                }
            }
            let half = |i: usize| {
                let at = at.add(i * PAIR / 2);
                // Each converted by itself: processors convert 512 bits no faster.
                let first = _mm512_castps256_ps512(E::load(at));
                let both = _mm512_insertf32x8::<1>(first, E::load(at.add(block.second)));
                _mm512_cvtps_epi32(_mm512_mul_ps(both, block.inverses[i]))
            };
            _mm512_packs_epi32(half(0), half(1))
        }
    }
}

/// Some blocks of two groups, and some tokens.
struct Tile {
    blocks: usize,
    /// The number of the first block: the sums of those before it are in `out`.
    first: usize,
    k: usize,
    /// The tokens' rows.
    x: [*const u8; TOKENS],
    out: *mut f32,
    out_stride: usize,
    pair: bool,
}

impl Tile {
    /// # Safety
    /// The call has the row and the columns.
    #[inline]
    unsafe fn new(
        args: &MatMulArgs,
        row: usize,
        columns: &Columns,
        blocks: usize,
        first: usize,
    ) -> Tile {
        // SAFETY: the caller's promise.
        let (x, out) = unsafe {
            let out = args.out.add(row * args.out_stride as usize);
            (args.x_rows(row), out.add(columns.g * GROUP))
        };
        Tile {
            blocks,
            first,
            k: args.k as usize,
            x,
            out,
            out_stride: args.out_stride as usize,
            pair: columns.pair,
        }
    }

    /// T tokens.
    ///
    /// # Safety
    /// The weights have the blocks, counted from the tile's first, x T rows of k quants, `out` as many rows of 16 columns, or of 8
    /// unless `pair`.
    #[inline(never)]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn run<W: Weights, const T: usize>(&self, weights: &W) {
        let mut acc = [_mm512_setzero_ps(); T];
        // SAFETY: the caller's promise; quants of a row are followed by a scale for each 32.
        unsafe {
            if self.first > 0 {
                for (t, acc) in acc.iter_mut().enumerate() {
                    let out = self.out.add(t * self.out_stride);
                    *acc = match self.pair {
                        true => _mm512_loadu_ps(out),
                        false => _mm512_zextps256_ps512(_mm256_loadu_ps(out)),
                    };
                }
            }
            for b in 0..self.blocks {
                let (block, factors) = weights.block(b);
                let isums = self.isums::<W, T>(block, self.first + b);
                for (t, acc) in acc.iter_mut().enumerate() {
                    let scales = self.x[t].add(2 * self.k).cast::<f32>();
                    let scale = _mm512_set1_ps(*scales.add(self.first + b));
                    let isum = _mm512_cvtepi32_ps(isums[t]);
                    *acc = _mm512_fmadd_ps(isum, _mm512_mul_ps(factors, scale), *acc);
                }
            }
            for (t, acc) in acc.into_iter().enumerate() {
                let out = self.out.add(t * self.out_stride);
                match self.pair {
                    true => _mm512_storeu_ps(out, acc),
                    false => _mm256_storeu_ps(out, _mm512_castps512_ps256(acc)),
                }
            }
        }
    }

    /// The exact inner products of a block of weights with block `b` of T tokens.
    ///
    /// # Safety
    /// As [`Tile::run`].
    #[inline]
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn isums<W: Weights, const T: usize>(&self, block: W::Block, b: usize) -> [__m512i; T] {
        let at: [*const u8; T] = std::array::from_fn(|t| self.x[t].wrapping_add(2 * b * BLOCK));
        let (mut even, mut odd) = ([_mm512_setzero_si512(); T], [_mm512_setzero_si512(); T]);
        macro_rules! add_words {
            ($($j:literal)*) => {$(
                let sums = if T <= CHAINS && $j % 2 == 1 { &mut odd } else { &mut even };
                // SAFETY: the caller's promise.
                unsafe {
                    let word = W::word(block, $j);
                    for (sum, at) in sums.iter_mut().zip(at) {
                        // In the order of the source, a word for all tokens before the next; the intrinsic becomes two instructions.
                        asm!(
                            "vpdpwssd {sum}, {word}, dword ptr [{at} + {offset}]{{1to16}}",
                            sum = inout(zmm_reg) *sum,
                            word = in(zmm_reg) word,
                            at = in(reg) at,
                            offset = const 4 * $j,
                            options(readonly, nostack, preserves_flags),
                        );
                    }
                }
            )*};
        }
        add_words!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        if T <= CHAINS {
            for (even, odd) in even.iter_mut().zip(odd) {
                *even = _mm512_add_epi32(*even, odd);
            }
        }
        even
    }
}

//! Weights in blocks of 256 times Q8K rows, by int8 tiles.
//!
//! A block of 256 k of sixteen rows of weights is unpacked to two planes of bytes ([`super::planes`]), and each tile of tokens is
//! multiplied with it ([`super::step`]): sums stay in tile registers for all 256 k and are scaled once, not for each 32. Blocks
//! and tiles are steps of one pipeline, so products always have the scaling of earlier ones beside them, and those of a block's first
//! tile the unpacking of the next block (NOTES.md, "AMX: K-quants").

use std::mem::MaybeUninit;
use std::ops::Range;

use super::planes::{Factors, Packed, Panel};
use super::step::{DEPTH, FULL, Scaling, Share, Step, Sums, finish};
use super::tiles::{Activations, Tiles};
use crate::abi::MatMulArgs;
use crate::cpu::avx2::quant::Format;
use crate::pack::GROUP;
use crate::quant::BLOCK;

/// k of a block.
const LONG: usize = 256;

/// Blocks of k that are multiplied with all groups in turn: so many activations of 32 tokens, 16 KiB, stay in the L1 cache beside panels
/// (16), sums of steps (4) and those of all blocks so far (2 for two groups) (NOTES.md, "AMX: K-quants").
const CHUNK: usize = 2;

/// Tiles of tokens that share a block's panel (NOTES.md, "AMX: K-quants").
const TILES: usize = 8;

/// Groups of a call that are multiplied with a chunk in turn, which bounds the memory of their sums.
const GROUPS: usize = 16;

/// Bytes from a token to the next where rows are collected: a chunk, and a line more, lest their lines share few sets of the cache.
const COLLECTED: usize = CHUNK * LONG + 64;

/// Blocks whose factors are in use: one is unpacked, one multiplied, and two behind it are scaled.
const IN_USE: usize = 4;

/// The quants of a chunk of each token: a tile's rows must lie at one distance, which those of an index don't.
#[repr(C, align(64))]
struct Rows([[u8; COLLECTED]; TILES * FULL]);

/// Sums of all blocks so far of each token with two groups. Rows of `out` may lie a multiple of 4 KiB apart, as lines that share a set of
/// the L1 cache do.
#[repr(C, align(64))]
struct Acc([[[f32; 16]; TILES * FULL]; GROUPS / 2]);

/// Memory of a call.
struct Scratch {
    panels: MaybeUninit<[Panel; 2]>,
    factors: MaybeUninit<[Factors; IN_USE]>,
    sums: MaybeUninit<[Sums; 2]>,
    acc: MaybeUninit<Acc>,
    collected: MaybeUninit<Rows>,
}

/// # Safety
/// As the scalar twin; the processor has the level and the tiles of M.
#[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
pub(super) unsafe fn matmul<M: Tiles, F: Format>(args: &MatMulArgs) {
    let rows = args.rows as usize;
    // Of about one size: a tile's instructions take as long as it has rows.
    let tiles = rows.div_ceil(FULL);
    let tokens = rows.div_ceil(tiles.max(1));
    if tokens == 0 {
        return;
    }
    let mut scratch = Scratch {
        panels: MaybeUninit::uninit(),
        factors: MaybeUninit::zeroed(),
        sums: MaybeUninit::uninit(),
        acc: MaybeUninit::uninit(),
        collected: MaybeUninit::uninit(),
    };
    // Hidden, lest what is read of it between products is read before them.
    let scratch = std::hint::black_box(&mut scratch);
    // SAFETY: the caller's promise.
    unsafe {
        M::configure(tokens, DEPTH);
        for first in (0..tiles).step_by(TILES) {
            for col in (0..args.cols).step_by(GROUPS * GROUP) {
                let part = MatMulArgs {
                    out: args.out.add(col as usize),
                    col0: args.col0 + col,
                    cols: (args.cols - col).min((GROUPS * GROUP) as u64),
                    ..*args
                };
                let slab = Slab::new::<F>(&part, tokens, first..tiles.min(first + TILES));
                slab.run::<M, F>(scratch);
            }
        }
        M::release();
    }
}

/// Some of a call's tiles of tokens with some of its features.
struct Slab<'a> {
    args: &'a MatMulArgs,
    /// Tokens of a tile.
    tokens: usize,
    tiles: Range<usize>,
    /// The activations of the first tile's first token and of those behind it.
    rows: [*const u8; TILES * FULL],
    /// Blocks of a row of weights.
    blocks: usize,
    block_bytes: usize,
    groups: usize,
}

/// A block of two groups.
#[derive(Clone, Copy)]
struct Unit {
    block: usize,
    /// The first group.
    group: usize,
}

impl Slab<'_> {
    fn new<F: Format>(args: &MatMulArgs, tokens: usize, tiles: Range<usize>) -> Slab<'_> {
        let mut slab = Slab {
            args,
            tokens,
            rows: [std::ptr::null(); TILES * FULL],
            tiles,
            blocks: args.k as usize / LONG,
            block_bytes: F::HEADER + F::PARTS * F::PART,
            groups: (args.cols as usize).div_ceil(GROUP),
        };
        let first = slab.first_row(slab.tiles.start);
        let count = slab.first_row(slab.tiles.end - 1) + tokens - first;
        for (i, row) in slab.rows.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's arguments have the row.
            *row = unsafe { args.x_row(first + i) };
        }
        slab
    }

    /// The first row of a tile. The last tile is a whole one too, and overlaps the one before.
    fn first_row(&self, tile: usize) -> usize {
        (tile * self.tokens).min(self.args.rows as usize - self.tokens)
    }

    /// # Safety
    /// As [`matmul`]; tiles are configured.
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn run<M: Tiles, F: Format>(&self, scratch: &mut Scratch) {
        let factors = scratch.factors.as_mut_ptr().cast::<Factors>();
        let sums = scratch.sums.as_mut_ptr().cast::<Sums>();
        let acc = scratch.acc.as_mut_ptr().cast::<[f32; 16]>();
        let mut unit = Unit { block: 0, group: 0 };
        if self.blocks == 0 {
            // SAFETY: the caller's promise.
            return unsafe { self.clear() };
        }
        let nothing = Scaling {
            sums: sums.cast(),
            factors,
            rows: self.rows.as_ptr(),
            tokens: Share::of(0),
            scale: 0,
            row_sums: 0,
            acc,
            out: self.args.out,
            out_bytes: 0,
            read: 0,
            written: 0,
        };
        let mut scaled = [nothing; 2];
        // SAFETY: the caller promises the groups from `col0` on, and rows of x and out.
        unsafe {
            let mut packed = self.packed::<F>(unit, 0, scratch);
            packed.block::<F>();
            let (mut units, mut steps) = (0, 0);
            // Where a step stores the results of the one before. What the first one stores nothing reads.
            let mut results = sums.add(1);
            loop {
                if unit.group == 0 && unit.block.is_multiple_of(CHUNK) {
                    self.collect(unit.block, scratch);
                }
                let next = self.after(unit);
                if let Some(next) = next {
                    packed = self.packed::<F>(next, units + 1, scratch);
                }
                for tile in self.tiles.clone() {
                    let step = self.step(unit, tile, units, scratch);
                    match next.is_some() && tile == self.tiles.start {
                        false => step.run::<M, F, false>(results, &mut scaled, packed),
                        true => step.run::<M, F, true>(results, &mut scaled, packed),
                    }
                    results = sums.add(steps % 2);
                    let scaling = Scaling {
                        factors: factors.add(units % IN_USE),
                        ..self.scaling(unit, tile, results.cast(), acc)
                    };
                    scaled = [scaled[1], scaling];
                    steps += 1;
                }
                match next {
                    Some(next) => unit = next,
                    None => break,
                }
                units += 1;
            }
            finish::<M, F>(results, &mut scaled);
        }
    }

    /// The unit behind another: a chunk's blocks of two groups, then those of the next two, then the next chunk.
    fn after(&self, unit: Unit) -> Option<Unit> {
        let Unit { block, group } = unit;
        let chunk = block / CHUNK * CHUNK;
        let end = self.blocks.min(chunk + CHUNK);
        if block + 1 < end {
            let block = block + 1;
            Some(Unit { block, group })
        } else if group + 2 < self.groups {
            let (block, group) = (chunk, group + 2);
            Some(Unit { block, group })
        } else if end < self.blocks {
            let (block, group) = (end, 0);
            Some(Unit { block, group })
        } else {
            None
        }
    }

    /// Where a unit's blocks are. Where there is no second group, the first is taken twice.
    fn at(&self, unit: Unit) -> [*const u8; 2] {
        let group_bytes = self.blocks * self.block_bytes;
        let group = self.args.col0 as usize / GROUP + unit.group;
        let offset = group * group_bytes + unit.block * self.block_bytes;
        let first = self.args.w.wrapping_add(offset);
        match unit.group + 1 < self.groups {
            true => [first, first.wrapping_add(group_bytes)],
            false => [first; 2],
        }
    }

    /// What unpacks a unit, the number `units` of them, whose factors it writes.
    ///
    /// # Safety
    /// There is the unit.
    #[target_feature(enable = "avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")]
    unsafe fn packed<F: Format>(&self, unit: Unit, units: usize, scratch: &mut Scratch) -> Packed {
        let at = self.at(unit);
        let panels = scratch.panels.as_mut_ptr().cast::<Panel>();
        let factors = scratch.factors.as_mut_ptr().cast::<Factors>();
        let factors = factors.wrapping_add(units % IN_USE);
        // SAFETY: the caller's promise; a block's parts follow its header.
        unsafe {
            Factors::unpack::<F>(at, factors);
            Packed {
                parts: [at[0].add(F::HEADER), at[1].add(F::HEADER)],
                panel: panels.add(units % 2),
                factors,
                next: self.ahead(unit),
            }
        }
    }

    /// What is unpacked a chunk behind a unit, to be fetched.
    fn ahead(&self, unit: Unit) -> [*const u8; 2] {
        let chunk = unit.block / CHUNK * CHUNK;
        let (block, group) = match (unit.group + 2 < self.groups, chunk + CHUNK < self.blocks) {
            (true, _) => (unit.block, unit.group + 2),
            (false, true) => (unit.block + CHUNK, 0),
            // Of the next columns, for which there may be another call.
            (false, false) => (unit.block - chunk, unit.group + 2),
        };
        let [first, _] = self.at(Unit { block, group });
        [first, first.wrapping_add(self.blocks * self.block_bytes)]
    }

    /// The products of a tile with a unit, the number `units` of them.
    fn step(&self, unit: Unit, tile: usize, units: usize, scratch: &mut Scratch) -> Step {
        let panels = scratch.panels.as_ptr().cast::<Panel>();
        let collected = scratch.collected.as_ptr().cast::<u8>();
        let row = self.first_row(tile) - self.first_row(self.tiles.start);
        Step {
            x: match self.args.index.is_null() {
                true => Activations {
                    at: self.rows[row].wrapping_add(unit.block * LONG),
                    token: self.args.x_stride as usize,
                },
                false => Activations {
                    at: collected.wrapping_add(row * COLLECTED + unit.block % CHUNK * LONG),
                    token: COLLECTED,
                },
            },
            panel: panels.wrapping_add(units % 2),
        }
    }

    /// How a tile's sums are scaled, of rows that the tile before hasn't; but for the factors.
    fn scaling(
        &self,
        unit: Unit,
        tile: usize,
        sums: *const [i32; 16],
        acc: *mut [f32; 16],
    ) -> Scaling {
        let k = self.args.k as usize;
        let (first, row) = (self.first_row(tile), tile * self.tokens);
        let start = row - self.first_row(self.tiles.start);
        let acc = acc.wrapping_add(unit.group / 2 * TILES * FULL + start);
        let out_stride = self.args.out_stride as usize;
        let (out, out_bytes, written) = match unit.block + 1 == self.blocks {
            false => (acc.cast(), size_of::<[f32; 16]>(), 0xffff),
            true => (
                (self.args.out).wrapping_add(row * out_stride + unit.group * GROUP),
                size_of::<f32>() * out_stride,
                match unit.group + 1 < self.groups {
                    true => 0xffff,
                    false => 0xff,
                },
            ),
        };
        Scaling {
            sums: sums.wrapping_add(row - first),
            factors: std::ptr::null(),
            rows: self.rows[start..].as_ptr(),
            tokens: Share::of(first + self.tokens - row),
            scale: k + 4 * unit.block,
            row_sums: k + 4 * self.blocks + LONG / BLOCK * 2 * unit.block,
            acc,
            out,
            out_bytes,
            read: if unit.block > 0 { 0xffff } else { 0 },
            written,
        }
    }

    /// Lays the quants of a chunk side by side, if the rows are by an index.
    ///
    /// # Safety
    /// The rows have it, from `block` on.
    unsafe fn collect(&self, block: usize, scratch: &mut Scratch) {
        if self.args.index.is_null() {
            return;
        }
        let to = scratch.collected.as_mut_ptr().cast::<u8>();
        let bytes = CHUNK.min(self.blocks - block) * LONG;
        for (i, row) in self.rows.iter().enumerate() {
            if row.is_null() {
                break;
            }
            // SAFETY: the caller's promise; there is room for a chunk of each row.
            unsafe {
                let from = row.add(block * LONG);
                to.add(i * COLLECTED).copy_from_nonoverlapping(from, bytes);
            }
        }
    }

    /// Sums of no products.
    ///
    /// # Safety
    /// As [`matmul`].
    unsafe fn clear(&self) {
        for row in self.first_row(self.tiles.start)..self.args.rows as usize {
            // SAFETY: rows of out have whole groups.
            unsafe {
                let out = self.args.out.add(row * self.args.out_stride as usize);
                out.write_bytes(0, self.groups * GROUP);
            }
        }
    }
}

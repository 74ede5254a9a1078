//! The memory that a case's region works on, and the reference interpreter's view of the same bytes.

use std::collections::BTreeMap;

use bundle_format::plan::{KV_BLOCK, KvDType, q8k_bounds_offset};
use bundle_format::region::{KvPart, Operand, OperandId};
use half::f16;
use kernels::abi::RegionFn;
use kernels::reference::kv_q8_0::Place;
use kernels::reference::{Operands, Tile, TileRange, q8, q8k, q11, q14, run_region};

use super::regions::Case;
use crate::codegen::cpu::{Layout, QuantType, RegionContext};

/// Rows of every buffer, and slots of every pool.
pub const ROWS: usize = 20;

/// Blocks of a pool.
const BLOCKS: usize = 3;

/// Bytes before and behind every operand that nothing may touch.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xA5;

#[derive(Clone)]
pub struct Memory {
    context: RegionContext,
    /// By operand; equal operands are the first of them.
    same_as: Vec<usize>,
    /// Each with its guards.
    bytes: Vec<Vec<u8>>,
    pub tile: Vec<f32>,
    /// Elements of blocks of a quantised pool that the interpreter has in part: by operand, slot, head and block.
    blocks: BTreeMap<(OperandId, u32, usize, usize), Vec<f32>>,
}

impl Memory {
    /// Fills what the region can read from `next`; indices are distinct, out of order.
    pub fn new(case: &Case, mut next: impl FnMut() -> f32) -> Memory {
        let context = case.context();
        let operands = &case.region.operands;
        let same_as = operands
            .iter()
            .map(|o| operands.iter().take_while(|p| *p != o).count())
            .collect();
        let bytes = context
            .operands
            .iter()
            .zip(operands)
            .map(|(layout, operand)| {
                let body: Vec<u8> = match *layout {
                    Layout::F32 { row_bytes, .. } => floats(ROWS * row_bytes as usize, &mut next),
                    Layout::Vector { cols } => floats(cols as usize * 4, &mut next),
                    Layout::Quant { row_bytes, .. } => vec![0x15; ROWS * row_bytes as usize],
                    Layout::Kv { block_bytes, .. } => vec![0x55; BLOCKS * block_bytes as usize],
                    Layout::Indices { row_bytes, .. } => (0..ROWS as u32 * row_bytes as u32 / 4)
                        .flat_map(|i| ((i * 7 + 3) % ROWS as u32).to_le_bytes())
                        .collect(),
                };
                assert!(
                    matches!(operand, Operand::Weight(_))
                        == matches!(layout, Layout::Vector { .. })
                );
                let guard = [GUARD_BYTE; GUARD];
                [&guard[..], &body, &guard].concat()
            })
            .collect();
        let tile = (0..ROWS * case.tile_stride as usize)
            .map(|_| next())
            .collect();
        Memory {
            context,
            same_as,
            bytes,
            tile,
            blocks: BTreeMap::new(),
        }
    }

    /// Calls the code for a part of the iteration space.
    pub fn call(&mut self, case: &Case, code: RegionFn, range: &TileRange) {
        let starts: Vec<*mut u8> = self
            .bytes
            .iter_mut()
            .map(|bytes| bytes[GUARD..].as_mut_ptr())
            .collect();
        let args: Vec<*mut u8> = self.same_as.iter().map(|&i| starts[i]).collect();
        let first = range.rows.start * case.tile_stride as usize + range.cols.start;
        let tile = if case.region.reads_tile() {
            self.tile[first..].as_mut_ptr()
        } else {
            std::ptr::null_mut()
        };
        // SAFETY: the code is the region's, the range lies within the operands and the tile, and no one else uses them.
        unsafe {
            code(
                args.as_ptr(),
                tile,
                range.rows.start as u64,
                range.rows.len() as u64,
                range.cols.start as u64,
                range.cols.len() as u64,
            )
        }
    }

    /// Runs the reference interpreter for a part of the iteration space.
    pub fn interpret(&mut self, case: &Case, range: &TileRange) {
        let stride = case.tile_stride as usize;
        let tile = std::mem::take(&mut self.tile);
        let view = case.region.reads_tile().then(|| Tile {
            data: &tile[range.rows.start * stride + range.cols.start..],
            stride,
        });
        run_region(&case.region, range, view, self);
        self.tile = tile;
    }

    /// The first difference in bits, by operand and place; NaNs of floats are all alike.
    pub fn difference(&self, other: &Memory) -> Option<String> {
        self.compare(other, 0.0)
    }

    /// The first difference beyond a relative tolerance; of a quant, beyond one step if the tolerance isn't 0.
    pub fn compare(&self, other: &Memory, tolerance: f32) -> Option<String> {
        (0..self.bytes.len()).find_map(|id| {
            self.compare_operand(other, id, tolerance)
                .map(|d| format!("operand {id}: {d}"))
        })
    }

    fn compare_operand(&self, other: &Memory, id: usize, tolerance: f32) -> Option<String> {
        let (a, b) = (&self.bytes[id], &other.bytes[id]);
        let guards_hold = |bytes: &[u8]| {
            bytes[..GUARD]
                .iter()
                .chain(&bytes[bytes.len() - GUARD..])
                .all(|b| *b == GUARD_BYTE)
        };
        if !guards_hold(a) || !guards_hold(b) {
            return Some("bytes outside were written".into());
        }
        let (a, b) = (&a[GUARD..a.len() - GUARD], &b[GUARD..b.len() - GUARD]);
        match self.context.operands[id] {
            Layout::F32 { row_bytes, .. } => differ(a, b, row_bytes as usize, |a, b| {
                float_difference(as_floats(a), as_floats(b), tolerance)
            }),
            Layout::Kv {
                dtype: KvDType::Q8_0,
                part,
                heads,
                head_dim,
                block_bytes,
            } => differ(a, b, block_bytes as usize, |a, b| {
                cached_difference(part, [heads, head_dim], a, b, tolerance)
            }),
            Layout::Kv { .. } => {
                let halves = |bytes: &[u8]| -> Vec<f32> {
                    let halves = bytes.as_chunks::<2>().0;
                    halves
                        .iter()
                        .map(|h| f16::from_le_bytes(*h).to_f32())
                        .collect()
                };
                // One f16 step, where f32 differ at all.
                let tolerance = if tolerance > 0.0 { 1e-3 } else { 0.0 };
                float_difference(halves(a), halves(b), tolerance)
            }
            Layout::Quant {
                ty,
                cols,
                row_bytes,
            } => differ(a, b, row_bytes as usize, |a, b| {
                block_difference(ty, a, b, cols, tolerance)
            }),
            Layout::Vector { .. } | Layout::Indices { .. } => {
                (a != b).then(|| "an input changed".into())
            }
        }
    }

    fn operand(&self, id: OperandId) -> &[u8] {
        &self.bytes[self.same_as[id as usize]][GUARD..]
    }

    fn operand_mut(&mut self, id: OperandId) -> &mut [u8] {
        &mut self.bytes[self.same_as[id as usize]][GUARD..]
    }
}

fn floats(bytes: usize, next: &mut impl FnMut() -> f32) -> Vec<u8> {
    (0..bytes / 4).flat_map(|_| next().to_le_bytes()).collect()
}

fn as_floats(bytes: &[u8]) -> Vec<f32> {
    let floats = bytes.as_chunks::<4>().0;
    floats.iter().map(|f| f32::from_le_bytes(*f)).collect()
}

fn differ(
    a: &[u8],
    b: &[u8],
    row_bytes: usize,
    difference: impl Fn(&[u8], &[u8]) -> Option<String>,
) -> Option<String> {
    let rows = a.chunks(row_bytes).zip(b.chunks(row_bytes));
    rows.enumerate()
        .find_map(|(row, (a, b))| difference(a, b).map(|d| format!("row {row}: {d}")))
}

fn float_difference(a: Vec<f32>, b: Vec<f32>, tolerance: f32) -> Option<String> {
    let close = |a: f32, b: f32| {
        a.to_bits() == b.to_bits()
            || a.is_nan() && b.is_nan()
            || (a - b).abs() <= tolerance * a.abs().max(b.abs()) && tolerance > 0.0
    };
    let at = a.iter().zip(&b).position(|(&a, &b)| !close(a, b))?;
    Some(format!("element {at}: {:e} and {:e}", a[at], b[at]))
}

/// Blocks whose inverse scale or whose scale isn't finite have quants of no meaning.
fn block_difference(
    ty: QuantType,
    a: &[u8],
    b: &[u8],
    cols: u32,
    tolerance: f32,
) -> Option<String> {
    let [scales, sums] = ty.scales_and_sums(cols).map(|offset| offset as usize);
    let cols = cols as usize;
    let elements = ty.block() as usize;
    for block in 0..cols / elements {
        let of = |bytes: &[u8], part: usize| as_floats(&bytes[part + block * 4..][..4])[0];
        let (scale, scale_b) = (of(a, scales), of(b, scales));
        if !scale.is_finite() {
            continue;
        }
        if let Some(d) = float_difference(vec![scale], vec![scale_b], tolerance) {
            return Some(format!("scale of block {block}: {d}"));
        }
        if scale != 0.0 && scale < 1e-38 {
            continue;
        }
        let quants = |bytes: &[u8]| -> Vec<i32> {
            let byte = |i: usize| bytes[block * elements * ty.bytes() as usize + i] as i8 as i32;
            match ty {
                QuantType::Q8 | QuantType::Q8K => (0..elements).map(byte).collect(),
                QuantType::Q11 => (0..32).map(|i| byte(i) * 8 + byte(32 + i)).collect(),
                QuantType::Q14 => (0..32).map(|i| q14::quant(bytes, block * 32 + i)).collect(),
            }
        };
        // Where nothing was to be stored, the bytes are what memory was filled with.
        let bytes = elements * ty.bytes() as usize;
        let place = block * bytes..(block + 1) * bytes;
        let lows = a[place.clone()].iter().skip(32).map(|low| *low as i8);
        if ty == QuantType::Q11
            && a[place.clone()] != b[place]
            && let Some(low) = lows.into_iter().find(|low| !(-4..4).contains(low))
        {
            return Some(format!("low byte {low} of block {block}"));
        }
        // A quant's share of what the elements may differ by, and its rounding.
        let step = if tolerance > 0.0 {
            1 + (ty.levels() * tolerance) as u32
        } else {
            0
        };
        let (quants_a, quants_b) = (quants(a), quants(b));
        if let Some(at) = (0..elements).find(|&i| quants_a[i].abs_diff(quants_b[i]) > step) {
            return Some(format!(
                "quant {at} of block {block}: {} and {}",
                quants_a[at], quants_b[at]
            ));
        }
        if ty == QuantType::Q8K {
            for (i, quants) in quants_a.chunks(32).enumerate() {
                let at = sums + 2 * (block * 8 + i);
                let sum = |bytes: &[u8]| i16::from_le_bytes([bytes[at], bytes[at + 1]]);
                let is_of_quants = i32::from(sum(a)) == quants.iter().sum::<i32>();
                if sum(a) != sum(b) && !(tolerance > 0.0 && is_of_quants) {
                    let sums = [sum(a), sum(b)];
                    return Some(format!("sum {i} of block {block}: {sums:?}"));
                }
            }
            let bound = |bytes: &[u8], i: usize| {
                let at = q8k_bounds_offset(cols as u32) as usize + 4 * block + 2 * i;
                i16::from_le_bytes([bytes[at], bytes[at + 1]])
            };
            let bounds = [bound(a, 0), bound(a, 1)];
            let of_quants = q8k::bounds(&std::array::from_fn(|i| quants_a[i] as i8));
            if bounds != [bound(b, 0), bound(b, 1)] && !(tolerance > 0.0 && bounds == of_quants) {
                return Some(format!(
                    "bounds of block {block}: {bounds:?}, {of_quants:?} of the quants"
                ));
            }
            continue;
        }
        let total: i32 = quants_a.iter().sum();
        let expected = if tolerance > 0.0 {
            scale * total as f32
        } else {
            of(b, sums)
        };
        if let Some(d) = float_difference(vec![of(a, sums)], vec![expected], 0.0) {
            return Some(format!("sum of block {block}: {d}"));
        }
    }
    let end = match ty {
        QuantType::Q8K => sums + cols / 16 + cols / 64,
        _ => sums + cols / 8,
    };
    (a[end..] != b[end..]).then(|| "padding".into())
}

/// As [`block_difference`], of the blocks of a quantised pool's block.
fn cached_difference(
    part: KvPart,
    [heads, head_dim]: [u32; 2],
    a: &[u8],
    b: &[u8],
    tolerance: f32,
) -> Option<String> {
    for at in 0..heads as usize * KV_BLOCK * (head_dim / 32) as usize {
        let blocks = head_dim as usize / 32;
        let first = Place {
            part,
            head_dim: head_dim as usize,
            kv_head: at / blocks / KV_BLOCK,
            position: at / blocks % KV_BLOCK,
            dim: at % blocks * 32,
        };
        let scale = |bytes: &[u8]| {
            let bytes = [bytes[first.scale()], bytes[first.scale() + 1]];
            f16::from_le_bytes(bytes).to_f32()
        };
        let (scale_a, scale_b) = (scale(a), scale(b));
        if !scale_a.is_finite() || scale_a == 0.0 && scale_b == 0.0 {
            continue;
        }
        let (f16_step, step) = if tolerance > 0.0 { (1e-3, 1) } else { (0.0, 0) };
        if let Some(d) = float_difference(vec![scale_a], vec![scale_b], f16_step) {
            return Some(format!("scale at {first:?}: {d}"));
        }
        let quant = |bytes: &[u8], i: usize| {
            let dim = first.dim + i;
            bytes[Place { dim, ..first }.quant()] as i8
        };
        if let Some(i) = (0..32).find(|&i| quant(a, i).abs_diff(quant(b, i)) > step) {
            let (a, b) = (quant(a, i), quant(b, i));
            return Some(format!("quant {i} at {first:?}: {a} and {b}"));
        }
    }
    None
}

impl Operands for Memory {
    fn load(&self, operand: OperandId, row: usize, col: usize) -> f32 {
        let row_bytes = match self.context.operands[operand as usize] {
            Layout::F32 { row_bytes, .. } => row_bytes as usize,
            Layout::Vector { .. } => 0,
            other => panic!("{other:?} holds no floats"),
        };
        as_floats(&self.operand(operand)[row * row_bytes + col * 4..][..4])[0]
    }

    fn index(&self, operand: OperandId, row: usize, col: usize) -> u32 {
        let Layout::Indices { row_bytes, .. } = self.context.operands[operand as usize] else {
            panic!("operand {operand} holds no indices");
        };
        as_floats(&self.operand(operand)[row * row_bytes as usize + col * 4..][..4])[0].to_bits()
    }

    fn store(&mut self, operand: OperandId, row: usize, col: usize, value: f32) {
        let Layout::F32 { row_bytes, .. } = self.context.operands[operand as usize] else {
            panic!("operand {operand} holds no floats");
        };
        self.operand_mut(operand)[row * row_bytes as usize + col * 4..][..4]
            .copy_from_slice(&value.to_le_bytes());
    }

    fn store_quant(&mut self, operand: OperandId, row: usize, col: usize, values: &[f32]) {
        let Layout::Quant {
            ty,
            row_bytes,
            cols,
        } = self.context.operands[operand as usize]
        else {
            panic!("operand {operand} holds no blocks");
        };
        let row = &mut self.operand_mut(operand)[row * row_bytes as usize..];
        let cols = cols as usize;
        if ty == QuantType::Q8K {
            for (i, values) in values.as_chunks().0.iter().enumerate() {
                let block = q8k::quantise_block(values);
                q8k::write_block(row, cols, col + 256 * i, &block);
            }
            return;
        }
        for (i, values) in values.as_chunks().0.iter().enumerate() {
            let col = col + 32 * i;
            match ty {
                QuantType::Q8 => q8::write_block(row, cols, col, &q8::quantise_block(values)),
                QuantType::Q11 => q11::write_block(row, cols, col, &q11::quantise_block(values)),
                QuantType::Q14 => q14::write_block(row, cols, col, &q14::quantise_block(values)),
                QuantType::Q8K => unreachable!("written above"),
            }
        }
    }

    fn store_kv(&mut self, operand: OperandId, slot: u32, head: usize, dim: usize, value: f32) {
        let Layout::Kv {
            dtype,
            part,
            heads,
            head_dim,
            block_bytes,
        } = self.context.operands[operand as usize]
        else {
            panic!("operand {operand} is no pool");
        };
        let (heads, dims) = (heads as usize, head_dim as usize);
        let (block, position) = (slot as usize / KV_BLOCK, slot as usize % KV_BLOCK);
        if dtype == KvDType::Q8_0 {
            let key = (operand, slot, head, dim / 32);
            let elements = self.blocks.entry(key).or_default();
            elements.push(value);
            if let Ok(x) = <&[f32; 32]>::try_from(&elements[..]) {
                let x = *x;
                self.blocks.remove(&key);
                let place = Place {
                    part,
                    head_dim: dims,
                    kv_head: head,
                    position,
                    dim: dim / 32 * 32,
                };
                let start = block * block_bytes as usize;
                let bytes = &mut self.operand_mut(operand)[start..][..block_bytes as usize];
                place.write(&x, bytes);
            }
            return;
        }
        let head = block * heads + head;
        let element = match part {
            KvPart::Key => (head * dims + dim) * KV_BLOCK + position,
            KvPart::Value => (head * KV_BLOCK + position) * dims + dim,
        };
        self.operand_mut(operand)[element * 2..][..2]
            .copy_from_slice(&f16::from_f32(value).to_le_bytes());
    }
}

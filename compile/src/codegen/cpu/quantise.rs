//! Stores of quantised blocks.
//!
//! A block's scale must be known before its quants. So a strip is up to [`TOGETHER`] whole blocks of 32, or one of 256: their elements are
//! evaluated first, their magnitudes folded; then the scales of all blocks are found at once, one in each lane; then the elements
//! are quantised.

use bundle_format::plan::{KvDType, Q8_BLOCK, Q8K_BLOCK, q8k_bounds_offset};
use bundle_format::region::{ColMap, Inst, OperandId, RowMap, Val};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32X4, I8X16, I16X8, I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, StackSlotData, StackSlotKind, Value};
use cranelift_frontend::FunctionBuilder;

use super::emit::{Emitter, flags};
use super::layout::{KvScales, KvStrides, Layout, QuantType};
use super::math::{self, LANES, cast, constant, each, fold_lanes, shuffle_lanes, splat};
use super::schedule::{Phase, Step};
use super::strip::{Group, Lanes, Point};

/// Blocks of 32 of a full strip.
pub const TOGETHER: usize = LANES;

/// Vectors of 32 elements.
const BLOCK_VECTORS: usize = Q8_BLOCK / LANES;

/// Vectors of a full strip.
pub const STRIP_BLOCK_VECTORS: usize = TOGETHER * BLOCK_VECTORS;

/// Vectors of a full strip of [`QuantType::Q8K`].
const WIDE_STRIP_VECTORS: usize = Q8K_BLOCK / LANES;

/// A store of which a strip has evaluated some blocks.
pub struct QuantStore {
    /// The store's index in the body.
    pub index: usize,
    x: Val,
    /// By 32 elements: the largest magnitudes, by lane.
    largest: Vec<Value>,
}

impl Emitter<'_> {
    /// Makes room on the stack for the elements of each store, unless they can be loaded again.
    pub fn make_scratch(&mut self) {
        for (index, inst) in self.region.body.iter().enumerate() {
            if self.quantised(inst).is_some_and(|x| !self.loads_at_use(x)) {
                let bytes = WIDE_STRIP_VECTORS * LANES * 4;
                let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes as u32, 4);
                let slot = self.b.create_sized_stack_slot(data);
                let address = self.b.ins().stack_addr(I64, slot, 0);
                self.scratch.push((index, address));
            }
        }
    }

    /// The stores of quantised blocks in a phase, without elements yet. Where there are some, strips are whole blocks.
    pub fn quant_stores(&self, phase: &Phase) -> Vec<QuantStore> {
        let steps = phase.steps.iter();
        steps
            .filter_map(|step| match *step {
                Step::Store(index) => {
                    let x = self.quantised(&self.region.body[index])?;
                    Some(QuantStore {
                        index,
                        x,
                        largest: Vec::new(),
                    })
                }
                _ => None,
            })
            .collect()
    }

    /// What an instruction quantises and stores.
    fn quantised(&self, inst: &Inst) -> Option<Val> {
        match *inst {
            Inst::StoreQuant { x, .. } => Some(x),
            Inst::StoreKv { dst, x, .. } => match self.context.operands[dst as usize] {
                Layout::Kv {
                    dtype: KvDType::Q8_0,
                    ..
                } => Some(x),
                _ => None,
            },
            _ => None,
        }
    }

    /// Notes elements, `first` the number of their first vector: their magnitudes now, and the elements themselves to the
    /// stack, unless they can be loaded again.
    pub fn gather(&mut self, group: &Group, first: usize, store: &mut QuantStore) {
        let xs = self.values(store.x, group);
        let magnitudes = magnitudes(&mut self.b, &xs);
        for (i, magnitude) in magnitudes.into_iter().enumerate() {
            let block = (first + i) / BLOCK_VECTORS;
            match store.largest.get_mut(block) {
                None => store.largest.push(magnitude),
                Some(largest) => *largest = self.b.ins().smax(*largest, magnitude),
            }
        }
        if !self.loads_at_use(store.x) {
            let scratch = self.scratch(store.index);
            for (i, x) in xs.into_iter().enumerate() {
                let offset = scratch_offset(first + i);
                self.b.ins().store(flags(), x, scratch, offset);
            }
        }
    }

    /// Vectors of a full strip of a store's.
    pub fn strip_vectors(&self, store: &QuantStore) -> usize {
        match self.quant_type(store) {
            Some(QuantType::Q8K) => WIDE_STRIP_VECTORS,
            _ => STRIP_BLOCK_VECTORS,
        }
    }

    /// What a store to a buffer quantises to.
    fn quant_type(&self, store: &QuantStore) -> Option<QuantType> {
        let Inst::StoreQuant { dst, .. } = self.region.body[store.index] else {
            return None;
        };
        match self.context.operands[dst as usize] {
            Layout::Quant { ty, .. } => Some(ty),
            _ => None,
        }
    }

    /// Quantises and stores the blocks at a strip's points. A strip may be longer than the store's own, for another's sake.
    pub fn store_quant(&mut self, store: &QuantStore, points: &[Point]) {
        let own = self.strip_vectors(store);
        for (nth, points) in points.chunks(own).enumerate() {
            let first = nth * own / BLOCK_VECTORS;
            match self.region.body[store.index] {
                Inst::StoreQuant { dst, col, .. } => match self.quant_type(store) {
                    Some(QuantType::Q8K) => self.store_wide(store, dst, col, first, points),
                    _ => self.store_activations(store, dst, col, first, points),
                },
                Inst::StoreKv { dst, offset, .. } => {
                    self.store_cached(store, dst, offset, first, points)
                }
                ref other => unreachable!("{other:?} stores no blocks"),
            }
        }
    }

    /// To a row of a buffer, up to [`TOGETHER`] blocks of 32 from the strip's `first` on.
    fn store_activations(
        &mut self,
        store: &QuantStore,
        dst: OperandId,
        col: ColMap,
        first: usize,
        points: &[Point],
    ) {
        let Layout::Quant { ty, cols, .. } = self.context.operands[dst as usize] else {
            unreachable!("the check found a buffer of blocks");
        };
        let scales = scales(&mut self.b, ty, all_lanes(&store.largest[first..]));
        let row = self.row_of(dst, RowMap::Same);
        let mut sums = Vec::new();
        for (lane, points) in points.chunks(BLOCK_VECTORS).enumerate() {
            let xs = self.elements(store, first + lane, points);
            let quants = quants(&mut self.b, &xs, scales.inverse, lane as u8);
            let block = match ty {
                QuantType::Q8 | QuantType::Q8K => q8_block(&mut self.b, &quants),
                QuantType::Q11 => q11_block(&mut self.b, &quants),
                QuantType::Q14 => q14_block(&mut self.b, &quants),
            };
            let (address, offset) = self.address(row, col, points[0], ty.bytes() - 1);
            for (nth, &vector) in block.vectors.iter().enumerate() {
                let at = offset + (nth * VECTOR_BYTES) as i32;
                self.b.ins().store(flags(), vector, address, at);
            }
            sums.push(block.sums);
        }
        let sums = scaled_sums(&mut self.b, all_lanes(&sums), scales.scale);

        // A block's four bytes of scale (and of sum) lie at an eighth of its first column.
        let address = self.fraction(row.first, col, 3);
        let offsets: Vec<i32> = points
            .iter()
            .step_by(BLOCK_VECTORS)
            .map(|point| row.ahead(*point) + self.constant_column(col, *point) as i32 / 8)
            .collect();
        let adjacent = offsets.windows(2).all(|pair| pair[0] + 4 == pair[1]);
        let parts = ty.scales_and_sums(cols);
        for (part, values) in parts.into_iter().zip([scales.scale, sums]) {
            if adjacent && offsets.len() == LANES {
                let at = part as i32 + offsets[0];
                self.b.ins().store(flags(), values, address, at);
                continue;
            }
            for (lane, offset) in offsets.iter().enumerate() {
                let value = self.b.ins().extractlane(values, lane as u8);
                let at = part as i32 + offset;
                self.b.ins().store(flags(), value, address, at);
            }
        }
    }

    /// To a row of a buffer, a block of 256, whose first 32 elements are the strip's number `first`.
    fn store_wide(
        &mut self,
        store: &QuantStore,
        dst: OperandId,
        col: ColMap,
        first: usize,
        points: &[Point],
    ) {
        let Layout::Quant { ty, cols, .. } = self.context.operands[dst as usize] else {
            unreachable!("the check found a buffer of blocks");
        };
        let largest = store.largest[first..][..points.len() / BLOCK_VECTORS]
            .iter()
            .copied()
            .reduce(|x, y| self.b.ins().smax(x, y))
            .expect("a block has elements");
        let scales = scales(&mut self.b, ty, [largest; LANES]);
        let row = self.row_of(dst, RowMap::Same);
        let (mut sums, mut bytes) = (Vec::new(), Vec::new());
        for (nth, points) in points.chunks(BLOCK_VECTORS).enumerate() {
            let xs = self.elements(store, first + nth, points);
            let quants = quants(&mut self.b, &xs, scales.inverse, 0);
            let block = q8_block(&mut self.b, &quants);
            let (address, offset) = self.address(row, col, points[0], 0);
            for (nth, &vector) in block.vectors.iter().enumerate() {
                let at = offset + (nth * VECTOR_BYTES) as i32;
                self.b.ins().store(flags(), vector, address, at);
            }
            sums.push(block.sums);
            bytes.extend(block.vectors);
        }
        // Four sums of 32 quants a vector; these are at most 32 * 127.
        let fours: Vec<Value> = sums
            .chunks(LANES)
            .map(|sums| fold_lanes(&mut self.b, all_lanes(sums), |b, x, y| b.ins().iadd(x, y)))
            .collect();
        let sums = self.b.ins().snarrow(fours[0], fours[1]);
        let [scale_at, sums_at] = ty.scales_and_sums(cols).map(|at| at as i32);
        let (column, ahead) = (self.constant_column(col, points[0]), row.ahead(points[0]));
        // Four bytes for 256 columns, and two for 32.
        let address = self.fraction(row.first, col, 6);
        let scale = self.b.ins().extractlane(scales.scale, 0);
        let at = scale_at + ahead + (column / 64) as i32;
        self.b.ins().store(flags(), scale, address, at);
        let address = self.fraction(row.first, col, 4);
        let at = sums_at + ahead + (column / 16) as i32;
        self.b.ins().store(flags(), sums, address, at);
        // Twice two bytes for 256 columns.
        let address = self.fraction(row.first, col, 6);
        let at = q8k_bounds_offset(cols) as i32 + ahead + (column / 64) as i32;
        for (i, bound) in bounds(&mut self.b, &bytes, sums).into_iter().enumerate() {
            self.b
                .ins()
                .store(flags(), bound, address, at + 2 * i as i32);
        }
    }

    /// An address and the current column over `1 << log2`.
    fn fraction(&mut self, address: Value, col: ColMap, log2: i64) -> Value {
        match self.place.column(col.per_unit) {
            None => address,
            Some(column) => {
                let share = self.b.ins().ushr_imm_u(column, log2);
                self.b.ins().iadd(address, share)
            }
        }
    }

    /// To a slot of a KV pool, as [`Emitter::store_activations`].
    fn store_cached(
        &mut self,
        store: &QuantStore,
        dst: OperandId,
        offset: u32,
        first: usize,
        points: &[Point],
    ) {
        let Layout::Kv {
            dtype,
            part,
            head_dim,
            ..
        } = self.context.operands[dst as usize]
        else {
            unreachable!("the check found a KV pool");
        };
        let strides = KvStrides::of(dtype, part, head_dim);
        let scale_strides = KvScales::of(head_dim);
        let scales = scales(
            &mut self.b,
            QuantType::Q8,
            all_lanes(&store.largest[first..]),
        );
        let halves = math::to_f16(&mut self.b, &[scales.scale])[0];
        let slot = self.kv_slot_of(store.index);
        // Places are of even dimensions.
        let address = self.kv_address(slot.elements, strides.head, strides.two_dims / 2);
        let scale_slot = slot.scales.expect("a quantised pool has scales");
        let scale_address = self.kv_address(scale_slot, strides.head, scale_strides.dim);
        for (lane, points) in points.chunks(BLOCK_VECTORS).enumerate() {
            let xs = self.elements(store, first + lane, points);
            let quants = quants(&mut self.b, &xs, scales.inverse, lane as u8);
            let bytes = narrow(&mut self.b, &quants);
            let head = points[0].unit as u64 * strides.head;
            let dim = (offset + points[0].c) as u64;
            let at = (head + dim / 2 * strides.two_dims) as i32;
            self.store_quants(&bytes, strides, address, at);
            let scale = self.b.ins().extractlane(halves, lane as u8);
            let at = (head + dim * scale_strides.dim) as i32;
            self.b.ins().store(flags(), scale, scale_address, at);
        }
    }

    /// Stores the quants of a block, 16 a vector, from offset `at` of an address on.
    fn store_quants(&mut self, bytes: &[Value], strides: KvStrides, address: Value, at: i32) {
        // Two dimensions that lie side by side go together.
        let (ty, lanes, stride) = match strides.dim {
            1 => (I16X8, 8, strides.two_dims),
            _ => (I8X16, 16, strides.dim),
        };
        for (half, &bytes) in bytes.iter().enumerate() {
            let elements = math::cast(&mut self.b, ty, bytes);
            for lane in 0..lanes {
                let element = self.b.ins().extractlane(elements, lane);
                let nth = half as i32 * lanes as i32 + lane as i32;
                let at = at + nth * stride as i32;
                self.b.ins().store(flags(), element, address, at);
            }
        }
    }

    /// 32 elements of a strip, number `block`, once more.
    fn elements(&mut self, store: &QuantStore, block: usize, points: &[Point]) -> Vec<Value> {
        if self.loads_at_use(store.x) {
            let group = Group {
                points: points.to_vec(),
                lanes: Lanes::All,
                values: Vec::new(),
            };
            return self.eval(store.x, &group);
        }
        let scratch = self.scratch(store.index);
        (0..BLOCK_VECTORS)
            .map(|i| {
                let offset = scratch_offset(block * BLOCK_VECTORS + i);
                self.b.ins().load(F32X4, flags(), scratch, offset)
            })
            .collect()
    }

    fn scratch(&self, store: usize) -> Value {
        let found = self.scratch.iter().find(|(s, _)| *s == store);
        found.expect("the prologue made room for each store").1
    }
}

/// Where vector number `vector` of a strip lies on the stack.
fn scratch_offset(vector: usize) -> i32 {
    (vector * LANES * 4) as i32
}

/// Up to four values, the first one standing in for those that are missing.
fn all_lanes(values: &[Value]) -> [Value; LANES] {
    std::array::from_fn(|i| *values.get(i).unwrap_or(&values[0]))
}

/// `|x|` as integers: they compare as the floats do, with NaN above everything.
fn magnitudes(b: &mut FunctionBuilder, xs: &[Value]) -> Vec<Value> {
    let mask = constant(b, I32X4, [0x7fff_ffff; 4]);
    each(xs, |x| {
        let x = cast(b, I32X4, x);
        b.ins().band(x, mask)
    })
}

/// Scales of blocks, one in each lane.
struct Scales {
    /// amax / levels
    scale: Value,
    /// What elements are multiplied with: levels / amax, or 0 where amax is 0.
    inverse: Value,
}

/// Scales of [`TOGETHER`] blocks, each given by a vector of magnitudes whose largest is the block's.
fn scales(b: &mut FunctionBuilder, ty: QuantType, largest: [Value; TOGETHER]) -> Scales {
    let amax = fold_lanes(b, largest, |b, x, y| b.ins().smax(x, y));
    let amax = cast(b, F32X4, amax);
    let levels = splat(b, ty.levels());
    let scale = b.ins().fdiv(amax, levels);
    let inverse = b.ins().fdiv(levels, amax);
    let zero = splat(b, 0.0);
    let nonzero = b.ins().fcmp(FloatCC::NotEqual, amax, zero);
    let nonzero = cast(b, F32X4, nonzero);
    let inverse = b.ins().band(inverse, nonzero);
    Scales { scale, inverse }
}

/// The quants of a block as four vectors of i16, with the inverse that lane `lane` of `inverse` holds. They are of no
/// meaning where the inverse or an element isn't finite.
fn quants(b: &mut FunctionBuilder, xs: &[Value], inverse: Value, lane: u8) -> Vec<Value> {
    debug_assert_eq!(xs.len(), BLOCK_VECTORS);
    let inverse = shuffle_lanes(b, inverse, inverse, [lane; 4]);
    let products = each(xs, |x| b.ins().fmul(inverse, x));
    // Adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits.
    let magic = splat(b, ROUND_MAGIC);
    let rounded = each(&products, |x| b.ins().fadd(x, magic));
    let bias = cast(b, I32X4, magic);
    let quants = each(&rounded, |x| {
        let bits = cast(b, I32X4, x);
        b.ins().isub(bits, bias)
    });
    narrow(b, &quants)
}

/// 1.5 * 2^23.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// Halves the width of the lanes, and the number of vectors.
fn narrow(b: &mut FunctionBuilder, xs: &[Value]) -> Vec<Value> {
    xs.chunks(2)
        .map(|pair| b.ins().snarrow(pair[0], pair[1]))
        .collect()
}

/// Bytes of a vector.
const VECTOR_BYTES: usize = 4 * LANES;

/// A quantised block.
struct Block {
    /// Its quants as they lie in memory, one vector behind the other.
    vectors: Vec<Value>,
    /// Four sums of quants, which make up the block's.
    sums: Value,
}

fn q8_block(b: &mut FunctionBuilder, quants: &[Value]) -> Block {
    let bytes = narrow(b, quants);
    let ones = constant(b, I8X16, [0x0101_0101; 4]);
    let pairs = each(&bytes, |quants| b.ins().x86_pmaddubsw(quants, ones));
    let pairs = b.ins().iadd(pairs[0], pairs[1]);
    Block {
        vectors: bytes,
        sums: sum_neighbours(b, pairs),
    }
}

/// The bounds of a block of 256 (`bundle_format::plan::DType::Q8K`), each an i16: of its quants, 16 a vector, and the sums of each 32.
fn bounds(b: &mut FunctionBuilder, quants: &[Value], sums: Value) -> [Value; 2] {
    let ones = constant(b, I8X16, [0x0101_0101; 4]);
    // |-128| is 128 without a sign.
    let magnitudes = each(quants, |quants| b.ins().iabs(quants));
    let pairs = each(&magnitudes, |x| b.ins().x86_pmaddubsw(ones, x));
    let mut add_neighbours = |x: &[Value]| -> Vec<Value> {
        let pairs = x.chunks(2);
        pairs.map(|x| b.ins().iadd_pairwise(x[0], x[1])).collect()
    };
    let fours = add_neighbours(&pairs);
    let eights = add_neighbours(&fours);
    let halves = add_neighbours(&eights);
    let wholes = add_neighbours(&halves)[0];
    let of_sums = b.ins().iabs(sums);
    let wholes = b.ins().iadd(wholes, of_sums);
    let halves = b.ins().smax(halves[0], halves[1]);
    // The largest of each: first two lanes of 32 bits of either, then one.
    let [wholes, halves] = [wholes, halves].map(|x| cast(b, I32X4, x));
    let mut largest = |x: Value, y: Value, lanes: [[u8; 4]; 2]| {
        let [x, y] = lanes.map(|lanes| {
            let x = shuffle_lanes(b, x, y, lanes);
            cast(b, I16X8, x)
        });
        let larger = b.ins().smax(x, y);
        cast(b, I32X4, larger)
    };
    let both = largest(wholes, halves, [[0, 1, 4, 5], [2, 3, 6, 7]]);
    let both = largest(both, both, [[0, 2, 0, 2], [1, 3, 1, 3]]);
    let sixteen = b.ins().iconst(I32, 16);
    let upper = b.ins().ushr(both, sixteen);
    let [both, upper] = [both, upper].map(|x| cast(b, I16X8, x));
    let both = b.ins().smax(both, upper);
    [0, 2].map(|lane| b.ins().extractlane(both, lane))
}

/// `q = 8 * high + low`, `high = (q + 4) >> 3`: the 32 high bytes, then the low ones.
fn q11_block(b: &mut FunctionBuilder, quants: &[Value]) -> Block {
    let half = constant(b, I16X8, [0x0004_0004; 4]);
    let three = b.ins().iconst(I32, 3);
    let biased = each(quants, |q| b.ins().iadd(q, half));
    let high = each(&biased, |q| b.ins().sshr(q, three));
    let low = math::each2(quants, &high, |q, high| {
        let high = b.ins().ishl(high, three);
        b.ins().isub(q, high)
    });
    let mut vectors = narrow(b, &high);
    vectors.extend(narrow(b, &low));
    Block {
        vectors,
        sums: sum_fours(b, quants),
    }
}

fn q14_block(b: &mut FunctionBuilder, quants: &[Value]) -> Block {
    Block {
        vectors: quants.to_vec(),
        sums: sum_fours(b, quants),
    }
}

/// Four sums of the quants in four vectors of i16. Four quants, at most 8191 each, are still an i16; eight need not be.
fn sum_fours(b: &mut FunctionBuilder, quants: &[Value]) -> Value {
    let pairs: Vec<Value> = quants
        .chunks(2)
        .map(|pair| b.ins().iadd(pair[0], pair[1]))
        .collect();
    let fours = b.ins().iadd(pairs[0], pairs[1]);
    sum_neighbours(b, fours)
}

/// Sums of neighbouring i16.
fn sum_neighbours(b: &mut FunctionBuilder, x: Value) -> Value {
    let low = b.ins().swiden_low(x);
    let high = b.ins().swiden_high(x);
    b.ins().iadd_pairwise(low, high)
}

/// The scaled sums of blocks, one in each lane.
fn scaled_sums(b: &mut FunctionBuilder, sums: [Value; TOGETHER], scale: Value) -> Value {
    let sums = fold_lanes(b, sums, |b, x, y| b.ins().iadd(x, y));
    let sums = b.ins().fcvt_from_sint(F32X4, sums);
    b.ins().fmul(sums, scale)
}

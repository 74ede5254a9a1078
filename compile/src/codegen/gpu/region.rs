//! C++ of regions: a struct of pointers whose `run` evaluates elements (`kernels::device`, region.cuh).

use std::fmt::Write as _;

use bundle_format::gpu::Arg;
use bundle_format::plan::{Buffer, DType, KV_BLOCK, KvDType, KvGroup, Plan};
use bundle_format::region::{Binary, ColMap, Inst, Operand, OperandId, Region, RowMap, Unary};

use crate::error::Error;

/// A region's struct.
pub struct Source {
    /// Its definition: `struct NAME { … };`, a template over whether f16 activations are tiled.
    pub text: String,
    /// The pointers that it is made of, in order: their C++ type, and what they point to.
    pub pointers: Vec<(&'static str, Arg)>,
}

/// What a struct of a region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A launch of its own, or what becomes of sums.
    Plain,
    /// A prologue, whose buffer `kept` goes to where `keep` says. Its other buffers are stored to where the member `stores`, behind the
    /// pointers, is set. `all_ahead`: everything that it loads is there when its kernel begins, and not weights alone.
    Prologue { kept: u32, all_ahead: bool },
    /// The rows of this buffer are those of the tile.
    Sum { of: u32 },
}

/// Writes the struct of a region.
pub fn source(name: &str, region: &Region, plan: &Plan, usage: Use) -> Result<Source, Error> {
    let mut writer = Writer {
        region,
        plan,
        usage,
        text: String::new(),
    };
    // What is summed is in no memory.
    let is_there = |operand: &Operand| match usage {
        Use::Sum { of } => *operand != Operand::Buffer(of),
        Use::Plain | Use::Prologue { .. } => true,
    };
    let mut pointers = Vec::new();
    let mut members = Vec::new();
    for (i, operand) in region.operands.iter().enumerate() {
        if is_there(operand) {
            pointers.push(writer.pointer(*operand)?);
            members.push(i);
        }
    }
    let out = &mut writer.text;
    let (unit, width, cols, flat) = (region.unit, region.width, region.cols, region.is_flat());
    let _ = writeln!(out, "// {}", region.name);
    let _ = writeln!(out, "template <bool TILED>\nstruct {name} {{");
    let _ = writeln!(
        out,
        "    static constexpr int UNIT = {unit}, WIDTH = {width}, COLS = {cols};\n    static constexpr bool FLAT = {flat};"
    );
    for (i, (kind, _)) in members.iter().zip(&pointers) {
        let _ = writeln!(out, "    {kind} o{i};");
    }
    if let Use::Prologue { kept, .. } = usage {
        let operand = Operand::Buffer(kept);
        let Some(at) = region.operands.iter().position(|&o| o == operand) else {
            return Err(writer.bug("a prologue that stores no input"));
        };
        let _ = writeln!(
            out,
            "    static constexpr bool IS = true;\n    bool stores;\n    __device__ void keep(u16* x) {{ o{at} = x; }}"
        );
    }
    // Weights depend on no launch: a region of its own fetches them before it waits, a prologue has them by then.
    let elements = "const int (&unit)[J], const int (&c)[J], const bool (&live)[J]";
    let ahead = match usage {
        Use::Plain | Use::Sum { .. } => {
            out.push_str("    __device__ void fetch() const {\n");
            for (i, operand) in region.operands.iter().enumerate() {
                if let Operand::Weight(index) = operand {
                    let cols = plan.weights[*index as usize].cols;
                    let _ = writeln!(out, "        fetch_floats<{cols}>(o{i});");
                }
            }
            out.push_str("    }\n");
            ""
        }
        Use::Prologue { .. } => {
            writer.loads_ahead(elements)?;
            ", const Ahead<J>& ahead"
        }
    };
    let _ = writeln!(
        writer.text,
        "    template <int J, class Tile, class Sums>\n    __device__ void run(const Tile& tile, const Sums& sums, int row, \
         {elements}{ahead}) const {{"
    );
    for (i, inst) in region.body.iter().enumerate() {
        writer.inst(i, inst)?;
    }
    writer.text.push_str("    }\n};\n");
    Ok(Source {
        text: writer.text,
        pointers,
    })
}

struct Writer<'a> {
    region: &'a Region,
    plan: &'a Plan,
    usage: Use,
    text: String,
}

impl Writer<'_> {
    fn bug(&self, what: &str) -> Error {
        Error::Bug(format!("region '{}': {what}", self.region.name))
    }

    fn pointer(&self, operand: Operand) -> Result<(&'static str, Arg), Error> {
        Ok(match operand {
            Operand::Buffer(index) => {
                let kind = match self.plan.buffers[index as usize].dtype {
                    DType::F32 => "float*",
                    DType::U32 => "const u32*",
                    DType::F16 => "u16*",
                    DType::Q8 | DType::Q11 | DType::Q14 | DType::Q8K => {
                        return Err(self.bug("integer activations are not for this target"));
                    }
                };
                (kind, Arg::Buffer(index))
            }
            Operand::Weight(index) => ("const float*", Arg::Weight(index)),
            Operand::Kv { group, layer, part } => {
                let kind = match self.plan.kv[group as usize].dtype {
                    KvDType::Q8Rows => "u8*",
                    _ => "u16*",
                };
                (kind, Arg::Kv { group, layer, part })
            }
        })
    }

    /// A struct of the elements that are loaded ahead, and the function that loads them.
    fn loads_ahead(&mut self, elements: &str) -> Result<(), Error> {
        let mut members = String::new();
        let mut loads = String::new();
        for (i, inst) in self.region.body.iter().enumerate() {
            if let Inst::Load { src, row, col } = *inst
                && self.is_ahead(src)
            {
                let _ = writeln!(members, "        float v{i}[J];");
                let _ = writeln!(
                    loads,
                    "#pragma unroll\n        for (int j = 0; j < J; j++) a.v{i}[j] = {};",
                    self.load(src, row, col)?
                );
            }
        }
        let _ = writeln!(
            self.text,
            "    template <int J>\n    struct Ahead {{\n{members}    }};\n    template <int J>\n    __device__ Ahead<J> \
             load_ahead({elements}) const {{\n        constexpr int row = 0;\n        Ahead<J> a;\n{loads}        return a;\n    }}"
        );
        Ok(())
    }

    /// Whether a prologue loads of this operand ahead.
    fn is_ahead(&self, operand: OperandId) -> bool {
        let Use::Prologue { all_ahead, .. } = self.usage else {
            return false;
        };
        all_ahead || matches!(self.region.operands[operand as usize], Operand::Weight(_))
    }

    /// Statements that give element j of value `index`.
    fn inst(&mut self, index: usize, inst: &Inst) -> Result<(), Error> {
        let each = match *inst {
            Inst::Const { value } => format!("__uint_as_float(0x{:08x}u)", value.to_bits()),
            Inst::Tile { offset } => format!("tile({offset}, j)"),
            Inst::Load { src, .. } if self.is_ahead(src) => {
                format!("ahead.v{index}[j]")
            }
            Inst::Load { src, row, col } => self.load(src, row, col)?,
            Inst::Unary { op, x } => match op {
                Unary::Neg => format!("-v{x}[j]"),
                Unary::Exp => format!("__expf(v{x}[j])"),
                Unary::Sqrt => format!("sqrtf(v{x}[j])"),
                Unary::Recip => format!("__frcp_rn(v{x}[j])"),
            },
            Inst::Binary { op, a, b } => match op {
                Binary::Add => format!("v{a}[j] + v{b}[j]"),
                Binary::Sub => format!("v{a}[j] - v{b}[j]"),
                Binary::Mul => format!("v{a}[j] * v{b}[j]"),
                Binary::Div => format!("__fdividef(v{a}[j], v{b}[j])"),
            },
            Inst::Fma { a, b, c } => format!("fmaf(v{a}[j], v{b}[j], v{c}[j])"),
            Inst::RowValue { src, col } => self.row_element(src, col)?,
            Inst::RowSum { x } => return self.sum(index, "row", x),
            Inst::UnitSum { x } => return self.sum(index, "unit", x),
            Inst::Store { dst, col, x } => return self.store(dst, col, x),
            Inst::StoreQuant { .. } => {
                return Err(self.bug("integer activations are not for this target"));
            }
            Inst::StoreKv {
                dst,
                slots,
                offset,
                x,
            } => return self.store_kv(dst, slots, offset, x),
        };
        let _ = writeln!(
            self.text,
            "        float v{index}[J];\n#pragma unroll\n        for (int j = 0; j < J; j++) v{index}[j] = {each};"
        );
        Ok(())
    }

    /// A sum over elements that may lie with other threads; those that are not live count nothing.
    fn sum(&mut self, index: usize, over: &str, x: u32) -> Result<(), Error> {
        let _ = writeln!(
            self.text,
            "        float v{index}[J];\n        {{\n            float part[J];\n#pragma unroll\n            for (int j = 0; j < \
             J; j++) part[j] = live[j] ? v{x}[j] : 0.f;\n            sums.{over}(part, v{index});\n        }}"
        );
        Ok(())
    }

    /// A column of the row of a buffer.
    fn row_element(&self, src: OperandId, col: u32) -> Result<String, Error> {
        match self.region.operands[src as usize] {
            Operand::Buffer(index) => {
                let stride = stride(&self.plan.buffers[index as usize]);
                Ok(format!("o{src}[(u64)row * {stride} + {col}]"))
            }
            _ => Err(self.bug("a value of the row of what is no buffer")),
        }
    }

    fn load(&self, src: OperandId, row: RowMap, col: ColMap) -> Result<String, Error> {
        if let Operand::Buffer(buffer) = self.region.operands[src as usize]
            && self.usage == (Use::Sum { of: buffer })
        {
            let RowMap::At { index, col } = row else {
                return Err(self.bug("rows that are summed, and not by their places"));
            };
            let place = self.row_element(index, col)?;
            return Ok(format!("live[j] ? tile((int){place}, j) : 0.f"));
        }
        let stride = match self.region.operands[src as usize] {
            Operand::Buffer(index) => stride(&self.plan.buffers[index as usize]),
            // A vector, of one row.
            Operand::Weight(_) => 0,
            Operand::Kv { .. } => return Err(self.bug("a load from a KV pool")),
        };
        let at = match row {
            RowMap::Same => format!("(u64)row * {stride} + "),
            RowMap::Zero => String::new(),
            RowMap::Via(index) => format!("(u64)o{index}[row] * {stride} + "),
            RowMap::At { index, col } => {
                let place = self.row_element(index, col)?;
                format!("(u64){place} * {stride} + ")
            }
        };
        Ok(format!("live[j] ? o{src}[{at}{}] : 0.f", column(col)))
    }

    fn store(&mut self, dst: OperandId, col: ColMap, x: u32) -> Result<(), Error> {
        let Operand::Buffer(index) = self.region.operands[dst as usize] else {
            return Err(self.bug("a store to what is no buffer"));
        };
        let buffer = &self.plan.buffers[index as usize];
        let (stride, at) = (stride(buffer), column(col));
        let store = match buffer.dtype {
            DType::F32 => format!("o{dst}[(u64)row * {stride} + {at}] = v{x}[j]"),
            DType::F16 => {
                format!(
                    "o{dst}[activation_at<TILED>(row, {at}, {stride})] = float_to_half(v{x}[j])"
                )
            }
            DType::U32 | DType::Q8 | DType::Q11 | DType::Q14 | DType::Q8K => {
                return Err(self.bug("a store to a buffer of integers"));
            }
        };
        let when = match self.usage {
            Use::Prologue { kept, .. } if kept != index => "stores && live[j]",
            _ => "live[j]",
        };
        let _ = writeln!(
            self.text,
            "#pragma unroll\n        for (int j = 0; j < J; j++)\n            if ({when}) {store};"
        );
        Ok(())
    }

    /// Rows of positions: `[kv_head][16 positions][dim]`; of 8 bits, with the head's scales behind them.
    fn store_kv(
        &mut self,
        dst: OperandId,
        slots: OperandId,
        offset: u32,
        x: u32,
    ) -> Result<(), Error> {
        let Operand::Kv { group, .. } = self.region.operands[dst as usize] else {
            return Err(self.bug("a KV store to what is no pool"));
        };
        let kv = &self.plan.kv[group as usize];
        let (heads, dim) = (kv.kv_heads, kv.head_dim);
        match kv.dtype {
            KvDType::F16Rows => {}
            KvDType::Q8Rows => return self.store_kv_q8(dst, slots, offset, x, kv),
            KvDType::F16 | KvDType::Q8_0 => return Err(self.bug("a KV pool of another layout")),
        }
        let _ = writeln!(
            self.text,
            "#pragma unroll\n        for (int j = 0; j < J; j++)\n            if (live[j]) {{\n                u32 slot = \
             o{slots}[row];\n                o{dst}[(((u64)(slot / {KV_BLOCK}) * {heads} + unit[j]) * {KV_BLOCK} + slot % \
             {KV_BLOCK}) * {dim} + {offset} + c[j]] = float_to_half(v{x}[j]);\n            }}"
        );
        Ok(())
    }
}

impl Writer<'_> {
    /// A scale is that of 32 elements, which must be a warp's.
    fn store_kv_q8(
        &mut self,
        dst: OperandId,
        slots: OperandId,
        offset: u32,
        x: u32,
        kv: &KvGroup,
    ) -> Result<(), Error> {
        let (heads, dim, width) = (kv.kv_heads, kv.head_dim, self.region.width);
        if !width.is_multiple_of(32) || !offset.is_multiple_of(32) {
            return Err(Error::Unsupported(format!(
                "--kv q8_0 with keys or values that are made {width} dimensions at a time, of heads of {dim}; this target has it \
                 for multiples of 32: use --kv f16"
            )));
        }
        let bytes = kv.dtype.head_bytes(dim);
        let _ = writeln!(
            self.text,
            "#pragma unroll\n        for (int j = 0; j < J; j++)\n            if (live[j]) {{\n                u32 slot = \
             o{slots}[row];\n                store_kv_q8<{dim}>(o{dst} + ((u64)(slot / {KV_BLOCK}) * {heads} + unit[j]) * \
             {bytes}, slot % {KV_BLOCK}, {offset} + c[j], v{x}[j]);\n            }}"
        );
        Ok(())
    }
}

/// Elements from a row of a buffer to the next: rows are padded.
pub fn stride(buffer: &Buffer) -> u64 {
    let element = match buffer.dtype {
        DType::F16 => 2,
        _ => 4,
    };
    buffer.row_bytes() / element
}

/// The column of a map at an element.
fn column(col: ColMap) -> String {
    let ColMap { per_unit, offset } = col;
    match (per_unit, offset) {
        (0, 0) => "c[j]".to_string(),
        (0, _) => format!("{offset} + c[j]"),
        (_, 0) => format!("unit[j] * {per_unit} + c[j]"),
        _ => format!("unit[j] * {per_unit} + {offset} + c[j]"),
    }
}

//! A bundle whose logits are one matrix product: rows of a table in f16, times a matrix.

use std::path::Path;

use bundle_format::plan::{
    DType, Dim, Encoding, Input, KvDType, KvGroup, Limits, Op, Output, Role, Segment,
};
use bundle_format::region::{Binary, ColMap, Inst, Operand, Region, RowMap, Unary};
use bundle_format::target::Target;
use fastc::driver::Options;

use super::plans::{Parts, Random, encoded};

/// Most rows of a step: whole tiles of the kernels for many.
pub const ROWS: u32 = 384;

/// Of the table: an f16 holds its numbers' product with a scale as well as an f32 that is rounded to one.
const TABLE: Encoding = Encoding::Q8_0;

/// A product with a matrix of `features` rows and `depth` columns.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub encoding: Encoding,
    pub features: u32,
    pub depth: u32,
    /// Whose kernels.
    pub target: Target,
    /// Whether the kernels are those that every chip could have.
    pub portable: bool,
    /// Whether the rows are normed in the product's prologue, which gives them as hidden states, too.
    pub normed: bool,
}

impl Product {
    /// A name for files.
    pub fn name(&self) -> String {
        let kernels = if self.portable { "portable" } else { "own" };
        let (encoding, n, k) = (self.encoding, self.features, self.depth);
        let normed = if self.normed { "-normed" } else { "" };
        format!("{encoding:?}-{n}x{k}-{}-{kernels}{normed}", self.target)
    }

    /// The row-major bytes of the table and of the matrix, whose products are about as large as the table's numbers.
    pub fn matrices(&self) -> [(Encoding, Vec<u8>); 2] {
        let scale = (self.depth as f32).powf(-0.5);
        let made = |encoding, seed, scale| (encoding, self.matrix(encoding, seed, scale));
        [made(TABLE, 1, 1.0), made(self.encoding, 2, scale)]
    }

    fn matrix(&self, encoding: Encoding, seed: u64, scale: f32) -> Vec<u8> {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        encoded(&mut random, encoding, self.features, self.depth, scale)
    }

    /// Writes the bundle.
    pub fn write(&self, path: &Path) {
        let options = Options {
            portable: self.portable,
            ..Options::new(self.target)
        };
        let name = format!("{self:?}");
        self.parts().write(&name, &options, self.features, path);
    }

    /// h = rows of the table; x = h's rows that results are wanted of, in f16; logits = x times the matrix.
    fn parts(&self) -> Parts {
        let limits = Limits {
            max_tokens: ROWS,
            max_seqs: 1,
            max_rows: ROWS,
            context: ROWS,
        };
        let kv = KvGroup {
            dtype: KvDType::F16Rows,
            layers: 1,
            kv_heads: 1,
            head_dim: 16,
            window: None,
        };
        let mut parts = Parts::new(limits, vec![kv]);
        let (tokens, rows) = (parts.of(Input::Tokens), parts.of(Input::Rows));
        let h = parts.scratch("h", DType::F32, self.depth);
        let x = parts.buffer("x", DType::F16, Dim::Rows, self.depth, Role::Scratch);
        let mut output = |name, cols, output| {
            parts.buffer(name, DType::F32, Dim::Rows, cols, Role::Output(output))
        };
        let logits = output("logits", self.features, Output::Logits);
        let hidden = self
            .normed
            .then(|| output("hidden", self.depth, Output::Hidden));
        let names = ["table", "matrix"];
        for (name, (encoding, bytes)) in names.into_iter().zip(self.matrices()) {
            parts.matrix(name, encoding, self.depth, &bytes);
        }

        let col = ColMap {
            per_unit: 1,
            offset: 0,
        };
        let region = |name: &str, cols, operands: &[u32], value| Region {
            name: name.into(),
            unit: 1,
            width: 1,
            cols,
            operands: operands.iter().map(|&b| Operand::Buffer(b)).collect(),
            body: vec![value, Inst::Store { dst: 0, col, x: 0 }],
        };
        let gathered = Inst::Load {
            src: 1,
            row: RowMap::Via(2),
            col,
        };
        let gather = region("gather_f16", self.depth, &[x, h, rows], gathered);
        let product = Inst::Tile { offset: 0 };
        let store = region("logits", self.features, &[logits], product);
        let prologue = hidden.map(|hidden| norm(self.depth, [x, h, rows, hidden]));
        parts.launch(
            "embed",
            Op::Embed {
                tokens,
                table: 0,
                out: h,
                scale: 1.0,
            },
        );
        if prologue.is_none() {
            parts.launch(
                "gather",
                Op::Region {
                    extent: Dim::Rows,
                    region: gather,
                },
            );
        }
        parts.launch(
            "product",
            Op::MatMul {
                x,
                prologue,
                segments: vec![Segment {
                    weight: 1,
                    epilogue: store,
                }],
            },
        );
        parts
    }
}

/// out = h's rows, which are kept too, over the root of the mean of their squares.
fn norm(depth: u32, [out, h, rows, kept]: [u32; 4]) -> Region {
    let col = ColMap {
        per_unit: 1,
        offset: 0,
    };
    let operands = [out, h, rows, kept].map(Operand::Buffer).to_vec();
    let binary = |op, a, b| Inst::Binary { op, a, b };
    let store = |dst, x| Inst::Store { dst, col, x };
    let body = vec![
        Inst::Load {
            src: 1,
            row: RowMap::Via(2),
            col,
        },
        store(3, 0),
        binary(Binary::Mul, 0, 0),
        Inst::RowSum { x: 2 },
        Inst::Const {
            value: 1.0 / depth as f32,
        },
        Inst::Const { value: 1e-5 },
        Inst::Fma { a: 3, b: 4, c: 5 },
        Inst::Unary {
            op: Unary::Sqrt,
            x: 6,
        },
        Inst::Unary {
            op: Unary::Recip,
            x: 7,
        },
        binary(Binary::Mul, 0, 8),
        store(0, 9),
    ];
    Region {
        name: "norm_f16".into(),
        unit: 1,
        width: 1,
        cols: depth,
        operands,
        body,
    }
}

//! Matrix products.

use bundle_format::plan::{DType, Encoding, WeightLayout, row_bytes};
use kernels::abi::{MatMulArgs, MicroFn, id};
use kernels::cpu::MicroKernel;
use kernels::quant::{self, BLOCK, block_elements};
use kernels::reference::{self, WeightView};

use crate::data::{Random, activation_rows, bits, numbers, packed, weight_bytes};

/// (tokens, features, first column of the tile, columns of the tile)
const TILES: &[(usize, usize, usize, usize)] = &[
    (1, 1, 0, 1),
    (1, 64, 0, 64),
    (1, 83, 16, 67),
    (2, 17, 0, 17),
    (3, 24, 8, 13),
    (4, 8, 0, 8),
    (5, 40, 0, 40),
    (6, 9, 8, 1),
    (7, 33, 0, 33),
    (8, 16, 8, 8),
    (12, 16, 0, 16),
    (13, 31, 0, 31),
    (20, 24, 8, 16),
    (64, 45, 8, 37),
    (70, 11, 0, 11),
];

pub fn check(kernel: &MicroKernel, encoding: Encoding, activations: DType) {
    assert_eq!(id::matmul(encoding, activations), Some(kernel.id));
    let depths: &[usize] = match block_elements(encoding) {
        1 if activations == DType::Q14 => &[32, 64, 96, 288, 576],
        1 => &[1, 5, 32, 37, 576],
        BLOCK => &[32, 64, 96, 576],
        _ => &[256, 512, 768],
    };
    for k in depths {
        for (tokens, features, col0, cols) in TILES {
            let inputs = Inputs::Random;
            Case::new(encoding, activations, *k, *tokens, *features, inputs)
                .check(kernel, *col0, *cols);
        }
    }
    // More than one chunk of panels (AMX).
    Case::new(encoding, activations, 1536, 40, 24, Inputs::Random).check(kernel, 0, 24);
    // And more tokens than share one (AVX-512).
    Case::new(encoding, activations, 1280, 139, 19, Inputs::Random).check(kernel, 0, 19);
    for inputs in [Inputs::Extreme, Inputs::ExtremeLow] {
        let k = 2 * block_elements(encoding).max(BLOCK);
        for tokens in [26, 67] {
            Case::new(encoding, activations, k, tokens, 16, inputs).check(kernel, 0, 16);
        }
    }
}

/// What a case's numbers are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inputs {
    Random,
    /// Quants at the ends of their ranges.
    Extreme,
    /// Weights as in `Extreme`, and 11-bit activations whose low bytes are -4 but for one a block: 1000 is 125 * 8, so 1004 is
    /// 126 * 8 - 4 and 996 is 125 * 8 - 4.
    ExtremeLow,
}

/// Rows of activations.
enum Rows<'a> {
    /// The first, and how many.
    From(usize, usize),
    Index(&'a [u32]),
}

/// A product and its inputs.
struct Case {
    k: usize,
    tokens: usize,
    features: usize,
    /// Row-major bytes of the weight: what is multiplied, in f32.
    weight: Vec<u8>,
    packed: Vec<u8>,
    /// The rows as the microkernel takes them.
    x: Vec<u8>,
    x_stride: usize,
    /// What they stand for.
    values: Vec<f32>,
}

impl Case {
    fn new(
        encoding: Encoding,
        activations: DType,
        k: usize,
        tokens: usize,
        features: usize,
        inputs: Inputs,
    ) -> Case {
        let mut random = Random((k * 1000 + tokens * 100 + features) as u64);
        let extreme = inputs != Inputs::Random;
        let weight = weight_bytes(&mut random, encoding, features, k, extreme);
        let sign = |i: usize| [1.0, -1.0][i / k % 2];
        let x: Vec<f32> = match inputs {
            Inputs::Random => random.vec(tokens * k),
            Inputs::Extreme => (0..tokens * k).map(sign).collect(),
            Inputs::ExtremeLow => (0..tokens * k)
                .map(|i| match i % BLOCK {
                    0 => 1016.0,
                    _ => 1000.0 + 4.0 * sign(i),
                })
                .collect(),
        };
        let (x, values) = activation_rows(activations, &x, k);
        let layout = match activations {
            DType::Q14 => WeightLayout::Pairs8,
            _ => WeightLayout::Interleave8,
        };
        let x_stride = match activations {
            DType::F32 => k * 4,
            quantised => row_bytes(quantised, k as u32) as usize,
        };
        Case {
            k,
            tokens,
            features,
            packed: packed(encoding, layout, features, k, &weight),
            weight: numbers(encoding, layout, k, &weight),
            x,
            x_stride,
            values,
        }
    }

    fn check(&self, kernel: &MicroKernel, col0: usize, cols: usize) {
        let what = format!(
            "{} ({}) k {} tokens {} features {} columns {col0}+{cols}",
            kernel.name,
            kernel.level.name(),
            self.k,
            self.tokens,
            self.features
        );
        let stride = cols.next_multiple_of(8) + 8;
        let found = self.run(kernel, 0, self.tokens, col0, cols, stride);
        self.compare(&found, col0, cols, stride, &what);

        let scalar = self.run(crate::scalar(kernel), 0, self.tokens, col0, cols, stride);
        assert_eq!(
            bits(&found),
            bits(&scalar),
            "{what}: not as the scalar kernel"
        );

        // Rows where an index says, some twice, some not at all.
        let index: Vec<u32> = (0..self.tokens)
            .map(|i| ((i * 7 + 3) % self.tokens / 2 * 2 % self.tokens) as u32)
            .collect();
        let indexed = self.run_rows(kernel, Rows::Index(&index), col0, cols, stride);
        for (i, &row) in index.iter().enumerate() {
            assert_eq!(
                bits(&indexed[i * stride..][..stride]),
                bits(&found[row as usize * stride..][..stride]),
                "{what}: row {row} differs by an index"
            );
        }
        for row in 0..self.tokens {
            let alone = self.run(kernel, row, 1, col0, cols, stride);
            assert_eq!(
                bits(&found[row * stride..][..stride]),
                bits(&alone),
                "{what}: row {row} differs when alone"
            );
        }
    }

    /// Rows `row .. row + tokens` of the tile, in a poisoned output.
    fn run(
        &self,
        kernel: &MicroKernel,
        row: usize,
        tokens: usize,
        col0: usize,
        cols: usize,
        stride: usize,
    ) -> Vec<f32> {
        self.run_rows(kernel, Rows::From(row, tokens), col0, cols, stride)
    }

    fn run_rows(
        &self,
        kernel: &MicroKernel,
        rows: Rows<'_>,
        col0: usize,
        cols: usize,
        stride: usize,
    ) -> Vec<f32> {
        let MicroFn::MatMul(func) = kernel.func else {
            panic!("{} is no matmul", kernel.name)
        };
        let (first, tokens, index) = match rows {
            Rows::From(first, tokens) => (first, tokens, std::ptr::null()),
            Rows::Index(index) => (0, index.len(), index.as_ptr()),
        };
        let mut out = vec![f32::NAN; tokens * stride];
        let args = MatMulArgs {
            x: self.x[first * self.x_stride..].as_ptr(),
            x_stride: self.x_stride as u64,
            index,
            w: self.packed.as_ptr(),
            out: out.as_mut_ptr(),
            out_stride: stride as u64,
            k: self.k as u64,
            rows: tokens as u64,
            col0: col0 as u64,
            cols: cols as u64,
        };
        // SAFETY: the case made buffers of these sizes, and the level is available.
        unsafe { func(&args) };
        out
    }

    fn compare(&self, found: &[f32], col0: usize, cols: usize, stride: usize, what: &str) {
        let view = WeightView {
            encoding: Encoding::F32,
            layout: WeightLayout::RowMajor,
            pairs: 0,
            rows: self.features,
            cols: self.k,
            bytes: &self.weight,
        };
        let mut expected = vec![0.0; self.tokens * cols];
        reference::matmul(&self.values, &view, col0..col0 + cols, &mut expected);
        let row_len = 4 * self.k;
        let mut weights = vec![0.0; self.k];
        for c in 0..cols {
            let bytes = &self.weight[(col0 + c) * row_len..][..row_len];
            quant::dequantise_row(Encoding::F32, bytes, &mut weights);
            for t in 0..self.tokens {
                let x = &self.values[t * self.k..][..self.k];
                let magnitude: f32 = x.iter().zip(&weights).map(|(x, w)| (x * w).abs()).sum();
                // The quants' and the minima's parts cancel: their own sizes bound the error.
                let bound = 1e-5 * (magnitude + self.k as f32 * 0.1);
                let (found, expected) = (found[t * stride + c], expected[t * cols + c]);
                assert!(
                    (found - expected).abs() <= bound,
                    "{what}: row {t} column {c}: {found}, expected {expected}"
                );
            }
        }
        for t in 0..self.tokens {
            let (written, beyond) = found[t * stride..][..stride].split_at(stride - 8);
            assert!(
                written.iter().all(|x| x.is_finite()),
                "{what}: not all written"
            );
            assert!(beyond.iter().all(|x| x.is_nan()), "{what}: written beyond");
        }
    }
}

//! What the benches of this folder share: matmuls and attentions with arbitrary inputs, their ceilings, and the clock.

pub mod attention;
pub mod ceiling;

use std::hint::black_box;
use std::time::Instant;

use bundle_format::plan::{DType, Encoding, WeightLayout, row_bytes};
use kernels::abi::{MatMulArgs, MicroFn, id};
use kernels::cpu::{self, Level};
use kernels::pack;
use kernels::quant::{ENCODINGS, activation_types};

/// Every matmul microkernel's operands.
pub fn products() -> impl Iterator<Item = (Encoding, DType)> {
    ENCODINGS.into_iter().flat_map(|encoding| {
        let types = activation_types(encoding).iter();
        types.map(move |dtype| (encoding, *dtype))
    })
}

/// Bytes of weights as activations of a type take them.
pub fn weight_bytes(encoding: Encoding, dtype: DType, features: usize, k: usize) -> u64 {
    let layout = match dtype {
        DType::Q14 => WeightLayout::Pairs8,
        _ => WeightLayout::Interleave8,
    };
    pack::weight_len(encoding, layout, features as u64, k as u64).expect("whole blocks")
}

/// A matmul at a level, and its inputs. Bytes are arbitrary but make finite numbers.
pub struct Product {
    args: MatMulArgs,
    func: unsafe fn(&MatMulArgs),
    _buffers: (Vec<Line>, Vec<Line>, Vec<f32>),
}

impl Product {
    pub fn new(
        level: Level,
        encoding: Encoding,
        dtype: DType,
        tokens: usize,
        features: usize,
        k: usize,
    ) -> Product {
        let MicroFn::MatMul(func) = id::matmul(encoding, dtype)
            .and_then(|id| cpu::lookup_at(level, id))
            .expect("in the table")
            .func
        else {
            panic!("not a matmul")
        };
        let x_stride = row_bytes(dtype, k as u32) as usize;
        let mut w = words(weight_bytes(encoding, dtype, features, k) as usize);
        if encoding == Encoding::MXFP4 {
            // Its exponents are whole bytes: these ones and the quants behind them make numbers around 1/16.
            w.fill(Line([0x7878_7878_7878_7878; 8]));
        }
        let x = words(x_stride * tokens);
        let mut out = vec![0.0; tokens * features];
        let args = MatMulArgs {
            x: x.as_ptr().cast(),
            x_stride: x_stride as u64,
            index: std::ptr::null(),
            w: w.as_ptr().cast(),
            out: out.as_mut_ptr(),
            out_stride: features as u64,
            k: k as u64,
            rows: tokens as u64,
            col0: 0,
            cols: features as u64,
        };
        Product {
            args,
            func,
            _buffers: (w, x, out),
        }
    }

    pub fn call(&self) {
        // SAFETY: `new` made buffers of the sizes in `args`.
        unsafe { (self.func)(&self.args) }
    }
}

/// A line of the cache: buffers begin with one, as those of plans do.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(#[allow(dead_code, reason = "read through pointers")] [u64; 8]);

/// Bytes of small f16 and f32 numbers.
pub fn words(bytes: usize) -> Vec<Line> {
    let word = |i: usize| {
        let mixed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed & 0x0fff_0fff_0fff_0fff) | 0x2000_2000_2000_2000
    };
    (0..bytes.div_ceil(64))
        .map(|line| Line(std::array::from_fn(|i| word(8 * line + i))))
        .collect()
}

/// Cycles a second: a multiplication takes three and an addition one, on every x86 of the last decade.
pub fn clock() -> f64 {
    let (factor, summand) = (black_box(0x9e37_79b9_7f4a_7c15u64), black_box(7u64));
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let mut x = 1u64;
        for _ in 0..2_000_000 {
            x = x.wrapping_mul(factor).wrapping_add(summand);
        }
        black_box(x);
        best = best.min(start.elapsed().as_secs_f64());
    }
    4.0 * 2e6 / best
}

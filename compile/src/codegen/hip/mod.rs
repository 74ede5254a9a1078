//! AMD: the kernels of a plan as HIP C++, compiled at compile time for one chip.
//!
//! [`gpu`](super::gpu) chooses templates of `kernels::device` and their constants for each launch, with [`matmul`] and
//! [`attention`] for what is this chip's own; [`clang`] compiles the whole to a code object, without a GPU or a device library;
//! [`gate`] refuses one by what its metadata ([`object`]) and its instructions ([`isa`]) say.

mod attention;
mod clang;
mod gate;
mod isa;
mod matmul;
mod msgpack;
mod object;
mod target;

pub use target::Chip;

use bundle_format::plan::{Plan, Variant};

use super::generate::Code;
use super::gpu::kernels::{self, Attend, Product, Writer};
use crate::error::Error;

/// Upper ends of the ranges of rows that have kernels of their own: one row, one and two groups of the 16 columns of a matrix
/// instruction, and as many as there are.
const RANGES: [u32; 3] = [1, 16, 32];

impl kernels::Chip for Chip {
    fn rows_before_tiles(&self) -> Option<u32> {
        None
    }

    fn tells_threads(&self) -> bool {
        true
    }

    fn matmul(&self, writer: &mut Writer, product: &Product) -> Result<Vec<Variant>, Error> {
        if product.prologue.is_some() {
            return Err(Error::Bug("a prologue, for a target without them".into()));
        }
        matmul::matmul(self, writer, product.x, product.segments)
    }

    fn attention(&self, writer: &mut Writer, attend: &Attend) -> Result<Vec<Variant>, Error> {
        attention::attention(self, writer, attend)
    }
}

/// Chooses the kernels of a plan, enters them into its variants, and compiles them.
pub fn generate(plan: &mut Plan, chip: &Chip) -> Result<Code, Error> {
    let chosen = kernels::choose(plan, chip, &kernels::Depths::default())?;
    let source = format!("{}\n{}", ::kernels::device::hip(), chosen.source);
    let compiled = clang::compile(&source, chip.arch)?;
    for (launch, variants) in plan.launches.iter_mut().zip(chosen.variants) {
        launch.variants = variants;
    }
    plan.sampling = chosen.sampling;
    let kernels = plan
        .launches
        .iter_mut()
        .flat_map(|l| &mut l.variants)
        .flat_map(|v| &mut v.kernels)
        .chain(plan.sampling.iter_mut().flat_map(|s| s.kernels_mut()));
    gate::check(&compiled.object, chip, kernels)?;
    Ok(Code {
        functions: chosen.symbols.len(),
        bytes: compiled.object,
        toolchain: vec![compiled.version],
    })
}

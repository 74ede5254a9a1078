//! AMD: the kernels of a plan as HIP C++, compiled at compile time for one chip.
//!
//! [`gpu`](super::gpu) chooses templates of `kernels::device` and their constants for each launch, with [`matmul`] and
//! [`attention`] for what is this chip's own, as the rules of [`stability`] have it, which may take regions apart ([`stages`]);
//! [`clang`] compiles the whole to a code object, without a GPU or a device library;
//! [`gate`] refuses one by what its metadata ([`object`]) and its instructions ([`isa`]) say.

mod attention;
mod clang;
mod gate;
mod isa;
mod matmul;
mod msgpack;
mod object;
mod regions;
mod stability;
mod stages;
mod target;
mod work;

pub use target::Chip;

use bundle_format::plan::{Dim, Plan, Variant};
use bundle_format::region::Region;
use bundle_format::stability::Profiles;

use super::generate::Code;
use super::gpu::kernels::{self, Attend, ExpertProduct, Product, Writer};
use crate::error::Error;

/// Upper ends of the ranges of rows that have kernels of their own: one row, one and two groups of the 16 columns of a matrix
/// instruction, and as many as there are.
const RANGES: [u32; 3] = [1, 16, 32];
// Rules are about ranges as a whole.
const _: () = assert!(stability::LARGE == RANGES[1] + 1);

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

    fn experts(&self, writer: &mut Writer, product: &ExpertProduct) -> Result<Vec<Variant>, Error> {
        matmul::experts(self, writer, product)
    }

    fn attention(&self, writer: &mut Writer, attend: &Attend) -> Result<Vec<Variant>, Error> {
        attention::attention(self, writer, attend)
    }

    fn region(
        &self,
        writer: &mut Writer,
        extent: Dim,
        region: &Region,
    ) -> Result<Vec<Variant>, Error> {
        regions::variants(self, writer, extent, region)
    }
}

/// Chooses the kernels of a plan, enters them into its variants, and compiles them.
pub fn generate(plan: &mut Plan, chip: &Chip) -> Result<Code, Error> {
    let staged = stages::with_workspace(plan);
    let chosen = kernels::choose(&staged, chip, &kernels::Depths::default())?;
    let source = format!("{}\n{}", ::kernels::device::hip(), chosen.source);
    let compiled = clang::compile(&source, chip.arch)?;
    for (launch, variants) in plan.launches.iter_mut().zip(chosen.variants) {
        launch.variants = variants;
        for variant in &mut launch.variants {
            // What no rule is about.
            if variant.profiles == Profiles::NONE {
                variant.profiles = chip.profiles();
            }
        }
    }
    plan.sampling = chosen.sampling;
    plan.stability = stability::profiles(chip.stability);
    let kernels = plan
        .launches
        .iter_mut()
        .flat_map(|l| &mut l.variants)
        .flat_map(|v| &mut v.kernels)
        .chain(plan.sampling.iter_mut().flat_map(|s| s.kernels_mut()));
    gate::check(&compiled.object, chip, kernels)?;
    let work = work::of_object(&compiled.object, &chosen.turns)?;
    Ok(Code {
        work,
        functions: chosen.symbols.len(),
        bytes: compiled.object,
        toolchain: vec![compiled.version],
    })
}

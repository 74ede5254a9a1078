//! AMD: the kernels of a plan as HIP C++, compiled at compile time for one chip.
//!
//! [`gpu`](super::gpu) chooses templates of `kernels::device` and their constants for each launch, with [`matmul`] ([`one`] for a row) and
//! [`attention`] for what is this chip's own, as the rules of [`stability`] have it, which may take regions apart ([`stages`]) or let
//! a kernel of a lone token do the work of two launches ([`join`]);
//! [`clang`] compiles the whole to a code object, without a GPU or a device library;
//! [`gate`] refuses one by what its metadata ([`object`]) and its instructions ([`isa`]) say.

mod attention;
mod clang;
mod gate;
mod isa;
mod join;
mod matmul;
mod msgpack;
mod object;
mod one;
mod regions;
mod stability;
mod stages;
mod target;
mod work;

pub use target::Chip;

use std::collections::BTreeMap;

use bundle_format::gpu::Kernel;
use bundle_format::plan::{Dim, Plan, Variant};
use bundle_format::region::Region;
use bundle_format::stability::Profiles;

use super::generate::Code;
use super::gpu::kernels::{self, Attend, ExpertProduct, Product, Writer};
use super::gpu::work::Turns;
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

    fn launches_overlap(&self) -> bool {
        false
    }

    fn profiles(&self) -> Profiles {
        Chip::profiles(self)
    }

    fn joining(&self) -> Profiles {
        let all = Chip::profiles(self).iter();
        all.filter(|&s| stability::choices(s, 1).joined).collect()
    }

    fn matmul(&self, writer: &mut Writer, product: &Product) -> Result<Vec<Variant>, Error> {
        matmul::matmul(self, writer, product)
    }

    fn experts(&self, writer: &mut Writer, product: &ExpertProduct) -> Result<Vec<Variant>, Error> {
        matmul::experts(self, writer, product)
    }

    fn join(&self, writer: &mut Writer, index: usize) -> Result<Option<Kernel>, Error> {
        match kernels::Chip::joining(self) {
            Profiles::NONE => Ok(None),
            _ => join::join(self, writer, index),
        }
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

/// What was chosen for a plan, beside its variants.
pub struct Chosen {
    source: String,
    functions: usize,
    turns: BTreeMap<String, Turns>,
}

/// Chooses the kernels of a plan, and enters them into its variants.
pub fn choose(plan: &mut Plan, chip: &Chip, draws: bool) -> Result<Chosen, Error> {
    let staged = stages::with_workspace(plan);
    let chosen = kernels::choose(&staged, chip, &kernels::Depths::default(), draws)?;
    for (launch, variants) in plan.launches.iter_mut().zip(chosen.variants) {
        launch.variants = variants;
    }
    plan.sampling = chosen.sampling;
    plan.stability = stability::profiles(chip.stability);
    Ok(Chosen {
        source: format!("{}\n{}", ::kernels::device::hip(), chosen.source),
        functions: chosen.symbols.len(),
        turns: chosen.turns,
    })
}

/// Chooses the kernels of a plan, enters them into its variants, and compiles them.
pub fn generate(plan: &mut Plan, chip: &Chip, draws: bool) -> Result<Code, Error> {
    let chosen = choose(plan, chip, draws)?;
    let compiled = clang::compile(&chosen.source, chip.arch)?;
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
        functions: chosen.functions,
        bytes: compiled.object,
        toolchain: vec![compiled.version],
    })
}

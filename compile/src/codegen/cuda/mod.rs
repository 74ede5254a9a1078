//! NVIDIA: the kernels of a plan as CUDA C++, compiled at compile time for one chip.
//!
//! [`gpu`](super::gpu) chooses templates of `kernels::device` and their constants for each launch, with [`matmul`],
//! [`experts`] and [`attention`] for what is these chips' own; [`nvrtc`] compiles the whole to a cubin, without a GPU; [`gate`] refuses one whose kernels spill, by what the assembler says
//! and by the instructions themselves ([`sass`]).

mod attention;
mod experts;
mod gate;
mod matmul;
mod nvrtc;
mod one;
mod sass;
mod shapes;
mod target;

pub use matmul::MANY_FEATURES as EPILOGUE_FEATURES;
pub use target::Chip;

use std::collections::BTreeMap;

use bundle_format::gpu::Kernel;
use bundle_format::plan::{Plan, Variant};
use bundle_format::stability::Profiles;

use super::generate::Code;
use super::gpu::kernels::{self, Attend, ExpertProduct, Product, Writer};
use crate::error::Error;

/// Upper ends of the ranges of rows that have kernels of their own: one row, one to eight groups of the eight columns of a
/// matrix instruction, and as many as there are.
const RANGES: [u32; 5] = [1, 8, 16, 32, 64];

impl kernels::Chip for Chip {
    fn rows_before_tiles(&self) -> Option<u32> {
        Some(RANGES[RANGES.len() - 1])
    }

    fn tells_threads(&self) -> bool {
        false
    }

    fn launches_overlap(&self) -> bool {
        true
    }

    fn profiles(&self) -> Profiles {
        Profiles::NONE
    }

    fn joining(&self) -> Profiles {
        Profiles::NONE
    }

    fn matmul(&self, writer: &mut Writer, product: &Product) -> Result<Vec<Variant>, Error> {
        matmul::matmul(self, writer, product)
    }

    fn experts(&self, writer: &mut Writer, product: &ExpertProduct) -> Result<Vec<Variant>, Error> {
        experts::matmul(self, writer, product)
    }

    fn join(&self, writer: &mut Writer, index: usize) -> Result<Option<Kernel>, Error> {
        let plan = writer.plan;
        let (first, second) = (&plan.launches[index - 1].op, &plan.launches[index].op);
        match writer.route_behind(first, second)? {
            Some(kernel) => Ok(Some(kernel)),
            None => experts::join(self, writer, index),
        }
    }

    fn attention(&self, writer: &mut Writer, attend: &Attend) -> Result<Vec<Variant>, Error> {
        attention::attention(self, writer, attend)
    }
}

/// Chooses the kernels of a plan, enters them into its variants, and compiles them.
///
/// How many registers a product's kernel takes is the assembler's to say: one that would spill is chosen again with fewer reads
/// of weights under way, or fewer tiles a warp.
pub fn generate(plan: &mut Plan, chip: &Chip, draws: bool) -> Result<Code, Error> {
    let mut depths = kernels::Depths::default();
    let (chosen, source, compiled) = loop {
        let chosen = kernels::choose(plan, chip, &depths, draws)?;
        let source = format!(
            "{}\n{}",
            ::kernels::device::cuda(chip.hopper),
            chosen.source
        );
        let compiled = nvrtc::compile(&source, chip.arch)?;
        let mut again = false;
        for symbol in gate::spilling(&compiled) {
            if let Some((product, depth)) = chosen.depths.get(&symbol)
                && *depth > 1
            {
                depths.insert(product.clone(), depth / 2);
                again = true;
            }
        }
        if !again {
            break (chosen, source, compiled);
        }
    };
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
    gate::check(&compiled, chip, kernels, |symbol| shape(&source, symbol))?;
    let work = match chip.hopper {
        true => sass::work(&compiled.cubin, &chosen.turns),
        false => BTreeMap::new(),
    };
    Ok(Code {
        functions: chosen.symbols.len(),
        bytes: compiled.cubin,
        toolchain: vec![compiled.version],
        work,
    })
}

/// What a kernel of a source is an instance of: its body, in a line.
fn shape(source: &str, symbol: &str) -> String {
    let body = source
        .split_once(&format!(" {symbol}("))
        .and_then(|(_, rest)| rest.split_once('{'))
        .and_then(|(_, rest)| rest.split_once("\n}"));
    let words: Vec<&str> = body
        .map_or("", |(body, _)| body)
        .split_whitespace()
        .collect();
    words.join(" ")
}

//! The code of a whole plan: every region of every variant, compiled once for each distinct shape.

use std::collections::BTreeMap;

use bundle_format::plan::{CodeRef, Op, Plan};
use bundle_format::region::Region;
use bundle_format::stability::Stability;
use bundle_format::target::Target;

use super::cpu::{self, CodeSection, RegionContext};
use super::gpu::work::Work;
use super::{cuda, hip};
use crate::driver::Options;
use crate::error::Error;

/// The code section of a bundle.
pub struct Code {
    pub bytes: Vec<u8>,
    /// Distinct functions.
    pub functions: usize,
    /// Name and version of each generator.
    pub toolchain: Vec<String>,
    /// What a GPU's kernels execute, by their symbols, where that is counted.
    pub work: BTreeMap<String, Work>,
}

/// Features that an epilogue of a target's matmuls has together, where they are bounded.
pub fn epilogue_features(target: Target) -> Option<u32> {
    cuda::Chip::of(target, false).map(|_| cuda::EPILOGUE_FEATURES)
}

/// Whether a target's matmuls may have prologues.
pub fn has_prologues(target: Target) -> bool {
    target.is_gpu()
}

/// Whether a target's launches of one token may multiply with weights of two formats in one kernel.
pub fn has_mixed_launches(target: Target) -> bool {
    hip::Chip::of(target, Stability::Balanced).is_some()
}

/// Chooses the kernels of a plan for an AMD chip without compiling them: what they take of a processor is not known then.
pub fn choose(plan: &mut Plan, options: &Options) -> Result<(), Error> {
    match hip::Chip::of(options.target, options.stability) {
        Some(chip) => hip::choose(plan, &chip, options.draws).map(|_| ()),
        None => Err(Error::Bug(format!(
            "{} has no kernels that are chosen by themselves",
            options.target
        ))),
    }
}

/// Generates the code of a plan's regions and enters it into the plan's variants.
pub fn generate(plan: &mut Plan, options: &Options) -> Result<Code, Error> {
    let target = options.target;
    if let Some(chip) = cuda::Chip::of(target, options.portable) {
        return cuda::generate(plan, &chip, options.draws);
    }
    if let Some(chip) = hip::Chip::of(target, options.stability) {
        return hip::generate(plan, &chip, options.draws);
    }
    let mut section = CodeSection::new();
    let mut refs: Vec<Vec<Vec<Option<CodeRef>>>> = Vec::new();
    for launch in &plan.launches {
        let regions: Vec<Option<&Region>> = match &launch.op {
            Op::Embed { .. } | Op::RopeTable { .. } | Op::Route { .. } => vec![None],
            Op::Region { region, .. } => vec![Some(region)],
            // Processors' plans have no prologues.
            Op::MatMul { segments, .. } | Op::ExpertMatMul { segments, .. } => {
                segments.iter().map(|s| Some(&s.epilogue)).collect()
            }
            Op::Attention { epilogue, .. } => vec![Some(epilogue)],
        };
        let mut launch_refs = Vec::new();
        for variant in &launch.variants {
            let mut add = |region: &Option<&Region>| -> Result<Option<CodeRef>, Error> {
                let Some(region) = *region else {
                    return Ok(None);
                };
                let tile = variant.tile_cols;
                let context = RegionContext::new(
                    target,
                    region,
                    &plan.buffers,
                    &plan.weights,
                    &plan.kv,
                    tile,
                )?;
                section.add_region(region, &context).map(Some)
            };
            launch_refs.push(
                regions
                    .iter()
                    .map(&mut add)
                    .collect::<Result<Vec<_>, _>>()?,
            );
        }
        refs.push(launch_refs);
    }
    for (launch, refs) in plan.launches.iter_mut().zip(refs) {
        for (variant, refs) in launch.variants.iter_mut().zip(refs) {
            for (part, code) in variant.parts.iter_mut().zip(refs) {
                part.code = code;
            }
        }
    }
    let functions = section.functions();
    Ok(Code {
        bytes: section.finish(),
        functions,
        toolchain: vec![cpu::toolchain()],
        work: BTreeMap::new(),
    })
}

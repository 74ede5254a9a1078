//! The code of a whole plan: every region of every variant, compiled once for each distinct shape.

use bundle_format::plan::{CodeRef, Op, Plan};
use bundle_format::region::Region;
use bundle_format::target::Target;

use super::cpu::{self, CodeSection, RegionContext};
use super::{cuda, hip};
use crate::error::Error;

/// The code section of a bundle.
pub struct Code {
    pub bytes: Vec<u8>,
    /// Distinct functions.
    pub functions: usize,
    /// Name and version of each generator.
    pub toolchain: Vec<String>,
}

/// Generates the code of a plan's regions and enters it into the plan's variants.
///
/// `portable`: see [`crate::driver::Options::portable`].
pub fn generate(plan: &mut Plan, target: Target, portable: bool) -> Result<Code, Error> {
    if let Some(chip) = cuda::Chip::of(target, portable) {
        return cuda::generate(plan, &chip);
    }
    if let Some(chip) = hip::Chip::of(target) {
        return hip::generate(plan, &chip);
    }
    let mut section = CodeSection::new();
    let mut refs: Vec<Vec<Vec<Option<CodeRef>>>> = Vec::new();
    for launch in &plan.launches {
        let regions: Vec<Option<&Region>> = match &launch.op {
            Op::Embed { .. } | Op::RopeTable { .. } | Op::Route { .. } => vec![None],
            Op::Region { region, .. } => vec![Some(region)],
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
    })
}

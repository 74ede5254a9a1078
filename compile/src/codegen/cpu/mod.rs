//! Machine code of regions for CPUs, by Cranelift.
//!
//! [`layout`] gathers what a region's operands look like in memory, [`check`] proves that the region keeps the rules that
//! `bundle_format::region` states, [`schedule`] cuts it into passes over a row and phases of a unit, [`emit`] writes the walk over rows and columns
//! ([`loops`] its loops) and [`strip`] what is in them, with the arithmetic of [`math`] and, for stores of blocks, of
//! [`quantise`]. [`isa`] turns them into relocation-free bytes, and [`section`] lays functions out, each once.

mod check;
mod emit;
mod isa;
mod layout;
mod loops;
mod math;
mod quantise;
mod schedule;
mod section;
mod strip;
mod sums;
#[cfg(test)]
mod tests;

use bundle_format::region::Region;

use crate::error::Error;

pub use isa::toolchain;
pub use layout::{Layout, QuantType, RegionContext};
pub use section::CodeSection;

/// Compiles `region` to a function of type `kernels::abi::RegionFn`: position-independent bytes without relocations,
/// the same ones for the same region and context.
///
/// # Errors
/// [`Error::Bug`] where the region breaks a rule of `bundle_format::region` or doesn't fit its operands; the text names
/// the region and the instruction.
pub fn compile_region(region: &Region, context: &RegionContext) -> Result<Vec<u8>, Error> {
    check::check(region, context)?;
    let schedule = schedule::Schedule::of(region)?;
    let bug = |e| Error::Bug(format!("region {}: {e}", region.name));
    let isa = isa::target_isa(context.target).map_err(bug)?;
    let function = emit::emit(region, context, &schedule, isa.frontend_config());
    isa::compile(function, &*isa).map_err(bug)
}

/// The error for a region that breaks a rule at instruction `index`.
fn broken(region: &Region, index: usize, what: impl std::fmt::Display) -> Error {
    Error::Bug(format!(
        "region {}: instruction {index} ({:?}): {what}",
        region.name, region.body[index]
    ))
}

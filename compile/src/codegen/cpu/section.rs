//! The code section: every function once.

use std::collections::BTreeMap;

use bundle_format::plan::{ALIGN, CodeRef};
use bundle_format::region::{Inst, Region};

use super::{RegionContext, compile_region};
use crate::error::Error;

/// What the gaps between functions are filled with: `int3`.
const PADDING: u8 = 0xCC;

/// Collects functions, each at a multiple of [`ALIGN`]. Equal functions share their bytes, so all layers of a model
/// share one copy: addresses come through the arguments.
#[derive(Debug, Default)]
pub struct CodeSection {
    bytes: Vec<u8>,
    functions: BTreeMap<Vec<u8>, CodeRef>,
    /// What was compiled before; few enough for a linear search.
    regions: Vec<(Key, CodeRef)>,
}

impl CodeSection {
    pub fn new() -> CodeSection {
        CodeSection::default()
    }

    /// Compiles `region`, unless one with the same code was compiled before.
    ///
    /// # Errors
    /// Those of [`compile_region`].
    pub fn add_region(
        &mut self,
        region: &Region,
        context: &RegionContext,
    ) -> Result<CodeRef, Error> {
        let key = Key::of(region, context);
        if let Some((_, code)) = self.regions.iter().find(|(k, _)| *k == key) {
            return Ok(*code);
        }
        let code = self.add_code(&compile_region(region, context)?);
        self.regions.push((key, code));
        Ok(code)
    }

    /// Adds a function's bytes.
    pub fn add_code(&mut self, code: &[u8]) -> CodeRef {
        if let Some(&known) = self.functions.get(code) {
            return known;
        }
        let start = self.bytes.len().next_multiple_of(ALIGN);
        self.bytes.resize(start, PADDING);
        self.bytes.extend_from_slice(code);
        let code_ref = CodeRef {
            offset: start as u64,
            len: code.len() as u64,
        };
        self.functions.insert(code.to_vec(), code_ref);
        code_ref
    }

    /// Distinct functions so far.
    pub fn functions(&self) -> usize {
        self.functions.len()
    }

    /// The section's bytes, padded to [`ALIGN`].
    pub fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len().next_multiple_of(ALIGN);
        self.bytes.resize(len, PADDING);
        self.bytes
    }
}

/// All that a region's code depends on; not its name, nor which buffers and weights it works on.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    unit: u32,
    width: u32,
    cols: u32,
    body: Vec<Inst>,
    /// The bits of the body's constants, of which `body` tells neither zeros nor NaNs apart.
    constants: Vec<u32>,
    /// For each operand the first one that is the same: where a region works in place.
    same_as: Vec<usize>,
    context: RegionContext,
}

impl Key {
    fn of(region: &Region, context: &RegionContext) -> Key {
        let same_as = region
            .operands
            .iter()
            .map(|operand| region.operands.iter().take_while(|o| *o != operand).count())
            .collect();
        let constants = region
            .body
            .iter()
            .filter_map(|inst| match inst {
                Inst::Const { value } => Some(value.to_bits()),
                _ => None,
            })
            .collect();
        Key {
            unit: region.unit,
            width: region.width,
            cols: region.cols,
            body: region.body.clone(),
            constants,
            same_as,
            context: context.clone(),
        }
    }
}

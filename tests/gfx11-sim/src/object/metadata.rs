//! The metadata note: names, arguments and sizes of kernels.

use super::ObjectError;
use super::msgpack::{self, Value};

/// What the note says of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelMetadata {
    /// `.name`.
    pub name: String,
    /// `.symbol`, the descriptor's.
    pub symbol: String,
    /// Arguments, those that the runtime fills included.
    pub args: Vec<Arg>,
    /// Bytes of the argument block.
    pub kernarg_size: u32,
    /// Bytes of LDS that the code declares.
    pub lds: u32,
    /// Bytes of scratch a lane.
    pub private: u32,
    /// Vector registers that the code uses.
    pub vgprs: u32,
    /// Scalar registers that the code uses.
    pub sgprs: u32,
    /// Vector registers spilled.
    pub vgpr_spills: u32,
    /// Scalar registers spilled.
    pub sgpr_spills: u32,
    /// Most work-items of a workgroup.
    pub max_workgroup: u32,
}

/// One argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg {
    /// Name, where the compiler kept it.
    pub name: Option<String>,
    /// Bytes into the argument block.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// `by_value`, `global_buffer`, `hidden_block_count_x`, ...
    pub kind: String,
}

impl Arg {
    /// Filled by the runtime, not by the caller.
    pub fn is_hidden(&self) -> bool {
        self.kind.starts_with("hidden_")
    }
}

pub(super) fn read(note: &[u8]) -> Result<Vec<KernelMetadata>, ObjectError> {
    let root = msgpack::decode(note)?;
    if let Some(target) = root.get("amdhsa.target").and_then(Value::as_text)
        && !target.ends_with("-gfx1151")
    {
        return Err(ObjectError::Malformed(format!(
            "metadata names target {target}, expected amdgcn-amd-amdhsa--gfx1151"
        )));
    }
    let kernels = root
        .get("amdhsa.kernels")
        .and_then(Value::as_array)
        .unwrap_or_default();
    kernels.iter().map(kernel).collect()
}

fn kernel(value: &Value) -> Result<KernelMetadata, ObjectError> {
    let name = text(value, ".name", "a kernel")?;
    let number = |key: &str| number(value, key, &name);
    let args = value
        .get(".args")
        .and_then(Value::as_array)
        .unwrap_or_default();
    Ok(KernelMetadata {
        symbol: text(value, ".symbol", &name)?,
        args: args
            .iter()
            .map(|arg| self::arg(arg, &name))
            .collect::<Result<_, _>>()?,
        kernarg_size: number(".kernarg_segment_size")?,
        lds: number(".group_segment_fixed_size")?,
        private: number(".private_segment_fixed_size")?,
        vgprs: number(".vgpr_count")?,
        sgprs: number(".sgpr_count")?,
        vgpr_spills: number(".vgpr_spill_count").unwrap_or(0),
        sgpr_spills: number(".sgpr_spill_count").unwrap_or(0),
        max_workgroup: number(".max_flat_workgroup_size")?,
        name: name.clone(),
    })
}

fn arg(value: &Value, kernel: &str) -> Result<Arg, ObjectError> {
    Ok(Arg {
        name: value
            .get(".name")
            .and_then(Value::as_text)
            .map(String::from),
        offset: number(value, ".offset", kernel)?,
        size: number(value, ".size", kernel)?,
        kind: text(value, ".value_kind", kernel)?,
    })
}

fn text(value: &Value, key: &str, of: &str) -> Result<String, ObjectError> {
    let found = value.get(key).and_then(Value::as_text);
    found
        .map(String::from)
        .ok_or_else(|| ObjectError::Malformed(format!("metadata of {of}: no text {key}")))
}

fn number(value: &Value, key: &str, of: &str) -> Result<u32, ObjectError> {
    let found = value
        .get(key)
        .and_then(Value::as_int)
        .and_then(|n| u32::try_from(n).ok());
    found.ok_or_else(|| ObjectError::Malformed(format!("metadata of {of}: no 32-bit number {key}")))
}

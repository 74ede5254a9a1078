//! What a GGUF file holds, as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::gguf::{Array, Gguf, Value};

/// Items of an array and characters of a string that are shown.
const SHOWN: usize = 8;
const SHOWN_CHARS: usize = 100;

/// Metadata, tensors, and the bytes of each tensor type. `all` shows values whole.
pub fn inspect(gguf: &Gguf<'_>, all: bool) -> String {
    let mut out = format!(
        "GGUF version {}, alignment {}\n",
        gguf.version, gguf.alignment
    );
    let _ = writeln!(out, "\nmetadata ({} entries)", gguf.metadata.len());
    for (key, value) in gguf.metadata.iter() {
        let ty = value.value_type().name();
        let _ = writeln!(out, "  {key}: {ty} = {}", print_value(&value, all));
    }
    let _ = writeln!(out, "\ntensors ({})", gguf.tensors().len());
    let mut types: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let dims: Vec<String> = tensor.dims().iter().map(u64::to_string).collect();
        let bytes = gguf.data(tensor).len() as u64;
        let ty = tensor.ty.name;
        let _ = writeln!(
            out,
            "  {} {ty} [{}] {bytes} bytes at {}",
            tensor.name,
            dims.join(", "),
            tensor.offset
        );
        let sum = types.entry(ty).or_default();
        *sum = (sum.0 + 1, sum.1 + tensor.elements(), sum.2 + bytes);
    }
    let _ = writeln!(out, "\ntypes");
    for (ty, (count, elements, bytes)) in types {
        let compiles = gguf
            .tensors()
            .iter()
            .find(|t| t.ty.name == ty)
            .is_some_and(|t| t.encoding().is_ok());
        let note = if compiles {
            ""
        } else {
            " (not supported by this build)"
        };
        let _ = writeln!(
            out,
            "  {ty}: {count} tensors, {elements} elements, {bytes} bytes{note}"
        );
    }
    out
}

fn print_value(value: &Value<'_>, all: bool) -> String {
    match value {
        Value::String(bytes) => print_string(bytes, all),
        Value::Array(array) => print_array(array, all),
        Value::Bool(value) => value.to_string(),
        Value::F32(value) => format!("{value:?}"),
        Value::F64(value) => format!("{value:?}"),
        // The others are the integers.
        other => other.integer().map(|i| i.to_string()).unwrap_or_default(),
    }
}

fn print_string(bytes: &[u8], all: bool) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text
        .chars()
        .take(if all { usize::MAX } else { SHOWN_CHARS })
        .collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    // Escaped, so that a file can't write to the terminal.
    format!("{shown:?}")
}

fn print_array(array: &Array<'_>, all: bool) -> String {
    let count = if all { usize::MAX } else { SHOWN };
    let items: Vec<String> = array
        .iter()
        .take(count)
        .map(|v| print_value(&v, all))
        .collect();
    let more = if array.len() > items.len() {
        ", …"
    } else {
        ""
    };
    format!("{} items [{}{more}]", array.len(), items.join(", "))
}

//! Lists and dicts as Python shows them: `{'type': 'function', 'strict': True}`. Some templates print tools that way.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Output, State, Value};

use crate::tokenizer::unicode::{Class, first};

/// Shows values as Python does where they are printed, and where a template makes strings of them.
pub fn install(environment: &mut Environment<'_>) {
    environment.set_formatter(print);
    environment.add_filter("string", |value: Value| match shown(&value) {
        Some(text) => Value::from(text),
        None => match value.kind() {
            ValueKind::String => value,
            _ => Value::from(value.to_string()),
        },
    });
}

fn print(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match shown(value) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    }
}

/// A list or dict; none for other values.
fn shown(value: &Value) -> Option<String> {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map).then(|| {
        let mut out = String::new();
        push(value, &mut out);
        out
    })
}

fn push(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::String => push_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            out.push('[');
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                push(&item, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                push(&key, out);
                out.push_str(": ");
                push(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn push_str(text: &str, out: &mut String) {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            // Writing to a string doesn't fail.
            c if c < '\u{100}' => _ = write!(out, "\\x{:02x}", c as u32),
            c if c < '\u{10000}' => _ = write!(out, "\\u{:04x}", c as u32),
            c => _ = write!(out, "\\U{:08x}", c as u32),
        }
    }
    out.push(quote);
}

/// Python's `isprintable`: neither a control of some kind nor a separator but the space.
fn is_printable(c: char) -> bool {
    let class = first(c.encode_utf8(&mut [0; 4]));
    c == ' ' || !matches!(class, Some((Class::Other | Class::Space, _)))
}

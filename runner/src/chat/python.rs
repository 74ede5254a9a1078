//! What chat templates expect of Python and of Hugging Face's `transformers`.

use std::io;
use std::time::SystemTime;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Adds Python's methods, and filters and functions with `transformers`' behaviour.
pub fn install(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", to_json);
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The time by a format of C's strftime: `strftime_now("%d %b %Y")`.
pub fn strftime_now(now: SystemTime) -> Value {
    Value::from_function(move |format: String| {
        let fail = |e: jiff::Error| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("strftime_now({format:?}): {e}"),
            )
        };
        let now = jiff::Timestamp::try_from(now).map_err(fail)?;
        let local = now.to_zoned(jiff::tz::TimeZone::system());
        jiff::fmt::strtime::format(&format, &local).map_err(fail)
    })
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: keys in their order, a space after `:` and `,`.
fn to_json(value: Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let ensure_ascii = options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false);
    options.assert_all_used()?;
    if ensure_ascii {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson(ensure_ascii=true) is not supported",
        ));
    }
    let indent = match indent {
        Some(indent) if !indent.is_none() && !indent.is_undefined() => {
            Some(" ".repeat(usize::try_from(indent)?))
        }
        _ => None,
    };
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    }
    .map_err(|e| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))?;
    let text = String::from_utf8(out)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))?;
    Ok(Value::from_safe_string(text))
}

/// One line, with a space after `:` and `,`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

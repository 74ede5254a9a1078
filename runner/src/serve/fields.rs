//! The fields of a request: each is taken out once, by name, type and range, and what is left at the end is unknown.
//!
//! Errors name the field, as OpenAI's do. A null counts as absent.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// A JSON object that is being read.
#[derive(Debug)]
pub struct Fields {
    entries: Map<String, Value>,
    /// Path of the object in the request, with a dot at the end; empty for the request itself.
    prefix: String,
}

impl Fields {
    /// The object that a body holds.
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| ApiError::bad_request(format!("the body is not JSON: {e}")))?;
        match value {
            Value::Object(entries) => Ok(Fields {
                entries,
                prefix: String::new(),
            }),
            other => Err(ApiError::bad_request(format!(
                "the body is {}, not a JSON object",
                kind(&other)
            ))),
        }
    }

    /// An object within a request, at `path`.
    pub fn of(value: Value, path: &str) -> Result<Fields, ApiError> {
        match value {
            Value::Object(entries) => Ok(Fields {
                entries,
                prefix: format!("{path}."),
            }),
            other => Err(expected("an object", path, &other)),
        }
    }

    /// The field's name as errors give it.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Any value.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        // The order of what is left doesn't matter.
        self.entries.swap_remove(name).filter(|v| !v.is_null())
    }

    pub fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let path = self.path(name);
        match value.as_f64() {
            Some(x) if range.contains(&x) => Ok(Some(x as f32)),
            Some(x) => Err(outside(&path, x, &range)),
            None => Err(expected("a number", &path, &value)),
        }
    }

    pub fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let path = self.path(name);
        match value.as_i64() {
            Some(x) if range.contains(&x) => Ok(Some(x)),
            Some(x) => Err(outside(&path, x, &range)),
            None => Err(expected("a whole number", &path, &value)),
        }
    }

    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(x)) => Ok(Some(x)),
            Some(other) => Err(expected("true or false", &self.path(name), &other)),
        }
    }

    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(x)) => Ok(Some(x)),
            Some(other) => Err(expected("a string", &self.path(name), &other)),
        }
    }

    pub fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(x)) => Ok(Some(x)),
            Some(other) => Err(expected("a list", &self.path(name), &other)),
        }
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(x)) => Ok(Some(x)),
            Some(other) => Err(expected("an object", &self.path(name), &other)),
        }
    }

    /// The fields of an object.
    pub fn fields(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let path = self.path(name);
        self.take(name)
            .map(|value| Fields::of(value, &path))
            .transpose()
    }

    /// One string, or a list of at most `most`.
    pub fn strings(&mut self, name: &str, most: usize) -> Result<Vec<String>, ApiError> {
        let path = self.path(name);
        let items = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) if items.len() <= most => items,
            Some(Value::Array(items)) => {
                let found = items.len();
                return Err(ApiError::invalid(
                    &path,
                    format!("{path} has {found} strings, and may have {most}"),
                ));
            }
            Some(one) => vec![one],
        };
        items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                other => Err(expected("a string or a list of strings", &path, &other)),
            })
            .collect()
    }

    /// Drops fields that change nothing here: whom a request is for, how it is billed or stored.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.entries.swap_remove(*name);
        }
    }

    /// Refuses a field that OpenAI knows and this server doesn't do.
    pub fn refuse(&mut self, name: &str, why: &str) -> Result<(), ApiError> {
        match self.take(name) {
            None => Ok(()),
            Some(_) => {
                let path = self.path(name);
                Err(ApiError::unsupported(
                    &path,
                    format!("{path} is not supported: {why}"),
                ))
            }
        }
    }

    /// Refuses what is left.
    pub fn finish(self) -> Result<(), ApiError> {
        let unknown = self.entries.iter().find(|(_, value)| !value.is_null());
        match unknown {
            None => Ok(()),
            Some((name, _)) => {
                let path = self.path(name);
                Err(ApiError::invalid(&path, format!("unknown field: {path}")))
            }
        }
    }
}

/// The error of a value that has another type.
pub fn expected(what: &str, path: &str, found: &Value) -> ApiError {
    ApiError::invalid(path, format!("{path} must be {what}, not {}", kind(found)))
}

fn outside<T: std::fmt::Display>(path: &str, found: T, range: &RangeInclusive<T>) -> ApiError {
    let (low, high) = (range.start(), range.end());
    ApiError::invalid(
        path,
        format!("{path} is {found}, and must be from {low} to {high}"),
    )
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).expect("an object")
    }

    /// The message and the field of an error.
    fn fault<T: std::fmt::Debug>(result: Result<T, ApiError>) -> (String, Value) {
        let json = result.expect_err("it is wrong").to_json();
        let message = json["error"]["message"].as_str().expect("there is one");
        (message.to_owned(), json["error"]["param"].clone())
    }

    #[test]
    fn values_are_taken_by_type_and_range() {
        let mut f = fields(r#"{"t": 0.5, "n": 3, "s": ["a", "b"], "one": "x", "no": null}"#);
        assert_eq!(f.number("t", 0.0..=2.0), Ok(Some(0.5)));
        assert_eq!(f.integer("n", 1..=8), Ok(Some(3)));
        assert_eq!(f.strings("s", 4), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(f.strings("one", 4), Ok(vec!["x".into()]));
        assert_eq!(f.boolean("no"), Ok(None));
        assert_eq!(f.finish(), Ok(()));
    }

    #[test]
    fn errors_name_the_field() {
        let mut f = fields(r#"{"t": 3, "n": 1.5, "s": [1], "o": {"x": "y"}, "odd": 1}"#);
        let (message, param) = fault(f.number("t", 0.0..=2.0));
        assert_eq!(message, "t is 3, and must be from 0 to 2");
        assert_eq!(param, "t");
        let (message, _) = fault(f.integer("n", 1..=8));
        assert_eq!(message, "n must be a whole number, not a fraction");
        let (message, _) = fault(f.strings("s", 4));
        assert_eq!(
            message,
            "s must be a string or a list of strings, not a number"
        );
        let mut inner = f.fields("o").expect("an object").expect("it is there");
        assert_eq!(fault(inner.boolean("x")).1, "o.x");
        assert_eq!(
            fault(f.finish()),
            ("unknown field: odd".into(), "odd".into())
        );
    }
}

//! The grammar of an answer that may call tools, in Lark's notation.

use serde_json::{Value, json};

use super::super::error::ApiError;
use super::{CallFormat, Choice, END_TAG, Shape, TAG, Tools};
use crate::grammar::Grammar;

pub fn grammar(tools: &Tools, text: Option<Shape>) -> Result<Grammar, ApiError> {
    let call = format!("body: %json {}\n", call_schema(tools));
    let more = |separator: &str| match tools.parallel {
        true => format!(" ({separator} call)*"),
        false => String::new(),
    };
    let lark = match (&tools.choice, tools.format) {
        (Choice::Required | Choice::Named(_), CallFormat::Tagged) => {
            format!("start: call{}\n{}", more(r#""\n""#), tagged_call())
        }
        (Choice::Required | Choice::Named(_), format) => {
            format!("start: call{}\ncall: body\n", more(separator(format)))
        }
        (Choice::Auto, CallFormat::Tagged) => {
            // Text up to the first tag, which only a call can follow.
            let calls = format!("head after{}", more(r#""\n""#));
            let (rest, text) = match text {
                None => (
                    "head[lazy]: TEXT \"<tool_call>\"\ntext: TEXT\n".to_owned(),
                    String::new(),
                ),
                Some(Shape::Schema(schema)) => (
                    "head: \"<tool_call>\"\n".to_owned(),
                    format!("text: %json {schema}\n"),
                ),
                Some(_) => return Err(both("a regex or lark response_format")),
            };
            format!(
                "start: text | {calls}\n{rest}{text}after: \"\\n\" body \"\\n{END_TAG}\"\n{}TEXT: /(.|\\n)*/\n",
                tagged_call()
            )
        }
        (Choice::Auto, format) => {
            if text.is_some() {
                return Err(both(
                    "a response_format, for a model whose calls are bare JSON,",
                ));
            }
            let calls = format!("call{}", more(separator(format)));
            // A call begins with a brace, text with anything else.
            format!("start: TEXT | {calls}\ncall: body\nTEXT: /[^{{\\s](.|\\n)*/\n")
        }
    };
    Ok(Grammar::Lark(lark + &call))
}

fn tagged_call() -> String {
    format!("call: \"{TAG}\\n\" body \"\\n{END_TAG}\"\n")
}

/// What stands between calls that are bare JSON.
fn separator(format: CallFormat) -> &'static str {
    match format {
        CallFormat::Llama => r#""; ""#,
        CallFormat::Tagged | CallFormat::Prompted => r#""\n""#,
    }
}

/// A call of one of the tools, written as models are taught to: a space after `:` and `,`.
fn call_schema(tools: &Tools) -> Value {
    let arguments = tools.format.arguments();
    let calls: Vec<Value> = tools
        .callable()
        .map(|tool| {
            json!({
                "type": "object",
                "properties": { "name": { "const": tool.name }, arguments: tool.parameters },
                "required": ["name", arguments],
                "additionalProperties": false,
            })
        })
        .collect();
    json!({
        "x-guidance": { "whitespace_flexible": false, "key_separator": ": ", "item_separator": ", " },
        "anyOf": calls,
    })
}

fn both(what: &str) -> ApiError {
    let message = format!(
        "{what} and tools with tool_choice auto can't be told apart; use tool_choice none or required, or leave one out"
    );
    ApiError::unsupported("response_format", message)
}

//! Tools: what a model may call, the grammar that makes its calls well-formed ([`grammar`]), and the calls read out of its text
//! ([`calls`]).
//!
//! How a call is written is the model's: what its chat template shows. A model that was not taught tools, or in a way that is
//! not known here, gets them in the system prompt, with a form of our own ([`prompt`]).

pub mod calls;
mod grammar;
pub mod prompt;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, expected};
use crate::grammar::Grammar;
use crate::runner::Runner;

/// Most tools of a request.
const MAX_TOOLS: usize = 128;

/// How a model writes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>`, an object with `name` and `arguments`, `</tool_call>`: Hermes, Qwen.
    Tagged,
    /// Nothing but an object with `name` and `parameters`: Llama 3.
    Llama,
    /// Nothing but an object with `name` and `arguments`, as our own prompt says.
    Prompted,
}

impl CallFormat {
    /// # Errors
    /// Why the model can't call tools: it takes no chats.
    pub fn of_model(runner: &Runner) -> Result<CallFormat, String> {
        let tokenizer = runner.tokenizer();
        let Some(template) = tokenizer.chat_template() else {
            return Err("the model has no chat template".into());
        };
        let vocab = tokenizer.vocab();
        // Grammars admit no control tokens, and texts don't show them.
        let is_control = |name: &str| {
            let matched = (0..vocab.matched_len()).filter_map(|i| vocab.matched(i));
            let mut same = matched.filter(|(_, bytes)| *bytes == name.as_bytes());
            same.any(|(id, _)| vocab.attr(id).is_some_and(|attr| attr.is_hidden()))
        };
        Ok(CallFormat::of_template(template, is_control))
    }

    fn of_template(template: &str, is_control: impl Fn(&str) -> bool) -> CallFormat {
        if !template.contains("tools") {
            CallFormat::Prompted
        } else if template.contains(TAG) && !is_control(TAG) && !is_control(END_TAG) {
            CallFormat::Tagged
        } else if template.contains("<|python_tag|>")
            || template.contains("\"parameters\": dictionary")
        {
            CallFormat::Llama
        } else {
            CallFormat::Prompted
        }
    }

    /// Whether the template tells the model of tools.
    pub fn is_of_template(self) -> bool {
        self != CallFormat::Prompted
    }

    /// The key of a call's arguments.
    fn arguments(self) -> &'static str {
        match self {
            CallFormat::Tagged | CallFormat::Prompted => "arguments",
            CallFormat::Llama => "parameters",
        }
    }
}

const TAG: &str = "<tool_call>";
const END_TAG: &str = "</tool_call>";

/// The form of an answer's text.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    Schema(Value),
    Regex(String),
    Lark(String),
}

impl Shape {
    pub fn into_grammar(self) -> Grammar {
        match self {
            Shape::Schema(schema) => Grammar::JsonSchema(schema),
            Shape::Regex(regex) => Grammar::Regex(regex),
            Shape::Lark(lark) => Grammar::Lark(lark),
        }
    }
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    /// As the request describes it, for the template.
    pub description: Value,
    /// JSON schema of the arguments.
    parameters: Value,
}

/// What the model is to do with its tools.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Auto,
    Required,
    Named(String),
}

/// The tools of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    pub format: CallFormat,
    pub tools: Vec<Tool>,
    choice: Choice,
    /// Several calls in one answer.
    parallel: bool,
}

impl Tools {
    /// Takes `tools`, `tool_choice` and `parallel_tool_calls` out of a request; none where the model gets no tools.
    pub fn take(
        fields: &mut Fields,
        format: &Result<CallFormat, String>,
    ) -> Result<Option<Tools>, ApiError> {
        let tools = fields.list("tools")?.unwrap_or_default();
        let choice = fields.take("tool_choice");
        let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        let tools = tools
            .into_iter()
            .enumerate()
            .map(|(i, tool)| Tool::parse(tool, &format!("tools[{i}]")))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(choice) = parse_choice(choice, &tools)? else {
            return Ok(None);
        };
        if tools.len() > MAX_TOOLS {
            let message = format!("there are {} tools, and may be {MAX_TOOLS}", tools.len());
            return Err(ApiError::invalid("tools", message));
        }
        match format {
            Ok(format) => Ok(Some(Tools {
                format: *format,
                tools,
                choice,
                parallel,
            })),
            Err(why) => Err(ApiError::unsupported(
                "tools",
                format!("tools are not supported: {why}"),
            )),
        }
    }

    /// The grammar of the answer: calls, or text too, which may have a shape.
    pub fn grammar(&self, text: Option<Shape>) -> Result<Grammar, ApiError> {
        grammar::grammar(self, text)
    }

    /// The tools that may be called.
    fn callable(&self) -> impl Iterator<Item = &Tool> {
        self.tools.iter().filter(|tool| match &self.choice {
            Choice::Named(name) => tool.name == *name,
            Choice::Auto | Choice::Required => true,
        })
    }
}

impl Tool {
    fn parse(value: Value, path: &str) -> Result<Tool, ApiError> {
        let description = value.clone();
        let mut fields = Fields::of(value, path)?;
        let kind = fields.string("type")?.unwrap_or_default();
        if kind != "function" {
            let message = format!("{path}.type is {kind:?}; only \"function\" is supported");
            return Err(ApiError::unsupported(&fields.path("type"), message));
        }
        let mut function = fields
            .fields("function")?
            .ok_or_else(|| ApiError::invalid(path, format!("{path}.function is missing")))?;
        let name = function.string("name")?.unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let message = format!(
                "{path}.function.name is {name:?}; a name is 1 to 64 letters, digits, '_', '-' and '.'"
            );
            return Err(ApiError::invalid(&function.path("name"), message));
        }
        let parameters = function.object("parameters")?.unwrap_or_else(|| {
            Map::from_iter([
                ("type".into(), json!("object")),
                ("properties".into(), json!({})),
            ])
        });
        Ok(Tool {
            name,
            description,
            parameters: parameters.into(),
        })
    }
}

/// None: no tools.
fn parse_choice(choice: Option<Value>, tools: &[Tool]) -> Result<Option<Choice>, ApiError> {
    const PARAM: &str = "tool_choice";
    let choice = match choice {
        None if tools.is_empty() => return Ok(None),
        None => return Ok(Some(Choice::Auto)),
        Some(choice) => choice,
    };
    let choice = match choice.as_str() {
        Some("none") => return Ok(None),
        Some("auto") if tools.is_empty() => return Ok(None),
        Some("auto") => Choice::Auto,
        Some("required") => Choice::Required,
        Some(other) => {
            let message =
                format!("tool_choice is {other:?}, and must be none, auto, required or a function");
            return Err(ApiError::invalid(PARAM, message));
        }
        None => match choice.pointer("/function/name").and_then(Value::as_str) {
            Some(name) => Choice::Named(name.to_owned()),
            None => {
                return Err(expected(
                    "a string or {\"type\": \"function\", …}",
                    PARAM,
                    &choice,
                ));
            }
        },
    };
    if tools.is_empty() {
        return Err(ApiError::invalid(
            PARAM,
            "tool_choice wants a tool, and there are none",
        ));
    }
    if let Choice::Named(name) = &choice
        && !tools.iter().any(|tool| tool.name == *name)
    {
        let message = format!("tool_choice names {name:?}, which is not one of the tools");
        return Err(ApiError::invalid(PARAM, message));
    }
    Ok(Some(choice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_tells_how_calls_are_written() {
        let of = |template: &str| CallFormat::of_template(template, |_| false);
        let qwen = "{%- if tools %}… within <tool_call></tool_call> XML tags";
        assert_eq!(of(qwen), CallFormat::Tagged);
        let llama = r#"{%- if tools %}Respond in the format {"name": function name, "parameters": dictionary of argument"#;
        assert_eq!(of(llama), CallFormat::Llama);
        assert_eq!(of("{% for message in messages %}"), CallFormat::Prompted);
        assert_eq!(of("{% if tools %}[AVAILABLE_TOOLS]"), CallFormat::Prompted);
        let hidden = CallFormat::of_template(qwen, |name| name == TAG);
        assert_eq!(hidden, CallFormat::Prompted);
    }

    #[test]
    fn a_choice_must_be_one_of_the_tools() {
        let take = |text: &str| {
            let mut fields = Fields::parse(text.as_bytes()).expect("an object");
            Tools::take(&mut fields, &Ok(CallFormat::Tagged))
        };
        let tool = r#""tools": [{"type": "function", "function": {"name": "f"}}]"#;
        let choice = |choice: &str| take(&format!("{{{tool}, \"tool_choice\": {choice}}}"));
        assert_eq!(take("{}"), Ok(None));
        assert_eq!(choice("\"none\""), Ok(None));
        let named = choice(r#"{"type": "function", "function": {"name": "f"}}"#);
        let named = named.expect("it is there").expect("tools");
        assert_eq!(named.choice, Choice::Named("f".into()));
        let wrong = choice(r#"{"type": "function", "function": {"name": "g"}}"#);
        let text = wrong.expect_err("no such tool").to_json().to_string();
        assert!(
            text.contains("tool_choice") && text.contains("not one of the tools"),
            "{text}"
        );
        assert!(take(r#"{"tool_choice": "required"}"#).is_err());
    }
}

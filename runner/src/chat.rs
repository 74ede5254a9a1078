//! Chats to prompts, by the model's own Jinja template.
//!
//! Templates are run as Hugging Face's `transformers` runs them, since they were written for it: blocks are trimmed,
//! Python's string methods work, lists and dicts print as Python's ([`repr`]), and `tojson`, `raise_exception` and
//! `strftime_now` are its own.
//!
//! The control tokens of a template must become tokens, those that a message spells must not ([`literal`]).

mod literal;
mod python;
mod repr;

use std::time::SystemTime;

use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::{Map, Value as Json};

use crate::Error;
use crate::tokenizer::Tokenizer;
use bundle_format::tokenizer::Special;
use literal::Marker;

/// A rendered chat, for [`Tokenizer::encode_prompt`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    pub text: String,
    /// Byte offsets of characters that came from messages and that no control token may contain, ascending.
    pub literal: Vec<usize>,
}

/// What a prompt is made of.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// Objects with `role` (letters, digits, `_` and `-`), `content`, and whatever else the template reads.
    pub messages: Vec<Json>,
    /// Descriptions of tools, in the order and spelling in which the model is to see them.
    pub tools: Vec<Json>,
    /// Ends the prompt where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// More variables of the template: `enable_thinking`.
    pub variables: Map<String, Json>,
    /// What `strftime_now` tells, in the system's time zone.
    pub now: SystemTime,
}

impl ChatRequest {
    /// A chat that the assistant is to answer.
    pub fn new(messages: Vec<Json>, now: SystemTime) -> Self {
        Self {
            messages,
            tools: Vec::new(),
            add_generation_prompt: true,
            variables: Map::new(),
            now,
        }
    }
}

/// A message of plain text.
pub fn message(role: &str, content: &str) -> Json {
    serde_json::json!({ "role": role, "content": content })
}

/// A model's chat template, parsed.
#[derive(Debug)]
pub struct ChatTemplate<'a> {
    tokenizer: Tokenizer<'a>,
    source: String,
    environment: Environment<'static>,
}

impl<'a> ChatTemplate<'a> {
    /// The template that the model came with.
    pub fn of_model(tokenizer: &Tokenizer<'a>) -> Result<Self, Error> {
        let source = tokenizer.chat_template().ok_or_else(|| {
            Error::Unsupported(
                "the model has no chat template (GGUF's tokenizer.chat_template); give the prompt as it is, with --raw"
                    .into(),
            )
        })?;
        Self::new(tokenizer, source)
    }

    /// A template of one's own for the model.
    pub fn new(tokenizer: &Tokenizer<'a>, source: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        python::install(&mut environment);
        repr::install(&mut environment);
        environment
            .add_template_owned(TEMPLATE, python::without_generation_marks(source))
            .map_err(|e| {
                Error::Unsupported(format!(
                    "the model's chat template: {}; give the prompt as it is, with --raw",
                    describe(&e)
                ))
            })?;
        Ok(Self {
            tokenizer: *tokenizer,
            source: source.to_owned(),
            environment,
        })
    }

    /// The prompt of a chat.
    pub fn render(&self, request: &ChatRequest) -> Result<Prompt, Error> {
        check_roles(&request.messages)?;
        let messages = Json::Array(request.messages.clone());
        let tools = match request.tools.is_empty() {
            true => Json::Null, // as transformers says that there are none
            false => Json::Array(request.tools.clone()),
        };
        let variables = Json::Object(request.variables.clone());
        let marker = Marker::new(
            &self.tokenizer,
            &self.source,
            &[&messages, &tools, &variables],
        )?;

        let context = context! {
            messages => Value::from_serialize(marker.mark(messages)),
            tools => Value::from_serialize(marker.mark(tools)),
            documents => Value::from(()),
            add_generation_prompt => request.add_generation_prompt,
            bos_token => self.token_text(Special::Bos),
            eos_token => self.token_text(Special::Eos),
            strftime_now => python::strftime_now(request.now),
            ..Value::from_serialize(marker.mark(variables))
        };
        let rendered = self
            .environment
            .get_template(TEMPLATE)
            .and_then(|template| template.render(context))
            .map_err(|e| match e.kind() {
                // raise_exception, and operations that a message's shape doesn't allow.
                ErrorKind::InvalidOperation => Error::User(format!(
                    "the model's chat template refuses the messages: {}",
                    describe(&e)
                )),
                _ => Error::Unsupported(format!(
                    "the model's chat template: {}; give the prompt as it is, with --raw",
                    describe(&e)
                )),
            })?;
        Ok(marker.unmark(&rendered))
    }

    fn token_text(&self, which: Special) -> String {
        let vocab = self.tokenizer.vocab();
        let bytes = vocab.special(which).and_then(|id| vocab.token(id));
        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
    }
}

/// The template's name within its environment, which error texts show.
const TEMPLATE: &str = "template";

/// Roles become part of control tokens in some templates (`'<|' + role + '|>'`), so that they can't be guarded as messages'
/// other strings are.
fn check_roles(messages: &[Json]) -> Result<(), Error> {
    for (i, message) in messages.iter().enumerate() {
        let role = message
            .get("role")
            .and_then(Json::as_str)
            .unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if role.is_empty() || !role.chars().all(plain) {
            return Err(Error::User(format!(
                "message {i} has the role {role:?}; a role is letters, digits, '_' and '-': user, assistant, system"
            )));
        }
    }
    Ok(())
}

/// An error of the template engine with its causes, on one line.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answer::{Answers, News, Tokens, aside};
use super::body;
use super::error::ApiError;
use super::events::{self, Chunks};
use super::fields::Fields;
use super::head::Head;
use super::params::{MAX_LOGPROBS, Params};
use super::tools::calls::{CallParser, Piece};
use super::tools::{Tools, prompt};
use super::track::Record;
use super::{App, logprobs, random};
use crate::chat::ChatRequest;
use crate::runner::{GenerateRequest, Input, TokenInfo};

pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::read(&app, request).await?;
    let call = Call::parse(&app, Fields::parse(&body)?)?;
    let (params, tools, logprobs) = (call.params.clone(), call.tools.clone(), call.logprobs);
    let request = {
        let app = app.clone();
        aside(move || call.request(&app)).await??
    };
    let head = Head::new(&app, "chatcmpl");
    let choices = Choice::all(&params, tools.as_ref(), logprobs);
    let answers = Answers::start(&app, &record, vec![request]).await?;
    if params.stream {
        let stream = Stream {
            head,
            choices,
            with_usage: params.stream_usage,
        };
        let first = (0..stream.choices.len())
            .map(|i| {
                stream.chunk(
                    i,
                    json!({ "role": "assistant", "content": "" }),
                    Value::Null,
                    None,
                )
            })
            .collect();
        return Ok(events::response(answers, first, stream));
    }
    whole(head, choices, answers).await
}

/// A request, read.
struct Call {
    messages: Vec<Value>,
    variables: Map<String, Value>,
    params: Params,
    max_tokens: Option<u32>,
    tools: Option<Tools>,
    /// Log-probabilities of drawn tokens, and of so many others.
    logprobs: Option<u32>,
}

impl Call {
    fn parse(app: &App, mut fields: Fields) -> Result<Call, ApiError> {
        let messages = fields
            .list("messages")?
            .ok_or_else(|| ApiError::invalid("messages", "messages is missing"))?;
        let mut messages = prompt::messages(messages, &app.call_format)?;
        let tools = Tools::take(&mut fields, &app.call_format)?;
        if let Some(tools) = &tools
            && !tools.format.is_of_template()
        {
            prompt::describe(&mut messages, tools);
        }
        let limit = fields.integer("max_completion_tokens", 1..=i64::from(u32::MAX))?;
        let older = fields.integer("max_tokens", 1..=i64::from(u32::MAX))?;
        let wants = fields.boolean("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS)?;
        if top.is_some() && !wants {
            let message = "top_logprobs needs logprobs to be true";
            return Err(ApiError::invalid("top_logprobs", message));
        }
        let mut variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
        if let Some(effort) = fields.string("reasoning_effort")? {
            variables.insert("reasoning_effort".into(), effort.into());
        }
        text_only(&mut fields)?;
        fields.refuse("functions", "use tools")?;
        fields.refuse("function_call", "use tool_choice")?;
        fields.refuse("audio", "this model writes text only")?;
        fields.refuse("prediction", "use the server's --spec")?;
        fields.refuse("web_search_options", "this server searches nothing")?;
        let params = Params::take(&mut fields, app)?;
        fields.finish()?;
        Ok(Call {
            messages,
            variables,
            params,
            max_tokens: limit.or(older).map(|n| n as u32),
            tools,
            logprobs: wants.then_some(top.unwrap_or(0) as u32),
        })
    }

    /// What the engine is asked. Renders and tokenises.
    fn request(self, app: &App) -> Result<GenerateRequest, ApiError> {
        let mut chat = ChatRequest::new(self.messages, SystemTime::now());
        chat.variables = self.variables;
        if let Some(tools) = &self.tools
            && tools.format.is_of_template()
        {
            chat.tools = tools.tools.iter().map(|t| t.description.clone()).collect();
        }
        let prompt = app
            .runner
            .encode(&Input::Chat(chat))
            .map_err(|e| ApiError::from(e).about("messages"))?;
        app.check_prompt(prompt.len(), "messages")?;
        let mut request = self.params.request(prompt);
        request.max_tokens = self.max_tokens;
        request.logprobs = self.logprobs;
        request.grammar = match (&self.tools, self.params.shape) {
            (Some(tools), shape) => Some(tools.grammar(shape)?),
            (None, shape) => shape.map(|shape| shape.into_grammar()),
        };
        Ok(request)
    }
}

/// `modalities`: text is the only one.
fn text_only(fields: &mut Fields) -> Result<(), ApiError> {
    match fields
        .strings("modalities", 8)?
        .iter()
        .find(|m| *m != "text")
    {
        None => Ok(()),
        Some(other) => Err(ApiError::unsupported(
            "modalities",
            format!("modalities: {other:?} is not supported; this model writes text only"),
        )),
    }
}

/// One of the answers, as it comes.
struct Choice {
    parser: Option<CallParser>,
    with_logprobs: bool,
}

impl Choice {
    fn all(params: &Params, tools: Option<&Tools>, logprobs: Option<u32>) -> Vec<Choice> {
        let choice = || Choice {
            parser: tools.map(|tools| CallParser::new(tools.format)),
            with_logprobs: logprobs.is_some(),
        };
        (0..params.choices).map(|_| choice()).collect()
    }

    fn push(&mut self, text: String) -> Vec<Piece> {
        match &mut self.parser {
            Some(parser) => parser.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![Piece::Text(text)],
        }
    }

    fn finish(&mut self) -> Vec<Piece> {
        self.parser
            .as_mut()
            .map(CallParser::finish)
            .unwrap_or_default()
    }

    /// OpenAI's reason.
    fn reason(&self, reason: &'static str) -> &'static str {
        match &self.parser {
            Some(parser) if parser.calls() > 0 && reason == "stop" => "tool_calls",
            _ => reason,
        }
    }

    /// Of the tokens of a chunk; null where there are none to tell.
    fn logprobs(&self, tokens: &[TokenInfo]) -> Value {
        match self.with_logprobs && !tokens.is_empty() {
            true => logprobs::of_chat(tokens),
            false => Value::Null,
        }
    }
}

fn call_id() -> String {
    format!("call_{:032x}", random())
}

/// The answers in chunks.
struct Stream {
    head: Head,
    choices: Vec<Choice>,
    with_usage: bool,
}

impl Stream {
    fn chunk(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        });
        // OpenAI's chunks have a usage of null where the last one has it.
        let usage = self.with_usage.then_some(Value::Null);
        self.head.object(CHUNK, vec![choice], usage)
    }

    /// A chunk for each piece; the first has the log-probabilities, for pieces aren't made of whole tokens.
    fn pieces(&self, index: usize, pieces: Vec<Piece>, mut logprobs: Value) -> Vec<Value> {
        let mut chunks: Vec<Value> = pieces
            .into_iter()
            .map(|piece| {
                let delta = match piece {
                    Piece::Text(text) => json!({ "content": text }),
                    Piece::Call { index, name } => json!({ "tool_calls": [{
                        "index": index,
                        "id": call_id(),
                        "type": "function",
                        "function": { "name": name, "arguments": "" },
                    }]}),
                    Piece::Arguments { index, json } => json!({ "tool_calls": [{
                        "index": index,
                        "function": { "arguments": json },
                    }]}),
                };
                self.chunk(index, delta, std::mem::take(&mut logprobs), None)
            })
            .collect();
        if !logprobs.is_null() {
            chunks.push(self.chunk(index, json!({ "content": "" }), logprobs, None));
        }
        chunks
    }
}

const CHUNK: &str = "chat.completion.chunk";

impl Chunks for Stream {
    fn chunks(&mut self, news: News) -> Vec<Value> {
        match news {
            // Chats have no echo.
            News::Prompt { .. } => Vec::new(),
            News::More {
                choice,
                text,
                tokens,
            } => {
                let state = &mut self.choices[choice];
                let pieces = state.push(text);
                let logprobs = state.logprobs(&tokens);
                self.pieces(choice, pieces, logprobs)
            }
            News::End { choice, outcome } => {
                let state = &mut self.choices[choice];
                let rest = state.finish();
                let outcome = outcome.map(|reason| state.reason(reason));
                let mut chunks = self.pieces(choice, rest, Value::Null);
                chunks.push(match outcome {
                    Ok(reason) => self.chunk(choice, json!({}), Value::Null, Some(reason)),
                    Err(error) => error.to_json(),
                });
                chunks
            }
        }
    }

    fn last(&mut self, usage: Tokens) -> Vec<Value> {
        match self.with_usage {
            true => vec![self.head.object(CHUNK, Vec::new(), Some(usage.to_json()))],
            false => Vec::new(),
        }
    }
}

/// One object, once all answers have ended. The first error is the response.
async fn whole(
    head: Head,
    mut choices: Vec<Choice>,
    mut answers: Answers,
) -> Result<Response, ApiError> {
    let mut messages: Vec<Message> = choices.iter().map(|_| Message::default()).collect();
    while let Some(news) = answers.next().await {
        match news {
            News::Prompt { .. } => {}
            News::More {
                choice,
                text,
                tokens,
            } => {
                messages[choice].add(choices[choice].push(text));
                if choices[choice].with_logprobs {
                    messages[choice].tokens.extend(tokens);
                }
            }
            News::End { choice, outcome } => {
                messages[choice].add(choices[choice].finish());
                messages[choice].reason = choices[choice].reason(outcome?);
            }
        }
    }
    let list = messages
        .iter()
        .zip(&choices)
        .enumerate()
        .map(|(index, (message, choice))| {
            json!({
                "index": index,
                "message": message.to_json(),
                "logprobs": choice.with_logprobs.then(|| logprobs::of_chat(&message.tokens)),
                "finish_reason": message.reason,
            })
        })
        .collect();
    let usage = answers.usage().to_json();
    Ok(body::json(head.object(
        "chat.completion",
        list,
        Some(usage),
    )))
}

/// An answer as it is put together.
#[derive(Default)]
struct Message {
    text: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    tokens: Vec<TokenInfo>,
    reason: &'static str,
}

impl Message {
    fn add(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.text += &text,
                Piece::Call { name, .. } => self.calls.push((name, String::new())),
                Piece::Arguments { json, .. } => {
                    if let Some((_, arguments)) = self.calls.last_mut() {
                        *arguments += &json;
                    }
                }
            }
        }
    }

    fn to_json(&self) -> Value {
        let content = match self.text.is_empty() && !self.calls.is_empty() {
            true => Value::Null,
            false => self.text.as_str().into(),
        };
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
        if !self.calls.is_empty() {
            let call = |(name, arguments): &(String, String)| {
                json!({
                    "id": call_id(),
                    "type": "function",
                    "function": { "name": name, "arguments": arguments },
                })
            };
            message["tool_calls"] = self.calls.iter().map(call).collect();
        }
        message
    }
}

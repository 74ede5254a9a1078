//! `/v1/completions`: texts as they are, without the chat template.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{Answers, News, Tokens, aside};
use super::error::ApiError;
use super::events::{self, Chunks};
use super::fields::{Fields, expected};
use super::head::Head;
use super::params::{MAX_LOGPROBS, Params, token_ids};
use super::track::Record;
use super::{App, body, logprobs};
use crate::runner::{GenerateRequest, TokenInfo};
use crate::tokenizer::EncodeOptions;

/// Most prompts of a request.
const MAX_PROMPTS: usize = 256;
/// Most answers of a request.
const MAX_ANSWERS: usize = 512;
/// OpenAI's default.
const MAX_TOKENS: u32 = 16;

pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::read(&app, request).await?;
    let call = Call::parse(&app, Fields::parse(&body)?)?;
    let (params, with_logprobs) = (call.params.clone(), call.logprobs.is_some());
    let (requests, echoes) = {
        let app = app.clone();
        aside(move || call.requests(&app)).await??
    };
    let answers = Answers::start(&app, &record, requests).await?;
    let choices = echoes.into_iter().flat_map(|echo| {
        let choice = Choice {
            offset: echo.chars().count(),
            text: echo,
            tokens: Vec::new(),
            with_logprobs,
            reason: "",
        };
        std::iter::repeat_n(choice, params.choices as usize)
    });
    let completion = Completion {
        head: Head::new(&app, "cmpl"),
        choices: choices.collect(),
        with_usage: params.stream_usage,
    };
    if params.stream {
        let first = completion.echoes();
        return Ok(events::response(answers, first, completion));
    }
    completion.whole(answers).await
}

/// A prompt, as requests give it.
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A request, read.
struct Call {
    prompts: Vec<Prompt>,
    params: Params,
    max_tokens: u32,
    logprobs: Option<u32>,
    /// The answer begins with the prompt.
    echo: bool,
    /// Control tokens that the prompt spells are control tokens.
    parse_special: bool,
}

impl Call {
    fn parse(app: &App, mut fields: Fields) -> Result<Call, ApiError> {
        let prompts = prompts(fields.take("prompt"))?;
        let max_tokens = fields.integer("max_tokens", 1..=i64::from(u32::MAX))?;
        let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let parse_special = fields.boolean("parse_special")?.unwrap_or(false);
        fields.refuse("suffix", "this model writes on from a text, not into one")?;
        let best_of = fields.integer("best_of", 1..=i64::from(u32::MAX))?;
        let params = Params::take(&mut fields, app)?;
        fields.finish()?;
        if best_of.is_some_and(|best| best != i64::from(params.choices)) {
            let message = "best_of other than n is not supported: all answers are given";
            return Err(ApiError::unsupported("best_of", message));
        }
        let answers = prompts.len() * params.choices as usize;
        if answers > MAX_ANSWERS {
            let message =
                format!("prompts times n are {answers} answers, and may be {MAX_ANSWERS}");
            return Err(ApiError::invalid("n", message));
        }
        if echo && logprobs.is_some() {
            let message =
                "echo with logprobs is not supported: a prompt's tokens have no log-probabilities";
            return Err(ApiError::unsupported("echo", message));
        }
        Ok(Call {
            prompts,
            params,
            max_tokens: max_tokens.map_or(MAX_TOKENS, |n| n as u32),
            logprobs: logprobs.map(|n| n as u32),
            echo,
            parse_special,
        })
    }

    /// What the engine is asked, and what the answers begin with. Tokenises.
    fn requests(self, app: &App) -> Result<(Vec<GenerateRequest>, Vec<String>), ApiError> {
        let tokenizer = app.runner.tokenizer();
        let options = EncodeOptions {
            parse_special: self.parse_special,
            add_special: true,
        };
        let grammar = self.params.shape.clone().map(|shape| shape.into_grammar());
        let mut requests = Vec::with_capacity(self.prompts.len());
        let mut echoes = Vec::with_capacity(self.prompts.len());
        for prompt in self.prompts {
            let (tokens, text) = match prompt {
                Prompt::Text(text) => (tokenizer.encode(&text, options), text),
                Prompt::Tokens(tokens) => {
                    let text = tokenizer.decode(&tokens, false);
                    let text = text.map_err(|e| ApiError::from(e).about("prompt"))?;
                    (tokens, text)
                }
            };
            app.check_prompt(tokens.len(), "prompt")?;
            let mut request = self.params.request(tokens);
            request.max_tokens = Some(self.max_tokens);
            request.logprobs = self.logprobs;
            request.grammar = grammar.clone();
            requests.push(request);
            echoes.push(if self.echo { text } else { String::new() });
        }
        Ok((requests, echoes))
    }
}

/// A text, texts, token ids, or lists of those.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    const PARAM: &str = "prompt";
    let items = match value {
        None => return Err(ApiError::invalid(PARAM, "prompt is missing")),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(expected("a string or a list", PARAM, &other)),
    };
    if items.is_empty() {
        return Err(ApiError::invalid(PARAM, "prompt is an empty list"));
    }
    if items[0].is_number() {
        return Ok(vec![Prompt::Tokens(token_ids(&items, PARAM)?)]);
    }
    if items.len() > MAX_PROMPTS {
        let message = format!(
            "there are {} prompts, and may be {MAX_PROMPTS}",
            items.len()
        );
        return Err(ApiError::invalid(PARAM, message));
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(ids) => Ok(Prompt::Tokens(token_ids(&ids, PARAM)?)),
            other => Err(expected("a list of strings or of token ids", PARAM, &other)),
        })
        .collect()
}

/// One of the answers.
#[derive(Clone)]
struct Choice {
    /// The echo; of a whole completion, the answer too.
    text: String,
    /// Where the answer's next token begins, in characters.
    offset: usize,
    tokens: Vec<TokenInfo>,
    with_logprobs: bool,
    reason: &'static str,
}

/// A response.
struct Completion {
    head: Head,
    choices: Vec<Choice>,
    with_usage: bool,
}

impl Completion {
    fn object(&self, choices: Vec<Value>, usage: Option<Value>) -> Value {
        self.head.object("text_completion", choices, usage)
    }

    fn chunk(&self, index: usize, text: &str, logprobs: Value, reason: Option<&str>) -> Value {
        let choice = choice_json(index, text, logprobs, reason);
        self.object(vec![choice], self.with_usage.then_some(Value::Null))
    }

    /// What a stream begins with.
    fn echoes(&self) -> Vec<Value> {
        let echoes = self.choices.iter().enumerate();
        echoes
            .filter(|(_, choice)| !choice.text.is_empty())
            .map(|(i, choice)| self.chunk(i, &choice.text, Value::Null, None))
            .collect()
    }

    async fn whole(mut self, mut answers: Answers) -> Result<Response, ApiError> {
        while let Some(news) = answers.next().await {
            match news {
                News::More {
                    choice,
                    text,
                    tokens,
                } => {
                    let choice = &mut self.choices[choice];
                    choice.text += &text;
                    if choice.with_logprobs {
                        choice.tokens.extend(tokens);
                    }
                }
                News::End { choice, outcome } => self.choices[choice].reason = outcome?,
            }
        }
        let choices = self.choices.iter().enumerate().map(|(i, choice)| {
            let logprobs = match choice.with_logprobs {
                true => logprobs::of_completion(&choice.tokens, choice.offset),
                false => Value::Null,
            };
            choice_json(i, &choice.text, logprobs, Some(choice.reason))
        });
        let usage = answers.usage().to_json();
        Ok(body::json(self.object(choices.collect(), Some(usage))))
    }
}

fn choice_json(index: usize, text: &str, logprobs: Value, reason: Option<&str>) -> Value {
    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
}

impl Chunks for Completion {
    fn chunks(&mut self, news: News) -> Vec<Value> {
        match news {
            News::More {
                choice: index,
                text,
                tokens,
            } => {
                let choice = &mut self.choices[index];
                let logprobs = match choice.with_logprobs && !tokens.is_empty() {
                    true => logprobs::of_completion(&tokens, choice.offset),
                    false => Value::Null,
                };
                let spelled = tokens
                    .iter()
                    .map(|t| String::from_utf8_lossy(&t.bytes).chars().count());
                choice.offset += spelled.sum::<usize>();
                match text.is_empty() && logprobs.is_null() {
                    true => Vec::new(),
                    false => vec![self.chunk(index, &text, logprobs, None)],
                }
            }
            News::End { choice, outcome } => vec![match outcome {
                Ok(reason) => self.chunk(choice, "", Value::Null, Some(reason)),
                Err(error) => error.to_json(),
            }],
        }
    }

    fn last(&mut self, usage: Tokens) -> Vec<Value> {
        match self.with_usage {
            true => vec![self.object(Vec::new(), Some(usage.to_json()))],
            false => Vec::new(),
        }
    }
}

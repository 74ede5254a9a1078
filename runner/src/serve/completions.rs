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
use super::params::{MAX_CHOICES, MAX_LOGPROBS, Params, token_ids};
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
    let (stream, stream_usage) = (call.params.stream, call.params.stream_usage);
    let (drawn, given) = (call.best_of as usize, call.params.choices as usize);
    let (with_logprobs, echo_waits) = (call.logprobs.is_some(), call.scores_prompt());
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
            likelihood: Mean::default(),
            reason: "",
        };
        std::iter::repeat_n(choice, drawn)
    });
    let completion = Completion {
        head: Head::new(&app, "cmpl"),
        choices: choices.collect(),
        drawn,
        given,
        with_usage: stream_usage,
        app,
    };
    if stream {
        let first = match echo_waits {
            true => Vec::new(),
            false => completion.echoes(),
        };
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
    /// Answers that are drawn for each prompt; those are given that the model finds likeliest.
    best_of: u32,
    /// Control tokens that the prompt spells are control tokens.
    parse_special: bool,
}

impl Call {
    fn parse(app: &App, mut fields: Fields) -> Result<Call, ApiError> {
        let prompts = prompts(fields.take("prompt"))?;
        let max_tokens = fields.integer("max_tokens", 0..=i64::from(u32::MAX))?;
        let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let parse_special = fields.boolean("parse_special")?.unwrap_or(false);
        fields.refuse("suffix", "this model writes on from a text, not into one")?;
        let best_of = fields.integer("best_of", 1..=MAX_CHOICES)?;
        let params = Params::take(&mut fields, app)?;
        fields.finish()?;
        if max_tokens == Some(0) && !echo {
            let message = "max_tokens is 0, which leaves nothing to give without echo";
            return Err(ApiError::invalid("max_tokens", message));
        }
        let best_of = best_of.map_or(params.choices, |best| best as u32);
        if best_of < params.choices {
            let message = format!("best_of is {best_of}, and n {} of them", params.choices);
            return Err(ApiError::invalid("best_of", message));
        }
        if params.stream && best_of > params.choices {
            let message = "which answers are the best is known at their end: best_of above n and stream exclude each other";
            return Err(ApiError::invalid("best_of", message));
        }
        let answers = prompts.len() * best_of as usize;
        if answers > MAX_ANSWERS {
            let message = format!(
                "prompts times n or best_of are {answers} answers, and may be {MAX_ANSWERS}"
            );
            return Err(ApiError::invalid("n", message));
        }
        Ok(Call {
            prompts,
            params,
            max_tokens: max_tokens.map_or(MAX_TOKENS, |n| n as u32),
            logprobs: logprobs.map(|n| n as u32),
            echo,
            best_of,
            parse_special,
        })
    }

    /// Whether the prompt's tokens are told with their log-probabilities.
    fn scores_prompt(&self) -> bool {
        self.echo && self.logprobs.is_some()
    }

    /// What the engine is asked, and what the answers begin with. Tokenises.
    fn requests(self, app: &App) -> Result<(Vec<GenerateRequest>, Vec<String>), ApiError> {
        let tokenizer = app.runner.tokenizer();
        let options = EncodeOptions {
            parse_special: self.parse_special,
            add_special: true,
        };
        let scored = self.logprobs.filter(|_| self.scores_prompt());
        let judged = (self.best_of > self.params.choices).then_some(0);
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
            request.choices = self.best_of;
            request.logprobs = self.logprobs.or(judged);
            request.prompt_logprobs = scored;
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
    /// Where the next token begins that is told, in characters.
    offset: usize,
    tokens: Vec<TokenInfo>,
    with_logprobs: bool,
    /// Of the answer's tokens.
    likelihood: Mean,
    reason: &'static str,
}

/// The mean of log-probabilities.
#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, tokens: &[TokenInfo]) {
        for logprob in tokens.iter().filter_map(|token| token.logprob) {
            self.sum += f64::from(logprob);
            self.count += 1;
        }
    }

    /// An answer without a token was as likely as its end alone, which nobody told.
    fn value(self) -> f64 {
        self.sum / f64::from(self.count.max(1))
    }
}

/// A response.
struct Completion {
    app: Arc<App>,
    head: Head,
    choices: Vec<Choice>,
    /// Choices of a prompt that are drawn, and those that are given.
    drawn: usize,
    given: usize,
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

    /// The choices of a prompt.
    fn choices_of(&self, prompt: usize) -> std::ops::Range<usize> {
        prompt * self.drawn..(prompt + 1) * self.drawn
    }

    /// Of each prompt's choices the likeliest by their tokens' mean, likeliest first; all, as they are, where no more were drawn.
    fn best(&self) -> Vec<&Choice> {
        let mut best = Vec::new();
        for of_prompt in self.choices.chunks(self.drawn) {
            let mut order: Vec<&Choice> = of_prompt.iter().collect();
            if self.drawn > self.given {
                order.sort_by(|a, b| b.likelihood.value().total_cmp(&a.likelihood.value()));
            }
            best.extend(order.into_iter().take(self.given));
        }
        best
    }

    async fn whole(mut self, mut answers: Answers) -> Result<Response, ApiError> {
        while let Some(news) = answers.next().await {
            match news {
                News::Prompt { prompt, tokens } => {
                    for index in self.choices_of(prompt) {
                        let choice = &mut self.choices[index];
                        (choice.tokens, choice.offset) = (tokens.clone(), 0);
                    }
                }
                News::More {
                    choice,
                    text,
                    tokens,
                } => {
                    let choice = &mut self.choices[choice];
                    choice.text += &text;
                    choice.likelihood.add(&tokens);
                    if choice.with_logprobs {
                        choice.tokens.extend(tokens);
                    }
                }
                News::End { choice, outcome } => self.choices[choice].reason = outcome?,
            }
        }
        let tokenizer = self.app.runner.tokenizer();
        let choices = self.best().into_iter().enumerate().map(|(i, choice)| {
            let logprobs = match choice.with_logprobs {
                true => logprobs::of_completion(tokenizer, &choice.tokens, choice.offset),
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
            News::Prompt { prompt, tokens } => {
                let tokenizer = self.app.runner.tokenizer();
                let logprobs = logprobs::of_completion(tokenizer, &tokens, 0);
                let echo = |i| self.chunk(i, &self.choices[i].text, logprobs.clone(), None);
                self.choices_of(prompt).map(echo).collect()
            }
            News::More {
                choice: index,
                text,
                tokens,
            } => {
                let tokenizer = self.app.runner.tokenizer();
                let choice = &mut self.choices[index];
                let logprobs = match choice.with_logprobs && !tokens.is_empty() {
                    true => logprobs::of_completion(tokenizer, &tokens, choice.offset),
                    false => Value::Null,
                };
                let widths = tokens.iter().map(|t| logprobs::width(tokenizer, t));
                choice.offset += widths.sum::<usize>();
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

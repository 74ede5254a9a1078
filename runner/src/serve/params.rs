//! The fields that chats and plain completions share: how to draw, when to stop, what to tell.

use std::time::Duration;

use super::App;
use super::error::ApiError;
use super::fields::{Fields, expected};
use super::tools::Shape;
use crate::device::SampleParams;
use crate::runner::{GenerateRequest, Input};

/// Most answers to a prompt.
pub const MAX_CHOICES: i64 = 128;
/// Most stop strings.
const MAX_STOPS: usize = 16;
/// Most log-probabilities beside the drawn token's.
pub const MAX_LOGPROBS: i64 = 20;
/// Most biased tokens.
const MAX_BIASES: usize = 1024;

/// What OpenAI's clients may send and this server has no use for: whom a request is for, where it is kept, how it is billed.
const IGNORED: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "verbosity",
];

/// How to generate.
#[derive(Clone, Debug)]
pub struct Params {
    pub sampling: SampleParams,
    pub choices: u32,
    pub stop: Vec<String>,
    pub ignore_eos: bool,
    pub bias: Vec<(u32, f32)>,
    pub timeout: Option<Duration>,
    pub stream: bool,
    /// A last event of the stream tells the usage.
    pub stream_usage: bool,
    /// Grammar of the answer's text.
    pub shape: Option<Shape>,
}

impl Params {
    /// Takes them out of a request to the model of `app`.
    pub fn take(fields: &mut Fields, app: &App) -> Result<Params, ApiError> {
        check_model(fields, app)?;
        fields.ignore(&IGNORED);
        let choices = fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1);
        let stream = fields.boolean("stream")?.unwrap_or(false);
        Ok(Params {
            sampling: sampling(fields)?,
            choices: choices as u32,
            stop: stops(fields)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            bias: biases(fields)?,
            timeout: timeout(fields, app)?,
            stream,
            stream_usage: stream_usage(fields, stream)?,
            shape: shape(fields)?,
        })
    }

    /// A request with a prompt of these tokens.
    pub fn request(&self, prompt: Vec<u32>) -> GenerateRequest {
        let mut request = GenerateRequest::new(Input::Tokens(prompt));
        request.sampling = self.sampling.clone();
        request.choices = self.choices;
        request.stop = self.stop.clone();
        request.ignore_eos = self.ignore_eos;
        request.bias = self.bias.clone();
        request.timeout = self.timeout;
        request
    }
}

/// The request may name the model, and then it must be ours.
pub fn check_model(fields: &mut Fields, app: &App) -> Result<(), ApiError> {
    let served = &app.options.model;
    match fields.string("model")? {
        Some(asked) if asked != *served => Err(ApiError::no_such_model(&asked, served)),
        _ => Ok(()),
    }
}

/// OpenAI's defaults: the model's own distribution.
fn sampling(fields: &mut Fields) -> Result<SampleParams, ApiError> {
    let mut sampling = SampleParams::default();
    let mut set = |to: &mut f32, name, range| -> Result<(), ApiError> {
        if let Some(value) = fields.number(name, range)? {
            *to = value;
        }
        Ok(())
    };
    const LEAST: f64 = 1e-6;
    set(&mut sampling.temperature, "temperature", 0.0..=100.0)?;
    set(&mut sampling.top_p, "top_p", 0.0..=1.0)?;
    set(&mut sampling.min_p, "min_p", 0.0..=1.0)?;
    set(&mut sampling.typical_p, "typical_p", LEAST..=1.0)?;
    let penalties = &mut sampling.penalties;
    set(&mut penalties.repeat, "repeat_penalty", 1e-3..=1e3)?;
    set(&mut penalties.frequency, "frequency_penalty", -2.0..=2.0)?;
    set(&mut penalties.presence, "presence_penalty", -2.0..=2.0)?;
    // OpenAI allows 0, which leaves the likeliest token.
    sampling.top_p = sampling.top_p.max(LEAST as f32);
    if let Some(n) = fields.integer("repeat_last_n", -1..=i64::from(u32::MAX))? {
        sampling.penalties.last_n = u32::try_from(n).unwrap_or(u32::MAX);
    }
    if let Some(k) = fields.integer("top_k", -1..=i64::from(u32::MAX))? {
        // -1 is how other servers spell "all".
        sampling.top_k = u32::try_from(k).unwrap_or(0);
    }
    sampling.seed = match fields.integer("seed", i64::MIN..=i64::MAX)? {
        Some(seed) => seed as u64,
        None => super::random() as u64,
    };
    Ok(sampling)
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stop = fields.strings("stop", MAX_STOPS)?;
    match stop.iter().any(String::is_empty) {
        true => Err(ApiError::invalid("stop", "a stop string is empty")),
        false => Ok(stop),
    }
}

/// `{"1234": -100}`: token ids as strings, for JSON has no other keys.
fn biases(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let entries = fields.object("logit_bias")?.unwrap_or_default();
    if entries.len() > MAX_BIASES {
        return Err(ApiError::invalid(
            "logit_bias",
            format!(
                "logit_bias has {} tokens, and may have {MAX_BIASES}",
                entries.len()
            ),
        ));
    }
    let mut biases = Vec::with_capacity(entries.len());
    for (id, bias) in entries {
        let id = id.parse::<u32>().map_err(|_| {
            ApiError::invalid("logit_bias", format!("logit_bias: {id:?} is no token id"))
        })?;
        let value = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b));
        let value = value.ok_or_else(|| {
            ApiError::invalid(
                "logit_bias",
                format!("logit_bias: the bias of token {id} must be a number from -100 to 100"),
            )
        })?;
        biases.push((id, value as f32));
    }
    Ok(biases)
}

/// The shorter one of the request's `timeout` in seconds and the server's.
fn timeout(fields: &mut Fields, app: &App) -> Result<Option<Duration>, ApiError> {
    let asked = fields.number("timeout", 1e-3..=1e6)?;
    let asked = asked.map(Duration::from_secs_f32);
    Ok(asked.into_iter().chain(app.options.timeout).min())
}

fn stream_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = fields.fields("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        return Err(ApiError::invalid(
            "stream_options",
            "stream_options are for streams; set stream to true, or leave them out",
        ));
    }
    let usage = options.boolean("include_usage")?.unwrap_or(false);
    options.ignore(&["include_obfuscation"]);
    options.finish()?;
    Ok(usage)
}

/// `response_format`.
fn shape(fields: &mut Fields) -> Result<Option<Shape>, ApiError> {
    let Some(mut format) = fields.fields("response_format")? else {
        return Ok(None);
    };
    let kind = format.string("type")?.unwrap_or_default();
    let shape = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Shape::Schema(serde_json::json!({ "type": "object" }))),
        "json_schema" => {
            let mut schema = format
                .fields("json_schema")?
                .ok_or_else(|| missing("json_schema"))?;
            schema.ignore(&["name", "description", "strict"]);
            let value = schema
                .object("schema")?
                .ok_or_else(|| missing("json_schema.schema"))?;
            schema.finish()?;
            Some(Shape::Schema(value.into()))
        }
        "regex" => Some(Shape::Regex(
            format.string("regex")?.ok_or_else(|| missing("regex"))?,
        )),
        "lark" => Some(Shape::Lark(
            format.string("lark")?.ok_or_else(|| missing("lark"))?,
        )),
        other => {
            let what = "text, json_object, json_schema, regex or lark";
            return Err(ApiError::invalid(
                "response_format.type",
                format!("response_format.type is {other:?}, and must be {what}"),
            ));
        }
    };
    format.finish()?;
    Ok(shape)
}

fn missing(field: &str) -> ApiError {
    let path = format!("response_format.{field}");
    ApiError::invalid(&path, format!("{path} is missing"))
}

/// A list of token ids.
pub fn token_ids(items: &[serde_json::Value], path: &str) -> Result<Vec<u32>, ApiError> {
    items
        .iter()
        .map(|item| {
            let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| expected("a list of token ids", path, item))
        })
        .collect()
}

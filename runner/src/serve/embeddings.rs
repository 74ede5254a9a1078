//! `/v1/embeddings`: what texts mean to the model, as vectors of length 1.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::error::ApiError;
use super::fields::{Fields, expected};
use super::params::{check_model, token_ids};
use super::track::Record;
use super::{App, body};
use crate::runner::{Embedding, Input};

/// Most inputs of a request, as OpenAI has it.
const MAX_INPUTS: usize = 2048;
/// Inputs of a request that are computed together.
const TOGETHER: usize = 16;

pub async fn embed(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::read(&app, request).await?;
    let call = Call::parse(&app, Fields::parse(&body)?)?;
    let embeddings = all(&app, call.inputs).await?;
    let tokens: usize = embeddings.iter().map(|e| e.tokens).sum();
    record.tell(|story| story.prompt_tokens = tokens as u32);
    let data = embeddings.iter().enumerate().map(|(index, embedding)| {
        let values = match call.as_base64 {
            true => base64(&embedding.values).into(),
            false => json!(embedding.values),
        };
        json!({ "object": "embedding", "index": index, "embedding": values })
    });
    Ok(body::json(json!({
        "object": "list",
        "data": data.collect::<Vec<_>>(),
        "model": app.options.model,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })))
}

/// A request, read.
struct Call {
    inputs: Vec<Input>,
    as_base64: bool,
}

impl Call {
    fn parse(app: &App, mut fields: Fields) -> Result<Call, ApiError> {
        check_model(&mut fields, app)?;
        fields.ignore(&["user"]);
        let inputs = inputs(fields.take("input"))?;
        let format = fields.string("encoding_format")?;
        let as_base64 = match format.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(other) => {
                let message = format!("encoding_format is {other:?}, and must be float or base64");
                return Err(ApiError::invalid("encoding_format", message));
            }
        };
        let size = i64::from(app.runner.model().embedding);
        if fields
            .integer("dimensions", 1..=i64::MAX)?
            .is_some_and(|n| n != size)
        {
            let message = format!("dimensions other than the model's {size} are not supported");
            return Err(ApiError::unsupported("dimensions", message));
        }
        fields.finish()?;
        Ok(Call { inputs, as_base64 })
    }
}

/// A text, texts, token ids, or lists of those.
fn inputs(value: Option<Value>) -> Result<Vec<Input>, ApiError> {
    const PARAM: &str = "input";
    let items = match value {
        None => return Err(ApiError::invalid(PARAM, "input is missing")),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => {
            return Ok(vec![Input::Tokens(token_ids(&items, PARAM)?)]);
        }
        Some(Value::Array(items)) => items,
        Some(other) => return Err(expected("a string or a list", PARAM, &other)),
    };
    if items.is_empty() || items.len() > MAX_INPUTS {
        let message = format!(
            "input has {} entries, and may have 1 to {MAX_INPUTS}",
            items.len()
        );
        return Err(ApiError::invalid(PARAM, message));
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(text) if text.is_empty() => {
                Err(ApiError::invalid(PARAM, "an input is empty"))
            }
            Value::String(text) => Ok(Input::Text(text)),
            Value::Array(ids) => Ok(Input::Tokens(token_ids(&ids, PARAM)?)),
            other => Err(expected("a list of strings or of token ids", PARAM, &other)),
        })
        .collect()
}

/// The embeddings of all inputs, in their order.
async fn all(app: &Arc<App>, inputs: Vec<Input>) -> Result<Vec<Embedding>, ApiError> {
    let mut found: Vec<Option<Embedding>> = inputs.iter().map(|_| None).collect();
    let mut waiting = inputs.into_iter().enumerate();
    let mut running = JoinSet::new();
    loop {
        while running.len() < TOGETHER
            && let Some((index, input)) = waiting.next()
        {
            let app = app.clone();
            running.spawn_blocking(move || (index, one(&app, input)));
        }
        match running.join_next().await {
            None => break,
            Some(Ok((index, embedding))) => found[index] = Some(embedding?),
            Some(Err(e)) => return Err(ApiError::internal(format!("a helper thread failed: {e}"))),
        }
    }
    Ok(found.into_iter().flatten().collect())
}

fn one(app: &App, input: Input) -> Result<Embedding, ApiError> {
    let about = |e| ApiError::from(e).about("input");
    let tokens = app.runner.encode(&input).map_err(about)?;
    app.check_prompt(tokens.len(), "input")?;
    app.runner.embed(tokens).map_err(about)
}

/// The values as little-endian f32, in base64 with padding.
fn base64(values: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, &b| bits << 8 | u32::from(b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            match i <= group.len() {
                true => text.push(char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded() {
        assert_eq!(base64(&[]), "");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[1.0, -2.5, 0.0]), "AACAPwAAIMAAAAAA");
    }
}

//! `/tokenize` and `/detokenize`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::json;

use super::answer::aside;
use super::error::ApiError;
use super::fields::Fields;
use super::params::{check_model, token_ids};
use super::tools::prompt;
use super::{App, body};
use crate::chat::ChatRequest;
use crate::runner::Input;
use crate::tokenizer::EncodeOptions;

/// `{"content": TEXT, "add_special": false, "parse_special": true}`, or a chat's `messages`.
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let body = body::read(&app, request).await?;
    let mut fields = Fields::parse(&body)?;
    check_model(&mut fields, &app)?;
    let text = fields.string("content")?;
    let messages = fields.list("messages")?;
    let options = EncodeOptions {
        add_special: fields.boolean("add_special")?.unwrap_or(false),
        parse_special: fields.boolean("parse_special")?.unwrap_or(true),
    };
    fields.finish()?;
    let tokens = match (text, messages) {
        (Some(text), None) => {
            aside(move || Ok(app.runner.tokenizer().encode(&text, options))).await?
        }
        (None, Some(messages)) => {
            let messages = prompt::messages(messages, &app.call_format)?;
            let chat = Input::Chat(ChatRequest::new(messages, SystemTime::now()));
            aside(move || app.runner.encode(&chat)).await?
        }
        _ => {
            return Err(ApiError::invalid(
                "content",
                "give either content or messages",
            ));
        }
    };
    let tokens = tokens?;
    Ok(body::json(
        json!({ "tokens": tokens, "count": tokens.len() }),
    ))
}

/// `{"tokens": [ID, …]}`.
pub async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::read(&app, request).await?;
    let mut fields = Fields::parse(&body)?;
    check_model(&mut fields, &app)?;
    let tokens = fields.list("tokens")?;
    fields.finish()?;
    let tokens = tokens.ok_or_else(|| ApiError::invalid("tokens", "tokens is missing"))?;
    let tokens = token_ids(&tokens, "tokens")?;
    let text = app.runner.tokenizer().decode(&tokens, true);
    let text = text.map_err(|e| ApiError::from(e).about("tokens"))?;
    Ok(body::json(json!({ "content": text })))
}

//! `/v1/models`: the one that is served.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{App, body};

pub async fn list(State(app): State<Arc<App>>) -> Response {
    body::json(json!({ "object": "list", "data": [card(&app)] }))
}

pub async fn one(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Response, ApiError> {
    match model == app.options.model {
        true => Ok(body::json(card(&app))),
        false => Err(ApiError::no_such_model(&model, &app.options.model)),
    }
}

fn card(app: &App) -> Value {
    let model = app.runner.model();
    json!({
        "id": app.options.model,
        "object": "model",
        "created": app.started,
        "owned_by": "fastrun",
        "meta": {
            "name": model.name,
            "architecture": model.architecture,
            "quantisation": model.quantisation,
            "parameters": model.parameters,
            "context": model.context,
            "vocab": model.vocab,
            "embedding": model.embedding,
            "chat": model.chat,
            "bundle": model.root,
        },
    })
}

//! Bodies of requests and responses.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use super::App;
use super::error::ApiError;

/// Most time that a body may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(60);

/// How much of a body that is too long is read nevertheless, and for how long: a client that is still sending would not see
/// the answer.
const DISCARDED: usize = 64 << 20;
const DISCARDING: Duration = Duration::from_secs(5);

/// A request's whole body.
pub async fn read(app: &App, request: Request) -> Result<Bytes, ApiError> {
    let most = app.options.max_body;
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    let awaits_leave = request.headers().contains_key(header::EXPECT);
    let mut body = request.into_body();
    if length.is_some_and(|length| length > most) {
        if !awaits_leave {
            discard(body).await;
        }
        return Err(ApiError::body_too_large(most));
    }
    let limited = Limited::new(&mut body, most);
    match tokio::time::timeout(ARRIVAL, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard(body).await;
            Err(ApiError::body_too_large(most))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(format!(
            "the body broke off: {error}"
        ))),
        Err(_) => Err(ApiError::bad_request(format!(
            "the body did not arrive within {} s",
            ARRIVAL.as_secs()
        ))),
    }
}

async fn discard(body: Body) {
    let mut body = Limited::new(body, DISCARDED);
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    // Whatever is left then is the client's affair.
    _ = tokio::time::timeout(DISCARDING, all).await;
}

/// A response of JSON.
pub fn json(value: Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

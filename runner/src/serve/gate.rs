//! What every request passes: who may call, from which pages, and how many at a time.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::error::ApiError;
use super::track::Guard;

/// The endpoints, as metrics name them.
const ENDPOINTS: [&str; 10] = [
    "/",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/health",
    "/health/live",
    "/metrics",
];

/// Checks a request, hands it on, and follows it to its end.
pub async fn pass(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let endpoint = match path.starts_with("/v1/models/") {
        true => "/v1/models",
        false => ENDPOINTS
            .into_iter()
            .find(|&e| e == path)
            .unwrap_or("other"),
    };
    let mut guard = Guard::new(app.clone(), request.method().clone(), path, endpoint);
    let origin = allowed_origin(&app.options.cors, request.headers());
    let mut response = if is_preflight(&request) {
        StatusCode::NO_CONTENT.into_response()
    } else {
        match check(&app, &request, endpoint, &mut guard) {
            Err(error) => error.into_response(),
            Ok(()) => {
                request.extensions_mut().insert(guard.record.clone());
                next.run(request).await
            }
        }
    };
    let headers = response.headers_mut();
    if let Some(origin) = origin {
        allow(origin, headers);
    }
    if app.is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    guard.follow(response)
}

/// The key, then the room for what computes.
fn check(app: &App, request: &Request, endpoint: &str, guard: &mut Guard) -> Result<(), ApiError> {
    if matches!(endpoint, "/" | "/health" | "/health/live" | "/metrics") {
        return Ok(());
    }
    check_key(&app.options.api_keys, request.headers())?;
    if request.method() == Method::POST {
        guard.permit = Some(app.admit()?);
    }
    Ok(())
}

fn check_key(keys: &[String], headers: &HeaderMap) -> Result<(), ApiError> {
    if keys.is_empty() {
        return Ok(());
    }
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, key)| key.trim_ascii());
    match given {
        None => Err(ApiError::unauthorized(
            "this server wants an API key, in the header `Authorization: Bearer KEY`",
        )),
        Some(given) => {
            // Without an end at the first match, and without telling how much of a key is right.
            let known = keys
                .iter()
                .fold(false, |known, key| known | same(key.as_bytes(), given));
            match known {
                true => Ok(()),
                false => Err(ApiError::unauthorized(
                    "the API key is not one of this server's",
                )),
            }
        }
    }
}

/// Compares in a time that doesn't depend on where keys of one length differ.
fn same(key: &[u8], given: &[u8]) -> bool {
    let difference = key
        .iter()
        .zip(given)
        .fold(0, |d, (a, b)| std::hint::black_box(d | (a ^ b)));
    key.len() == given.len() && difference == 0
}

/// The origin that a response may name as allowed.
fn allowed_origin(cors: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    if cors.iter().any(|allowed| allowed == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    let known = cors
        .iter()
        .any(|allowed| allowed.as_bytes() == origin.as_bytes());
    known.then(|| origin.clone())
}

/// A browser's question whether a page may call.
fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn allow(origin: HeaderValue, headers: &mut HeaderMap) {
    let mut set = |name: HeaderName, value| headers.insert(name, value);
    set(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    set(header::VARY, HeaderValue::from_static("Origin"));
    set(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, OPTIONS"),
    );
    set(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Authorization, Content-Type"),
    );
    set(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("600"),
    );
}

pub async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::no_such_path(method.as_str(), uri.path())
}

pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(method.as_str(), uri.path())
}

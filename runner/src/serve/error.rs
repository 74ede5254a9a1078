//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::Error;

/// What a client did wrong, or why it isn't served.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    code: Option<&'static str>,
    /// The field of the request that is at fault.
    param: Option<String>,
    message: String,
    /// Seconds after which it may work.
    retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry_after: None,
        }
    }

    fn code(self, code: &'static str) -> ApiError {
        ApiError {
            code: Some(code),
            ..self
        }
    }

    fn retry_after(self, seconds: u32) -> ApiError {
        ApiError {
            retry_after: Some(seconds),
            ..self
        }
    }

    /// The body is no request.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// A field has a wrong value.
    pub fn invalid(param: &str, message: impl Into<String>) -> ApiError {
        ApiError::bad_request(message).about(param)
    }

    /// A field or a value of it that OpenAI knows and this server doesn't do.
    pub fn unsupported(param: &str, message: impl Into<String>) -> ApiError {
        ApiError::invalid(param, message).code("unsupported")
    }

    /// Says which field is at fault, where nothing did yet.
    pub fn about(mut self, param: &str) -> ApiError {
        self.param.get_or_insert_with(|| param.to_owned());
        self
    }

    pub fn prompt_too_long(param: &str, message: impl Into<String>) -> ApiError {
        ApiError::invalid(param, message).code("context_length_exceeded")
    }

    pub fn unauthorized(message: &str) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, INVALID, message).code("invalid_api_key")
    }

    pub fn no_such_path(method: &str, path: &str) -> ApiError {
        let message = format!("unknown path: {method} {path}; see the README for what there is");
        ApiError::new(StatusCode::NOT_FOUND, INVALID, message).code("unknown_url")
    }

    pub fn no_such_model(asked: &str, served: &str) -> ApiError {
        let message =
            format!("the model '{asked}' does not exist here; this server has '{served}'");
        ApiError::new(StatusCode::NOT_FOUND, INVALID, message)
            .code("model_not_found")
            .about("model")
    }

    pub fn method_not_allowed(method: &str, path: &str) -> ApiError {
        let message = format!("{path} does not take {method}; the Allow header says what it takes");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, message).code("method_not_allowed")
    }

    pub fn body_too_large(limit: usize) -> ApiError {
        let message = format!("the request's body is longer than {limit} bytes (--max-body)");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, message).code("body_too_large")
    }

    /// A limit on requests at a time is reached.
    pub fn too_many(limit: usize) -> ApiError {
        let message =
            format!("{limit} requests are being served, and that is the most (--max-concurrent)");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            .code("rate_limit_exceeded")
            .retry_after(1)
    }

    /// The engine's queue is full.
    pub fn overloaded(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, message)
            .code("queue_full")
            .retry_after(1)
    }

    /// The server is about to end.
    pub fn draining() -> ApiError {
        let message = "the server is shutting down and takes no new requests";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, message)
            .code("draining")
            .retry_after(5)
    }

    /// The request's time is up.
    pub fn timed_out() -> ApiError {
        let message =
            "the answer took longer than the server's --timeout or the request's timeout allows";
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message).code("timeout")
    }

    /// Our fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
            .code("internal_error")
    }

    /// The JSON that clients see, in a body or in an event of a stream.
    pub fn to_json(&self) -> Value {
        json!({ "error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

const INVALID: &str = "invalid_request_error";
const OVERLOADED: &str = "overloaded_error";

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        match error {
            Error::User(_) => ApiError::bad_request(error.to_string()),
            Error::Unsupported(_) => ApiError::bad_request(error.to_string()).code("unsupported"),
            Error::Busy(_) => ApiError::overloaded(error.to_string()),
            Error::Bug(_) | Error::Fault(_) => ApiError::internal(error.to_string()),
        }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

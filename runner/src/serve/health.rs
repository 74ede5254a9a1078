//! `/health`, `/health/live` and `/metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::metrics::Page;
use super::{App, body};

/// Whether the server takes requests and computes them at once: not any more while it drains, and not while its worker
/// process starts again, when it takes them to wait.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    let supervision = app.runner.supervision();
    let restarting = supervision.as_ref().is_some_and(|s| s.restarting);
    let (status, text) = match (app.is_draining(), restarting) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, true) => (StatusCode::SERVICE_UNAVAILABLE, "restarting"),
        (false, false) => (StatusCode::OK, "ok"),
    };
    let mut health = json!({ "status": text });
    if let Some(supervision) = supervision {
        health["restarts"] = supervision.restarts.into();
        if let Some(stability) = supervision.stability {
            health["stability"] = stability.to_string().into();
        }
    }
    (status, body::json(health)).into_response()
}

/// Whether the server lives.
pub async fn live() -> Response {
    body::json(json!({ "status": "ok" }))
}

/// Everything that is counted, in Prometheus' format.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut page = Page::default();
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    page.family("build_info", "gauge", "the server's version");
    page.sample("build_info", &version, 1);
    engine(&app, &mut page);
    app.metrics.write(&mut page);
    let mut response = page.into_text().into_response();
    let kind = HeaderValue::from_static(Page::CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn engine(app: &App, page: &mut Page) {
    let stats = app.runner.stats();
    let mut gauge = |name, help, value: u64| page.single(name, "gauge", help, value);
    gauge(
        "requests_in_flight",
        "requests that compute or wait to",
        app.running() as u64,
    );
    gauge(
        "sequences_running",
        "sequences that are being computed",
        stats.running as u64,
    );
    gauge(
        "sequences_waiting",
        "sequences that wait in the queue",
        stats.waiting as u64,
    );
    gauge(
        "kv_blocks",
        "blocks of the KV cache",
        stats.kv_blocks_total.into(),
    );
    gauge(
        "kv_blocks_free",
        "KV blocks that no sequence holds",
        stats.kv_blocks_free.into(),
    );
    gauge(
        "kv_blocks_cached",
        "free KV blocks whose prefix may be used again",
        stats.kv_blocks_cached.into(),
    );
    gauge(
        "draining",
        "1 while the server ends",
        u64::from(app.is_draining()),
    );
    let supervision = app.runner.supervision();
    if let Some(supervision) = &supervision {
        gauge(
            "restarting",
            "1 while there is no worker process, and requests wait for the next one",
            u64::from(supervision.restarting),
        );
    }
    let mut counter = |name, help, value| page.single(name, "counter", help, value);
    if let Some(supervision) = &supervision {
        counter(
            "worker_restarts_total",
            "worker processes started in the place of one that died",
            supervision.restarts,
        );
        counter(
            "device_faults_total",
            "deaths of worker processes that a device is to blame for",
            supervision.device_faults,
        );
        counter(
            "resumed_requests_total",
            "requests that went on with another worker process",
            supervision.resumed_requests,
        );
    }
    counter(
        "prefix_query_tokens_total",
        "prompt tokens looked up in the prefix cache",
        stats.prefix_query_tokens,
    );
    counter(
        "prefix_hit_tokens_total",
        "prompt tokens found in the prefix cache",
        stats.prefix_hit_tokens,
    );
    counter(
        "preemptions_total",
        "sequences that lost their KV blocks to others",
        stats.preemptions,
    );
    counter(
        "prompt_tokens_total",
        "prompt tokens computed",
        stats.prompt_tokens,
    );
    counter(
        "generated_tokens_total",
        "tokens drawn",
        stats.generated_tokens,
    );
    counter(
        "drafted_tokens_total",
        "tokens guessed by speculation",
        stats.drafted_tokens,
    );
    counter(
        "accepted_tokens_total",
        "guessed tokens that were right",
        stats.accepted_tokens,
    );
    counter("steps_total", "steps of the engine", stats.steps);
}

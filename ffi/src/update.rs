//! Updates as C reads them, and results as JSON.

use std::ffi::{CString, c_char};

use runner::runner::{ModelInfo, TokenInfo};
use runner::{FinishReason, Stats, Update};
use serde_json::{Value as Json, json};

/// The update that a generation is at.
#[derive(Default)]
pub struct Current {
    update: Option<Update>,
    /// The text and a NUL; made with the update.
    text: Vec<u8>,
    /// Made when it is asked for.
    json: Option<CString>,
}

impl Current {
    pub fn new(update: Update) -> Current {
        let mut text = match &update {
            Update::Delta { text, .. } => text.clone().into_bytes(),
            Update::Prompt { .. } | Update::Finished { .. } => Vec::new(),
        };
        text.push(0);
        Current {
            update: Some(update),
            text,
            json: None,
        }
    }

    pub fn text(&self) -> *const c_char {
        match self.text.is_empty() {
            true => c"".as_ptr(),
            false => self.text.as_ptr().cast(),
        }
    }

    pub fn text_length(&self) -> usize {
        self.text.len().saturating_sub(1)
    }

    pub fn choice(&self) -> u32 {
        match self.update {
            Some(Update::Delta { choice, .. } | Update::Finished { choice, .. }) => choice,
            Some(Update::Prompt { .. }) | None => 0,
        }
    }

    pub fn reason(&self) -> *const c_char {
        let Some(Update::Finished { reason, .. }) = &self.update else {
            return std::ptr::null();
        };
        let text = match reason {
            FinishReason::Stop => c"stop",
            FinishReason::Length => c"length",
            FinishReason::Cancelled => c"cancelled",
            FinishReason::Timeout => c"timeout",
            FinishReason::Error(_) => c"error",
        };
        text.as_ptr()
    }

    pub fn json(&mut self) -> *const c_char {
        let Some(update) = &self.update else {
            return std::ptr::null();
        };
        let made = || super::c_string(update_json(update).to_string());
        self.json.get_or_insert_with(made).as_ptr()
    }
}

fn update_json(update: &Update) -> Json {
    match update {
        Update::Prompt { tokens } => json!({
            "prompt": tokens.iter().map(token_json).collect::<Vec<_>>(),
        }),
        Update::Delta {
            choice,
            text,
            tokens,
        } => json!({
            "choice": choice,
            "text": text,
            "tokens": tokens.iter().map(token_json).collect::<Vec<_>>(),
        }),
        Update::Finished {
            choice,
            reason,
            usage,
            timings,
        } => {
            let (reason, error) = match reason {
                FinishReason::Error(text) => ("error".to_owned(), Some(text)),
                reason => (reason.to_string(), None),
            };
            json!({
                "choice": choice,
                "finish_reason": reason,
                "error": error,
                "usage": {
                    "prompt_tokens": usage.prompt_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "cached_tokens": usage.cached_tokens,
                },
                "timings": {
                    "first_token": timings.first_token.map(|time| time.as_secs_f64()),
                    "total": timings.total.as_secs_f64(),
                },
            })
        }
    }
}

fn token_json(token: &TokenInfo) -> Json {
    let mut json = json!({ "id": token.id, "bytes": token.bytes });
    if let Some(logprob) = token.logprob {
        let top = token.top.iter();
        let top = top.map(|t| json!({ "id": t.id, "bytes": t.bytes, "logprob": t.logprob }));
        json["logprob"] = json!(logprob);
        json["top"] = top.collect();
    }
    json
}

pub fn model_json(model: &ModelInfo) -> String {
    json!({
        "name": model.name,
        "architecture": model.architecture,
        "quantisation": model.quantisation,
        "parameters": model.parameters,
        "layers": model.layers,
        "embedding": model.embedding,
        "vocab": model.vocab,
        "context": model.context,
        "trained_context": model.trained_context,
        "max_sequences": model.max_sequences,
        "chat": model.chat,
        "root": model.root,
    })
    .to_string()
}

pub fn stats_json(stats: &Stats) -> String {
    json!({
        "running": stats.running,
        "waiting": stats.waiting,
        "kv_blocks_total": stats.kv_blocks_total,
        "kv_blocks_free": stats.kv_blocks_free,
        "kv_blocks_cached": stats.kv_blocks_cached,
        "prefix_hit_tokens": stats.prefix_hit_tokens,
        "prefix_query_tokens": stats.prefix_query_tokens,
        "preemptions": stats.preemptions,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "drafted_tokens": stats.drafted_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "steps": stats.steps,
    })
    .to_string()
}

//! The engine's answers to one HTTP request, as they come. Dropping them cancels what still runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::App;
use super::error::ApiError;
use super::track::Record;
use crate::FinishReason;
use crate::runner::{GenerateRequest, Handle, TokenInfo, Update, Usage};

/// What happened to one of the choices.
#[derive(Debug)]
pub enum News {
    /// A prompt's tokens with their probabilities, where they were asked for; before its choices' other news.
    Prompt {
        prompt: usize,
        tokens: Vec<TokenInfo>,
    },
    /// More text, or tokens that make none yet.
    More {
        choice: usize,
        text: String,
        tokens: Vec<TokenInfo>,
    },
    /// OpenAI's `stop` or `length`, or why there is no more.
    End {
        choice: usize,
        outcome: Result<&'static str, ApiError>,
    },
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub prompt: u32,
    pub cached: u32,
    pub completion: u32,
}

impl Tokens {
    /// OpenAI's `usage`.
    pub fn to_json(self) -> serde_json::Value {
        serde_json::json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

/// The choices of all prompts of a request, numbered prompt by prompt.
pub struct Answers {
    app: Arc<App>,
    record: Arc<Record>,
    /// Keeps the requests running.
    _handles: Vec<Handle>,
    updates: UnboundedReceiver<(usize, Instant, Update)>,
    /// Choices of a prompt.
    choices: usize,
    /// Choices that have not ended.
    open: usize,
    /// When the last tokens of a choice came.
    last: HashMap<usize, Instant>,
    usage: Tokens,
    /// Prompts whose tokens are counted.
    counted: Vec<bool>,
}

impl Answers {
    /// Hands requests to the engine, all with the same number of choices.
    pub async fn start(
        app: &Arc<App>,
        record: &Arc<Record>,
        requests: Vec<GenerateRequest>,
    ) -> Result<Answers, ApiError> {
        let prompts = requests.len();
        let choices = requests.first().map_or(0, |r| r.choices as usize);
        let (sender, updates) = unbounded_channel();
        let runner = app.runner.clone();
        // A grammar takes a while to compile.
        let submit = move || -> Result<Vec<Handle>, crate::Error> {
            let submit = |(prompt, request)| {
                let sender = sender.clone();
                let sink = move |update| {
                    // Nobody listens to a request that was cancelled.
                    _ = sender.send((prompt, Instant::now(), update));
                };
                runner.submit(request, sink)
            };
            requests.into_iter().enumerate().map(submit).collect()
        };
        let handles = aside(submit).await??;
        Ok(Answers {
            app: app.clone(),
            record: record.clone(),
            _handles: handles,
            updates,
            choices,
            open: prompts * choices,
            last: HashMap::new(),
            usage: Tokens::default(),
            counted: vec![false; prompts],
        })
    }

    /// What happens next; none once all choices have ended.
    pub async fn next(&mut self) -> Option<News> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<News>> {
        if self.open == 0 {
            return Poll::Ready(None);
        }
        let update = std::task::ready!(self.updates.poll_recv(cx));
        Poll::Ready(Some(match update {
            Some((prompt, _, Update::Prompt { tokens })) => News::Prompt { prompt, tokens },
            Some((
                prompt,
                at,
                Update::Delta {
                    choice,
                    text,
                    tokens,
                },
            )) => {
                let choice = prompt * self.choices + choice as usize;
                self.observe(choice, at, tokens.len());
                News::More {
                    choice,
                    text,
                    tokens,
                }
            }
            Some((
                prompt,
                _,
                Update::Finished {
                    choice,
                    reason,
                    usage,
                    ..
                },
            )) => {
                self.count(prompt, usage);
                self.end(prompt * self.choices + choice as usize, reason)
            }
            None => {
                // The engine's thread is gone, and has not said why.
                self.open = 0;
                News::End {
                    choice: 0,
                    outcome: Err(ApiError::internal("the engine has stopped")),
                }
            }
        }))
    }

    /// So far.
    pub fn usage(&self) -> Tokens {
        self.usage
    }

    fn observe(&mut self, choice: usize, at: Instant, tokens: usize) {
        match self.last.insert(choice, at) {
            Some(last) => {
                let took = at.saturating_duration_since(last);
                self.app.metrics.between_tokens(took, tokens);
            }
            None if self.last.len() == 1 => {
                let took = at.saturating_duration_since(self.record.started);
                self.app.metrics.first_token(took);
                self.record.tell(|story| story.first_token = Some(took));
            }
            None => {}
        }
    }

    /// Adds a choice's tokens, and once its prompt's.
    fn count(&mut self, prompt: usize, usage: Usage) {
        if !std::mem::replace(&mut self.counted[prompt], true) {
            self.usage.prompt += usage.prompt_tokens;
            self.usage.cached += usage.cached_tokens;
        }
        self.usage.completion += usage.completion_tokens;
        let total = self.usage;
        self.record.tell(|story| {
            story.prompt_tokens = total.prompt;
            story.cached_tokens = total.cached;
            story.completion_tokens = total.completion;
        });
    }

    fn end(&mut self, choice: usize, reason: FinishReason) -> News {
        self.open -= 1;
        let (name, outcome) = match reason {
            FinishReason::Stop => ("stop", Ok("stop")),
            FinishReason::Length => ("length", Ok("length")),
            FinishReason::Timeout => ("timeout", Err(ApiError::timed_out())),
            FinishReason::Cancelled => ("cancelled", Err(ApiError::draining())),
            FinishReason::Error(text) => ("error", Err(ApiError::internal(text))),
        };
        self.app.metrics.finished(name);
        self.record.tell(|story| {
            story.reason = Some(name);
            if let Err(error) = &outcome {
                story.error = Some(error.to_string());
            }
        });
        News::End { choice, outcome }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for _ in 0..self.open {
            self.app.metrics.finished("cancelled");
        }
    }
}

/// Runs what takes long on a helper.
pub async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ApiError::internal(format!("a helper thread failed: {e}")))
}

//! A request that the engine serves: tokens become text here, and stop strings end it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::Error;
use crate::device::LogProbs;
use crate::stop::StopStrings;
use crate::tokenizer::{DecodeStream, Tokenizer};

use super::update::{Alternative, FinishReason, Timings, TokenInfo, Update, Usage};

/// Where updates go.
pub(super) type Sink = Box<dyn FnMut(Update) + Send>;

/// All answers of one request.
pub(super) struct Answers<'a> {
    tokenizer: Tokenizer<'a>,
    /// None once it panicked: there is nobody to tell any more.
    sink: Option<Sink>,
    choices: Vec<Choice<'a>>,
    prompt_tokens: u32,
    start: Instant,
}

/// One answer.
struct Choice<'a> {
    /// None when the answer has ended.
    text: Option<Text<'a>>,
    tokens: u32,
    cached: u32,
    first_token: Option<Instant>,
    /// What was drawn since the last update.
    news: News,
}

struct Text<'a> {
    stream: DecodeStream<'a>,
    stop: StopStrings,
}

#[derive(Default)]
struct News {
    text: String,
    tokens: Vec<TokenInfo>,
}

/// Whether a request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    /// This answer has ended, others have not.
    EndChoice,
    /// Nobody waits for more of the request.
    EndAll,
}

impl<'a> Answers<'a> {
    pub fn new(
        tokenizer: Tokenizer<'a>,
        sink: Sink,
        choices: u32,
        stop: &[String],
        prompt_tokens: u32,
        start: Instant,
    ) -> Answers<'a> {
        let choice = || Choice {
            text: Some(Text {
                stream: tokenizer.decode_stream(false),
                stop: StopStrings::new(stop),
            }),
            tokens: 0,
            cached: 0,
            first_token: None,
            news: News::default(),
        };
        Answers {
            tokenizer,
            sink: Some(sink),
            choices: (0..choices).map(|_| choice()).collect(),
            prompt_tokens,
            start,
        }
    }

    /// The engine drew a token, which the next [`Answers::tell`] tells; a stop string ends the answer at once.
    pub fn token(&mut self, choice: u32, token: u32, logprobs: Option<LogProbs>) -> Next {
        let tokenizer = self.tokenizer;
        let Some(state) = self.choices.get_mut(choice as usize) else {
            return Next::GoOn;
        };
        // In a step that was submitted before the stop string was seen.
        let Some(text) = &mut state.text else {
            return Next::GoOn;
        };
        let pushed = text.stream.push(token).and_then(|piece| {
            let info = token_info(tokenizer, token, logprobs)?;
            Ok((piece, info))
        });
        let (piece, info) = match pushed {
            Ok(pushed) => pushed,
            // The engine draws ids of the vocabulary only.
            Err(error) => {
                return self.end(choice, FinishReason::Error(error.to_string()));
            }
        };
        state.tokens += 1;
        state.first_token.get_or_insert_with(Instant::now);
        let passed = text.stop.push(&piece);
        state.news.text += &passed.text;
        state.news.tokens.push(info);
        if passed.stopped {
            state.text = None;
            return self.ended(choice, FinishReason::Stop);
        }
        Next::GoOn
    }

    /// The answer has ended; its last text and its end are told. Nothing where it had ended already.
    pub fn end(&mut self, choice: u32, reason: FinishReason) -> Next {
        let Some(state) = self.choices.get_mut(choice as usize) else {
            return Next::GoOn;
        };
        let Some(mut text) = state.text.take() else {
            return Next::GoOn;
        };
        let rest = text.stop.push(&text.stream.finish());
        state.news.text += &rest.text;
        if !rest.stopped {
            state.news.text += &text.stop.finish();
        }
        self.ended(choice, reason)
    }

    fn ended(&mut self, choice: u32, reason: FinishReason) -> Next {
        let Some(state) = self.choices.get(choice as usize) else {
            return Next::GoOn;
        };
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: state.tokens,
            cached_tokens: state.cached,
        };
        let timings = Timings {
            first_token: state.first_token.map(|at| at - self.start),
            total: self.start.elapsed(),
        };
        self.tell_choice(choice);
        self.send(Update::Finished {
            choice,
            reason,
            usage,
            timings,
        });
        match self.is_over() {
            true => Next::EndAll,
            false => Next::EndChoice,
        }
    }

    /// All answers that have not ended do so.
    pub fn end_all(&mut self, reason: &FinishReason) {
        for choice in 0..self.choices.len() as u32 {
            self.end(choice, reason.clone());
        }
    }

    /// Whether all answers have ended, or nobody is there to be told.
    pub fn is_over(&self) -> bool {
        self.sink.is_none() || self.choices.iter().all(|c| c.text.is_none())
    }

    /// Tells what was drawn since the last time.
    pub fn tell(&mut self) {
        for choice in 0..self.choices.len() as u32 {
            self.tell_choice(choice);
        }
    }

    fn tell_choice(&mut self, choice: u32) {
        let Some(state) = self.choices.get_mut(choice as usize) else {
            return;
        };
        let News { text, tokens } = std::mem::take(&mut state.news);
        if !text.is_empty() || !tokens.is_empty() {
            self.send(Update::Delta {
                choice,
                text,
                tokens,
            });
        }
    }

    /// A sink that panics must not take the engine and everybody's requests with it: it is not called again.
    fn send(&mut self, update: Update) {
        if let Some(sink) = &mut self.sink
            && catch_unwind(AssertUnwindSafe(|| sink(update))).is_err()
        {
            self.sink = None;
        }
    }
}

fn token_info(
    tokenizer: Tokenizer<'_>,
    id: u32,
    logprobs: Option<LogProbs>,
) -> Result<TokenInfo, Error> {
    let bytes = |id| tokenizer.token_bytes(id, true).map(<[u8]>::to_vec);
    let logprob = logprobs.as_ref().map(|l| l.token);
    let top = logprobs.map(|l| l.top).unwrap_or_default();
    Ok(TokenInfo {
        id,
        bytes: bytes(id)?,
        logprob,
        top: top
            .into_iter()
            .map(|(id, logprob)| {
                Ok(Alternative {
                    id,
                    bytes: bytes(id)?,
                    logprob,
                })
            })
            .collect::<Result<_, Error>>()?,
    })
}

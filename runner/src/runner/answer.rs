//! The answers of a request that the engine serves: tokens become text here, and stop strings end it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::device::LogProbs;
use crate::stop::StopStrings;
use crate::tokenizer::{DecodeStream, Tokenizer};
use crate::{Error, FinishReason};

use super::update::{Alternative, Timings, TokenInfo, Update, Usage};

/// Where updates go.
pub(super) type Sink = Box<dyn FnMut(Update) + Send>;

/// All answers of one request.
pub(super) struct Answers<'a> {
    tokenizer: Tokenizer<'a>,
    /// None once it panicked: there is nobody to tell any more.
    sink: Option<Sink>,
    choices: Vec<Choice<'a>>,
    /// None where nobody asked for it, or once it is told.
    prompt: Option<Prompt>,
    prompt_tokens: u32,
    start: Instant,
}

/// A prompt that is to be told.
struct Prompt {
    ids: Vec<u32>,
    /// As far as they are scored.
    tokens: Vec<TokenInfo>,
}

/// One answer.
struct Choice<'a> {
    /// Where its tokens become text; none when it has ended.
    text: Option<Text<'a>>,
    tokens: u32,
    first_token: Option<Instant>,
    /// What was drawn since the last update.
    news: News,
}

struct Text<'a> {
    stream: DecodeStream<'a>,
    stop: StopStrings,
    /// A stop string came: the engine is to end the answer, and what it still draws is dropped.
    stopped: bool,
}

#[derive(Default)]
struct News {
    text: String,
    tokens: Vec<TokenInfo>,
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
                stopped: false,
            }),
            tokens: 0,
            first_token: None,
            news: News::default(),
        };
        Answers {
            tokenizer,
            sink: Some(sink),
            choices: (0..choices).map(|_| choice()).collect(),
            prompt: None,
            prompt_tokens,
            start,
        }
    }

    /// The prompt is to be told with the probabilities of its tokens.
    pub fn with_prompt(mut self, ids: Vec<u32>) -> Self {
        let tokens = Vec::with_capacity(ids.len());
        self.prompt = Some(Prompt { ids, tokens });
        self
    }

    /// The engine scored the next tokens of the prompt, which the next [`Answers::tell`] tells once they are all.
    ///
    /// # Errors
    /// The engine scored what nobody asked for, or an id is not of the vocabulary.
    pub fn scored(&mut self, scores: impl IntoIterator<Item = LogProbs>) -> Result<(), Error> {
        let tokenizer = self.tokenizer;
        let bug = || Error::Bug("the engine scored more than the prompt".into());
        let Prompt { ids, tokens } = self.prompt.as_mut().ok_or_else(bug)?;
        // Nothing comes before the first one.
        if tokens.is_empty() {
            tokens.push(token_info(tokenizer, ids[0], None)?);
        }
        for logprobs in scores {
            let id = *ids.get(tokens.len()).ok_or_else(bug)?;
            tokens.push(token_info(tokenizer, id, Some(logprobs))?);
        }
        Ok(())
    }

    /// Tells the prompt, once it is scored.
    fn tell_prompt(&mut self) {
        let is_whole = |prompt: &mut Prompt| prompt.tokens.len() == prompt.ids.len();
        if let Some(Prompt { tokens, .. }) = self.prompt.take_if(is_whole) {
            self.send(Update::Prompt { tokens });
        }
    }

    /// The engine drew a token, which the next [`Answers::tell`] tells. True: a stop string has come with it, and nothing
    /// more of the answer is wanted.
    ///
    /// # Errors
    /// The id is not of the vocabulary, or the choice not of the request.
    pub fn token(
        &mut self,
        choice: u32,
        token: u32,
        logprobs: Option<LogProbs>,
    ) -> Result<bool, Error> {
        let tokenizer = self.tokenizer;
        let state = self.choice(choice)?;
        let Some(text) = state.text.as_mut().filter(|text| !text.stopped) else {
            // In a step that was submitted before the stop string was seen.
            return Ok(false);
        };
        let piece = text.stream.push(token)?;
        let info = token_info(tokenizer, token, logprobs)?;
        let passed = text.stop.push(&piece);
        text.stopped = passed.stopped;
        state.tokens += 1;
        state.first_token.get_or_insert_with(Instant::now);
        state.news.text += &passed.text;
        state.news.tokens.push(info);
        Ok(passed.stopped)
    }

    /// The engine has ended the answer: its last text and its end are told.
    ///
    /// # Errors
    /// The choice is not of the request, or has ended before.
    pub fn end(&mut self, choice: u32, reason: FinishReason, cached: u32) -> Result<(), Error> {
        let (prompt_tokens, start) = (self.prompt_tokens, self.start);
        let state = self.choice(choice)?;
        let Some(mut text) = state.text.take() else {
            return Err(Error::Bug(format!("choice {choice} ended twice")));
        };
        let reason = match text.stopped {
            // It was cancelled for that.
            true => FinishReason::Stop,
            false => {
                state.news.text += &text.stop.push(&text.stream.finish()).text;
                state.news.text += &text.stop.finish();
                reason
            }
        };
        let finished = Update::Finished {
            choice,
            reason,
            usage: Usage {
                prompt_tokens,
                completion_tokens: state.tokens,
                cached_tokens: cached,
            },
            timings: Timings {
                first_token: state.first_token.map(|at| at - start),
                total: start.elapsed(),
            },
        };
        self.tell_prompt();
        self.tell_choice(choice);
        self.send(finished);
        Ok(())
    }

    /// All answers that have not ended do so.
    pub fn end_all(&mut self, reason: &FinishReason) {
        for choice in 0..self.choices.len() as u32 {
            // One that had ended stays as it is.
            let _ = self.end(choice, reason.clone(), 0);
        }
    }

    /// Whether all answers have ended.
    pub fn have_ended(&self) -> bool {
        self.choices.iter().all(|choice| choice.text.is_none())
    }

    /// Whether there is nobody to tell any more.
    pub fn is_deaf(&self) -> bool {
        self.sink.is_none()
    }

    /// Tells what was drawn since the last time.
    pub fn tell(&mut self) {
        self.tell_prompt();
        for choice in 0..self.choices.len() as u32 {
            self.tell_choice(choice);
        }
    }

    fn tell_choice(&mut self, choice: u32) {
        let news = self.choices.get_mut(choice as usize).map(|c| &mut c.news);
        let News { text, tokens } = news.map(std::mem::take).unwrap_or_default();
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

    fn choice(&mut self, choice: u32) -> Result<&mut Choice<'a>, Error> {
        let count = self.choices.len();
        self.choices.get_mut(choice as usize).ok_or_else(|| {
            Error::Bug(format!(
                "choice {choice} of a request that asked for {count}"
            ))
        })
    }
}

fn token_info(
    tokenizer: Tokenizer<'_>,
    id: u32,
    logprobs: Option<LogProbs>,
) -> Result<TokenInfo, Error> {
    let bytes = |id| tokenizer.token_bytes(id, true).map(<[u8]>::to_vec);
    let mut info = TokenInfo {
        id,
        bytes: bytes(id)?,
        logprob: None,
        top: Vec::new(),
    };
    if let Some(logprobs) = logprobs {
        info.logprob = Some(logprobs.token);
        for (id, logprob) in logprobs.top {
            // The model's vocabulary may have ids that are no tokens.
            let bytes = bytes(id).unwrap_or_default();
            info.top.push(Alternative { id, bytes, logprob });
        }
    }
    Ok(info)
}

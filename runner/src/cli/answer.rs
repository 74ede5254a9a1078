//! One request from prompt to last token, its text written as it comes.

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use fastrun::device::Device;
use fastrun::stop::StopStrings;
use fastrun::tokenizer::Tokenizer;
use fastrun::{Engine, Error, Event, FinishReason, Progress, Request};

use super::failure::Failure;
use super::forward::POLL_PAUSE;

/// What became of a request.
#[derive(Debug)]
pub struct Answer {
    /// Without the stop string that ended it.
    pub text: String,
    /// A stop string counts as [`FinishReason::Stop`].
    pub reason: FinishReason,
    pub stats: Stats,
}

/// An answer in figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    pub prompt_tokens: usize,
    pub tokens: usize,
    /// From the request to its first token; to its end where there was none.
    pub first_token: Duration,
    /// From the first token to the last.
    pub decoding: Duration,
}

impl Stats {
    /// Tokens that the context holds at the end.
    pub fn context(&self) -> usize {
        self.prompt_tokens + self.tokens
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
        write!(
            f,
            "prompt: {} tokens, {:.1} tokens/s; ",
            self.prompt_tokens,
            rate(self.prompt_tokens, self.first_token)
        )?;
        if self.tokens > 0 {
            let time = self.first_token.as_secs_f64() * 1e3;
            write!(f, "first token after {time:.1} ms; ")?;
        }
        write!(f, "answer: {} tokens", self.tokens)?;
        if self.tokens > 1 {
            // The first token is the prompt's work.
            let speed = rate(self.tokens - 1, self.decoding);
            write!(f, ", {speed:.1} tokens/s")?;
        }
        Ok(())
    }
}

/// Serves `request` alone, and writes its text to `out` token by token, up to the first of the `stop` strings. Ends early
/// once `interrupted` says so; an answer that breaks off because the device failed is a [`Failure::Device`].
pub fn answer<D: Device>(
    engine: &mut Engine<D>,
    tokenizer: &Tokenizer,
    request: Request,
    stop: &[String],
    out: &mut dyn Write,
    interrupted: impl Fn() -> bool,
) -> Result<Answer, Failure> {
    let start = Instant::now();
    // When the first token and the last one came.
    let mut times: Option<(Instant, Instant)> = None;
    let (mut tokens, prompt_tokens) = (0, request.prompt.len());
    let mut stream = tokenizer.decode_stream(false);
    let mut text = Text::new(stop, out);
    let id = engine.add(request)?;
    let reason = 'serving: loop {
        for event in engine.take_events() {
            match event {
                // In a step that was submitted before the stop string was seen.
                Event::Token { .. } if text.stopped => {}
                Event::Token { token, .. } => {
                    let now = Instant::now();
                    times.get_or_insert((now, now)).1 = now;
                    tokens += 1;
                    text.push(&stream.push(token)?)?;
                }
                Event::Scored { .. } | Event::Hidden { .. } => {}
                Event::Finished { reason, .. } => break 'serving reason,
            }
        }
        if text.stopped || interrupted() {
            engine.cancel(id);
            continue;
        }
        match engine.step() {
            Progress::Advanced => {}
            Progress::Waiting => std::thread::sleep(POLL_PAUSE),
            Progress::Idle => {
                return Err(Error::Bug("a request vanished from the engine".into()).into());
            }
        }
    };
    text.push(&stream.finish())?;
    let stopped = text.stopped;
    let text = text.finish()?;
    let reason = match reason {
        FinishReason::Error(text) => return Err(Failure::Device(text)),
        _ if stopped => FinishReason::Stop,
        reason => reason,
    };
    let (first, last) = times.unwrap_or_else(|| {
        let now = Instant::now();
        (now, now)
    });
    Ok(Answer {
        text,
        reason,
        stats: Stats {
            prompt_tokens,
            tokens,
            first_token: first - start,
            decoding: last - first,
        },
    })
}

/// The text of an answer, on its way out.
struct Text<'a> {
    out: &'a mut dyn Write,
    stop: StopStrings,
    stopped: bool,
    all: String,
}

impl<'a> Text<'a> {
    fn new(stop: &[String], out: &'a mut dyn Write) -> Text<'a> {
        Text {
            out,
            stop: StopStrings::new(stop),
            stopped: false,
            all: String::new(),
        }
    }

    /// Writes what is certain to be part of the answer.
    fn push(&mut self, piece: &str) -> std::io::Result<()> {
        if self.stopped {
            return Ok(());
        }
        let passed = self.stop.push(piece);
        self.stopped = passed.stopped;
        self.emit(&passed.text)
    }

    /// The whole text, all of it written.
    fn finish(mut self) -> std::io::Result<String> {
        if !self.stopped {
            let rest = std::mem::replace(&mut self.stop, StopStrings::new(&[])).finish();
            self.emit(&rest)?;
        }
        Ok(self.all)
    }

    fn emit(&mut self, text: &str) -> std::io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.all.push_str(text);
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        let stats = |tokens| Stats {
            prompt_tokens: 30,
            tokens,
            first_token: Duration::from_millis(150),
            decoding: Duration::from_millis(100),
        };
        assert_eq!(
            stats(11).to_string(),
            "prompt: 30 tokens, 200.0 tokens/s; first token after 150.0 ms; answer: 11 tokens, 100.0 tokens/s"
        );
        assert!(stats(1).to_string().ends_with("answer: 1 tokens"));
        assert!(!stats(0).to_string().contains("first token"));
        assert_eq!(stats(11).context(), 41);
    }

    #[test]
    fn text_is_written_up_to_a_stop_string() {
        let mut out = Vec::new();
        let mut text = Text::new(&["END".into()], &mut out);
        for piece in ["one E", "two EN", "D three", "four"] {
            text.push(piece).expect("a vector takes it");
        }
        assert!(text.stopped);
        assert_eq!(text.finish().expect("a vector takes it"), "one Etwo ");
        assert_eq!(out, b"one Etwo ");

        let mut out = Vec::new();
        let mut text = Text::new(&["END".into()], &mut out);
        text.push("the EN").expect("a vector takes it");
        assert_eq!(text.finish().expect("a vector takes it"), "the EN");
    }
}

//! One request from prompt to last token, its text written as it comes.

use std::io::Write;
use std::time::{Duration, Instant};

use fastrun::device::Device;
use fastrun::tokenizer::Tokenizer;
use fastrun::{Engine, Error, Event, FinishReason, Progress, Request};

use super::failure::Failure;
use super::forward::POLL_PAUSE;

/// What became of a request.
#[derive(Debug)]
pub struct Answer {
    pub text: String,
    pub reason: FinishReason,
    pub prompt_tokens: usize,
    pub tokens: usize,
    /// From the request to its first token, and from there to the end.
    pub prompt_time: Duration,
    pub decode_time: Duration,
}

/// Serves `request` alone, and writes its text to `out` token by token. Ends early once `stop` says so; an answer that
/// breaks off because the device failed is a [`Failure::Device`].
pub fn answer<D: Device>(
    engine: &mut Engine<D>,
    tokenizer: &Tokenizer,
    request: Request,
    out: &mut dyn Write,
    stop: impl Fn() -> bool,
) -> Result<Answer, Failure> {
    let start = Instant::now();
    let mut first = None;
    let mut answer = Answer {
        text: String::new(),
        reason: FinishReason::Length,
        prompt_tokens: request.prompt.len(),
        tokens: 0,
        prompt_time: Duration::ZERO,
        decode_time: Duration::ZERO,
    };
    let mut stream = tokenizer.decode_stream(false);
    let id = engine.add(request)?;
    loop {
        for event in engine.take_events() {
            match event {
                Event::Token { token, .. } => {
                    first.get_or_insert_with(Instant::now);
                    answer.tokens += 1;
                    emit(out, &mut answer.text, stream.push(token)?)?;
                }
                Event::Finished { reason, .. } => {
                    emit(out, &mut answer.text, stream.finish())?;
                    if let FinishReason::Error(text) = reason {
                        return Err(Failure::Device(text));
                    }
                    let first = first.unwrap_or_else(Instant::now);
                    answer.prompt_time = first - start;
                    answer.decode_time = first.elapsed();
                    answer.reason = reason;
                    return Ok(answer);
                }
            }
        }
        if stop() {
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
    }
}

fn emit(out: &mut dyn Write, all: &mut String, text: impl AsRef<str>) -> std::io::Result<()> {
    let text = text.as_ref();
    if text.is_empty() {
        return Ok(());
    }
    all.push_str(text);
    out.write_all(text.as_bytes())?;
    out.flush()
}

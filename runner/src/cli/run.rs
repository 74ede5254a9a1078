//! `fastrun B.fib`: one answer, or a chat.

use std::io::{IsTerminal, Read, Write};
use std::time::SystemTime;

use bundle_format::plan::Limits;
use fastrun::chat::{ChatRequest, ChatTemplate, Prompt, message};
use fastrun::device::{Device, Penalties, SampleParams};
use fastrun::tokenizer::Tokenizer;
use fastrun::{Engine, Error, FinishReason, Request};

use serde_json::Value as Json;

use super::answer::{Answer, answer};
use super::args::{RunArgs, SamplingArgs};
use super::chat;
use super::failure::Failure;
use super::session::Session;

pub fn run(args: &RunArgs, out: &mut dyn Write) -> Result<(), Failure> {
    // Clap requires it wherever there is no subcommand.
    let bundle = args
        .bundle
        .as_ref()
        .ok_or_else(|| Error::User("no bundle is given; name the .fib file to run".into()))?;
    let session = Session::open(bundle, &args.device)?;
    let tokenizer = session.tokenizer()?;
    let engine = Engine::new(session.device()?, session.engine_config());
    let mut speaker = Speaker {
        args,
        tokenizer,
        engine,
        limits: session.limits(),
        sampling: sampling(&args.sampling),
        end: tokenizer.vocab().end_of_generation().collect(),
    };
    if args.stats {
        note!("seed: {}", speaker.sampling.seed);
    }
    match &args.prompt {
        Some(text) => once(&mut speaker, text, out),
        None if std::io::stdin().is_terminal() => chat::chat(&mut speaker, out),
        None => {
            let text = piped(std::io::stdin().lock(), args.raw)?;
            once(&mut speaker, &text, out)
        }
    }
}

/// The prompt that standard input holds. A message doesn't end in a newline, but `echo` makes one; a raw text is what it is.
fn piped(mut input: impl Read, raw: bool) -> Result<String, Error> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).map_err(|e| {
        Error::User(format!(
            "can't read the prompt from standard input: {e}; give it with -p TEXT"
        ))
    })?;
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::User(format!(
            "the prompt on standard input is not UTF-8: byte {at} is wrong; convert it first"
        ))
    })?;
    if !raw {
        let end = text.trim_end_matches(['\n', '\r']).len();
        text.truncate(end);
        if text.is_empty() {
            return Err(Error::User(
                "standard input holds no prompt; pipe a text in, give one with -p TEXT, or chat on a terminal".into(),
            ));
        }
    }
    Ok(text)
}

fn sampling(args: &SamplingArgs) -> SampleParams {
    SampleParams {
        penalties: Penalties {
            last_n: u32::try_from(args.repeat_last_n).unwrap_or(u32::MAX),
            repeat: args.repeat_penalty,
            frequency: args.frequency_penalty,
            presence: args.presence_penalty,
        },
        top_k: args.top_k,
        top_p: args.top_p,
        typical_p: args.typical_p,
        min_p: args.min_p,
        temperature: args.temp,
        seed: args.seed.unwrap_or_else(random_seed),
    }
}

/// 64 bits that differ from run to run: the standard library keys its hash maps from the system's randomness.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("seed")
}

/// Answers one prompt and ends its text with a newline.
fn once<D: Device>(
    speaker: &mut Speaker<D>,
    text: &str,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let prompt = if speaker.args.raw {
        raw(text)
    } else {
        let template = ChatTemplate::of_model(&speaker.tokenizer)?;
        let system = speaker.args.system.as_deref();
        let mut messages: Vec<Json> = system.map(|s| message("system", s)).into_iter().collect();
        messages.push(message("user", text));
        render(&template, messages)?
    };
    let answer = speaker.answer(&prompt, out, || false)?;
    if !answer.text.is_empty() && !answer.text.ends_with('\n') {
        writeln!(out)?;
    }
    out.flush()?;
    if speaker.out_of_room(&answer) {
        note!(
            "fastrun: the answer breaks off, for there is no room for more in the context of {} tokens; shorten the \
             prompt, or compile the model with a larger --ctx",
            speaker.limits.context
        );
    }
    speaker.report(&answer);
    Ok(())
}

/// All that an answer takes.
pub struct Speaker<'a, D> {
    pub args: &'a RunArgs,
    pub tokenizer: Tokenizer<'a>,
    pub limits: Limits,
    pub sampling: SampleParams,
    engine: Engine<D>,
    /// Tokens that end an answer.
    end: Vec<u32>,
}

impl<D: Device> Speaker<'_, D> {
    pub fn answer(
        &mut self,
        prompt: &Prompt,
        out: &mut dyn Write,
        interrupted: impl Fn() -> bool,
    ) -> Result<Answer, Failure> {
        let request = Request {
            prompt: self.tokenizer.encode_prompt(prompt),
            max_tokens: self.args.n,
            sampling: self.sampling.clone(),
            stop: self.end.clone(),
            ..Request::default()
        };
        let stop = &self.args.stop;
        answer(
            &mut self.engine,
            &self.tokenizer,
            request,
            stop,
            out,
            interrupted,
        )
    }

    /// Whether it was not -n that ended an answer by its length.
    pub fn out_of_room(&self, answer: &Answer) -> bool {
        let wanted = self.args.n.map(|n| n as usize);
        answer.reason == FinishReason::Length && wanted != Some(answer.stats.tokens)
    }

    /// Says an answer's figures, where they are wanted.
    pub fn report(&self, answer: &Answer) {
        if self.args.stats {
            note!(
                "{}; ended by {}; context: {} of {} tokens",
                answer.stats,
                answer.reason,
                answer.stats.context(),
                self.limits.context
            );
        }
    }
}

/// Text for the model to continue as it is.
pub fn raw(text: &str) -> Prompt {
    Prompt {
        text: text.to_owned(),
        ..Prompt::default()
    }
}

pub fn render(template: &ChatTemplate, messages: Vec<Json>) -> Result<Prompt, Error> {
    template.render(&ChatRequest::new(messages, SystemTime::now()))
}

#[cfg(test)]
mod tests {

    #[test]
    fn a_piped_message_loses_its_last_newlines_and_a_raw_text_nothing() {
        let piped = |bytes: &[u8], raw| super::piped(bytes, raw).map_err(|e| e.to_string());
        assert_eq!(piped(b" Hello\nyou\r\n\n", false), Ok(" Hello\nyou".into()));
        assert_eq!(piped(b"Hello\n", true), Ok("Hello\n".into()));
        let text = piped(b"\n", false).expect_err("there is no prompt");
        assert!(text.contains("-p TEXT"), "{text}");
        let text = piped(b"abc\xff", false).expect_err("not UTF-8");
        assert!(text.contains("byte 3"), "{text}");
    }
}

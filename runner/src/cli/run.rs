//! `fastrun B.fib`: one answer, or a chat.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::time::SystemTime;

use fastrun::chat::{ChatRequest, ChatTemplate, Prompt, message};
use fastrun::device::{Device, SampleParams};
use fastrun::tokenizer::Tokenizer;
use fastrun::{Engine, Error, FinishReason, Request};

use serde_json::Value as Json;

use super::answer::{Answer, answer};
use super::args::RunArgs;
use super::failure::Failure;
use super::interrupt;
use super::session::Session;

pub fn run(args: &RunArgs, out: &mut dyn Write) -> Result<(), Failure> {
    // Clap requires it wherever there is no subcommand.
    let bundle = args
        .bundle
        .as_ref()
        .ok_or_else(|| Error::User("no bundle is given".into()))?;
    let session = Session::open(bundle, &args.device)?;
    let tokenizer = session.tokenizer()?;
    let engine = Engine::new(session.device()?, session.engine_config());
    let mut speaker = Speaker {
        args,
        tokenizer,
        engine,
        sampling: sampling(args),
        stop: tokenizer.vocab().end_of_generation().collect(),
    };
    if args.verbose {
        note!("seed: {}", speaker.sampling.seed);
    }
    match &args.prompt {
        Some(text) => speaker.once(text, out),
        None if std::io::stdin().is_terminal() => speaker.chat(out),
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| {
                Error::User(format!("cannot read the prompt from standard input: {e}"))
            })?;
            speaker.once(&text, out)
        }
    }
}

fn sampling(args: &RunArgs) -> SampleParams {
    SampleParams {
        temperature: args.sampling.temp,
        top_k: args.sampling.top_k,
        top_p: args.sampling.top_p,
        seed: args.sampling.seed.unwrap_or_else(random_seed),
    }
}

/// 64 bits that differ from run to run: the standard library keys its hash maps from the system's randomness.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("seed")
}

/// All that an answer takes.
struct Speaker<'a, D> {
    args: &'a RunArgs,
    tokenizer: Tokenizer<'a>,
    engine: Engine<D>,
    sampling: SampleParams,
    stop: Vec<u32>,
}

impl<D: Device> Speaker<'_, D> {
    /// Answers one prompt and ends its text with a newline.
    fn once(&mut self, text: &str, out: &mut dyn Write) -> Result<(), Failure> {
        let prompt = if self.args.raw {
            raw(text)
        } else {
            let template = ChatTemplate::of_model(&self.tokenizer)?;
            render(&template, &[message("user", text)])?
        };
        let answer = self.answer(&prompt, out, || false)?;
        if !answer.text.is_empty() && !answer.text.ends_with('\n') {
            writeln!(out)?;
        }
        if self.out_of_room(&answer) {
            out.flush()?;
            note!("fastrun: the answer breaks off, for there is no room for more in the context");
        }
        Ok(())
    }

    /// Reads lines and answers them until the end of the input or `/exit`. An error ends the turn, not the chat.
    fn chat(&mut self, out: &mut dyn Write) -> Result<(), Failure> {
        let template = match self.args.raw {
            true => None,
            false => Some(ChatTemplate::of_model(&self.tokenizer)?),
        };
        interrupt::catch()
            .map_err(|e| Error::User(format!("cannot catch Ctrl-C: {e}; use -p TEXT instead")))?;
        note!("Ctrl-C stops an answer; /clear starts over, /exit leaves.");
        let mut history: Vec<Json> = Vec::new();
        loop {
            write!(out, "> ")?;
            out.flush()?;
            let Some(line) = read_line()? else {
                writeln!(out)?;
                return Ok(());
            };
            match line.trim() {
                "" => continue,
                "/exit" => return Ok(()),
                "/clear" => history.clear(),
                text => self.turn(template.as_ref(), &mut history, text, out)?,
            }
        }
    }

    /// Answers `text` after `history`, and appends both; neither where it fails.
    fn turn(
        &mut self,
        template: Option<&ChatTemplate>,
        history: &mut Vec<Json>,
        text: &str,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        history.push(message("user", text));
        interrupt::answering();
        let result = match template {
            Some(template) => render(template, history),
            None => Ok(raw(text)),
        }
        .map_err(Failure::from)
        .and_then(|prompt| self.answer(&prompt, out, interrupt::requested));
        interrupt::at_prompt();
        match result {
            Ok(answer) => {
                writeln!(out)?;
                if self.out_of_room(&answer) {
                    note!("fastrun: the context is full; /clear starts over");
                }
                history.push(message("assistant", &answer.text));
                Ok(())
            }
            Err(failure @ Failure::Output(_)) => Err(failure),
            Err(failure) => {
                history.pop();
                note!("fastrun: {failure}; /clear starts over");
                Ok(())
            }
        }
    }

    /// Whether it was not -n that ended an answer by its length.
    fn out_of_room(&self, answer: &Answer) -> bool {
        let wanted = self.args.n.map(|n| n as usize);
        answer.reason == FinishReason::Length && wanted != Some(answer.tokens)
    }

    fn answer(
        &mut self,
        prompt: &Prompt,
        out: &mut dyn Write,
        stop: impl Fn() -> bool,
    ) -> Result<Answer, Failure> {
        let request = Request {
            prompt: self.tokenizer.encode_prompt(prompt),
            max_tokens: self.args.n,
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
        };
        let answer = answer(&mut self.engine, &self.tokenizer, request, out, stop)?;
        if self.args.verbose {
            report(&answer);
        }
        Ok(answer)
    }
}

/// Text for the model to continue as it is.
fn raw(text: &str) -> Prompt {
    Prompt {
        text: text.to_owned(),
        ..Prompt::default()
    }
}

fn render(template: &ChatTemplate, messages: &[Json]) -> Result<Prompt, Error> {
    template.render(&ChatRequest::new(messages.to_vec(), SystemTime::now()))
}

/// A line of standard input; none at its end.
fn read_line() -> Result<Option<String>, Error> {
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(line)),
        Err(e) => Err(Error::User(format!("cannot read standard input: {e}"))),
    }
}

fn report(answer: &Answer) {
    let (prompt, decode) = (
        answer.prompt_time.as_secs_f64(),
        answer.decode_time.as_secs_f64(),
    );
    note!(
        "prompt: {} tokens in {:.1} ms; answer: {} tokens, {:.1} tokens/s; ended by {}",
        answer.prompt_tokens,
        prompt * 1e3,
        answer.tokens,
        answer.tokens.saturating_sub(1) as f64 / decode.max(1e-9),
        answer.reason
    );
}

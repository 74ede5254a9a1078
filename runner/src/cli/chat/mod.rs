//! A chat on a terminal: [`editor`] reads what the user types, [`command`] tells commands from messages, and
//! [`conversation`] keeps what was said.

mod command;
mod conversation;
mod editor;

use std::io::Write;

use fastrun::FinishReason;
use fastrun::chat::{ChatTemplate, Prompt};
use fastrun::device::Device;

use super::answer::{Answer, Stats};
use super::failure::Failure;
use super::interrupt::Catch;
use super::run::{Speaker, raw, render};
use super::style::Style;
use command::Command;
use conversation::Conversation;
use editor::{Editor, Input};

/// Reads messages and commands, and answers them, until the user leaves. An error ends the turn, not the chat.
pub fn chat<D: Device>(speaker: &mut Speaker<D>, out: &mut dyn Write) -> Result<(), Failure> {
    let template = match speaker.args.raw {
        true => None,
        false => Some(ChatTemplate::of_model(&speaker.tokenizer)?),
    };
    let mut editor = Editor::open(!speaker.args.no_history)?;
    let mut chat = Chat {
        conversation: Conversation::new(speaker.args.system.clone()),
        speaker,
        template,
        style: Style::of(&std::io::stderr()),
        last: None,
    };
    chat.aside("/help tells what can be typed; Ctrl-C stops an answer, Ctrl-D leaves.");
    // Whether the last thing that was typed is Ctrl-C.
    let mut interrupted = false;
    loop {
        out.flush()?;
        let input = editor.read()?;
        let again = std::mem::replace(&mut interrupted, input == Input::Interrupted);
        match input {
            Input::End => return Ok(()),
            Input::Interrupted if again => return Ok(()),
            Input::Interrupted => chat.aside("Ctrl-C once more, or Ctrl-D, leaves."),
            Input::Text(text) => match Command::parse(&text) {
                None if text.trim().is_empty() => {}
                None => chat.turn(text.trim(), out)?,
                Some(Ok(Command::Exit)) => return Ok(()),
                Some(Ok(command)) => chat.obey(command, out)?,
                Some(Err(fault)) => chat.aside(&fault),
            },
        }
    }
}

struct Chat<'a, 'b, D> {
    speaker: &'a mut Speaker<'b, D>,
    /// None: texts are continued as they are, each on its own.
    template: Option<ChatTemplate<'b>>,
    conversation: Conversation,
    style: Style,
    /// The last answer's figures.
    last: Option<Stats>,
}

impl<D: Device> Chat<'_, '_, D> {
    /// Answers `text` after what was said before, and keeps both; neither where it fails.
    fn turn(&mut self, text: &str, out: &mut dyn Write) -> Result<(), Failure> {
        match self.answer(text, out) {
            Ok(answer) => {
                writeln!(out)?;
                out.flush()?;
                self.answered(text, &answer);
                Ok(())
            }
            Err(failure @ Failure::Output(_)) => Err(failure),
            Err(failure) => {
                out.flush()?;
                note!("{} {failure}", self.style.error("fastrun:"));
                self.aside("The message is forgotten; /reset starts over.");
                Ok(())
            }
        }
    }

    fn answer(&mut self, text: &str, out: &mut dyn Write) -> Result<Answer, Failure> {
        let prompt = self.prompt(text)?;
        let interrupt = Catch::new().map_err(|e| {
            fastrun::Error::User(format!("can't catch Ctrl-C: {e}; use -p TEXT instead"))
        })?;
        self.speaker.answer(&prompt, out, || interrupt.requested())
    }

    fn prompt(&self, text: &str) -> Result<Prompt, Failure> {
        match &self.template {
            None => Ok(raw(text)),
            Some(template) => Ok(render(template, self.conversation.messages_with(text))?),
        }
    }

    fn answered(&mut self, text: &str, answer: &Answer) {
        self.last = Some(answer.stats);
        if answer.reason == FinishReason::Cancelled && answer.text.is_empty() {
            self.aside("Stopped before the first word; the message is forgotten.");
        } else if self.template.is_some() {
            self.conversation.add(text, &answer.text);
        }
        if self.speaker.out_of_room(answer) {
            self.aside(&format!(
                "The context of {} tokens is full; /reset starts over.",
                self.speaker.limits.context
            ));
        }
        self.speaker.report(answer);
    }

    fn obey(&mut self, command: Command, out: &mut dyn Write) -> Result<(), Failure> {
        if self.template.is_none() && command.is_about_conversation() {
            self.aside("With --raw each text is continued on its own: there is no conversation.");
            return Ok(());
        }
        match command {
            // The loop has dealt with it.
            Command::Exit => {}
            Command::Help => writeln!(out, "{}", command::HELP)?,
            Command::Reset => {
                self.conversation.clear();
                self.last = None;
                self.aside(match self.conversation.system {
                    Some(_) => "The conversation is forgotten; the system prompt stays.",
                    None => "The conversation is forgotten.",
                });
            }
            Command::ShowSystem => match &self.conversation.system {
                Some(text) => writeln!(out, "{text}")?,
                None => self.aside("There is no system prompt; /system TEXT sets one."),
            },
            Command::SetSystem(text) => {
                self.conversation.system = text;
                self.aside(match self.conversation.system {
                    Some(_) => "The system prompt is set, from the next answer on.",
                    None => "The system prompt is gone, from the next answer on.",
                });
            }
            Command::ShowSeed => writeln!(out, "{}", self.speaker.sampling.seed)?,
            Command::SetSeed(seed) => {
                self.speaker.sampling.seed = seed;
                self.aside(&format!("The seed is {seed}, from the next answer on."));
            }
            Command::Save(path) => match self.conversation.save(&path) {
                Ok(()) => self.aside(&format!(
                    "Saved {} to {}.",
                    self.conversation,
                    path.display()
                )),
                Err(fault) => self.aside(&fault),
            },
            Command::Load(path) => match Conversation::load(&path) {
                Ok(loaded) => {
                    self.conversation = loaded;
                    self.last = None;
                    self.aside(&format!(
                        "Loaded {} from {}.",
                        self.conversation,
                        path.display()
                    ));
                }
                Err(fault) => self.aside(&fault),
            },
            Command::Stats => {
                let (used, all) = (
                    self.last.map_or(0, |stats| stats.context()),
                    self.speaker.limits.context,
                );
                match &self.last {
                    Some(stats) => writeln!(out, "{stats}")?,
                    None => writeln!(out, "no answer yet")?,
                }
                writeln!(
                    out,
                    "context: {used} of {all} tokens; seed: {}",
                    self.speaker.sampling.seed
                )?;
            }
        }
        Ok(())
    }

    /// Says something to the user that is no answer.
    fn aside(&self, text: &str) {
        note!("{}", self.style.aside(text));
    }
}

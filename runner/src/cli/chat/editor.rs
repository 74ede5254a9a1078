//! The line editor, and the history file in the user's state folder.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrun::Error;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{
    Behavior, Cmd, ColorMode, CompletionType, ConditionalEventHandler, Config, Context, Event,
    EventContext, EventHandler, Helper, KeyCode, KeyEvent, Modifiers, RepeatCount,
};

use super::command;
use crate::cli::style::Style;

/// Lines that the history keeps.
const HISTORY: usize = 1000;

/// What the user did at the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// One line, or several.
    Text(String),
    /// Ctrl-C, which drops the line.
    Interrupted,
    /// Ctrl-D on an empty line, or the terminal's end.
    End,
}

pub struct Editor {
    editor: rustyline::Editor<Commands, FileHistory>,
    /// The prompt without and with colours.
    prompt: (&'static str, String),
    /// None: the history ends with the chat.
    history: Option<PathBuf>,
    /// See [`Continuation`].
    continued: Arc<Mutex<Vec<String>>>,
}

impl Editor {
    /// An editor on the terminal; with the user's history if that is wanted and there is a folder for it.
    pub fn open(with_history: bool) -> Result<Editor, Error> {
        let style = Style::of(&io::stdout());
        let mut editor = rustyline::Editor::with_config(config(style)?).map_err(no_terminal)?;
        editor.set_helper(Some(Commands));
        editor.bind_sequence(
            KeyEvent(KeyCode::Enter, Modifiers::ALT),
            EventHandler::Simple(Cmd::Newline),
        );
        let continued = Arc::default();
        for enter in [
            KeyEvent(KeyCode::Enter, Modifiers::NONE),
            KeyEvent::ctrl('J'),
        ] {
            let handler = Continuation(Arc::clone(&continued));
            editor.bind_sequence(enter, EventHandler::Conditional(Box::new(handler)));
        }
        let mut editor = Editor {
            editor,
            prompt: ("> ", style.prompt("> ")),
            history: None,
            continued,
        };
        if with_history && let Some(path) = history_file(|name| std::env::var_os(name)) {
            editor.use_history(path);
        }
        Ok(editor)
    }

    /// Reads the history and goes on with it; a chat without is no reason to end.
    fn use_history(&mut self, path: PathBuf) {
        let loaded = match self.editor.load_history(&path) {
            Err(ReadlineError::Io(e)) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|e| e.to_string()),
        };
        let usable = loaded.and_then(|()| make_folder_of(&path).map_err(|e| e.to_string()));
        match usable {
            Ok(()) => self.history = Some(path),
            Err(fault) => no_history(&path, &fault),
        }
    }

    /// Lets the user type. What is typed becomes part of the history.
    pub fn read(&mut self) -> Result<Input, Error> {
        lock(&self.continued).clear();
        match self.editor.readline(&self.prompt) {
            Ok(text) => {
                let text = without_backslashes(text, std::mem::take(&mut lock(&self.continued)));
                self.remember(&text);
                Ok(Input::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(e) => Err(no_terminal(e)),
        }
    }

    /// Keeps a text at once: a chat may end in many ways.
    fn remember(&mut self, text: &str) {
        let added = match text.trim().is_empty() {
            true => Ok(false),
            false => self.editor.add_history_entry(text),
        };
        if matches!(added, Ok(true))
            && let Some(path) = self.history.take()
        {
            match self.editor.append_history(&path) {
                Ok(()) => self.history = Some(path),
                Err(e) => no_history(&path, &e.to_string()),
            }
        }
    }
}

fn config(style: Style) -> Result<Config, Error> {
    use std::io::IsTerminal;
    let builder = Config::builder()
        .completion_type(CompletionType::List)
        .color_mode(match style.has_colours() {
            true => ColorMode::Enabled,
            false => ColorMode::Disabled,
        })
        // Where answers go to a file, the editor still works on the terminal.
        .behavior(match io::stdout().is_terminal() {
            true => Behavior::Stdio,
            false => Behavior::PreferTerm,
        })
        .max_history_size(HISTORY)
        .map_err(no_terminal)?;
    Ok(builder.build())
}

fn no_terminal(error: ReadlineError) -> Error {
    Error::User(format!(
        "can't read from the terminal: {error}; give a prompt with -p TEXT, or pipe it in"
    ))
}

fn no_history(path: &Path, fault: &str) {
    note!(
        "fastrun: no history is kept: {}: {fault}; --no-history silences this",
        path.display()
    );
}

/// `fastinfer/history` in the state folder by the XDG base directory specification; none where the environment has no
/// folder of the user.
fn history_file(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // A relative path is to be ignored, as an empty one.
    let folder = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("fastinfer/history"))
}

/// Makes the folder that a file is to lie in, for the user's eyes only.
fn make_folder_of(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    path.parent()
        .map_or(Ok(()), |folder| builder.create(folder))
}

/// Enter after a backslash: a new line. The text up to each such backslash is noted, so that those that are to vanish can
/// be told from those of a pasted program.
struct Continuation(Arc<Mutex<Vec<String>>>);

impl ConditionalEventHandler for Continuation {
    fn handle(
        &self,
        _event: &Event,
        _count: RepeatCount,
        _positive: bool,
        context: &EventContext,
    ) -> Option<Cmd> {
        let (line, at) = (context.line(), context.pos());
        (at == line.len() && line.ends_with('\\')).then(|| {
            lock(&self.0).push(line.to_owned());
            Cmd::Newline
        })
    }
}

/// A text without the backslashes that `continued` parts of it end in. One that was edited since stays: the user saw it.
fn without_backslashes(mut text: String, mut continued: Vec<String>) -> String {
    // From the last one, so that the others stay where they were noted.
    continued.sort_by_key(|part| std::cmp::Reverse(part.len()));
    continued.dedup();
    for part in continued {
        let rest = text.strip_prefix(&part);
        if rest.is_some_and(|rest| rest.starts_with('\n')) {
            text.remove(part.len() - 1);
        }
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done with it panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Completes the names of commands.
struct Commands;

impl Completer for Commands {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok((0, completions(&line[..at])))
    }
}

/// What a line that begins so may be.
fn completions(start: &str) -> Vec<String> {
    let names = command::NAMES.iter();
    names
        .filter(|name| start.starts_with('/') && name.starts_with(start))
        .map(|name| name.to_string())
        .collect()
}

impl Hinter for Commands {
    type Hint = String;
}

impl Highlighter for Commands {}
impl Validator for Commands {}
impl Helper for Commands {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_lies_in_the_state_folder() {
        let file = |state: Option<&str>, home: Option<&str>| {
            history_file(|name| match name {
                "XDG_STATE_HOME" => state.map(OsString::from),
                "HOME" => home.map(OsString::from),
                other => panic!("{other}"),
            })
        };
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(file(Some("/s"), Some("/h")), path("/s/fastinfer/history"));
        let below_home = path("/h/.local/state/fastinfer/history");
        assert_eq!(file(None, Some("/h")), below_home);
        assert_eq!(file(Some(""), Some("/h")), below_home);
        assert_eq!(file(Some("s"), Some("/h")), below_home);
        assert_eq!(file(None, None), None);
        assert_eq!(file(None, Some("")), None);
    }

    #[test]
    fn typed_backslashes_vanish_and_pasted_ones_stay() {
        let join = |text: &str, continued: &[&str]| {
            let continued = continued.iter().map(|s| s.to_string()).collect();
            without_backslashes(text.to_owned(), continued)
        };
        assert_eq!(join("a\\\nb\\\nc", &["a\\", "a\\\nb\\"]), "a\nb\nc");
        assert_eq!(join("a\\\nb\\\nc", &["a\\\nb\\"]), "a\\\nb\nc");
        assert_eq!(join("a\\\nb", &[]), "a\\\nb");
        // Edited, or typed twice.
        assert_eq!(join("A\\\nb", &["a\\"]), "A\\\nb");
        assert_eq!(join("a\\\\\nb", &["a\\\\", "a\\\\"]), "a\\\nb");
    }

    #[test]
    fn commands_are_completed_and_messages_not() {
        assert_eq!(completions("/s"), ["/system", "/seed", "/save", "/stats"]);
        assert_eq!(completions("/ex"), ["/exit"]);
        assert!(completions("").is_empty());
        assert!(completions("/exit now").is_empty());
    }
}

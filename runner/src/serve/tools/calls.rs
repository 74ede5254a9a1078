//! Calls of tools, read out of a model's text as it comes.

use super::{CallFormat, END_TAG, TAG};

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text for the user.
    Text(String),
    /// A call begins. Calls are numbered from 0.
    Call { index: usize, name: String },
    /// More of a call's arguments, which are JSON.
    Arguments { index: usize, json: String },
}

/// Takes an answer apart. Whatever the text is, nothing of it is lost but the calls' own frame.
#[derive(Debug)]
pub struct CallParser {
    format: CallFormat,
    state: State,
    /// Text that may turn out to be the start of a call.
    held: String,
    /// Calls so far.
    calls: usize,
}

#[derive(Debug)]
enum State {
    /// Nothing but white space has come.
    Start,
    Text,
    Call(Call),
    /// Behind a call.
    Between,
}

impl CallParser {
    pub fn new(format: CallFormat) -> CallParser {
        CallParser {
            format,
            state: State::Start,
            held: String::new(),
            calls: 0,
        }
    }

    /// Calls that have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// What `text` adds.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.held += text;
        while self.advance(&mut pieces) {}
        pieces
    }

    /// The answer is over: what was held back is text.
    pub fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Start | State::Text if !held.is_empty() => vec![Piece::Text(held)],
            _ => Vec::new(),
        }
    }

    /// Consumes some of what is held; false where more must come first.
    fn advance(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match &mut self.state {
            State::Start | State::Text if self.format == CallFormat::Tagged => {
                if let Some(at) = self.held.find(TAG) {
                    let before = self.held[..at].trim_end();
                    if !before.is_empty() {
                        pieces.push(Piece::Text(before.to_owned()));
                    }
                    self.held.drain(..at + TAG.len());
                    self.state = self.call();
                    return true;
                }
                let sure = sure_text(&self.held);
                if sure > 0 {
                    let text = self.held.drain(..sure).collect();
                    pieces.push(Piece::Text(text));
                    self.state = State::Text;
                }
                false
            }
            State::Start => {
                let first = self.held.trim_start().chars().next();
                match first {
                    None => return false,
                    Some('{') => self.state = self.call(),
                    Some(_) => self.state = State::Text,
                }
                true
            }
            State::Text => {
                let text = std::mem::take(&mut self.held);
                if !text.is_empty() {
                    pieces.push(Piece::Text(text));
                }
                false
            }
            State::Call(call) => {
                let used = call.push(&self.held, pieces);
                let over = call.depth == 0 && call.begun;
                self.calls = call.index + usize::from(call.name.is_some());
                self.held.drain(..used);
                if over {
                    self.state = State::Between;
                }
                over
            }
            State::Between => {
                let rest = self
                    .held
                    .trim_start_matches(|c: char| c.is_whitespace() || c == ';');
                let (next, frame) = match self.format {
                    CallFormat::Tagged => match rest.strip_prefix(END_TAG) {
                        Some(rest) => (Some(rest), true),
                        None => (rest.strip_prefix(TAG), false),
                    },
                    CallFormat::Llama | CallFormat::Prompted => {
                        (rest.starts_with('{').then_some(rest), false)
                    }
                };
                let Some(next) = next else {
                    return false;
                };
                self.held = next.to_owned();
                if !frame {
                    self.state = self.call();
                }
                true
            }
        }
    }

    fn call(&self) -> State {
        State::Call(Call {
            index: self.calls,
            arguments: self.format.arguments(),
            ..Call::default()
        })
    }
}

/// Length of the text before white space and a beginning of a tag.
fn sure_text(held: &str) -> usize {
    let starts = |tail: &str| TAG.starts_with(tail);
    let tail = (1..TAG.len().min(held.len() + 1))
        .rev()
        .filter_map(|n| held.get(held.len() - n..))
        .find(|tail| starts(tail))
        .map_or(0, str::len);
    held[..held.len() - tail].trim_end().len()
}

/// One call's object, read byte by byte: only its own keys matter, what is below them is passed on or over.
#[derive(Debug, Default)]
struct Call {
    index: usize,
    /// The key of the arguments.
    arguments: &'static str,
    begun: bool,
    /// Braces and brackets that are open.
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The last string of the object itself, with its quotes.
    string: String,
    key: String,
    /// Behind the key's colon.
    in_value: bool,
    name: Option<String>,
    /// Arguments that came before the name.
    early: String,
}

impl Call {
    /// Reads `text` as far as the object goes; how many bytes that is.
    fn push(&mut self, text: &str, pieces: &mut Vec<Piece>) -> usize {
        let mut json = String::new();
        let mut used = text.len();
        for (at, c) in text.char_indices() {
            if self.begun && self.depth == 0 {
                used = at;
                break;
            }
            let inner = self.depth > 1;
            self.read(c, pieces);
            let is_argument = self.in_value && self.key == self.arguments && self.depth >= 1;
            let is_frame =
                !inner && self.depth == 1 && !self.in_string && (c == ':' || c.is_whitespace());
            if is_argument && !is_frame {
                json.push(c);
            }
        }
        if self.name.is_none() {
            self.early += &json;
        } else {
            let early = std::mem::take(&mut self.early);
            let json = early + &json;
            if !json.is_empty() {
                let index = self.index;
                pieces.push(Piece::Arguments { index, json });
            }
        }
        used
    }

    fn read(&mut self, c: char, pieces: &mut Vec<Piece>) {
        if self.in_string {
            if self.depth == 1 {
                self.string.push(c);
            }
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.in_string = false;
                    if self.depth == 1 {
                        self.string_ends(pieces);
                    }
                }
                _ => {}
            }
            return;
        }
        match c {
            '"' => {
                self.in_string = true;
                self.string = "\"".into();
            }
            '{' | '[' => {
                self.depth += 1;
                self.begun = true;
            }
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            ':' if self.depth == 1 => self.in_value = true,
            ',' if self.depth == 1 => self.in_value = false,
            _ => {}
        }
    }

    /// A key of the object, or the value of one.
    fn string_ends(&mut self, pieces: &mut Vec<Piece>) {
        let Ok(string) = serde_json::from_str::<String>(&self.string) else {
            return;
        };
        if !self.in_value {
            self.key = string;
        } else if self.key == "name" && self.name.is_none() {
            self.name = Some(string.clone());
            pieces.push(Piece::Call {
                index: self.index,
                name: string,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a text that comes in parts of `n` characters, neighbours joined.
    fn parse(format: CallFormat, text: &str, n: usize) -> Vec<Piece> {
        let mut parser = CallParser::new(format);
        let chars: Vec<char> = text.chars().collect();
        let mut all = Vec::new();
        for part in chars.chunks(n) {
            all.extend(parser.push(&part.iter().collect::<String>()));
        }
        all.extend(parser.finish());
        let mut joined: Vec<Piece> = Vec::new();
        for piece in all {
            match (joined.last_mut(), piece) {
                (Some(Piece::Text(a)), Piece::Text(b)) => *a += &b,
                (
                    Some(Piece::Arguments { index: i, json: a }),
                    Piece::Arguments { index, json },
                ) if *i == index => {
                    *a += &json;
                }
                (_, piece) => joined.push(piece),
            }
        }
        joined
    }

    fn check(format: CallFormat, text: &str, expected: &[Piece]) {
        for n in 1..text.len() {
            assert_eq!(parse(format, text, n), expected, "in parts of {n}");
        }
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    fn call(index: usize, name: &str) -> Piece {
        let name = name.into();
        Piece::Call { index, name }
    }

    fn arguments(index: usize, json: &str) -> Piece {
        let json = json.into();
        Piece::Arguments { index, json }
    }

    #[test]
    fn tagged_calls_stand_behind_text() {
        check(
            CallFormat::Tagged,
            "Let me <see>.\n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": \"}\\\"{\", \"b\": [1, {}]}}\n</tool_call>\n\
             <tool_call>\n{\"name\": \"put\", \"arguments\": {}}\n</tool_call>",
            &[
                text("Let me <see>."),
                call(0, "get"),
                arguments(0, "{\"a\": \"}\\\"{\", \"b\": [1, {}]}"),
                call(1, "put"),
                arguments(1, "{}"),
            ],
        );
    }

    #[test]
    fn bare_calls_are_the_whole_answer() {
        check(
            CallFormat::Llama,
            "{\"name\": \"get\", \"parameters\": {\"é\": null}}; {\"name\": \"get\", \"parameters\": {\"x\": {\"name\": \"y\"}}}",
            &[
                call(0, "get"),
                arguments(0, "{\"é\": null}"),
                call(1, "get"),
                arguments(1, "{\"x\": {\"name\": \"y\"}}"),
            ],
        );
    }

    #[test]
    fn text_stays_as_it_is() {
        let plain = "One < two, a {brace}, <tool_cal and <tool_call\n ";
        check(CallFormat::Tagged, plain, &[text(plain)]);
        check(CallFormat::Prompted, plain, &[text(plain)]);
    }

    #[test]
    fn a_call_that_breaks_off_keeps_what_came() {
        check(
            CallFormat::Prompted,
            "{\"name\": \"get\", \"arguments\": {\"city\": \"Par",
            &[call(0, "get"), arguments(0, "{\"city\": \"Par")],
        );
    }
}

//! Keeps text of messages from becoming control tokens.
//!
//! A template is free to trim, split and compare messages, so that they must reach it as they are. A mark, a character
//! that occurs nowhere else, is therefore set only where a message's string could make a control token: before each
//! spelling of one; and at the string's ends, where they could complete one together with what the template or another
//! string puts beside them. When the prompt is rendered, the marks are taken out, and their places remembered: a control
//! token may not contain the character that follows a mark. All other text is tokenised as if it had no origin.

use serde_json::{Map, Value as Json};

use super::Prompt;
use crate::Error;
use crate::tokenizer::Tokenizer;

/// Candidates for marks: Unicode's noncharacters, which interchanged text doesn't hold.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// Sets and removes marks.
pub struct Marker<'t, 'a> {
    tokenizer: &'t Tokenizer<'a>,
    mark: char,
}

impl<'t, 'a> Marker<'t, 'a> {
    /// A marker whose mark is neither in the template nor in `inputs`.
    pub fn new(
        tokenizer: &'t Tokenizer<'a>,
        template: &str,
        inputs: &[&Json],
    ) -> Result<Self, Error> {
        let mut used = Vec::new();
        let mut note = |text: &str| used.extend(text.chars().filter(|c| MARKS.contains(c)));
        note(template);
        for input in inputs {
            each_string(input, &mut note);
        }
        match MARKS.into_iter().find(|mark| !used.contains(mark)) {
            Some(mark) => Ok(Self { tokenizer, mark }),
            None => Err(Error::User(
                "the messages hold all of the noncharacters U+FDD0 to U+FDEF; take one of them out"
                    .into(),
            )),
        }
    }

    /// `value` with marks in all strings, keys included, except values of `role`.
    pub fn mark(&self, value: Json) -> Json {
        match value {
            Json::String(text) => Json::String(self.mark_text(&text)),
            Json::Array(items) => items.into_iter().map(|item| self.mark(item)).collect(),
            Json::Object(entries) => Json::Object(
                entries
                    .into_iter()
                    .map(|(key, value)| match key == "role" {
                        true => (key, value),
                        false => (self.mark_text(&key), self.mark(value)),
                    })
                    .collect::<Map<_, _>>(),
            ),
            other => other,
        }
    }

    fn mark_text(&self, text: &str) -> String {
        let mut places = self.tokenizer.matcher().control_starts(text);
        self.find_partial(text, &mut places);
        places.sort_unstable();
        places.dedup();
        let mut marked = String::with_capacity(text.len() + places.len() * self.mark.len_utf8());
        let mut end = 0;
        for place in places {
            marked.push_str(&text[end..place]);
            marked.push(self.mark);
            end = place;
        }
        marked.push_str(&text[end..]);
        marked
    }

    /// Adds where parts of control tokens lie at the ends of `text`, white space aside since templates trim it.
    fn find_partial(&self, text: &str, places: &mut Vec<usize>) {
        let core = text.trim();
        if core.is_empty() {
            return;
        }
        let start = text.len() - text.trim_start().len();
        for control in self.tokenizer.matcher().controls() {
            for (at, _) in control.char_indices().skip(1) {
                let (head, tail) = control.split_at(at);
                if is_telling(head) && core.ends_with(head) {
                    places.push(start + core.len() - head.len());
                }
                if is_telling(tail) && core.starts_with(tail) {
                    places.push(start);
                }
            }
            if is_telling(core) && control.contains(core) {
                places.push(start);
            }
        }
    }

    /// Takes the marks out of a rendered template.
    pub fn unmark(&self, rendered: &str) -> Prompt {
        let mut prompt = Prompt::default();
        for (i, part) in rendered.split(self.mark).enumerate() {
            if i > 0 && prompt.literal.last() != Some(&prompt.text.len()) {
                prompt.literal.push(prompt.text.len());
            }
            prompt.text.push_str(part);
        }
        prompt
    }
}

/// Whether a part of a control token is more than a word: plain words stay unmarked, since templates compare them.
fn is_telling(part: &str) -> bool {
    part.chars()
        .any(|c| !c.is_alphanumeric() && c != '_' && !c.is_whitespace())
}

fn each_string(value: &Json, each: &mut impl FnMut(&str)) {
    match value {
        Json::String(text) => each(text),
        Json::Array(items) => items.iter().for_each(|item| each_string(item, each)),
        Json::Object(entries) => {
            for (key, value) in entries {
                each(key);
                each_string(value, each);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

//! Cuts text into words, one splitter a pre-tokeniser. Merges don't cross words.
//!
//! Pre-tokenisers are regular expressions, or several of them: each cuts out its matches from the pieces that the one
//! before left, its matches included. They are written out as code here, so that a text takes one pass a pattern.

mod cased;
mod deepseek;
mod gpt2;
mod llama3;

use bundle_format::tokenizer::PreTokenizer;

use super::unicode::{Class, first};

/// Calls `each` with the words of `text` in order. Together they are the text; none is empty.
pub fn words<'t>(pre: PreTokenizer, text: &'t str, each: &mut impl FnMut(&'t str)) {
    use llama3::{LLAMA3, QWEN2, QWEN35};
    match pre {
        PreTokenizer::Whole => isolate(text, str::len, each),
        PreTokenizer::Gpt2 => isolate(text, gpt2::word, each),
        PreTokenizer::Smollm => isolate(text, number, &mut |piece| {
            isolate(piece, gpt2::word, each);
        }),
        PreTokenizer::Llama3 => isolate(text, |text| llama3::word(LLAMA3, text), each),
        PreTokenizer::Qwen2 => isolate(text, |text| llama3::word(QWEN2, text), each),
        PreTokenizer::Qwen35 => isolate(text, |text| llama3::word(QWEN35, text), each),
        PreTokenizer::DeepseekLlm => deepseek::llm(text, each),
        PreTokenizer::DeepseekCoder => deepseek::coder(text, each),
        PreTokenizer::DeepseekV3 => deepseek::v3(text, each),
        PreTokenizer::Tekken => isolate(text, cased::tekken, each),
        PreTokenizer::Gpt4o => isolate(text, cased::gpt4o, each),
        PreTokenizer::Falcon => gpt2::falcon(text, each),
        PreTokenizer::Default => gpt2::default(text, each),
        PreTokenizer::Lines => isolate(text, line, each),
    }
}

/// Cuts `text` before every space but those after an ASCII character of `joins` (as bits). Calls `each` with the parts:
/// together they are the text; none is empty.
pub fn cut_before_spaces<'t>(text: &'t str, joins: u128, each: &mut impl FnMut(&'t str)) {
    let mut start = 0;
    for (at, pair) in text.as_bytes().windows(2).enumerate() {
        let is_joined = || {
            1u128
                .checked_shl(pair[0].into())
                .is_some_and(|bit| joins & bit != 0)
        };
        if pair[1] == b' ' && !is_joined() {
            each(&text[start..at + 1]);
            start = at + 1;
        }
    }
    if start < text.len() {
        each(&text[start..]);
    }
}

/// Cuts out what `find` matches, looking at every character that no match covers: `find` tells the bytes of the match in
/// front of a text, 0 for none. What lies between matches comes in one piece.
fn isolate<'t>(text: &'t str, find: impl Fn(&str) -> usize, each: &mut impl FnMut(&'t str)) {
    let mut piece = text;
    let mut at = 0;
    while let Some((_, len)) = first(&piece[at..]) {
        let found = find(&piece[at..]);
        if found == 0 {
            at += len;
            continue;
        }
        if at > 0 {
            each(&piece[..at]);
        }
        each(&piece[at..at + found]);
        piece = &piece[at + found..];
        at = 0;
    }
    if !piece.is_empty() {
        each(piece);
    }
}

/// Bytes of the characters in front whose class `is` says.
fn run(text: &str, is: impl Fn(Class) -> bool) -> usize {
    let mut at = 0;
    while let Some((class, len)) = first(&text[at..])
        && is(class)
    {
        at += len;
    }
    at
}

/// Bytes of the characters in front of which `is` says so.
fn run_of(text: &str, is: impl Fn(char) -> bool) -> usize {
    text.len() - text.trim_start_matches(is).len()
}

/// Bytes of up to `most` numbers in front: `\p{N}{1,most}`.
fn numbers(text: &str, most: usize) -> usize {
    let mut at = 0;
    for _ in 0..most {
        match first(&text[at..]) {
            Some((Class::Number, len)) => at += len,
            _ => break,
        }
    }
    at
}

/// `\p{N}`
fn number(text: &str) -> usize {
    numbers(text, 1)
}

/// `[^\n]+|[\n]+`
fn line(text: &str) -> usize {
    match run_of(text, |c| c == '\n') {
        0 => run_of(text, |c| c != '\n'),
        newlines => newlines,
    }
}

/// `\s+(?!\S)|\s+`: white space; its last character is left to what follows, if something does and if it isn't the only
/// one.
fn spaces(text: &str) -> usize {
    let len = run(text, |class| class == Class::Space);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || last == len {
        len
    } else {
        len - last
    }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`: white space up to its last line end, or without one as [`spaces`].
fn lines_or_spaces(text: &str) -> usize {
    let len = run(text, |class| class == Class::Space);
    match text[..len].rfind(['\r', '\n']) {
        Some(at) => at + 1,
        None => spaces(text),
    }
}

/// Bytes of an English contraction's ending in front, which stays apart from what follows:
/// `'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]`.
fn contraction(text: &str) -> usize {
    let mut start = [0; 3];
    for (to, from) in start.iter_mut().zip(text.bytes()) {
        *to = from.to_ascii_lowercase();
    }
    lower_contraction(&start)
}

/// `'s|'t|'re|'ve|'m|'ll|'d`
fn lower_contraction(text: &[u8]) -> usize {
    match text {
        [b'\'', b's' | b't' | b'm' | b'd', ..] => 2,
        [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => 3,
        _ => 0,
    }
}

fn is_line_end(text: &str) -> bool {
    text.starts_with(['\r', '\n'])
}

#[cfg(test)]
mod tests;

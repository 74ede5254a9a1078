//! Tekken's and GPT-4o's patterns, in which a word ends where capital letters begin.
//!
//! As llama.cpp has them, the case of letters is only that of A to Z: other letters are of both cases.

use super::{Class, contraction, first, is_line_end, lines_or_spaces, numbers, run, run_of};

/// `[^\r\n\p{L}\p{N}]?U*L+|[^\r\n\p{L}\p{N}]?U+L*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`, with U for
/// letters but a to z and L for letters but A to Z; `text` is not empty.
pub fn tekken(text: &str) -> usize {
    match letters(text) {
        0 => others(text, 1),
        end => end,
    }
}

/// As [`tekken`], with contractions in any case after letters, and numbers by three.
pub fn gpt4o(text: &str) -> usize {
    match letters(text) {
        0 => others(text, 3),
        end => end + contraction(&text[end..]),
    }
}

/// Bytes of the letters in front and of the character before them that belongs to them; 0 for none.
fn letters(text: &str) -> usize {
    let before = match first(text) {
        Some((Class::Letter | Class::Number, _)) | None => 0,
        Some(_) if is_line_end(text) => 0,
        Some((_, len)) => len,
    };
    match cased(&text[before..]) {
        0 => 0,
        letters => before + letters,
    }
}

/// `U*L+|U+L*`
fn cased(text: &str) -> usize {
    let mut upper = 0;
    // After the last letter of U that is in L as well.
    let mut both = 0;
    while let Some((Class::Letter, len)) = first(&text[upper..])
        && !text.as_bytes()[upper].is_ascii_lowercase()
    {
        let is_ascii = text.as_bytes()[upper].is_ascii();
        upper += len;
        if !is_ascii {
            both = upper;
        }
    }
    let mut end = upper;
    while let Some((Class::Letter, len)) = first(&text[end..])
        && !text.as_bytes()[end].is_ascii_uppercase()
    {
        end += len;
    }
    // Where no lower case follows, the last letter of both cases stands for it.
    if end == upper && both > 0 { both } else { end }
}

fn others(text: &str, most_numbers: usize) -> usize {
    let numbers = numbers(text, most_numbers);
    if numbers > 0 {
        return numbers;
    }
    let space = text.starts_with(' ') as usize;
    let others = run(&text[space..], |class| {
        !matches!(class, Class::Space | Class::Letter | Class::Number)
    });
    if others > 0 {
        let end = space + others;
        return end + run_of(&text[end..], |c| matches!(c, '\r' | '\n' | '/'));
    }
    lines_or_spaces(text)
}

//! GPT-2's pattern, and those that put others before and after it.

use super::{Class, first, isolate, lower_contraction, numbers, run, spaces};

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`; `text` is not empty.
pub fn word(text: &str) -> usize {
    let ending = lower_contraction(text.as_bytes());
    if ending > 0 {
        return ending;
    }
    let space = text.starts_with(' ') as usize;
    let kind = |class| match class {
        Class::Space | Class::Letter | Class::Number => class,
        _ => Class::Other,
    };
    match first(&text[space..]) {
        Some((class, _)) if class != Class::Space => {
            space + run(&text[space..], |next| kind(next) == kind(class))
        }
        _ => spaces(text),
    }
}

/// Falcon's: punctuation, GPT-2's words, then digits by three.
pub fn falcon<'t>(text: &'t str, each: &mut impl FnMut(&'t str)) {
    isolate(text, |text| punctuation(text, true), &mut |piece| {
        isolate(piece, word, &mut |piece| isolate(piece, three_digits, each));
    });
}

/// The pattern of models that name `default`: as Falcon's but for the backtick, with numbers apart from what is before them.
pub fn default<'t>(text: &'t str, each: &mut impl FnMut(&'t str)) {
    isolate(text, |text| punctuation(text, false), &mut |piece| {
        isolate(piece, word, &mut |piece| {
            isolate(piece, |text| numbers(text, usize::MAX), &mut |piece| {
                isolate(piece, three_digits, each)
            });
        });
    });
}

/// ``[\p{P}\$\+<=>\^~\|`]+``, the backtick only if asked for.
fn punctuation(text: &str, backtick: bool) -> usize {
    let mut at = 0;
    while let Some((class, len)) = first(&text[at..]) {
        let byte = text.as_bytes()[at];
        let is = class == Class::Punctuation
            || (class == Class::Symbol && byte.is_ascii() && (backtick || byte != b'`'));
        if !is {
            break;
        }
        at += len;
    }
    at
}

/// `[0-9][0-9][0-9]`
fn three_digits(text: &str) -> usize {
    match text.as_bytes() {
        [a, b, c, ..] if [a, b, c].iter().all(|byte| byte.is_ascii_digit()) => 3,
        _ => 0,
    }
}

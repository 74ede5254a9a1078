//! Cuts text into words, one splitter a pre-tokeniser. Merges don't cross words.

use bundle_format::tokenizer::PreTokenizer;

use super::unicode::{Class, first};

/// Calls `each` with the words of `text` in order. Together they are the text.
pub fn words<'t>(pre: PreTokenizer, text: &'t str, each: &mut impl FnMut(&'t str)) {
    match pre {
        PreTokenizer::Gpt2 => gpt2(text, each),
        PreTokenizer::Smollm => isolate_numbers(text, |piece| gpt2(piece, each)),
    }
}

/// Cuts out every character of Unicode's number categories, `\p{N}`.
fn isolate_numbers<'t>(text: &'t str, mut each: impl FnMut(&'t str)) {
    let mut piece = text;
    let mut at = 0;
    while let Some((class, len)) = first(&piece[at..]) {
        if class != Class::Number {
            at += len;
            continue;
        }
        if at > 0 {
            each(&piece[..at]);
        }
        each(&piece[at..at + len]);
        piece = &piece[at + len..];
        at = 0;
    }
    if !piece.is_empty() {
        each(piece);
    }
}

/// GPT-2's pattern: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
fn gpt2<'t>(text: &'t str, each: &mut impl FnMut(&'t str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(gpt2_word(rest));
        each(word);
        rest = after;
    }
}

/// Bytes of the first word; `text` is not empty.
fn gpt2_word(text: &str) -> usize {
    if let Some(len) = contraction(text.as_bytes()) {
        return len;
    }
    let space = text.starts_with(' ') as usize;
    match first(&text[space..]) {
        Some((class, _)) if class != Class::Space => space + run(&text[space..], class),
        _ => spaces(text),
    }
}

/// Bytes of an English contraction's ending, which stays apart from what follows.
fn contraction(text: &[u8]) -> Option<usize> {
    match text {
        [b'\'', b's' | b't' | b'm' | b'd', ..] => Some(2),
        [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => Some(3),
        _ => None,
    }
}

/// Bytes of the white space in front. The last character of it is left to the word that follows, if one does and if it
/// isn't the only one.
fn spaces(text: &str) -> usize {
    let len = run(text, Class::Space);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || last == len {
        len
    } else {
        len - last
    }
}

/// Bytes of the characters of one class in front.
fn run(text: &str, class: Class) -> usize {
    let mut at = 0;
    while let Some((c, len)) = first(&text[at..])
        && c == class
    {
        at += len;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pre: PreTokenizer, text: &str) -> Vec<&str> {
        let mut out = Vec::new();
        words(pre, text, &mut |word| out.push(word));
        assert_eq!(out.concat(), text);
        out
    }

    #[test]
    fn gpt2_words() {
        let gpt2 = |text| split(PreTokenizer::Gpt2, text);
        assert_eq!(
            gpt2("Hello, world's  end"),
            ["Hello", ",", " world", "'s", " ", " end"]
        );
        assert_eq!(
            gpt2("we'll 've 'Ll x'"),
            ["we", "'ll", " '", "ve", " '", "Ll", " x", "'"]
        );
        assert_eq!(gpt2("a\n\n b \n"), ["a", "\n\n", " b", " \n"]);
        assert_eq!(gpt2("a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(gpt2("x=12½ ٣٤!?"), ["x", "=", "12½", " ٣٤", "!?"]);
        assert_eq!(gpt2(" \u{3000}字 "), [" ", "\u{3000}", "字", " "]);
        assert!(gpt2("").is_empty());
    }

    #[test]
    fn smollm_isolates_every_number() {
        let smollm = |text| split(PreTokenizer::Smollm, text);
        assert_eq!(
            smollm("in  2024²!"),
            ["in", "  ", "2", "0", "2", "4", "²", "!"]
        );
        assert_eq!(smollm("1"), ["1"]);
        assert_eq!(smollm(" 1 "), [" ", "1", " "]);
    }
}

//! The classes of characters that splitters tell apart.

mod table;

use table::RANGES;

/// What a character is to a splitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `\s`: Unicode's White_Space.
    Space,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\p{M}`
    Mark,
    /// `\p{P}`
    Punctuation,
    /// `\p{S}`
    Symbol,
    Other,
}

/// The class and length in bytes of the first character.
pub fn first(text: &str) -> Option<(Class, usize)> {
    let &byte = text.as_bytes().first()?;
    if byte < 0x80 {
        return Some((ASCII[byte as usize], 1));
    }
    let c = text.chars().next()?;
    Some((beyond_ascii(c), c.len_utf8()))
}

const ASCII: [Class; 128] = {
    let mut table = [Class::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = match byte as u8 {
            b'\t'..=b'\r' | b' ' => Class::Space,
            b'0'..=b'9' => Class::Number,
            b'A'..=b'Z' | b'a'..=b'z' => Class::Letter,
            b'$' | b'+' | b'<'..=b'>' | b'^' | b'`' | b'|' | b'~' => Class::Symbol,
            b'!'..=b'/' | b':'..=b'@' | b'['..=b'_' | b'{'..=b'}' => Class::Punctuation,
            _ => Class::Other,
        };
        byte += 1;
    }
    table
};

fn beyond_ascii(c: char) -> Class {
    if c.is_whitespace() {
        return Class::Space;
    }
    let code = c as u32;
    let next = RANGES.partition_point(|&(_, last, _)| last < code);
    match RANGES.get(next) {
        Some(&(start, _, class)) if start <= code => class,
        _ => Class::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_ascend_and_neighbours_differ() {
        for pair in RANGES.windows(2) {
            let ((_, last, class), (start, end, next)) = (pair[0], pair[1]);
            assert!(start <= end && last < start, "{start:#x}");
            assert!(class != next || last + 1 < start, "{start:#x}");
        }
    }

    #[test]
    fn ascii_is_of_its_categories() {
        let of = |class| -> String {
            (0..128u8)
                .filter(|&byte| ASCII[byte as usize] == class)
                .map(char::from)
                .collect()
        };
        assert_eq!(of(Class::Punctuation), "!\"#%&'()*,-./:;?@[\\]_{}");
        assert_eq!(of(Class::Symbol), "$+<=>^`|~");
        assert_eq!(of(Class::Number), "0123456789");
        assert_eq!(of(Class::Space), "\t\n\u{b}\u{c}\r ");
        assert_eq!(of(Class::Letter).len(), 52);
    }

    #[test]
    fn classes() {
        let class = |text: &str| first(text).unwrap();
        assert_eq!(class("é"), (Class::Letter, 2));
        assert_eq!(class("字"), (Class::Letter, 3));
        assert_eq!(class("Ⅷ"), (Class::Number, 3));
        assert_eq!(class("\u{85}"), (Class::Space, 2));
        assert_eq!(class("\u{200b}"), (Class::Other, 3));
        assert_eq!(class("😀"), (Class::Symbol, 4));
        assert_eq!(class("\u{2ee5d}"), (Class::Letter, 4));
        assert_eq!(class("\u{0301}"), (Class::Mark, 2));
        assert_eq!(class("。"), (Class::Punctuation, 3));
        assert_eq!(class("\u{7f}"), (Class::Other, 1));
        assert_eq!(first(""), None);
    }
}

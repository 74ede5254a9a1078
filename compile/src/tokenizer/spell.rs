//! What tokens stand for in text, from how vocabularies spell them.
//!
//! Byte-level vocabularies use GPT-2's byte alphabet: every byte as one printable letter, so that vocabularies are text.
//! Printable bytes of Latin-1 are their own letters; the others take the letters from U+0100 on, in order. Vocabularies of
//! characters write a space as U+2581.

use std::borrow::Cow;

use bundle_format::tokenizer::{Attr, ModelKind};

use super::Error;

/// The bytes that a token stands for in text.
pub fn spell(kind: ModelKind, id: u32, text: &[u8], attr: Attr) -> Result<Vec<u8>, Error> {
    if attr.is_matched() {
        // Looked for in text, so that it must lie between characters.
        return match std::str::from_utf8(text) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err(Error::SpecialUtf8 { id }),
        };
    }
    if attr.any(Attr::BYTE) {
        return match hex_byte(text) {
            Some(byte) => Ok(vec![byte]),
            None => Err(Error::ByteToken {
                id,
                text: text.escape_ascii().to_string(),
            }),
        };
    }
    Ok(match kind {
        // Text beyond the alphabet stands for itself: some vocabularies list such tokens, which no merge makes.
        ModelKind::ByteBpe => letters_to_bytes(text).unwrap_or_else(|| text.into()),
        ModelKind::Scored | ModelKind::CharBpe => marks_to_spaces(text).into_owned(),
    })
}

/// How a vocabulary spells the token of a single byte; a second spelling counts where it lacks the first.
pub fn byte_spellings(kind: ModelKind, byte: u8) -> Vec<Vec<u8>> {
    let hex = || format!("<0x{byte:02X}>").into_bytes();
    match kind {
        ModelKind::ByteBpe => vec![letter(byte).to_string().into_bytes()],
        ModelKind::Scored => vec![hex(), vec![byte]],
        ModelKind::CharBpe => vec![hex()],
    }
}

/// U+2581 as the space that it stands for.
pub fn marks_to_spaces(text: &[u8]) -> Cow<'_, [u8]> {
    const MARK: &[u8] = "\u{2581}".as_bytes();
    let mut spelled = Cow::Borrowed(text);
    while let Some(at) = spelled.windows(MARK.len()).position(|part| part == MARK) {
        spelled.to_mut().splice(at..at + MARK.len(), [b' ']);
    }
    spelled
}

/// The letter of a byte.
fn letter(byte: u8) -> char {
    if is_own_letter(byte) {
        return byte as char;
    }
    let before = (0..byte).filter(|&b| !is_own_letter(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or_default() // 68 letters: all of them are characters
}

/// The bytes that `text` spells; none where it has other letters or isn't UTF-8.
pub fn letters_to_bytes(text: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(text).ok()?.chars().map(byte).collect()
}

/// The byte of `<0x0A>` and the like.
fn hex_byte(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    if digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn byte(letter: char) -> Option<u8> {
    match u8::try_from(letter) {
        Ok(byte) => is_own_letter(byte).then_some(byte),
        Err(_) => {
            let place = (letter as usize).checked_sub(0x100)?;
            (0..=255).filter(|&b| !is_own_letter(b)).nth(place)
        }
    }
}

fn is_own_letter(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_bytes_are_one_to_one() {
        for b in 0..=255 {
            assert_eq!(byte(letter(b)), Some(b));
        }
        assert_eq!(letter(b' '), 'Ġ');
        assert_eq!(letter(b'\n'), 'Ċ');
        assert_eq!(letter(0xAD), 'Ń');
        assert_eq!(
            letters_to_bytes("ĠaÃ©".as_bytes()),
            Some(b" a\xc3\xa9".to_vec())
        );
        assert_eq!(letters_to_bytes("a b".as_bytes()), None);
        assert_eq!(letters_to_bytes("字".as_bytes()), None);
        assert_eq!(letters_to_bytes(b"\xff"), None);
    }

    #[test]
    fn hex_bytes() {
        assert_eq!(hex_byte(b"<0x0A>"), Some(10));
        for wrong in ["<0x+1>", "<0xA>", "0x0A", "<0x0AA>", "<0xGG>"] {
            assert_eq!(hex_byte(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn marks_are_spaces() {
        let spaces = |text: &str| String::from_utf8(marks_to_spaces(text.as_bytes()).into_owned());
        assert_eq!(spaces("▁▁a▁é▀").unwrap(), "  a é▀");
        assert_eq!(spaces("a b").unwrap(), "a b");
    }
}

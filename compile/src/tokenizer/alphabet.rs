//! GPT-2's byte alphabet: every byte as one printable letter, so that vocabularies are text.
//!
//! Printable bytes of Latin-1 are their own letters; the others take the letters from U+0100 on, in order.

/// The letter of a byte.
pub fn letter(byte: u8) -> char {
    if is_own_letter(byte) {
        return byte as char;
    }
    let before = (0..byte).filter(|&b| !is_own_letter(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or_default() // 68 letters: all of them are characters
}

/// The bytes that `text` spells; none where it has other letters or isn't UTF-8.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(text).ok()?.chars().map(byte).collect()
}

/// The byte of `<0x0A>` and the like.
pub fn hex_byte(text: &[u8]) -> Option<u8> {
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
        assert_eq!(decode("ĠaÃ©".as_bytes()), Some(b" a\xc3\xa9".to_vec()));
        assert_eq!(decode("a b".as_bytes()), None);
        assert_eq!(decode("字".as_bytes()), None);
        assert_eq!(decode(b"\xff"), None);
    }

    #[test]
    fn hex_bytes() {
        assert_eq!(hex_byte(b"<0x0A>"), Some(10));
        for wrong in ["<0x+1>", "<0xA>", "0x0A", "<0x0AA>", "<0xGG>"] {
            assert_eq!(hex_byte(wrong.as_bytes()), None, "{wrong}");
        }
    }
}

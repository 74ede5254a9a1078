//! DeepSeek's patterns. Each is a list of expressions, applied one after the other.

use super::{Class, first, is_line_end, isolate, lines_or_spaces, number, numbers, run, run_of};

/// `[\r\n]`; `\s?` and cased letters; `\s?` and punctuation, with which ASCII letters count; `\s+$`; characters of East
/// Asia; numbers.
pub fn llm<'t>(text: &'t str, each: &mut impl FnMut(&'t str)) {
    isolate(text, line_end, &mut |piece| {
        isolate(piece, |text| spaced(text, cased), &mut |piece| {
            isolate(piece, |text| spaced(text, signs), &mut |piece| {
                cut_last_spaces(piece, &mut |piece| {
                    isolate(piece, east_asian, &mut |piece| {
                        isolate(piece, |text| numbers(text, usize::MAX), each);
                    });
                });
            });
        });
    });
}

/// `[\r\n]`; `\s?\p{L}+`; `\s?\p{P}+`; characters of East Asia; `\p{N}`.
pub fn coder<'t>(text: &'t str, each: &mut impl FnMut(&'t str)) {
    let letters = |text: &str| run(text, |class| class == Class::Letter);
    let punctuation = |text: &str| run(text, |class| class == Class::Punctuation);
    isolate(text, line_end, &mut |piece| {
        isolate(piece, |text| spaced(text, letters), &mut |piece| {
            isolate(piece, |text| spaced(text, punctuation), &mut |piece| {
                isolate(piece, east_asian, &mut |piece| isolate(piece, number, each));
            });
        });
    });
}

/// `\p{N}{1,3}`; Chinese characters and kana; then [`v3_word`].
pub fn v3<'t>(text: &'t str, each: &mut impl FnMut(&'t str)) {
    let chinese_or_kana = |text: &str| {
        run_of(
            text,
            |c| matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}'),
        )
    };
    isolate(text, |text| numbers(text, 3), &mut |piece| {
        isolate(piece, chinese_or_kana, &mut |piece| {
            isolate(piece, v3_word, each);
        });
    });
}

/// A sign of ASCII and letters of ASCII; `[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+`; ` ?[\p{P}\p{S}]+[\r\n]*`; `\s*[\r\n]+`;
/// `\s+(?!\S)`; `\s+`. Some characters are in none of them: numbers, and controls that no letter follows.
fn v3_word(text: &str) -> usize {
    let is_letter = |class| matches!(class, Class::Letter | Class::Mark);
    let is_sign = |class| matches!(class, Class::Punctuation | Class::Symbol);
    let Some((class, len)) = first(text) else {
        return 0;
    };
    if is_sign(class) && len == 1 {
        let letters = run_of(&text[1..], |c| c.is_ascii_alphabetic());
        if letters > 0 {
            return 1 + letters;
        }
    }
    if !is_line_end(text) && !is_sign(class) {
        let letters = run(&text[len..], is_letter);
        if is_letter(class) || letters > 0 {
            return len + letters;
        }
    }
    let space = text.starts_with(' ') as usize;
    let signs = run(&text[space..], is_sign);
    if signs > 0 {
        let end = space + signs;
        return end + run_of(&text[end..], |c| c == '\r' || c == '\n');
    }
    lines_or_spaces(text)
}

fn line_end(text: &str) -> usize {
    is_line_end(text) as usize
}

/// What `find` finds, with one white space before it if there is one.
fn spaced(text: &str, find: impl Fn(&str) -> usize) -> usize {
    let space = match first(text) {
        Some((Class::Space, len)) => len,
        _ => 0,
    };
    match find(&text[space..]) {
        0 => 0,
        found => space + found,
    }
}

/// `\s+$`
fn cut_last_spaces<'t>(text: &'t str, each: &mut impl FnMut(&'t str)) {
    let (front, spaces) = text.split_at(text.trim_end().len());
    for piece in [front, spaces] {
        if !piece.is_empty() {
            each(piece);
        }
    }
}

fn cased(text: &str) -> usize {
    run_of(text, |c| {
        if c.is_ascii() {
            return c.is_ascii_alphabetic();
        }
        let next = CASED.partition_point(|&(_, last)| last < c as u32);
        CASED.get(next).is_some_and(|&(start, _)| start <= c as u32)
    })
}

/// DeepSeek's ranges of punctuation; the one from `:` to `~` has the letters of ASCII in it.
fn signs(text: &str) -> usize {
    run_of(text, |c| {
        matches!(c,
            '!'..='/' | ':'..='~' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff5e}'
            | '\u{2018}'..='\u{201f}' | '\u{3001}'..='\u{3002}')
    })
}

/// DeepSeek's ranges of Chinese, Japanese and Korean, which has all scripts from U+0800 on in them.
fn east_asian(text: &str) -> usize {
    run_of(text, |c| {
        matches!(c, '\u{800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}') && !c.is_whitespace()
    })
}

/// Letters beyond ASCII that have a case, as DeepSeek LLM lists them: first code point and last, ascending.
#[rustfmt::skip]
const CASED: &[(u32, u32)] = &[
    (0xB5, 0xB5), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x1BA), (0x1BC, 0x1BF), (0x1C4, 0x293), (0x295, 0x2AF),
    (0x370, 0x373), (0x376, 0x377), (0x37B, 0x37D), (0x37F, 0x37F), (0x386, 0x386), (0x388, 0x38A), (0x38C, 0x38C),
    (0x38E, 0x3A1), (0x3A3, 0x3F5), (0x3F7, 0x481), (0x48A, 0x52F), (0x531, 0x556), (0x10A0, 0x10C5), (0x13A0, 0x13F5),
    (0x13F8, 0x13FD), (0x1C90, 0x1CBA), (0x1CBD, 0x1CBF), (0x1D00, 0x1D2B), (0x1D6B, 0x1D77), (0x1D79, 0x1D9A),
    (0x1E00, 0x1F15), (0x1F18, 0x1F1D), (0x1F20, 0x1F45), (0x1F48, 0x1F4D), (0x1F50, 0x1F57), (0x1F59, 0x1F59),
    (0x1F5B, 0x1F5B), (0x1F5D, 0x1F5D), (0x1F5F, 0x1F7D), (0x1F80, 0x1FB4), (0x1FB6, 0x1FBC), (0x1FBE, 0x1FBE),
    (0x1FC2, 0x1FC4), (0x1FC6, 0x1FCC), (0x1FD0, 0x1FD3), (0x1FD6, 0x1FDB), (0x1FE0, 0x1FEC), (0x1FF2, 0x1FF4),
    (0x1FF6, 0x1FFC), (0x2102, 0x2102), (0x2107, 0x2107), (0x210A, 0x2113), (0x2115, 0x2115), (0x2119, 0x211D),
    (0x2124, 0x2124), (0x2126, 0x2126), (0x2128, 0x2128), (0x212A, 0x212D), (0x212F, 0x2134), (0x2139, 0x2139),
    (0x213C, 0x213F), (0x2145, 0x2149), (0x214E, 0x214E), (0x2183, 0x2184), (0x2C00, 0x2C7B), (0x2C7E, 0x2CE4),
    (0x2CEB, 0x2CEE), (0x2CF2, 0x2CF3), (0xA640, 0xA66D), (0xA680, 0xA69B), (0xA722, 0xA76F), (0xA771, 0xA787),
    (0xA78B, 0xA78E), (0xAB70, 0xABBF), (0xFB00, 0xFB06), (0xFB13, 0xFB17), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A),
    (0x10400, 0x1044F), (0x104B0, 0x104D3), (0x104D8, 0x104FB), (0x10C80, 0x10CB2), (0x10CC0, 0x10CF2),
    (0x118A0, 0x118DF), (0x1E900, 0x1E943),];

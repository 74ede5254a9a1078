//! Llama 3's pattern and those that differ from it in how numbers and combining marks are taken:
//! `'s|'t|'re|'ve|'m|'ll|'d` in any case, `[^\r\n\p{L}\p{N}]?\p{L}+`, `\p{N}{1,3}`, ` ?[^\s\p{L}\p{N}]+[\r\n]*`,
//! `\s*[\r\n]+`, `\s+(?!\S)`, `\s+`.

use super::{Class, contraction, first, is_line_end, lines_or_spaces, numbers, run, run_of};

/// What differs.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// Numbers that stay together, at most.
    numbers: usize,
    /// Combining marks count as letters: `[\p{L}\p{M}]` for `\p{L}`.
    marks: bool,
}

pub const LLAMA3: Pattern = Pattern {
    numbers: 3,
    marks: false,
};
pub const QWEN2: Pattern = Pattern {
    numbers: 1,
    marks: false,
};
pub const QWEN35: Pattern = Pattern {
    numbers: 1,
    marks: true,
};

/// Bytes of the first word; `text` is not empty.
pub fn word(pattern: Pattern, text: &str) -> usize {
    let is_letter = |class| class == Class::Letter || (class == Class::Mark && pattern.marks);
    let ending = contraction(text);
    if ending > 0 {
        return ending;
    }
    let Some((class, len)) = first(text) else {
        return 0;
    };
    if class == Class::Number {
        return numbers(text, pattern.numbers);
    }
    if !is_line_end(text) {
        let letters = run(&text[len..], is_letter);
        if is_letter(class) || letters > 0 {
            return len + letters;
        }
    }
    let space = text.starts_with(' ') as usize;
    let others = run(&text[space..], |class| {
        class != Class::Space && class != Class::Number && !is_letter(class)
    });
    if others > 0 {
        let end = space + others;
        return end + run_of(&text[end..], |c| c == '\r' || c == '\n');
    }
    lines_or_spaces(text)
}

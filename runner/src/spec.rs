//! Guessing tokens ahead from the sequence itself (prompt lookup): what followed the last tokens where they occurred before
//! is likely to follow them again.

use std::str::FromStr;

/// How to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NgramSpec {
    /// Most tokens to guess at a time.
    pub max_draft: u32,
    /// Most tokens of a step that may be guesses and the rows that they follow: guesses of a large batch cost more than
    /// they bring.
    pub max_rows: u32,
}

impl Default for NgramSpec {
    fn default() -> NgramSpec {
        NgramSpec {
            max_draft: 8,
            max_rows: 16,
        }
    }
}

impl FromStr for NgramSpec {
    type Err = String;

    /// `ngram`, or `ngram:N` for at most N tokens at a time.
    fn from_str(text: &str) -> Result<NgramSpec, String> {
        let default = NgramSpec::default();
        let wrong = || {
            format!(
                "'{text}' is no way to speculate; expected ngram, or ngram:N with N from 1 to 64"
            )
        };
        match text.split_once(':') {
            None if text == "ngram" => Ok(default),
            Some(("ngram", n)) => match n.parse() {
                Ok(n @ 1..=64) => Ok(NgramSpec {
                    max_draft: n,
                    max_rows: default.max_rows.max(n + 1),
                }),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_speculate_are_spelled_out() {
        assert_eq!("ngram".parse(), Ok(NgramSpec::default()));
        let spec: NgramSpec = "ngram:32".parse().expect("a number in range");
        assert_eq!((spec.max_draft, spec.max_rows), (32, 33));
        for wrong in ["", "ngram:", "ngram:0", "ngram:65", "ngram:x", "draft"] {
            let text = wrong.parse::<NgramSpec>().expect_err(wrong);
            assert!(text.contains("expected ngram"), "{text}");
        }
    }
}

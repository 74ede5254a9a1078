//! Guessing tokens ahead from the sequence itself (prompt lookup): what followed the last tokens where they occurred before
//! is likely to follow them again.
//!
//! Guesses are fed behind the last token in one step, which draws a token after each of them. A draw is a function of logits,
//! parameters, recent tokens, seed and position; so as long as the guesses are what was drawn, the draws are those of
//! one token a step, and what is drawn after the first wrong guess is dropped.

use std::collections::HashMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NgramSpec {
    /// Most tokens to guess at a time.
    pub max_draft: u32,
    /// Guesses and the rows that they follow are at most this many tokens of a step: in a large batch a guess costs more
    /// than it brings.
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

/// Draws without a hit after which guessing pauses for a while, twice as long each time, up to 2 to this many tokens.
const LONGEST_PAUSE: u32 = 6;

/// Guesses the next tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Drafter {
    most: u32,
    /// Where the token after each run of three (two) tokens is, the last one of equals.
    threes: HashMap<[u32; 3], u32>,
    twos: HashMap<[u32; 2], u32>,
    /// Tokens that ends of runs were looked for in.
    indexed: usize,
    /// Tokens to guess next time: as many as lately came true, and more when all did.
    length: u32,
    /// Guesses in a row of which nothing came true.
    misses: u32,
    /// Length of the sequence from which on to guess again.
    resume: usize,
}

impl Drafter {
    pub fn new(spec: NgramSpec) -> Drafter {
        Drafter {
            most: spec.max_draft,
            threes: HashMap::new(),
            twos: HashMap::new(),
            indexed: 0,
            length: spec.max_draft.div_ceil(2),
            misses: 0,
            resume: 0,
        }
    }

    /// Whether a sequence of `len` tokens is to be guessed on.
    pub fn is_awake(&self, len: usize) -> bool {
        len >= self.resume
    }

    /// Up to `most` tokens that may follow `tokens`, which start with those of the last call.
    pub fn draft(&mut self, tokens: &[u32], most: u32) -> Vec<u32> {
        let most = most.min(self.length) as usize;
        if most == 0 || !self.is_awake(tokens.len()) {
            return Vec::new();
        }
        self.index(tokens);
        let three = tokens.last_chunk::<3>().and_then(|t| self.threes.get(t));
        let two = || tokens.last_chunk::<2>().and_then(|t| self.twos.get(t));
        let Some(&from) = three.or_else(two) else {
            return Vec::new();
        };
        // Past the end, what repeats goes on repeating.
        let from = from as usize;
        let period = tokens.len() - from;
        (0..most).map(|i| tokens[from + i % period]).collect()
    }

    /// Of `drafted` guesses on a sequence that has `len` tokens by now, the first `accepted` came true.
    pub fn learn(&mut self, drafted: u32, accepted: u32, len: usize) {
        if drafted == 0 {
            return;
        }
        self.length = match accepted == drafted {
            true => (self.length * 2).min(self.most),
            false => (accepted + 1).min(self.most),
        };
        if accepted > 0 {
            self.misses = 0;
        } else {
            self.misses = (self.misses + 1).min(LONGEST_PAUSE);
            self.resume = len + (1 << self.misses);
        }
    }

    /// Notes what followed each run of tokens that has a token after it.
    fn index(&mut self, tokens: &[u32]) {
        for next in self.indexed.max(1)..tokens.len() {
            if let Some(&run) = tokens[..next].last_chunk::<2>() {
                self.twos.insert(run, next as u32);
            }
            if let Some(&run) = tokens[..next].last_chunk::<3>() {
                self.threes.insert(run, next as u32);
            }
        }
        self.indexed = tokens.len();
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

    fn drafter() -> Drafter {
        Drafter::new(NgramSpec::default())
    }

    #[test]
    fn what_followed_last_time_is_guessed() {
        let mut d = drafter();
        assert!(d.draft(&[], 8).is_empty());
        assert!(d.draft(&[1], 8).is_empty());
        assert!(d.draft(&[1, 2, 3, 4, 5, 6, 7], 8).is_empty());
        let tokens = [1, 2, 3, 4, 5, 6, 7, 2, 3];
        assert_eq!(d.draft(&tokens, 8), [4, 5, 6, 7]);
        assert_eq!(d.draft(&tokens, 2), [4, 5]);
        // The last one of two, and three tokens rather than two.
        assert_eq!(drafter().draft(&[1, 2, 8, 1, 2, 9, 1, 2], 1), [9]);
        assert_eq!(drafter().draft(&[5, 1, 2, 8, 6, 1, 2, 9, 5, 1, 2], 1), [8]);
    }

    #[test]
    fn what_repeats_goes_on() {
        assert_eq!(drafter().draft(&[9, 1, 2, 1, 2], 4), [1, 2, 1, 2]);
        assert_eq!(drafter().draft(&[7, 7, 7], 3), [7, 7, 7]);
    }

    #[test]
    fn an_index_grows_with_its_sequence() {
        let tokens: Vec<u32> = (0..200u32).map(|i| (i * i) % 17).collect();
        let mut grown = drafter();
        for len in 0..tokens.len() {
            let expected = drafter().draft(&tokens[..len], 8);
            assert_eq!(grown.draft(&tokens[..len], 8), expected, "{len}");
        }
    }

    #[test]
    fn success_makes_bold_and_failure_timid() {
        let tokens: Vec<u32> = (0..40).map(|i| i % 4).collect();
        let mut d = drafter();
        assert_eq!(d.draft(&tokens, 99).len(), 4);
        d.learn(4, 4, 40);
        assert_eq!(d.draft(&tokens, 99).len(), 8);
        d.learn(8, 8, 40);
        assert_eq!(d.draft(&tokens, 99).len(), 8, "the most");
        d.learn(8, 2, 40);
        assert_eq!(d.draft(&tokens, 99).len(), 3);
        for (misses, pause) in [(1, 2), (2, 4), (3, 8)] {
            d.learn(3, 0, 40);
            assert!(
                !d.is_awake(39 + pause) && d.is_awake(40 + pause),
                "{misses}"
            );
        }
        (0..20).for_each(|_| d.learn(1, 0, 40));
        assert!(d.is_awake(40 + 64), "it never gives up for good");
    }
}

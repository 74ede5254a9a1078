//! Strings that end an answer.
//!
//! A stop string may begin in one token and end in another, so text that could be its start is held back until what comes
//! after it decides.

/// Looks for stop strings in a text that comes piece by piece.
#[derive(Clone, Debug)]
pub struct StopStrings {
    /// None of them empty.
    strings: Vec<String>,
    /// The end of the text so far, as far as it may be the start of a stop string.
    held: String,
}

/// What is known of a text after one more piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Text that is not part of a stop string.
    pub text: String,
    /// Whether a stop string came after it. Nothing that follows counts.
    pub stopped: bool,
}

impl StopStrings {
    /// Stops at the first of some strings; empty ones stop nothing.
    pub fn new(strings: &[String]) -> StopStrings {
        StopStrings {
            strings: strings.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
        }
    }

    /// Takes the next piece of the text. Where stop strings overlap, the one that ends first counts, and of those that end
    /// at one place the longest.
    pub fn push(&mut self, piece: &str) -> Passed {
        if self.strings.is_empty() {
            return Passed {
                text: piece.to_owned(),
                stopped: false,
            };
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        let found = self.strings.iter().filter_map(|s| {
            let start = text.find(s.as_str())?;
            Some((start + s.len(), start))
        });
        if let Some((_, start)) = found.min() {
            text.truncate(start);
            return Passed {
                text,
                stopped: true,
            };
        }
        let keep = self.undecided(&text);
        self.held = text.split_off(keep);
        Passed {
            text,
            stopped: false,
        }
    }

    /// The text has ended: what was held back is part of it.
    pub fn finish(self) -> String {
        self.held
    }

    /// Where the longest end of `text` begins that is the start of a stop string.
    fn undecided(&self, text: &str) -> usize {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let first = text.len().saturating_sub(longest.saturating_sub(1));
        let is_start = |at: usize| {
            text.is_char_boundary(at) && self.strings.iter().any(|s| s.starts_with(&text[at..]))
        };
        (first..text.len())
            .find(|&at| is_start(at))
            .unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes out of pieces, and after how many of them it stops.
    fn through(strings: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let strings: Vec<String> = strings.iter().map(|s| s.to_string()).collect();
        let mut stop = StopStrings::new(&strings);
        let mut out = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            let passed = stop.push(piece);
            out.push(passed.text);
            if passed.stopped {
                return (out, Some(i + 1));
            }
        }
        out.push(stop.finish());
        (out, None)
    }

    #[test]
    fn only_what_may_be_a_start_is_held_back() {
        let (out, stopped) = through(&["###"], &["a#", "#b", "##", "#c"]);
        assert_eq!(out, ["a", "##b", "", ""]);
        assert_eq!(stopped, Some(4));
        let (out, stopped) = through(&["###"], &["a#", "#"]);
        assert_eq!((out.concat().as_str(), stopped), ("a##", None));
    }

    #[test]
    fn a_string_may_span_tokens_and_end_within_one() {
        let (out, stopped) = through(&["User:"], &["Yes.\n", "Us", "er", ": and", " more"]);
        assert_eq!((out.concat().as_str(), stopped), ("Yes.\n", Some(4)));
    }

    #[test]
    fn the_string_that_ends_first_counts() {
        let (out, _) = through(&["abcd", "bc"], &["xabcd"]);
        assert_eq!(out, ["xa"]);
        let (out, _) = through(&["bc", "abc"], &["xabcd"]);
        assert_eq!(out, ["x"]);
    }

    #[test]
    fn characters_are_not_cut_and_empty_strings_stop_nothing() {
        let (out, stopped) = through(&["", "é!"], &["caf", "é", "é", "!"]);
        assert_eq!((out.concat().as_str(), stopped), ("café", Some(4)));
        assert_eq!(through(&[""], &["a", ""]).1, None);
    }

    proptest! {
        /// However a text is cut into pieces, what comes out is the text up to the first stop string.
        #[test]
        fn pieces_do_not_matter(
            text in "[abé]{0,30}",
            strings in prop::collection::vec("[abé]{1,5}", 0..4),
            cuts in prop::collection::vec(0usize..5, 30),
        ) {
            let mut expected = text.clone();
            // The first end, and there the earliest start.
            let ends = (0..=text.len()).filter(|&end| text.is_char_boundary(end));
            let first = ends.flat_map(|end| strings.iter().map(move |s| (end, s)))
                .filter(|(end, s)| text[..*end].ends_with(s.as_str()))
                .map(|(end, s)| (end, end - s.len()))
                .min();
            if let Some((_, start)) = first {
                expected.truncate(start);
            }
            let mut stop = StopStrings::new(&strings);
            let (mut out, mut stopped) = (String::new(), false);
            let mut rest = text.chars();
            for n in cuts.into_iter().chain([30]) {
                let piece: String = rest.by_ref().take(n).collect();
                let passed = stop.push(&piece);
                out += &passed.text;
                if passed.stopped {
                    stopped = true;
                    break;
                }
            }
            if !stopped {
                out += &stop.finish();
            }
            prop_assert_eq!(out, expected);
            prop_assert_eq!(stopped, first.is_some());
        }
    }
}

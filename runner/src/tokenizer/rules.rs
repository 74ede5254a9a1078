//! The rules of the kinds of vocabularies.

use bundle_format::tokenizer::{NONE, View};

use super::merge::{NO_PAIR, Pair, Rule, Symbol};

/// [`ModelKind::ByteBpe`](bundle_format::tokenizer::ModelKind::ByteBpe): words start as bytes and merge by a list.
pub struct ByteBpe;

impl Rule for ByteBpe {
    fn whole(&self, vocab: &View<'_>, word: &[u8]) -> Option<u32> {
        vocab
            .flags()
            .ignore_merges
            .then(|| vocab.text_token(word))
            .flatten()
    }

    fn symbols(&self, vocab: &View<'_>, word: &str, out: &mut Vec<Symbol>) {
        out.extend(word.bytes().enumerate().map(|(at, byte)| Symbol {
            id: vocab.byte_token(byte).unwrap_or(NONE),
            start: at,
            end: at + 1,
        }));
    }

    fn pair(&self, vocab: &View<'_>, _: &[u8], left: Symbol, right: Symbol) -> Pair {
        listed(vocab, left, right)
    }

    fn fallback<'w>(&self, _: &'w [u8]) -> &'w [u8] {
        &[] // the symbol was a byte
    }
}

/// [`ModelKind::Scored`](bundle_format::tokenizer::ModelKind::Scored): words start as characters and merge by scores.
pub struct Scored;

impl Rule for Scored {
    fn whole(&self, _: &View<'_>, _: &[u8]) -> Option<u32> {
        None
    }

    fn symbols(&self, vocab: &View<'_>, word: &str, out: &mut Vec<Symbol>) {
        characters(vocab, word, out);
    }

    fn pair(&self, vocab: &View<'_>, word: &[u8], left: Symbol, right: Symbol) -> Pair {
        match vocab.text_token(&word[left.start..right.end]) {
            Some(merged) => Pair {
                rank: descending(vocab.score(merged).unwrap_or(0.0)),
                merged,
            },
            None => NO_PAIR,
        }
    }

    fn fallback<'w>(&self, spelled: &'w [u8]) -> &'w [u8] {
        marked(spelled)
    }
}

/// [`ModelKind::CharBpe`](bundle_format::tokenizer::ModelKind::CharBpe): words start as characters and merge by a list.
pub struct CharBpe;

impl Rule for CharBpe {
    fn whole(&self, vocab: &View<'_>, word: &[u8]) -> Option<u32> {
        let newlines = word.iter().all(|&byte| byte == b'\n');
        newlines.then(|| vocab.text_token(word)).flatten()
    }

    fn symbols(&self, vocab: &View<'_>, word: &str, out: &mut Vec<Symbol>) {
        characters(vocab, word, out);
    }

    fn pair(&self, vocab: &View<'_>, _: &[u8], left: Symbol, right: Symbol) -> Pair {
        listed(vocab, left, right)
    }

    fn fallback<'w>(&self, spelled: &'w [u8]) -> &'w [u8] {
        marked(spelled)
    }
}

fn characters(vocab: &View<'_>, word: &str, out: &mut Vec<Symbol>) {
    out.extend(word.char_indices().map(|(start, c)| {
        let end = start + c.len_utf8();
        Symbol {
            id: vocab
                .text_token(&word.as_bytes()[start..end])
                .unwrap_or(NONE),
            start,
            end,
        }
    }));
}

fn listed(vocab: &View<'_>, left: Symbol, right: Symbol) -> Pair {
    vocab
        .merge(left.id, right.id)
        .map_or(NO_PAIR, |merge| Pair {
            rank: merge.rank,
            merged: merge.token,
        })
}

/// A space without a token is spelled with the bytes of its mark.
fn marked(spelled: &[u8]) -> &[u8] {
    match spelled {
        b" " => "\u{2581}".as_bytes(),
        other => other,
    }
}

/// A number that is lower for a higher score.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0 becomes 0
    match score.is_sign_negative() && score != 0.0 {
        true => bits,
        false => !bits & 0x7FFF_FFFF,
    }
}

#[cfg(test)]
mod tests {
    use super::descending;

    #[test]
    fn higher_scores_rank_lower() {
        let scores = [
            f32::INFINITY,
            3.5,
            1e-40,
            0.0,
            -1e-40,
            -1.0,
            -1000.0,
            f32::NEG_INFINITY,
        ];
        assert!(scores.is_sorted_by(|&a, &b| descending(a) < descending(b)));
        assert_eq!(descending(0.0), descending(-0.0));
        assert_ne!(descending(f32::NEG_INFINITY), u32::MAX);
    }
}

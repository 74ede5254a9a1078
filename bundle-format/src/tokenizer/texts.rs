//! The text table: a perfect hash ([`super::perfect`]) from what a token stands for in text to the token.
//!
//! It holds the tokens that text may become without being cut out of it: those that a whole word or two neighbours may
//! spell. Control, unknown and byte tokens are never among them.
//!
//! A text's hash: starting with `h = seed ^ len * SPREAD`, for each 8 bytes w of it (little-endian; the last ones padded with
//! zeros, none for an empty text) `h = mix(h ^ w)`, where `mix` is splitmix64's finaliser.

use std::borrow::Cow;

use super::perfect::{Placement, SPREAD, mix};
use super::{Attr, Error, NONE};

/// A text table in memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub seed: u64,
    pub pilots: Vec<u16>,
    pub slots: Vec<u32>,
}

pub(super) fn hash(seed: u64, text: &[u8]) -> u64 {
    let mut h = seed ^ (text.len() as u64).wrapping_mul(SPREAD);
    let (chunks, rest) = text.as_chunks::<8>();
    for chunk in chunks {
        h = mix(h ^ u64::from_le_bytes(*chunk));
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        h = mix(h ^ u64::from_le_bytes(last));
    }
    h
}

/// A token's bytes as the text table has them. Tokens that are cut out of text keep the vocabulary's mark of a space, which
/// here is a space.
pub(super) fn key(bytes: &[u8], attr: Attr, marks_spaces: bool) -> Cow<'_, [u8]> {
    const MARK: &[u8] = "\u{2581}".as_bytes();
    if !(marks_spaces && attr.is_matched() && bytes.windows(MARK.len()).any(|w| w == MARK)) {
        return Cow::Borrowed(bytes);
    }
    let mut key = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(&byte) = rest.first() {
        match rest.strip_prefix(MARK) {
            Some(after) => {
                key.push(b' ');
                rest = after;
            }
            None => {
                key.push(byte);
                rest = &rest[1..];
            }
        }
    }
    Cow::Owned(key)
}

impl Table {
    /// Places `tokens`, whose keys `key` gives. Keys are distinct.
    pub fn build<'a>(tokens: &[u32], key: impl Fn(u32) -> Cow<'a, [u8]>) -> Result<Self, Error> {
        let keys: Vec<_> = tokens.iter().map(|&id| key(id)).collect();
        let Placement {
            seed,
            pilots,
            slots,
        } = Placement::find("texts of tokens", tokens.len(), |seed, i| {
            hash(seed, &keys[i])
        })?;
        Ok(Self {
            seed,
            pilots,
            slots: slots
                .into_iter()
                .map(|i| i.map_or(NONE, |i| tokens[i as usize]))
                .collect(),
        })
    }
}

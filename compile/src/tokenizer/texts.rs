//! Which tokens text may become without being cut out of it: the text table's.
//!
//! Control, unknown and byte tokens are left out, whatever llama.cpp's search for a text would find: text that a person
//! types must not make them. In the vocabularies that come with llama.cpp no sequence of merges leads to one.

use std::collections::HashSet;

use bundle_format::tokenizer::{Attr, ModelKind};

use super::index::Index;
use super::spell;

/// The text table's tokens, ascending, and where text may be cut ([`Tables::space_joins`](bundle_format::tokenizer::Tables::space_joins)).
pub struct Texts {
    pub tokens: Vec<u32>,
    pub space_joins: Option<u128>,
}

pub fn find(
    kind: ModelKind,
    ignore_merges: bool,
    index: &Index<'_>,
    attrs: &[Attr],
    merges: &[(u32, u32, u32)],
) -> Texts {
    let candidates = (0..attrs.len() as u32)
        .filter(|&id| !attrs[id as usize].any(Attr::CONTROL | Attr::UNKNOWN | Attr::BYTE));
    match kind {
        ModelKind::ByteBpe if !ignore_merges => Texts {
            tokens: Vec::new(),
            space_joins: None,
        },
        ModelKind::ByteBpe => Texts {
            // User-defined tokens are cut out of text before words are looked for.
            tokens: candidates
                .filter(|&id| !attrs[id as usize].is_matched())
                .filter(|&id| spell::letters_to_bytes(index.text(id)).is_some())
                .collect(),
            space_joins: None,
        },
        ModelKind::Scored => {
            let tokens = mergeable(index, candidates);
            let space_joins = space_joins(tokens.iter().map(|&id| index.text(id)));
            Texts {
                tokens,
                space_joins,
            }
        }
        ModelKind::CharBpe => Texts {
            tokens: candidates
                .filter(|&id| is_character(index.text(id)) || is_newlines(index.text(id)))
                .filter(|&id| !index.text(id).contains(&b' '))
                .collect(),
            space_joins: space_joins(merges.iter().map(|m| index.text(m.2))),
        },
    }
}

/// Those of `candidates` that are a character, or that two others of them (or characters without a token) spell.
fn mergeable(index: &Index<'_>, candidates: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut order: Vec<(usize, u32, &str)> = candidates
        // Text to merge is UTF-8, and has marks in place of spaces.
        .filter(|&id| !index.text(id).contains(&b' '))
        .filter_map(|id| Some((id, std::str::from_utf8(index.text(id)).ok()?)))
        .map(|(id, text)| (text.chars().count(), id, text))
        .collect();
    order.sort_unstable();
    let mut found = HashSet::new();
    let mut tokens = Vec::new();
    for (length, id, text) in order {
        let is_symbol = |part: &str| is_character(part.as_bytes()) || found.contains(part);
        let merges = text
            .char_indices()
            .skip(1)
            .any(|(at, _)| is_symbol(&text[..at]) && is_symbol(&text[at..]));
        if length == 1 || merges {
            found.insert(text);
            tokens.push(id);
        }
    }
    tokens.sort_unstable();
    tokens
}

fn is_character(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.chars().count() == 1)
}

fn is_newlines(text: &[u8]) -> bool {
    text.iter().all(|&byte| byte == b'\n')
}

/// The ASCII characters before spaces within tokens; none if there are others.
fn space_joins<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Option<u128> {
    let mut joins = 0;
    for text in texts {
        for pair in spell::marks_to_spaces(text).windows(2) {
            if pair[1] == b' ' {
                joins |= 1u128.checked_shl(pair[0].into())?;
            }
        }
    }
    Some(joins)
}

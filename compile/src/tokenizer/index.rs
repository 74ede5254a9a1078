//! From a token's text to its id.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Error;

/// The most tokens of a vocabulary; GGUF's own limit is that ids are signed.
const MOST: usize = i32::MAX as usize;

/// Texts of a vocabulary, all different.
pub struct Index<'a> {
    texts: Vec<Cow<'a, [u8]>>,
    /// Only ever looked up, never iterated.
    ids: HashMap<Cow<'a, [u8]>, u32>,
}

impl<'a> Index<'a> {
    pub fn new(tokens: &[&'a [u8]]) -> Result<Self, Error> {
        if tokens.len() > MOST {
            return Err(Error::TooMany {
                found: tokens.len(),
                most: MOST,
            });
        }
        let texts: Vec<Cow<'a, [u8]>> = tokens
            .iter()
            .enumerate()
            .map(|(id, text)| named(id, text))
            .collect();
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in texts.iter().enumerate() {
            if let Some(first) = ids.insert(text.clone(), id as u32) {
                return Err(Error::Duplicate {
                    first,
                    second: id as u32,
                    text: text.escape_ascii().to_string(),
                });
            }
        }
        Ok(Self { texts, ids })
    }

    pub fn id(&self, text: &[u8]) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The text of an id below the number of tokens.
    pub fn text(&self, id: u32) -> &[u8] {
        &self.texts[id as usize]
    }

    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.texts.iter().map(AsRef::as_ref)
    }
}

/// Padding of a vocabulary may be empty strings; llama.cpp gives each its own name.
fn named(id: usize, text: &[u8]) -> Cow<'_, [u8]> {
    match text.is_empty() {
        true => Cow::Owned(format!("[EMPTY_{id}]").into_bytes()),
        false => Cow::Borrowed(text),
    }
}

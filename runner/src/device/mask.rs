//! The set of tokens that a grammar allows next, computed on one thread while the device works on another.

use std::sync::OnceLock;

/// A set of token ids that is filled in once, and waited for by whoever needs it.
#[derive(Debug, Default)]
pub struct TokenMask {
    /// Bit `id % 32` of word `id / 32`; an error is what kept it from being computed.
    words: OnceLock<Result<Box<[u32]>, String>>,
}

impl TokenMask {
    /// A set that is still to be computed.
    pub fn pending() -> TokenMask {
        TokenMask::default()
    }

    /// Sets the words; only the first call counts.
    pub fn set(&self, words: Result<Box<[u32]>, String>) {
        // A second result could only repeat the first.
        let _ = self.words.set(words);
    }

    /// The words, once they are there.
    ///
    /// # Errors
    /// What kept them from being computed.
    pub fn wait(&self) -> Result<&[u32], &str> {
        match self.words.wait() {
            Ok(words) => Ok(words),
            Err(text) => Err(text),
        }
    }
}

/// Whether a set has a token; those beyond its words it hasn't.
pub fn allows(words: &[u32], id: u32) -> bool {
    words
        .get(id as usize / 32)
        .is_some_and(|word| word >> (id % 32) & 1 == 1)
}

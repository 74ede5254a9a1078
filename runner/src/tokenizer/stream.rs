//! Decoding token by token, without ever cutting a character.

use super::Tokenizer;
use crate::Error;

/// Turns tokens into text as they come. The pieces together are the text of all tokens' bytes
/// ([`Tokenizer::decode_bytes`]).
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: Tokenizer<'a>,
    show_special: bool,
    /// The start of a character whose end has not come yet: up to three bytes between calls.
    pending: Vec<u8>,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: Tokenizer<'a>, show_special: bool) -> Self {
        Self {
            tokenizer,
            show_special,
            pending: Vec::new(),
        }
    }

    /// The text that is complete with this token; maybe none. Bytes that no later token can make valid come out as U+FFFD.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        let bytes = self.tokenizer.token_bytes(id, self.show_special)?;
        Ok(self.push_bytes(bytes))
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                }
                Err(fault) => {
                    let (valid, after) = rest.split_at(fault.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid)); // it is valid: nothing is replaced
                    rest = after;
                    match fault.error_len() {
                        Some(len) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &rest[len..];
                        }
                        None => break,
                    }
                }
            }
        }
        let held = rest.len();
        self.pending.drain(..self.pending.len() - held);
        text
    }

    /// The text's end: U+FFFD where it breaks off within a character, else nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

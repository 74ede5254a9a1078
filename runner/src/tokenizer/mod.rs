//! Text to tokens and back, over the bundle's mapped vocabulary ([`bundle_format::tokenizer`]).
//!
//! In the order in which text passes: [`matched`] cuts special tokens out, [`split`] cuts the rest into words, [`bpe`]
//! merges each word's bytes into tokens. [`stream`] turns tokens back into text.

mod bpe;
mod matched;
mod split;
mod stream;
mod unicode;

use bundle_format::tokenizer::{Attr, ModelKind, Special, View};

use crate::Error;
use crate::chat::Prompt;
use bpe::Merger;
pub(crate) use matched::Matcher;
use matched::Piece;
pub use stream::DecodeStream;

/// A model's tokenizer. Opening it builds nothing; it may be shared by threads.
#[derive(Clone, Copy, Debug)]
pub struct Tokenizer<'a> {
    vocab: View<'a>,
    matcher: Matcher<'a>,
}

/// What [`Tokenizer::encode`] does beside splitting text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Text that spells a control token becomes that token. Without it, such text stays text.
    pub parse_special: bool,
    /// Adds BOS and EOS where the model wants them.
    pub add_special: bool,
}

impl<'a> Tokenizer<'a> {
    /// Checks a bundle's tokenizer section.
    pub fn open(section: &'a [u8]) -> Result<Self, Error> {
        use bundle_format::tokenizer::Error as Fault;
        let vocab = View::open(section).map_err(|e| match e {
            Fault::Unsupported { .. } => Error::Unsupported(e.to_string()),
            Fault::Corrupt { .. } | Fault::Invalid(_) => Error::User(e.to_string()),
        })?;
        Ok(Self {
            vocab,
            matcher: Matcher::new(vocab),
        })
    }

    /// The vocabulary: special ids, attributes, scores.
    pub fn vocab(&self) -> &View<'a> {
        &self.vocab
    }

    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&'a str> {
        self.vocab.chat_template()
    }

    pub(crate) fn matcher(&self) -> &Matcher<'a> {
        &self.matcher
    }

    /// Whether a token ends an answer.
    pub fn ends_generation(&self, id: u32) -> bool {
        self.vocab.ends_generation(id)
    }

    /// The tokens of `text`.
    ///
    /// Bytes that the vocabulary can't spell are left out, as in llama.cpp: some vocabularies (SmolLM2's among them) lack
    /// tokens for a few control characters.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        self.encode_literal(text, &[], options)
    }

    /// The tokens of a rendered chat: control tokens of the template are parsed, those in message text stay text. BOS is
    /// added where the model wants it and the template didn't write it; EOS isn't, since an answer is to follow.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Vec<u32> {
        let mut ids = self.encode_literal(
            &prompt.text,
            &prompt.literal,
            EncodeOptions {
                parse_special: true,
                add_special: false,
            },
        );
        if let Some(bos) = self.vocab.special(Special::Bos)
            && self.vocab.flags().add_bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// `literal` are ascending byte offsets of characters that no control token may contain.
    fn encode_literal(&self, text: &str, literal: &[usize], options: EncodeOptions) -> Vec<u32> {
        let flags = self.vocab.flags();
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        if options.add_special && flags.add_bos {
            ids.extend(self.vocab.special(Special::Bos));
        }
        let mut merger = Merger::new(self.vocab);
        for piece in self.matcher.pieces(text, literal, options.parse_special) {
            match (piece, self.vocab.model()) {
                (Piece::Token(id), _) => ids.push(id),
                (Piece::Text(text), ModelKind::ByteBpe) => {
                    split::words(self.vocab.pre(), text, &mut |word| {
                        merger.word(word.as_bytes(), &mut ids)
                    });
                }
            }
        }
        if options.add_special && flags.add_eos {
            ids.extend(self.vocab.special(Special::Eos));
        }
        ids
    }

    /// The bytes that a token adds to a text: none for unused tokens, and for control tokens unless `show_special`.
    pub fn token_bytes(&self, id: u32, show_special: bool) -> Result<&'a [u8], Error> {
        let (Some(bytes), Some(attr)) = (self.vocab.token(id), self.vocab.attr(id)) else {
            return Err(Error::User(format!(
                "token id {id} is not in the vocabulary of {} tokens",
                self.vocab.len()
            )));
        };
        let shown = if attr.is_hidden() {
            show_special
        } else {
            attr.any(Attr::NORMAL | Attr::USER_DEFINED | Attr::BYTE)
        };
        Ok(if shown { bytes } else { &[] })
    }

    /// The bytes that tokens spell.
    pub fn decode_bytes(&self, ids: &[u32], show_special: bool) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        for &id in ids {
            out.extend_from_slice(self.token_bytes(id, show_special)?);
        }
        Ok(out)
    }

    /// The text that tokens spell, with U+FFFD for bytes that are no UTF-8.
    pub fn decode(&self, ids: &[u32], show_special: bool) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.decode_bytes(ids, show_special)?).into_owned())
    }

    /// Decodes tokens as they come.
    pub fn decode_stream(&self, show_special: bool) -> DecodeStream<'a> {
        DecodeStream::new(*self, show_special)
    }
}

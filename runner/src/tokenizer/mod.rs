//! Text to tokens and back, over the bundle's mapped vocabulary ([`bundle_format::tokenizer`]).
//!
//! In the order in which text passes: [`matched`] cuts special tokens out, [`split`] cuts the rest into words, [`merge`]
//! makes tokens of each word by the [`rules`] of the vocabulary's kind. [`stream`] turns tokens back into text.

mod matched;
mod merge;
mod rules;
mod split;
mod stream;
mod unicode;

use std::borrow::Cow;

use bundle_format::tokenizer::{Attr, ModelKind, Special, View};

use crate::Error;
use crate::chat::Prompt;
pub(crate) use matched::Matcher;
use matched::Piece;
use merge::{Merger, Rule};
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
        let pieces = self.matcher.pieces(text, literal, options.parse_special);
        match self.vocab.model() {
            ModelKind::ByteBpe => self.encode_pieces(&pieces, rules::ByteBpe, &mut ids),
            ModelKind::Scored => {
                let pieces = self.spaced_pieces(&pieces);
                self.encode_pieces(&pieces, rules::Scored, &mut ids);
            }
            ModelKind::CharBpe => {
                let pieces = self.spaced_pieces(&pieces);
                self.encode_pieces(&pieces, rules::CharBpe, &mut ids);
            }
        }
        if options.add_special && flags.add_eos {
            ids.extend(self.vocab.special(Special::Eos));
        }
        ids
    }

    /// Pieces as vocabularies that mark spaces take them: the mark is a space, and a space may be put in front.
    fn spaced_pieces<'t>(&self, pieces: &[Piece<&'t str>]) -> Vec<Piece<Cow<'t, str>>> {
        let mut spaced = Vec::with_capacity(pieces.len());
        let mut prefix = self.vocab.flags().add_space_prefix;
        for piece in pieces {
            spaced.push(match *piece {
                Piece::Token(id) => Piece::Token(id),
                Piece::Text(text) => {
                    let mut text = Cow::Borrowed(text);
                    if text.contains('\u{2581}') {
                        text = text.replace('\u{2581}', " ").into();
                    }
                    if prefix {
                        text = format!(" {text}").into();
                    }
                    Piece::Text(text)
                }
            });
            prefix = self.vocab.flags().add_space_prefix && matches!(piece, Piece::Token(_));
        }
        spaced
    }

    fn encode_pieces<'t, T: AsRef<str> + 't>(
        &self,
        pieces: &'t [Piece<T>],
        rule: impl Rule,
        ids: &mut Vec<u32>,
    ) {
        let joins = self.vocab.space_joins();
        let mut merger = Merger::new(self.vocab, rule);
        for piece in pieces {
            match piece {
                Piece::Token(id) => ids.push(*id),
                Piece::Text(text) => {
                    split::words(self.vocab.pre(), text.as_ref(), &mut |word| match joins {
                        Some(joins) => split::cut_before_spaces(word, joins, &mut |word| {
                            merger.word(word, ids);
                        }),
                        None => merger.word(word, ids),
                    });
                }
            }
        }
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

    /// The bytes that tokens spell, one after the other.
    pub fn decode_bytes(&self, ids: &[u32], show_special: bool) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        for &id in ids {
            out.extend_from_slice(self.token_bytes(id, show_special)?);
        }
        Ok(out)
    }

    /// The text of a whole encoded text, with U+FFFD for bytes that are no UTF-8. The space that [`Tokenizer::encode`] puts
    /// in front of it is taken off.
    pub fn decode(&self, ids: &[u32], show_special: bool) -> Result<String, Error> {
        let is_hidden = |&id: &u32| self.vocab.attr(id).is_some_and(Attr::is_hidden);
        let before = ids.iter().take_while(|id| is_hidden(id)).count();
        let (special, ids) = ids.split_at(before);
        let mut out = self.decode_bytes(special, show_special)?;
        let text = self.decode_bytes(ids, show_special)?;
        let prefix = self.vocab.flags().add_space_prefix && text.starts_with(b" ");
        out.extend_from_slice(&text[usize::from(prefix)..]);
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// Decodes the tokens of an answer as they come. It continues a text, so that a space in front is its own.
    pub fn decode_stream(&self, show_special: bool) -> DecodeStream<'a> {
        DecodeStream::new(*self, show_special)
    }
}

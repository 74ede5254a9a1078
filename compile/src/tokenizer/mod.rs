//! From a GGUF vocabulary to the bundle's tokenizer section.
//!
//! [`VocabSource`] is what a model file says, unchecked. [`VocabSource::build`] makes the section of it, in this order:
//! names become [`ModelKind`] and [`PreTokenizer`], texts become ids ([`index`]), [`special`] finds the tokens with a role
//! and those that end generation, [`alphabet`] spells tokens as bytes, merges are resolved.

mod alphabet;
mod error;
mod index;
mod metadata;
mod special;

use std::collections::HashSet;

use bundle_format::tokenizer::{Attr, ModelKind, PreTokenizer, Special, Tables};

pub use error::Error;
use index::Index;

/// A pre-tokeniser that models name.
struct Pre {
    /// `tokenizer.ggml.pre`
    name: &'static str,
    splitter: PreTokenizer,
}

/// Every pre-tokeniser name that can be compiled.
const PRE: &[Pre] = &[
    Pre {
        name: "gpt-2",
        splitter: PreTokenizer::Gpt2,
    },
    Pre {
        name: "mpt",
        splitter: PreTokenizer::Gpt2,
    },
    Pre {
        name: "smollm",
        splitter: PreTokenizer::Smollm,
    },
    Pre {
        name: "command-r",
        splitter: PreTokenizer::Smollm,
    },
    Pre {
        name: "refact",
        splitter: PreTokenizer::Smollm,
    },
    Pre {
        name: "starcoder",
        splitter: PreTokenizer::Smollm,
    },
];

/// A vocabulary as a model file gives it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VocabSource<'a> {
    /// `tokenizer.ggml.model`
    pub model: String,
    /// `tokenizer.ggml.pre`
    pub pre: Option<String>,
    /// Texts of the tokens; those of a `gpt2` model are in GPT-2's byte alphabet.
    pub tokens: Vec<&'a [u8]>,
    /// GGUF's token types, one a token; none: all are normal.
    pub types: Option<Vec<i32>>,
    /// One a token, if the model has them.
    pub scores: Option<Vec<f32>>,
    /// `left right`, the first to apply first.
    pub merges: Vec<&'a [u8]>,
    /// By [`Special::index`].
    pub special: [Option<u32>; Special::ALL.len()],
    /// None: as the model kind and the pre-tokeniser want it.
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub chat_template: Option<&'a str>,
}

impl VocabSource<'_> {
    /// The tokenizer section; the same bytes for the same vocabulary.
    pub fn build(&self) -> Result<Vec<u8>, Error> {
        Ok(self.tables()?.write()?)
    }

    /// The section's tables.
    pub fn tables(&self) -> Result<Tables, Error> {
        let model = self.model_kind()?;
        let pre = self.pre_tokenizer()?;
        let index = Index::new(&self.tokens)?;
        let mut attrs = self.attrs()?;
        self.check_special()?;
        let roles = special::find(&index, self.special, &mut attrs);
        let add_bos = self.add_bos.unwrap_or(false);
        let add_eos = self.add_eos.unwrap_or(false);
        for (wanted, which) in [(add_bos, Special::Bos), (add_eos, Special::Eos)] {
            if wanted && roles.special[which.index()].is_none() {
                return Err(Error::MissingSpecial { which });
            }
        }
        if let Some(scores) = &self.scores {
            check_count("scores", scores.len(), self.tokens.len())?;
        }
        let tokens = (0..self.tokens.len())
            .map(|id| spell(id as u32, index.text(id as u32), attrs[id]))
            .collect::<Result<_, _>>()?;

        Ok(Tables {
            model,
            pre,
            add_bos,
            add_eos,
            add_space_prefix: self.add_space_prefix.unwrap_or(false),
            tokens,
            attrs,
            scores: self.scores.clone(),
            byte_tokens: std::array::from_fn(|byte| {
                let mut utf8 = [0; 4];
                index.id(alphabet::letter(byte as u8)
                    .encode_utf8(&mut utf8)
                    .as_bytes())
            }),
            merges: resolve_merges(&self.merges, &index)?,
            special: roles.special,
            end_of_generation: roles.end_of_generation,
            chat_template: self.chat_template.map(str::to_owned),
        })
    }

    fn model_kind(&self) -> Result<ModelKind, Error> {
        ModelKind::ALL
            .iter()
            .copied()
            .find(|kind| kind.name() == self.model)
            .ok_or_else(|| Error::UnknownModel {
                found: self.model.clone(),
                supported: ModelKind::ALL
                    .iter()
                    .map(|kind| kind.name())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    fn pre_tokenizer(&self) -> Result<PreTokenizer, Error> {
        PRE.iter()
            .find(|pre| Some(pre.name) == self.pre.as_deref())
            .map(|pre| pre.splitter)
            .ok_or_else(|| Error::UnknownPre {
                found: self
                    .pre
                    .as_ref()
                    .map_or("missing".into(), |name| format!("{name:?}")),
                supported: PRE
                    .iter()
                    .map(|pre| pre.name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    fn attrs(&self) -> Result<Vec<Attr>, Error> {
        let Some(types) = &self.types else {
            return Ok(vec![Attr::NORMAL; self.tokens.len()]);
        };
        check_count("token types", types.len(), self.tokens.len())?;
        types
            .iter()
            .enumerate()
            .map(|(id, &code)| match code {
                0 => Ok(Attr::default()), // undefined
                1 => Ok(Attr::NORMAL),
                2 => Ok(Attr::UNKNOWN),
                3 => Ok(Attr::CONTROL),
                4 => Ok(Attr::USER_DEFINED),
                5 => Ok(Attr::UNUSED),
                6 => Ok(Attr::BYTE),
                _ => Err(Error::TokenType {
                    id: id as u32,
                    found: code,
                }),
            })
            .collect()
    }

    fn check_special(&self) -> Result<(), Error> {
        for (which, id) in Special::ALL.into_iter().zip(self.special) {
            if let Some(id) = id.filter(|&id| id as usize >= self.tokens.len()) {
                return Err(Error::SpecialRange {
                    which,
                    id,
                    tokens: self.tokens.len(),
                });
            }
        }
        Ok(())
    }
}

fn check_count(what: &'static str, found: usize, tokens: usize) -> Result<(), Error> {
    if found != tokens {
        return Err(Error::Count {
            what,
            found,
            tokens,
        });
    }
    Ok(())
}

/// The bytes that a token stands for in text.
fn spell(id: u32, text: &[u8], attr: Attr) -> Result<Vec<u8>, Error> {
    if attr.is_matched() {
        // Looked for in text, so that it must lie between characters.
        return match std::str::from_utf8(text) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err(Error::SpecialUtf8 { id }),
        };
    }
    if attr.any(Attr::BYTE) {
        return match alphabet::hex_byte(text) {
            Some(byte) => Ok(vec![byte]),
            None => Err(Error::ByteToken {
                id,
                text: text.escape_ascii().to_string(),
            }),
        };
    }
    // Text beyond the alphabet stands for itself: some vocabularies list such tokens, which no merge makes.
    Ok(alphabet::decode(text).unwrap_or_else(|| text.into()))
}

/// Merges as ids, by rank. Of a pair that is listed twice the first counts.
fn resolve_merges(merges: &[&[u8]], index: &Index<'_>) -> Result<Vec<(u32, u32, u32)>, Error> {
    let mut seen = HashSet::with_capacity(merges.len());
    let mut resolved = Vec::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        // The left part is at least one character, and may be a space.
        let space = merge.iter().skip(1).position(|&byte| byte == b' ');
        let Some(space) = space else {
            return Err(Error::MergeForm {
                rank,
                text: merge.escape_ascii().to_string(),
            });
        };
        let (left, right) = (&merge[..space + 1], &merge[space + 2..]);
        let id = |text: &[u8]| {
            index.id(text).ok_or_else(|| Error::MergeToken {
                rank,
                text: merge.escape_ascii().to_string(),
                token: text.escape_ascii().to_string(),
            })
        };
        let (left_id, right_id, merged) = (id(left)?, id(right)?, id(&[left, right].concat())?);
        if seen.insert((left_id, right_id)) {
            resolved.push((left_id, right_id, merged));
        }
    }
    Ok(resolved)
}

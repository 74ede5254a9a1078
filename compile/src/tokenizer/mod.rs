//! From a GGUF vocabulary to the bundle's tokenizer section.
//!
//! [`VocabSource`] is what a model file says, unchecked. [`VocabSource::build`] makes the section of it, in this order:
//! names become a [`ModelKind`] and a way to split text ([`pre`]), texts become ids ([`index`]), [`special`] finds the tokens
//! with a role and those that end generation, [`spell`] makes bytes of tokens, merges are resolved, [`texts`] finds the
//! tokens that text is looked up in.

mod error;
mod index;
mod metadata;
mod pre;
mod special;
mod spell;
mod texts;

use std::collections::HashSet;

use bundle_format::tokenizer::{Attr, ModelKind, Special, Tables};

pub use error::Error;
use index::Index;

/// A vocabulary as a model file gives it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VocabSource<'a> {
    /// `tokenizer.ggml.model`
    pub model: String,
    /// `tokenizer.ggml.pre`
    pub pre: Option<String>,
    /// `general.name`: Phi-3's tokens work in a way of their own, and it is known by nothing else.
    pub name: Option<&'a str>,
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
        let manner = pre::manner(model, self.pre.as_deref())?;
        let index = Index::new(&self.tokens)?;
        let mut attrs = self.attrs()?;
        self.check_special()?;
        let roles = special::find(&index, self.named_roles(model), &mut attrs);
        if self.name.is_some_and(special::is_phi3) {
            special::strip_right(&index, &mut attrs);
        }
        // Gemma 4 needs its BOS token, and there are files that deny it.
        let add_bos = self.add_bos.unwrap_or(manner.add_bos) || model == ModelKind::CharBpe;
        let add_eos = self.add_eos.unwrap_or(false);
        for (wanted, which) in [(add_bos, Special::Bos), (add_eos, Special::Eos)] {
            if wanted && roles.special[which.index()].is_none() {
                return Err(Error::MissingSpecial { which });
            }
        }
        if let Some(scores) = &self.scores {
            check_count("scores", scores.len(), self.tokens.len())?;
            if let Some(id) = scores.iter().position(|score| score.is_nan()) {
                return Err(Error::Score { id: id as u32 });
            }
        }
        let tokens = (0..self.tokens.len())
            .map(|id| spell::spell(model, id as u32, index.text(id as u32), attrs[id]))
            .collect::<Result<_, _>>()?;
        let merges = match model {
            ModelKind::ByteBpe | ModelKind::CharBpe => resolve_merges(&self.merges, &index)?,
            ModelKind::Scored => Vec::new(),
        };
        let texts = texts::find(model, manner.ignore_merges, &index, &attrs, &merges);

        Ok(Tables {
            model,
            pre: manner.splitter,
            add_bos,
            add_eos,
            add_space_prefix: model == ModelKind::Scored && self.add_space_prefix.unwrap_or(true),
            ignore_merges: manner.ignore_merges,
            space_joins: texts.space_joins,
            tokens,
            attrs,
            scores: self.scores.clone(),
            byte_tokens: std::array::from_fn(|byte| {
                spell::byte_spellings(model, byte as u8)
                    .iter()
                    .find_map(|text| index.id(text))
            }),
            merges,
            texts: texts.tokens,
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

    /// The roles that the file names, or that its kind takes for granted.
    fn named_roles(&self, kind: ModelKind) -> [Option<u32>; Special::ALL.len()] {
        let mut special = self.special;
        if kind == ModelKind::Scored {
            for (which, id) in [(Special::Unknown, 0), (Special::Bos, 1), (Special::Eos, 2)] {
                let place = &mut special[which.index()];
                *place = place.or((id < self.tokens.len()).then_some(id as u32));
            }
        }
        special
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

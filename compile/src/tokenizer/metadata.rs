//! A vocabulary from GGUF metadata.

use bundle_format::tokenizer::Special;

use super::VocabSource;
use crate::gguf::{Error, Metadata, Numbers, Strings};

/// The keys of special ids. The last of a token's keys counts: the later ones are older names.
const SPECIAL_KEYS: &[(&str, Special)] = &[
    ("tokenizer.ggml.bos_token_id", Special::Bos),
    ("tokenizer.ggml.eos_token_id", Special::Eos),
    ("tokenizer.ggml.eot_token_id", Special::Eot),
    ("tokenizer.ggml.eom_token_id", Special::Eom),
    ("tokenizer.ggml.unknown_token_id", Special::Unknown),
    ("tokenizer.ggml.seperator_token_id", Special::Separator), // GGUF's spelling
    ("tokenizer.ggml.padding_token_id", Special::Padding),
    ("tokenizer.ggml.mask_token_id", Special::Mask),
    ("tokenizer.ggml.fim_pre_token_id", Special::FimPrefix),
    ("tokenizer.ggml.fim_suf_token_id", Special::FimSuffix),
    ("tokenizer.ggml.fim_mid_token_id", Special::FimMiddle),
    ("tokenizer.ggml.fim_pad_token_id", Special::FimPadding),
    ("tokenizer.ggml.fim_rep_token_id", Special::FimRepository),
    ("tokenizer.ggml.fim_sep_token_id", Special::FimFile),
    ("tokenizer.ggml.prefix_token_id", Special::FimPrefix),
    ("tokenizer.ggml.suffix_token_id", Special::FimSuffix),
    ("tokenizer.ggml.middle_token_id", Special::FimMiddle),
];

impl<'a> VocabSource<'a> {
    /// What a GGUF file says of its tokenizer. Types are checked here, contents in [`VocabSource::build`].
    ///
    /// # Errors
    /// A key is missing or has a value of another type.
    pub fn from_metadata(metadata: &Metadata<'a>) -> Result<Self, Error> {
        let mut special = [None; Special::ALL.len()];
        for (key, which) in SPECIAL_KEYS {
            if let Some(id) = metadata.optional::<u32>(key)? {
                special[which.index()] = Some(id);
            }
        }
        let merges = metadata.optional::<Strings>("tokenizer.ggml.merges")?;
        let types = metadata.optional::<Numbers<i32>>("tokenizer.ggml.token_type")?;
        let scores = metadata.optional::<Numbers<f32>>("tokenizer.ggml.scores")?;
        Ok(Self {
            model: metadata
                .required::<&str>("tokenizer.ggml.model")?
                .to_owned(),
            pre: metadata
                .optional::<&str>("tokenizer.ggml.pre")?
                .map(str::to_owned),
            name: metadata.optional("general.name")?,
            tokens: metadata
                .required::<Strings>("tokenizer.ggml.tokens")?
                .collect(),
            types: types.map(Iterator::collect),
            scores: scores.map(Iterator::collect),
            merges: merges.map(Iterator::collect).unwrap_or_default(),
            special,
            add_bos: metadata.optional("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.optional("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.optional("tokenizer.ggml.add_space_prefix")?,
            chat_template: metadata.optional("tokenizer.chat_template")?,
        })
    }
}

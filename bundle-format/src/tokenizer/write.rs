//! Writes the section.

use super::{
    Attr, Error, Flags, HEADER_BYTES, ModelKind, NONE, PreTokenizer, Special, VERSION, View,
};
use super::{merges, texts};

/// Everything that the section holds, as the compiler has it. Ids are indices into `tokens`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tables {
    pub model: ModelKind,
    pub pre: PreTokenizer,
    pub add_bos: bool,
    pub add_eos: bool,
    pub add_space_prefix: bool,
    pub ignore_merges: bool,
    /// The ASCII characters (as bits) that come before a space within some token, if only such ones do. Text may then be
    /// cut before every space that follows another character, and its parts be merged by themselves.
    pub space_joins: Option<u128>,
    /// What each token stands for in text.
    pub tokens: Vec<Vec<u8>>,
    /// One a token.
    pub attrs: Vec<Attr>,
    /// One a token, if the model has them.
    pub scores: Option<Vec<f32>>,
    /// The token of each single byte.
    pub byte_tokens: [Option<u32>; 256],
    /// (left, right, merged) in the order in which they apply. Pairs are distinct.
    pub merges: Vec<(u32, u32, u32)>,
    /// Tokens that [`View::text_token`] finds, ascending; their texts are distinct.
    pub texts: Vec<u32>,
    /// By [`Special::index`].
    pub special: [Option<u32>; Special::ALL.len()],
    /// Tokens that end generation, ascending.
    pub end_of_generation: Vec<u32>,
    /// Jinja text; none or empty: the model has none.
    pub chat_template: Option<String>,
}

impl Tables {
    /// The section's bytes: the same for the same tables. Fails where tables contradict each other or don't fit.
    pub fn write(&self) -> Result<Vec<u8>, Error> {
        self.check_lengths()?;
        let merges = merges::Table::build(&self.merges)?;
        let texts = texts::Table::build(&self.texts, |id| {
            let (bytes, attr) = (&self.tokens[id as usize], self.attrs[id as usize]);
            texts::key(bytes, attr, self.model.marks_spaces())
        })?;
        let matched = self.matched();
        let template = self.chat_template.as_deref().unwrap_or_default();
        let flags = Flags {
            add_bos: self.add_bos,
            add_eos: self.add_eos,
            add_space_prefix: self.add_space_prefix,
            scores: self.scores.is_some(),
            ignore_merges: self.ignore_merges,
            spaces_cut: self.space_joins.is_some(),
        };

        let mut out = Vec::new();
        put_u32(&mut out, VERSION);
        put_u32(&mut out, self.model.code());
        put_u32(&mut out, self.pre.code());
        put_u32(&mut out, flags.bits());
        put_count(&mut out, "tokens", self.tokens.len())?;
        put_count(
            &mut out,
            "bytes of tokens",
            self.tokens.iter().map(Vec::len).sum(),
        )?;
        put_count(&mut out, "merges", self.merges.len())?;
        put_count(&mut out, "merge buckets", merges.pilots.len())?;
        out.extend(merges.seed.to_le_bytes());
        put_count(&mut out, "merge slots", merges.slots.len())?;
        put_count(&mut out, "special tokens", matched.len())?;
        put_count(
            &mut out,
            "end-of-generation tokens",
            self.end_of_generation.len(),
        )?;
        put_count(&mut out, "bytes of the chat template", template.len())?;
        for id in self.special {
            put_u32(&mut out, id.unwrap_or(NONE));
        }
        out.extend(texts.seed.to_le_bytes());
        put_count(&mut out, "text buckets", texts.pilots.len())?;
        put_count(&mut out, "text slots", texts.slots.len())?;
        out.extend(self.space_joins.unwrap_or(0).to_le_bytes());
        debug_assert_eq!(out.len(), HEADER_BYTES);

        let mut start = 0;
        put_u32(&mut out, start);
        for token in &self.tokens {
            start += token.len() as u32; // the sum was checked above
            put_u32(&mut out, start);
        }
        pad(&mut out);
        out.extend(self.tokens.iter().flatten());
        pad(&mut out);
        out.extend(self.attrs.iter().map(|a| a.0));
        pad(&mut out);
        for score in self.scores.iter().flatten() {
            out.extend(score.to_le_bytes());
        }
        pad(&mut out);
        for id in self.byte_tokens {
            put_u32(&mut out, id.unwrap_or(NONE));
        }
        pad(&mut out);
        out.extend(merges.pilots.iter().flat_map(|p| p.to_le_bytes()));
        pad(&mut out);
        for word in merges.slots.iter().flatten() {
            put_u32(&mut out, *word);
        }
        pad(&mut out);
        out.extend(texts.pilots.iter().flat_map(|p| p.to_le_bytes()));
        pad(&mut out);
        for id in &texts.slots {
            put_u32(&mut out, *id);
        }
        pad(&mut out);
        for id in &matched {
            put_u32(&mut out, *id);
        }
        pad(&mut out);
        for id in &self.end_of_generation {
            put_u32(&mut out, *id);
        }
        pad(&mut out);
        out.extend(template.as_bytes());
        pad(&mut out);

        // The reader's checks are the writer's as well: what doesn't open must not be written.
        View::open(&out).map_err(|e| Error::Invalid(e.to_string()))?;
        Ok(out)
    }

    fn check_lengths(&self) -> Result<(), Error> {
        let n = self.tokens.len();
        let scores = self.scores.as_ref().map_or(n, Vec::len);
        if self.attrs.len() != n || scores != n {
            return Err(Error::Invalid(format!(
                "{n} tokens, {} attributes and {scores} scores; there must be one a token",
                self.attrs.len()
            )));
        }
        match self.texts.iter().find(|&&id| id as usize >= n) {
            Some(id) => Err(Error::Invalid(format!(
                "the text table lists token {id} of {n}"
            ))),
            None => Ok(()),
        }
    }

    /// The tokens that are matched in text, in ascending order of their bytes.
    fn matched(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..self.tokens.len() as u32)
            .filter(|&id| {
                self.attrs[id as usize].is_matched() && !self.tokens[id as usize].is_empty()
            })
            .collect();
        ids.sort_by(|&a, &b| self.tokens[a as usize].cmp(&self.tokens[b as usize]));
        ids
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn put_count(out: &mut Vec<u8>, what: &str, count: usize) -> Result<(), Error> {
    // NONE is no id, so it is no count either.
    match u32::try_from(count) {
        Ok(n) if n < NONE => put_u32(out, n),
        _ => {
            return Err(Error::Invalid(format!(
                "{count} {what}, at most {} fit",
                NONE - 1
            )));
        }
    }
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(8), 0);
}

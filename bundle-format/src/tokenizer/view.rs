//! Reads the section where it lies.

use super::merges::{self, Merge};
use super::{Attr, Error, Flags, HEADER_BYTES, ModelKind, NONE, PreTokenizer, Special, VERSION};
use super::{perfect, texts};

/// A tokenizer section that was checked as a whole: every id, offset and length in it holds.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    model: ModelKind,
    pre: PreTokenizer,
    flags: Flags,
    merge_seed: u64,
    special: &'a [[u8; 4]],
    starts: &'a [[u8; 4]],
    bytes: &'a [u8],
    attrs: &'a [u8],
    scores: &'a [[u8; 4]],
    byte_tokens: &'a [[u8; 4]],
    merge_pilots: &'a [[u8; 2]],
    merge_slots: &'a [[u8; 16]],
    text_seed: u64,
    space_joins: u128,
    text_pilots: &'a [[u8; 2]],
    text_slots: &'a [[u8; 4]],
    matched: &'a [[u8; 4]],
    end_of_generation: &'a [[u8; 4]],
    chat_template: &'a str,
}

impl<'a> View<'a> {
    /// Checks a section and makes it readable. Takes one pass over the tables and allocates nothing.
    pub fn open(section: &'a [u8]) -> Result<Self, Error> {
        let mut cursor = Cursor { section, at: 0 };
        let version = cursor.u32("header")?;
        if version != VERSION {
            return Err(unsupported(
                0,
                "layout version",
                version,
                VERSION.to_string(),
            ));
        }
        let model = known(&mut cursor, "model kind", ModelKind::ALL, |m| {
            (m.code(), m.name())
        })?;
        let pre = known(&mut cursor, "pre-tokeniser", PreTokenizer::ALL, |p| {
            (p.code(), p.name())
        })?;
        let bits = cursor.u32("header")?;
        let flags = Flags::from_bits(bits).ok_or_else(|| {
            unsupported(
                12,
                "set of flags",
                bits,
                format!("bits of {:#b}", Flags::KNOWN),
            )
        })?;
        let tokens = cursor.u32("header")? as usize;
        let token_bytes = cursor.u32("header")? as usize;
        let merge_count = cursor.u32("header")?;
        let buckets = cursor.u32("header")? as usize;
        let merge_seed = cursor.u64("header")?;
        let slots = cursor.u32("header")? as usize;
        let matched = cursor.u32("header")? as usize;
        let ends = cursor.u32("header")? as usize;
        let template = cursor.u32("header")? as usize;
        let special_at = cursor.at;
        let special = cursor.array("special ids", Special::ALL.len())?;
        let text_seed = cursor.u64("header")?;
        let text_buckets = cursor.u32("header")? as usize;
        let text_slots = cursor.u32("header")? as usize;
        let space_joins = cursor.u128("header")?;
        debug_assert_eq!(cursor.at, HEADER_BYTES);

        let starts_at = cursor.at;
        let starts = cursor.table("token starts", tokens + 1)?;
        let bytes = cursor
            .table::<1>("token bytes", token_bytes)?
            .as_flattened();
        let attrs_at = cursor.at;
        let attrs = cursor
            .table::<1>("token attributes", tokens)?
            .as_flattened();
        let scores = cursor.table("scores", if flags.scores { tokens } else { 0 })?;
        let byte_tokens_at = cursor.at;
        let byte_tokens = cursor.table("byte tokens", 256)?;
        let merge_pilots = cursor.table("merge pilots", buckets)?;
        let slots_at = cursor.at;
        let merge_slots = cursor.table("merge slots", slots)?;
        let text_pilots = cursor.table("text pilots", text_buckets)?;
        let texts_at = cursor.at;
        let text_slots = cursor.table("text slots", text_slots)?;
        let matched_at = cursor.at;
        let matched = cursor.table("special tokens", matched)?;
        let ends_at = cursor.at;
        let end_of_generation = cursor.table("end-of-generation tokens", ends)?;
        let template_at = cursor.at;
        let template = cursor.table::<1>("chat template", template)?.as_flattened();
        if cursor.at != section.len() {
            let extra = section.len() - cursor.at;
            return Err(corrupt(
                cursor.at,
                format!("{extra} bytes after the last table"),
            ));
        }
        let chat_template = std::str::from_utf8(template).map_err(|e| {
            corrupt(
                template_at + e.valid_up_to(),
                "the chat template is not UTF-8".into(),
            )
        })?;

        let view = Self {
            model,
            pre,
            flags,
            merge_seed,
            special,
            starts,
            bytes,
            attrs,
            scores,
            byte_tokens,
            merge_pilots,
            merge_slots,
            text_seed,
            space_joins,
            text_pilots,
            text_slots,
            matched,
            end_of_generation,
            chat_template,
        };
        view.check_special(special_at)?;
        view.check_tokens(starts_at, attrs_at)?;
        view.check_ids("byte token", byte_tokens_at, byte_tokens, true)?;
        view.check_merges(slots_at, merge_count)?;
        view.check_ids("token of a text", texts_at, text_slots, true)?;
        view.check_matched(matched_at)?;
        view.check_ends(ends_at)?;
        Ok(view)
    }

    pub fn model(&self) -> ModelKind {
        self.model
    }

    pub fn pre(&self) -> PreTokenizer {
        self.pre
    }

    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// Tokens; ids are below it.
    pub fn len(&self) -> usize {
        self.attrs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.attrs.is_empty()
    }

    /// What a token stands for in text; none where there is no such token.
    pub fn token(&self, id: u32) -> Option<&'a [u8]> {
        let start = u32_at(self.starts, id as usize)?;
        let end = u32_at(self.starts, id as usize + 1)?;
        self.bytes.get(start as usize..end as usize)
    }

    pub fn attr(&self, id: u32) -> Option<Attr> {
        self.attrs.get(id as usize).map(|&bits| Attr(bits))
    }

    /// A token's score; none where there is no such token or the model has no scores.
    pub fn score(&self, id: u32) -> Option<f32> {
        self.scores
            .get(id as usize)
            .map(|&bytes| f32::from_le_bytes(bytes))
    }

    /// The token of a single byte, if the vocabulary has one.
    pub fn byte_token(&self, byte: u8) -> Option<u32> {
        u32_at(self.byte_tokens, byte as usize).filter(|&id| id != NONE)
    }

    /// What two neighbouring tokens merge into.
    pub fn merge(&self, left: u32, right: u32) -> Option<Merge> {
        let h = merges::hash(self.merge_seed, left, right);
        let at = perfect::slot(h, self.merge_pilots, self.merge_slots.len())?;
        let [l, r, rank, token] = words(&self.merge_slots[at]);
        (l == left && r == right && token != NONE).then_some(Merge { rank, token })
    }

    /// Where text may be cut: [`Tables::space_joins`](super::Tables::space_joins).
    pub fn space_joins(&self) -> Option<u128> {
        self.flags.spaces_cut.then_some(self.space_joins)
    }

    /// The token that stands for a text ([`texts`]), if one does. The text is as [`View::token`] gives it: with spaces, not
    /// with U+2581 for them.
    pub fn text_token(&self, text: &[u8]) -> Option<u32> {
        let h = texts::hash(self.text_seed, text);
        let at = perfect::slot(h, self.text_pilots, self.text_slots.len())?;
        let id = u32_at(self.text_slots, at)?;
        let bytes = self.token(id)?;
        // The bytes nearly always are the key as they are.
        let found =
            bytes == text || *texts::key(bytes, self.attr(id)?, self.model.marks_spaces()) == *text;
        found.then_some(id)
    }

    pub fn special(&self, which: Special) -> Option<u32> {
        u32_at(self.special, which.index()).filter(|&id| id != NONE)
    }

    /// Number of tokens that are matched in text.
    pub fn matched_len(&self) -> usize {
        self.matched.len()
    }

    /// The id and the bytes (never empty) of a token that is matched in text, by the order of bytes; none from
    /// [`View::matched_len`] on.
    pub fn matched(&self, index: usize) -> Option<(u32, &'a [u8])> {
        let id = u32_at(self.matched, index)?;
        Some((id, self.token(id)?))
    }

    /// Whether a token ends generation.
    pub fn ends_generation(&self, id: u32) -> bool {
        self.end_of_generation
            .binary_search_by_key(&id, |&bytes| u32::from_le_bytes(bytes))
            .is_ok()
    }

    /// The tokens that end generation, ascending.
    pub fn end_of_generation(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.end_of_generation
            .iter()
            .map(|&bytes| u32::from_le_bytes(bytes))
    }

    pub fn chat_template(&self) -> Option<&'a str> {
        (!self.chat_template.is_empty()).then_some(self.chat_template)
    }

    fn check_special(&self, at: usize) -> Result<(), Error> {
        self.check_ids("special token", at, self.special, true)?;
        for (wanted, which, name) in [
            (self.flags.add_bos, Special::Bos, "BOS"),
            (self.flags.add_eos, Special::Eos, "EOS"),
        ] {
            if wanted && self.special(which).is_none() {
                return Err(corrupt(
                    at + 4 * which.index(),
                    format!("the model adds a {name} token, but none is named"),
                ));
            }
        }
        Ok(())
    }

    fn check_tokens(&self, starts_at: usize, attrs_at: usize) -> Result<(), Error> {
        let mut last = 0;
        for (i, &bytes) in self.starts.iter().enumerate() {
            let start = u32::from_le_bytes(bytes);
            if start < last || (i == 0 && start != 0) {
                return Err(corrupt(
                    starts_at + 4 * i,
                    format!("token {i} starts at {start}, before {last}"),
                ));
            }
            last = start;
        }
        if last as usize != self.bytes.len() {
            let at = starts_at + 4 * self.len();
            return Err(corrupt(
                at,
                format!("tokens end at byte {last} of {}", self.bytes.len()),
            ));
        }
        match self.attrs.iter().position(|&bits| bits & !Attr::KNOWN != 0) {
            Some(i) => Err(corrupt(
                attrs_at + i,
                format!("token {i} has the unknown attributes {:#x}", self.attrs[i]),
            )),
            None => Ok(()),
        }
    }

    fn check_ids(
        &self,
        what: &str,
        at: usize,
        ids: &[[u8; 4]],
        or_none: bool,
    ) -> Result<(), Error> {
        for (i, &bytes) in ids.iter().enumerate() {
            let id = u32::from_le_bytes(bytes);
            if id as usize >= self.len() && !(or_none && id == NONE) {
                return Err(corrupt(
                    at + 4 * i,
                    format!("{what} {id} of a vocabulary of {}", self.len()),
                ));
            }
        }
        Ok(())
    }

    fn check_merges(&self, at: usize, count: u32) -> Result<(), Error> {
        let mut filled = 0u32;
        for (i, slot) in self.merge_slots.iter().enumerate() {
            let [left, right, rank, merged] = words(slot);
            if [left, right, rank, merged] == [NONE; 4] {
                continue;
            }
            filled += 1;
            let id = left.max(right).max(merged);
            if id as usize >= self.len() || rank >= count {
                return Err(corrupt(
                    at + 16 * i,
                    format!(
                        "merge {rank} of {count} joins {left} and {right} to {merged} in a vocabulary of {}",
                        self.len()
                    ),
                ));
            }
        }
        if filled != count {
            return Err(corrupt(
                at,
                format!("{filled} merges in the table, the header says {count}"),
            ));
        }
        Ok(())
    }

    fn check_matched(&self, at: usize) -> Result<(), Error> {
        self.check_ids("special token", at, self.matched, false)?;
        let mut last: &[u8] = &[];
        for i in 0..self.matched.len() {
            let here = at + 4 * i;
            let Some((id, bytes)) = self.matched(i) else {
                return Err(corrupt(here, format!("special token {i} has no bytes")));
            };
            // Strictly ascending implies that none is empty.
            if bytes <= last {
                return Err(corrupt(here, format!("special token {id} is out of order")));
            }
            // Matches of valid UTF-8 start and end between characters, which the splitter relies on.
            if std::str::from_utf8(bytes).is_err() {
                return Err(corrupt(here, format!("special token {id} is not UTF-8")));
            }
            if !self.attr(id).is_some_and(Attr::is_matched) {
                return Err(corrupt(here, format!("token {id} is no special token")));
            }
            last = bytes;
        }
        Ok(())
    }

    fn check_ends(&self, at: usize) -> Result<(), Error> {
        self.check_ids("end-of-generation token", at, self.end_of_generation, false)?;
        let ascending = self
            .end_of_generation()
            .zip(self.end_of_generation().skip(1))
            .position(|(a, b)| a >= b);
        match ascending {
            Some(i) => Err(corrupt(
                at + 4 * (i + 1),
                "end-of-generation tokens are not ascending".into(),
            )),
            None => Ok(()),
        }
    }
}

/// Takes the section apart, front to back.
struct Cursor<'a> {
    section: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// `count` items of N bytes.
    fn array<const N: usize>(&mut self, what: &str, count: usize) -> Result<&'a [[u8; N]], Error> {
        // Counts come from 32-bit numbers, so that this fits 64 bits; a section is never that large.
        let len = count as u64 * N as u64;
        let left = (self.section.len() - self.at) as u64;
        if len > left {
            return Err(corrupt(
                self.at,
                format!("{what}: {len} bytes wanted, {left} left"),
            ));
        }
        let bytes = &self.section[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(bytes.as_chunks().0)
    }

    /// An array and its padding.
    fn table<const N: usize>(&mut self, what: &str, count: usize) -> Result<&'a [[u8; N]], Error> {
        let items = self.array(what, count)?;
        let padding_at = self.at;
        let padding = self.array::<1>(what, self.at.next_multiple_of(8) - self.at)?;
        if padding.iter().any(|&[byte]| byte != 0) {
            return Err(corrupt(padding_at, format!("{what}: padding is not zero")));
        }
        Ok(items)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what, 1)?[0]))
    }

    fn u128(&mut self, what: &str) -> Result<u128, Error> {
        Ok(u128::from_le_bytes(self.array(what, 1)?[0]))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what, 1)?[0]))
    }
}

/// Reads the code of one of `all`.
fn known<T: Copy>(
    cursor: &mut Cursor<'_>,
    what: &'static str,
    all: &[T],
    describe: impl Fn(T) -> (u32, &'static str),
) -> Result<T, Error> {
    let offset = cursor.at;
    let code = cursor.u32(what)?;
    all.iter()
        .copied()
        .find(|&item| describe(item).0 == code)
        .ok_or_else(|| {
            let names: Vec<String> = all
                .iter()
                .map(|&item| {
                    let (code, name) = describe(item);
                    format!("{code} ({name})")
                })
                .collect();
            unsupported(offset, what, code, names.join(", "))
        })
}

fn u32_at(table: &[[u8; 4]], index: usize) -> Option<u32> {
    table.get(index).map(|&bytes| u32::from_le_bytes(bytes))
}

fn words(slot: &[u8; 16]) -> [u32; 4] {
    let words = slot.as_chunks::<4>().0;
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

fn corrupt(offset: usize, what: String) -> Error {
    Error::Corrupt {
        offset: offset as u64,
        what,
    }
}

fn unsupported(offset: usize, what: &'static str, found: u32, expected: String) -> Error {
    Error::Unsupported {
        offset: offset as u64,
        what,
        found,
        expected,
    }
}

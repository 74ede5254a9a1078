//! The tokenizer of a synthetic model: another model's, or a small one of bytes.

use std::collections::HashSet;

use crate::error::Error;
use crate::gguf::writer::Bytes;
use crate::gguf::{Gguf, Numbers, Strings, Writer};

const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";

/// Token types, with GGUF's numbers.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// Size of a generated vocabulary where the shape asks for none.
const GENERATED_VOCAB: usize = 320;

/// The size of the vocabulary: of `source`'s, or of a generated one, and at least `least`.
///
/// # Errors
/// [`Error::User`]: `source` has no tokenizer.
pub(super) fn size(source: Option<&Gguf<'_>>, least: Option<u32>) -> Result<usize, Error> {
    let Some(source) = source else {
        return Ok(least.map_or(GENERATED_VOCAB, |least| least as usize));
    };
    let used = source.metadata.required::<Strings>(TOKENS)?.len();
    Ok(used.max(least.unwrap_or(0) as usize))
}

/// Writes `source`'s tokenizer, or a generated one, padded with unused tokens to `vocab`, which [`size`] gave.
///
/// # Errors
/// [`Error::User`]: `source`'s tokenizer is broken.
pub(super) fn put(
    writer: &mut Writer,
    source: Option<&Gguf<'_>>,
    vocab: usize,
) -> Result<(), Error> {
    match source {
        Some(source) => copy(writer, source, vocab),
        None => generate(writer, vocab),
    }
}

/// All of another model's tokenizer; only the lists that have an item for each token grow.
fn copy(writer: &mut Writer, source: &Gguf<'_>, vocab: usize) -> Result<(), Error> {
    let metadata = &source.metadata;
    let tokens = metadata.required::<Strings>(TOKENS)?;
    let used = tokens.len();
    let check_len = |key: &str, found: usize| {
        if found == used {
            return Ok(());
        }
        Err(Error::User(format!(
            "key `{key}`: expected {used} items, as many as `{TOKENS}` has, found {found}"
        )))
    };

    for (key, value) in metadata.iter() {
        match key {
            TOKENS => {
                let padding = unused_names(tokens.clone(), vocab);
                let padding = padding.iter().map(|name| Bytes(name.as_bytes()));
                let all: Vec<_> = tokens.clone().map(Bytes).chain(padding).collect();
                writer.put(key, &all)?;
            }
            SCORES => {
                let mut scores: Vec<f32> = metadata.required::<Numbers<f32>>(key)?.collect();
                check_len(key, scores.len())?;
                scores.resize(vocab, 0.0);
                writer.put(key, &scores)?;
            }
            TYPES => {
                let mut types: Vec<i32> = metadata.required::<Numbers<i32>>(key)?.collect();
                check_len(key, types.len())?;
                types.resize(vocab, UNUSED);
                writer.put(key, &types)?;
            }
            key if key.starts_with("tokenizer.") => writer.put(key, &value)?,
            _ => (),
        }
    }
    // Without types, all tokens are normal ones, and the padding would be too.
    if vocab > used && metadata.get(TYPES).is_none() {
        let mut types = vec![NORMAL; used];
        types.resize(vocab, UNUSED);
        writer.put(TYPES, &types)?;
    }
    Ok(())
}

/// Names for ids from the end of `tokens` to `vocab`, which no token has.
fn unused_names(tokens: Strings<'_>, vocab: usize) -> Vec<String> {
    let first = tokens.len();
    let taken: HashSet<&[u8]> = tokens.collect();
    (first..vocab)
        .map(|id| {
            let mut name = format!("[PAD{id}]");
            while taken.contains(name.as_bytes()) {
                name.push('_');
            }
            name
        })
        .collect()
}

/// Control tokens of a generated vocabulary, by id.
const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Merges of a generated vocabulary, in the byte alphabet (`Ġ` is a space): enough for a pair of merges to compete.
const MERGES: [&str; 12] = [
    "Ġ t", "h e", "i n", "Ġ a", "r e", "o n", "Ġt he", "e r", "Ġ s", "a t", "in g", "a n",
];

/// A byte-level BPE vocabulary: control tokens, the 256 bytes, a few merges, then unused tokens.
fn generate(writer: &mut Writer, vocab: usize) -> Result<(), Error> {
    let mut tokens: Vec<String> = SPECIALS.iter().map(|&token| token.to_owned()).collect();
    tokens.extend(byte_alphabet().map(String::from));
    tokens.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    let used = tokens.len();
    tokens.extend((used..vocab).map(|id| format!("[PAD{id}]")));

    let mut types = vec![CONTROL; SPECIALS.len()];
    types.resize(used, NORMAL);
    types.resize(tokens.len(), UNUSED);

    writer.put("tokenizer.ggml.model", "gpt2")?;
    writer.put("tokenizer.ggml.pre", "gpt-2")?;
    writer.put(TOKENS, &tokens)?;
    writer.put(TYPES, &types)?;
    writer.put("tokenizer.ggml.merges", &MERGES[..])?;
    writer.put("tokenizer.ggml.bos_token_id", &0u32)?;
    writer.put("tokenizer.ggml.eos_token_id", &0u32)?;
    writer.put("tokenizer.ggml.padding_token_id", &0u32)?;
    writer.put("tokenizer.ggml.add_bos_token", &false)?;
    Ok(())
}

/// The character that stands for each byte in a byte-level vocabulary: itself where it is printable in Latin-1, otherwise
/// the next character from U+0100.
fn byte_alphabet() -> impl Iterator<Item = char> {
    let mut substitutes = '\u{100}'..;
    (0..=255u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => substitutes
            .next()
            .expect("there are far more characters than bytes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        let alphabet: Vec<char> = byte_alphabet().collect();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(alphabet.iter().collect::<HashSet<_>>().len(), 256);
        assert_eq!(alphabet[b' ' as usize], 'Ġ');
        assert_eq!(alphabet[b'\n' as usize], 'Ċ');
        assert_eq!(alphabet[b'a' as usize], 'a');
        assert_eq!(alphabet[0xad], '\u{143}');
        assert_eq!(alphabet[0xff], 'ÿ');
    }

    #[test]
    fn merges_join_tokens_of_the_vocabulary() {
        let mut tokens: HashSet<String> = byte_alphabet().map(String::from).collect();
        for merge in MERGES {
            let (left, right) = merge.split_once(' ').expect("two parts");
            assert!(tokens.contains(left) && tokens.contains(right), "{merge}");
            assert!(tokens.insert(format!("{left}{right}")), "{merge}");
        }
    }
}

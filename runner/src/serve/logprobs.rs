//! Log-probabilities in OpenAI's two shapes.

use serde_json::{Map, Value, json};

use crate::runner::TokenInfo;
use crate::tokenizer::Tokenizer;

/// What JSON can say of a probability of 0, which has no logarithm.
const LEAST: f32 = -9999.0;

/// Of a chat's tokens: `{"content": [...]}`.
pub fn of_chat(tokens: &[TokenInfo]) -> Value {
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let mut entry = entry(&token.bytes, token.logprob);
            let top = token
                .top
                .iter()
                .map(|a| self::entry(&a.bytes, Some(a.logprob)));
            entry["top_logprobs"] = top.collect();
            entry
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

fn entry(bytes: &[u8], logprob: Option<f32>) -> Value {
    json!({ "token": text(bytes), "logprob": finite(logprob), "bytes": bytes })
}

/// Of a plain completion's tokens, the first of which begins at character `offset`. A token without a probability, which a
/// prompt's first one is, has nothing likelier either.
pub fn of_completion(tokenizer: Tokenizer<'_>, tokens: &[TokenInfo], offset: usize) -> Value {
    let mut at = offset;
    let (mut texts, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for token in tokens {
        let mut top = Map::new();
        for a in &token.top {
            // Several may be parts of characters, and show alike: the likeliest, which comes first, counts.
            top.entry(text(&a.bytes))
                .or_insert_with(|| finite(Some(a.logprob)));
        }
        offsets.push(at);
        at += width(tokenizer, token);
        values.push(finite(token.logprob));
        tops.push(token.logprob.map(|_| top));
        texts.push(text(&token.bytes));
    }
    json!({ "tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets })
}

/// Characters that a token adds to a text: control tokens none, each part of a character one.
pub fn width(tokenizer: Tokenizer<'_>, token: &TokenInfo) -> usize {
    let shown = tokenizer.token_bytes(token.id, false).unwrap_or_default();
    String::from_utf8_lossy(shown).chars().count()
}

/// A part of a character shows as U+FFFD; a chat's `bytes` have it exactly.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn finite(logprob: Option<f32>) -> Value {
    logprob
        .map(|x| if x.is_finite() { x } else { LEAST })
        .into()
}

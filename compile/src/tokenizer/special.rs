//! Tokens with a role, found by their texts where the file doesn't name them, and the tokens that end generation.
//!
//! The rules and the texts are those that llama.cpp goes by, so that answers end where its answers end. Where several
//! tokens could have a role, the first text of the list has it (there it depends on a hash map's order). Of llama.cpp's
//! defaults for ids that a `gpt2` file doesn't name (BOS and EOS are 11) none is taken over: that id is a comma in most
//! vocabularies.

use std::collections::BTreeSet;

use bundle_format::tokenizer::{Attr, Special};

use super::index::Index;

/// The tokens with a role, and those that end generation, ascending.
pub struct Roles {
    pub special: [Option<u32>; Special::ALL.len()],
    pub end_of_generation: Vec<u32>,
}

/// Texts by which roles are known.
const ROLE_TEXTS: &[(Special, &[&str])] = &[
    (
        Special::Eot,
        &[
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ],
    ),
    (Special::Eom, &["<|eom_id|>"]),
    (
        Special::FimPrefix,
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        Special::FimSuffix,
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        Special::FimMiddle,
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
    (
        Special::FimPadding,
        &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    ),
    (
        Special::FimRepository,
        &[
            "<|fim_repo|>",
            "<|repo_name|>",
            "<fim-repo>",
            "<REPO>",
            "<reponame>",
        ],
    ),
    (Special::FimFile, &["<|file_sep|>"]),
];

/// Roles whose tokens end generation.
const ENDING_ROLES: &[Special] = &[
    Special::FimPadding,
    Special::FimRepository,
    Special::FimFile,
    Special::Eos,
    Special::Eot,
    Special::Eom,
];

/// Texts of tokens that end generation.
const ENDING_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Control tokens of gpt-oss that are shown as text.
const SHOWN_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Finds roles that `given` doesn't name, and the tokens that end generation. Tokens found by a text become control tokens
/// in `attrs`.
pub fn find(
    index: &Index<'_>,
    given: [Option<u32>; Special::ALL.len()],
    attrs: &mut [Attr],
) -> Roles {
    let mut special = given;
    for (role, texts) in ROLE_TEXTS {
        let place = &mut special[role.index()];
        if place.is_none()
            && let Some(id) = texts.iter().find_map(|text| index.id(text.as_bytes()))
        {
            *place = Some(id);
            add_attr(&mut attrs[id as usize], Attr::CONTROL);
        }
    }
    mark_unused(index, attrs);

    let mut ends = BTreeSet::new();
    for id in ENDING_TEXTS
        .iter()
        .filter_map(|text| index.id(text.as_bytes()))
    {
        ends.insert(id);
        add_attr(&mut attrs[id as usize], Attr::CONTROL);
    }
    for id in SHOWN_TEXTS
        .iter()
        .filter_map(|text| index.id(text.as_bytes()))
    {
        attrs[id as usize] = Attr::USER_DEFINED;
    }
    ends.extend(ENDING_ROLES.iter().filter_map(|role| special[role.index()]));
    keep_ambiguous(index, &mut ends, attrs);
    Roles {
        special,
        end_of_generation: ends.into_iter().collect(),
    }
}

/// Control tokens that call themselves unused.
fn mark_unused(index: &Index<'_>, attrs: &mut [Attr]) {
    for (text, attr) in index.texts().zip(attrs) {
        if attr.any(Attr::CONTROL) && text.windows(6).any(|part| part == b"unused") {
            add_attr(attr, Attr::UNUSED);
        }
    }
}

/// Takes out tokens that end generation in other models only.
fn keep_ambiguous(index: &Index<'_>, ends: &mut BTreeSet<u32>, attrs: &mut [Attr]) {
    let ending =
        |ends: &BTreeSet<u32>, text: &str| index.id(text.as_bytes()).filter(|id| ends.contains(id));
    let has = |ends: &BTreeSet<u32>, text: &str| ending(ends, text).is_some();

    // gpt-oss and Solar end a part of an answer with `<|end|>`, and the answer with another token.
    let calls = has(ends, "<|call|>") || has(ends, "<|calls|>");
    if let Some(end) = ending(ends, "<|end|>")
        && calls
        && (has(ends, "<|return|>") || has(ends, "<|flush|>"))
    {
        ends.remove(&end);
        attrs[end as usize] = Attr::USER_DEFINED;
    }
    // Gemma 4 and PLaMo have an ordinary `</s>`.
    if let Some(s) = ending(ends, "</s>")
        && (has(ends, "<|tool_response>") || has(ends, "<|plamo:eos|>"))
    {
        ends.remove(&s);
        attrs[s as usize] = Attr::NORMAL;
    }
}

/// Whether a model's name says that it is a Phi-3.
pub fn is_phi3(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("phi-3") || name.contains("phi3")
}

/// Lets special tokens take the white space after them, as Phi-3's do but for three.
pub fn strip_right(index: &Index<'_>, attrs: &mut [Attr]) {
    const KEEPING: &[&[u8]] = &[b"<unk>", b"<s>", b"<|endoftext|>"];
    for (text, attr) in index.texts().zip(attrs) {
        if attr.is_matched() && !KEEPING.contains(&text) {
            add_attr(attr, Attr::STRIPS_RIGHT);
        }
    }
}

fn add_attr(attr: &mut Attr, bits: Attr) {
    *attr = *attr | bits;
}

//! The names of pre-tokenisers, and what else llama.cpp takes a name to mean.

use bundle_format::tokenizer::{ModelKind, PreTokenizer};

use super::Error;

/// What a vocabulary does by its kind and its pre-tokeniser's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    pub splitter: PreTokenizer,
    /// A word that a token spells becomes that token.
    pub ignore_merges: bool,
    /// What holds where the file doesn't say whether a prompt starts with BOS.
    pub add_bos: bool,
}

const fn split(splitter: PreTokenizer) -> Manner {
    Manner {
        splitter,
        ignore_merges: false,
        add_bos: false,
    }
}

const fn whole_words(splitter: PreTokenizer) -> Manner {
    Manner {
        ignore_merges: true,
        ..split(splitter)
    }
}

const fn whole_words_after_bos(splitter: PreTokenizer) -> Manner {
    Manner {
        add_bos: true,
        ..whole_words(splitter)
    }
}

/// Every `tokenizer.ggml.pre` of byte-level vocabularies that can be compiled.
const NAMES: &[(Manner, &[&str])] = &[
    (
        split(PreTokenizer::Gpt2),
        &[
            "gpt-2",
            "mpt",
            "olmo",
            "phi-2",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "jina-es",
            "jina-de",
        ],
    ),
    (
        split(PreTokenizer::Smollm),
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
    ),
    (
        whole_words_after_bos(PreTokenizer::Llama3),
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
    ),
    (whole_words(PreTokenizer::Llama3), &["glm4", "glm5"]),
    (
        split(PreTokenizer::Llama3),
        &["dbrx", "smaug-bpe", "chatglm-bpe"],
    ),
    (
        split(PreTokenizer::Qwen2),
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
            "kormo",
            "f2llmv2",
        ],
    ),
    (split(PreTokenizer::Qwen35), &["qwen35"]),
    (split(PreTokenizer::DeepseekLlm), &["deepseek-llm"]),
    (split(PreTokenizer::DeepseekCoder), &["deepseek-coder"]),
    (
        split(PreTokenizer::DeepseekV3),
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
    ),
    (whole_words_after_bos(PreTokenizer::Tekken), &["tekken"]),
    (
        split(PreTokenizer::Gpt4o),
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
    ),
    (split(PreTokenizer::Falcon), &["falcon"]),
    (split(PreTokenizer::Default), &["default"]),
];

/// How a vocabulary of a kind works whose file names `pre`. Only byte-level ones go by the name.
pub fn manner(kind: ModelKind, pre: Option<&str>) -> Result<Manner, Error> {
    match kind {
        ModelKind::ByteBpe => named(pre),
        ModelKind::Scored => Ok(Manner {
            add_bos: true,
            ..split(PreTokenizer::Whole)
        }),
        ModelKind::CharBpe => Ok(Manner {
            add_bos: true,
            ..split(PreTokenizer::Lines)
        }),
    }
}

/// Old files name none. llama.cpp then splits in a way that few models were trained with, which nobody should get unasked.
const MISSING: &str = "missing (llama.cpp takes \"default\" then, at a loss of quality; write the right name into the file)";

fn named(pre: Option<&str>) -> Result<Manner, Error> {
    NAMES
        .iter()
        .find(|(_, names)| pre.is_some_and(|pre| names.contains(&pre)))
        .map(|&(manner, _)| manner)
        .ok_or_else(|| Error::UnknownPre {
            found: pre.map_or_else(|| MISSING.into(), |name| format!("{name:?}")),
            supported: NAMES
                .iter()
                .flat_map(|(_, names)| names.iter().copied())
                .collect::<Vec<_>>()
                .join(", "),
        })
}

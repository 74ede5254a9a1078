//! The tokenizer's builder: what it makes of a vocabulary, and how it refuses a wrong one.

use bundle_format::tokenizer::{Attr, PreTokenizer, Special, Tables};
use fastc::tokenizer::{Error, VocabSource};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// A vocabulary of normal tokens. `Ġ` is a space in the byte alphabet.
fn source<'a>(tokens: &[&'a str], merges: &[&'a str]) -> VocabSource<'a> {
    VocabSource {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: tokens.iter().map(|text| text.as_bytes()).collect(),
        types: Some(vec![NORMAL; tokens.len()]),
        merges: merges.iter().map(|text| text.as_bytes()).collect(),
        ..VocabSource::default()
    }
}

fn tables(source: &VocabSource<'_>) -> Tables {
    source.build().unwrap();
    source.tables().unwrap()
}

#[test]
fn tokens_are_spelled_in_bytes_and_merges_in_ids() {
    let mut source = source(
        &["a", "Ġ", "Ġa", "Ã", "©", "Ã©", "™", "<end>", "", "<0x0A>"],
        &["Ġ a", "Ã ©", "Ġ a"],
    );
    source.types.as_mut().unwrap()[7] = CONTROL;
    source.types.as_mut().unwrap()[9] = BYTE;
    let tables = tables(&source);
    let spelled: Vec<&[u8]> = tables.tokens.iter().map(Vec::as_slice).collect();
    let expected: [&[u8]; 10] = [
        b"a",
        b" ",
        b" a",
        b"\xc3",
        b"\xa9",
        "é".as_bytes(),
        "™".as_bytes(),
        b"<end>",
        b"[EMPTY_8]",
        b"\n",
    ];
    assert_eq!(spelled, expected);
    assert_eq!(tables.merges, [(1, 0, 2), (3, 4, 5)]);
    assert_eq!(tables.byte_tokens[b' ' as usize], Some(1));
    assert_eq!(tables.byte_tokens[0xa9], Some(4));
    assert_eq!(tables.byte_tokens[b'b' as usize], None);
    assert_eq!(tables.pre, PreTokenizer::Gpt2);
}

#[test]
fn names_that_share_a_splitter() {
    for (name, splitter) in [
        ("smollm", PreTokenizer::Smollm),
        ("starcoder", PreTokenizer::Smollm),
        ("mpt", PreTokenizer::Gpt2),
    ] {
        let mut source = source(&["a"], &[]);
        source.pre = Some(name.into());
        assert_eq!(tables(&source).pre, splitter);
    }
}

#[test]
fn tokens_that_end_generation_are_known_by_name() {
    let mut chat = source(
        &[
            "<|im_end|>",
            "<|endoftext|>",
            "x",
            "<eos>",
            "my_end",
            "<reponame>",
            "<unused0>",
        ],
        &[],
    );
    chat.types = Some(vec![
        NORMAL, CONTROL, NORMAL, NORMAL, NORMAL, NORMAL, CONTROL,
    ]);
    chat.special[Special::Eos.index()] = Some(4);
    let found = tables(&chat);
    assert_eq!(found.end_of_generation, [0, 1, 3, 4, 5]);
    assert_eq!(found.special[Special::Eot.index()], Some(0));
    assert_eq!(found.special[Special::FimRepository.index()], Some(5));
    // Known by its text, a token is a control token, whatever the file says; known by its id, it stays what it is.
    assert_eq!(found.attrs[0], Attr::NORMAL | Attr::CONTROL);
    assert_eq!(found.attrs[4], Attr::NORMAL);
    assert_eq!(found.attrs[6], Attr::CONTROL | Attr::UNUSED);

    // gpt-oss ends a message with <|end|> and an answer with <|return|> or <|call|>.
    let oss = tables(&source(
        &["<|return|>", "<|call|>", "<|end|>", "<|channel|>"],
        &[],
    ));
    assert_eq!(oss.end_of_generation, [0, 1]);
    assert_eq!(oss.attrs[2], Attr::USER_DEFINED);
    assert_eq!(oss.attrs[3], Attr::USER_DEFINED);

    // Gemma 4's </s> is text.
    let gemma = tables(&source(&["</s>", "<|tool_response>"], &[]));
    assert_eq!(
        (gemma.end_of_generation.as_slice(), gemma.attrs[0]),
        (&[1][..], Attr::NORMAL)
    );
}

/// What a change of a good vocabulary fails with.
fn refusal(change: impl FnOnce(&mut VocabSource<'static>)) -> Error {
    let mut source = source(&["a", "b", "ab", "<end>"], &["a b"]);
    change(&mut source);
    source.build().unwrap_err()
}

#[test]
fn wrong_vocabularies_are_refused_by_name() {
    let names = |error: Error, parts: &[&str]| {
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    names(
        refusal(|s| s.model = "rwkv".into()),
        &["tokenizer.ggml.model", "\"rwkv\"", "gpt2"],
    );
    names(
        refusal(|s| s.pre = Some("klingon".into())),
        &["tokenizer.ggml.pre", "\"klingon\"", "gpt-2, ", "smollm"],
    );
    names(
        refusal(|s| s.pre = None),
        &["tokenizer.ggml.pre is missing"],
    );
    names(
        refusal(|s| s.tokens[2] = b"a"),
        &["tokens 0 and 2", "\"a\""],
    );
    names(
        refusal(|s| s.types = Some(vec![1; 3])),
        &["3 token types", "4 tokens"],
    );
    names(
        refusal(|s| s.types = Some(vec![1, 1, 7, 1])),
        &["token 2", "type 7"],
    );
    names(
        refusal(|s| s.scores = Some(vec![0.0; 5])),
        &["5 scores", "4 tokens"],
    );
    names(
        refusal(|s| s.merges.push(b"ab")),
        &["merge 1", "\"ab\"", "space"],
    );
    names(refusal(|s| s.merges.push(b"")), &["merge 1"]);
    names(refusal(|s| s.merges.push(b" ")), &["merge 1"]);
    names(
        refusal(|s| s.merges.push(b"a c")),
        &["merge 1", "\"c\"", "lacks"],
    );
    names(
        refusal(|s| s.merges.push(b"b a")),
        &["merge 1", "\"ba\"", "lacks"],
    );
    names(
        refusal(|s| s.merges.push(b"a ")),
        &["merge 1", "\"\"", "lacks"],
    );
    names(
        refusal(|s| s.special[0] = Some(4)),
        &["Bos", "is 4", "4 tokens"],
    );
    names(refusal(|s| s.add_bos = Some(true)), &["Bos", "names none"]);
    names(
        refusal(|s| s.types = Some(vec![1, 1, 1, 6])),
        &["token 3", "byte type", "<end>"],
    );
    names(
        refusal(|s| {
            s.tokens[3] = b"<\xff>";
            s.types = Some(vec![1, 1, 1, 3]);
        }),
        &["special token 3", "UTF-8"],
    );
}

#[test]
fn errors_are_sorted_by_whose_fault_it_is() {
    use fastc::error::Error as Sorted;
    assert!(matches!(
        Sorted::from(refusal(|s| s.pre = None)),
        Sorted::Unsupported(_)
    ));
    assert!(matches!(
        Sorted::from(refusal(|s| s.merges.push(b"x"))),
        Sorted::User(_)
    ));
}

const UNKNOWN: i32 = 2;
const USER_DEFINED: i32 = 4;

/// A SentencePiece vocabulary: `▁` is a space in it.
fn scored() -> VocabSource<'static> {
    let tokens = [
        "<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁a", "a▁b", "zab", "yx", "  ",
        "<a>",
    ];
    let mut types = vec![NORMAL; tokens.len()];
    types[0] = UNKNOWN;
    types[1] = CONTROL;
    types[2] = CONTROL;
    types[3] = BYTE;
    types[12] = USER_DEFINED;
    types[13] = CONTROL;
    VocabSource {
        model: "llama".into(),
        pre: Some("default".into()),
        tokens: tokens.map(str::as_bytes).to_vec(),
        types: Some(types),
        scores: Some(vec![0.0; tokens.len()]),
        ..VocabSource::default()
    }
}

#[test]
fn sentencepiece_goes_by_texts() {
    let found = tables(&scored());
    assert_eq!(found.pre, PreTokenizer::Whole);
    assert!(found.add_bos && !found.add_eos && found.add_space_prefix);
    let special = |which: Special| found.special[which.index()];
    assert_eq!(
        [Special::Unknown, Special::Bos, Special::Eos].map(special),
        [Some(0), Some(1), Some(2)]
    );
    assert_eq!(found.tokens[8], b" a");
    assert_eq!(found.tokens[3], b"\n");
    assert_eq!(found.byte_tokens[b'\n' as usize], Some(3));
    assert_eq!(found.byte_tokens[b'a' as usize], Some(5)); // for lack of <0x61>
    // "a▁b" is "a▁" and "b", or "a" and "▁b": neither half is a token. Nor are the halves of "zab", but z is a character.
    assert_eq!(found.texts, [4, 5, 6, 7, 8, 10, 11]);
    assert_eq!(found.space_joins, Some(0));

    let mut joining = scored();
    joining.tokens.push("▁ab▁".as_bytes());
    joining.tokens.push("ab▁".as_bytes());
    joining.types = None;
    joining.scores = None;
    assert_eq!(tables(&joining).space_joins, Some(1 << b'b'));
    joining.tokens.push("é▁".as_bytes());
    assert_eq!(tables(&joining).space_joins, None);
}

#[test]
fn a_vocabulary_says_what_it_does_not_want() {
    let mut source = scored();
    source.add_bos = Some(false);
    source.add_space_prefix = Some(false);
    source.special[Special::Bos.index()] = Some(5);
    let found = tables(&source);
    assert!(!found.add_bos && !found.add_space_prefix);
    assert_eq!(found.special[Special::Bos.index()], Some(5));
    source.scores.as_mut().unwrap()[4] = f32::NAN;
    let error = source.build().unwrap_err().to_string();
    assert!(
        error.contains("scores") && error.contains("token 4"),
        "{error}"
    );
}

#[test]
fn phi3_is_known_by_its_name() {
    let mut source = scored();
    let strips = |source: &VocabSource<'_>| -> Vec<usize> {
        let attrs = tables(source).attrs;
        (0..attrs.len())
            .filter(|&id| attrs[id].any(Attr::STRIPS_RIGHT))
            .collect()
    };
    assert!(strips(&source).is_empty());
    source.name = Some("Phi-3 mini");
    assert_eq!(strips(&source), [2, 12, 13]);
}

#[test]
fn names_say_whether_merges_are_ignored() {
    for (name, splitter, ignore_merges, add_bos) in [
        ("llama-bpe", PreTokenizer::Llama3, true, true),
        ("glm4", PreTokenizer::Llama3, true, false),
        ("dbrx", PreTokenizer::Llama3, false, false),
        ("tekken", PreTokenizer::Tekken, true, true),
        ("qwen2", PreTokenizer::Qwen2, false, false),
        ("deepseek-r1-qwen", PreTokenizer::Qwen2, false, false),
        ("llama4", PreTokenizer::Gpt4o, false, false),
        ("default", PreTokenizer::Default, false, false),
    ] {
        let mut source = source(&["a", "Ġ", "<end>", "™", "<|x|>"], &[]);
        source.types = Some(vec![NORMAL, NORMAL, NORMAL, NORMAL, CONTROL]);
        source.pre = Some(name.into());
        source.special[Special::Bos.index()] = Some(2);
        let found = tables(&source);
        assert_eq!(
            (found.pre, found.ignore_merges, found.add_bos),
            (splitter, ignore_merges, add_bos),
            "{name}"
        );
        let texts: &[u32] = if ignore_merges { &[0, 1, 2] } else { &[] };
        assert_eq!(found.texts, texts, "{name}");
    }
}

#[test]
fn gemma4_takes_lines_of_characters() {
    let mut source = scored();
    source.model = "gemma4".into();
    source.pre = None;
    source.scores = None;
    source.merges = vec!["a b".as_bytes(), "▁ a".as_bytes()];
    source.special[Special::Bos.index()] = Some(1);
    source.add_bos = Some(false);
    source.tokens.push(b"\n\n");
    source.types.as_mut().unwrap().push(NORMAL);
    let found = tables(&source);
    assert_eq!(found.pre, PreTokenizer::Lines);
    assert!(found.add_bos && !found.add_space_prefix);
    assert_eq!(found.merges, [(5, 6, 7), (4, 5, 8)]);
    assert_eq!(found.texts, [4, 5, 6, 14]);
    assert_eq!(found.space_joins, Some(0));
}

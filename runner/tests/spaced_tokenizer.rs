//! Vocabularies that mark spaces: SentencePiece's scores, bytes and spaces in front; and words that are tokens by
//! themselves.

use bundle_format::tokenizer::{Attr, ModelKind, PreTokenizer, Special, Tables};
use fastrun::tokenizer::{EncodeOptions, Tokenizer};
use proptest::prelude::*;

const UNKNOWN: u32 = 0;
const BOS: u32 = 1;
const EOS: u32 = 2;
/// The tokens of bytes start here.
const BYTES: u32 = 3;
const TURN: u32 = 259;
const TAG: u32 = 260;
const INDENT: u32 = 261;

/// Tokens to merge, from the best score to the worst; two have the same.
const PIECES: &[(&str, f32)] = &[
    ("ab", -1.0),
    (" a", -2.0),
    ("ba", -2.0),
    ("  ", -3.0),
    ("    ", -4.0),
    ("aba", -5.0),
    (" ab", -6.0),
    ("bab", -7.0),
    ("éa", -8.0),
    ("> <", -9.0),
    (" ", -100.0),
    ("a", -101.0),
    ("b", -102.0),
    ("é", -103.0),
    (">", -104.0),
    ("<", -105.0),
];

fn tables() -> Tables {
    let mut tokens: Vec<Vec<u8>> = ["<unk>", "<s>", "</s>"].map(Vec::from).to_vec();
    let mut attrs = vec![Attr::UNKNOWN, Attr::CONTROL, Attr::CONTROL];
    let mut scores = vec![0.0; 3];
    let mut push = |token: Vec<u8>, attr: Attr, score: f32| {
        tokens.push(token);
        attrs.push(attr);
        scores.push(score);
    };
    for byte in 0..=255 {
        push(vec![byte], Attr::BYTE, 0.0);
    }
    push("<turn>".into(), Attr::CONTROL | Attr::STRIPS_RIGHT, 0.0);
    push("<b>".into(), Attr::USER_DEFINED, 0.0);
    push("▁▁▁".into(), Attr::USER_DEFINED, -3.5); // its mark is kept where it is cut out of text
    for &(text, score) in PIECES {
        push(text.into(), Attr::NORMAL, score);
    }
    let mut special = [None; Special::ALL.len()];
    special[Special::Unknown.index()] = Some(UNKNOWN);
    special[Special::Bos.index()] = Some(BOS);
    special[Special::Eos.index()] = Some(EOS);
    let pieces = TAG + 2..tokens.len() as u32;
    Tables {
        model: ModelKind::Scored,
        pre: PreTokenizer::Whole,
        add_bos: true,
        add_eos: false,
        add_space_prefix: false,
        ignore_merges: false,
        space_joins: None,
        texts: [INDENT].into_iter().chain(pieces).collect(),
        tokens,
        attrs,
        scores: Some(scores),
        byte_tokens: std::array::from_fn(|byte| Some(BYTES + byte as u32)),
        merges: Vec::new(),
        special,
        end_of_generation: vec![EOS],
        chat_template: None,
    }
}

const PLAIN: EncodeOptions = EncodeOptions {
    parse_special: false,
    add_special: false,
};
const PARSED: EncodeOptions = EncodeOptions {
    parse_special: true,
    add_special: true,
};

fn piece(text: &str) -> u32 {
    let at = PIECES.iter().position(|&(piece, _)| piece == text);
    TAG + 2 + at.unwrap() as u32
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| BYTES + u32::from(byte)).collect()
}

#[test]
fn the_best_score_merges_first() {
    let section = tables().write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    let encode = |text| tokenizer.encode(text, PLAIN);
    assert_eq!(encode("aba"), [piece("aba")]); // ab, then aba
    assert_eq!(encode(" aba"), [piece(" "), piece("aba")]);
    assert_eq!(encode("bab"), [piece("bab")]); // ab, then bab
    assert_eq!(encode("baa"), [piece("ba"), piece("a")]);
    // Of equal scores the left one: " a" before "ba" would leave no "ba".
    assert_eq!(encode("b a"), [piece("b"), piece(" a")]);
    assert_eq!(encode("ba a"), [piece("ba"), piece(" a")]);
    assert_eq!(encode("éa"), [piece("éa")]);
    assert_eq!(encode("字b"), [bytes("字"), vec![piece("b")]].concat());
    assert_eq!(encode("\n"), bytes("\n"));
    assert!(encode("").is_empty());
}

#[test]
fn marks_and_spaces_are_the_same_text() {
    let mut tables = tables();
    let section = tables.write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    // Three marks are a user-defined token, cut out of text; three spaces merge to the same one.
    assert_eq!(tokenizer.encode("▁▁▁▁", PLAIN), [INDENT, piece(" ")]);
    assert_eq!(tokenizer.encode("▁a", PLAIN), [piece(" a")]);
    assert_eq!(tokenizer.encode("    ", PLAIN), [piece("    ")]);
    assert_eq!(tokenizer.encode("   ", PLAIN), [INDENT]);

    // A vocabulary without a space spells the bytes of its mark.
    let space = piece(" ");
    tables.texts.retain(|&id| id != space);
    let section = tables.write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    assert_eq!(
        tokenizer.encode("b b", PLAIN),
        [vec![piece("b")], bytes("▁"), vec![piece("b")]].concat()
    );
}

#[test]
fn text_gets_a_space_after_special_tokens() {
    let mut tables = tables();
    tables.add_space_prefix = true;
    let section = tables.write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    let ids = tokenizer.encode("ab<b>b", PARSED);
    assert_eq!(ids, [BOS, piece(" ab"), TAG, piece(" "), piece("b")]);
    assert_eq!(tokenizer.decode(&ids[..2], false).unwrap(), "ab");
    assert_eq!(tokenizer.decode(&ids[..2], true).unwrap(), "<s>ab");
    assert_eq!(tokenizer.decode_bytes(&ids, false).unwrap(), b" ab<b> b");
    // An answer continues a text: its space is its own.
    let mut answer = tokenizer.decode_stream(false);
    assert_eq!(answer.push(piece(" ab")).unwrap(), " ab");
    assert_eq!(tokenizer.encode("", PARSED), [BOS]);
}

#[test]
fn white_space_after_some_special_tokens_vanishes() {
    let section = tables().write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    let encode = |text| tokenizer.encode(text, PARSED)[1..].to_vec();
    assert_eq!(encode("<turn> \n\u{b}b<turn>  "), [TURN, piece("b"), TURN]);
    assert_eq!(encode("<turn> <turn>\u{a0}")[..2], [TURN, TURN]);
    assert_eq!(encode("</s> b"), [EOS, piece(" "), piece("b")]);
    assert_eq!(encode("<turn>\u{a0}")[1..], bytes("\u{a0}"));
}

#[test]
fn characters_without_a_token_stream_whole() {
    let section = tables().write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    let mut stream = tokenizer.decode_stream(false);
    let pieces: Vec<String> = tokenizer
        .encode("b字é", PLAIN)
        .into_iter()
        .map(|id| stream.push(id).unwrap())
        .collect();
    assert_eq!(pieces, ["b", "", "", "字", "é"]);
}

/// Byte-level words that are tokens, though no merge makes them.
#[test]
fn words_may_be_tokens_without_merges() {
    let mut tables = tables();
    tables.model = ModelKind::ByteBpe;
    tables.pre = PreTokenizer::Gpt2;
    tables.scores = None;
    for ignore_merges in [false, true] {
        tables.ignore_merges = ignore_merges;
        let section = tables.write().unwrap();
        let tokenizer = Tokenizer::open(&section).unwrap();
        let word = match ignore_merges {
            true => vec![piece(" ab")],
            false => bytes(" ab"),
        };
        let expected = [word, bytes(" abb")].concat();
        assert_eq!(tokenizer.encode(" ab abb", PLAIN), expected);
    }
}

/// Characters merge by list; newlines are words, tokens if the vocabulary has them.
#[test]
fn lines_of_characters_merge_by_list() {
    let mut tables = tables();
    tables.model = ModelKind::CharBpe;
    tables.pre = PreTokenizer::Lines;
    tables.merges = vec![
        (piece("b"), piece("a"), piece("ba")),
        (piece("a"), piece("b"), piece("ab")),
        (piece(" "), piece("ab"), piece(" ab")),
    ];
    tables.tokens.push("\n\n".into());
    tables.attrs.push(Attr::NORMAL);
    tables.scores = None;
    let lines = tables.tokens.len() as u32 - 1;
    tables.texts.push(lines);
    let section = tables.write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    assert_eq!(
        tokenizer.encode(" aba ab\n\n字", PLAIN),
        [
            vec![piece(" "), piece("a"), piece("ba"), piece(" ab"), lines],
            bytes("字")
        ]
        .concat()
    );
    assert_eq!(tokenizer.encode("\n\n\n", PLAIN), bytes("\n\n\n"));
}

/// Merges the best pair, leftmost first, looking at all pairs every time.
fn merge_naively(tables: &Tables, text: &str) -> Vec<u32> {
    let find = |text: &str| {
        tables.texts.iter().copied().find(|&id| {
            String::from_utf8_lossy(&tables.tokens[id as usize]).replace('▁', " ") == text
        })
    };
    let score = |id: u32| tables.scores.as_ref().unwrap()[id as usize];
    let mut symbols: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 1..symbols.len() {
            if let Some(id) = find(&[&symbols[at - 1][..], &symbols[at]].concat())
                && best.is_none_or(|(highest, _)| score(id) > highest)
            {
                best = Some((score(id), at));
            }
        }
        let Some((_, at)) = best else { break };
        let right = symbols.remove(at);
        symbols[at - 1] += &right;
    }
    symbols
        .iter()
        .flat_map(|symbol| find(symbol).map_or_else(|| bytes(symbol), |id| vec![id]))
        .collect()
}

proptest! {
    /// Short texts are scanned and long ones merged with a heap, cut at spaces or not; all are as the naive way.
    #[test]
    fn merges_are_those_of_the_naive_way(text in "[ab ]{0,120}|[a é<>字]{0,80}") {
        let mut tables = tables();
        let expected = merge_naively(&tables, &text);
        // A space may be in a token after a space and after `>`.
        for joins in [None, Some(1 << b' ' | 1 << b'>')] {
            tables.space_joins = joins;
            let section = tables.write().unwrap();
            let tokenizer = Tokenizer::open(&section).unwrap();
            prop_assert_eq!(&tokenizer.encode(&text, PLAIN), &expected);
            prop_assert_eq!(&tokenizer.decode(&expected, false).unwrap().replace('▁', " "), &text);
        }
    }

    #[test]
    fn any_text_comes_back(text in "[^▁]*", prefix: bool) {
        let mut tables = tables();
        tables.add_space_prefix = prefix;
        let section = tables.write().unwrap();
        let tokenizer = Tokenizer::open(&section).unwrap();
        let ids = tokenizer.encode(&text, PLAIN);
        let back = tokenizer.decode(&ids, false).unwrap();
        // Text after a user-defined token has one space more.
        prop_assert_eq!(back.replace("<b> ", "<b>").replace('▁', " "), text.replace("<b> ", "<b>"));
    }
}

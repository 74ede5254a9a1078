//! Encoding and decoding over a small vocabulary, against naive versions of the rules.

use bundle_format::tokenizer::{Attr, ModelKind, PreTokenizer, Special, Tables};
use fastrun::chat::Prompt;
use fastrun::tokenizer::{EncodeOptions, Tokenizer};
use proptest::prelude::*;

/// All bytes, merges over `a`, `b` and space, two user-defined and four control tokens.
fn tables() -> Tables {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut attrs = vec![Attr::NORMAL; 256];
    let mut merges = Vec::new();
    let (a, b, space) = (b'a' as u32, b'b' as u32, b' ' as u32);
    // In order of rank; 256 is the token of the first, and so on.
    for (left, right) in [
        (a, b),
        (b, a),
        (256, a),
        (a, a),
        (259, 259),
        (space, a),
        (257, 256),
        (261, b),
        (0xc3, 0xa9),
    ] {
        merges.push((left, right, tokens.len() as u32));
        tokens.push([&tokens[left as usize][..], &tokens[right as usize]].concat());
        attrs.push(Attr::NORMAL);
    }
    for (text, attr) in [
        ("<s>", Attr::CONTROL),
        ("<end>", Attr::CONTROL),
        ("<s><en", Attr::CONTROL),
        ("\n\n", Attr::USER_DEFINED),
        ("\n\n\n", Attr::USER_DEFINED),
        ("<unk>", Attr::UNKNOWN),
        ("<never>", Attr::UNUSED),
    ] {
        tokens.push(text.into());
        attrs.push(attr);
    }
    let mut special = [None; Special::ALL.len()];
    special[Special::Bos.index()] = Some(S);
    special[Special::Eos.index()] = Some(END);
    Tables {
        model: ModelKind::ByteBpe,
        pre: PreTokenizer::Gpt2,
        add_bos: true,
        add_eos: true,
        add_space_prefix: false,
        ignore_merges: false,
        space_joins: None,
        tokens,
        attrs,
        scores: None,
        byte_tokens: std::array::from_fn(|byte| Some(byte as u32)),
        merges,
        texts: Vec::new(),
        special,
        end_of_generation: vec![END],
        chat_template: None,
    }
}

const S: u32 = 265;
const END: u32 = 266;
const S_E: u32 = 267;
const LINES_2: u32 = 268;
const LINES_3: u32 = 269;
const NEVER: u32 = 271;

const PLAIN: EncodeOptions = EncodeOptions {
    parse_special: false,
    add_special: false,
};
const PARSED: EncodeOptions = EncodeOptions {
    parse_special: true,
    add_special: false,
};

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn special_tokens_are_cut_out_longest_first() {
    let section = tables().write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    let encode = |text, options| tokenizer.encode(text, options);
    assert_eq!(encode("<s>x<end>", PARSED), [S, b'x' as u32, END]);
    assert_eq!(encode("<s>x<end>", PLAIN), bytes("<s>x<end>"));
    // The longer token is taken although it ends within another that a reader from the left would find first.
    assert_eq!(
        encode("<s><end>", PARSED),
        [vec![S_E], bytes("d>")].concat()
    );
    // Cut from the left; what is left over is cut again.
    assert_eq!(encode("\n\n\n\n\n", PARSED), [LINES_3, LINES_2]);
    assert_eq!(
        encode("x\n\n\n\n", PLAIN),
        [b'x' as u32, LINES_3, b'\n' as u32]
    );
    assert_eq!(encode("<never>", PARSED), bytes("<never>"));
    let both = EncodeOptions {
        parse_special: true,
        add_special: true,
    };
    assert_eq!(encode("", both), [S, END]);
    assert_eq!(encode("<s>", both), [S, S, END]);
}

#[test]
fn a_prompt_keeps_literal_characters_out_of_control_tokens() {
    let section = tables().write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    let prompt = |literal: &[usize]| {
        tokenizer.encode_prompt(&Prompt {
            text: "<s><end>".into(),
            literal: literal.into(),
        })
    };
    assert_eq!(prompt(&[]), [vec![S, S_E], bytes("d>")].concat());
    assert_eq!(prompt(&[0]), [vec![S], bytes("<s>"), vec![END]].concat());
    assert_eq!(prompt(&[4]), [vec![S], bytes("<end>")].concat());
    assert_eq!(prompt(&[7]), [vec![S, S_E], bytes("d>")].concat());
}

#[test]
fn hidden_tokens_are_shown_when_asked_for() {
    let section = tables().write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    let ids = [S, b'x' as u32, LINES_2, NEVER, END];
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "x\n\n");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "<s>x\n\n<end>");
    let error = tokenizer.decode(&[272], true).unwrap_err().to_string();
    assert!(
        error.contains("272") && error.contains("vocabulary"),
        "{error}"
    );
    assert!(tokenizer.ends_generation(END) && !tokenizer.ends_generation(S));
}

#[test]
fn characters_come_whole() {
    let section = tables().write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    let mut stream = tokenizer.decode_stream(false);
    let pieces: Vec<String> = "é😀"
        .bytes()
        .map(|byte| stream.push(byte.into()).unwrap())
        .collect();
    assert_eq!(pieces, ["", "é", "", "", "", "😀"]);
    assert_eq!(stream.clone().push(0xff).unwrap(), "\u{fffd}");
    stream.push(0xe2).unwrap();
    stream.push(0x82).unwrap();
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn bytes_without_a_token_are_left_out() {
    let mut tables = tables();
    tables.byte_tokens[4] = None;
    let section = tables.write().unwrap();
    let tokenizer = Tokenizer::open(&section).unwrap();
    assert_eq!(tokenizer.encode("x\u{4}y", PLAIN), bytes("xy"));
}

/// Merges the pair of lowest rank, leftmost first, looking through all pairs every time.
fn merge_naively(tables: &Tables, word: &str) -> Vec<u32> {
    let mut ids = bytes(word);
    loop {
        let best = (1..ids.len())
            .filter_map(|i| {
                let rank = tables
                    .merges
                    .iter()
                    .position(|m| (m.0, m.1) == (ids[i - 1], ids[i]))?;
                Some((rank, i))
            })
            .min();
        let Some((rank, i)) = best else { return ids };
        ids[i - 1] = tables.merges[rank].2;
        ids.remove(i);
    }
}

/// Cuts out one special token after the other, longest first, from all text that is left.
fn cut_naively(tables: &Tables, text: &str) -> Vec<Result<u32, String>> {
    let mut order: Vec<usize> = (0..tables.tokens.len())
        .filter(|&id| tables.attrs[id].is_matched())
        .collect();
    order.sort_by_key(|&id| std::cmp::Reverse(tables.tokens[id].len()));
    let mut pieces = vec![Err(text.to_owned())];
    for id in order {
        let special = std::str::from_utf8(&tables.tokens[id]).unwrap();
        pieces = pieces
            .into_iter()
            .flat_map(|piece| match piece {
                Ok(id) => vec![Ok(id)],
                Err(text) => {
                    let parts: Vec<_> = text
                        .split(special)
                        .map(|part| Err(part.to_owned()))
                        .collect();
                    let mut joined: Vec<_> = parts
                        .into_iter()
                        .flat_map(|part| [part, Ok(id as u32)])
                        .collect();
                    joined.pop();
                    joined
                }
            })
            .filter(|piece| piece != &Err(String::new()))
            .collect();
    }
    pieces
}

proptest! {
    #[test]
    fn any_text_comes_back(text: String) {
        let section = tables().write().unwrap();
        let tokenizer = Tokenizer::open(&section).unwrap();
        for options in [PLAIN, PARSED] {
            prop_assert_eq!(&tokenizer.decode(&tokenizer.encode(&text, options), true).unwrap(), &text);
        }
    }

    /// Short words are scanned and long ones merged with a heap; both are as the naive way.
    #[test]
    fn merges_are_those_of_the_naive_way(word in "[ab]{1,120}|[a-cé]{1,60}") {
        let tables = tables();
        let section = tables.write().unwrap();
        let tokenizer = Tokenizer::open(&section).unwrap();
        prop_assert_eq!(tokenizer.encode(&word, PLAIN), merge_naively(&tables, &word));
    }

    #[test]
    fn special_tokens_are_those_of_the_naive_way(
        parts in proptest::collection::vec(
            prop_oneof![Just("<s>"), Just("<en"), Just("d>"), Just("\n"), Just("\n\n\n"), Just("<s"), Just("x")], 0..20),
    ) {
        let tables = tables();
        let section = tables.write().unwrap();
        let tokenizer = Tokenizer::open(&section).unwrap();
        let text = parts.concat();
        let naive: Vec<u32> = cut_naively(&tables, &text)
            .into_iter()
            .flat_map(|piece| piece.map_or_else(|text| bytes(&text), |id| vec![id]))
            .collect();
        prop_assert_eq!(tokenizer.encode(&text, PARSED), naive);
    }

    #[test]
    fn a_stream_yields_what_decoding_at_once_does(ids in proptest::collection::vec(0u32..272, 0..60)) {
        let section = tables().write().unwrap();
        let tokenizer = Tokenizer::open(&section).unwrap();
        for show_special in [false, true] {
            let mut stream = tokenizer.decode_stream(show_special);
            let mut text = String::new();
            for &id in &ids {
                text += &stream.push(id).unwrap();
            }
            text += &stream.finish();
            prop_assert_eq!(text, tokenizer.decode(&ids, show_special).unwrap());
        }
    }

    /// Random ids are mostly invalid UTF-8; whole characters cut anywhere are the other half.
    #[test]
    fn valid_text_streams_without_replacement(text: String) {
        let section = tables().write().unwrap();
        let tokenizer = Tokenizer::open(&section).unwrap();
        let mut stream = tokenizer.decode_stream(false);
        let mut out = String::new();
        for byte in text.bytes() {
            out += &stream.push(byte.into()).unwrap();
        }
        prop_assert_eq!(&out, &text);
        prop_assert_eq!(stream.finish(), "");
    }
}

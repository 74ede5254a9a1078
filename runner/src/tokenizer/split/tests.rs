use super::*;

fn split(pre: PreTokenizer, text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    words(pre, text, &mut |word| out.push(word));
    assert_eq!(out.concat(), text);
    out
}

#[test]
fn gpt2_words() {
    let gpt2 = |text| split(PreTokenizer::Gpt2, text);
    assert_eq!(
        gpt2("Hello, world's  end"),
        ["Hello", ",", " world", "'s", " ", " end"]
    );
    assert_eq!(
        gpt2("we'll 've 'Ll x'"),
        ["we", "'ll", " '", "ve", " '", "Ll", " x", "'"]
    );
    assert_eq!(gpt2("a\n\n b \n"), ["a", "\n\n", " b", " \n"]);
    assert_eq!(gpt2("a\n\nb"), ["a", "\n", "\n", "b"]);
    assert_eq!(gpt2("x=12½ ٣٤!?"), ["x", "=", "12½", " ٣٤", "!?"]);
    assert_eq!(gpt2(" \u{3000}字 "), [" ", "\u{3000}", "字", " "]);
    assert_eq!(gpt2("+\u{301}\u{7f}-"), ["+\u{301}\u{7f}-"]);
    assert!(gpt2("").is_empty());
}

#[test]
fn smollm_isolates_every_number() {
    let smollm = |text| split(PreTokenizer::Smollm, text);
    assert_eq!(
        smollm("in  2024²!"),
        ["in", "  ", "2", "0", "2", "4", "²", "!"]
    );
    assert_eq!(smollm("1"), ["1"]);
    assert_eq!(smollm(" 1 "), [" ", "1", " "]);
}

#[test]
fn text_is_cut_before_spaces() {
    let cut = |text, joins: u128| {
        let mut out = Vec::new();
        cut_before_spaces(text, joins, &mut |word| out.push(word));
        out
    };
    assert_eq!(cut("a b  é ", 0), ["a", " b", " ", " é", " "]);
    assert_eq!(cut("a b  é ", 1 << b' ' | 1 << b'a'), ["a b", "  é", " "]);
    assert!(cut("", 0).is_empty());
}

/// Words as llama.cpp's own splitter gives them: their lengths in bytes by pre-tokeniser, for texts in many scripts.
#[test]
fn words_are_those_of_llama_cpp() {
    let lines = include_str!("../../../../tests/golden/words.jsonl").lines();
    let mut texts = 0;
    for line in lines {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap();
        for &pre in PreTokenizer::ALL {
            if pre == PreTokenizer::Whole {
                continue;
            }
            let expected: Vec<usize> =
                serde_json::from_value(line["words"][pre.name()].clone()).unwrap();
            let found: Vec<usize> = split(pre, text).iter().map(|word| word.len()).collect();
            assert_eq!(found, expected, "{} {text:?}", pre.name());
        }
        texts += 1;
    }
    assert!(texts > 200, "{texts} texts");
}

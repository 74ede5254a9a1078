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
fn spaces_lead_words() {
    let mut out = Vec::new();
    cut_before_spaces("a b  c\n d ", &mut |word| out.push(word));
    assert_eq!(out, ["a", " b", "  c\n", " d", " "]);
    cut_before_spaces("", &mut |_| unreachable!());
}

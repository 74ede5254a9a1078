//! Grammars over a small vocabulary, on a device that draws anything that their masks allow.

#[allow(dead_code, reason = "each test program uses a part of it")]
mod null_device;

use std::collections::BTreeMap;

use bundle_format::plan::Limits;
use bundle_format::tokenizer::{Attr, ModelKind, PreTokenizer, Special, Tables};
use fastrun::device::SampleParams;
use fastrun::grammar::{Constraint, Grammar, GrammarCompiler};
use fastrun::spec::NgramSpec;
use fastrun::tokenizer::Tokenizer;
use fastrun::{Config, Engine, Error, Event, FinishReason, Progress, Request};
use null_device::NullDevice;
use serde_json::{Value, json};

const EOS: u32 = 1;
const TURN: u32 = 2;
const BYTES: u32 = 3;
/// Tokens of several bytes, some of which cross what a grammar calls a terminal.
const PIECES: [&str; 12] = [
    "{\"", "\":", "\",", "\"}", "true", "false", "null", ", ", "ab", "red", "gre", "0.",
];
/// The model's; the last ids have no token.
const VOCAB: u32 = 300;

fn section() -> Vec<u8> {
    let mut tokens: Vec<Vec<u8>> = ["<s>", "</s>", "<turn>"].map(Vec::from).to_vec();
    tokens.extend((0..=255).map(|byte| vec![byte]));
    tokens.extend(PIECES.map(Vec::from));
    let mut attrs = vec![Attr::CONTROL; 3];
    attrs.extend([Attr::BYTE; 256]);
    attrs.extend([Attr::NORMAL; PIECES.len()]);
    let mut special = [None; Special::ALL.len()];
    special[Special::Eos.index()] = Some(EOS);
    let tables = Tables {
        model: ModelKind::Scored,
        pre: PreTokenizer::Whole,
        add_bos: false,
        add_eos: false,
        add_space_prefix: false,
        ignore_merges: false,
        space_joins: None,
        texts: (BYTES + 256..tokens.len() as u32).collect(),
        scores: Some(vec![0.0; tokens.len()]),
        tokens,
        attrs,
        byte_tokens: std::array::from_fn(|byte| Some(BYTES + byte as u32)),
        merges: Vec::new(),
        special,
        end_of_generation: vec![EOS, TURN],
        chat_template: None,
    };
    tables.write().expect("the tables are valid")
}

fn compiler() -> GrammarCompiler {
    let section = section();
    let tokenizer = Tokenizer::open(&section).expect("just written");
    GrammarCompiler::new(&tokenizer, VOCAB).expect("it has tokens that end an answer")
}

fn compile(grammar: &Grammar) -> Constraint {
    compiler().compile(grammar).expect("it is valid")
}

fn engine(spec: Option<NgramSpec>, in_flight: usize) -> Engine<NullDevice> {
    let limits = Limits {
        max_tokens: 64,
        max_seqs: 6,
        max_rows: 24,
        context: 512,
    };
    let device = NullDevice::new(limits, VOCAB, vec![200], vec![1, 0]);
    let config = Config {
        spec,
        in_flight,
        ..Config::new(limits, VOCAB)
    };
    Engine::new(device, config)
}

fn request(grammar: &Constraint, seed: u64) -> Request {
    Request {
        prompt: vec![BYTES + 65; 20],
        max_tokens: Some(300),
        sampling: SampleParams {
            seed,
            ..SampleParams::default()
        },
        grammar: Some(grammar.clone()),
        choices: 3,
        ..Request::default()
    }
}

/// The answers to all choices of some requests, by request and choice.
fn serve(engine: &mut Engine<NullDevice>, requests: &[Request]) -> Vec<(Vec<u32>, FinishReason)> {
    for request in requests {
        engine.add(request.clone()).expect("it fits");
    }
    let mut answers = BTreeMap::<_, (Vec<u32>, Option<FinishReason>)>::new();
    while engine.step() != Progress::Idle {
        for event in engine.take_events() {
            match event {
                Event::Token {
                    id, choice, token, ..
                } => answers.entry((id, choice)).or_default().0.push(token),
                Event::Finished {
                    id, choice, reason, ..
                } => answers.entry((id, choice)).or_default().1 = Some(reason),
                Event::Scored { .. } | Event::Hidden { .. } => panic!("nobody asked"),
            }
        }
    }
    let ended = |(tokens, reason): (Vec<u32>, Option<FinishReason>)| {
        (tokens, reason.expect("all have ended"))
    };
    answers.into_values().map(ended).collect()
}

fn text(tokens: &[u32]) -> String {
    let section = section();
    let tokenizer = Tokenizer::open(&section).expect("just written");
    let bytes = tokenizer.decode_bytes(tokens, true).expect("ids are known");
    // Only an answer that breaks off ends within a character.
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Serves a grammar with 20 seeds and three choices each: every answer must be complete and satisfy `check`.
fn holds(grammar: &Grammar, check: impl Fn(&str)) {
    let constraint = compile(grammar);
    let requests: Vec<Request> = (0..20).map(|i| request(&constraint, i * 10)).collect();
    let mut plain = engine(None, 1);
    let answers = serve(&mut plain, &requests);
    assert_eq!(answers.len(), 60);
    for (tokens, reason) in &answers {
        let text = text(tokens);
        assert_eq!(*reason, FinishReason::Stop, "{text}");
        check(&text);
    }
    let some = answers.iter().filter(|a| a.0 != answers[0].0).count();
    assert!(some > 0, "all answers are the same");
    // Guesses and steps in flight change nothing.
    let mut guessing = engine(Some(NgramSpec::default()), 2);
    assert_eq!(serve(&mut guessing, &requests), answers);
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green", "blue"]},
            "sizes": {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 12}, "maxItems": 4},
            "shiny": {"type": "boolean"},
            "part": {"$ref": "#/$defs/part"},
        },
        "required": ["colour", "sizes", "shiny", "part"],
        "additionalProperties": false,
        "$defs": {"part": {"type": ["null", "boolean"]}},
    })
}

#[test]
fn answers_are_json_of_their_schema() {
    holds(&Grammar::JsonSchema(schema()), |text| {
        let value: Value = serde_json::from_str(text).expect(text);
        assert_eq!(value.as_object().expect(text).len(), 4, "{text}");
        assert!(["red", "green", "blue"].contains(&value["colour"].as_str().expect(text)));
        let sizes = value["sizes"].as_array().expect(text);
        let in_range = |v: &Value| v.as_i64().is_some_and(|i| (3..=12).contains(&i));
        assert!(sizes.len() <= 4 && sizes.iter().all(in_range), "{text}");
        assert!(value["shiny"].is_boolean(), "{text}");
        assert!(
            value["part"].is_null() || value["part"].is_boolean(),
            "{text}"
        );
    });
}

#[test]
fn answers_match_their_regular_expression() {
    holds(&Grammar::Regex("(ab|é){2,5}[0-9]{1,3}x?".into()), |text| {
        let rest = text.trim_start_matches("ab").trim_start_matches('é');
        assert!(text.starts_with("ab") || text.starts_with('é'), "{text}");
        assert!(rest.chars().count() <= 14, "{text}");
        let digits = text.trim_end_matches('x');
        assert!(digits.ends_with(|c: char| c.is_ascii_digit()), "{text}");
    });
}

#[test]
fn answers_are_of_their_grammar() {
    let lark = "start: pair (\";\" pair)~0..3\npair: NAME \"=\" NUMBER\nNAME: /[a-c]{1,3}/\nNUMBER: /[1-9][0-9]{0,2}/\n";
    let lark = lark.replace("(\";\" pair)~0..3", "(\";\" pair){0,3}");
    holds(&Grammar::Lark(lark), |text| {
        for pair in text.split(';') {
            let (name, number) = pair.split_once('=').expect(text);
            assert!((1..=3).contains(&name.len()), "{text}");
            assert!((1..1000).contains(&number.parse().unwrap_or(0)), "{text}");
        }
    });
}

#[test]
fn an_answer_may_be_empty() {
    let constraint = compile(&Grammar::Regex("(ab)?".into()));
    let requests: Vec<Request> = (0..10).map(|i| request(&constraint, i * 10)).collect();
    let answers = serve(&mut engine(None, 1), &requests);
    let texts: Vec<String> = answers.iter().map(|a| text(&a.0)).collect();
    assert!(texts.iter().all(|t| t.is_empty() || t == "ab"), "{texts:?}");
    assert!(texts.iter().any(String::is_empty), "{texts:?}");
    assert!(answers.iter().all(|a| a.1 == FinishReason::Stop));
}

#[test]
fn any_json_is_an_object() {
    let constraint = compile(&Grammar::Json);
    let requests: Vec<Request> = (0..10).map(|i| request(&constraint, i * 10)).collect();
    for (tokens, reason) in serve(&mut engine(None, 1), &requests) {
        let text = text(&tokens);
        assert!(text.starts_with('{'), "{text}");
        // Random strings rarely end.
        if reason == FinishReason::Stop {
            let value: Value = serde_json::from_str(&text).expect("complete");
            assert!(value.is_object());
        } else {
            assert_eq!(reason, FinishReason::Length);
        }
    }
}

#[test]
fn what_is_wrong_with_a_grammar_is_said() {
    let compiler = compiler();
    let refused = |grammar, parts: &[&str]| match compiler.compile(&grammar) {
        Err(Error::User(text)) => {
            parts
                .iter()
                .for_each(|p| assert!(text.contains(p), "{p:?}: {text}"));
        }
        other => panic!("{grammar:?}: {other:?}"),
    };
    refused(
        Grammar::JsonSchema(json!({"type": "object", "properties": {"a": {"type": "strin"}}})),
        &["JSON schema", "strin"],
    );
    refused(
        Grammar::JsonSchema(json!({"$ref": "#/$defs/missing"})),
        &["JSON schema", "missing"],
    );
    refused(Grammar::JsonSchema(json!(7)), &["JSON schema"]);
    refused(Grammar::Regex("a(b".into()), &["regular expression"]);
    refused(
        Grammar::Lark("start: one\none: \"a\" two\n".into()),
        &["Lark grammar", "two"],
    );
    refused(Grammar::Lark("start: (".into()), &["Lark grammar", "1"]);
}

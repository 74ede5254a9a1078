//! JSON to options and requests.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use runner::chat::ChatRequest;
use runner::grammar::Grammar;
use runner::runner::DeviceKind;
use runner::{Error, GenerateRequest, Input, RunnerOptions};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    device: Option<Device>,
    threads: Option<usize>,
    kv_memory: Option<u64>,
    queue: Option<usize>,
    prefix_cache: Option<bool>,
    spec: Option<String>,
    token_budget: Option<u32>,
    verify: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Device {
    #[serde(alias = "cpu")]
    Own,
    Reference,
}

/// Options of `fastrun_open`; none: the defaults.
pub fn options(json: Option<&str>) -> Result<RunnerOptions, Error> {
    let given: Options = match json {
        Some(json) => parse(json, "options")?,
        None => Options::default(),
    };
    let default = RunnerOptions::default();
    let spec = given.spec.map(|spec| spec.parse()).transpose();
    Ok(RunnerOptions {
        device: match given.device {
            Some(Device::Reference) => DeviceKind::Reference,
            Some(Device::Own) | None => DeviceKind::Own,
        },
        threads: given.threads,
        kv_memory: given.kv_memory,
        queue: given.queue.unwrap_or(default.queue),
        prefix_cache: given.prefix_cache.unwrap_or(default.prefix_cache),
        spec: spec.map_err(|e| Error::User(format!("options: spec: {e}")))?,
        token_budget: given.token_budget,
        verify: given.verify.unwrap_or(default.verify),
        ..default
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    prompt: Option<String>,
    tokens: Option<Vec<u32>>,
    messages: Option<Vec<Json>>,
    tools: Option<Vec<Json>>,
    template_variables: Option<Map<String, Json>>,
    max_tokens: Option<u32>,
    n: Option<u32>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repeat_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    repeat_last_n: Option<i64>,
    seed: Option<u64>,
    stop: Option<Stop>,
    ignore_eos: Option<bool>,
    logprobs: Option<u32>,
    logit_bias: Option<BTreeMap<u32, f32>>,
    grammar: Option<Form>,
    timeout: Option<f64>,
    cache_salt: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Form {
    Json {},
    JsonSchema(Json),
    Regex(String),
    Lark(String),
}

/// A request of `fastrun_generate`.
pub fn generate(json: &str) -> Result<GenerateRequest, Error> {
    let mut given: Request = parse(json, "request")?;
    let mut request = GenerateRequest::new(take_input(&mut given)?);
    request.max_tokens = given.max_tokens;
    request.choices = given.n.unwrap_or(request.choices);
    request.stop = match given.stop {
        None => Vec::new(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Many(texts)) => texts,
    };
    request.ignore_eos = given.ignore_eos.unwrap_or(false);
    request.logprobs = given.logprobs;
    request.bias = given.logit_bias.into_iter().flatten().collect();
    request.cache_salt = given.cache_salt.unwrap_or(0);
    request.grammar = given.grammar.map(|form| match form {
        Form::Json {} => Grammar::Json,
        Form::JsonSchema(schema) => Grammar::JsonSchema(schema),
        Form::Regex(text) => Grammar::Regex(text),
        Form::Lark(text) => Grammar::Lark(text),
    });
    request.timeout = given.timeout.map(seconds).transpose()?;

    let sampling = &mut request.sampling;
    let set = |field: &mut f32, given: Option<f32>| *field = given.unwrap_or(*field);
    set(&mut sampling.temperature, given.temperature);
    set(&mut sampling.top_p, given.top_p);
    set(&mut sampling.min_p, given.min_p);
    set(&mut sampling.typical_p, given.typical_p);
    set(&mut sampling.penalties.repeat, given.repeat_penalty);
    set(&mut sampling.penalties.frequency, given.frequency_penalty);
    set(&mut sampling.penalties.presence, given.presence_penalty);
    sampling.top_k = given.top_k.unwrap_or(sampling.top_k);
    sampling.seed = given.seed.unwrap_or(sampling.seed);
    if let Some(last_n) = given.repeat_last_n {
        sampling.penalties.last_n = match last_n {
            -1 => u32::MAX,
            n => u32::try_from(n).map_err(|_| {
                Error::User(format!(
                    "request: repeat_last_n is {n}; give a number of tokens, or -1 for all"
                ))
            })?,
        };
    }
    Ok(request)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OnlyInput {
    prompt: Option<String>,
    tokens: Option<Vec<u32>>,
    messages: Option<Vec<Json>>,
    tools: Option<Vec<Json>>,
    template_variables: Option<Map<String, Json>>,
}

/// What is to be read, and nothing else.
pub fn input(json: &str) -> Result<Input, Error> {
    let given: OnlyInput = parse(json, "input")?;
    one_input(
        given.prompt,
        given.tokens,
        given.messages,
        given.tools,
        given.template_variables,
    )
}

fn take_input(given: &mut Request) -> Result<Input, Error> {
    one_input(
        given.prompt.take(),
        given.tokens.take(),
        given.messages.take(),
        given.tools.take(),
        given.template_variables.take(),
    )
}

fn one_input(
    prompt: Option<String>,
    tokens: Option<Vec<u32>>,
    messages: Option<Vec<Json>>,
    tools: Option<Vec<Json>>,
    variables: Option<Map<String, Json>>,
) -> Result<Input, Error> {
    if messages.is_none() && (tools.is_some() || variables.is_some()) {
        return Err(Error::User(
            "tools and template_variables belong to messages; give those".into(),
        ));
    }
    match (prompt, tokens, messages) {
        (Some(text), None, None) => Ok(Input::Text(text)),
        (None, Some(ids), None) => Ok(Input::Tokens(ids)),
        (None, None, Some(messages)) => Ok(Input::Chat(ChatRequest {
            tools: tools.unwrap_or_default(),
            variables: variables.unwrap_or_default(),
            ..ChatRequest::new(messages, SystemTime::now())
        })),
        _ => Err(Error::User(
            "give exactly one of prompt, tokens and messages".into(),
        )),
    }
}

fn seconds(timeout: f64) -> Result<Duration, Error> {
    Duration::try_from_secs_f64(timeout)
        .map_err(|e| Error::User(format!("request: timeout is {timeout} seconds: {e}")))
}

fn parse<T: DeserializeOwned>(json: &str, what: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|e| Error::User(format!("{what}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault<T>(result: Result<T, Error>) -> String {
        match result {
            Err(Error::User(text)) => text,
            Err(other) => panic!("not the user's error: {other}"),
            Ok(_) => panic!("it is accepted"),
        }
    }

    #[test]
    fn every_field_arrives() {
        let request = generate(
            r#"{"prompt": "Hi", "max_tokens": 3, "n": 2, "temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125,
                "typical_p": 0.75, "repeat_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": -0.5,
                "repeat_last_n": -1, "seed": 18446744073709551615, "stop": "x", "ignore_eos": true, "logprobs": 4,
                "logit_bias": {"5": -1.5, "2": 1}, "grammar": {"regex": "a+"}, "timeout": 1.5, "cache_salt": 9}"#,
        )
        .expect("it is valid");
        assert!(matches!(&request.input, Input::Text(text) if text == "Hi"));
        let sampling = &request.sampling;
        assert_eq!((request.max_tokens, request.choices), (Some(3), 2));
        assert_eq!(
            (sampling.temperature, sampling.top_k, sampling.top_p),
            (0.5, 7, 0.25)
        );
        assert_eq!((sampling.min_p, sampling.typical_p), (0.125, 0.75));
        let penalties = &sampling.penalties;
        assert_eq!((penalties.repeat, penalties.frequency), (1.5, 0.5));
        assert_eq!((penalties.presence, penalties.last_n), (-0.5, u32::MAX));
        assert_eq!(sampling.seed, u64::MAX);
        assert_eq!(request.stop, ["x"]);
        assert!(request.ignore_eos);
        assert_eq!(request.logprobs, Some(4));
        assert_eq!(request.bias, [(2, 1.0), (5, -1.5)]);
        assert_eq!(request.grammar, Some(Grammar::Regex("a+".into())));
        assert_eq!(request.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(request.cache_salt, 9);
    }

    #[test]
    fn inputs_and_forms() {
        let request =
            generate(r#"{"tokens": [1, 2], "stop": ["a", "b"], "grammar": {"json": {}}}"#)
                .expect("it is valid");
        assert!(matches!(&request.input, Input::Tokens(ids) if ids == &[1, 2]));
        assert_eq!(request.stop, ["a", "b"]);
        assert_eq!(request.grammar, Some(Grammar::Json));
        let chat = input(
            r#"{"messages": [{"role": "user", "content": "Hi"}], "tools": [{"a": 1}], "template_variables": {"t": true}}"#,
        );
        let Ok(Input::Chat(chat)) = chat else {
            panic!("a chat was given");
        };
        assert_eq!((chat.messages.len(), chat.tools.len()), (1, 1));
        assert_eq!(chat.variables["t"], true);
        assert!(chat.add_generation_prompt);
    }

    #[test]
    fn faults_are_named() {
        for (json, what) in [
            ("", "request: EOF"),
            ("7", "request: invalid type"),
            (r#"{"prompt": "a", "temprature": 1}"#, "temprature"),
            (r#"{"prompt": 1}"#, "expected a string"),
            (r#"{}"#, "exactly one of"),
            (r#"{"prompt": "a", "tokens": [1]}"#, "exactly one of"),
            (r#"{"prompt": "a", "tools": []}"#, "belong to messages"),
            (r#"{"prompt": "a", "timeout": -1}"#, "timeout is -1"),
            (
                r#"{"prompt": "a", "repeat_last_n": -2}"#,
                "repeat_last_n is -2",
            ),
            (r#"{"prompt": "a", "grammar": {"yaml": ""}}"#, "yaml"),
        ] {
            let text = fault(generate(json));
            assert!(text.contains(what), "{json}: {text}");
        }
        assert!(fault(input(r#"{"prompt": "a", "n": 1}"#)).contains("unknown field `n`"));
    }

    #[test]
    fn options_have_defaults() {
        let none = options(None).expect("no options are valid");
        let empty = options(Some("{}")).expect("no options are valid");
        assert_eq!((none.queue, none.prefix_cache), (1024, true));
        assert_eq!((empty.queue, empty.threads), (1024, None));
        let some = options(Some(
            r#"{"device": "reference", "threads": 3, "queue": 2, "prefix_cache": false, "spec": "ngram:4",
                "kv_memory": 5, "token_budget": 6, "verify": true}"#,
        ))
        .expect("they are valid");
        assert_eq!(some.device, DeviceKind::Reference);
        assert_eq!((some.threads, some.queue), (Some(3), 2));
        assert_eq!(some.spec.map(|spec| spec.max_draft), Some(4));
        assert_eq!((some.kv_memory, some.token_budget), (Some(5), Some(6)));
        assert!(some.verify && !some.prefix_cache);
        assert!(fault(options(Some(r#"{"device": "gpu"}"#))).contains("gpu"));
        assert!(fault(options(Some(r#"{"spec": "magic"}"#))).contains("spec: 'magic'"));
    }
}

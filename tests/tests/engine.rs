//! The engine on SmolLM2: the same seed gives the same text, bit for bit, whatever else is served and however.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::fastrun::device::cpu::{CpuDevice, CpuOptions};
use ::fastrun::device::{LogProbs, Penalties, SampleParams};
use ::fastrun::grammar::{Grammar, GrammarCompiler};
use ::fastrun::load::Loaded;
use ::fastrun::spec::NgramSpec;
use ::fastrun::tokenizer::{EncodeOptions, Tokenizer};
use ::fastrun::{Config, Engine, Event, FinishReason, Progress, Request, RequestId, Stats};
use e2e::bundle;

/// A choice's tokens and log-probabilities. Equal ones mean equal logits.
type Answer = Vec<(u32, Option<LogProbs>)>;

struct Model {
    loaded: Arc<Loaded>,
}

impl Model {
    fn open() -> Model {
        Model {
            loaded: Arc::new(Loaded::open(bundle()).unwrap()),
        }
    }

    fn config(&self) -> Config {
        let plan = self.loaded.plan();
        Config::new(plan.limits, self.loaded.manifest().model.vocab)
    }

    fn tokenizer(&self) -> Tokenizer<'_> {
        Tokenizer::open(self.loaded.bundle().tokenizer()).unwrap()
    }

    /// `kv_blocks`: as many as that in the pool.
    fn engine(&self, config: Config, kv_blocks: Option<u64>) -> Engine<CpuDevice> {
        let groups = &self.loaded.plan().kv;
        let block: u64 = groups.iter().map(|g| g.block_bytes()).sum();
        let options = CpuOptions {
            threads: Some(2),
            kv_bytes: kv_blocks.map(|n| n * block),
            ..CpuOptions::default()
        };
        Engine::new(
            CpuDevice::open(self.loaded.clone(), &options).unwrap(),
            config,
        )
    }

    fn request(&self, text: &str, seed: u64, temperature: f32) -> Request {
        let options = EncodeOptions {
            parse_special: true,
            add_special: true,
        };
        Request {
            prompt: self.tokenizer().encode(text, options),
            max_tokens: Some(24),
            sampling: SampleParams {
                temperature,
                top_p: 0.95,
                seed,
                ..SampleParams::default()
            },
            logprobs: Some(2),
            ..Request::default()
        }
    }

    /// Eight requests of several lengths, with and without randomness, penalties and a bias.
    fn requests(&self) -> Vec<Request> {
        let story =
            "Once upon a time there was a small village at the edge of a large forest. ".repeat(4);
        let mut requests = vec![
            self.request("The capital of France is", 1, 0.0),
            self.request(&story, 2, 0.0),
            self.request(&format!("{story}In the forest lived"), 3, 0.8),
            self.request(&format!("{story}In the village lived"), 4, 1.2),
            self.request("one two three one two three one two", 5, 0.0),
            self.request(
                "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n",
                6,
                0.5,
            ),
            self.request("Write a list of colours: red, green,", 7, 1.0),
            self.request("a b c d e f g h a b c d e f g h a b", 8, 0.7),
        ];
        requests[6].sampling.penalties = Penalties {
            repeat: 1.2,
            ..Penalties::default()
        };
        requests[7].bias = [(28, -3.0), (30, 2.0)].into();
        requests
    }
}

/// Serves requests that come after so many steps each.
fn serve(
    engine: &mut Engine<CpuDevice>,
    requests: &[(Request, u32)],
) -> BTreeMap<(RequestId, u32), Answer> {
    let mut answers = BTreeMap::<_, Answer>::new();
    let mut arrivals = requests.iter();
    let mut next = arrivals.next();
    let mut wait = next.map_or(0, |n| n.1);
    loop {
        while let Some((request, _)) = next.filter(|_| wait == 0) {
            engine.add(request.clone()).unwrap();
            next = arrivals.next();
            wait = next.map_or(0, |n| n.1);
        }
        wait = wait.saturating_sub(1);
        let progress = engine.step();
        for event in engine.take_events() {
            match event {
                Event::Token {
                    id,
                    choice,
                    token,
                    logprobs,
                } => answers
                    .entry((id, choice))
                    .or_default()
                    .push((token, logprobs)),
                Event::Finished { reason, .. } => {
                    assert!(!matches!(reason, FinishReason::Error(_)), "{reason}");
                }
                Event::Scored { .. } | Event::Hidden { .. } => panic!("nobody asked"),
            }
        }
        engine.verify().unwrap();
        if progress == Progress::Idle && next.is_none() {
            return answers;
        }
    }
}

/// All answers in the order of requests and choices, and what the engine counted.
fn together(engine: &mut Engine<CpuDevice>, requests: &[(Request, u32)]) -> (Vec<Answer>, Stats) {
    let answers = serve(engine, requests).into_values().collect();
    (answers, engine.stats())
}

/// Each request by itself, on an engine that reuses nothing.
fn alone(model: &Model, requests: &[Request]) -> Vec<Answer> {
    let config = Config {
        prefix_cache: false,
        ..model.config()
    };
    let mut engine = model.engine(config, None);
    let one = |r: &Request| together(&mut engine, &[(r.clone(), 0)]).0.remove(0);
    requests.iter().map(one).collect()
}

fn same(found: &[Answer], expected: &[Answer], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(!expected.is_empty());
        assert_eq!(found, expected, "{what}: request {i}");
    }
}

#[test]
fn the_same_seed_gives_the_same_text_however_it_is_served() {
    let model = Model::open();
    let requests = model.requests();
    let expected = alone(&model, &requests);
    let at_once: Vec<(Request, u32)> = requests.iter().map(|r| (r.clone(), 0)).collect();

    let (found, _) = together(&mut model.engine(model.config(), None), &at_once);
    same(&found, &expected, "in a batch");

    // Prompts in chunks of three tokens beside the first answer.
    let chunked = Config {
        token_budget: Some(3),
        prefix_cache: false,
        ..model.config()
    };
    let staggered: Vec<(Request, u32)> = requests.iter().map(|r| (r.clone(), 2)).collect();
    let (found, stats) = together(&mut model.engine(chunked, None), &staggered);
    same(&found, &expected, "in chunks");
    assert_eq!(stats.prefix_hit_tokens, 0);

    // All prompts, and then answers too, are in the cache.
    let mut engine = model.engine(model.config(), None);
    together(&mut engine, &at_once);
    let before = engine.stats().prefix_hit_tokens;
    let (found, stats) = together(&mut engine, &at_once);
    same(&found, &expected, "from cached prefixes");
    assert!(stats.prefix_hit_tokens - before >= 3 * 64, "{stats:?}");

    let spec = Config {
        spec: Some(NgramSpec::default()),
        ..model.config()
    };
    let (found, stats) = together(&mut model.engine(spec, None), &at_once);
    same(&found, &expected, "guessed");
    assert!(
        stats.accepted_tokens > 0 && stats.accepted_tokens < stats.drafted_tokens,
        "{stats:?}"
    );

    // A pool that holds little more than the longest of them.
    let (found, stats) = together(&mut model.engine(spec, Some(9)), &staggered);
    same(&found, &expected, "preempted");
    assert!(stats.preemptions > 0, "{stats:?}");
}

#[test]
fn choices_are_requests_with_seeds_of_their_own() {
    let model = Model::open();
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for mut request in model.requests().into_iter().skip(2).step_by(3) {
        let seeded = |i| {
            let mut one = request.clone();
            one.sampling.seed += i;
            one
        };
        expected.extend(alone(&model, &[seeded(0), seeded(1), seeded(2)]));
        request.choices = 3;
        requests.push((request, 1));
    }
    for spec in [None, Some(NgramSpec::default())] {
        let config = Config {
            spec,
            ..model.config()
        };
        let (found, _) = together(&mut model.engine(config, None), &requests);
        same(&found, &expected, "choices");
    }
}

#[test]
fn answers_keep_to_a_schema() {
    let model = Model::open();
    let vocab = model.config().vocab;
    let compiler = GrammarCompiler::new(&model.tokenizer(), vocab).unwrap();
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 1, "maximum": 120},
            "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "age", "colours"],
        "additionalProperties": false,
    });
    let grammar = compiler.compile(&Grammar::JsonSchema(schema)).unwrap();
    let mut request = model.request("A person as JSON: ", 3, 0.9);
    request.grammar = Some(grammar);
    request.max_tokens = Some(200);
    request.choices = 3;
    let mut answers = Vec::new();
    for spec in [None, Some(NgramSpec::default())] {
        let config = Config {
            spec,
            ..model.config()
        };
        let (found, _) = together(&mut model.engine(config, None), &[(request.clone(), 0)]);
        for answer in &found {
            let ids: Vec<u32> = answer.iter().map(|(id, _)| *id).collect();
            let text = model.tokenizer().decode(&ids, false).unwrap();
            let value: serde_json::Value = serde_json::from_str(&text).expect(&text);
            let age = value["age"].as_u64().expect(&text);
            assert!((1..=120).contains(&age), "{text}");
            assert!(
                value["name"].as_str().expect(&text).chars().count() <= 12,
                "{text}"
            );
        }
        answers.push(found);
    }
    same(&answers[1], &answers[0], "guessed");
}

//! The command line, as clap parses it. What can be wrong without looking at a file is a usage error (exit code 2).

use std::path::PathBuf;
#[cfg(feature = "server")]
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
#[cfg(feature = "server")]
use fastrun::spec::NgramSpec;
use kernels::cpu::Level;

const EXAMPLES: &str = "\
Examples:
  fastrun model.fib                          chat
  fastrun model.fib -p 'Why is the sky blue?'  one answer
  fastrun model.fib --raw -p 'def fib(n):'   continue a text
  git diff | fastrun model.fib -s 'Write a commit message for this.'
  fastrun serve model.fib                    OpenAI's interface at http://127.0.0.1:8080/v1, a chat at /
  fastrun bench model.fib --json             tokens a second

In a chat, Ctrl-C stops an answer, Ctrl-D leaves, and /help tells the rest.
For completion of all this by the shell, see fastrun completions --help.
NO_COLOR=1 turns colours off.
Exit codes: 0 ok, 1 failure, 2 usage.";

const COMPLETIONS: &str = "\
To have them in every new shell:
  fastrun completions bash > ~/.local/share/bash-completion/completions/fastrun
  fastrun completions zsh > ~/.zfunc/_fastrun    with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
  fastrun completions fish > ~/.config/fish/completions/fastrun.fish";

const DOCTOR: &str = "\
Without a bundle it looks at all that there is. Exit code 1: there is a problem.";

#[cfg(feature = "server")]
const SERVE: &str = "\
Try it:
  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'

Every option can be set by an environment variable too; the command line goes first.
SIGTERM and Ctrl-C let running requests end; a second one ends them.";

/// The command of the process that computes for `serve`.
#[cfg(feature = "server")]
pub const WORKER: &str = "serve-worker";

/// Runs a FastInference bundle.
#[derive(Debug, Parser)]
#[command(
    name = "fastrun",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP, as OpenAI's interface has it, with a page to chat at /
    #[cfg(feature = "server")]
    #[command(after_help = SERVE)]
    Serve(ServeArgs),
    /// What `serve` starts to compute for it
    #[cfg(feature = "server")]
    #[command(name = WORKER, hide = true)]
    Worker,
    /// Measure tokens a second: reading a prompt, and decoding at several batch sizes
    Bench(BenchArgs),
    /// Perplexity over a text, by llama.cpp's protocol: windows of --ctx tokens, the second half of each scored
    Perplexity(PerplexityArgs),
    /// Token ids of a text, space separated; special tokens parsed, BOS as the model says
    Tokenize(TokenizeArgs),
    /// Logits after the last of some tokens
    Logits(LogitsArgs),
    /// What a bundle is made of: manifest, sections, plan, launches
    Inspect(InspectArgs),
    /// Check every hash of a bundle, its weights included
    Verify(VerifyArgs),
    /// Tell whether this machine is fit for a bundle: kernel, drivers, firmware, memory, and what to do where it isn't
    #[command(after_help = DOCTOR)]
    Doctor(DoctorArgs),
    /// Print a script that makes a shell complete fastrun's command line
    #[command(after_help = COMPLETIONS)]
    Completions(CompletionsArgs),
}

/// Answer a prompt, or chat
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The bundle, as `fastc compile` wrote it
    #[arg(value_name = "B.fib", required = true)]
    pub bundle: Option<PathBuf>,
    /// Answer this text and end; without it, chat on a terminal, or answer what standard input holds
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Most tokens of an answer [default: until the model ends it or the context is full]
    #[arg(
        short,
        long = "max-tokens",
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub n: Option<u32>,
    /// The system prompt: how the model is to behave
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "raw"
    )]
    pub system: Option<String>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// Continue the text as it is, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Tell seed, token counts, time to the first token and tokens a second on standard error
    #[arg(long, visible_alias = "verbose")]
    pub stats: bool,
    /// Don't keep the chat's lines for the next one
    #[arg(long)]
    pub no_history: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// How tokens are drawn, in llama.cpp's order and with its defaults: penalties, top-k, top-p, min-p, temperature.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling, in this order")]
pub struct SamplingArgs {
    /// Divide the logits of tokens that occurred lately by X (multiply negative ones); 1: off
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = factor, allow_negative_numbers = true)]
    pub repeat_penalty: f32,
    /// Subtract X from a token's logit for each time that it occurred lately; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = penalty, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Subtract X from the logits of tokens that occurred lately; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = penalty, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// What is lately: the last N tokens, the prompt's too; -1: all
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(i32).range(-1..), allow_negative_numbers = true)]
    pub repeat_last_n: i32,
    /// Draw among the K likeliest tokens; 0: among all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: u32,
    /// Draw among the likeliest tokens that together reach probability P; 1: among all
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Draw among the tokens nearest to the expected surprise that together reach probability P; 1: among all
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability, allow_negative_numbers = true)]
    pub typical_p: f32,
    /// Draw among tokens at least P times as probable as the likeliest; 0: among all
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = share, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Flatten (above 1) or sharpen (below 1) the distribution; 0: always the likeliest token
    #[arg(long, value_name = "X", default_value_t = 0.8, value_parser = temperature, allow_negative_numbers = true)]
    pub temp: f32,
    /// Same seed, same text [default: another one each time; --stats tells it]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct DeviceArgs {
    /// Threads to compute with [default: one for each core]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// What to compute with; reference is slow, and exact
    #[arg(long, value_name = "DEVICE", value_enum, default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Instruction set of a processor's kernels: scalar, avx2, avxvnni, avx512vnni or amx; the same results, at another speed [default: the
    /// best there is]
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    pub cpu_level: Option<Level>,
    /// Bytes of the KV cache, with K, M or G: 512M [default: what fits]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub kv_memory: Option<u64>,
    /// How much of the bundle to check before running it; full: the weights too
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Verify::Quick)]
    pub verify: Verify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// What the bundle is for
    Auto,
    Cpu,
    /// A GPU, through CUDA or HIP
    #[value(aliases = ["cuda", "hip"])]
    Gpu,
    /// A simulator of gfx1151
    #[cfg_attr(not(feature = "sim"), value(hide = true))]
    Sim,
    Reference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    Quick,
    Full,
}

#[cfg(feature = "server")]
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The bundle
    #[arg(value_name = "B.fib", env = "FASTRUN_BUNDLE")]
    pub bundle: PathBuf,
    /// Name or address to listen at; 0.0.0.0: every one of this machine
    #[arg(
        long,
        value_name = "HOST",
        default_value = "127.0.0.1",
        env = "FASTRUN_HOST"
    )]
    pub host: String,
    /// Port to listen at; 0: any free one, which standard output tells
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 8080,
        env = "FASTRUN_PORT"
    )]
    pub port: u16,
    /// What clients call the model [default: the bundle's file name without its ending]
    #[arg(long, value_name = "NAME", env = "FASTRUN_MODEL")]
    pub model: Option<String>,
    /// Key that clients must have; several, separated by commas, are all good
    #[arg(
        long = "api-key",
        value_name = "KEY",
        value_delimiter = ',',
        env = "FASTRUN_API_KEY",
        hide_env_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub api_keys: Vec<String>,
    /// Origins whose web pages may call the server (https://example.org), separated by commas; *: all
    #[arg(
        long,
        value_name = "ORIGIN",
        value_delimiter = ',',
        env = "FASTRUN_CORS"
    )]
    pub cors: Vec<String>,
    /// No line for each request on standard error
    #[arg(long, env = "FASTRUN_QUIET")]
    pub quiet: bool,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// The process that computes for a server.
#[cfg(feature = "server")]
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Supervision")]
pub struct WorkerArgs {
    /// Compute in the server's own process: a crash ends both
    #[arg(long, env = "FASTRUN_NO_SUPERVISE")]
    pub no_supervise: bool,
    /// Seconds without the end of a step after which a worker that has requests counts as hung; 0: never
    #[arg(long, value_name = "SECONDS", default_value = "300", env = "FASTRUN_HANG_TIMEOUT", value_parser = seconds)]
    pub hang_timeout: Duration,
}

/// What a server takes.
#[cfg(feature = "server")]
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Most requests at a time; further ones get status 429
    #[arg(long, value_name = "N", default_value_t = 256, env = "FASTRUN_MAX_CONCURRENT", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_concurrent: u32,
    /// Requests that may wait for the engine; further ones get status 503
    #[arg(long, value_name = "N", default_value_t = 1024, env = "FASTRUN_QUEUE", value_parser = at_least_one)]
    pub queue: usize,
    /// Most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, env = "FASTRUN_MAX_BODY", value_parser = at_least_one)]
    pub max_body: usize,
    /// Most tokens of a prompt [default: as many as the context has]
    #[arg(long, value_name = "N", env = "FASTRUN_MAX_PROMPT", value_parser = at_least_one)]
    pub max_prompt: Option<usize>,
    /// Most seconds that an answer may take [default: no limit]
    #[arg(long, value_name = "SECONDS", env = "FASTRUN_TIMEOUT", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Seconds that running requests have to end after a signal
    #[arg(long, value_name = "SECONDS", default_value = "30", env = "FASTRUN_DRAIN_TIMEOUT", value_parser = seconds)]
    pub drain_timeout: Duration,
}

/// What computes for a server.
#[cfg(feature = "server")]
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct EngineArgs {
    /// Threads to compute with [default: one for each core]
    #[arg(long, value_name = "N", env = "FASTRUN_THREADS", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Bytes of the KV cache, with K, M or G: 512M [default: what fits]
    #[arg(long, value_name = "BYTES", env = "FASTRUN_KV_MEMORY", value_parser = bytes)]
    pub kv_memory: Option<u64>,
    /// Guess tokens ahead from the text so far: ngram, or ngram:N for at most N at a time; answers stay the same
    #[arg(long, value_name = "HOW", env = "FASTRUN_SPEC")]
    pub spec: Option<NgramSpec>,
    /// Don't keep what was computed for requests that start alike
    #[arg(long, env = "FASTRUN_NO_PREFIX_CACHE")]
    pub no_prefix_cache: bool,
    /// Most prompt tokens of a step in which others decode: fewer keep running answers flowing, more read prompts faster
    #[arg(long, value_name = "N", env = "FASTRUN_TOKEN_BUDGET", value_parser = clap::value_parser!(u32).range(1..))]
    pub token_budget: Option<u32>,
    /// What to compute with; reference is slow, and exact
    #[arg(long, value_name = "DEVICE", value_enum, default_value_t = DeviceKind::Auto, env = "FASTRUN_DEVICE")]
    pub device: DeviceKind,
    /// How much of the bundle to check before running it; full: the weights too
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Verify::Quick, env = "FASTRUN_VERIFY")]
    pub verify: Verify,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The bundle
    #[cfg_attr(
        feature = "server",
        arg(value_name = "B.fib", required_unless_present = "serve")
    )]
    #[cfg_attr(not(feature = "server"), arg(value_name = "B.fib", required = true))]
    pub bundle: Option<PathBuf>,
    #[cfg(feature = "server")]
    #[command(flatten)]
    pub load: LoadArgs,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt: u32,
    /// Tokens to decode
    #[arg(long = "gen", value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub generate: u32,
    /// Tokens that each sequence has before it decodes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub depth: u32,
    /// Sequences to decode at a time [default: 1,8,32 as far as the bundle's --max-batch goes]
    #[arg(long, value_name = "N,N…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Option<Vec<u32>>,
    /// Repetitions of each figure, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Also draw a chart over the batch sizes, against what reading memory allows
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Also tell where the time of a prompt and of a decoding step goes, launch by launch
    #[arg(long)]
    pub profile: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Many clients of a server, instead of a bundle: --prompt and --gen are the tokens of each request.
#[cfg(feature = "server")]
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Load on a server")]
pub struct LoadArgs {
    /// Measure the server at this address, http://HOST:PORT, instead of a bundle
    #[arg(long, value_name = "URL", conflicts_with_all = ["bundle", "batch", "profile", "svg"])]
    pub serve: Option<String>,
    /// Requests a second, on average, at random times (a Poisson process) [default: each client asks again at once]
    #[arg(long, value_name = "R", requires = "serve", value_parser = rate)]
    pub rate: Option<f64>,
    /// Most requests at a time
    #[arg(long, value_name = "N", requires = "serve", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub clients: u32,
    /// Requests in all
    #[arg(long, value_name = "N", requires = "serve", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: u32,
    /// Tokens with which all prompts begin alike
    #[arg(long, value_name = "TOKENS", requires = "serve", default_value_t = 0)]
    pub shared_prefix: u32,
    /// The server's API key
    #[arg(
        long,
        value_name = "KEY",
        env = "FASTRUN_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<String>,
    /// Same seed, same prompts and times
    #[arg(long, value_name = "SEED", requires = "serve", default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// The bundle
    #[arg(value_name = "B.fib")]
    pub bundle: PathBuf,
    /// The text
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..))]
    pub ctx: u32,
    /// Log-probabilities of the oracle over the text's first windows: compare with them, on those windows
    #[arg(long, value_name = "W.bin")]
    pub reference: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// The bundle
    #[arg(value_name = "B.fib")]
    pub bundle: PathBuf,
    /// The text [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// The bundle
    #[arg(value_name = "B.fib")]
    pub bundle: PathBuf,
    /// Token ids; nothing is added to them
    #[arg(long, value_name = "ID,ID…", value_delimiter = ',', required = true)]
    pub tokens: Vec<u32>,
    /// Only the K largest, best first [default: all, by id]
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    pub top: Option<usize>,
    /// One JSON array of [id, logit] pairs on standard output
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The bundle
    #[arg(value_name = "B.fib")]
    pub bundle: PathBuf,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The bundle that is to run here
    #[arg(value_name = "B.fib")]
    pub bundle: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The bundle
    #[arg(value_name = "B.fib")]
    pub bundle: PathBuf,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, |x| x >= 0.0, "a temperature is a number from 0 up")
}

fn probability(text: &str) -> Result<f32, String> {
    number(
        text,
        |x| x > 0.0 && x <= 1.0,
        "a probability is above 0 and at most 1",
    )
}

fn share(text: &str) -> Result<f32, String> {
    number(
        text,
        |x| (0.0..=1.0).contains(&x),
        "this is a number from 0 to 1",
    )
}

fn factor(text: &str) -> Result<f32, String> {
    number(
        text,
        |x| (1e-3..=1e3).contains(&x),
        "this is a number from 0.001 to 1000, and 1 changes nothing",
    )
}

fn penalty(text: &str) -> Result<f32, String> {
    number(
        text,
        |x| (-1e3..=1e3).contains(&x),
        "this is a number from -1000 to 1000, and 0 changes nothing",
    )
}

fn number(text: &str, valid: impl Fn(f32) -> bool, what: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && valid(x) => Ok(x),
        _ => Err(what.to_string()),
    }
}

#[cfg(feature = "server")]
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(x) if (0.0..=1e9).contains(&x) => Ok(Duration::from_secs_f64(x)),
        _ => Err("this is a number of seconds from 0 up".to_string()),
    }
}

#[cfg(feature = "server")]
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 1e6 => Ok(x),
        _ => Err("this is a number of requests a second above 0".to_string()),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift));
    bytes
        .filter(|&n| n > 0)
        .ok_or_else(|| "this is a number of bytes, maybe with K, M or G behind it".to_string())
}

fn level(text: &str) -> Result<Level, String> {
    let known = Level::ALL.into_iter().find(|level| level.name() == text);
    known.ok_or_else(|| {
        let names = Level::ALL.map(Level::name);
        format!("expected one of {}", names.join(", "))
    })
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("this is a whole number from 1 up".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_level_is_one_of_those_that_there_are() {
        let parse = |name| Cli::try_parse_from(["fastrun", "m.fib", "--cpu-level", name]);
        for level in Level::ALL {
            let cli = parse(level.name()).expect("valid");
            assert_eq!(cli.run.device.cpu_level, Some(level));
        }
        let error = parse("sse2").expect_err("none of them").to_string();
        assert!(
            error.contains("scalar, avx2, avxvnni, avx512vnni, amx"),
            "{error}"
        );
    }

    #[test]
    fn a_bundle_alone_runs_it() {
        let cli = Cli::try_parse_from(["fastrun", "m.fib", "-p", "-1 + 1 =", "-n", "3", "--raw"])
            .expect("valid");
        assert!(cli.command.is_none());
        assert_eq!(cli.run.bundle, Some(PathBuf::from("m.fib")));
        assert_eq!(cli.run.prompt.as_deref(), Some("-1 + 1 ="));
        assert_eq!((cli.run.n, cli.run.raw), (Some(3), true));
    }

    #[test]
    fn stop_strings_add_up_and_may_look_like_options() {
        let cli = Cli::try_parse_from(["fastrun", "m.fib", "--stop", "---", "--stop", "\n"]);
        assert_eq!(cli.expect("valid").run.stop, ["---", "\n"]);
    }

    #[test]
    fn stats_is_also_called_verbose() {
        for name in ["--stats", "--verbose"] {
            let cli = Cli::try_parse_from(["fastrun", "m.fib", name]);
            assert!(cli.expect("valid").run.stats);
        }
    }

    #[test]
    fn lists_are_comma_separated() {
        let cli = Cli::try_parse_from(["fastrun", "bench", "m.fib", "--batch", "1,4"]);
        match cli.expect("valid").command {
            Some(Command::Bench(args)) => assert_eq!(args.batch, Some(vec![1, 4])),
            other => panic!("{other:?}"),
        }
    }
}

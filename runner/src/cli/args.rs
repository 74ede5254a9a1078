//! The command line, as clap parses it. What can be wrong without looking at a file is a usage error (exit code 2).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  fastrun model.fib                          chat
  fastrun model.fib -p 'Why is the sky blue?'  one answer
  fastrun model.fib --raw -p 'def fib(n):'   continue a text
  git diff | fastrun model.fib -s 'Write a commit message for this.'
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
    /// How much of the bundle to check before running it; full: the weights too
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Verify::Quick)]
    pub verify: Verify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// What the bundle is for
    Auto,
    Cpu,
    /// An NVIDIA GPU
    Cuda,
    Reference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    Quick,
    Full,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The bundle
    #[arg(value_name = "B.fib")]
    pub bundle: PathBuf,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt: u32,
    /// Tokens to decode
    #[arg(long = "gen", value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub generate: u32,
    /// Sequences to decode at a time [default: 1,8,32 as far as the bundle's --max-batch goes]
    #[arg(long, value_name = "N,N…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Option<Vec<u32>>,
    /// Repetitions of each figure, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Also tell where the time of a prompt and of a decoding step goes, launch by launch
    #[arg(long)]
    pub profile: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
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

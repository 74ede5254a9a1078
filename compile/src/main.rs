//! The command line of `fastc`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bundle_format::plan::{Encoding, KvDType};
use bundle_format::stability::Stability;
use bundle_format::target::Target;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use fastc::driver::{self, Options};
use fastc::error::Error;
use fastc::explain::{self, Scope};
use fastc::inspect;
use fastc::output::Output;
use fastc::passes::{Activations, Settings};
use fastc::progress::Progress;
use fastc::source::Source;
use fastc::synth;
use indicatif::{ProgressBar, ProgressStyle};
use kernels::cpu::has_feature;

/// Compiles GGUF models into FastInference bundles.
#[derive(Parser)]
#[command(name = "fastc", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile a model into a bundle.
    Compile {
        /// The model, a GGUF file.
        model: PathBuf,
        /// Where the bundle goes [default: the model's name with .fib].
        #[arg(short, long)]
        output: Option<PathBuf>,
        #[command(flatten)]
        shape: Shape,
    },
    /// Show the graph after each pass, the variant of each launch and why, and what a step costs.
    Explain {
        /// The model, a GGUF file.
        model: PathBuf,
        #[command(flatten)]
        shape: Shape,
        /// The layer to show.
        #[arg(long, default_value_t = 0, conflicts_with = "all_layers")]
        layer: u32,
        /// Show every layer.
        #[arg(long)]
        all_layers: bool,
        /// Tokens of the step whose cost is shown.
        #[arg(long, default_value_t = 1)]
        tokens: u32,
        /// Positions in its sequence's cache [default: 512, or the whole context where that is less].
        #[arg(long)]
        depth: Option<u32>,
        /// Write all of it as a web page instead, for every layer, and a step of decode and of prefill.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["layer", "all_layers", "tokens", "depth"])]
        html: Option<PathBuf>,
    },
    /// Show what a model file holds: metadata and tensors.
    Inspect {
        /// The model, a GGUF file.
        model: PathBuf,
        /// Show long texts and arrays whole.
        #[arg(long)]
        all: bool,
    },
    /// Print a completion script: `source <(fastc completions bash)`.
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Make a model with random weights in the shape of a known one, to measure speed with.
    Synth {
        /// The shape.
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(synth::Shape::ALL.iter().map(|s| s.name)))]
        shape: String,
        /// The encoding of its matrices.
        #[arg(long, default_value = "q4_0")]
        quant: String,
        /// Where the model goes.
        #[arg(short, long)]
        output: PathBuf,
        /// Layers, instead of the shape's own number.
        #[arg(long)]
        layers: Option<u32>,
        /// A GGUF file to take the tokenizer from; one with only a vocabulary will do.
        #[arg(long)]
        vocab: Option<PathBuf>,
        /// Of the random weights.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

/// What shapes a bundle.
#[derive(Args)]
struct Shape {
    /// The processor to compile for.
    #[arg(long, value_enum, default_value = "cpu")]
    target: TargetName,
    /// Positions of a sequence [default: what the model was trained for].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    ctx: Option<u32>,
    /// Sequences of a step.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        allow_negative_numbers = true
    )]
    max_batch: u32,
    /// Precision of the activations that meet quantised weights; those that meet F16 and BF16 have 14 bits, or 32.
    #[arg(long, value_enum, default_value = "auto")]
    activations: ActivationsName,
    /// Type of the cached keys and values.
    #[arg(long, value_enum, default_value = "f16")]
    kv: KvName,
    /// A pass to leave out, to measure what it is worth; may be repeated.
    #[arg(long, value_name = "PASS")]
    disable_pass: Vec<String>,
    /// How far kernels keep from what an AMD GPU is known to fail at [default: balanced].
    #[arg(long, value_enum)]
    stability: Option<StabilityName>,
    /// On a GPU only the kernels that every chip could have: to test them on one that has better ones.
    #[arg(long, hide = true)]
    portable_kernels: bool,
    /// No kernels that draw tokens: the host does. To test the others.
    #[arg(long, hide = true)]
    host_draws: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TargetName {
    /// x86-64-v3 (AVX2, FMA): runs on any x86-64 processor since about 2013, whatever compiles it.
    Cpu,
    /// The best level of this machine that there is code for.
    Native,
    /// AVX2, FMA, F16C.
    #[value(name = "x86-64-v3")]
    X86_64V3,
    /// And AVX-512 (F, BW, CD, DQ, VL) and AVX-512 VNNI.
    #[value(name = "x86-64-v4")]
    X86_64V4,
    /// NVIDIA A100
    #[value(name = "sm_80")]
    Sm80,
    /// NVIDIA GeForce 30
    #[value(name = "sm_86")]
    Sm86,
    /// NVIDIA GeForce 40, L4, L40
    #[value(name = "sm_89")]
    Sm89,
    /// NVIDIA H100, H200
    #[value(name = "sm_90", alias = "sm_90a")]
    Sm90,
    /// NVIDIA B200
    #[value(name = "sm_100", alias = "sm_100a")]
    Sm100,
    /// NVIDIA GeForce 50
    #[value(name = "sm_120", alias = "sm_120a")]
    Sm120,
    /// AMD Strix Halo
    Gfx1151,
}

#[derive(Clone, Copy, ValueEnum)]
enum StabilityName {
    /// As safe as can be, whatever the batch: few reads under way, kernels one by one.
    Strict,
    /// Safe where it was seen to matter, from 17 rows a step on, and fast below.
    Balanced,
    /// As fast as can be.
    Fast,
}

#[derive(Clone, Copy, ValueEnum)]
enum ActivationsName {
    /// 11 bits where the rounding of 8 would show: the head, and models of few features but for what attention results in.
    Auto,
    /// 8 bits: faster prefill.
    Q8,
    /// 11 bits: close to f32.
    Q11,
    /// f32 with F16 and BF16, which are then as they are in the model, at two thirds of the speed; 11 bits with quantised weights.
    F32,
}

#[derive(Clone, Copy, ValueEnum)]
enum KvName {
    /// 16 bits.
    F16,
    /// 8 bits and a scale for each 32: half the memory, and less time in long contexts.
    #[value(name = "q8_0")]
    Q8_0,
}

impl Shape {
    fn options(self) -> Result<Options, Error> {
        let target = match self.target {
            TargetName::Cpu | TargetName::X86_64V3 => Target::X86_64V3,
            TargetName::X86_64V4 => Target::X86_64V4,
            TargetName::Sm80 => Target::Sm80,
            TargetName::Sm86 => Target::Sm86,
            TargetName::Sm89 => Target::Sm89,
            TargetName::Sm90 => Target::Sm90a,
            TargetName::Sm100 => Target::Sm100a,
            TargetName::Sm120 => Target::Sm120a,
            TargetName::Gfx1151 => Target::Gfx1151,
            TargetName::Native => native()?,
        };
        if target.is_gpu() && !matches!(self.activations, ActivationsName::Auto) {
            return Err(Error::User(format!(
                "--activations is for processors; {target} multiplies f16: leave it out"
            )));
        }
        if self.stability.is_some() && !target.has_profiles() {
            return Err(Error::User(format!(
                "--stability is for gfx1151; {target} has no profiles: leave it out"
            )));
        }
        let stability = match self.stability {
            Some(StabilityName::Strict) => Stability::Strict,
            Some(StabilityName::Balanced) | None => Stability::Balanced,
            Some(StabilityName::Fast) => Stability::Fast,
        };
        let activations = match self.activations {
            ActivationsName::Auto => Activations::Auto,
            ActivationsName::Q8 => Activations::Q8,
            ActivationsName::Q11 => Activations::Q11,
            ActivationsName::F32 => Activations::F32,
        };
        let passes = Settings {
            disabled: self.disable_pass,
            activations,
            prologues: false,
            early_gather: false,
            mixed_launches: false,
            epilogue_features: None,
        };
        Ok(Options {
            target,
            context: self.ctx,
            max_batch: self.max_batch,
            kv: match self.kv {
                KvName::F16 => KvDType::F16,
                KvName::Q8_0 => KvDType::Q8_0,
            },
            passes,
            portable: self.portable_kernels,
            draws: !self.host_draws,
            stability,
        })
    }
}

/// The best target whose features this machine has.
fn native() -> Result<Target, Error> {
    let runs_here = |target: &&Target| {
        target.arch() == Some(std::env::consts::ARCH)
            && target
                .required_features()
                .iter()
                .all(|name| has_feature(name) == Some(true))
    };
    if let Some(best) = Target::ALL.iter().rfind(runs_here) {
        return Ok(*best);
    }
    let names: Vec<&str> = Target::ALL.iter().map(|t| t.name()).collect();
    let names = names.join(", ");
    Err(Error::Unsupported(format!(
        "this machine has the features of no target; there is code for {names}"
    )))
}

fn main() -> ExitCode {
    // clap prints usage errors itself and exits with 2.
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fastc: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Compile {
            model,
            output,
            shape,
        } => {
            let output = output.unwrap_or_else(|| model.with_extension("fib"));
            let bars = Bars::new()?;
            driver::compile(&model, &output, &shape.options()?, &bars)?;
            bars.finish();
            report(&output)
        }
        Command::Explain {
            model,
            shape,
            layer,
            all_layers,
            tokens,
            depth,
            html,
        } => {
            let source = Source::open(&model)?;
            let in_file = |e: Error| e.context(model.display());
            let gguf = source.parse()?;
            if let Some(output) = html {
                Output::check(&output, source.paths()).map_err(|e| e.context("--html"))?;
                let name = model.file_name().unwrap_or(model.as_os_str());
                let page = explain::page(&gguf, &shape.options()?, &name.to_string_lossy());
                explain::write_page(&page.map_err(in_file)?, &output)?;
                return report(&output);
            }
            let scope = Scope {
                layer: (!all_layers).then_some(layer),
                tokens,
                depth,
            };
            print(&explain::explain(&gguf, &shape.options()?, scope).map_err(in_file)?)
        }
        Command::Inspect { model, all } => {
            let source = Source::open(&model)?;
            let gguf = source.parse()?;
            print(&inspect::inspect(&gguf, all))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "fastc", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Synth {
            shape,
            quant,
            output,
            layers,
            vocab,
            seed,
        } => {
            let bars = Bars::new()?;
            let source = vocab.as_deref().map(Source::open).transpose()?;
            let gguf = source.as_ref().map(Source::parse).transpose()?;
            Output::check(&output, vocab.as_deref())?;
            let options = synth::Options {
                shape: synth::Shape::named(&shape)?,
                encoding: synth::encoding_named(&quant)?,
                layers,
                vocab: gguf.as_ref(),
                seed,
                output: &output,
            };
            let made = synth::synth(&options, &bars)?;
            bars.finish();
            report_model(&output, &made, options.encoding)
        }
    }
}

/// Says what was written.
fn report(output: &Path) -> Result<(), Error> {
    let bytes = std::fs::metadata(output).map(|m| m.len());
    let bytes = bytes.map_err(|e| Error::User(format!("can't read {}: {e}", output.display())))?;
    print(&format!(
        "{}: {:.1} MB\n",
        output.display(),
        bytes as f64 / 1e6
    ))
}

/// Says what was made.
fn report_model(output: &Path, made: &synth::Summary, asked: Encoding) -> Result<(), Error> {
    let synth::Parameters { total, active } = made.parameters;
    let millions = |n: u64| n as f64 / 1e6;
    let mut text = format!(
        "{}: {:.1} MB, {:.1} million parameters",
        output.display(),
        millions(made.bytes),
        millions(total)
    );
    if active < total {
        text += &format!(", {:.1} of them for each token", millions(active));
    }
    if let Some(replaced) = made.replaced {
        text += &format!("\n{replaced:?} where rows aren't whole blocks of {asked:?}");
    }
    print(&(text + "\n"))
}

/// Prints to standard output; a reader that went away is no failure.
fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::User(format!("can't write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Progress bars on a terminal, and Ctrl-C.
struct Bars {
    bar: Mutex<Option<ProgressBar>>,
    cancelled: Arc<AtomicBool>,
}

impl Bars {
    fn new() -> Result<Bars, Error> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = cancelled.clone();
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
            .map_err(|e| Error::Bug(format!("can't handle Ctrl-C: {e}")))?;
        Ok(Bars {
            bar: Mutex::new(None),
            cancelled,
        })
    }

    fn finish(&self) {
        if let Some(bar) = self.lock().take() {
            bar.finish_and_clear();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<ProgressBar>> {
        // A bar is whole whatever a panicking thread did.
        self.bar.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Progress for Bars {
    fn begin(&self, stage: &str, bytes: u64) {
        self.finish();
        if std::io::stderr().is_terminal() {
            let style = "{msg:>10} {bar:40} {bytes} of {total_bytes} ({bytes_per_sec})";
            // The template is constant; if it were wrong, the default style would do.
            let style = ProgressStyle::with_template(style)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(bytes).with_style(style);
            bar.set_message(stage.to_string());
            *self.lock() = Some(bar);
        }
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.lock() {
            bar.inc(bytes);
        }
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

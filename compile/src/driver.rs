//! The pipeline: a GGUF in, a bundle out.

use std::path::{Path, PathBuf};

use bundle_format::model::Manifest;
use bundle_format::plan::{KvDType, Limits, Plan};
use bundle_format::stability::Stability;
use bundle_format::target::Target;

use crate::codegen::{self, Code};
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::Graph;
use crate::ir::text::kv_dtype_name;
use crate::output::Output;
use crate::passes::Activations;
use crate::progress::Progress;
use crate::source::Source;
use crate::tokenizer::VocabSource;
use crate::{arch, emit, lower, passes};

/// What shapes a bundle besides the model.
#[derive(Clone, Debug)]
pub struct Options {
    pub target: Target,
    /// Positions of a sequence; none: what the model was trained for.
    pub context: Option<u32>,
    /// Sequences of a step.
    pub max_batch: u32,
    /// Type of the cached keys and values.
    pub kv: KvDType,
    pub passes: passes::Settings,
    /// Whether a GPU's kernels are those that every chip could have, where it has better ones of its own: to test the
    /// others' on it.
    pub portable: bool,
    /// How far kernels keep from what a GPU is known to fail at, on targets that have profiles for that.
    pub stability: Stability,
    /// Whether a GPU has kernels that draw tokens; without them the host does. What tests other kernels needs none.
    pub draws: bool,
}

impl Options {
    pub fn new(target: Target) -> Options {
        Options {
            target,
            context: None,
            max_batch: 32,
            kv: KvDType::F16,
            passes: passes::Settings {
                disabled: Vec::new(),
                activations: Activations::Auto,
                prologues: false,
                early_gather: false,
                mixed_launches: false,
                epilogue_features: None,
            },
            portable: false,
            stability: Stability::Balanced,
            draws: true,
        }
    }
}

/// Tokens of a step: what one prefill chunk holds. A chunk of 512 reads each weight once for 512 tokens, far beyond where
/// arithmetic, not reading, bounds a step.
const MAX_TOKENS: u32 = 512;

/// Rows of a tile that a GPU's kernels for many rows work on.
const GPU_ROWS: u32 = 128;

/// Rows of logits of a step, at least.
const MIN_ROWS: u32 = 64;

/// Everything of a bundle but its tokenizer and weights.
pub struct Compiled {
    /// The final graph, of which tensors the packer needs the sources.
    pub graph: Graph,
    pub plan: Plan,
    pub code: Code,
}

/// Compiles a model's graph. `seen` is shown each stage of the graph.
pub fn compile_graph(
    gguf: &Gguf<'_>,
    options: &Options,
    seen: impl FnMut(passes::Stage),
    imported: impl FnMut(&Graph),
) -> Result<Compiled, Error> {
    let (graph, mut plan) = plan_graph(gguf, options, seen, imported)?;
    let code = codegen::generate(&mut plan, options)?;
    Ok(Compiled { graph, plan, code })
}

/// A model's graph, and its plan without code.
pub fn plan_graph(
    gguf: &Gguf<'_>,
    options: &Options,
    mut seen: impl FnMut(passes::Stage),
    mut imported: impl FnMut(&Graph),
) -> Result<(Graph, Plan), Error> {
    let limits = limits(gguf, options)?;
    let mut graph = arch::build(gguf, limits.context)?;
    store_kv_as(&mut graph, options.kv)?;
    imported(&graph);
    let mut settings = options.passes.clone();
    if options.target.is_gpu() {
        settings.activations = Activations::F16;
    }
    settings.early_gather = !options.target.is_gpu();
    settings.prologues = codegen::has_prologues(options.target);
    settings.mixed_launches = codegen::has_mixed_launches(options.target);
    settings.epilogue_features = codegen::epilogue_features(options.target);
    let graph = passes::run(graph, &settings, &mut seen)?;
    let plan = lower::lower(&graph, options.target, limits)?;
    Ok((graph, plan))
}

/// Compiles `input` to a bundle at `output`, which appears whole or not at all.
pub fn compile(
    input: &Path,
    output: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> Result<PathBuf, Error> {
    let source = Source::open(input)?;
    Output::check(output, source.paths())?;
    let gguf = source.parse()?;
    let in_file = |e: Error| e.context(input.display());
    let compiled = compile_graph(&gguf, options, |_| {}, |_| {}).map_err(in_file)?;
    let vocab = VocabSource::from_metadata(&gguf.metadata)
        .map_err(Error::from)
        .map_err(in_file)?;
    let table = vocab.build().map_err(Error::from).map_err(in_file)?;
    let rows = vocab_rows(&compiled.plan);
    let model = arch::describe(&gguf, rows).map_err(in_file)?;
    if vocab.tokens.len() as u64 > rows as u64 {
        let tokens = vocab.tokens.len();
        return Err(in_file(Error::User(format!(
            "the vocabulary has {tokens} tokens, the model only {rows} logits"
        ))));
    }
    let manifest = |source_hash: [u8; 32]| Manifest {
        compiler: format!("fastc {}", env!("CARGO_PKG_VERSION")),
        toolchain: compiled.code.toolchain.clone(),
        zstd: bundle_format::codec::zstd_version().to_string(),
        source_hash,
        target: options.target,
        features: options
            .target
            .required_features()
            .iter()
            .map(|f| f.to_string())
            .collect(),
        kernel_abi: kernels::abi::VERSION,
        options: recorded(options, &compiled.plan.limits),
        model: model.clone(),
    };
    emit::write(
        emit::Job {
            gguf: &gguf,
            source: &source,
            compiled: &compiled,
            tokenizer: &table,
            manifest: &manifest,
        },
        output,
        progress,
    )?;
    Ok(output.to_path_buf())
}

/// Chooses the type of the cached keys and values.
fn store_kv_as(graph: &mut Graph, dtype: KvDType) -> Result<(), Error> {
    for group in &mut graph.kv {
        let (dim, block) = (group.head_dim, dtype.block());
        if !dim.is_multiple_of(block) {
            return Err(Error::User(format!(
                "--kv {}: the heads of this model have {dim} dimensions, expected a multiple of {block}; use --kv f16",
                kv_dtype_name(dtype)
            )));
        }
        group.dtype = dtype;
    }
    Ok(())
}

/// The plan's largest step.
fn limits(gguf: &Gguf<'_>, options: &Options) -> Result<Limits, Error> {
    let (trained, key) = arch::trained_context(gguf)?;
    let context = options.context.unwrap_or(trained);
    if context == 0 || context > trained {
        return Err(Error::User(match options.context {
            Some(_) => {
                format!("--ctx {context}: this model was trained for 1 to {trained} positions")
            }
            None => format!("{key} is 0"),
        }));
    }
    if options.max_batch == 0 || options.max_batch > MAX_TOKENS {
        return Err(Error::User(format!(
            "--max-batch {}: expected 1 to {MAX_TOKENS} sequences",
            options.max_batch
        )));
    }
    let max_tokens = match options.target.is_gpu() {
        // Whole tiles of rows.
        true => MAX_TOKENS,
        false => MAX_TOKENS.min(context.max(options.max_batch)),
    };
    let max_rows = match MIN_ROWS.max(options.max_batch) {
        rows if options.target.is_gpu() && rows > MIN_ROWS => rows.next_multiple_of(GPU_ROWS),
        rows => rows,
    };
    let max_rows = max_rows.min(max_tokens);
    Ok(Limits {
        max_tokens,
        max_seqs: options.max_batch,
        max_rows,
        context,
    })
}

/// Logits a row.
fn vocab_rows(plan: &Plan) -> u32 {
    use bundle_format::plan::{Output, Role};
    let logits = plan
        .buffers
        .iter()
        .find(|b| b.place.role == Role::Output(Output::Logits));
    logits.map_or(0, |b| b.cols)
}

/// The options as the manifest records them.
fn recorded(options: &Options, limits: &Limits) -> Vec<String> {
    let mut disabled = options.passes.disabled.clone();
    disabled.sort();
    disabled.dedup();
    let mut list = vec![
        format!("ctx={}", limits.context),
        format!("max-batch={}", options.max_batch),
    ];
    list.extend(disabled.iter().map(|d| format!("disable-pass={d}")));
    let activations = match options.passes.activations {
        _ if options.target.is_gpu() => "f16",
        Activations::Auto => "auto",
        Activations::Q8 => "q8",
        Activations::Q11 => "q11",
        Activations::F32 => "f32",
        Activations::F16 => "f16",
    };
    list.push(format!("activations={activations}"));
    list.push(format!("kv={}", kv_dtype_name(options.kv)));
    if options.portable {
        list.push("kernels=portable".to_string());
    }
    if options.target.has_profiles() {
        list.push(format!("stability={}", options.stability));
    }
    list.sort();
    list
}

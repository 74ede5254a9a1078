//! `fastc synth`: models with random weights in the shape of real ones, for speed and for tests.
//!
//! In the order in which data flows: [`shape`] the sizes, `tokenizer` a vocabulary, [`random`] elements, [`encode`] their
//! bytes, and here the file. The same options give the same bytes, whatever the threads.

pub mod encode;
mod encode_k;
pub mod random;
pub mod shape;
mod tokenizer;

use std::io::Write;
use std::path::Path;

use bundle_format::plan::Encoding;
use rayon::prelude::*;

use crate::error::Error;
use crate::gguf::{Gguf, TensorType, WriteError, Writer};
use crate::progress::Progress;
use random::Stream;
pub use shape::Shape;

/// The most layers that can be asked for: what other tools load.
pub const MAX_LAYERS: u32 = 512;

/// Elements that a thread makes at a time: they stay in its first-level cache. A multiple of every block.
const PIECE: usize = 2048;

/// Elements between writes, over all threads.
const SLAB: usize = 2048 * PIECE;

/// What to make.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    pub shape: &'a Shape,
    /// Of matrices; vectors are always F32.
    pub encoding: Encoding,
    /// Instead of the shape's number of layers.
    pub layers: Option<u32>,
    /// A model (or a file of vocabulary alone) that the tokenizer is taken from; none: a generated one of bytes.
    pub vocab: Option<&'a Gguf<'a>>,
    pub seed: u64,
    /// The file, which appears only when it is complete.
    pub output: &'a Path,
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub parameters: u64,
    pub vocab: u64,
    /// Of the file.
    pub bytes: u64,
}

/// The encoding of a `--quant` name, in any case: `q4_0`.
///
/// # Errors
/// [`Error::User`] lists the names.
pub fn encoding_named(name: &str) -> Result<Encoding, Error> {
    crate::gguf::tensor_type::ALL
        .iter()
        .filter(|ty| ty.name.eq_ignore_ascii_case(name))
        .find_map(|ty| ty.encoding())
        .ok_or_else(|| {
            let names = crate::gguf::tensor_type::encoded_names();
            Error::User(format!(
                "unknown quantisation `{name}`; expected one of {names}"
            ))
        })
}

/// Writes a model.
///
/// # Errors
/// [`Error::User`]: zero or too many layers, a vocabulary file without tokenizer, a full disk, cancelled.
pub fn synth(options: &Options<'_>, progress: &dyn Progress) -> Result<Summary, Error> {
    let shape = options.shape;
    let layers = options.layers.unwrap_or(shape.layers);
    if layers == 0 || layers > MAX_LAYERS {
        return Err(Error::User(format!(
            "expected 1 to {MAX_LAYERS} layers, found {layers}"
        )));
    }

    let mut writer = Writer::new();
    put_hyperparameters(&mut writer, shape, layers, options.encoding)?;
    let vocab = tokenizer::put(&mut writer, options.vocab, shape.vocab)? as u64;
    writer.put("llama.vocab_size", &(vocab as u32))?;
    let tensors = tensors(shape, layers, vocab, options.encoding);
    for tensor in &tensors {
        writer.tensor(&tensor.name, &tensor.dims, tensor.encoding.into())?;
    }

    progress.begin("making weights", writer.data_bytes());
    let bytes = write_file(options.output, |file| {
        let mut remaining = tensors.iter();
        writer.write(file, |spec, out| {
            let tensor = remaining.next().ok_or_else(|| {
                Error::Bug(format!("synth: tensor `{}` isn't planned", spec.name))
            })?;
            tensor.write(options.seed, out, progress)
        })
    })?;
    Ok(Summary {
        parameters: tensors.iter().map(Tensor::elements).sum(),
        vocab,
        bytes,
    })
}

fn put_hyperparameters(
    writer: &mut Writer,
    shape: &Shape,
    layers: u32,
    encoding: Encoding,
) -> Result<(), WriteError> {
    writer.put("general.architecture", "llama")?;
    writer.put("general.type", "model")?;
    writer.put("general.name", &format!("synthetic {}", shape.name))?;
    writer.put("general.file_type", &file_type(encoding))?;
    if TensorType::from(encoding).block > 1 {
        writer.put("general.quantization_version", &2u32)?;
    }
    writer.put("llama.block_count", &layers)?;
    writer.put("llama.context_length", &shape.context)?;
    writer.put("llama.embedding_length", &shape.embedding)?;
    writer.put("llama.feed_forward_length", &shape.feed_forward)?;
    writer.put("llama.attention.head_count", &shape.heads)?;
    writer.put("llama.attention.head_count_kv", &shape.kv_heads)?;
    writer.put("llama.attention.layer_norm_rms_epsilon", &shape.rms_epsilon)?;
    writer.put("llama.rope.dimension_count", &shape.head_dim())?;
    writer.put("llama.rope.freq_base", &shape.rope_base)
}

/// GGUF's number for a file that is mostly of one type.
fn file_type(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::F32 => 0,
        Encoding::F16 => 1,
        Encoding::Q4_0 => 2,
        Encoding::Q4_1 => 3,
        Encoding::Q8_0 => 7,
        Encoding::BF16 => 32,
        Encoding::Q5_0 => 8,
        Encoding::Q5_1 => 9,
        Encoding::Q2_K => 10,
        Encoding::Q3_K => 11,
        Encoding::Q4_K => 14,
        Encoding::Q5_K => 16,
        Encoding::Q6_K => 18,
        Encoding::IQ4_NL => 25,
        Encoding::IQ4_XS => 30,
        Encoding::MXFP4 => 38,
    }
}

/// A tensor and the distribution of its elements.
struct Tensor {
    name: String,
    /// Innermost first.
    dims: Vec<u64>,
    encoding: Encoding,
    mean: f32,
    deviation: f32,
}

/// All tensors of a model. Matrices keep the size of what they multiply: a deviation of 1 over the root of their inputs.
fn tensors(shape: &Shape, layers: u32, vocab: u64, encoding: Encoding) -> Vec<Tensor> {
    let matrix = |name: String, cols: u32, rows: u64| Tensor {
        name,
        dims: vec![cols as u64, rows],
        encoding,
        mean: 0.0,
        deviation: 1.0 / (cols as f32).sqrt(),
    };
    let norm = |name: String| Tensor {
        name,
        dims: vec![shape.embedding as u64],
        encoding: Encoding::F32,
        mean: 1.0,
        deviation: 0.1,
    };
    let (embedding, ffn) = (shape.embedding, shape.feed_forward);

    let table = matrix("token_embd.weight".into(), embedding, vocab);
    let mut tensors = vec![if shape.tied {
        table
    } else {
        // Nothing is summed where it isn't the head too.
        Tensor {
            deviation: 1.0,
            ..table
        }
    }];
    for layer in 0..layers {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let kv = shape.kv_dim() as u64;
        tensors.extend([
            norm(name("attn_norm")),
            matrix(name("attn_q"), embedding, embedding as u64),
            matrix(name("attn_k"), embedding, kv),
            matrix(name("attn_v"), embedding, kv),
            matrix(name("attn_output"), embedding, embedding as u64),
            norm(name("ffn_norm")),
            matrix(name("ffn_gate"), embedding, ffn as u64),
            matrix(name("ffn_up"), embedding, ffn as u64),
            matrix(name("ffn_down"), ffn, embedding as u64),
        ]);
    }
    tensors.push(norm("output_norm.weight".into()));
    if !shape.tied {
        tensors.push(matrix("output.weight".into(), embedding, vocab));
    }
    tensors
}

impl Tensor {
    fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Makes and writes the elements, a slab at a time.
    fn write(&self, seed: u64, out: &mut impl Write, progress: &dyn Progress) -> Result<(), Error> {
        let stream = Stream::new(seed, &self.name, self.mean, self.deviation);
        let elements = self.elements();
        let mut slab = Vec::new();
        for first in (0..elements).step_by(SLAB) {
            if progress.cancelled() {
                return Err(Error::User("cancelled".into()));
            }
            let count = (elements - first).min(SLAB as u64) as usize;
            slab.resize(self.bytes(count), 0);
            slab.par_chunks_mut(self.bytes(PIECE))
                .enumerate()
                .for_each(|(i, bytes)| {
                    let skipped = i * PIECE;
                    let mut x = [0.0; PIECE];
                    let x = &mut x[..(count - skipped).min(PIECE)];
                    stream.fill(first + skipped as u64, x);
                    encode::encode(self.encoding, x, bytes);
                });
            out.write_all(&slab).map_err(WriteError::Io)?;
            progress.advance(slab.len() as u64);
        }
        Ok(())
    }

    /// Bytes of `elements` consecutive elements, which are within a slab.
    fn bytes(&self, elements: usize) -> usize {
        let ty = TensorType::from(self.encoding);
        elements / ty.block as usize * ty.block_bytes as usize
    }
}

/// Writes `path` through a temporary file beside it, which vanishes on an error. Returns the file's length.
fn write_file(
    path: &Path,
    write: impl FnOnce(&mut std::fs::File) -> Result<(), Error>,
) -> Result<u64, Error> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed =
        |doing: &str, e: std::io::Error| Error::User(format!("{doing} {}: {e}", path.display()));
    let mut builder = tempfile::Builder::new();
    builder.suffix(".part");
    #[cfg(unix)]
    {
        // As any new file, less the user's mask: a temporary file's own would keep others out.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder
        .tempfile_in(folder)
        .map_err(|e| failed("creating a temporary file for", e))?;
    write(file.as_file_mut()).map_err(|e| e.context(format_args!("writing {}", path.display())))?;
    let file = file
        .persist(path)
        .map_err(|e| failed("renaming the temporary file to", e.error))?;
    let len = file.metadata().map_err(|e| failed("reading", e))?.len();
    Ok(len)
}

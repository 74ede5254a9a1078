//! `fastc synth`: models with random weights in the shape of real ones, for speed and for tests.
//!
//! In the order in which data flows: [`shape`] the sizes, [`tensors`] what a file of them holds, `tokenizer` a vocabulary,
//! [`random`] elements, [`encode`] their bytes, and here the file. The same options give the same bytes, whatever the
//! threads.

pub mod encode;
mod encode_k;
pub mod random;
pub mod shape;
pub mod tensors;
mod tokenizer;

use std::io::Write;
use std::path::Path;

use bundle_format::plan::Encoding;
use rayon::prelude::*;

use crate::error::Error;
use crate::gguf::{Gguf, TensorType, WriteError, Writer};
use crate::output::Output;
use crate::progress::Progress;
use random::Stream;
pub use shape::Shape;
pub use tensors::Parameters;
use tensors::Tensor;

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
    /// Of matrices; vectors and routers are always F32. Where blocks of 256 don't fit, blocks of 32 of as many bits do.
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
    pub parameters: Parameters,
    pub vocab: u64,
    /// The encoding of matrices whose rows are not whole blocks of the one that was asked for, if there are any.
    pub replaced: Option<Encoding>,
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
    Output::check(options.output, [])?;
    let shape = options.shape;
    let layers = options.layers.unwrap_or(shape.layers);
    if layers == 0 || layers > MAX_LAYERS {
        return Err(Error::User(format!(
            "--layers {layers}: expected 1 to {MAX_LAYERS}"
        )));
    }

    let mut writer = Writer::new();
    let vocab = tokenizer::size(options.vocab, shape.vocab)?;
    tensors::put_hyperparameters(&mut writer, shape, layers, vocab as u32, options.encoding)?;
    tokenizer::put(&mut writer, options.vocab, vocab)?;
    let tensors = tensors::list(shape, layers, vocab as u64, options.encoding);
    for tensor in &tensors {
        writer.tensor(&tensor.name, &tensor.dims, tensor.encoding.into())?;
    }

    progress.begin("making weights", writer.data_bytes());
    let output = Output::create(options.output)?;
    let in_file = |e: Error| e.context(format_args!("writing {}", options.output.display()));
    let mut remaining = tensors.iter();
    writer
        .write(&mut output.file(), |spec, out| {
            let tensor = remaining.next().ok_or_else(|| {
                Error::Bug(format!("synth: tensor `{}` isn't planned", spec.name))
            })?;
            tensor.write(options.seed, out, progress)
        })
        .map_err(in_file)?;
    let bytes = output
        .file()
        .metadata()
        .map_err(|e| output.failed(e))?
        .len();
    output.finish()?;
    Ok(Summary {
        parameters: tensors::parameters(&tensors, shape),
        vocab: vocab as u64,
        replaced: tensors::replaced(&tensors, options.encoding),
        bytes,
    })
}

impl Tensor {
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

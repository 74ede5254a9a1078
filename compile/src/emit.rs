//! Writing the bundle: a temporary file beside the target, packed weights streamed into it, synced and renamed.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use bundle_format::model::Manifest;
use bundle_format::plan::{Encoding, Weight, WeightLayout};
use bundle_format::write::{Contents, Writer};
use rayon::prelude::*;

use crate::driver::Compiled;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{RopeFreqs, Tensor, TensorSource};
use crate::progress::Progress;
use crate::source::Source;

/// Bytes of packed weights in memory at a time.
const CHUNK: usize = 8 << 20;

/// Rows of a packed group.
const GROUP: u32 = 8;

/// Rows of a packed tile.
const TILE: u32 = kernels::pack::fragment::TILE as u32;

/// What goes into a bundle.
pub struct Job<'a> {
    pub gguf: &'a Gguf<'a>,
    pub source: &'a Source,
    pub compiled: &'a Compiled,
    /// The tokenizer section.
    pub tokenizer: &'a [u8],
    /// The manifest, given the hash of the model file.
    pub manifest: &'a dyn Fn([u8; 32]) -> Manifest,
}

/// Writes the bundle to `output`: whole, or not at all.
pub fn write(job: Job<'_>, output: &Path, progress: &dyn Progress) -> Result<(), Error> {
    let folder = match output.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let describe = |e: io::Error| {
        let hint = match e.kind() {
            io::ErrorKind::StorageFull => "; free some space or choose another folder with -o",
            _ => "",
        };
        Error::User(format!("can't write {}: {e}{hint}", output.display()))
    };
    let hash = hash_source(job.source, progress)?;
    let mut file = tempfile::Builder::new()
        .prefix(".fastc-")
        .suffix(".part")
        .tempfile_in(&folder)
        .map_err(describe)?;
    {
        let sink = BufWriter::with_capacity(1 << 20, file.as_file_mut());
        let plan = &job.compiled.plan;
        let manifest = (job.manifest)(hash);
        let contents = Contents {
            manifest: &manifest,
            plan,
            code: &job.compiled.code.bytes,
            tokenizer: job.tokenizer,
        };
        let refused = |e: bundle_format::Error| match e {
            bundle_format::Error::Io(e) => describe(e),
            other => Error::Bug(format!("the bundle's writer refused: {other}")),
        };
        let mut writer = Writer::new(sink, contents).map_err(refused)?;
        progress.begin("packing", plan.weights.iter().map(|w| w.len).sum());
        for (index, weight) in plan.weights.iter().enumerate() {
            let packer = Packer::new(&job, weight)?;
            writer.start_weight(index).map_err(refused)?;
            packer.pack(progress, &mut |bytes| {
                writer.write_all(bytes).map_err(describe)
            })?;
            packer
                .slices
                .iter()
                .for_each(|slice| job.source.forget(slice.data));
        }
        writer.finish().map_err(refused)?;
    }
    set_permissions(file.as_file()).map_err(describe)?;
    file.as_file().sync_all().map_err(describe)?;
    file.persist(output).map_err(|e| describe(e.error))?;
    // The rename is durable once the folder is.
    File::open(&folder)
        .and_then(|f| f.sync_all())
        .map_err(describe)
}

/// A temporary file is for its owner only; a bundle is an ordinary file.
fn set_permissions(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// blake3 of the model's files, one after the other, on all cores.
fn hash_source(source: &Source, progress: &dyn Progress) -> Result<[u8; 32], Error> {
    progress.begin("hashing", source.files().map(|f| f.len() as u64).sum());
    let mut hasher = blake3::Hasher::new();
    for chunk in source.files().flat_map(|file| file.chunks(CHUNK)) {
        stop_if_cancelled(progress)?;
        hasher.update_rayon(chunk);
        source.forget(chunk);
        progress.advance(chunk.len() as u64);
    }
    Ok(*hasher.finalize().as_bytes())
}

fn stop_if_cancelled(progress: &dyn Progress) -> Result<(), Error> {
    match progress.cancelled() {
        true => Err(Error::User("interrupted; nothing was written".to_string())),
        false => Ok(()),
    }
}

/// One slice of a weight: its rows in the model file, and where each packed row comes from.
struct SourceRows<'a> {
    tensor: &'a Tensor,
    data: &'a [u8],
}

/// Packs one weight.
struct Packer<'a> {
    weight: &'a Weight,
    slices: Vec<SourceRows<'a>>,
    /// Bytes of a source row.
    row_bytes: usize,
    /// A weight that is computed, not read.
    computed: Option<Vec<u8>>,
}

impl<'a> Packer<'a> {
    fn new(job: &Job<'a>, weight: &'a Weight) -> Result<Packer<'a>, Error> {
        let bug = |what: String| Error::Bug(format!("weight '{}': {what}", weight.name));
        let mut packer = Packer {
            weight,
            slices: Vec::new(),
            row_bytes: 0,
            computed: None,
        };
        let row_bytes = kernels::quant::row_bytes(weight.encoding, weight.cols as u64);
        packer.row_bytes = row_bytes.ok_or_else(|| bug("not whole blocks".to_string()))? as usize;
        for slice in &weight.slices {
            let tensor = job
                .compiled
                .graph
                .tensors
                .iter()
                .find(|t| t.name == slice.tensor);
            let tensor = tensor.ok_or_else(|| bug(format!("no tensor '{}'", slice.tensor)))?;
            match &tensor.source {
                TensorSource::File {
                    tensor: name,
                    first_row,
                } => {
                    let info = job.gguf.tensor(name);
                    let info =
                        info.ok_or_else(|| bug(format!("no tensor '{name}' in the file")))?;
                    let first = *first_row as usize * packer.row_bytes;
                    let rows = first..first + tensor.rows as usize * packer.row_bytes;
                    let data = job.gguf.data(info).get(rows.clone());
                    let data =
                        data.ok_or_else(|| bug(format!("no bytes {rows:?} in tensor '{name}'")))?;
                    packer.slices.push(SourceRows { tensor, data });
                }
                TensorSource::RopeFreqs(freqs) => {
                    packer.computed = Some(rope_freqs(freqs, job.gguf)?)
                }
            }
        }
        Ok(packer)
    }

    /// Hands the packed bytes on, a chunk at a time, in order.
    fn pack(
        &self,
        progress: &dyn Progress,
        put: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if let Some(bytes) = &self.computed {
            progress.advance(bytes.len() as u64);
            return put(bytes);
        }
        if self.weight.layout == WeightLayout::RowMajor {
            let bytes = self.row(0);
            progress.advance(bytes.len() as u64);
            return put(bytes);
        }
        let layout = self.weight.layout;
        let group_rows = match layout {
            WeightLayout::Fragment16 => TILE,
            _ => GROUP,
        };
        let groups = self.weight.rows.div_ceil(group_rows);
        let group_bytes = self.weight.len as usize / groups as usize;
        let at_once = (CHUNK / group_bytes).max(1) as u32;
        let mut buffer = vec![0; group_bytes * at_once.min(groups) as usize];
        let mut first = 0;
        while first < groups {
            stop_if_cancelled(progress)?;
            let count = at_once.min(groups - first);
            let chunk = &mut buffer[..count as usize * group_bytes];
            chunk
                .par_chunks_mut(group_bytes)
                .enumerate()
                .for_each(|(i, out)| {
                    let from = (first + i as u32) * group_rows;
                    let to = (from + group_rows).min(self.weight.rows);
                    let rows: Vec<&[u8]> = (from..to).map(|row| self.row(row)).collect();
                    let pack = match layout {
                        WeightLayout::Fragment16 => kernels::pack::fragment::pack_tile,
                        _ => kernels::pack::pack_group,
                    };
                    pack(self.weight.encoding, self.weight.cols as usize, &rows, out);
                });
            put(chunk)?;
            progress.advance(chunk.len() as u64);
            first += count;
        }
        Ok(())
    }

    /// The source bytes of a packed row.
    fn row(&self, row: u32) -> &'a [u8] {
        let row = kernels::pack::fragment::paired_row(row, self.weight.pairs);
        let (slice, row) = self.locate(row);
        let row = slice.tensor.transform.source_row(row) as usize;
        &slice.data[row * self.row_bytes..(row + 1) * self.row_bytes]
    }

    /// The slice of a packed row and its row in it.
    fn locate(&self, row: u32) -> (&SourceRows<'a>, u32) {
        let interleave = self.weight.interleave;
        if let Some(turn) = row.checked_div(interleave) {
            let count = self.slices.len() as u32;
            let within = row % interleave;
            return (
                &self.slices[(turn % count) as usize],
                turn / count * interleave + within,
            );
        }
        let mut row = row;
        for slice in &self.slices[..self.slices.len() - 1] {
            if row < slice.tensor.rows {
                return (slice, row);
            }
            row -= slice.tensor.rows;
        }
        (&self.slices[self.slices.len() - 1], row)
    }
}

/// The bytes of [`TensorSource::RopeFreqs`].
fn rope_freqs(freqs: &RopeFreqs, gguf: &Gguf<'_>) -> Result<Vec<u8>, Error> {
    let count = freqs.dim as usize / 2;
    let factors = match &freqs.factors {
        None => vec![1.0; count],
        Some(name) => {
            let bytes = gguf.tensor(name).map(|t| gguf.data(t)).unwrap_or_default();
            let mut factors = vec![0.0; count];
            if bytes.len() != 4 * count {
                return Err(Error::Bug(format!(
                    "'{name}' has {} bytes, expected {count} f32",
                    bytes.len()
                )));
            }
            kernels::quant::dequantise_row(Encoding::F32, bytes, &mut factors);
            factors
        }
    };
    let values = freqs.values(&factors);
    Ok(values.into_iter().flat_map(f32::to_le_bytes).collect())
}

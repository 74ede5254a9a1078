//! The bytes of the weights section: packed from the model's tensors, any stretch of them at any time, so that threads can
//! share the work as they like and no more than their stretches is in memory.

use bundle_format::plan::{Encoding, Weight, WeightLayout};
use kernels::pack::{GROUP, fragment, pairs};

use crate::driver::Compiled;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{RopeFreqs, Tensor, TensorSource};
use crate::source::Source;

/// The weights of a plan, one after the other with zeros between them.
pub struct WeightsSection<'a> {
    source: &'a Source,
    weights: Vec<Packer<'a>>,
    len: u64,
}

impl<'a> WeightsSection<'a> {
    /// # Errors
    /// A bug of ours: the plan's weights don't fit the file's tensors.
    pub fn new(
        gguf: &'a Gguf<'a>,
        source: &'a Source,
        compiled: &'a Compiled,
    ) -> Result<WeightsSection<'a>, Error> {
        let weights = compiled.plan.weights.iter();
        let len = weights.clone().map(|w| w.offset + w.len).max();
        Ok(WeightsSection {
            source,
            weights: weights
                .map(|weight| Packer::new(gguf, compiled, weight))
                .collect::<Result<_, _>>()?,
            len: len.unwrap_or(0),
        })
    }

    /// Bytes of the section.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Makes the bytes from `from` on, as many as `out` has, which end within the section.
    pub fn fill(&self, from: u64, out: &mut [u8]) {
        let to = from + out.len() as u64;
        let first = self.weights.partition_point(|p| p.end() <= from);
        let mut at = from;
        for packer in &self.weights[first..] {
            let start = packer.weight.offset.max(from);
            if start >= to {
                break;
            }
            let end = packer.end().min(to);
            out[(at - from) as usize..(start - from) as usize].fill(0);
            let bytes = &mut out[(start - from) as usize..(end - from) as usize];
            packer.fill((start - packer.weight.offset) as usize, bytes, self.source);
            at = end;
        }
        out[(at - from) as usize..].fill(0);
    }
}

/// One slice of a weight: its rows in the model file.
struct SourceRows<'a> {
    tensor: &'a Tensor,
    /// The bytes of the slice, or of as many rows of it each.
    data: Vec<&'a [u8]>,
    /// Rows of each of `data`.
    rows_each: usize,
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
    fn new(
        gguf: &'a Gguf<'a>,
        compiled: &'a Compiled,
        weight: &'a Weight,
    ) -> Result<Packer<'a>, Error> {
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
            let tensor = compiled
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
                    let info = gguf.tensor(name);
                    let info =
                        info.ok_or_else(|| bug(format!("no tensor '{name}' in the file")))?;
                    let first = *first_row as usize * packer.row_bytes;
                    let rows = first..first + tensor.rows as usize * packer.row_bytes;
                    let data = gguf.data(info).get(rows.clone());
                    let data =
                        data.ok_or_else(|| bug(format!("no bytes {rows:?} in tensor '{name}'")))?;
                    packer.slices.push(SourceRows {
                        tensor,
                        data: vec![data],
                        rows_each: tensor.rows as usize,
                    });
                }
                TensorSource::Stack { tensors } => {
                    let rows_each = tensor.rows as usize / tensors.len().max(1);
                    let bytes = rows_each * packer.row_bytes;
                    let mut data = Vec::with_capacity(tensors.len());
                    for name in tensors {
                        let found = gguf.tensor(name).map(|info| gguf.data(info));
                        let found = found.filter(|data| data.len() == bytes);
                        data.push(found.ok_or_else(|| {
                            bug(format!("tensor '{name}' has not {bytes} bytes"))
                        })?);
                    }
                    packer.slices.push(SourceRows {
                        tensor,
                        data,
                        rows_each,
                    });
                }
                TensorSource::RopeFreqs(freqs) => packer.computed = Some(rope_freqs(freqs, gguf)?),
            }
        }
        Ok(packer)
    }

    /// Where the weight ends in the section.
    fn end(&self) -> u64 {
        self.weight.offset + self.weight.len
    }

    /// Makes the weight's bytes from `from` on.
    fn fill(&self, from: usize, out: &mut [u8], source: &Source) {
        if let Some(bytes) = &self.computed {
            return out.copy_from_slice(&bytes[from..from + out.len()]);
        }
        if self.weight.layout == WeightLayout::RowMajor {
            let (mut row, mut cut) = (from / self.row_bytes, from % self.row_bytes);
            let mut rest = out;
            while !rest.is_empty() {
                let bytes = &self.row(row as u32)[cut..];
                let (next, after) = rest.split_at_mut(bytes.len().min(rest.len()));
                next.copy_from_slice(&bytes[..next.len()]);
                (row, cut, rest) = (row + 1, 0, after);
            }
            return;
        }
        let groups = self.weight.rows.div_ceil(self.group_rows()) as usize;
        let group_bytes = self.weight.len as usize / groups;
        let (first, mut cut) = (from / group_bytes, from % group_bytes);
        let mut whole = Vec::new();
        let (mut group, mut rest) = (first, &mut out[..]);
        while !rest.is_empty() {
            let (bytes, after) = rest.split_at_mut(rest.len().min(group_bytes - cut));
            if bytes.len() == group_bytes {
                self.pack_group(group, bytes);
            } else {
                whole.resize(group_bytes, 0);
                self.pack_group(group, &mut whole);
                bytes.copy_from_slice(&whole[cut..cut + bytes.len()]);
            }
            (group, cut, rest) = (group + 1, 0, after);
        }
        self.forget(first as u32..group as u32, source);
    }

    /// Rows that are packed together.
    fn group_rows(&self) -> u32 {
        match self.weight.layout {
            WeightLayout::Fragment16 => fragment::TILE as u32,
            WeightLayout::RowMajor | WeightLayout::Interleave8 | WeightLayout::Pairs8 => {
                GROUP as u32
            }
        }
    }

    fn pack_group(&self, group: usize, out: &mut [u8]) {
        let from = group as u32 * self.group_rows();
        let to = (from + self.group_rows()).min(self.weight.rows);
        let mut rows: [&[u8]; fragment::TILE] = [&[]; fragment::TILE];
        for (slot, row) in rows.iter_mut().zip(from..to) {
            *slot = self.row(row);
        }
        let rows = &rows[..(to - from) as usize];
        let pack = match self.weight.layout {
            WeightLayout::Fragment16 => fragment::pack_tile,
            WeightLayout::Pairs8 => pairs::pack_group,
            WeightLayout::RowMajor | WeightLayout::Interleave8 => kernels::pack::pack_group,
        };
        pack(self.weight.encoding, self.weight.cols as usize, rows, out);
    }

    /// Lets go of the source rows of groups that were packed: those of each slice lie together, but for a permutation within
    /// heads.
    fn forget(&self, groups: std::ops::Range<u32>, source: &Source) {
        let size = self.group_rows();
        let rows = groups.start * size..(groups.end * size).min(self.weight.rows);
        for slice in &self.slices {
            let own = rows.clone().filter_map(|row| {
                let (found, row) = self.locate(row);
                std::ptr::eq(found, slice).then(|| slice.tensor.transform.source_row(row) as usize)
            });
            let (first, end) = own.fold((usize::MAX, 0), |(first, end), row| {
                (first.min(row), end.max(row + 1))
            });
            for (i, data) in slice.data.iter().enumerate() {
                let own = i * slice.rows_each..(i + 1) * slice.rows_each;
                let (first, end) = (first.max(own.start), end.min(own.end));
                if first < end {
                    let rows = first - own.start..end - own.start;
                    source.forget(&data[rows.start * self.row_bytes..rows.end * self.row_bytes]);
                }
            }
        }
    }

    /// The source bytes of a packed row.
    fn row(&self, row: u32) -> &'a [u8] {
        let (slice, row) = self.locate(row);
        let row = slice.tensor.transform.source_row(row) as usize;
        let (data, row) = (slice.data[row / slice.rows_each], row % slice.rows_each);
        &data[row * self.row_bytes..(row + 1) * self.row_bytes]
    }

    /// The slice of a packed row and its row in it.
    fn locate(&self, row: u32) -> (&SourceRows<'a>, u32) {
        let row = fragment::paired_row(row, self.weight.pairs);
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

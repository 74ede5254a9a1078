//! Taking tensors out of a GGUF: each by name, with the shape that the model needs, and none left over.

use std::collections::BTreeSet;

use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{Graph, Tensor, TensorId, TensorSource, Transform};

/// Adds a file's tensors to a graph and remembers which were taken.
pub struct Importer<'a, 'g> {
    gguf: &'g Gguf<'a>,
    taken: BTreeSet<String>,
}

impl<'a, 'g> Importer<'a, 'g> {
    pub fn new(gguf: &'g Gguf<'a>) -> Self {
        Importer {
            gguf,
            taken: BTreeSet::new(),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// A matrix of `rows` output and `cols` input features.
    ///
    /// # Errors
    /// It is missing, has another shape, or a type that can't be compiled.
    pub fn matrix(
        &mut self,
        graph: &mut Graph,
        name: &str,
        rows: u32,
        cols: u32,
    ) -> Result<TensorId, Error> {
        let dims: &[u64] = match rows {
            1 => &[cols as u64],
            _ => &[cols as u64, rows as u64],
        };
        self.tensor(graph, name, dims, rows, cols)
    }

    /// The matrices of all experts of a layer, one after the other, `rows` times `cols` each: one tensor
    /// `blk.0.ffn_gate_exps.weight`, or, in older files, `blk.0.ffn_gate.0.weight` and so on.
    ///
    /// # Errors
    /// As [`Importer::matrix`].
    pub fn experts(
        &mut self,
        graph: &mut Graph,
        (layer, part): (u32, &str),
        count: u32,
        rows: u32,
        cols: u32,
    ) -> Result<TensorId, Error> {
        let name = format!("blk.{layer}.{part}_exps.weight");
        let of_one = |expert: u32| format!("blk.{layer}.{part}.{expert}.weight");
        if self.has(&name) || !self.has(&of_one(0)) {
            let dims = [cols as u64, rows as u64, count as u64];
            return self.tensor(graph, &name, &dims, rows * count, cols);
        }
        let mut tensors = Vec::new();
        let mut encoding = None;
        for expert in 0..count {
            let id = self.matrix(&mut Graph::new(&graph.arch), &of_one(expert), rows, cols)?;
            debug_assert_eq!(id, TensorId(0));
            let found = self.gguf.tensor(&of_one(expert)).map(|t| t.encoding());
            let found = found.transpose()?;
            if *encoding.get_or_insert(found) != found {
                return Err(Error::Unsupported(format!(
                    "tensor '{}' has another type than '{}'",
                    of_one(expert),
                    of_one(0)
                )));
            }
            tensors.push(of_one(expert));
        }
        let encoding = encoding
            .flatten()
            .ok_or_else(|| Error::Bug(format!("no encoding of '{}'", of_one(0))))?;
        Ok(graph.new_tensor(Tensor {
            name,
            encoding,
            rows: rows * count,
            cols,
            source: TensorSource::Stack { tensors },
            transform: Transform::None,
        }))
    }

    /// A tensor of these dimensions, innermost first, as `rows` rows of `cols` columns.
    fn tensor(
        &mut self,
        graph: &mut Graph,
        name: &str,
        expected: &[u64],
        rows: u32,
        cols: u32,
    ) -> Result<TensorId, Error> {
        let arch = &graph.arch;
        let Some(info) = self.gguf.tensor(name) else {
            return Err(Error::User(format!(
                "tensor '{name}' is missing; a {arch} model needs it as {expected:?} (is the file complete?)"
            )));
        };
        let mut found = info.dims().to_vec();
        while found.len() > expected.len() && found.last() == Some(&1) {
            found.pop();
        }
        if found != expected {
            return Err(Error::User(format!(
                "tensor '{name}' has the shape {:?}, the model's metadata say {expected:?}",
                info.dims()
            )));
        }
        let encoding = info.encoding()?;
        self.taken.insert(name.to_string());
        Ok(graph.new_tensor(Tensor {
            name: name.to_string(),
            encoding,
            rows,
            cols,
            source: TensorSource::File {
                tensor: name.to_string(),
                first_row: 0,
            },
            transform: Transform::None,
        }))
    }

    /// An f32 vector, of a norm for one.
    pub fn vector(&mut self, graph: &mut Graph, name: &str, len: u32) -> Result<TensorId, Error> {
        let id = self.matrix(graph, name, 1, len)?;
        match graph.tensor(id).encoding {
            bundle_format::plan::Encoding::F32 => Ok(id),
            other => Err(Error::Unsupported(format!(
                "tensor '{name}' is a vector of {other:?}, expected F32"
            ))),
        }
    }

    /// Checks that an f32 vector is there, for something that reads it later.
    pub fn check_vector(&mut self, name: &str, len: u32) -> Result<(), Error> {
        self.vector(&mut Graph::new(""), name, len).map(drop)
    }

    /// Accepts a tensor, if it is there, without reading it.
    pub fn leave(&mut self, name: &str) {
        self.taken.insert(name.to_string());
    }

    /// Refuses a file with tensors that the architecture doesn't read: the result would be another model's.
    pub fn finish(self, arch: &str) -> Result<(), Error> {
        match self
            .gguf
            .tensors()
            .iter()
            .find(|t| !self.taken.contains(t.name))
        {
            None => Ok(()),
            Some(t) => Err(Error::Unsupported(format!(
                "tensor '{}' of {:?} is not part of a {arch} model as this build knows it",
                t.name,
                t.dims()
            ))),
        }
    }
}

//! Products with matrices of f32 (`kernels::device`, floats.cuh), as routers have them.

use bundle_format::gpu::{Extent, Kernel};
use bundle_format::plan::{Dim, Segment};

use super::kernels::{Parameters, Prologue, Writer};
use super::segments::Items;
use crate::error::Error;

/// Rows that are multiplied at a time, where there are several.
pub const FLOAT_ROWS: u32 = 8;

pub const THREADS: u32 = 256;

/// Warps that share a feature's columns, of several rows.
const SPLIT: u32 = 4;

impl Writer<'_> {
    /// The kernel of a run of segments of f32, which takes so many rows of x at a time; of one row, blocks may make it.
    /// `tiled`: f16 activations lie in tiles.
    pub fn floats(
        &mut self,
        x: u32,
        run: &[&Segment],
        tiled: bool,
        rows: u32,
        prologue: Option<Prologue>,
    ) -> Result<Kernel, Error> {
        let (body, parameters, blocks) = self.floats_of(x, run, tiled, rows, prologue)?;
        let mut kernel = self.kernel("matmul_floats", parameters, &body, "", THREADS, 1);
        kernel.grid[0] = Extent::Fixed(blocks);
        kernel.grid[1] = Extent::Rows(rows);
        Ok(kernel)
    }

    /// What that kernel does, its parameters, and its blocks for so many rows.
    pub fn floats_of(
        &mut self,
        x: u32,
        run: &[&Segment],
        tiled: bool,
        rows: u32,
        prologue: Option<Prologue>,
    ) -> Result<(String, Parameters, u32), Error> {
        let input = &self.plan.buffers[x as usize];
        let (cols, of_rows) = (input.cols, input.extent == Dim::Rows);
        for segment in run {
            let weight = &self.plan.weights[segment.weight as usize];
            if !segment.epilogue.is_flat() || weight.interleave != 0 || !cols.is_multiple_of(64) {
                return Err(Error::Unsupported(format!(
                    "'{}' is F32, which this target multiplies with as routers are, of a multiple of 64 columns and with nothing \
                     behind it; convert the model to F16, BF16 or a quantised type, or compile it for cpu",
                    weight.name
                )));
            }
        }
        let told = self.chip.tells_threads().then_some(THREADS);
        let at_once = match rows {
            1 => THREADS / 32,
            _ => THREADS / 32 / SPLIT,
        };
        let items = Items::of(at_once, tiled, of_rows).by(told);
        let (segments, mut parameters) = self.segments(x, run, &items)?;
        let prologue = self.prologue(x, prologue.filter(|_| rows == 1), &mut parameters)?;
        let body = match rows {
            1 => format!("matmul_floats<{cols}, {THREADS}>(counts, p0, {segments}, {prologue});"),
            _ => format!(
                "matmul_floats_rows<{cols}, {rows}, {tiled}, {SPLIT}, {THREADS}>(counts, p0, {segments});"
            ),
        };
        let features = run
            .iter()
            .map(|s| self.plan.weights[s.weight as usize].rows.div_ceil(at_once));
        Ok((body, parameters, features.sum()))
    }
}

//! Products with matrices of f32 (`kernels::device`, floats.cuh), as routers have them.

use bundle_format::gpu::{Extent, Kernel};
use bundle_format::plan::{Dim, Segment};

use super::kernels::{Prologue, Writer};
use super::segments::Items;
use crate::error::Error;

/// Rows that are multiplied at a time, where there are several.
pub const FLOAT_ROWS: u32 = 8;

const THREADS: u32 = 256;

/// Features of a block: one a warp.
const FEATURES: u32 = THREADS / 32;

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
        let items = Items::of(FEATURES, tiled, of_rows).by(told);
        let (segments, mut parameters) = self.segments(x, run, &items)?;
        let prologue = self.prologue(x, prologue, &mut parameters)?;
        let body = format!(
            "matmul_floats<{cols}, {rows}, {tiled}, {THREADS}>(counts, p0, {segments}, {prologue});"
        );
        let mut kernel = self.kernel("matmul_floats", parameters, &body, "", THREADS, 1);
        let features = run
            .iter()
            .map(|s| self.plan.weights[s.weight as usize].rows.div_ceil(FEATURES));
        kernel.grid[0] = Extent::Fixed(features.sum());
        kernel.grid[1] = Extent::Rows(rows);
        Ok(kernel)
    }
}

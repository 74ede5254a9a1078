//! The launches of a step as one graph, captured once for each *bucket* of steps.

use bundle_format::gpu::{Extent, Kernel, Sampling, draw_kind};
use bundle_format::plan::{Limits, Variant};

use bundle_format::stability::Stability;

use super::GpuDevice;
use super::driver::Shape;
use super::layout::Argument;
use crate::Error;
use crate::device::Step;
use crate::device::outputs::Outputs;

/// What a graph was captured for: sizes rounded up, and how much of the end is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Whose inputs it reads.
    turn: usize,
    tokens: u32,
    rows: u32,
    /// Whether the head is left out: no row wants its logits.
    no_logits: bool,
    /// The largest [`draw_kind`] of a row.
    draws: u32,
}

impl Bucket {
    pub fn of(step: &Step, limits: &Limits, draws: u32, turn: usize) -> Bucket {
        Bucket {
            turn,
            tokens: rounded(step.tokens.len() as u32, limits.max_tokens),
            rows: rounded(step.rows.len() as u32, limits.max_rows),
            no_logits: Outputs::without_logits(step),
            draws,
        }
    }
}

impl GpuDevice {
    /// Captures the graph of a bucket, where there is none yet and graphs are used. A driver that has none, or refuses to
    /// capture, gets launches one by one from then on, and [`GpuDevice::eager`] tells why.
    pub(super) fn capture(&mut self, bucket: Bucket) -> Result<(), Error> {
        if self.eager.is_some() || self.graphs.contains_key(&bucket) {
            return Ok(());
        }
        match self.stream.capture(|| self.launch_all(bucket)) {
            Ok(graph) => {
                self.graphs.insert(bucket, graph);
            }
            Err(Error::Unsupported(why)) => self.eager = Some(why),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Puts a bucket's launches into the stream.
    pub(super) fn launch_step(&self, bucket: Bucket) -> Result<(), Error> {
        match self.graphs.get(&bucket) {
            Some(graph) => self.stream.launch_graph(graph),
            None => self.launch_all(bucket),
        }
    }

    fn launch_all(&self, bucket: Bucket) -> Result<(), Error> {
        let mut dependent = false;
        for index in 0..self.loaded.plan().launches.len() {
            if self.is_needed(bucket, index) {
                self.launch_op(bucket, index, &mut dependent)?;
            }
        }
        self.launch_drawing(bucket, &mut dependent)
    }

    /// The rows of a launch in a bucket's steps.
    fn rows(&self, bucket: Bucket, index: usize) -> u32 {
        let plan = self.loaded.plan();
        let extent = plan.extent(&plan.launches[index].op);
        extent.rows(bucket.tokens as usize, bucket.rows as usize) as u32
    }

    /// Whether a bucket's steps have something to do for a launch.
    pub(super) fn is_needed(&self, bucket: Bucket, index: usize) -> bool {
        let only_logits = self.outputs.only_logits[index];
        self.rows(bucket, index) > 0 && !(bucket.no_logits && only_logits)
    }

    /// Puts the kernels of one of the plan's launches into the stream. All but the first are `dependent` ones.
    pub(super) fn launch_op(
        &self,
        bucket: Bucket,
        index: usize,
        dependent: &mut bool,
    ) -> Result<(), Error> {
        let launch = &self.loaded.plan().launches[index];
        let rows = self.rows(bucket, index);
        for kernel in &self.variant(bucket, index)?.kernels {
            self.launch(kernel, rows, bucket.turn, &launch.name, dependent)?;
        }
        Ok(())
    }

    /// The variant of a launch in a bucket's steps.
    pub(super) fn variant(&self, bucket: Bucket, index: usize) -> Result<&Variant, Error> {
        let launch = &self.loaded.plan().launches[index];
        let rows = self.rows(bucket, index);
        variant(&launch.variants, self.profile, rows, &launch.name)
    }

    /// Puts the kernels that draw a bucket's tokens into the stream.
    pub(super) fn launch_drawing(&self, bucket: Bucket, dependent: &mut bool) -> Result<(), Error> {
        if let Some(sampling) = &self.loaded.plan().sampling {
            for kernel in drawing(sampling, bucket.draws) {
                let (rows, turn) = (bucket.rows, bucket.turn);
                self.launch(kernel, rows, turn, "sampling", dependent)?;
            }
        }
        Ok(())
    }

    /// Launches a kernel over `rows` rows. All but the first are `dependent` ones.
    fn launch(
        &self,
        kernel: &Kernel,
        rows: u32,
        turn: usize,
        name: &str,
        dependent: &mut bool,
    ) -> Result<(), Error> {
        let plan = self.loaded.plan();
        let blocks = |extent: Extent| match extent {
            Extent::Fixed(n) => n,
            Extent::Rows(n) => rows.div_ceil(n),
            Extent::Tiles(n) => rows.div_ceil(n) + plan.limits.max_seqs.min(rows),
        };
        let args: Vec<u64> = kernel
            .args
            .iter()
            .map(|&arg| match self.layout.argument(plan, arg, turn) {
                Argument::At(offset) => self.memory.start + offset,
                Argument::Number(n) => n,
            })
            .collect();
        let function = self
            .functions
            .get(&kernel.symbol)
            .ok_or_else(|| Error::Bug(format!("no kernel {}", kernel.symbol)))?;
        let shape = Shape {
            grid: kernel.grid.map(blocks),
            threads: kernel.threads,
            shared: kernel.shared,
        };
        self.stream
            .launch(*function, shape, &args, *dependent)
            .map_err(|error| match error {
                Error::Fault(text) => Error::Fault(format!("launch {name}: {text}")),
                error => Error::Bug(format!("launch {name}: {error}")),
            })?;
        *dependent = true;
        Ok(())
    }
}

/// The kernels that draws of up to a kind need.
fn drawing(sampling: &Sampling, kind: u32) -> Vec<&Kernel> {
    let all = sampling.kernels();
    match kind {
        draw_kind::NONE => vec![],
        draw_kind::LIKELIEST => vec![&sampling.likeliest],
        draw_kind::ANY => vec![&sampling.likeliest, &sampling.draw],
        _ => all.to_vec(),
    }
}

/// The variant of a stability profile, where the plan has any, for so many rows.
fn variant<'a>(
    variants: &'a [Variant],
    profile: Option<Stability>,
    rows: u32,
    launch: &str,
) -> Result<&'a Variant, Error> {
    let found = variants
        .iter()
        .filter(|v| profile.is_none_or(|profile| v.profiles.has(profile)))
        .find(|v| (v.min_rows..=v.max_rows).contains(&rows));
    found.ok_or_else(|| Error::Bug(format!("launch {launch} has no variant for {rows} rows")))
}

/// Sizes are rounded up to powers of two; 0 stays.
fn rounded(size: u32, limit: u32) -> u32 {
    match size {
        0 => 0,
        _ => size.next_power_of_two().min(limit),
    }
}

#[cfg(test)]
mod tests {
    use bundle_format::stability::Profiles;

    use super::*;

    #[test]
    fn a_variant_is_of_the_profile_and_the_rows() {
        use Stability::{Balanced, Strict};
        let variant_of = |min_rows, max_rows, profiles: &[Stability]| Variant {
            min_rows,
            max_rows,
            tile_rows: 1,
            tile_cols: 1,
            parts: vec![],
            kernels: vec![],
            profiles: profiles.iter().copied().collect(),
            reason: String::new(),
        };
        let variants = [
            variant_of(1, 16, &[Balanced]),
            variant_of(17, 64, &[Balanced, Strict]),
            variant_of(1, 16, &[Strict]),
        ];
        let at = |profile, rows| variant(&variants, Some(profile), rows, "a launch");
        assert_eq!(at(Balanced, 16).unwrap(), &variants[0]);
        assert_eq!(at(Strict, 16).unwrap(), &variants[2]);
        assert_eq!(at(Strict, 17).unwrap(), &variants[1]);
        assert!(at(Stability::Fast, 17).is_err());
        let plain = [variant_of(1, 64, &[])];
        assert_eq!(plain[0].profiles, Profiles::NONE);
        assert!(variant(&plain, None, 3, "a launch").is_ok());
    }

    #[test]
    fn sizes_are_powers_of_two_up_to_the_limit() {
        let all = [0, 1, 2, 3, 9, 65, 100].map(|n| rounded(n, 96));
        assert_eq!(all, [0, 1, 2, 4, 16, 96, 96]);
    }
}

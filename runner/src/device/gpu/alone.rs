//! A step whose launches run one at a time, each with what it was given and what it left.

use std::collections::BTreeSet;
use std::ops::Range;

use bundle_format::gpu::Arg;
use bundle_format::plan::{DType, Plan};
use half::f16;

use super::GpuDevice;
use super::graphs::Bucket;
use super::handles::Pinned;
use super::layout::Argument;
use crate::Error;
use crate::device::alone::{Contents, KvPool, Touch, block, blocks};
use crate::device::{Step, Ticket};

/// Is told of each launch by its index in the plan: what it was given, and what it left. Of launches that one kernel does, and which hand
/// something on inside of it, those together.
pub type Look<'a> = dyn FnMut(Range<usize>, Contents, Contents) + 'a;

impl GpuDevice {
    /// As [`Device::submit`](crate::device::Device::submit), but each launch is waited for, and `look` is told of it. For finding
    /// the kernel that is wrong: it takes much longer. Where activations of many rows lie in tiles (NVIDIA), what is read of
    /// them is in another order.
    ///
    /// # Errors
    /// As `submit`.
    pub fn submit_alone(&mut self, step: Step, look: &mut Look) -> Result<Ticket, Error> {
        self.submit_with(step, Some(look))
    }

    pub(super) fn launch_alone(
        &self,
        bucket: Bucket,
        step: &Step,
        look: &mut Look,
    ) -> Result<(), Error> {
        // Launches whose work the next one's kernels do, and that one.
        let mut together = Vec::new();
        for index in 0..self.loaded.plan().launches.len() {
            if !self.is_needed(bucket, index) {
                continue;
            }
            together.push(index);
            if self.variant(bucket, index)?.is_joined() {
                continue;
            }
            self.launch_together(bucket, step, &together, look)?;
            together.clear();
        }
        self.launch_drawing(bucket, &mut false)
    }

    /// The kernels of the last of some launches, which do the work of all of them.
    fn launch_together(
        &self,
        bucket: Bucket,
        step: &Step,
        launches: &[usize],
        look: &mut Look,
    ) -> Result<(), Error> {
        let Some(&last) = launches.last() else {
            return Ok(());
        };
        let kernels = &self.variant(bucket, last)?.kernels;
        let is_stored = |buffer: &u32| {
            let mut args = kernels.iter().flat_map(|kernel| &kernel.args);
            args.any(|&arg| arg == Arg::Buffer(*buffer)) || launches.len() == 1
        };
        let plan = self.loaded.plan();
        let touches = launches.iter().map(|&i| Touch::of(&plan.launches[i].op));
        let touches: Vec<Touch> = touches.collect();
        // What a launch reads that one of the others writes is there behind both, if at all.
        let inside = |k: usize| -> BTreeSet<u32> {
            let written = touches[..k].iter().flat_map(|t| t.writes.iter().copied());
            written.filter(|b| touches[k].reads.contains(b)).collect()
        };
        let mut given = Vec::new();
        for (k, touch) in touches.iter().enumerate() {
            let inside = inside(k);
            let reads = touch.reads.difference(&inside).copied();
            given.push(self.contents(step, reads, &touch.pools_read)?);
        }
        self.launch_op(bucket, last, &mut false)?;
        // Those from which on nothing was handed on inside, and what they were given and have left.
        let mut open: Option<(usize, Contents, Contents)> = None;
        for (k, touch) in touches.iter().enumerate() {
            let (stored, hidden): (Vec<u32>, Vec<u32>) =
                inside(k).iter().partition(|b| is_stored(b));
            let mut own = std::mem::take(&mut given[k]);
            own.add(self.contents(step, stored, &[])?);
            let writes = touch.writes.iter().copied().filter(is_stored);
            let left = self.contents(step, writes, &touch.pools_written)?;
            open = match open.take() {
                Some((first, mut before, mut after)) if !hidden.is_empty() => {
                    before.add(own);
                    after.add(left);
                    Some((first, before, after))
                }
                whole => {
                    if let Some((first, before, after)) = whole {
                        look(launches[first]..launches[k - 1] + 1, before, after);
                    }
                    Some((k, own, left))
                }
            };
        }
        if let Some((first, before, after)) = open {
            look(launches[first]..last + 1, before, after);
        }
        Ok(())
    }

    fn contents(
        &self,
        step: &Step,
        buffers: impl IntoIterator<Item = u32>,
        pools: &[KvPool],
    ) -> Result<Contents, Error> {
        let plan = self.loaded.plan();
        let mut contents = Contents::default();
        for index in buffers {
            let buffer = &plan.buffers[index as usize];
            let rows = buffer.extent.rows(step.tokens.len(), step.rows.len());
            let (stride, cols) = (buffer.row_bytes() as usize, buffer.cols as usize);
            let bytes = self.read(
                self.place(plan, Arg::Buffer(index))?,
                (rows * stride) as u64,
            )?;
            let words = |size: usize| {
                let rows = bytes.chunks_exact(stride);
                rows.flat_map(move |row| row[..cols * size].chunks_exact(size))
            };
            let word = |w: &[u8]| u32::from_le_bytes([w[0], w[1], w[2], w[3]]);
            let half = |w: &[u8]| f16::from_le_bytes([w[0], w[1]]).to_f32();
            match buffer.dtype {
                DType::U32 => {
                    contents.indices.insert(index, words(4).map(word).collect());
                }
                DType::F32 => {
                    let floats = words(4).map(|w| f32::from_bits(word(w)));
                    contents.floats.insert(index, floats.collect());
                }
                DType::F16 => {
                    contents.floats.insert(index, words(2).map(half).collect());
                }
                DType::Q8 | DType::Q11 | DType::Q14 | DType::Q8K => {
                    return Err(Error::Bug(format!(
                        "buffer {} of a GPU's plan is {:?}",
                        buffer.name, buffer.dtype
                    )));
                }
            }
        }
        for &pool in pools {
            let (start, bytes) = self.layout.pool(plan, pool.group, pool.layer, pool.part);
            let kv = &plan.kv[pool.group as usize];
            let of_pool = contents.pools.entry(pool).or_default();
            for index in blocks(step, pool.group) {
                let at = self.memory.start + start + u64::from(index) * bytes;
                of_pool.insert(index, block(kv, &self.read(at, bytes)?));
            }
        }
        Ok(contents)
    }

    fn place(&self, plan: &Plan, arg: Arg) -> Result<u64, Error> {
        match self.layout.argument(plan, arg, self.turn) {
            Argument::At(offset) => Ok(self.memory.start + offset),
            Argument::Number(_) => Err(Error::Bug(format!("{arg:?} is no place"))),
        }
    }

    /// Bytes of the GPU's memory, behind all that is in the stream.
    fn read(&self, from: u64, len: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Pinned::new(&self.gpu, len as usize)?;
        self.stream.download(&mut bytes, 0, from, len as usize)?;
        self.stream.wait()?;
        Ok(bytes.bytes().to_vec())
    }
}

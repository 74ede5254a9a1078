//! The reference device: executes what a plan's launches mean, in plain f32. It is the oracle that other devices are
//! measured by.
//!
//! It runs no code of the bundle and no microkernel, only `kernels::reference`. Activations that a target quantises stay
//! f32, and so does the KV cache; weights are dequantised as they are used. Every buffer has memory of its own, filled with
//! NaN before each step, so reading what no launch wrote shows.

mod operands;
mod parallel;

use std::sync::Arc;

use bundle_format::plan::{DType, Dim, Encoding, Input, Op, Plan, Role, Segment, Weight};
use bundle_format::region::{KvPart, Region};
use kernels::reference::{
    Attention, KvSource, RouteSpec, Tile, TileRange, WeightView, attention, choose, embed_row,
    list_pairs, matmul, rope_row, run_region,
};

use self::operands::{Memory, Pool, RegionOperands};
use super::alone::{Contents, Touch, blocks};
use super::check::{Bounds, check};
use super::outputs::Outputs;
use super::tickets::Tickets;
use super::{Device, Outcome, Step, Ticket, router_error};
use crate::Error;
use crate::load::Loaded;
use crate::sampler::Sampler;

/// How to open a [`ReferenceDevice`].
#[derive(Clone, Debug, Default)]
pub struct ReferenceOptions {
    /// Threads, the caller's among them; none: as many as this process may use.
    pub threads: Option<usize>,
    /// Blocks of each KV group; none: as many as one sequence needs to fill the context, for each of up to four sequences.
    pub kv_blocks: Option<u32>,
}

/// Runs a bundle as it is meant.
pub struct ReferenceDevice {
    loaded: Arc<Loaded>,
    threads: usize,
    memory: Memory,
    kv_blocks: Vec<u32>,
    kv_windows: Vec<Option<u32>>,
    outputs: Outputs,
    sampler: Sampler,
    tickets: Tickets,
}

impl ReferenceDevice {
    /// Opens a device for a bundle.
    ///
    /// # Errors
    /// [`Error::User`] for no threads or no KV blocks, or where KV slots don't fit 32 bits.
    pub fn open(loaded: Arc<Loaded>, options: &ReferenceOptions) -> Result<Self, Error> {
        let plan = loaded.plan();
        let threads = options
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        if threads == 0 {
            return Err(Error::User(
                "0 threads were asked for; give a number from 1".into(),
            ));
        }
        let block = bundle_format::plan::KV_BLOCK as u32;
        let blocks = options
            .kv_blocks
            .unwrap_or_else(|| plan.limits.context.div_ceil(block) * plan.limits.max_seqs.min(4));
        if blocks == 0 || blocks > u32::MAX / block {
            return Err(Error::User(format!(
                "{blocks} KV blocks were asked for; give a number from 1 to {}",
                u32::MAX / block
            )));
        }
        Ok(Self {
            threads,
            memory: Memory::new(&loaded, blocks as usize),
            kv_blocks: vec![blocks; plan.kv.len()],
            kv_windows: plan.kv.iter().map(|group| group.window).collect(),
            outputs: Outputs::find(plan)?,
            sampler: Sampler::default(),
            tickets: Tickets::default(),
            loaded,
        })
    }

    /// Puts a checked step's inputs into their buffers, and forgets what the last step left in the others.
    fn place(&mut self, step: &Step) -> Result<(), Error> {
        let plan = self.loaded.plan();
        let vocab = self.loaded.manifest().model.vocab;
        let mut ids = Vec::with_capacity(step.tokens.len());
        self.tickets.resolve(step, vocab, |_, id| ids.push(id))?;
        for (buffer, memory) in plan.buffers.iter().zip(&mut self.memory.buffers) {
            let rows = buffer.extent.rows(step.tokens.len(), step.rows.len());
            memory.reset(rows);
            match buffer.place.role {
                Role::Scratch | Role::Output(_) => {}
                Role::Input(Input::Tokens) => memory.indices.clone_from(&ids),
                Role::Input(Input::Positions) => memory.indices.clone_from(&step.positions),
                Role::Input(Input::Sequences) => memory.indices.clone_from(&step.sequences),
                Role::Input(Input::Rows) => memory.indices.clone_from(&step.rows),
                Role::Input(Input::Slots(group)) => {
                    memory.indices.clone_from(&step.kv[group as usize].slots);
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, step: &Step) -> Result<(), Error> {
        let loaded = Arc::clone(&self.loaded);
        let mut run = Run {
            loaded: &loaded,
            plan: loaded.plan(),
            memory: &mut self.memory,
            threads: self.threads,
            step,
        };
        for (group, kv) in step.kv.iter().enumerate() {
            for copy in &kv.copies {
                run.memory.copy(group, copy);
            }
        }
        let launches = run.plan.launches.iter().zip(&self.outputs.only_logits);
        let without_logits = Outputs::without_logits(step);
        for (launch, &only_logits) in launches {
            if !(only_logits && without_logits) {
                run.launch(&launch.op)
                    .map_err(|token| router_error(&launch.name, step, token))?;
            }
        }
        Ok(())
    }

    /// Runs one launch of a step on what another device gave it, and tells what it leaves.
    ///
    /// # Errors
    /// As [`Device::submit`].
    pub fn launch_alone(
        &mut self,
        step: &Step,
        launch: usize,
        given: &Contents,
    ) -> Result<Contents, Error> {
        self.place(step)?;
        for (&index, floats) in &given.floats {
            self.memory.buffers[index as usize]
                .floats
                .clone_from(floats);
        }
        for (&index, indices) in &given.indices {
            self.memory.buffers[index as usize]
                .indices
                .clone_from(indices);
        }
        for (pool, blocks) in &given.pools {
            for (&block, floats) in blocks {
                self.memory.block_mut(*pool, block).copy_from_slice(floats);
            }
        }
        let loaded = Arc::clone(&self.loaded);
        let launch = &loaded.plan().launches[launch];
        let mut run = Run {
            loaded: &loaded,
            plan: loaded.plan(),
            memory: &mut self.memory,
            threads: self.threads,
            step,
        };
        run.launch(&launch.op)
            .map_err(|token| router_error(&launch.name, step, token))?;
        let touch = Touch::of(&launch.op);
        let mut left = Contents::default();
        for index in touch.writes {
            let buffer = &self.memory.buffers[index as usize];
            match buffer.dtype {
                DType::U32 => left.indices.insert(index, buffer.indices.clone()).is_some(),
                _ => left.floats.insert(index, buffer.floats.clone()).is_some(),
            };
        }
        for pool in touch.pools_written {
            let of_pool = left.pools.entry(pool).or_default();
            for block in blocks(step, pool.group) {
                of_pool.insert(block, self.memory.block_mut(pool, block).to_vec());
            }
        }
        Ok(left)
    }

    fn finish(&mut self, step: &Step) -> Outcome {
        let buffers = &self.memory.buffers;
        let logits = &buffers[self.outputs.logits];
        let hidden = self.outputs.hidden.map(|hidden| &buffers[hidden]);
        let rows = step.wants.iter().enumerate().map(|(i, want)| {
            let position = step.positions[step.rows[i] as usize] + 1;
            let hidden = hidden.filter(|_| want.hidden).map(|hidden| hidden.row(i));
            let logits = logits.row(i);
            self.outputs
                .row(&mut self.sampler, want, position, logits, hidden)
        });
        Outcome {
            rows: rows.collect(),
        }
    }
}

impl Device for ReferenceDevice {
    /// Runs the step: it has ended when this returns.
    fn submit(&mut self, step: Step) -> Result<Ticket, Error> {
        let bounds = Bounds {
            limits: &self.loaded.plan().limits,
            kv_blocks: &self.kv_blocks,
            vocab: self.loaded.manifest().model.vocab,
        };
        check(&step, &bounds)?;
        self.outputs.check(&step)?;
        self.place(&step)?;
        self.run(&step)?;
        let outcome = self.finish(&step);
        Ok(self.tickets.file(outcome))
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Option<Outcome>, Error> {
        self.tickets.fetch(ticket).map(Some)
    }

    fn kv_blocks(&self) -> &[u32] {
        &self.kv_blocks
    }

    fn kv_windows(&self) -> &[Option<u32>] {
        &self.kv_windows
    }
}

/// One step on its way through the launches.
struct Run<'a> {
    loaded: &'a Loaded,
    plan: &'a Plan,
    memory: &'a mut Memory,
    threads: usize,
    step: &'a Step,
}

impl Run<'_> {
    /// Fails with a token that can't be routed.
    fn launch(&mut self, op: &Op) -> Result<(), usize> {
        match op {
            Op::Embed {
                tokens,
                table,
                out,
                scale,
            } => {
                let table = weight_view(self.loaded, &self.plan.weights[*table as usize]);
                let [tokens, out] = self.memory.pair(*tokens, *out);
                for (token, out) in tokens.indices.iter().zip(out.rows_mut()) {
                    embed_row(&table, *token, *scale, out);
                }
            }
            Op::RopeTable {
                positions,
                freqs,
                out,
                mscale,
            } => {
                let freqs = vector(self.loaded, &self.plan.weights[*freqs as usize]);
                let [positions, out] = self.memory.pair(*positions, *out);
                for (position, out) in positions.indices.iter().zip(out.rows_mut()) {
                    rope_row(*position, &freqs, *mscale, out);
                }
            }
            Op::Region { extent, region } => {
                let rows = extent.rows(self.step.tokens.len(), self.step.rows.len());
                self.region(region, rows, None);
            }
            Op::MatMul {
                x,
                prologue,
                segments,
            } => {
                if let Some(region) = prologue {
                    let rows = self.memory.buffers[*x as usize].rows;
                    self.region(region, rows, None);
                }
                for segment in segments {
                    self.segment(*x, segment);
                }
            }
            Op::Attention {
                q,
                group,
                layer,
                heads,
                scale,
                epilogue,
            } => self.attention(*q, (*group, *layer), *heads, *scale, epilogue),
            Op::Route {
                logits,
                renormalise,
                scale,
                weights,
                places,
                tokens,
                starts,
            } => {
                let spec = RouteSpec {
                    used: self.memory.buffers[*weights as usize].cols,
                    renormalise: *renormalise,
                    scale: *scale,
                };
                self.route(*logits, &spec, [*weights, *places, *tokens, *starts])?;
            }
            Op::ExpertMatMul {
                x,
                tokens,
                starts,
                segments,
            } => {
                for segment in segments {
                    self.expert_segment(*x, *tokens, *starts, segment);
                }
            }
        }
        Ok(())
    }

    fn route(
        &mut self,
        logits: u32,
        spec: &RouteSpec,
        [weights, places, tokens, starts]: [u32; 4],
    ) -> Result<(), usize> {
        let buffers = &mut self.memory.buffers;
        let experts = buffers[logits as usize].cols;
        let rows = buffers[logits as usize].rows;
        let mut factors = Vec::new();
        let mut chosen = Vec::new();
        for token in 0..rows {
            let slots = choose(buffers[logits as usize].row(token), spec).ok_or(token)?;
            chosen.extend(slots.iter().map(|slot| slot.0));
            factors.extend(slots.iter().map(|slot| slot.1));
        }
        let list = list_pairs(&chosen, spec.used, experts);
        buffers[weights as usize].floats = factors;
        buffers[places as usize].indices = list.places;
        buffers[tokens as usize].indices = list.tokens;
        buffers[starts as usize].indices = list.starts;
        Ok(())
    }

    /// The products of each expert's rows, one expert after the other.
    fn expert_segment(&mut self, x: u32, tokens: u32, starts: u32, segment: &Segment) {
        let weight = &self.plan.weights[segment.weight as usize];
        let view = weight_view(self.loaded, weight);
        let buffers = &self.memory.buffers;
        let (x, tokens) = (&buffers[x as usize], &buffers[tokens as usize]);
        let starts = &buffers[starts as usize].indices;
        let features = segment.epilogue.cols as usize;
        let places = tokens.indices.len();
        let by_token = x.extent == Dim::Tokens;
        let mut product = vec![0.0; places * features];
        for (expert, part) in starts.windows(2).enumerate() {
            let own = part[0] as usize..part[1] as usize;
            if own.is_empty() {
                continue;
            }
            let row = |place: usize| match by_token {
                true => x.row(tokens.indices[place] as usize),
                false => x.row(place),
            };
            let rows: Vec<f32> = own.clone().flat_map(|p| row(p).to_vec()).collect();
            let parts = parallel::map(features, self.threads, |range| {
                let mut part = vec![0.0; own.len() * range.len()];
                let rows_of_w = expert * features + range.start..expert * features + range.end;
                matmul(&rows, &view, rows_of_w, &mut part);
                part
            });
            let product = &mut product[own.start * features..own.end * features];
            for (range, part) in parts {
                let rows = product.chunks_exact_mut(features);
                for (to, from) in rows.zip(part.chunks_exact(range.len())) {
                    to[range.clone()].copy_from_slice(from);
                }
            }
        }
        self.region(&segment.epilogue, places, Some(&product));
    }

    /// Runs a region over all its columns of `rows` rows; for an epilogue with the whole product as its tile.
    fn region(&mut self, region: &Region, rows: usize, tile: Option<&[f32]>) {
        let cols = region.cols as usize;
        let range = TileRange {
            rows: 0..rows,
            cols: 0..cols,
        };
        let tile = tile.map(|data| Tile { data, stride: cols });
        run_region(
            region,
            &range,
            tile,
            &mut RegionOperands {
                region,
                memory: self.memory,
            },
        );
    }

    fn segment(&mut self, x: u32, segment: &Segment) {
        let weight = &self.plan.weights[segment.weight as usize];
        let view = weight_view(self.loaded, weight);
        let x = &self.memory.buffers[x as usize];
        let (rows, features) = (x.rows, weight.rows as usize);
        let mut product = vec![0.0; rows * features];
        let parts = parallel::map(features, self.threads, |range| {
            let mut part = vec![0.0; rows * range.len()];
            matmul(&x.floats, &view, range, &mut part);
            part
        });
        for (range, part) in parts {
            let rows = product.chunks_exact_mut(features);
            for (to, from) in rows.zip(part.chunks_exact(range.len())) {
                to[range.clone()].copy_from_slice(from);
            }
        }
        self.region(&segment.epilogue, rows, Some(&product));
    }

    fn attention(
        &mut self,
        q: u32,
        (group, layer): (u32, u32),
        heads: u32,
        scale: f32,
        epilogue: &Region,
    ) {
        let kv = &self.plan.kv[group as usize];
        let op = Attention {
            heads: heads as usize,
            kv_heads: kv.kv_heads as usize,
            head_dim: kv.head_dim as usize,
            window: kv.window.map(|w| w as usize),
            scale,
        };
        let (q, step) = (&self.memory.buffers[q as usize], self.step);
        let keys = self.memory.pool(group, layer, KvPart::Key);
        let values = self.memory.pool(group, layer, KvPart::Value);
        // Later tokens see more: taking turns shares the work better than halves do.
        let tokens = step.tokens.len();
        let stride = self.threads.min(tokens);
        let parts = parallel::map(stride, stride, |turns| {
            let mut part = Vec::new();
            for t in (turns.start..tokens).step_by(stride) {
                let source = Sequence {
                    keys,
                    values,
                    table: &step.kv[group as usize].tables[step.sequences[t] as usize],
                };
                let start = part.len();
                part.resize(start + q.cols, 0.0);
                attention(
                    &op,
                    q.row(t),
                    step.positions[t] as usize,
                    &source,
                    &mut part[start..],
                );
            }
            part
        });
        let mut all = vec![0.0; tokens * q.cols];
        for (turns, part) in parts {
            let rows = (turns.start..tokens).step_by(stride);
            for (t, row) in rows.zip(part.chunks_exact(q.cols)) {
                all[t * q.cols..][..q.cols].copy_from_slice(row);
            }
        }
        self.region(epilogue, tokens, Some(&all));
    }
}

/// The cached positions of one sequence.
struct Sequence<'a> {
    keys: &'a Pool,
    values: &'a Pool,
    table: &'a [u32],
}

impl Sequence<'_> {
    fn slot(&self, position: usize) -> u32 {
        let block = bundle_format::plan::KV_BLOCK;
        self.table[position / block] * block as u32 + (position % block) as u32
    }
}

impl KvSource for Sequence<'_> {
    fn key(&self, position: usize, kv_head: usize, out: &mut [f32]) {
        out.copy_from_slice(self.keys.head(self.slot(position), kv_head));
    }

    fn value(&self, position: usize, kv_head: usize, out: &mut [f32]) {
        out.copy_from_slice(self.values.head(self.slot(position), kv_head));
    }
}

/// A weight in the bundle.
fn weight_view<'a>(loaded: &'a Loaded, weight: &Weight) -> WeightView<'a> {
    // The reader has checked that the weight lies in its section.
    let start = weight.offset as usize;
    WeightView {
        encoding: weight.encoding,
        layout: weight.layout,
        pairs: weight.pairs,
        rows: weight.rows as usize,
        cols: weight.cols as usize,
        bytes: &loaded.bundle().weights()[start..start + weight.len as usize],
    }
}

/// The elements of a vector in the bundle.
fn vector(loaded: &Loaded, weight: &Weight) -> Vec<f32> {
    debug_assert_eq!((weight.encoding, weight.rows), (Encoding::F32, 1));
    let mut elements = vec![0.0; weight.cols as usize];
    weight_view(loaded, weight).row(0, &mut elements);
    elements
}

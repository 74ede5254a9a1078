//! Runs a bundle for an NVIDIA GPU.
//!
//! A step is one copy of its inputs and one graph of launches, captured once for each *bucket*: sizes rounded up, the true
//! ones in device memory. The host prepares the next step while one runs.

mod driver;
mod layout;
mod upload;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;

use bundle_format::gpu::Extent;
use bundle_format::plan::{Dim, Limits, Op, Plan, Variant};
use bundle_format::region::KvPart;

use self::driver::{Event, Function, Gpu, Graph, Memory, Module, Pinned, Shape, Stream};
use self::layout::{Argument, Layout};
use super::check::{Bounds, check, sequences};
use super::outputs::Outputs;
use super::tickets::Tickets;
use super::{Device, Outcome, Step, Ticket, TokenSource};
use crate::Error;
use crate::load::Loaded;
use crate::sampler::Sampler;

/// Memory that is left to the driver and others when KV pools take what is free.
const SPARE: u64 = 512 << 20;

/// How to open a [`CudaDevice`].
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Bytes of all KV pools together; none: what is free.
    pub kv_bytes: Option<u64>,
}

/// Runs a bundle on an NVIDIA GPU. Fields are dropped in their order: graphs and stream before the memory they use.
pub struct CudaDevice {
    graphs: HashMap<Bucket, Graph>,
    stream: Stream,
    loaded: Arc<Loaded>,
    layout: Layout,
    functions: HashMap<String, Function>,
    /// Of the inputs, one for each step that may be on its way.
    staging: [Pinned; 2],
    /// Which of them is next.
    turn: usize,
    /// Of logits and hidden rows, for the steps in `staging`.
    results: [Pinned; 2],
    outputs: Outputs,
    flight: VecDeque<Flight>,
    tickets: Tickets,
    /// Tickets of `tickets`, by our own, once a step has ended.
    ended: HashMap<Ticket, Ticket>,
    next: u64,
    sampler: Sampler,
    kv_blocks: Vec<u32>,
    memory: Memory,
    _module: Module,
    gpu: Gpu,
}

/// A step on its way.
struct Flight {
    ticket: Ticket,
    step: Step,
    done: Event,
    /// Which results are its own.
    turn: usize,
}

/// The sizes that a graph was captured for, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Bucket {
    tokens: u32,
    rows: u32,
    /// Whether the head is left out: no row wants its logits.
    no_logits: bool,
}

impl CudaDevice {
    /// Opens the GPU, and loads kernels and weights.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for no GPU, another one, or an old driver; [`Error::User`] for too little memory.
    pub fn open(loaded: Arc<Loaded>, options: &CudaOptions) -> Result<CudaDevice, Error> {
        let gpu = Gpu::open()?;
        let target = loaded.manifest().target;
        let (major, minor) = gpu.capability;
        let runs = target.compute_capability().is_some_and(|(a, b)| {
            // Code with instructions of one chip alone runs on no other; other code on later ones of its generation.
            major == a
                && if target.name().ends_with('a') {
                    minor == b
                } else {
                    minor >= b
                }
        });
        if !runs {
            return Err(Error::Unsupported(format!(
                "{}: the bundle is for {target}, but the GPU is {} (sm_{major}{minor}); compile the model for it: fastc \
                 compile --target sm_{major}{minor}",
                loaded.path().display(),
                gpu.name
            )));
        }
        let plan = loaded.plan();
        let bundle = loaded.bundle();
        let weights = bundle.weights_range();
        let (free, _) = gpu.memory()?;
        let available = free.saturating_sub(SPARE);
        let layout = Layout::new(plan, weights.len() as u64, available, options.kv_bytes)?;
        let memory = Memory::new(layout.bytes, "weights, buffers and KV pools")?;
        let module = Module::load(bundle.code())?;
        let mut functions = HashMap::new();
        let mut most: HashMap<&str, u32> = HashMap::new();
        for kernel in plan
            .launches
            .iter()
            .flat_map(|l| &l.variants)
            .flat_map(|v| &v.kernels)
        {
            let shared = most.entry(&kernel.symbol).or_default();
            *shared = kernel.shared.max(*shared);
        }
        for (symbol, shared) in most {
            functions.insert(symbol.to_string(), module.function(symbol, shared)?);
        }
        let file = File::open(loaded.path())
            .map_err(|e| Error::User(format!("can't open {}: {e}", loaded.path().display())))?;
        let to = memory.start + layout.weights;
        upload::upload(&gpu, &file, weights.start as u64, weights.len() as u64, to)?;
        let stream = Stream::new()?;
        if layout.tickets_bytes > 0 {
            stream.clear(memory.start + layout.tickets, layout.tickets_bytes)?;
        }
        stream.wait()?;
        let outputs = Outputs::find(plan)?;
        let rows = plan.limits.max_rows as usize;
        let row_bytes = |buffer: usize| plan.buffers[buffer].row_bytes() as usize;
        let result_bytes = rows * (row_bytes(outputs.logits) + outputs.hidden.map_or(0, row_bytes));
        let staging = [
            Pinned::new(layout.inputs.bytes)?,
            Pinned::new(layout.inputs.bytes)?,
        ];
        let results = [Pinned::new(result_bytes)?, Pinned::new(result_bytes)?];
        Ok(CudaDevice {
            graphs: HashMap::new(),
            stream,
            functions,
            staging,
            turn: 0,
            results,
            outputs,
            flight: VecDeque::new(),
            tickets: Tickets::default(),
            ended: HashMap::new(),
            next: 0,
            sampler: Sampler::default(),
            kv_blocks: vec![layout.blocks; plan.kv.len()],
            layout,
            memory,
            _module: module,
            gpu,
            loaded,
        })
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.gpu.name
    }

    /// Bytes of the GPU's memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.memory.len
    }

    fn limits(&self) -> Limits {
        self.loaded.plan().limits
    }

    /// Steps whose draws a step feeds must have ended: they are drawn by the host.
    fn settle(&mut self, step: &Step) -> Result<(), Error> {
        let named = |source: &TokenSource| match source {
            TokenSource::Id(_) => None,
            TokenSource::Sampled { ticket, .. } => Some(*ticket),
        };
        let last = step.tokens.iter().filter_map(named).max();
        while let Some(flight) = self.flight.front()
            && (last.is_some_and(|last| flight.ticket <= last) || self.flight.len() >= 2)
        {
            flight.done.wait()?;
            self.land()?;
        }
        Ok(())
    }

    /// Turns the oldest step, which has ended, into its outcome.
    fn land(&mut self) -> Result<(), Error> {
        let Some(flight) = self.flight.pop_front() else {
            return Ok(());
        };
        let plan = self.loaded.plan();
        let (step, results) = (&flight.step, &self.results[flight.turn]);
        let logits = &plan.buffers[self.outputs.logits];
        let (cols, stride) = (logits.cols as usize, logits.row_bytes() as usize);
        let without = Outputs::without_logits(step);
        let hidden_at = plan.limits.max_rows as usize * stride;
        let mut rows = Vec::with_capacity(step.rows.len());
        for (i, want) in step.wants.iter().enumerate() {
            let position = step.positions[step.rows[i] as usize] + 1;
            let logits = if without {
                &[]
            } else {
                results.floats(i * stride, cols)
            };
            let hidden = self.outputs.hidden.filter(|_| want.hidden).map(|buffer| {
                let buffer = &plan.buffers[buffer];
                results.floats(
                    hidden_at + i * buffer.row_bytes() as usize,
                    buffer.cols as usize,
                )
            });
            rows.push(
                self.outputs
                    .row(&mut self.sampler, want, position, logits, hidden),
            );
        }
        let filed = self.tickets.file(Outcome { rows });
        self.ended.insert(flight.ticket, filed);
        Ok(())
    }

    /// Writes a checked step's inputs, as they lie in the GPU's memory.
    fn stage(&mut self, step: &Step) -> Result<(), Error> {
        let vocab = self.loaded.manifest().model.vocab;
        let mut ids = vec![0; step.tokens.len()];
        let own = self.own_tickets(step)?;
        self.tickets.resolve(&own, vocab, |i, id| ids[i] = id)?;
        let inputs = &self.layout.inputs;
        let tiles = tiles(step, inputs.tile_rows);
        let memory = &mut self.staging[self.turn];
        let mut put =
            |at: usize, words: &[u32]| memory.words_mut(at, words.len()).copy_from_slice(words);
        put(
            inputs.counts,
            &[
                step.tokens.len() as u32,
                sequences(step) as u32,
                step.rows.len() as u32,
                tiles.len() as u32,
            ],
        );
        put(inputs.tokens, &ids);
        put(inputs.positions, &step.positions);
        put(inputs.sequences, &step.sequences);
        put(inputs.rows, &step.rows);
        put(inputs.tiles, tiles.as_flattened());
        for (group, kv) in step.kv.iter().enumerate() {
            put(inputs.slots[group], &kv.slots);
            for (s, table) in kv.tables.iter().enumerate() {
                put(inputs.tables[group] + 4 * s * inputs.table_stride, table);
            }
        }
        Ok(())
    }

    /// The step with the tickets under which outcomes were filed.
    fn own_tickets(&self, step: &Step) -> Result<Step, Error> {
        let mut step = step.clone();
        for source in &mut step.tokens {
            if let TokenSource::Sampled { ticket, .. } = source {
                let filed = self.ended.get(ticket).copied();
                *ticket = filed.ok_or_else(|| {
                    Error::User(format!(
                        "invalid step: a token of step {}, which this device has not run",
                        ticket.0
                    ))
                })?;
            }
        }
        Ok(step)
    }

    fn copy_blocks(&self, step: &Step) -> Result<(), Error> {
        let plan = self.loaded.plan();
        for (group, kv) in step.kv.iter().enumerate() {
            for copy in &kv.copies {
                for layer in 0..plan.kv[group].layers {
                    for part in [KvPart::Key, KvPart::Value] {
                        let (start, bytes) = self.layout.pool(plan, group as u32, layer, part);
                        let at = |block: u32| self.memory.start + start + u64::from(block) * bytes;
                        self.stream.copy(at(copy.to), at(copy.from), bytes)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The graph of a bucket, captured where it is the first of its size.
    fn graph(&mut self, bucket: Bucket) -> Result<(), Error> {
        if self.graphs.contains_key(&bucket) {
            return Ok(());
        }
        let (plan, layout) = (self.loaded.plan(), &self.layout);
        let (stream, functions, start) = (&self.stream, &self.functions, self.memory.start);
        let outputs = &self.outputs;
        let graph = stream.capture(|| {
            let mut dependent = false;
            for (launch, &only_logits) in plan.launches.iter().zip(&outputs.only_logits) {
                let rows = match extent(plan, &launch.op) {
                    Dim::Tokens => bucket.tokens,
                    Dim::Rows => bucket.rows,
                };
                if rows == 0 || bucket.no_logits && only_logits {
                    continue;
                }
                for kernel in &variant(&launch.variants, rows, &launch.name)?.kernels {
                    let blocks = |extent: Extent| match extent {
                        Extent::Fixed(n) => n,
                        Extent::Rows(n) => rows.div_ceil(n),
                        Extent::Tiles(n) => rows.div_ceil(n) + plan.limits.max_seqs.min(rows),
                    };
                    let args: Vec<u64> = kernel
                        .args
                        .iter()
                        .map(|&arg| match layout.argument(plan, arg) {
                            Argument::At(offset) => start + offset,
                            Argument::Number(n) => n,
                        })
                        .collect();
                    let function = functions
                        .get(&kernel.symbol)
                        .ok_or_else(|| Error::Bug(format!("no kernel {}", kernel.symbol)))?;
                    let shape = Shape {
                        grid: kernel.grid.map(blocks),
                        threads: kernel.threads,
                        shared: kernel.shared,
                    };
                    stream
                        .launch(*function, shape, &args, dependent)
                        .map_err(|e| Error::Bug(format!("launch {}: {e}", launch.name)))?;
                    dependent = true;
                }
            }
            Ok(())
        })?;
        self.graphs.insert(bucket, graph);
        Ok(())
    }

    /// Puts a staged step into the stream.
    fn start(&mut self, step: &Step) -> Result<Event, Error> {
        let loaded = self.loaded.clone();
        let (plan, limits) = (loaded.plan(), self.limits());
        let bucket = Bucket {
            tokens: bucket(step.tokens.len() as u32, limits.max_tokens),
            rows: bucket(step.rows.len() as u32, limits.max_rows),
            no_logits: Outputs::without_logits(step),
        };
        self.graph(bucket)?;
        let inputs = self.memory.start + self.layout.inputs_at;
        self.stream.upload(
            inputs,
            &self.staging[self.turn],
            0,
            self.layout.inputs.bytes,
        )?;
        self.copy_blocks(step)?;
        self.stream.launch_graph(&self.graphs[&bucket])?;
        // Rows that the host draws from or gives out; others stay where they are.
        let logits = &plan.buffers[self.outputs.logits];
        let stride = logits.row_bytes() as usize;
        let results = &mut self.results[self.turn];
        let arena = self.memory.start + self.layout.arena;
        for (i, want) in step.wants.iter().enumerate() {
            if want.sample.is_some() || want.logprobs.is_some() || want.logits {
                let from = arena + logits.place.offset + (i * stride) as u64;
                self.stream.download(results, i * stride, from, stride)?;
            }
            if let Some(buffer) = self.outputs.hidden.filter(|_| want.hidden) {
                let buffer = &plan.buffers[buffer];
                let bytes = buffer.row_bytes() as usize;
                let from = arena + buffer.place.offset + (i * bytes) as u64;
                let at = limits.max_rows as usize * stride + i * bytes;
                self.stream.download(results, at, from, bytes)?;
            }
        }
        let done = Event::new()?;
        self.stream.record(&done)?;
        Ok(done)
    }
}

impl Device for CudaDevice {
    fn submit(&mut self, step: Step) -> Result<Ticket, Error> {
        self.gpu.make_current()?;
        let bounds = Bounds {
            limits: &self.limits(),
            kv_blocks: &self.kv_blocks,
            vocab: self.loaded.manifest().model.vocab,
        };
        check(&step, &bounds)?;
        self.outputs.check(&step)?;
        self.settle(&step)?;
        self.stage(&step)?;
        let done = self.start(&step)?;
        let ticket = Ticket(self.next);
        self.next += 1;
        self.flight.push_back(Flight {
            ticket,
            step,
            done,
            turn: self.turn,
        });
        self.turn = 1 - self.turn;
        Ok(ticket)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Option<Outcome>, Error> {
        self.gpu.make_current()?;
        while let Some(flight) = self.flight.front()
            && flight.ticket <= ticket
        {
            if !flight.done.is_past()? {
                return Ok(None);
            }
            self.land()?;
        }
        let Some(filed) = self.ended.get(&ticket).copied() else {
            return Err(Error::User(format!(
                "step {} was never submitted to this device",
                ticket.0
            )));
        };
        let outcome = self.tickets.fetch(filed)?;
        // Its sampled ids can be named a while longer.
        let oldest = ticket.0.saturating_sub(super::tickets::REMEMBERED as u64);
        self.ended.retain(|t, _| t.0 >= oldest);
        Ok(Some(outcome))
    }

    fn kv_blocks(&self) -> &[u32] {
        &self.kv_blocks
    }
}

/// What a launch has rows of.
fn extent(plan: &Plan, op: &Op) -> Dim {
    match op {
        Op::Embed { .. } | Op::RopeTable { .. } | Op::Attention { .. } => Dim::Tokens,
        Op::Region { extent, .. } => *extent,
        Op::MatMul { x, .. } => plan.buffers[*x as usize].extent,
    }
}

fn variant<'a>(variants: &'a [Variant], rows: u32, launch: &str) -> Result<&'a Variant, Error> {
    let found = variants
        .iter()
        .find(|v| (v.min_rows..=v.max_rows).contains(&rows));
    found.ok_or_else(|| Error::Bug(format!("launch {launch} has no variant for {rows} rows")))
}

/// Sizes are rounded up to powers of two; 0 stays.
fn bucket(size: u32, limit: u32) -> u32 {
    match size {
        0 => 0,
        _ => size.next_power_of_two().min(limit),
    }
}

/// Consecutive tokens of a sequence, at most `rows` of them: first token, tokens, sequence, position of the first.
fn tiles(step: &Step, rows: u32) -> Vec<[u32; 4]> {
    let mut tiles: Vec<[u32; 4]> = Vec::new();
    for (t, (&sequence, &position)) in step.sequences.iter().zip(&step.positions).enumerate() {
        match tiles.last_mut() {
            Some(tile) if tile[2] == sequence && tile[1] < rows => tile[1] += 1,
            _ => tiles.push([t as u32, 1, sequence, position]),
        }
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_of_one_sequence() {
        let step = Step {
            sequences: vec![0, 0, 0, 1, 2, 2],
            positions: vec![7, 8, 9, 0, 3, 4],
            ..Step::default()
        };
        let expected = [[0, 2, 0, 7], [2, 1, 0, 9], [3, 1, 1, 0], [4, 2, 2, 3]];
        assert_eq!(tiles(&step, 2), expected);
    }

    #[test]
    fn buckets_are_powers_of_two_up_to_the_limit() {
        let all: Vec<u32> = [0, 1, 2, 3, 9, 65, 100].map(|n| bucket(n, 96)).into();
        assert_eq!(all, [0, 1, 2, 4, 16, 96, 96]);
    }
}

//! Runs a bundle for a GPU: of NVIDIA's through CUDA, of AMD's through HIP ([`driver`] is what is needed of either).
//!
//! A step is one copy of its inputs and one graph of launches, captured once for each *bucket*: sizes rounded up, the true
//! ones in device memory. The graph ends with drawing tokens ([`draw`] says which), so that the host prepares and submits the
//! next step, whose inputs name them, while one runs.

mod alone;
mod cuda;
mod draw;
mod driver;
mod graphs;
mod handles;
mod hip;
mod layout;
mod read_rate;
mod upload;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;

use bundle_format::gpu::{DRAWN_BYTES, TOKEN_DRAWN, counts, draw_kind};
use bundle_format::plan::{Limits, Op, Plan, Segment};
use bundle_format::region::KvPart;
use bundle_format::stability::Profile;

pub use self::alone::Look;
use self::cuda::Cuda;
use self::draw::Draw;
pub use self::driver::About;
use self::driver::Function;
use self::graphs::Bucket;
use self::handles::{Event, Gpu, Graph, Memory, Module, Pinned, Stream};
use self::hip::Hip;
use self::layout::Layout;
use super::check::{Bounds, check, sequences};
use super::outputs::Outputs;
use super::tickets::Tickets;
use super::{Device, Outcome, Stability, Step, Ticket, TokenSource, Want, router_error};
use crate::Error;
use crate::load::Loaded;
use crate::sampler::Sampler;

/// Memory that is left to the driver and others when KV pools take what is free.
const SPARE: u64 = 512 << 20;

/// What a maker's runtime says of its first GPU.
#[derive(Clone, Debug)]
pub struct Seen {
    pub about: About,
    /// Bytes of memory that are free.
    pub free: u64,
}

/// Looks for a GPU of NVIDIA's.
///
/// # Errors
/// As [`GpuDevice::open`].
pub fn see_cuda() -> Result<Seen, Error> {
    see(Cuda::open()?)
}

/// Looks for a GPU of AMD's.
///
/// # Errors
/// As [`GpuDevice::open`].
pub fn see_hip() -> Result<Seen, Error> {
    see(Hip::open()?)
}

fn see(gpu: Gpu) -> Result<Seen, Error> {
    Ok(Seen {
        about: gpu.about().clone(),
        free: gpu.memory()?.0,
    })
}

/// How to open a [`GpuDevice`].
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Bytes of all KV pools together; none: what is free.
    pub kv_bytes: Option<u64>,
    /// The profile to run by, of those that the bundle has; none: its own.
    pub stability: Option<Stability>,
    /// Execute the kernels of a bundle for gfx1151 on this processor, instruction by instruction (feature `sim`).
    pub simulate: bool,
}

/// Runs a bundle on a GPU. Fields are dropped in their order: graphs and stream before the memory they use.
pub struct GpuDevice {
    graphs: HashMap<Bucket, Graph>,
    /// The stability profile that it runs by, of a plan that has any.
    profile: Option<Stability>,
    /// Why kernels are launched one by one; none: by graphs.
    eager: Option<String>,
    stream: Stream,
    /// Of inputs, which are on their way while the step before runs; and of drawn tokens, for which the step behind doesn't wait.
    uploads: Stream,
    downloads: Stream,
    loaded: Arc<Loaded>,
    layout: Layout,
    functions: HashMap<String, Function>,
    /// Of the inputs, one for each step that may be on its way.
    staging: [Pinned; 2],
    /// Which of them is next.
    turn: usize,
    /// Of what comes back, for the steps in `staging`.
    results: [Pinned; 2],
    parts: Results,
    /// The launches that send tokens to experts.
    routes: Vec<usize>,
    /// Bytes of an expert's weights, on average, and those that steps read so far.
    bytes_of_expert: f64,
    expert_bytes: f64,
    outputs: Outputs,
    flight: VecDeque<Flight>,
    /// Steps that ended in an error that nobody was told yet.
    failed: Vec<(Ticket, Error)>,
    /// Steps land in the order of their submission: their tickets are those of `tickets`.
    tickets: Tickets,
    next: u64,
    sampler: Sampler,
    kv_blocks: Vec<u32>,
    kv_windows: Vec<Option<u32>>,
    memory: Memory,
    _module: Module,
    gpu: Gpu,
}

/// A step on its way.
struct Flight {
    ticket: Ticket,
    step: Step,
    /// What the GPU draws, by row.
    draws: Vec<Option<Draw>>,
    done: Event,
    /// Which results are its own.
    turn: usize,
}

/// Where the parts of a step's results are, in bytes, each for as many rows as a step has at most.
struct Results {
    hidden: usize,
    drawn: usize,
    /// [`counts`], of a plan that routes.
    counts: usize,
    bytes: usize,
}

impl GpuDevice {
    /// Opens the GPU, and loads kernels and weights.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for no GPU, another one, or an old driver; [`Error::User`] for too little memory.
    pub fn open(loaded: Arc<Loaded>, options: &GpuOptions) -> Result<GpuDevice, Error> {
        let target = loaded.manifest().target;
        if !target.is_gpu() {
            return Err(Error::User(format!(
                "{}: the bundle is for {target}, not for a GPU; leave --device gpu out, or compile the model for one (fastc \
                 compile --target sm_90)",
                loaded.path().display()
            )));
        }
        let gpu: Gpu = match target.compute_capability() {
            _ if options.simulate => Hip::simulated()?,
            Some(_) => Cuda::open()?,
            None => Hip::open()?,
        };
        let about = gpu.about();
        if !gpu.runs(target) {
            return Err(Error::Unsupported(format!(
                "{}: the bundle is for {target}, but the GPU is {} ({}); compile the model for it: fastc compile --target {}",
                loaded.path().display(),
                about.name,
                about.chip,
                about.chip
            )));
        }
        let plan = loaded.plan();
        let profile = profile(&loaded, options.stability)?;
        let bundle = loaded.bundle();
        let weights = bundle.weights_range();
        let (free, _) = gpu.memory()?;
        let available = free.saturating_sub(SPARE);
        let layout = Layout::new(plan, weights.len() as u64, available, options.kv_bytes)?;
        let memory = Memory::new(&gpu, layout.bytes, "weights, buffers and KV pools")?;
        let file = File::open(loaded.path())
            .map_err(|e| Error::User(format!("can't open {}: {e}", loaded.path().display())))?;
        let to = memory.start + layout.weights;
        // The driver takes its time over kernels: meanwhile weights are on their way.
        let (module, functions) = std::thread::scope(|scope| {
            let upload = scope.spawn(|| upload::upload(&gpu, &file, weights.clone(), to));
            let kernels = load_kernels(&gpu, plan, bundle.code());
            match upload.join() {
                Ok(result) => result.and(kernels),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        let stream = Stream::new(&gpu)?;
        if layout.tickets_bytes > 0 {
            stream.clear(memory.start + layout.tickets, layout.tickets_bytes)?;
        }
        stream.wait()?;
        let outputs = Outputs::find(plan)?;
        let rows = plan.limits.max_rows as usize;
        let row_bytes = |buffer: usize| plan.buffers[buffer].row_bytes() as usize;
        let hidden = rows * row_bytes(outputs.logits);
        let drawn = hidden + rows * outputs.hidden.map_or(0, row_bytes);
        let counts = drawn + rows * DRAWN_BYTES;
        let parts = Results {
            hidden,
            drawn,
            counts,
            bytes: counts + 4 * counts::WORDS,
        };
        let routes = (0..plan.launches.len())
            .filter(|&i| matches!(plan.launches[i].op, Op::Route { .. }))
            .collect();
        let staging = [
            Pinned::new(&gpu, layout.inputs.bytes)?,
            Pinned::new(&gpu, layout.inputs.bytes)?,
        ];
        let results = [
            Pinned::new(&gpu, parts.bytes)?,
            Pinned::new(&gpu, parts.bytes)?,
        ];
        Ok(GpuDevice {
            graphs: HashMap::new(),
            profile: profile.map(|p| p.stability),
            eager: profile
                .filter(|p| p.eager)
                .map(|p| format!("the stability profile {} has no graphs", p.stability)),
            stream,
            uploads: Stream::new(&gpu)?,
            downloads: Stream::new(&gpu)?,
            functions,
            staging,
            turn: 0,
            results,
            parts,
            routes,
            bytes_of_expert: bytes_of_expert(plan),
            expert_bytes: 0.0,
            outputs,
            flight: VecDeque::new(),
            failed: Vec::new(),
            tickets: Tickets::default(),
            next: 0,
            sampler: Sampler::default(),
            kv_blocks: layout.blocks.clone(),
            kv_windows: plan.kv.iter().map(|group| group.window).collect(),
            layout,
            memory,
            _module: module,
            gpu,
            loaded,
        })
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.gpu.about().name
    }

    /// Why a step's kernels are launched one by one; none where a graph launches them together.
    pub fn eager(&self) -> Option<&str> {
        self.eager.as_deref()
    }

    /// Bytes of the GPU's memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.memory.len
    }

    /// Bytes a second that this GPU reads from its memory, measured.
    ///
    /// # Errors
    /// [`Error::User`] where there is no memory left to measure with.
    pub fn read_rate(&self) -> Result<f64, Error> {
        self.gpu.make_current()?;
        read_rate::read_rate(&self.gpu, &self.stream)
    }

    /// Bytes of experts' weights that the steps so far had to read: of those that any of their tokens went to.
    pub fn expert_bytes(&self) -> u64 {
        self.expert_bytes as u64
    }

    fn limits(&self) -> Limits {
        self.loaded.plan().limits
    }

    /// How the GPU draws each row's token; none where the host does, or nobody.
    fn draws(&self, step: &Step) -> Vec<Option<Draw>> {
        let plan = self.loaded.plan();
        let vocab = plan.buffers[self.outputs.logits].cols;
        let draw = |(&row, want): (&u32, &Want)| {
            plan.sampling.as_ref()?;
            Draw::of(want, step.positions[row as usize] + 1, vocab)
        };
        step.rows.iter().zip(&step.wants).map(draw).collect()
    }

    /// The step on its way that a token comes from; none where it is known to the host.
    fn flight_of(&self, source: &TokenSource) -> Option<(&Flight, u32)> {
        let TokenSource::Sampled { ticket, row } = *source else {
            return None;
        };
        let flight = self.flight.iter().find(|f| f.ticket == ticket)?;
        Some((flight, row))
    }

    /// Waits until there is room for a step, and until the steps have ended whose draws it feeds and the host makes.
    fn settle(&mut self, step: &Step) -> Result<(), Error> {
        let is_hosts = |source: &TokenSource| {
            let (flight, row) = self.flight_of(source)?;
            let is_ours = matches!(flight.draws.get(row as usize), Some(Some(_)));
            (!is_ours).then_some(flight.ticket)
        };
        let last = step.tokens.iter().filter_map(is_hosts).max();
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
                    self.parts.hidden + i * buffer.row_bytes() as usize,
                    buffer.cols as usize,
                )
            });
            rows.push(match flight.draws[i] {
                Some(_) => {
                    let words = results.words(self.parts.drawn + i * DRAWN_BYTES, 2);
                    let drawn = draw::drawn([words[0], words[1]]);
                    self.outputs
                        .drawn_row(want, position, drawn, logits, hidden)
                }
                None => self
                    .outputs
                    .row(&mut self.sampler, want, position, logits, hidden),
            });
        }
        let error = self.routed(&flight);
        if error.is_some() {
            // What came of it is nobody's; steps that name its tokens may be on their way.
            for row in &mut rows {
                (row.token, row.logits, row.hidden) = (None, None, None);
                row.error
                    .get_or_insert_with(|| "the step failed".to_string());
            }
        }
        let filed = self.tickets.file(Outcome { rows });
        if filed != flight.ticket {
            return Err(Error::Bug(format!(
                "step {} landed as step {}",
                flight.ticket.0, filed.0
            )));
        }
        if let Some(error) = error {
            self.tickets.fetch(filed)?;
            self.failed.push((filed, error));
        }
        Ok(())
    }

    /// Counts what a step that has ended read of experts. The error of one in which a token could not be sent to any.
    fn routed(&mut self, flight: &Flight) -> Option<Error> {
        if self.routes.is_empty() {
            return None;
        }
        let words = self.results[flight.turn].words(self.parts.counts, counts::WORDS);
        self.expert_bytes += f64::from(words[counts::EXPERTS]) * self.bytes_of_expert;
        let route = self.routes.get(words[counts::BAD_ROUTE] as usize)?;
        let launch = &self.loaded.plan().launches[*route].name;
        Some(router_error(
            launch,
            &flight.step,
            words[counts::BAD_TOKEN] as usize,
        ))
    }

    /// The ids of a step's tokens, or where the GPU has them.
    fn token_words(&self, step: &Step) -> Result<Vec<u32>, Error> {
        let vocab = self.loaded.manifest().model.vocab;
        let sources = step.tokens.iter().enumerate();
        let word = |(i, source): (usize, &TokenSource)| match self.flight_of(source) {
            Some((flight, row)) => Ok(TOKEN_DRAWN | self.entry(flight.turn, row)),
            None => self.tickets.token(i, *source, vocab),
        };
        sources.map(word).collect()
    }

    /// Where the GPU puts the token that it draws from a row of a step.
    fn entry(&self, turn: usize, row: u32) -> u32 {
        turn as u32 * self.limits().max_rows + row
    }

    /// Writes a checked step's inputs, as they lie in the GPU's memory.
    fn stage(&mut self, step: &Step, draws: &[Option<Draw>]) -> Result<(), Error> {
        let ids = self.token_words(step)?;
        let entries: Vec<u32> = (0..draws.len() as u32)
            .map(|row| self.entry(self.turn, row))
            .collect();
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
                0,
                counts::NO_ROUTE,
                0,
                0,
            ],
        );
        put(inputs.tokens, &ids);
        put(inputs.positions, &step.positions);
        put(inputs.sequences, &step.sequences);
        put(inputs.rows, &step.rows);
        put(inputs.tiles, tiles.as_flattened());
        for (row, (draw, &entry)) in draws.iter().zip(&entries).enumerate() {
            let words = draw.map_or(draw::NOTHING, |draw| draw.words(entry));
            put(inputs.draws + 4 * words.len() * row, &words);
        }
        for (group, kv) in step.kv.iter().enumerate() {
            put(inputs.slots[group], &kv.slots);
            for (s, table) in kv.tables.iter().enumerate() {
                put(inputs.tables[group] + 4 * s * inputs.table_stride, table);
            }
        }
        Ok(())
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

    /// Puts a staged step into the stream: its launches together, or one at a time for `look`.
    fn start(
        &mut self,
        step: &Step,
        draws: &[Option<Draw>],
        look: Option<&mut Look>,
    ) -> Result<Event, Error> {
        let limits = self.limits();
        let kinds = draws.iter().flatten().map(|draw| draw.kind);
        let kind = kinds.max().unwrap_or(draw_kind::NONE);
        let bucket = Bucket::of(step, &limits, kind, self.turn);
        if look.is_none() {
            self.capture(bucket)?;
        }
        let inputs = self.memory.start + self.layout.inputs_at[self.turn];
        let bytes = self.layout.inputs.bytes;
        self.uploads
            .upload(inputs, &self.staging[self.turn], 0, bytes)?;
        let there = Event::new(&self.gpu)?;
        self.uploads.record(&there)?;
        self.stream.wait_for(&there)?;
        self.copy_blocks(step)?;
        match look {
            None => self.launch_step(bucket)?,
            Some(look) => self.launch_alone(bucket, step, look)?,
        }
        self.download(step, draws)?;
        let mut done = Event::new(&self.gpu)?;
        self.stream.record(&done)?;
        let draws_any = kind != draw_kind::NONE;
        if draws_any || !self.routes.is_empty() {
            self.downloads.wait_for(&done)?;
            let first = u64::from(self.entry(self.turn, 0)) * DRAWN_BYTES as u64;
            let results = &mut self.results[self.turn];
            if draws_any {
                let from = self.memory.start + self.layout.drawn + first;
                let bytes = draws.len() * DRAWN_BYTES;
                self.downloads
                    .download(results, self.parts.drawn, from, bytes)?;
            }
            if !self.routes.is_empty() {
                let from = inputs + self.layout.inputs.counts as u64;
                let bytes = 4 * counts::WORDS;
                self.downloads
                    .download(results, self.parts.counts, from, bytes)?;
            }
            done = Event::new(&self.gpu)?;
            self.downloads.record(&done)?;
        }
        Ok(done)
    }

    /// Copies the logits of rows that the host draws from or gives out, and hidden rows. All else stays where it is.
    fn download(&mut self, step: &Step, draws: &[Option<Draw>]) -> Result<(), Error> {
        let loaded = self.loaded.clone();
        let plan = loaded.plan();
        let logits = &plan.buffers[self.outputs.logits];
        let stride = logits.row_bytes() as usize;
        let results = &mut self.results[self.turn];
        let arena = self.memory.start + self.layout.arena;
        for (i, (want, draw)) in step.wants.iter().zip(draws).enumerate() {
            let draws_here = want.sample.is_some() && draw.is_none();
            if draws_here || want.logprobs.is_some() || want.logits {
                let from = arena + logits.place.offset + (i * stride) as u64;
                self.stream.download(results, i * stride, from, stride)?;
            }
            if let Some(buffer) = self.outputs.hidden.filter(|_| want.hidden) {
                let buffer = &plan.buffers[buffer];
                let bytes = buffer.row_bytes() as usize;
                let from = arena + buffer.place.offset + (i * bytes) as u64;
                let at = self.parts.hidden + i * bytes;
                self.stream.download(results, at, from, bytes)?;
            }
        }
        Ok(())
    }

    fn submit_with(&mut self, step: Step, look: Option<&mut Look>) -> Result<Ticket, Error> {
        self.gpu.make_current()?;
        let bounds = Bounds {
            limits: &self.limits(),
            kv_blocks: &self.kv_blocks,
            vocab: self.loaded.manifest().model.vocab,
        };
        check(&step, &bounds)?;
        self.outputs.check(&step)?;
        self.settle(&step)?;
        let draws = self.draws(&step);
        self.stage(&step, &draws)?;
        let done = self.start(&step, &draws, look)?;
        let ticket = Ticket(self.next);
        self.next += 1;
        self.flight.push_back(Flight {
            ticket,
            step,
            draws,
            done,
            turn: self.turn,
        });
        self.turn = 1 - self.turn;
        Ok(ticket)
    }
}

/// Bytes of an expert's weights, on average over all of them.
fn bytes_of_expert(plan: &Plan) -> f64 {
    let (mut experts, mut bytes) = (0, 0);
    for launch in &plan.launches {
        match &launch.op {
            Op::Route { starts, .. } => experts += plan.buffers[*starts as usize].cols - 1,
            Op::ExpertMatMul { segments, .. } => {
                let len = |s: &Segment| plan.weights[s.weight as usize].len;
                bytes += segments.iter().map(len).sum::<u64>();
            }
            _ => {}
        }
    }
    bytes as f64 / f64::from(experts.max(1))
}

impl Device for GpuDevice {
    fn submit(&mut self, step: Step) -> Result<Ticket, Error> {
        self.submit_with(step, None)
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
        if let Some(at) = self.failed.iter().position(|(failed, _)| *failed == ticket) {
            return Err(self.failed.swap_remove(at).1);
        }
        self.tickets.fetch(ticket).map(Some)
    }

    fn kv_blocks(&self) -> &[u32] {
        &self.kv_blocks
    }

    fn kv_windows(&self) -> &[Option<u32>] {
        &self.kv_windows
    }
}

/// The profile to run by: the one that is asked for, or the bundle's own; none where it has none.
fn profile(loaded: &Loaded, wanted: Option<Stability>) -> Result<Option<&Profile>, Error> {
    let (all, path) = (&loaded.plan().stability, loaded.path().display());
    let Some(wanted) = wanted else {
        return Ok(all.first());
    };
    let found = all.iter().find(|p| p.stability == wanted);
    if found.is_some() {
        return Ok(found);
    }
    let has: Vec<String> = all.iter().map(|p| p.stability.to_string()).collect();
    Err(Error::User(match has.is_empty() {
        true => format!("{path}: the bundle has no stability profiles; {wanted} is asked for"),
        false => format!(
            "{path}: the bundle has the stability profiles {}, not {wanted}; compile the model for it: fastc compile --stability {wanted}",
            has.join(", ")
        ),
    }))
}

/// The functions that a plan launches, by their symbols.
fn load_kernels(
    gpu: &Gpu,
    plan: &Plan,
    object: &[u8],
) -> Result<(Module, HashMap<String, Function>), Error> {
    let module = Module::load(gpu, object)?;
    let mut most: HashMap<&str, u32> = HashMap::new();
    for kernel in plan.kernels() {
        let shared = most.entry(&kernel.symbol).or_default();
        *shared = kernel.shared.max(*shared);
    }
    let function = |(symbol, shared): (&str, u32)| {
        let function = module.function(symbol, shared)?;
        Ok((symbol.to_string(), function))
    };
    let functions = most
        .into_iter()
        .map(function)
        .collect::<Result<_, Error>>()?;
    Ok((module, functions))
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
}

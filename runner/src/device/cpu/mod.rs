//! The CPU device: a bundle's code and microkernels, run by all threads together.
//!
//! Opening it looks everything up once ([`resolve`]) in memory that is committed as it is used ([`memory`], [`pools`]);
//! running a step allocates nothing but its outcome.

mod memory;
mod pools;
mod resolve;
mod threads;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use bundle_format::plan::{Input, Plan, Role};
use kernels::cpu::Level;

use self::memory::{Code, Mapping};
use self::pools::Pools;
use self::resolve::Memory;
use super::check::{Bounds, check};
use super::outputs::Outputs;
use super::tickets::Tickets;
use super::{Device, Outcome, RowOutcome, Step, Ticket, router_error};
use crate::Error;
use crate::executor::part::Part;
use crate::executor::program::{Program, Routed};
use crate::executor::team::Team;
use crate::executor::walk::{Profile, StepView, walk};
use crate::load::Loaded;
use crate::sampler::Sampler;

pub use self::threads::default_threads;

/// How to open a [`CpuDevice`].
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the caller's among them; none: [`default_threads`].
    pub threads: Option<usize>,
    /// Memory of all KV pools in bytes; none: enough for every sequence of a full step to fill the context, bounded by
    /// half of the memory that is free. Pages are taken as they are used.
    pub kv_bytes: Option<u64>,
    /// Measure how long each launch takes.
    pub profile: bool,
    /// The instruction set of the microkernels; none: the best that this processor has. All give the same bits.
    pub level: Option<Level>,
}

/// Time spent on a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchTime {
    /// The launch's name in the plan.
    pub name: String,
    /// Over all steps so far; it includes waiting for the slowest thread.
    pub nanoseconds: u64,
}

/// Runs a bundle on this machine's processor.
pub struct CpuDevice {
    /// First, so that threads end before the memory that they work on is unmapped.
    team: Team,
    /// Steps that it walked.
    steps: u64,
    program: Program,
    inputs: Inputs,
    outputs: Outputs,
    logits: Floats,
    hidden: Option<Floats>,
    /// For each KV group the block table of each sequence of the present step.
    tables: Vec<Vec<*const u32>>,
    /// A tile of [`Program::tile_len`] elements for each thread, `tile_bytes` apart.
    tiles: Mapping,
    tile_bytes: usize,
    /// One for each thread.
    samplers: Vec<Mutex<Sampler>>,
    tickets: Tickets,
    profile: Option<Profile>,
    arena: Mapping,
    pools: Pools,
    _code: Code,
    loaded: Arc<Loaded>,
}

// SAFETY: the raw pointers lead into memory that the device owns (or shares, read-only, through `loaded`), whichever thread
// uses the device.
unsafe impl Send for CpuDevice {}

/// Where a step's inputs go; none where the plan doesn't use one.
struct Inputs {
    tokens: Option<*mut u32>,
    positions: Option<*mut u32>,
    sequences: Option<*mut u32>,
    rows: Option<*mut u32>,
    /// By KV group.
    slots: Vec<Option<*mut u32>>,
}

/// Where an output's rows are.
struct Floats {
    start: *const f32,
    /// Elements between rows.
    stride: usize,
    cols: usize,
}

// SAFETY: outputs are only read, after the launches that write them.
unsafe impl Sync for Floats {}

impl CpuDevice {
    /// Opens a device for a bundle.
    ///
    /// # Errors
    /// [`Error::User`] where the options ask for more threads or memory than there is, [`Error::Unsupported`] where the
    /// bundle names a microkernel that this runner hasn't, [`Error::Bug`] where its plan lacks code.
    pub fn open(loaded: Arc<Loaded>, options: &CpuOptions) -> Result<Self, Error> {
        // One that was opened to look at it may be for another machine.
        loaded.check_runnable()?;
        let bundle = loaded.bundle();
        let plan = bundle.plan();
        let target = loaded.manifest().target;
        if target.is_gpu() {
            return Err(Error::User(format!(
                "{}: the bundle is for {target}, not for a processor; leave --device cpu out, or compile the model for cpu",
                loaded.path().display()
            )));
        }
        let code = Code::new(bundle.code(), |copy| {
            let found = bundle_format::hash::raw_code(copy);
            if found == bundle.code_hash() {
                return Ok(());
            }
            Err(Error::User(format!(
                "{}: the code section's executable copy should hash to {} but hashes to {found}; this machine's memory \
                 may be faulty",
                loaded.path().display(),
                bundle.code_hash()
            )))
        })?;
        let level = options.level.unwrap_or_else(Level::detect);
        if !level.is_available() {
            return Err(Error::User(format!(
                "microkernels of level {} need {}, which this processor lacks in part; its best level is {}",
                level.name(),
                level.required_features().join(", "),
                Level::detect().name()
            )));
        }
        let arena = Mapping::new(plan.arena_bytes, "the buffers of a step")?;
        let pools = Pools::new(plan, options.kv_bytes)?;
        let outputs = Outputs::find(plan)?;
        let program = resolve::resolve(
            bundle,
            &outputs,
            &Memory {
                arena: &arena,
                pools: &pools,
                code: &code,
            },
            level,
        )?;
        let threads = options.threads.unwrap_or_else(default_threads);
        let team = Team::new(threads)?;
        // Pages of its own for each thread.
        let tile_bytes = (program.tile_len * size_of::<f32>()).next_multiple_of(4096);
        let tiles = Mapping::new((tile_bytes * threads) as u64, "tiles")?;
        let sequences = plan.limits.max_seqs as usize;
        Ok(Self {
            inputs: Inputs::find(plan, &arena),
            logits: Floats::find(plan, &arena, outputs.logits),
            hidden: outputs
                .hidden
                .map(|buffer| Floats::find(plan, &arena, buffer)),
            outputs,
            tables: vec![Vec::with_capacity(sequences); plan.kv.len()],
            tiles,
            tile_bytes,
            samplers: (0..threads).map(|_| Mutex::default()).collect(),
            tickets: Tickets::default(),
            profile: options
                .profile
                .then(|| Profile::new(program.launches.len())),
            team,
            steps: 0,
            program,
            arena,
            pools,
            _code: code,
            loaded,
        })
    }

    /// The bundle that it runs.
    pub fn loaded(&self) -> &Arc<Loaded> {
        &self.loaded
    }

    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// The time that each launch took, in the plan's order; none unless [`CpuOptions::profile`] asked for it.
    pub fn profile(&self) -> Option<Vec<LaunchTime>> {
        let profile = self.profile.as_ref()?;
        let times = profile.nanoseconds.iter().zip(&self.program.launches);
        Some(
            times
                .map(|(time, launch)| LaunchTime {
                    name: launch.name.clone(),
                    nanoseconds: time.load(Ordering::Relaxed),
                })
                .collect(),
        )
    }

    /// Bytes of weights of experts that steps have read so far: of each expert that any token went to, once a launch.
    pub fn expert_bytes(&self) -> u64 {
        self.program.routed.expert_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the arena: what a step's buffers take at the plan's limits.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len()
    }

    /// Puts a checked step's inputs where the plan wants them.
    fn place(&mut self, step: &Step) -> Result<(), Error> {
        let vocab = self.logits.cols as u32;
        // Once without writing: a step that is refused changes nothing.
        self.tickets.resolve(step, vocab, |_, _| ())?;
        if let Some(start) = self.inputs.tokens {
            self.tickets.resolve(step, vocab, |i, id| {
                // SAFETY: the buffer holds `max_tokens` ids, the step has at most as many, and no thread runs.
                unsafe { start.add(i).write(id) }
            })?;
        }
        let copy = |to: Option<*mut u32>, from: &[u32]| {
            if let Some(to) = to {
                // SAFETY: input buffers are as long as the limits, which the step keeps; no thread runs.
                unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
            }
        };
        copy(self.inputs.positions, &step.positions);
        copy(self.inputs.sequences, &step.sequences);
        copy(self.inputs.rows, &step.rows);
        for (to, kv) in self.inputs.slots.iter().zip(&step.kv) {
            copy(*to, &kv.slots);
        }
        for (tables, kv) in self.tables.iter_mut().zip(&step.kv) {
            tables.clear();
            tables.extend(kv.tables.iter().map(|table| table.as_ptr()));
        }
        for chunking in &mut self.program.chunkings {
            chunking.cut(&step.sequences, &step.positions);
        }
        Ok(())
    }

    /// Runs the step that is in place, and draws the tokens that it wants.
    fn run(&mut self, step: &Step) -> Result<Outcome, Error> {
        let (program, outputs) = (&self.program, &self.outputs);
        let (logits, hidden) = (&self.logits, self.hidden.as_ref());
        let (pools, samplers) = (&self.pools, &self.samplers);
        let profile = self.profile.as_ref();
        let tiles = Tiles {
            start: self.tiles.start(),
            bytes: self.tile_bytes,
        };
        self.steps += 1;
        let view = StepView {
            number: self.steps,
            tokens: step.tokens.len(),
            rows: step.rows.len(),
            logits: !Outputs::without_logits(step),
            tables: &self.tables,
        };
        let rows: Vec<Mutex<RowOutcome>> = step.rows.iter().map(|_| Mutex::default()).collect();
        self.team.run(&|member| {
            if step.kv.iter().any(|kv| !kv.copies.is_empty()) {
                for (group, kv) in step.kv.iter().enumerate() {
                    // SAFETY: `check` has found the blocks in the pools, no launch runs, and each member has its own share.
                    unsafe { pools.copy(group, &kv.copies, member.index, member.of) };
                }
                member.meet()?;
            }
            // SAFETY: the program's pointers lead into this device's memory; `check` and `place` have put a step within
            // the limits there; the team's members run it together, each with its own tile.
            unsafe { walk(program, &view, member, tiles.of(member.index), profile)? };
            if rows.is_empty() {
                return Ok(());
            }
            member.meet()?;
            let mut sampler = lock(&samplers[member.index]);
            let part = Part {
                member,
                round: view.round(program, program.launches.len()),
                rows: rows.len(),
                tile: tiles.of(member.index),
            };
            for i in part.row_pieces(1, logits.cols as u64).flatten() {
                let want = &step.wants[i];
                // SAFETY: `i` is a row of the step, and all launches have ended. Logits that no launch made in this step
                // are read by nobody, see `without_logits`.
                let (logits, hidden) = unsafe {
                    let hidden = hidden.filter(|_| want.hidden);
                    (logits.row(i), hidden.map(|hidden| hidden.row(i)))
                };
                let position = step.positions[step.rows[i] as usize] + 1;
                *lock(&rows[i]) = outputs.row(&mut sampler, want, position, logits, hidden);
            }
            Ok(())
        })?;
        let bad = program.routed.bad.swap(Routed::NONE, Ordering::Relaxed);
        if bad != Routed::NONE {
            let launch = &program.launches[(bad >> 32) as usize].name;
            return Err(router_error(launch, step, bad as u32 as usize));
        }
        let rows = rows
            .into_iter()
            .map(|row| row.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect();
        Ok(Outcome { rows })
    }
}

/// Locks a mutex that one thread at a time uses; what a panic left behind is never read.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads' tiles.
struct Tiles {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: each thread uses its own part only.
unsafe impl Sync for Tiles {}

impl Tiles {
    fn of(&self, thread: usize) -> *mut f32 {
        self.start.wrapping_add(thread * self.bytes).cast()
    }
}

impl Device for CpuDevice {
    /// Runs the step: it has ended when this returns.
    fn submit(&mut self, step: Step) -> Result<Ticket, Error> {
        let bounds = Bounds {
            limits: &self.loaded.plan().limits,
            kv_blocks: self.pools.blocks(),
            vocab: self.logits.cols as u32,
        };
        check(&step, &bounds)?;
        self.outputs.check(&step)?;
        self.place(&step)?;
        let outcome = self.run(&step)?;
        Ok(self.tickets.file(outcome))
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Option<Outcome>, Error> {
        self.tickets.fetch(ticket).map(Some)
    }

    fn kv_blocks(&self) -> &[u32] {
        self.pools.blocks()
    }

    fn kv_windows(&self) -> &[Option<u32>] {
        self.pools.windows()
    }
}

impl Inputs {
    fn find(plan: &Plan, arena: &Mapping) -> Self {
        let find = |input| {
            let buffer = plan
                .buffers
                .iter()
                .find(|b| b.place.role == Role::Input(input))?;
            Some(
                arena
                    .start()
                    .wrapping_add(buffer.place.offset as usize)
                    .cast(),
            )
        };
        Self {
            tokens: find(Input::Tokens),
            positions: find(Input::Positions),
            sequences: find(Input::Sequences),
            rows: find(Input::Rows),
            slots: (0..plan.kv.len() as u32)
                .map(|group| find(Input::Slots(group)))
                .collect(),
        }
    }
}

impl Floats {
    /// Of an output's buffer, which is f32 over rows.
    fn find(plan: &Plan, arena: &Mapping, buffer: usize) -> Self {
        let buffer = &plan.buffers[buffer];
        Self {
            start: arena
                .start()
                .wrapping_add(buffer.place.offset as usize)
                .cast_const()
                .cast(),
            stride: buffer.row_bytes() as usize / size_of::<f32>(),
            cols: buffer.cols as usize,
        }
    }

    /// # Safety
    /// `row` is one of the step's rows, and no thread writes the output while the slice lives.
    unsafe fn row(&self, row: usize) -> &[f32] {
        // SAFETY: the buffer holds `max_rows` rows; the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(row * self.stride), self.cols) }
    }
}

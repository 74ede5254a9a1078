//! Launches: what the command processor and the dispatcher do.
//!
//! # Scheduling
//!
//! Workgroups run on rayon's threads, each on one thread at a time, its waves in turn: a wave runs until it waits at a
//! barrier, sleeps, ends, or has executed some thousand instructions. A workgroup that has executed a million, or whose
//! waves sleep (`s_sleep`), goes to the end of a queue, and its thread takes another one. So waves that spin on memory
//! see others make progress, whichever workgroup these belong to, with a single thread too, as long as no more than
//! `RESIDENT` workgroups wait for each other (a real chip has such a limit as well).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::disasm::disassemble;
use crate::exec::{Checks, Env, step};
use crate::fault::{Fault, FaultKind, Trap};
use crate::kernarg;
use crate::lds::Lds;
use crate::memory::{Memory, Region, nearest};
use crate::object::Kernel;
use crate::stats::{Profile, Stats};
use crate::wave::{Mode, State, WAVE, Wave};

/// Workgroups that are started before one has ended.
const RESIDENT: usize = 160;
/// Instructions of a wave before the next wave's turn.
const WAVE_TURN: u64 = 4096;
/// Instructions of a workgroup before the next workgroup's turn.
const GROUP_TURN: u64 = 1 << 20;

/// How a launch runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Reads of memory (global, LDS, scratch) that was never written are faults.
    pub check_unwritten_memory: bool,
    /// Reads of registers that were never written are faults. Compilers may read such registers where the value doesn't
    /// matter, so this check can blame correct code; it slows waves down several times.
    pub check_unwritten_registers: bool,
    /// Races between waves on LDS are faults.
    pub check_races: bool,
    /// A wave that executes more instructions is a fault.
    pub max_instructions: u64,
}

impl Default for Options {
    /// Memory is checked, registers are not.
    fn default() -> Self {
        Self {
            check_unwritten_memory: true,
            check_unwritten_registers: false,
            check_races: true,
            max_instructions: 1 << 36,
        }
    }
}

impl Options {
    /// Bounds alone are checked: the fastest.
    pub fn fast() -> Self {
        Self {
            check_unwritten_memory: false,
            check_races: false,
            ..Self::default()
        }
    }

    /// Everything is checked.
    pub fn strict() -> Self {
        Self {
            check_unwritten_registers: true,
            ..Self::default()
        }
    }
}

/// Runs a kernel to its end: `grid` workgroups of `block` work-items, with `dynamic_lds` bytes of LDS behind what the
/// kernel declares, and the explicit arguments in `kernarg` (laid out as the metadata says; hidden ones are filled in).
pub fn launch(
    memory: &Memory,
    kernel: &Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_lds: u32,
    kernarg: &[u8],
    options: &Options,
) -> Result<Stats, Box<Fault>> {
    launch_profiled(memory, kernel, grid, block, dynamic_lds, kernarg, options)
        .map(|(stats, _)| stats)
}

/// As `launch`, with the count of each instruction.
pub fn launch_profiled(
    memory: &Memory,
    kernel: &Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_lds: u32,
    kernarg: &[u8],
    options: &Options,
) -> Result<(Stats, Profile), Box<Fault>> {
    let launch = Launch::prepare(memory, kernel, grid, block, dynamic_lds, kernarg, options)
        .map_err(|why| bad_launch(kernel, why))?;
    let threads = (launch.groups.min(rayon::current_num_threads() as u64)) as usize;
    if threads <= 1 {
        launch.work();
    } else {
        rayon::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|_| launch.work());
            }
        });
    }
    let Launch { fault, totals, .. } = launch;
    if let Some(fault) = fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(fault);
    }
    let (mut stats, profile) = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    stats.count(&kernel.code, &profile.counts);
    Ok((stats, profile))
}

fn bad_launch(kernel: &Kernel, why: String) -> Box<Fault> {
    Box::new(Fault {
        kind: FaultKind::BadLaunch(why),
        kernel: kernel.name().into(),
        workgroup: [0; 3],
        wave: 0,
        lane: None,
        work_item: None,
        pc: 0,
        function: None,
        words: Vec::new(),
        instruction: String::new(),
        address: None,
        nearest: None,
    })
}

struct Launch<'a> {
    kernel: &'a Kernel,
    regions: Vec<Arc<Region>>,
    options: &'a Options,
    grid: [u32; 3],
    block: [u32; 3],
    lds: usize,
    kernarg: u64,
    packet: u64,
    groups: u64,
    /// Workgroups started.
    next: AtomicU64,
    queue: Mutex<Queue>,
    stop: AtomicBool,
    fault: Mutex<Option<Box<Fault>>>,
    totals: Mutex<(Stats, Profile)>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Group>,
    resident: usize,
}

/// A workgroup's state.
struct Group {
    id: [u32; 3],
    waves: Vec<Wave>,
    lds: Lds,
}

enum Turn {
    Ended,
    Again,
}

impl<'a> Launch<'a> {
    fn prepare(
        memory: &Memory,
        kernel: &'a Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_lds: u32,
        kernarg: &[u8],
        options: &'a Options,
    ) -> Result<Self, String> {
        let items = block.iter().map(|&n| u64::from(n)).product::<u64>();
        let limit = u64::from(kernel.metadata.max_workgroup).min(1024);
        if items == 0 || items > limit {
            return Err(format!(
                "workgroups of {block:?} work-items, which must be 1 to {limit}"
            ));
        }
        let lds = u64::from(kernel.descriptor.group_segment_fixed_size) + u64::from(dynamic_lds);
        if lds > 65536 {
            return Err(format!(
                "{lds} bytes of LDS, of which a workgroup has at most 65536"
            ));
        }
        let groups = grid
            .iter()
            .try_fold(1u64, |n, &g| n.checked_mul(g.into()))
            .ok_or("a grid beyond 2^64 workgroups")?;
        let mut regions = memory.snapshot().to_vec();
        let arguments = kernarg::build(kernel, grid, block, dynamic_lds, kernarg)?;
        let kernarg = kernarg::region(memory, &mut regions, &arguments, "kernel arguments");
        let packet = match kernel.descriptor.user.dispatch_ptr {
            true => kernarg::region(
                memory,
                &mut regions,
                &kernarg::packet(grid, block, lds as u32, kernarg),
                "dispatch packet",
            ),
            false => 0,
        };
        Ok(Self {
            kernel,
            regions,
            options,
            grid,
            block,
            lds: lds as usize,
            kernarg,
            packet,
            groups,
            next: AtomicU64::new(0),
            queue: Mutex::default(),
            stop: AtomicBool::new(false),
            fault: Mutex::new(None),
            totals: Mutex::default(),
        })
    }

    /// One thread's work: workgroups until there are none.
    fn work(&self) {
        let mut counts = vec![0u64; self.kernel.code.insts().len()];
        let mut stats = Stats::default();
        let mut free: Option<Group> = None;
        while !self.stop.load(Ordering::Relaxed)
            && let Some(mut group) = self.take(&mut free)
        {
            match self.turn(&mut group, &mut counts) {
                Ok(Turn::Ended) => {
                    stats.workgroups += 1;
                    stats.waves += group.waves.len() as u64;
                    for wave in &group.waves {
                        stats.bytes_loaded += wave.traffic[0];
                        stats.bytes_stored += wave.traffic[1];
                        stats.longest_wave = stats.longest_wave.max(wave.executed);
                    }
                    self.queue
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .resident -= 1;
                    free = Some(group);
                }
                Ok(Turn::Again) => self
                    .queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .waiting
                    .push_back(group),
                Err(fault) => {
                    self.stop.store(true, Ordering::Relaxed);
                    self.fault
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(fault);
                }
            }
        }
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.0.add(&stats);
        totals.1.counts.resize(counts.len(), 0);
        for (total, n) in totals.1.counts.iter_mut().zip(counts) {
            *total += n;
        }
    }

    /// A new workgroup while there is room, or else the one that has waited longest.
    fn take(&self, free: &mut Option<Group>) -> Option<Group> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.resident < RESIDENT {
            let n = self.next.load(Ordering::Relaxed);
            if n < self.groups {
                // The lock orders threads.
                self.next.store(n + 1, Ordering::Relaxed);
                queue.resident += 1;
                drop(queue);
                return Some(self.start(n, free.take()));
            }
        }
        queue.waiting.pop_front()
    }

    fn start(&self, n: u64, free: Option<Group>) -> Group {
        let [x, y, _] = self.grid.map(u64::from);
        let id = [(n % x) as u32, (n / x % y) as u32, (n / x / y) as u32];
        let items = self.block.iter().product::<u32>();
        let mut group = free.unwrap_or_else(|| self.allocate(items.div_ceil(WAVE as u32)));
        group.id = id;
        group.lds.clear();
        for (wave, at) in group.waves.iter_mut().zip(0..) {
            self.set_up(wave, at, id, items);
        }
        group
    }

    fn allocate(&self, waves: u32) -> Group {
        let Options {
            check_unwritten_memory,
            check_unwritten_registers,
            check_races,
            ..
        } = *self.options;
        let scratch = self.kernel.descriptor.private_segment_fixed_size as usize * WAVE;
        // Scratch's written bytes are kept with the registers'.
        let tracked = check_unwritten_registers || (check_unwritten_memory && scratch > 0);
        Group {
            id: [0; 3],
            waves: (0..waves).map(|_| Wave::new(tracked, scratch)).collect(),
            // A single wave races with nobody.
            lds: Lds::new(self.lds, check_unwritten_memory, check_races && waves > 1),
        }
    }

    /// The registers that a wave starts with.
    fn set_up(&self, wave: &mut Wave, at: u32, group: [u32; 3], items: u32) {
        let descriptor = &self.kernel.descriptor;
        wave.reset(at, descriptor.vgprs as usize);
        wave.pc = self
            .kernel
            .code
            .at_dword(self.kernel.entry as i64)
            .unwrap_or(usize::MAX);
        wave.mode = Mode(descriptor.mode);
        let mut next = 0u8;
        let set = |wave: &mut Wave, next: &mut u8, value: u32| {
            wave.set_s(*next, value);
            if let Some(written) = &mut wave.written {
                written.s |= 1 << *next;
            }
            *next += 1;
        };
        let user = descriptor.user;
        let pairs = [
            (user.private_segment_buffer, &[0, 0][..]),
            (user.dispatch_ptr, &[self.packet]),
            (user.queue_ptr, &[0]),
            (user.kernarg_ptr, &[self.kernarg]),
            (user.dispatch_id, &[0]),
            (user.flat_scratch_init, &[0]),
        ];
        for value in pairs
            .into_iter()
            .filter(|(on, _)| *on)
            .flat_map(|(_, values)| values)
        {
            set(wave, &mut next, *value as u32);
            set(wave, &mut next, (*value >> 32) as u32);
        }
        if user.private_segment_size {
            set(wave, &mut next, descriptor.private_segment_fixed_size);
        }
        next = descriptor.user_sgprs as u8;
        for axis in 0..3 {
            if descriptor.workgroup_ids[axis] {
                set(wave, &mut next, group[axis]);
            }
        }
        if descriptor.workgroup_info {
            set(wave, &mut next, 0);
        }
        let first = at * WAVE as u32;
        let mut exec = 0;
        for lane in 0..WAVE as u32 {
            let item = first + lane;
            if item >= items {
                break;
            }
            exec |= 1 << lane;
            let [x, y, z] = self.work_item(item);
            wave.v[0][lane as usize] = match descriptor.work_item_ids {
                0 => x,
                1 => x | y << 10,
                _ => x | y << 10 | z << 20,
            };
        }
        wave.set_s(crate::isa::sreg::EXEC, exec);
        wave.s[127] = 0;
        if let Some(written) = &mut wave.written {
            written.v[0] = u32::MAX;
        }
    }

    fn work_item(&self, item: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [item % x, item / x % y, item / x / y]
    }

    /// Runs a workgroup for its turn.
    fn turn(&self, group: &mut Group, counts: &mut [u64]) -> Result<Turn, Box<Fault>> {
        let Group { id, waves, lds } = group;
        let Options {
            check_unwritten_memory,
            check_unwritten_registers,
            check_races,
            max_instructions,
        } = *self.options;
        let checks = Checks {
            unwritten_memory: check_unwritten_memory,
            races: check_races,
        };
        let mut env = Env {
            code: &self.kernel.code,
            regions: &self.regions,
            lds,
            checks,
        };
        let mut spent = 0;
        loop {
            let mut sleeping = false;
            for wave in waves.iter_mut().filter(|wave| wave.state == State::Running) {
                let before = wave.executed;
                let outcome = match check_unwritten_registers {
                    false => run::<false>(wave, &mut env, counts),
                    true => run::<true>(wave, &mut env, counts),
                };
                spent += wave.executed - before;
                if let Err((trap, pc)) = outcome {
                    return Err(self.locate(*trap, *id, wave, pc));
                }
                if wave.executed > max_instructions {
                    let trap = Trap::new(FaultKind::Endless(max_instructions));
                    return Err(self.locate(*trap, *id, wave, wave.pc));
                }
                sleeping |= std::mem::take(&mut wave.yields);
            }
            if waves.iter().all(|wave| wave.state == State::Ended) {
                return Ok(Turn::Ended);
            }
            // Waves that have ended don't hold up a barrier.
            if waves.iter().all(|wave| wave.state != State::Running) {
                for wave in waves
                    .iter_mut()
                    .filter(|wave| wave.state == State::AtBarrier)
                {
                    wave.state = State::Running;
                    wave.barriers += 1;
                }
            }
            if spent > GROUP_TURN || sleeping || self.stop.load(Ordering::Relaxed) {
                return Ok(Turn::Again);
            }
        }
    }

    /// Where a trap happened.
    fn locate(&self, trap: Trap, group: [u32; 3], wave: &Wave, pc: usize) -> Box<Fault> {
        let code = &self.kernel.code;
        let inst = code.insts().get(pc);
        let address = code.base() + inst.map_or(0, |inst| 4 * u64::from(inst.at));
        let global = matches!(
            trap.kind,
            FaultKind::GlobalOutOfBounds { .. }
                | FaultKind::ReadOnly { .. }
                | FaultKind::UnwrittenGlobal { .. }
        );
        Box::new(Fault {
            kernel: self.kernel.name().into(),
            workgroup: group,
            wave: wave.id,
            lane: trap.lane,
            work_item: trap
                .lane
                .map(|lane| self.work_item(wave.id * WAVE as u32 + lane)),
            pc: address,
            function: code
                .function_at(address)
                .map(|(name, offset)| (name.into(), offset)),
            words: inst.map_or(Vec::new(), |inst| {
                inst.words[..usize::from(inst.len)].to_vec()
            }),
            instruction: inst.map_or_else(|| "(no instruction)".into(), disassemble),
            address: trap.address,
            nearest: trap
                .address
                .filter(|_| global)
                .and_then(|address| nearest(&self.regions, address)),
            kind: trap.kind,
        })
    }
}

/// Runs a wave for its turn, with registers checked or not. A trap comes with the number of its instruction.
fn run<const CHECKED: bool>(
    wave: &mut Wave,
    env: &mut Env,
    counts: &mut [u64],
) -> Result<(), (Box<Trap>, usize)> {
    let insts = env.code.insts();
    let operands = if CHECKED { env.code.operands() } else { &[] };
    let mut left = WAVE_TURN;
    while wave.state == State::Running && left > 0 {
        let pc = wave.pc;
        let Some(inst) = insts.get(pc) else {
            return Err((off_the_end(env), pc));
        };
        counts[pc] += 1;
        left -= 1;
        wave.pc = pc + 1;
        let exec = wave.exec();
        if CHECKED {
            operands[pc].check(wave).map_err(|trap| (trap, pc))?;
        }
        step(wave, env, inst).map_err(|trap| (trap, pc))?;
        if CHECKED {
            operands[pc].mark(wave, exec);
        }
        if wave.yields {
            break;
        }
    }
    wave.executed += WAVE_TURN - left;
    Ok(())
}

fn off_the_end(env: &Env) -> Box<Trap> {
    let code = env.code;
    Trap::new(FaultKind::BadJump {
        target: code.base() + 4 * code.len() as u64,
    })
}

//! What a launch executed: the inputs of a performance model.

use crate::code::Code;
use crate::disasm::mnemonic;
use crate::exec::is_transcendental;
use crate::isa::{Inst, Kind, Vop3p};
use crate::memory_op::{FlatOp, flat_op};

/// Instructions that waves issued, and memory that lanes touched. A VOPD counts once, as `dual`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Workgroups and waves.
    pub workgroups: u64,
    /// Waves.
    pub waves: u64,
    /// All instructions of all waves.
    pub instructions: u64,
    /// By class.
    pub classes: Classes,
    /// Bytes of global memory that active lanes loaded; lanes that load the same byte all count.
    pub bytes_loaded: u64,
    /// Bytes of global memory that active lanes stored.
    pub bytes_stored: u64,
    /// The most instructions of one wave.
    pub longest_wave: u64,
}

/// Instructions by the unit that they occupy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// Scalar arithmetic.
    pub salu: u64,
    /// Branches, waits, barriers, hints.
    pub control: u64,
    /// Scalar loads.
    pub smem: u64,
    /// Vector arithmetic but for what follows.
    pub valu: u64,
    /// VOPD: two operations.
    pub dual: u64,
    /// Transcendentals, at a quarter of the rate.
    pub transcendental: u64,
    /// Dot products of integers and floats.
    pub dot: u64,
    /// Matrices.
    pub wmma: u64,
    /// Loads from global memory and scratch.
    pub vmem_load: u64,
    /// Stores to them.
    pub vmem_store: u64,
    /// Atomics on global memory.
    pub vmem_atomic: u64,
    /// LDS.
    pub lds: u64,
    /// Barriers, also in `control`.
    pub barriers: u64,
}

impl Classes {
    fn count(&mut self, inst: &Inst, n: u64) {
        let class = match &inst.kind {
            Kind::Sop1 { .. }
            | Kind::Sop2 { .. }
            | Kind::Sopc { .. }
            | Kind::Sopk { .. }
            | Kind::SopConst { .. } => &mut self.salu,
            Kind::Sopp { op, .. } => {
                if *op == crate::isa::Sopp::Barrier {
                    self.barriers += n;
                }
                &mut self.control
            }
            Kind::Smem { .. } => &mut self.smem,
            Kind::Dual(..) => &mut self.dual,
            Kind::Vector(v) if is_transcendental(v.op) => &mut self.transcendental,
            Kind::Vector(_) | Kind::Compare(_) => &mut self.valu,
            Kind::Packed(p) if p.op as u16 >= Vop3p::WmmaF3216x16x16F16 as u16 => &mut self.wmma,
            Kind::Packed(p) if p.op.name().starts_with("v_dot") => &mut self.dot,
            Kind::Packed(_) => &mut self.valu,
            Kind::Flat(f) => match flat_op(f.op) {
                FlatOp::Load(_) => &mut self.vmem_load,
                FlatOp::Store(_) => &mut self.vmem_store,
                FlatOp::Atomic(_) => &mut self.vmem_atomic,
            },
            Kind::Ds(_) => &mut self.lds,
            Kind::CacheInvalidate(_) | Kind::Unknown => &mut self.control,
        };
        *class += n;
    }
}

impl Stats {
    /// Adds what the instructions of `code` were executed.
    pub(crate) fn count(&mut self, code: &Code, counts: &[u64]) {
        for (inst, &n) in code.insts().iter().zip(counts).filter(|(_, n)| **n > 0) {
            self.instructions += n;
            self.classes.count(inst, n);
        }
    }

    /// Adds another launch.
    pub fn add(&mut self, other: &Self) {
        let Self {
            workgroups,
            waves,
            instructions,
            classes,
            bytes_loaded,
            bytes_stored,
            longest_wave,
        } = other;
        self.workgroups += workgroups;
        self.waves += waves;
        self.instructions += instructions;
        self.bytes_loaded += bytes_loaded;
        self.bytes_stored += bytes_stored;
        self.longest_wave = self.longest_wave.max(*longest_wave);
        let (to, from) = (self.classes.fields(), classes);
        let mut from = *from;
        for (to, from) in to.into_iter().zip(from.fields()) {
            *to += *from;
        }
    }
}

impl Classes {
    fn fields(&mut self) -> [&mut u64; 13] {
        let Self {
            salu,
            control,
            smem,
            valu,
            dual,
            transcendental,
            dot,
            wmma,
            vmem_load,
            vmem_store,
            vmem_atomic,
            lds,
            barriers,
        } = self;
        [
            salu,
            control,
            smem,
            valu,
            dual,
            transcendental,
            dot,
            wmma,
            vmem_load,
            vmem_store,
            vmem_atomic,
            lds,
            barriers,
        ]
    }
}

/// How often each instruction of a kernel's code was issued: where its time goes.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    pub(crate) counts: Vec<u64>,
}

impl Profile {
    /// The `most` issued instructions: count, byte offset in the code, mnemonic.
    pub fn hottest(&self, code: &Code, most: usize) -> Vec<(u64, u32, String)> {
        let mut all: Vec<_> = code
            .insts()
            .iter()
            .zip(&self.counts)
            .filter(|(_, n)| **n > 0)
            .collect();
        all.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        all.into_iter()
            .take(most)
            .map(|(inst, &n)| (n, 4 * inst.at, mnemonic(inst)))
            .collect()
    }
}

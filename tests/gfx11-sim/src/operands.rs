//! Which registers an instruction reads and writes, and the check that what it reads was written.

use crate::disasm::{sop1_widths, sop2_widths};
use crate::fault::{Exec, FaultKind, Trap};
use crate::isa::{
    Condition, DsInst, FlatInst, Kind, Segment, Smem, Sop1, SopConst, Sopk, Src, Ty, Vector, Vop,
    packed_signature, sreg, vector_signature,
};
use crate::memory_op::{DsOp, FlatOp, ds_op, flat_op};
use crate::wave::{REARRANGED, Wave};

/// Registers of one instruction: first and count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operands {
    vector_reads: Vec<(u16, u8)>,
    vector_writes: Vec<(u16, u8)>,
    scalar_reads: Vec<(u8, u8)>,
    scalar_writes: Vec<(u8, u8)>,
    /// EXEC doesn't matter: matrices, `v_writelane`.
    whole_wave: bool,
    /// Lanes other than the active ones matter, which aren't known: no check of vector sources.
    unknown_lanes: bool,
}

impl Operands {
    pub fn of(kind: &Kind) -> Self {
        let mut out = Self::default();
        match *kind {
            Kind::Vector(v) => out.vector(&v),
            Kind::Dual(x, y) => {
                out.vector(&x);
                out.vector(&y);
            }
            Kind::Compare(c) => {
                let second = if c.op.condition == Condition::Class {
                    Ty::B32
                } else {
                    c.op.ty
                };
                out.read(c.src[0], c.op.ty.registers());
                out.read(c.src[1], second.registers());
                out.scalar_writes
                    .push((if c.op.exec { sreg::EXEC } else { c.dst }, 1));
                out.unknown_lanes = c.dpp.is_some();
            }
            Kind::Packed(p) => {
                let (dst, src) = packed_signature(p.op);
                for (source, n) in p.src.into_iter().zip(src).filter(|(_, n)| *n > 0) {
                    out.read(source, n);
                }
                out.vector_writes.push((p.dst.into(), dst));
                out.whole_wave = dst > 1;
                out.unknown_lanes = p.dpp.is_some();
            }
            Kind::Flat(f) => out.flat(&f),
            Kind::Ds(d) => out.ds(&d),
            Kind::Smem {
                op,
                dst,
                base,
                soffset,
                ..
            } => {
                let count = match op {
                    Smem::LoadB32 => 1,
                    Smem::LoadB64 => 2,
                    Smem::LoadB128 => 4,
                    Smem::LoadB256 => 8,
                    Smem::LoadB512 => 16,
                    _ => return out,
                };
                out.scalar_reads.extend([(base, 2), (soffset, 1)]);
                out.scalar_writes.push((dst, count));
            }
            Kind::Sop2 { op, dst, a, b } => {
                let (to, x, y) = sop2_widths(op);
                out.read(a, x);
                out.read(b, y);
                if op.name().starts_with("s_fmac") {
                    out.scalar_reads.push((dst, 1));
                }
                out.scalar_writes.push((dst, to));
            }
            Kind::Sop1 { op, dst, src } => {
                let (to, from) = sop1_widths(op);
                if op != Sop1::GetpcB64 {
                    out.read(src, from);
                }
                if !matches!(op, Sop1::SetpcB64 | Sop1::RfeB64) {
                    out.scalar_writes.push((dst, to));
                }
            }
            Kind::Sopc { op, a, b } => {
                let wide = op.name().ends_with("64");
                out.read(a, 1 + u8::from(wide));
                out.read(b, 1 + u8::from(op.name().ends_with("u64")));
            }
            Kind::Sopk { op, dst, .. } => match op {
                Sopk::MovkI32 | Sopk::GetregB32 => out.scalar_writes.push((dst, 1)),
                Sopk::CallB64 => out.scalar_writes.push((dst, 2)),
                Sopk::AddkI32 | Sopk::MulkI32 => {
                    out.scalar_reads.push((dst, 1));
                    out.scalar_writes.push((dst, 1));
                }
                Sopk::CmovkI32 => out.scalar_writes.push((dst, 1)),
                Sopk::Version
                | Sopk::WaitcntVscnt
                | Sopk::WaitcntVmcnt
                | Sopk::WaitcntExpcnt
                | Sopk::WaitcntLgkmcnt => {}
                Sopk::SubvectorLoopBegin | Sopk::SubvectorLoopEnd => {}
                _ => out.scalar_reads.push((dst, 1)),
            },
            Kind::SopConst { op, dst, a, b, .. } if op != SopConst::SetregImm32B32 => {
                out.read(a, 1);
                out.read(b, 1);
                out.scalar_writes.push((dst, 1));
            }
            Kind::SopConst { .. }
            | Kind::Sopp { .. }
            | Kind::CacheInvalidate(_)
            | Kind::Unknown => {}
        }
        out
    }

    fn read(&mut self, src: Src, count: u8) {
        match src {
            Src::V(n) if n < REARRANGED => self.vector_reads.push((n, count)),
            Src::S(n) => self.scalar_reads.push((n, count)),
            _ => {}
        }
    }

    fn vector(&mut self, inst: &Vector) {
        let sig = vector_signature(inst.op);
        // x ^ x, x - x and the like have a value whatever x is.
        let same = inst.src[0] == inst.src[1] && matches!(inst.op, Vop::XorB32 | Vop::SubNcU32);
        for (src, ty) in inst
            .src
            .into_iter()
            .zip(sig.src)
            .filter(|(_, ty)| *ty != Ty::None && !same)
        {
            self.read(src, ty.registers());
        }
        let lanes_move = matches!(
            inst.op,
            Vop::ReadlaneB32 | Vop::ReadfirstlaneB32 | Vop::Permlane16B32 | Vop::Permlanex16B32
        );
        self.unknown_lanes |= inst.dpp.is_some() || lanes_move;
        match (inst.op, sig.dst) {
            (_, Ty::None) => {}
            (_, Ty::Scalar) => self.scalar_writes.push((inst.dst, 1)),
            // The old value matters only where nothing is written.
            (Vop::WritelaneB32, _) => {
                self.whole_wave = true;
                self.vector_writes.push((inst.dst.into(), 1));
            }
            (Vop::Permlane16B32 | Vop::Permlanex16B32, ty) => {
                self.vector_writes.push((inst.dst.into(), ty.registers()))
            }
            (op, ty) => {
                if sig.reads_dst {
                    self.vector_reads.push((inst.dst.into(), ty.registers()));
                }
                self.vector_writes.push((inst.dst.into(), ty.registers()));
                if let (Vop::SwapB32, Src::V(n)) = (op, inst.src[0]) {
                    self.vector_writes.push((n, 1));
                }
            }
        }
        if sig.sdst {
            self.scalar_writes.push((inst.sdst, 1));
        }
    }

    fn flat(&mut self, inst: &FlatInst) {
        match inst.segment {
            Segment::Scratch if inst.vaddr_enable => self.vector_reads.push((inst.addr.into(), 1)),
            Segment::Scratch => {}
            Segment::Global if inst.saddr != sreg::NULL => {
                self.vector_reads.push((inst.addr.into(), 1))
            }
            _ => self.vector_reads.push((inst.addr.into(), 2)),
        }
        if inst.segment != Segment::Flat && inst.saddr != sreg::NULL {
            self.scalar_reads.push((
                inst.saddr,
                if inst.segment == Segment::Global {
                    2
                } else {
                    1
                },
            ));
        }
        match flat_op(inst.op) {
            FlatOp::Load(op) => self.vector_writes.push((inst.dst.into(), op.registers())),
            FlatOp::Store(op) => self.vector_reads.push((inst.data.into(), op.registers())),
            FlatOp::Atomic(op) => {
                self.vector_reads
                    .push((inst.data.into(), op.data_registers()));
                if inst.glc {
                    self.vector_writes.push((inst.dst.into(), op.registers()));
                }
            }
        }
    }

    fn ds(&mut self, inst: &DsInst) {
        let (addr, data0, data1, dst) = (
            inst.addr.into(),
            inst.data0.into(),
            inst.data1.into(),
            inst.dst.into(),
        );
        match ds_op(inst.op) {
            DsOp::Load(op) => {
                self.vector_reads.push((addr, 1));
                self.vector_writes.push((dst, op.registers()));
            }
            DsOp::Store(op) => self
                .vector_reads
                .extend([(addr, 1), (data0, op.registers())]),
            DsOp::Load2 { bytes, .. } => {
                self.vector_reads.push((addr, 1));
                self.vector_writes.push((dst, bytes / 2));
            }
            DsOp::Store2 { bytes, .. } => {
                self.vector_reads
                    .extend([(addr, 1), (data0, bytes / 4), (data1, bytes / 4)])
            }
            DsOp::Atomic { atomic, returns } => {
                let n = atomic.registers();
                self.vector_reads.extend([(addr, 1), (data0, n)]);
                if atomic.data_registers() > n {
                    self.vector_reads.push((data1, n));
                }
                if returns {
                    self.vector_writes.push((dst, n));
                }
            }
            DsOp::Permute { .. } => {
                self.vector_reads.extend([(addr, 1), (data0, 1)]);
                self.vector_writes.push((dst, 1));
            }
            DsOp::Swizzle => {
                self.vector_reads.push((addr, 1));
                self.vector_writes.push((dst, 1));
            }
            DsOp::AddtidLoad => self.vector_writes.push((dst, 1)),
            DsOp::AddtidStore => self.vector_reads.push((data0, 1)),
            DsOp::Counter { .. } | DsOp::Nop | DsOp::Other => {}
        }
    }

    /// Before the instruction: all that it reads was written.
    pub fn check(&self, wave: &Wave) -> Exec {
        let Some(written) = &wave.written else {
            return Ok(());
        };
        for &(first, count) in &self.scalar_reads {
            for n in first..first.saturating_add(count) {
                // NULL and EXEC are always defined, and what is no SGPR is not tracked.
                if n < 106 && written.s >> n & 1 == 0 {
                    return Err(Trap::new(FaultKind::UnwrittenRegister(format!("s{n}"))));
                }
            }
        }
        if self.unknown_lanes {
            return Ok(());
        }
        let lanes = if self.whole_wave {
            u32::MAX
        } else {
            wave.exec()
        };
        for &(first, count) in &self.vector_reads {
            for n in first..first + u16::from(count) {
                let missing = lanes & !written.v[usize::from(n)];
                if missing != 0 {
                    let lane = Some(missing.trailing_zeros());
                    let kind = FaultKind::UnwrittenRegister(format!("v{n}"));
                    return Err(Box::new(Trap {
                        kind,
                        lane,
                        address: None,
                    }));
                }
            }
        }
        Ok(())
    }

    /// Behind the instruction: what it wrote. `exec` is EXEC as it was before.
    pub fn mark(&self, wave: &mut Wave, exec: u32) {
        let Some(written) = &mut wave.written else {
            return;
        };
        let lanes = if self.whole_wave { u32::MAX } else { exec };
        for &(first, count) in &self.vector_writes {
            for n in first..first + u16::from(count) {
                written.v[usize::from(n)] |= lanes;
            }
        }
        for &(first, count) in &self.scalar_writes {
            for n in first..first.saturating_add(count) {
                written.s |= 1 << (n & 127);
            }
        }
    }
}

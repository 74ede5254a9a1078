//! What memory opcodes mean: widths, signs, halves, and the operation of an atomic. FLAT and DS share the meanings.

use crate::isa::{Ds, Flat};

/// A load into registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Bytes read by a lane.
    pub bytes: u8,
    /// A narrow value keeps its sign.
    pub signed: bool,
    /// A narrow value goes to half a register and leaves the other half.
    pub half: Half,
}

/// Which half of a register a narrow value concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// All of the register is written.
    Whole,
    /// Bits 0..16.
    Low,
    /// Bits 16..32.
    High,
}

/// A store from registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Bytes written by a lane.
    pub bytes: u8,
    /// A narrow value comes from bits 16..32.
    pub high: bool,
}

/// An atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atomic {
    /// The operation.
    pub op: AtomicOp,
    /// 8 bytes rather than 4.
    pub wide: bool,
}

/// What an atomic does to memory, given its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AtomicOp {
    Swap,
    /// Compares with the second of the data, stores the first.
    CompareSwap,
    CompareSwapFloat,
    Add,
    Sub,
    ReverseSub,
    /// Subtracts, not below zero.
    ClampedSub,
    MinSigned,
    MinUnsigned,
    MaxSigned,
    MaxUnsigned,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    AddFloat,
    MinFloat,
    MaxFloat,
}

impl Load {
    /// Registers written.
    pub fn registers(self) -> u8 {
        self.bytes.div_ceil(4)
    }
}

impl Store {
    /// Registers read.
    pub fn registers(self) -> u8 {
        self.bytes.div_ceil(4)
    }
}

impl Atomic {
    /// Registers of one value.
    pub fn registers(self) -> u8 {
        1 + u8::from(self.wide)
    }

    /// Registers of all the data.
    pub fn data_registers(self) -> u8 {
        match self.op {
            AtomicOp::CompareSwap | AtomicOp::CompareSwapFloat => 2 * self.registers(),
            _ => self.registers(),
        }
    }
}

/// A FLAT operation's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FlatOp {
    Load(Load),
    Store(Store),
    Atomic(Atomic),
}

fn load(bytes: u8, signed: bool, half: Half) -> Load {
    Load {
        bytes,
        signed,
        half,
    }
}

/// The meaning of a FLAT, GLOBAL or SCRATCH opcode.
pub fn flat_op(op: Flat) -> FlatOp {
    use AtomicOp as A;
    use Flat as F;
    use Half::*;
    let l = |bytes, signed, half| FlatOp::Load(load(bytes, signed, half));
    let s = |bytes, high| FlatOp::Store(Store { bytes, high });
    let a = |op, wide| FlatOp::Atomic(Atomic { op, wide });
    match op {
        F::LoadU8 => l(1, false, Whole),
        F::LoadI8 => l(1, true, Whole),
        F::LoadU16 => l(2, false, Whole),
        F::LoadI16 => l(2, true, Whole),
        F::LoadB32 | F::LoadAddtidB32 => l(4, false, Whole),
        F::LoadB64 => l(8, false, Whole),
        F::LoadB96 => l(12, false, Whole),
        F::LoadB128 => l(16, false, Whole),
        F::LoadD16U8 => l(1, false, Low),
        F::LoadD16I8 => l(1, true, Low),
        F::LoadD16B16 => l(2, false, Low),
        F::LoadD16HiU8 => l(1, false, High),
        F::LoadD16HiI8 => l(1, true, High),
        F::LoadD16HiB16 => l(2, false, High),
        F::StoreB8 => s(1, false),
        F::StoreB16 => s(2, false),
        F::StoreB32 | F::StoreAddtidB32 => s(4, false),
        F::StoreB64 => s(8, false),
        F::StoreB96 => s(12, false),
        F::StoreB128 => s(16, false),
        F::StoreD16HiB8 => s(1, true),
        F::StoreD16HiB16 => s(2, true),
        F::AtomicSwapB32 => a(A::Swap, false),
        F::AtomicCmpswapB32 => a(A::CompareSwap, false),
        F::AtomicAddU32 => a(A::Add, false),
        F::AtomicSubU32 => a(A::Sub, false),
        F::AtomicCsubU32 => a(A::ClampedSub, false),
        F::AtomicMinI32 => a(A::MinSigned, false),
        F::AtomicMinU32 => a(A::MinUnsigned, false),
        F::AtomicMaxI32 => a(A::MaxSigned, false),
        F::AtomicMaxU32 => a(A::MaxUnsigned, false),
        F::AtomicAndB32 => a(A::And, false),
        F::AtomicOrB32 => a(A::Or, false),
        F::AtomicXorB32 => a(A::Xor, false),
        F::AtomicIncU32 => a(A::Inc, false),
        F::AtomicDecU32 => a(A::Dec, false),
        F::AtomicSwapB64 => a(A::Swap, true),
        F::AtomicCmpswapB64 => a(A::CompareSwap, true),
        F::AtomicAddU64 => a(A::Add, true),
        F::AtomicSubU64 => a(A::Sub, true),
        F::AtomicMinI64 => a(A::MinSigned, true),
        F::AtomicMinU64 => a(A::MinUnsigned, true),
        F::AtomicMaxI64 => a(A::MaxSigned, true),
        F::AtomicMaxU64 => a(A::MaxUnsigned, true),
        F::AtomicAndB64 => a(A::And, true),
        F::AtomicOrB64 => a(A::Or, true),
        F::AtomicXorB64 => a(A::Xor, true),
        F::AtomicIncU64 => a(A::Inc, true),
        F::AtomicDecU64 => a(A::Dec, true),
        F::AtomicCmpswapF32 => a(A::CompareSwapFloat, false),
        F::AtomicMinF32 => a(A::MinFloat, false),
        F::AtomicMaxF32 => a(A::MaxFloat, false),
        F::AtomicAddF32 => a(A::AddFloat, false),
    }
}

/// A DS operation's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DsOp {
    Load(Load),
    Store(Store),
    /// Two values of `bytes`, at offsets in units of `unit` bytes.
    Load2 {
        bytes: u8,
        unit: u32,
    },
    Store2 {
        bytes: u8,
        unit: u32,
    },
    Atomic {
        atomic: Atomic,
        returns: bool,
    },
    /// Lanes exchange registers without touching memory.
    Permute {
        backward: bool,
    },
    Swizzle,
    AddtidLoad,
    AddtidStore,
    /// `ds_append`, `ds_consume`: a counter moves by the number of active lanes.
    Counter {
        up: bool,
    },
    Nop,
    /// Known by name only.
    Other,
}

/// The meaning of a DS opcode.
pub fn ds_op(op: Ds) -> DsOp {
    use AtomicOp as A;
    use Ds as D;
    use Half::*;
    let l = |bytes, signed, half| DsOp::Load(load(bytes, signed, half));
    let s = |bytes, high| DsOp::Store(Store { bytes, high });
    let a = |op| DsOp::Atomic {
        atomic: Atomic { op, wide: false },
        returns: false,
    };
    let ar = |op| DsOp::Atomic {
        atomic: Atomic { op, wide: false },
        returns: true,
    };
    let b = |op| DsOp::Atomic {
        atomic: Atomic { op, wide: true },
        returns: false,
    };
    let br = |op| DsOp::Atomic {
        atomic: Atomic { op, wide: true },
        returns: true,
    };
    match op {
        D::LoadB32 => l(4, false, Whole),
        D::LoadI8 => l(1, true, Whole),
        D::LoadU8 => l(1, false, Whole),
        D::LoadI16 => l(2, true, Whole),
        D::LoadU16 => l(2, false, Whole),
        D::LoadB64 => l(8, false, Whole),
        D::LoadB96 => l(12, false, Whole),
        D::LoadB128 => l(16, false, Whole),
        D::LoadU8D16 => l(1, false, Low),
        D::LoadU8D16Hi => l(1, false, High),
        D::LoadI8D16 => l(1, true, Low),
        D::LoadI8D16Hi => l(1, true, High),
        D::LoadU16D16 => l(2, false, Low),
        D::LoadU16D16Hi => l(2, false, High),
        D::StoreB8 => s(1, false),
        D::StoreB16 => s(2, false),
        D::StoreB32 => s(4, false),
        D::StoreB64 => s(8, false),
        D::StoreB96 => s(12, false),
        D::StoreB128 => s(16, false),
        D::StoreB8D16Hi => s(1, true),
        D::StoreB16D16Hi => s(2, true),
        D::Load2addrB32 => DsOp::Load2 { bytes: 4, unit: 4 },
        D::Load2addrStride64B32 => DsOp::Load2 {
            bytes: 4,
            unit: 256,
        },
        D::Load2addrB64 => DsOp::Load2 { bytes: 8, unit: 8 },
        D::Load2addrStride64B64 => DsOp::Load2 {
            bytes: 8,
            unit: 512,
        },
        D::Store2addrB32 => DsOp::Store2 { bytes: 4, unit: 4 },
        D::Store2addrStride64B32 => DsOp::Store2 {
            bytes: 4,
            unit: 256,
        },
        D::Store2addrB64 => DsOp::Store2 { bytes: 8, unit: 8 },
        D::Store2addrStride64B64 => DsOp::Store2 {
            bytes: 8,
            unit: 512,
        },
        D::AddU32 => a(A::Add),
        D::SubU32 => a(A::Sub),
        D::RsubU32 => a(A::ReverseSub),
        D::IncU32 => a(A::Inc),
        D::DecU32 => a(A::Dec),
        D::MinI32 => a(A::MinSigned),
        D::MaxI32 => a(A::MaxSigned),
        D::MinU32 => a(A::MinUnsigned),
        D::MaxU32 => a(A::MaxUnsigned),
        D::AndB32 => a(A::And),
        D::OrB32 => a(A::Or),
        D::XorB32 => a(A::Xor),
        D::CmpstoreB32 => a(A::CompareSwap),
        D::CmpstoreF32 => a(A::CompareSwapFloat),
        D::MinF32 => a(A::MinFloat),
        D::MaxF32 => a(A::MaxFloat),
        D::AddF32 => a(A::AddFloat),
        D::AddRtnU32 => ar(A::Add),
        D::SubRtnU32 => ar(A::Sub),
        D::RsubRtnU32 => ar(A::ReverseSub),
        D::IncRtnU32 => ar(A::Inc),
        D::DecRtnU32 => ar(A::Dec),
        D::MinRtnI32 => ar(A::MinSigned),
        D::MaxRtnI32 => ar(A::MaxSigned),
        D::MinRtnU32 => ar(A::MinUnsigned),
        D::MaxRtnU32 => ar(A::MaxUnsigned),
        D::AndRtnB32 => ar(A::And),
        D::OrRtnB32 => ar(A::Or),
        D::XorRtnB32 => ar(A::Xor),
        D::StorexchgRtnB32 => ar(A::Swap),
        D::CmpstoreRtnB32 => ar(A::CompareSwap),
        D::CmpstoreRtnF32 => ar(A::CompareSwapFloat),
        D::MinRtnF32 => ar(A::MinFloat),
        D::MaxRtnF32 => ar(A::MaxFloat),
        D::AddRtnF32 => ar(A::AddFloat),
        D::AddU64 => b(A::Add),
        D::SubU64 => b(A::Sub),
        D::RsubU64 => b(A::ReverseSub),
        D::IncU64 => b(A::Inc),
        D::DecU64 => b(A::Dec),
        D::MinI64 => b(A::MinSigned),
        D::MaxI64 => b(A::MaxSigned),
        D::MinU64 => b(A::MinUnsigned),
        D::MaxU64 => b(A::MaxUnsigned),
        D::AndB64 => b(A::And),
        D::OrB64 => b(A::Or),
        D::XorB64 => b(A::Xor),
        D::CmpstoreB64 => b(A::CompareSwap),
        D::CmpstoreF64 => b(A::CompareSwapFloat),
        D::MinF64 => b(A::MinFloat),
        D::MaxF64 => b(A::MaxFloat),
        D::AddRtnU64 => br(A::Add),
        D::SubRtnU64 => br(A::Sub),
        D::RsubRtnU64 => br(A::ReverseSub),
        D::IncRtnU64 => br(A::Inc),
        D::DecRtnU64 => br(A::Dec),
        D::MinRtnI64 => br(A::MinSigned),
        D::MaxRtnI64 => br(A::MaxSigned),
        D::MinRtnU64 => br(A::MinUnsigned),
        D::MaxRtnU64 => br(A::MaxUnsigned),
        D::AndRtnB64 => br(A::And),
        D::OrRtnB64 => br(A::Or),
        D::XorRtnB64 => br(A::Xor),
        D::StorexchgRtnB64 => br(A::Swap),
        D::CmpstoreRtnB64 => br(A::CompareSwap),
        D::CmpstoreRtnF64 => br(A::CompareSwapFloat),
        D::MinRtnF64 => br(A::MinFloat),
        D::MaxRtnF64 => br(A::MaxFloat),
        D::PermuteB32 => DsOp::Permute { backward: false },
        D::BpermuteB32 => DsOp::Permute { backward: true },
        D::SwizzleB32 => DsOp::Swizzle,
        D::LoadAddtidB32 => DsOp::AddtidLoad,
        D::StoreAddtidB32 => DsOp::AddtidStore,
        D::Append => DsOp::Counter { up: true },
        D::Consume => DsOp::Counter { up: false },
        D::Nop => DsOp::Nop,
        D::MskorB32
        | D::MskorRtnB32
        | D::MskorB64
        | D::MskorRtnB64
        | D::Storexchg2addrRtnB32
        | D::Storexchg2addrStride64RtnB32
        | D::Storexchg2addrRtnB64
        | D::Storexchg2addrStride64RtnB64
        | D::WrapRtnB32
        | D::Condxchg32RtnB64
        | D::BvhStackRtnB32 => DsOp::Other,
    }
}

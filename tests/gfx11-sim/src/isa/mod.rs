//! What an instruction is: opcodes by encoding, operands, and the decoded form that is executed.

mod compare;
mod memory;
mod scalar;
mod signature;
mod vector;

pub use compare::{Comparison, Condition};
pub use memory::{Ds, Flat};
pub use scalar::{Smem, Sop1, Sop2, Sopc, Sopk, Sopp};
pub use signature::{Ty, VectorSignature, packed_signature, vector_signature};
pub use vector::{Vop, Vop3p};

/// An enum of opcodes with their numbers and the assembler's names.
macro_rules! opcodes {
    ($(#[$meta:meta])* $name:ident { $($code:literal $variant:ident $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[allow(missing_docs)]
        pub enum $name { $($variant = $code,)* }

        impl $name {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The opcode with this number in its encoding.
            pub fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The assembler's mnemonic, without the suffix of an encoding.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}
use opcodes;

/// Scalar registers by their number in an operand.
pub mod sreg {
    /// The low half of VCC; all of it in wave32.
    pub const VCC: u8 = 106;
    /// Reads zero, ignores writes.
    pub const NULL: u8 = 124;
    /// M0.
    pub const M0: u8 = 125;
    /// The low half of EXEC; all of it in wave32.
    pub const EXEC: u8 = 126;
}

/// A source operand, as encoded; what a constant's bits are depends on the type that the instruction reads it as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Src {
    /// A vector register. Numbers from 256 on are the simulator's own (rearranged sources of DPP).
    V(u16),
    /// A scalar register, VCC, M0, NULL or EXEC.
    S(u8),
    /// An inline integer, -16..=64.
    Int(i8),
    /// An inline float: 0.5, -0.5, 1, -1, 2, -2, 4, -4, 1/(2 pi), in this order.
    Float(u8),
    /// The 32 bits behind the instruction.
    Literal(u32),
    /// VCCZ, EXECZ, SCC (251..=253) and the apertures (235..=238), by number.
    Special(u8),
    /// The encoding has no such source.
    None,
}

/// How a source's lanes are rearranged before they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dpp {
    /// A pattern of rows of 16 lanes.
    Row {
        /// `dpp_ctrl`.
        control: u16,
        /// Rows that take part.
        row_mask: u8,
        /// Banks (fours of lanes of a row) that take part.
        bank_mask: u8,
        /// An invalid source reads zero; otherwise its lane is left alone.
        bound_ctrl: bool,
        /// Inactive lanes can be sources.
        fetch_inactive: bool,
    },
    /// A choice for each lane of eight.
    Eight {
        /// Three bits a lane.
        lanes: u32,
        /// Inactive lanes can be sources.
        fetch_inactive: bool,
    },
}

/// A vector instruction: VOP1, VOP2, VOP3 or half of a VOPD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    /// The operation.
    pub op: Vop,
    /// Vector destination (a scalar register's number for `v_readfirstlane` and `v_readlane`).
    pub dst: u8,
    /// Scalar destination: carry out.
    pub sdst: u8,
    /// Sources.
    pub src: [Src; 3],
    /// Modifiers.
    pub mods: Mods,
    /// How lanes of source 0 move.
    pub dpp: Option<Dpp>,
}

/// A comparison: VOPC or its VOP3 form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare {
    /// What is compared.
    pub op: Comparison,
    /// Scalar destination; EXEC for `v_cmpx`.
    pub dst: u8,
    /// Sources.
    pub src: [Src; 2],
    /// Modifiers.
    pub mods: Mods,
    /// How lanes of source 0 move.
    pub dpp: Option<Dpp>,
}

/// Modifiers of a vector instruction. Bit `i` of a mask concerns source `i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mods {
    /// Negate.
    pub neg: u8,
    /// Absolute value, before negation.
    pub abs: u8,
    /// The upper half of a 16-bit source; bit 3: of the destination.
    pub high: u8,
    /// Output modifier: 0 none, 1 times 2, 2 times 4, 3 half.
    pub omod: u8,
    /// Clamp floats to 0..=1, saturate integers.
    pub clamp: bool,
}

/// A VOP3P instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The operation.
    pub op: Vop3p,
    /// First vector destination.
    pub dst: u8,
    /// Sources.
    pub src: [Src; 3],
    /// Negates low halves (or says that bytes are signed).
    pub neg_lo: u8,
    /// Negates high halves (absolute value for mixed precision).
    pub neg_hi: u8,
    /// Which half the low result reads.
    pub op_sel: u8,
    /// Which half the high result reads.
    pub op_sel_hi: u8,
    /// Clamp or saturate.
    pub clamp: bool,
    /// How lanes of source 0 move.
    pub dpp: Option<Dpp>,
}

/// Where a FLAT encoding's addresses live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Decided by the address: global memory or an aperture.
    Flat,
    /// Private memory of a lane.
    Scratch,
    /// Global memory.
    Global,
}

/// A FLAT, GLOBAL or SCRATCH instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlatInst {
    /// The operation.
    pub op: Flat,
    /// The segment.
    pub segment: Segment,
    /// Vector address (a pair, or one offset register).
    pub addr: u8,
    /// Vector data that is stored.
    pub data: u8,
    /// Scalar address; NULL when there is none.
    pub saddr: u8,
    /// Scratch: the vector address takes part.
    pub vaddr_enable: bool,
    /// Vector destination.
    pub dst: u8,
    /// Constant offset in bytes.
    pub offset: i32,
    /// An atomic returns what was there.
    pub glc: bool,
    /// Cache policy bits that have no effect here, kept for the disassembly.
    pub slc: bool,
    /// As `slc`.
    pub dlc: bool,
}

/// An instruction of the local data share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DsInst {
    /// The operation.
    pub op: Ds,
    /// Vector address in bytes.
    pub addr: u8,
    /// First data.
    pub data0: u8,
    /// Second data.
    pub data1: u8,
    /// Vector destination.
    pub dst: u8,
    /// First offset byte.
    pub offset0: u8,
    /// Second offset byte.
    pub offset1: u8,
    /// Meant for the global data share, which compute programs don't have.
    pub gds: bool,
}

impl DsInst {
    /// Both offset bytes as one.
    pub fn offset(&self) -> u32 {
        u32::from(self.offset0) | u32::from(self.offset1) << 8
    }
}

/// The decoded form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Sop1 {
        op: Sop1,
        dst: u8,
        src: Src,
    },
    Sop2 {
        op: Sop2,
        dst: u8,
        a: Src,
        b: Src,
    },
    /// `src` is the literal of `s_setreg_imm32_b32`.
    Sopk {
        op: Sopk,
        dst: u8,
        imm: i16,
    },
    Sopc {
        op: Sopc,
        a: Src,
        b: Src,
    },
    Sopp {
        op: Sopp,
        imm: u16,
    },
    Smem {
        op: Smem,
        dst: u8,
        base: u8,
        offset: i32,
        soffset: u8,
    },
    /// Two sources and a constant: `s_fmaak_f32`, `s_fmamk_f32`, `s_setreg_imm32_b32`.
    SopConst {
        op: SopConst,
        dst: u8,
        a: Src,
        b: Src,
        constant: u32,
    },
    Vector(Vector),
    Compare(Compare),
    Packed(Packed),
    Dual(Vector, Vector),
    Flat(FlatInst),
    Ds(DsInst),
    /// Cache control, which has no effect here.
    CacheInvalidate(&'static str),
    /// An encoding that isn't known.
    Unknown,
}

/// Scalar instructions that always carry a literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SopConst {
    FmaakF32,
    FmamkF32,
    SetregImm32B32,
}

/// One decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inst {
    /// Offset in its section, in dwords.
    pub at: u32,
    /// Length in dwords, 1..=3.
    pub len: u8,
    /// The encoding; words beyond `len` are zero.
    pub words: [u32; 3],
    /// What it does.
    pub kind: Kind,
}

//! The types of a vector operation's operands. Mnemonics say them: the first type is the destination's, the last the
//! sources'; what deviates is listed.

use super::{Vop, Vop3p};

/// An operand's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Ty {
    B16,
    F16,
    I16,
    U16,
    B32,
    F32,
    I32,
    U32,
    B64,
    F64,
    I64,
    U64,
    /// Several registers of 32 bits.
    Regs(u8),
    /// A mask: one scalar register in wave32.
    Mask,
    /// A scalar register or lane number.
    Scalar,
    /// No such operand.
    None,
}

impl Ty {
    /// Registers of 32 bits that it occupies.
    pub fn registers(self) -> u8 {
        match self {
            Ty::B64 | Ty::F64 | Ty::I64 | Ty::U64 => 2,
            Ty::Regs(n) => n,
            Ty::None => 0,
            _ => 1,
        }
    }

    /// Half a register: `high` modifiers choose which.
    pub fn is_16(self) -> bool {
        matches!(self, Ty::B16 | Ty::F16 | Ty::I16 | Ty::U16)
    }

    fn parse(token: &str) -> Option<Self> {
        Some(match token {
            "b16" => Ty::B16,
            "f16" | "bf16" => Ty::F16,
            "i16" => Ty::I16,
            "u16" => Ty::U16,
            "b32" => Ty::B32,
            "f32" => Ty::F32,
            "i32" | "i24" => Ty::I32,
            "u32" | "u24" => Ty::U32,
            "b64" => Ty::B64,
            "f64" => Ty::F64,
            "i64" => Ty::I64,
            "u64" => Ty::U64,
            _ => return None,
        })
    }
}

/// Operands of a vector operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorSignature {
    /// Vector destination.
    pub dst: Ty,
    /// Whether the destination is read as well (accumulators, swaps).
    pub reads_dst: bool,
    /// Whether there is a scalar destination, a carry mask.
    pub sdst: bool,
    /// Sources.
    pub src: [Ty; 3],
}

/// The operands of a VOP1, VOP2 or VOP3 operation.
pub fn vector_signature(op: Vop) -> VectorSignature {
    use Ty::*;
    use Vop as O;
    let code = op as u16;
    // Sources by encoding; VOP3's own operations with two are those from 0x300 on.
    let count = match code {
        0x100..0x180 => 2,
        0x180..0x200 => 1,
        0x200..0x300 => 3,
        _ => 2,
    };
    let mut types = op.name().split('_').filter_map(Ty::parse);
    let dst = types.next().unwrap_or(B32);
    let source = types.next_back().unwrap_or(dst);
    let mut sig = VectorSignature {
        dst,
        reads_dst: false,
        sdst: false,
        src: [None; 3],
    };
    sig.src[..count].fill(source);
    match op {
        O::Nop => {
            sig = VectorSignature {
                dst: None,
                src: [None; 3],
                ..sig
            }
        }
        O::CndmaskB32 | O::CndmaskB16 => sig.src[2] = Mask,
        O::Dot2accF32F16 | O::PkFmacF16 => {
            (sig.dst, sig.src) = (B32, [B32, B32, None]);
            sig.reads_dst = true;
        }
        O::FmacF32 | O::FmacF16 | O::FmacDx9ZeroF32 => sig.reads_dst = true,
        O::FmamkF32 | O::FmaakF32 => sig.src = [F32; 3],
        O::FmamkF16 | O::FmaakF16 => sig.src = [F16; 3],
        O::AddCoCiU32 | O::SubCoCiU32 | O::SubrevCoCiU32 => {
            sig.sdst = true;
            sig.src[2] = Mask;
        }
        O::AddCoU32 | O::SubCoU32 | O::SubrevCoU32 => sig.sdst = true,
        O::CvtPkRtzF16F32
        | O::CvtPkI16F32
        | O::CvtPkU16F32
        | O::CvtPkNormI16F32
        | O::CvtPkNormU16F32
        | O::CvtPkU16U32
        | O::CvtPkI16I32 => sig.dst = B32,
        O::CvtPkNormI16F16 | O::CvtPkNormU16F16 => (sig.dst, sig.src) = (B32, [F16, F16, None]),
        O::CvtF32Ubyte0 | O::CvtF32Ubyte1 | O::CvtF32Ubyte2 | O::CvtF32Ubyte3 | O::CvtOffF32I4 => {
            sig.src[0] = B32
        }
        O::SatPkU8I16 => (sig.dst, sig.src) = (B16, [B32, None, None]),
        O::CvtPkU8F32 => (sig.dst, sig.src) = (B32, [F32, U32, U32]),
        O::LdexpF32 => sig.src = [F32, I32, None],
        O::LdexpF64 => sig.src = [F64, I32, None],
        O::TrigPreopF64 => sig.src = [F64, U32, None],
        O::LshlrevB64 | O::LshrrevB64 | O::AshrrevI64 => sig.src[0] = U32,
        O::MadU64U32 => (sig.sdst, sig.src) = (true, [U32, U32, U64]),
        O::MadI64I32 => (sig.sdst, sig.src) = (true, [I32, I32, I64]),
        O::DivScaleF32 | O::DivScaleF64 => sig.sdst = true,
        O::MadU32U16 => sig.src[2] = U32,
        O::MadI32I16 => sig.src[2] = I32,
        O::PackB32F16 => sig.src = [F16, F16, None],
        O::Dot2F16F16 | O::Dot2Bf16Bf16 => sig.src = [B32, B32, F16],
        O::ReadfirstlaneB32 => sig.dst = Scalar,
        O::ReadlaneB32 => (sig.dst, sig.src[1]) = (Scalar, Scalar),
        O::WritelaneB32 => {
            sig.src = [Scalar, Scalar, None];
            sig.reads_dst = true;
        }
        O::Permlane16B32 | O::Permlanex16B32 => {
            sig.src = [B32, Scalar, Scalar];
            sig.reads_dst = true;
        }
        O::SwapB32 | O::SwaprelB32 => sig.reads_dst = true,
        O::SadU8 | O::SadHiU8 | O::SadU16 | O::SadU32 | O::MsadU8 | O::LerpU8 => {
            (sig.dst, sig.src) = (U32, [U32; 3])
        }
        O::QsadPkU16U8 | O::MqsadPkU16U8 => (sig.dst, sig.src) = (B64, [B64, B32, B64]),
        O::MqsadU32U8 => (sig.dst, sig.src) = (Regs(4), [B64, B32, Regs(4)]),
        _ => {}
    }
    sig
}

/// The operands of a packed operation: registers of the destination and of each source (0: not read).
pub fn packed_signature(op: Vop3p) -> (u8, [u8; 3]) {
    use Vop3p as P;
    match op {
        P::PkMulLoU16
        | P::PkAddI16
        | P::PkSubI16
        | P::PkLshlrevB16
        | P::PkLshrrevB16
        | P::PkAshrrevI16
        | P::PkMaxI16
        | P::PkMinI16
        | P::PkAddU16
        | P::PkSubU16
        | P::PkMaxU16
        | P::PkMinU16
        | P::PkAddF16
        | P::PkMulF16
        | P::PkMinF16
        | P::PkMaxF16 => (1, [1, 1, 0]),
        P::WmmaF3216x16x16F16
        | P::WmmaF3216x16x16Bf16
        | P::WmmaF1616x16x16F16
        | P::WmmaBf1616x16x16Bf16 => (8, [8, 8, 8]),
        P::WmmaI3216x16x16Iu8 => (8, [4, 4, 8]),
        P::WmmaI3216x16x16Iu4 => (8, [2, 2, 8]),
        _ => (1, [1, 1, 1]),
    }
}

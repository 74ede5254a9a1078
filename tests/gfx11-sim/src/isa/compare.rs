//! Comparisons: VOPC's opcodes have a structure (type, condition, whether EXEC is written), so they need no list.

use std::fmt;

use super::Ty;

/// What a comparison asks. The numbers are those of the floats' conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Condition {
    F,
    Lt,
    Eq,
    Le,
    Gt,
    Lg,
    Ge,
    O,
    U,
    Nge,
    Nlg,
    Ngt,
    Nle,
    Neq,
    Nlt,
    T,
    /// Integers' "not equal".
    Ne,
    /// The class of source 0 is in the mask of source 1.
    Class,
}

/// A comparison's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The type of both sources.
    pub ty: Ty,
    /// What is asked.
    pub condition: Condition,
    /// Writes EXEC rather than a mask.
    pub exec: bool,
}

const FLOATS: [Condition; 16] = {
    use Condition::*;
    [
        F, Lt, Eq, Le, Gt, Lg, Ge, O, U, Nge, Nlg, Ngt, Nle, Neq, Nlt, T,
    ]
};
const INTEGERS: [Condition; 8] = {
    use Condition::*;
    [F, Lt, Eq, Le, Gt, Ne, Ge, T]
};

impl Comparison {
    /// From a number below 0x100.
    pub fn from_code(code: u32) -> Option<Self> {
        let exec = code & 0x80 != 0;
        let code = code & 0x7f;
        let (ty, condition) = match code {
            0x00..0x30 => (
                [Ty::F16, Ty::F32, Ty::F64][code as usize >> 4],
                FLOATS[code as usize & 15],
            ),
            0x30..0x60 => {
                let types = [Ty::I16, Ty::U16, Ty::I32, Ty::U32, Ty::I64, Ty::U64];
                let ty = types[(code as usize - 0x30) >> 3];
                let condition = INTEGERS[code as usize & 7];
                // 16-bit comparisons have no constant conditions.
                if code < 0x40 && matches!(condition, Condition::F | Condition::T) {
                    return None;
                }
                (ty, condition)
            }
            0x7d => (Ty::F16, Condition::Class),
            0x7e => (Ty::F32, Condition::Class),
            0x7f => (Ty::F64, Condition::Class),
            _ => return None,
        };
        Some(Self {
            ty,
            condition,
            exec,
        })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let x = if self.exec { "x" } else { "" };
        let condition = format!("{:?}", self.condition).to_lowercase();
        let ty = format!("{:?}", self.ty).to_lowercase();
        write!(f, "v_cmp{x}_{condition}_{ty}")
    }
}

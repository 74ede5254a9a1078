//! The tensor types of ggml: numbers, names and block sizes of all, so that any file's bounds can be checked.

use bundle_format::plan::Encoding;

/// How a tensor's elements are encoded: blocks of consecutive elements of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// The number that stands for the type in a file.
    pub id: u32,
    pub name: &'static str,
    /// Elements of a block.
    pub block: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
}

impl TensorType {
    pub const F32: Self = ty(0, "F32", 1, 4);
    pub const F16: Self = ty(1, "F16", 1, 2);
    pub const Q4_0: Self = ty(2, "Q4_0", 32, 18);
    pub const Q4_1: Self = ty(3, "Q4_1", 32, 20);
    pub const Q8_0: Self = ty(8, "Q8_0", 32, 34);
    pub const BF16: Self = ty(30, "BF16", 1, 2);
    pub const Q5_0: Self = ty(6, "Q5_0", 32, 22);
    pub const Q5_1: Self = ty(7, "Q5_1", 32, 24);
    pub const Q2_K: Self = ty(10, "Q2_K", 256, 84);
    pub const Q3_K: Self = ty(11, "Q3_K", 256, 110);
    pub const Q4_K: Self = ty(12, "Q4_K", 256, 144);
    pub const Q5_K: Self = ty(13, "Q5_K", 256, 176);
    pub const Q6_K: Self = ty(14, "Q6_K", 256, 210);
    pub const IQ4_NL: Self = ty(20, "IQ4_NL", 32, 18);
    pub const IQ4_XS: Self = ty(23, "IQ4_XS", 256, 136);
    pub const MXFP4: Self = ty(39, "MXFP4", 32, 17);

    /// The type of a number; none if no type has it. (4 and 5 were given up before GGUF existed.)
    pub fn from_id(id: u32) -> Option<Self> {
        ALL.iter().find(|ty| ty.id == id).copied()
    }

    /// The encoding of the bundle that has the same bytes, if there is one.
    pub fn encoding(self) -> Option<Encoding> {
        Encoding::ALL
            .into_iter()
            .find(|&encoding| Self::from(encoding) == self)
    }

    /// Bytes of `elements` consecutive elements, a multiple of the block; none if it overflows.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        (elements / self.block as u64).checked_mul(self.block_bytes as u64)
    }
}

impl From<Encoding> for TensorType {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::F32 => Self::F32,
            Encoding::F16 => Self::F16,
            Encoding::Q4_0 => Self::Q4_0,
            Encoding::Q4_1 => Self::Q4_1,
            Encoding::Q8_0 => Self::Q8_0,
            Encoding::BF16 => Self::BF16,
            Encoding::Q5_0 => Self::Q5_0,
            Encoding::Q5_1 => Self::Q5_1,
            Encoding::Q2_K => Self::Q2_K,
            Encoding::Q3_K => Self::Q3_K,
            Encoding::Q4_K => Self::Q4_K,
            Encoding::Q5_K => Self::Q5_K,
            Encoding::Q6_K => Self::Q6_K,
            Encoding::IQ4_NL => Self::IQ4_NL,
            Encoding::IQ4_XS => Self::IQ4_XS,
            Encoding::MXFP4 => Self::MXFP4,
        }
    }
}

/// The names of the types that have an encoding, in the order of their numbers, separated by commas.
pub fn encoded_names() -> String {
    let names: Vec<_> = ALL
        .iter()
        .filter(|ty| ty.encoding().is_some())
        .map(|ty| ty.name)
        .collect();
    names.join(", ")
}

const fn ty(id: u32, name: &'static str, block: u32, block_bytes: u32) -> TensorType {
    TensorType {
        id,
        name,
        block,
        block_bytes,
    }
}

/// Every type that a GGUF file may hold, those that ggml has withdrawn since included.
pub const ALL: &[TensorType] = &[
    TensorType::F32,
    TensorType::F16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    ty(9, "Q8_1", 32, 40),
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
    ty(15, "Q8_K", 256, 292),
    ty(16, "IQ2_XXS", 256, 66),
    ty(17, "IQ2_XS", 256, 74),
    ty(18, "IQ3_XXS", 256, 98),
    ty(19, "IQ1_S", 256, 50),
    TensorType::IQ4_NL,
    ty(21, "IQ3_S", 256, 110),
    ty(22, "IQ2_S", 256, 82),
    TensorType::IQ4_XS,
    ty(24, "I8", 1, 1),
    ty(25, "I16", 1, 2),
    ty(26, "I32", 1, 4),
    ty(27, "I64", 1, 8),
    ty(28, "F64", 1, 8),
    ty(29, "IQ1_M", 256, 56),
    TensorType::BF16,
    ty(31, "Q4_0_4_4", 32, 18),
    ty(32, "Q4_0_4_8", 32, 18),
    ty(33, "Q4_0_8_8", 32, 18),
    ty(34, "TQ1_0", 256, 54),
    ty(35, "TQ2_0", 256, 66),
    ty(36, "IQ4_NL_4_4", 32, 18),
    ty(37, "IQ4_NL_4_8", 32, 18),
    ty(38, "IQ4_NL_8_8", 32, 18),
    TensorType::MXFP4,
    ty(40, "NVFP4", 64, 36),
    ty(41, "Q1_0", 128, 18),
];

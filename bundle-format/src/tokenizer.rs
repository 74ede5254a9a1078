//! The tokenizer section: a vocabulary that is used where it lies in the map, without building anything.
//!
//! [`Tables`] writes it, [`View`] checks it once and then reads it. The section is stored raw. All numbers are
//! little-endian. The header has [`HEADER_BYTES`] bytes:
//!
//! | offset | type | what |
//! |---|---|---|
//! | 0 | u32 | version of this layout, [`VERSION`] |
//! | 4 | u32 | [`ModelKind`] |
//! | 8 | u32 | [`PreTokenizer`] |
//! | 12 | u32 | [`Flags`] |
//! | 16 | u32 | n: tokens |
//! | 20 | u32 | bytes of all tokens |
//! | 24 | u32 | m: merges |
//! | 28 | u32 | b: buckets of the merge table |
//! | 32 | u64 | seed of the merge table |
//! | 40 | u32 | s: slots of the merge table |
//! | 44 | u32 | p: tokens that are matched in text before the model sees it |
//! | 48 | u32 | e: tokens that end generation |
//! | 52 | u32 | bytes of the chat template; 0: none |
//! | 56 | u32 × 14 | the id of each [`Special`], or [`NONE`] |
//! | 112 | u64 | seed of the text table |
//! | 120 | u32 | c: buckets of the text table |
//! | 124 | u32 | t: slots of the text table |
//! | 128 | u128 | [`Tables::space_joins`], if [`Flags::spaces_cut`] |
//!
//! The tables follow in this order, each padded with zeros to a multiple of 8 bytes; nothing follows the last:
//!
//! | type | what |
//! |---|---|
//! | u32 × (n + 1) | where each token's bytes start among all tokens' bytes; the last is their end |
//! | u8 | all tokens' bytes: what a token stands for in text, not its spelling in the byte alphabet |
//! | u8 × n | [`Attr`] of each token |
//! | f32 × n | scores, only with [`Flags::scores`] |
//! | u32 × 256 | the token of each single byte, or [`NONE`] |
//! | u16 × b | pilots of the merge table ([`merges`]) |
//! | (u32 left, u32 right, u32 rank, u32 merged) × s | slots of the merge table; an empty slot is four [`NONE`]s |
//! | u16 × c | pilots of the text table ([`texts`]) |
//! | u32 × t | slots of the text table: tokens, or [`NONE`] |
//! | u32 × p | tokens to match, in ascending order of their bytes |
//! | u32 × e | tokens that end generation, ascending |
//! | u8 | the chat template, UTF-8 |

pub mod merges;
mod perfect;
pub mod texts;
mod view;
mod write;

pub use merges::Merge;
pub use view::View;
pub use write::Tables;

/// Version of the layout that this build writes, and the only one that it reads.
pub const VERSION: u32 = 2;

/// An id that is no token.
pub const NONE: u32 = u32::MAX;

/// Bytes before the first table.
pub const HEADER_BYTES: usize = 56 + 4 * Special::ALL.len() + 32;

/// What a section can't be opened or written for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A valid section of another build.
    #[error(
        "tokenizer section, offset {offset}: {what} is {found}, this build reads {expected}; \
         compile the model again with a fastc of this version"
    )]
    Unsupported {
        /// Bytes from the section's start.
        offset: u64,
        what: &'static str,
        found: u32,
        expected: String,
    },
    /// Bytes that no writer makes.
    #[error(
        "tokenizer section, offset {offset}: {what}; the file is damaged, compile or copy it again"
    )]
    Corrupt {
        /// Bytes from the section's start.
        offset: u64,
        what: String,
    },
    /// Tables that the layout can't hold, or that contradict each other.
    #[error("tokenizer tables: {0}")]
    Invalid(String),
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelKind {
    /// Byte-level byte-pair encoding: GGUF's `gpt2`. Words start as their bytes; pairs merge by a list of merges.
    ByteBpe,
    /// SentencePiece's: GGUF's `llama`. Text starts as its characters; two neighbours merge where a token spells both, the
    /// one of the highest score first; characters without a token become their bytes' tokens.
    Scored,
    /// Byte-pair encoding of characters: GGUF's `gemma4`. Lines start as their characters; pairs merge by a list of merges;
    /// characters without a token become their bytes' tokens.
    CharBpe,
}

impl ModelKind {
    pub const ALL: &[ModelKind] = &[ModelKind::ByteBpe, ModelKind::Scored, ModelKind::CharBpe];

    /// The number that the section stores.
    pub fn code(self) -> u32 {
        match self {
            ModelKind::ByteBpe => 1,
            ModelKind::Scored => 2,
            ModelKind::CharBpe => 3,
        }
    }

    /// GGUF's `tokenizer.ggml.model`.
    pub fn name(self) -> &'static str {
        match self {
            ModelKind::ByteBpe => "gpt2",
            ModelKind::Scored => "llama",
            ModelKind::CharBpe => "gemma4",
        }
    }

    /// Whether vocabularies of this kind write a space as U+2581 (`▁`), so that both are the same to them.
    pub fn marks_spaces(self) -> bool {
        matches!(self, ModelKind::Scored | ModelKind::CharBpe)
    }
}

/// How text is split into words; merges don't cross words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PreTokenizer {
    /// The whole text is a word.
    Whole,
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit by itself, GPT-2's pattern between them.
    Smollm,
    /// Llama 3's pattern: digits by three.
    Llama3,
    /// Qwen 2's pattern: Llama 3's, but every digit by itself.
    Qwen2,
    /// Qwen 3.5's pattern: Qwen 2's, with combining marks in words.
    Qwen35,
    /// The patterns of DeepSeek LLM, one after the other.
    DeepseekLlm,
    /// The patterns of DeepSeek Coder, one after the other.
    DeepseekCoder,
    /// The patterns of DeepSeek V3, one after the other.
    DeepseekV3,
    /// Mistral's Tekken: words end where capital letters begin.
    Tekken,
    /// GPT-4o's pattern: Tekken's with contractions, and digits by three.
    Gpt4o,
    /// Falcon's patterns, one after the other.
    Falcon,
    /// What models have that name `default`: Falcon's with another order of digits.
    Default,
    /// Lines; runs of newlines are words of their own.
    Lines,
}

impl PreTokenizer {
    pub const ALL: &[PreTokenizer] = &[
        PreTokenizer::Whole,
        PreTokenizer::Gpt2,
        PreTokenizer::Smollm,
        PreTokenizer::Llama3,
        PreTokenizer::Qwen2,
        PreTokenizer::Qwen35,
        PreTokenizer::DeepseekLlm,
        PreTokenizer::DeepseekCoder,
        PreTokenizer::DeepseekV3,
        PreTokenizer::Tekken,
        PreTokenizer::Gpt4o,
        PreTokenizer::Falcon,
        PreTokenizer::Default,
        PreTokenizer::Lines,
    ];

    /// The number that the section stores.
    pub fn code(self) -> u32 {
        match self {
            PreTokenizer::Whole => 0,
            PreTokenizer::Gpt2 => 1,
            PreTokenizer::Smollm => 2,
            PreTokenizer::Llama3 => 3,
            PreTokenizer::Qwen2 => 4,
            PreTokenizer::Qwen35 => 5,
            PreTokenizer::DeepseekLlm => 6,
            PreTokenizer::DeepseekCoder => 7,
            PreTokenizer::DeepseekV3 => 8,
            PreTokenizer::Tekken => 9,
            PreTokenizer::Gpt4o => 10,
            PreTokenizer::Falcon => 11,
            PreTokenizer::Default => 12,
            PreTokenizer::Lines => 13,
        }
    }

    /// GGUF's `tokenizer.ggml.pre` of a model that has it.
    pub fn name(self) -> &'static str {
        match self {
            PreTokenizer::Whole => "none",
            PreTokenizer::Gpt2 => "gpt-2",
            PreTokenizer::Smollm => "smollm",
            PreTokenizer::Llama3 => "llama-bpe",
            PreTokenizer::Qwen2 => "qwen2",
            PreTokenizer::Qwen35 => "qwen35",
            PreTokenizer::DeepseekLlm => "deepseek-llm",
            PreTokenizer::DeepseekCoder => "deepseek-coder",
            PreTokenizer::DeepseekV3 => "deepseek-v3",
            PreTokenizer::Tekken => "tekken",
            PreTokenizer::Gpt4o => "gpt-4o",
            PreTokenizer::Falcon => "falcon",
            PreTokenizer::Default => "default",
            PreTokenizer::Lines => "gemma4",
        }
    }
}

/// Switches of a vocabulary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// A prompt starts with [`Special::Bos`].
    pub add_bos: bool,
    /// A prompt ends with [`Special::Eos`].
    pub add_eos: bool,
    /// Text gets a space in front, at its start and after every special token ([`ModelKind::Scored`] only).
    pub add_space_prefix: bool,
    /// The section has a table of scores.
    pub scores: bool,
    /// A word that a token spells becomes that token, whether merges lead there or not.
    pub ignore_merges: bool,
    /// The section says where text may be cut at spaces: [`Tables::space_joins`].
    pub spaces_cut: bool,
}

impl Flags {
    const KNOWN: u32 = 0b11_1111;

    fn bits(self) -> u32 {
        [
            self.add_bos,
            self.add_eos,
            self.add_space_prefix,
            self.scores,
            self.ignore_merges,
            self.spaces_cut,
        ]
        .into_iter()
        .enumerate()
        .map(|(bit, set)| u32::from(set) << bit)
        .sum()
    }

    fn from_bits(bits: u32) -> Option<Self> {
        let set = |bit: u32| bits >> bit & 1 != 0;
        (bits & !Self::KNOWN == 0).then(|| Self {
            add_bos: set(0),
            add_eos: set(1),
            add_space_prefix: set(2),
            scores: set(3),
            ignore_merges: set(4),
            spaces_cut: set(5),
        })
    }
}

/// What a token is, as a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attr(pub u8);

impl Attr {
    pub const NORMAL: Attr = Attr(1);
    /// Steers the model and is no text: `<|im_end|>`.
    pub const CONTROL: Attr = Attr(2);
    /// Text that is always one token.
    pub const USER_DEFINED: Attr = Attr(4);
    pub const UNKNOWN: Attr = Attr(8);
    /// Spells one byte: `<0x0A>`.
    pub const BYTE: Attr = Attr(16);
    pub const UNUSED: Attr = Attr(32);
    /// White space after the token belongs to it: it vanishes where the token is cut out of text.
    pub const STRIPS_RIGHT: Attr = Attr(64);

    const KNOWN: u8 = 0b111_1111;

    /// Whether any of `bits` is set.
    pub fn any(self, bits: Attr) -> bool {
        self.0 & bits.0 != 0
    }

    /// Whether the token is cut out of text before words are looked for (control and unknown tokens only where special
    /// tokens are parsed).
    pub fn is_matched(self) -> bool {
        self.any(Attr::CONTROL | Attr::USER_DEFINED | Attr::UNKNOWN)
    }

    /// Whether the token is hidden from people.
    pub fn is_hidden(self) -> bool {
        self.any(Attr::CONTROL | Attr::UNKNOWN)
    }
}

impl std::ops::BitOr for Attr {
    type Output = Attr;

    fn bitor(self, other: Attr) -> Attr {
        Attr(self.0 | other.0)
    }
}

/// Tokens with a role. The order is that of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Bos,
    Eos,
    /// End of turn.
    Eot,
    /// End of message.
    Eom,
    Unknown,
    Separator,
    Padding,
    Mask,
    FimPrefix,
    FimSuffix,
    FimMiddle,
    FimPadding,
    FimRepository,
    FimFile,
}

impl Special {
    pub const ALL: [Special; 14] = [
        Special::Bos,
        Special::Eos,
        Special::Eot,
        Special::Eom,
        Special::Unknown,
        Special::Separator,
        Special::Padding,
        Special::Mask,
        Special::FimPrefix,
        Special::FimSuffix,
        Special::FimMiddle,
        Special::FimPadding,
        Special::FimRepository,
        Special::FimFile,
    ];

    /// The place in [`Special::ALL`] and in the header.
    pub fn index(self) -> usize {
        self as usize
    }
}

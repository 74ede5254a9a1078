//! The bundle's hashes: blake3 with a context string for each purpose, so that no hashed thing passes for another.

use std::fmt;

use crate::layout::SectionKind;

/// A blake3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Context of the header hash.
pub const HEADER_CONTEXT: &str = "FastInference bundle 3: header";
/// Context of the root hash.
pub const ROOT_CONTEXT: &str = "FastInference bundle 3: root";
/// Context of the hash of the decompressed code.
pub const RAW_CODE_CONTEXT: &str = "FastInference bundle 3: raw code";
/// Context of the hash of one chunk of weights.
pub const CHUNK_CONTEXT: &str = "FastInference bundle 3: weights chunk";

/// Context of a section's hash.
pub fn section_context(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::Manifest => "FastInference bundle 3: section manifest",
        SectionKind::Plan => "FastInference bundle 3: section plan",
        SectionKind::Code => "FastInference bundle 3: section code",
        SectionKind::Tokenizer => "FastInference bundle 3: section tokenizer",
        SectionKind::Signature => "FastInference bundle 3: section signature",
        SectionKind::WeightsTree => "FastInference bundle 3: section weights-tree",
        SectionKind::Weights => "FastInference bundle 3: section weights",
    }
}

/// Hash of a section's bytes as they lie in the file. For the weights see [`weights`].
pub fn section(kind: SectionKind, stored: &[u8]) -> Digest {
    derive(section_context(kind), &[stored])
}

/// Hash of the weights section: of its length (u64, little-endian) and the list of its chunks' hashes.
pub fn weights(len: u64, chunk_hashes: &[u8]) -> Digest {
    let context = section_context(SectionKind::Weights);
    derive(context, &[&len.to_le_bytes(), chunk_hashes])
}

/// Hash of one chunk of weights.
pub fn chunk(bytes: &[u8]) -> Digest {
    derive(CHUNK_CONTEXT, &[bytes])
}

/// Hash of the decompressed code section. A runner computes it over its executable copy, before it calls into it, and
/// compares it with [`crate::read::Bundle::code_hash`].
pub fn raw_code(bytes: &[u8]) -> Digest {
    derive(RAW_CODE_CONTEXT, &[bytes])
}

/// Hash of the concatenation of `parts` under a context.
pub(crate) fn derive(context: &str, parts: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    Digest(*hasher.finalize().as_bytes())
}

//! Encoding of the manifest and the plan, and compression of the small sections. No other module knows bincode or zstd.
//!
//! Decoding is for untrusted bytes: what it allocates is bounded by what it was given, never by a length that the bytes
//! claim.

use bincode::config::{self, Configuration};
use bincode::error::DecodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// Level of compression: the sections are small, and decompress equally fast from every level.
const ZSTD_LEVEL: i32 = 12;

/// The longest encoding that a reader decodes, in bytes.
pub const MAX_DECODE_LEN: usize = 32 << 20;

/// Version of the zstd library that compresses, for the manifest.
pub fn zstd_version() -> &'static str {
    zstd::zstd_safe::version_string()
}

/// Encodes a value. Integers take a byte where they fit.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    bincode::serde::encode_to_vec(value, config::standard()).map_err(|e| {
        Error::caller(
            "encoding a section",
            "a value that bincode can encode",
            e.to_string(),
        )
    })
}

/// Why bytes could not be decoded or decompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// They aren't what [`encode`] or [`compress`] writes.
    Broken { expected: String, found: String },
    /// They are well-formed but hold a value that this version doesn't know: another variant of an enumeration.
    Unknown(String),
}

impl Failure {
    fn broken(expected: impl Into<String>, found: impl Into<String>) -> Failure {
        Failure::Broken {
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// Decodes a value that fills `bytes` exactly.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    // bincode allocates a string before it reads it, up to its limit, which is a constant. The limit counts integers at
    // full width, up to eight times their encoded length; so each step takes inputs up to an eighth of its limit.
    const STEPS: [usize; 5] = [1 << 16, 1 << 19, 1 << 22, 1 << 25, MAX_DECODE_LEN * 8];
    match bytes.len().saturating_mul(8) {
        n if n <= STEPS[0] => decode_limited::<T, { STEPS[0] }>(bytes),
        n if n <= STEPS[1] => decode_limited::<T, { STEPS[1] }>(bytes),
        n if n <= STEPS[2] => decode_limited::<T, { STEPS[2] }>(bytes),
        n if n <= STEPS[3] => decode_limited::<T, { STEPS[3] }>(bytes),
        n if n <= STEPS[4] => decode_limited::<T, { STEPS[4] }>(bytes),
        _ => Err(Failure::broken(
            format!("at most {MAX_DECODE_LEN} bytes"),
            format!("{} bytes", bytes.len()),
        )),
    }
}

/// Decodes what [`encode`] made of a value, of [`MAX_DECODE_LEN`] bytes at most: for programs that send each other values.
///
/// # Errors
/// The bytes are no such encoding; the error says what was expected and found.
pub fn decode_message<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    decode(bytes).map_err(|failure| {
        let (expected, found) = match failure {
            Failure::Broken { expected, found } => (expected, found),
            Failure::Unknown(message) => ("a variant that this version knows".into(), message),
        };
        Error::caller("decoding a message", expected, found)
    })
}

fn decode_limited<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, Failure> {
    let config: Configuration<_, _, bincode::config::Limit<LIMIT>> =
        config::standard().with_limit::<LIMIT>();
    match bincode::serde::decode_from_slice(bytes, config) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(Failure::broken(
            format!("{used} bytes"),
            format!("{} bytes behind its end", bytes.len() - used),
        )),
        // serde's derived code, not bincode, refuses a variant that it doesn't know, and refuses nothing else.
        Err(DecodeError::OtherString(message)) => Err(Failure::Unknown(message)),
        Err(e) => Err(Failure::broken("an encoded value", format!("{e:?}"))),
    }
}

/// Compresses to one zstd frame, by one thread: the same input gives the same bytes.
pub(crate) fn compress(raw: &[u8]) -> Result<Vec<u8>, Error> {
    Ok(zstd::bulk::compress(raw, ZSTD_LEVEL)?)
}

/// Decompresses to exactly `raw_len` bytes, which the caller has bounded.
pub(crate) fn decompress(stored: &[u8], raw_len: usize) -> Result<Vec<u8>, Failure> {
    // The frame's own claim must agree before anything is allocated.
    let claimed = zstd::zstd_safe::get_frame_content_size(stored);
    match claimed {
        Ok(Some(n)) if n == raw_len as u64 => {}
        Ok(Some(n)) => {
            return Err(Failure::broken(
                format!("{raw_len} bytes after decompression"),
                format!("a frame of {n}"),
            ));
        }
        Ok(None) | Err(_) => {
            return Err(Failure::broken(
                "a zstd frame that states its size",
                "other bytes",
            ));
        }
    }
    let raw = zstd::bulk::decompress(stored, raw_len)
        .map_err(|e| Failure::broken("a zstd frame", e.to_string()))?;
    if raw.len() != raw_len {
        return Err(Failure::broken(
            format!("{raw_len} bytes after decompression"),
            format!("{}", raw.len()),
        ));
    }
    Ok(raw)
}

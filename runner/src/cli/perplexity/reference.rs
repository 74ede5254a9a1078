//! The oracle's log-probabilities, from a file.
//!
//! Little endian, one record for each scored position, without a header: the target id u32, its log-probability f32, then
//! the [`TOP`] likeliest ids, each u32 and f32, best first.

use fastrun::Error;

/// Likeliest tokens in a record.
pub const TOP: usize = 64;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 8 + TOP * 8;

/// What the oracle says about one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The token that follows in the text.
    pub target: u32,
    pub log_prob: f32,
    /// Likeliest tokens and their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

/// Reads the records of `bytes`; `name` is the file's, for messages. `scored` is the number of positions of a window, of
/// which there must be whole ones.
pub fn parse(name: &str, bytes: &[u8], scored: usize, vocab: u32) -> Result<Vec<Record>, Error> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(RECORD_BYTES) {
        return Err(Error::User(format!(
            "{name} has {} bytes, which is not a whole number of records of {RECORD_BYTES} bytes; it is cut, or not a file \
             of log-probabilities",
            bytes.len()
        )));
    }
    let records = bytes.len() / RECORD_BYTES;
    if !records.is_multiple_of(scored) {
        return Err(Error::User(format!(
            "{name} has {records} records, which is not a whole number of windows of {scored} scored positions; was it \
             made with another --ctx?"
        )));
    }
    let chunks = bytes.chunks_exact(RECORD_BYTES);
    chunks
        .enumerate()
        .map(|(i, chunk)| {
            let record = decode(chunk);
            check(&record, vocab).map_err(|what| {
                let offset = i * RECORD_BYTES;
                Error::User(format!(
                    "{name}: record {i} at offset {offset}: {what}; the file is damaged, or belongs to another model"
                ))
            })?;
            Ok(record)
        })
        .collect()
}

fn decode(chunk: &[u8]) -> Record {
    let word = |i: usize| {
        let at = i * 4;
        u32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]])
    };
    Record {
        target: word(0),
        log_prob: f32::from_bits(word(1)),
        top: (0..TOP)
            .map(|i| (word(2 + 2 * i), f32::from_bits(word(3 + 2 * i))))
            .collect(),
    }
}

fn check(record: &Record, vocab: u32) -> Result<(), String> {
    let all = std::iter::once((record.target, record.log_prob)).chain(record.top.iter().copied());
    for (id, log_prob) in all {
        if id >= vocab {
            return Err(format!("token {id} is not below the vocabulary's {vocab}"));
        }
        // A rounding above 0 is allowed.
        if !(log_prob.is_finite() && log_prob < 1e-3) {
            return Err(format!("{log_prob} is not a log-probability"));
        }
    }
    if !record.top.is_sorted_by(|a, b| a.1 >= b.1) {
        return Err("the likeliest tokens are not in order".into());
    }
    let mut ids: Vec<u32> = record.top.iter().map(|t| t.0).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|w| w[0] == w[1]) {
        return Err("a token is twice among the likeliest".into());
    }
    let total: f64 = record.top.iter().map(|t| (t.1 as f64).exp()).sum();
    if total > 1.001 {
        return Err(format!(
            "the likeliest tokens have probability {total:.3} together"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: u32 = 100;

    /// Two good records.
    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        for target in [5u32, 9] {
            bytes.extend(target.to_le_bytes());
            bytes.extend((-1.5f32).to_le_bytes());
            for i in 0..TOP as u32 {
                bytes.extend((i + 3).to_le_bytes());
                bytes.extend((-2.0 - i as f32).to_le_bytes());
            }
        }
        bytes
    }

    fn error(bytes: &[u8], scored: usize) -> String {
        match parse("w.bin", bytes, scored, VOCAB) {
            Err(Error::User(text)) => text,
            other => panic!("{other:?} instead of a user error"),
        }
    }

    fn patched(at: usize, word: [u8; 4]) -> String {
        let mut bytes = file();
        bytes[at..at + 4].copy_from_slice(&word);
        error(&bytes, 1)
    }

    #[test]
    fn records_are_read_in_order() {
        let records = parse("w.bin", &file(), 2, VOCAB).expect("good");
        assert_eq!(records.len(), 2);
        assert_eq!((records[1].target, records[1].log_prob), (9, -1.5));
        assert_eq!(records[1].top[63], (66, -65.0));
    }

    #[test]
    fn a_cut_file_is_refused() {
        assert!(error(&file()[..RECORD_BYTES + 3], 1).contains("523 bytes"));
        assert!(error(&[], 1).contains("0 bytes"));
        assert!(error(&file(), 3).contains("2 records"));
    }

    #[test]
    fn damage_is_found_and_located() {
        let second = RECORD_BYTES;
        let nan = f32::NAN.to_le_bytes();
        assert!(
            patched(second, 100u32.to_le_bytes()).contains("record 1 at offset 520: token 100")
        );
        assert!(patched(4, nan).contains("record 0 at offset 0: NaN is not"));
        assert!(patched(4, 0.5f32.to_le_bytes()).contains("0.5 is not"));
        assert!(patched(8 + 8 * 5 + 4, (-1.0f32).to_le_bytes()).contains("not in order"));
        assert!(patched(8 + 8 * 5, 3u32.to_le_bytes()).contains("twice"));
        let flat: Vec<u8> = file()
            .chunks(4)
            .enumerate()
            .flat_map(|(i, w)| {
                if i % 2 == 1 {
                    (-0.5f32).to_le_bytes()
                } else {
                    [w[0], w[1], w[2], w[3]]
                }
            })
            .collect();
        assert!(error(&flat, 1).contains("probability 38.8"));
    }
}

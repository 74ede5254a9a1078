//! Long texts that tokenizers have a hard time with.

/// Names and texts of about a million characters: a word without end, runs of one character, a text full of what is almost a
/// control token, and prose.
pub fn long() -> Vec<(&'static str, String)> {
    let word = (0..1_000_000u64).map(|i| (b'a' + (i * i / 7 % 26) as u8) as char);
    vec![
        ("one word", word.collect()),
        ("one letter", "a".repeat(1_000_000)),
        ("newlines", "\n".repeat(1_000_000)),
        ("near-tokens", "<|im_".repeat(200_000)),
        ("prose", include_str!("../golden/gpl3-30k.txt").repeat(33)),
    ]
}

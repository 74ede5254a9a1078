//! Tokenises texts by the vocabulary of a GGUF file, for comparisons with other programs.
//!
//! `tokenize MODEL.gguf < TEXTS`: each line of TEXTS is a text as a JSON string. For each, two lines of ids come out: with
//! special tokens parsed and those added that the model wants, and without either.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, Write};

use fastc::gguf::Gguf;
use fastc::tokenizer::VocabSource;
use fastrun::tokenizer::{EncodeOptions, Tokenizer};
use memmap2::Mmap;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: tokenize MODEL.gguf < TEXTS")?;
    let file = File::open(path)?;
    // SAFETY: the file is only read, and nobody changes a model while it is compared.
    let map = unsafe { Mmap::map(&file)? };
    let gguf = Gguf::parse(&map)?;
    let section = VocabSource::from_metadata(&gguf.metadata)?.build()?;
    let tokenizer = Tokenizer::open(&section)?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        for all in [true, false] {
            let options = EncodeOptions {
                parse_special: all,
                add_special: all,
            };
            let ids = tokenizer.encode(&text, options);
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            writeln!(out, "{}", ids.join(" "))?;
        }
    }
    Ok(())
}

//! `fastrun tokenize`: the ids of a text on one line.

use std::io::{Read, Write};

use fastrun::Error;
use fastrun::load::Loaded;
use fastrun::tokenizer::{EncodeOptions, Tokenizer};

use super::args::TokenizeArgs;
use super::failure::{Failure, cannot_read};

pub fn run(args: &TokenizeArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let loaded = Loaded::open(&args.bundle)?;
    let tokenizer = Tokenizer::open(loaded.bundle().tokenizer())?;
    let bytes = match &args.file {
        Some(path) => std::fs::read(path).map_err(|e| cannot_read(path, &e))?,
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map_err(|e| {
                Error::User(format!(
                    "can't read standard input: {e}; name a file with -f"
                ))
            })?;
            bytes
        }
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::User(format!(
            "the text is not UTF-8: byte {at} is wrong; convert it first"
        ))
    })?;
    let options = EncodeOptions {
        parse_special: true,
        add_special: true,
    };
    let ids = tokenizer.encode(&text, options);
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    writeln!(out, "{}", ids.join(" "))?;
    Ok(())
}

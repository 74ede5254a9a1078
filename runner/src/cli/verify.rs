//! `fastrun verify`: all hashes of a bundle.

use std::io::Write;

use bundle_format::layout::SectionKind;
use fastrun::Error;
use fastrun::load::Loaded;

use super::args::VerifyArgs;
use super::failure::Failure;
use super::progress;

pub fn run(args: &VerifyArgs, out: &mut dyn Write) -> Result<(), Failure> {
    // Opening checks everything but the weights.
    let loaded = Loaded::open(&args.bundle)?;
    weights(&loaded)?;
    writeln!(
        out,
        "{}: ok, {} bytes, root {}",
        args.bundle.display(),
        loaded.file_len(),
        loaded.bundle().root()
    )?;
    if !loaded.bundle().is_signed() {
        writeln!(
            out,
            "not signed: the hashes show damage, not who made the bundle"
        )?;
    }
    Ok(())
}

/// Checks every chunk of the weights, with a progress bar.
pub fn weights(loaded: &Loaded) -> Result<(), Error> {
    let sections = loaded.bundle().section_table();
    let weights = sections.iter().find(|s| s.kind == SectionKind::Weights);
    let bar = progress::bytes("verify", weights.map_or(0, |s| s.raw_len));
    let result = loaded.verify_weights(&|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    result
}

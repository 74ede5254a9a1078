//! `fastrun`: the command line only; the work is the library's.

/// Writes a line to standard error. Unlike `eprintln`, it doesn't panic where nobody reads it.
macro_rules! note {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        // There is nowhere left to complain.
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod cli;

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::args::Cli::parse();
    let mut out = BufWriter::new(std::io::stdout().lock());
    match cli::execute(&cli, &mut out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_broken_pipe() => {
            // What is buffered has no reader either.
            let _ = out.into_parts();
            ExitCode::SUCCESS
        }
        Err(failure) => {
            // First what there is of a result.
            let _ = out.flush();
            let name = cli::style::Style::of(&std::io::stderr()).error("fastrun:");
            note!("{name} {failure}");
            ExitCode::FAILURE
        }
    }
}

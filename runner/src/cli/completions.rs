//! `fastrun completions`: what a shell needs to complete our command line.

use std::io::Write;

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs};
use super::failure::Failure;

pub fn run(args: &CompletionsArgs, out: &mut dyn Write) -> Result<(), Failure> {
    // Not straight to the output, on whose errors the generator panics.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "fastrun", &mut script);
    out.write_all(&script)?;
    Ok(())
}

//! The command line: [`args`] parses it, a module for each command does the work.
//!
//! [`session`] opens the bundle that a command is about; [`answer`] and [`forward`] are the two ways to use it, through the
//! engine and straight on the device.

mod answer;
pub mod args;
mod bench;
mod chat;
mod completions;
mod doctor;
pub mod failure;
mod forward;
mod inspect;
mod interrupt;
mod logits;
mod perplexity;
mod progress;
mod run;
#[cfg(feature = "server")]
mod serve;
mod session;
pub mod style;
mod tokenize;
mod verify;

use std::io::Write;

use args::{Cli, Command};
use failure::Failure;

/// Does what the command line says; results go to `out`.
pub fn execute(cli: &Cli, out: &mut dyn Write) -> Result<(), Failure> {
    match &cli.command {
        None => run::run(&cli.run, out),
        #[cfg(feature = "server")]
        Some(Command::Serve(args)) => serve::run(args, out),
        #[cfg(feature = "server")]
        Some(Command::Worker) => Ok(fastrun::supervise::worker()?),
        Some(Command::Bench(args)) => bench::run(args, out),
        Some(Command::Perplexity(args)) => perplexity::run(args, out),
        Some(Command::Tokenize(args)) => tokenize::run(args, out),
        Some(Command::Logits(args)) => logits::run(args, out),
        Some(Command::Inspect(args)) => inspect::run(args, out),
        Some(Command::Verify(args)) => verify::run(args, out),
        Some(Command::Doctor(args)) => doctor::run(args, out),
        Some(Command::Completions(args)) => completions::run(args, out),
    }?;
    out.flush()?;
    Ok(())
}

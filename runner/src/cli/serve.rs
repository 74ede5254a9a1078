//! `fastrun serve`: the command line of the server, which is the library's.

use std::io::Write;
use std::path::PathBuf;

use fastrun::Error;
use fastrun::runner::{self, Runner, RunnerOptions};
use fastrun::serve::{self, ServeOptions, serve};
use fastrun::supervise::{Program, Supervise};

use super::args::{DeviceKind, ServeArgs, Verify, WORKER};
use super::failure::Failure;

/// Serves until a signal comes.
pub fn run(args: &ServeArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let runner = Runner::open_with(&args.bundle, &runner_options(args)?)?;
    let mut told = Ok(());
    serve(runner, serve_options(args), |address| {
        // Whoever started the server waits for this line.
        told = writeln!(out, "listening at http://{address}").and_then(|()| out.flush());
    })?;
    told?;
    Ok(())
}

fn runner_options(args: &ServeArgs) -> Result<RunnerOptions, Error> {
    Ok(RunnerOptions {
        device: match args.engine.device {
            DeviceKind::Auto => runner::DeviceKind::Own,
            DeviceKind::Cpu => runner::DeviceKind::Cpu,
            DeviceKind::Gpu => runner::DeviceKind::Gpu,
            DeviceKind::Sim => runner::DeviceKind::Sim,
            DeviceKind::Reference => runner::DeviceKind::Reference,
        },
        threads: args.engine.threads,
        kv_memory: args.engine.kv_memory,
        queue: args.limits.queue,
        verify: args.engine.verify == Verify::Full,
        prefix_cache: !args.engine.no_prefix_cache,
        spec: args.engine.spec,
        token_budget: args.engine.token_budget,
        stability: None,
        supervise: match args.worker.no_supervise {
            true => None,
            false => Some(Supervise {
                program: Program {
                    path: this_program()?,
                    args: vec![WORKER.into()],
                },
                hang_timeout: Some(args.worker.hang_timeout).filter(|time| !time.is_zero()),
                log: serve::log,
            }),
        },
    })
}

/// This very program, even where another one has taken its place since it was started.
fn this_program() -> Result<PathBuf, Error> {
    let own = PathBuf::from("/proc/self/exe");
    if own.exists() {
        return Ok(own);
    }
    std::env::current_exe().map_err(|e| {
        Error::Unsupported(format!(
            "this program can't find itself, to start another process of it: {e}; use --no-supervise"
        ))
    })
}

fn serve_options(args: &ServeArgs) -> ServeOptions {
    let stem = args.bundle.file_stem().unwrap_or_default();
    let limits = &args.limits;
    ServeOptions {
        host: args.host.clone(),
        port: args.port,
        model: match &args.model {
            Some(model) => model.clone(),
            None => stem.to_string_lossy().into_owned(),
        },
        api_keys: args.api_keys.clone(),
        cors: args.cors.clone(),
        max_body: limits.max_body,
        max_prompt: limits.max_prompt,
        max_concurrent: limits.max_concurrent as usize,
        timeout: limits.timeout,
        drain_timeout: limits.drain_timeout,
        quiet: args.quiet,
    }
}

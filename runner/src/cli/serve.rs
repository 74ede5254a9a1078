//! `fastrun serve`: the command line of the server, which is the library's.

use std::io::Write;

use fastrun::runner::{self, Runner, RunnerOptions};
use fastrun::serve::{ServeOptions, serve};

use super::args::{DeviceKind, ServeArgs, Verify};
use super::failure::Failure;

/// Serves until a signal comes.
pub fn run(args: &ServeArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let runner = Runner::open_with(&args.bundle, &runner_options(args))?;
    let mut told = Ok(());
    serve(runner, serve_options(args), |address| {
        // Whoever started the server waits for this line.
        told = writeln!(out, "listening at http://{address}").and_then(|()| out.flush());
    })?;
    told?;
    Ok(())
}

fn runner_options(args: &ServeArgs) -> RunnerOptions {
    RunnerOptions {
        device: match args.engine.device {
            DeviceKind::Auto => runner::DeviceKind::Own,
            DeviceKind::Cpu => runner::DeviceKind::Cpu,
            DeviceKind::Gpu => runner::DeviceKind::Gpu,
            DeviceKind::Reference => runner::DeviceKind::Reference,
        },
        threads: args.engine.threads,
        kv_memory: args.engine.kv_memory,
        queue: args.limits.queue,
        verify: args.engine.verify == Verify::Full,
        prefix_cache: !args.engine.no_prefix_cache,
        spec: args.engine.spec,
        token_budget: args.engine.token_budget,
    }
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

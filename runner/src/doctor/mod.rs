//! `fastrun doctor`: whether a machine is fit for a bundle, before it runs one.
//!
//! Each look at [`Tree`] and the runtimes yields a [`Finding`]: what was found, why it matters, what to do. [`machine`] is
//! about the kernel, the processor and memory, [`amd`] and [`nvidia`] about GPUs.

mod amd;
mod machine;
mod nvidia;
mod tree;
mod version;

use bundle_format::plan::KV_BLOCK;
use bundle_format::target::Target;

use crate::device::gpu::{self, Seen};
use crate::load::Loaded;

pub use tree::Tree;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Good,
    /// It works, and could be faster or safer.
    Advice,
    /// It won't work, or is known to fail.
    Problem,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Machine,
    Amd,
    Nvidia,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub part: Part,
    pub grade: Grade,
    /// What is there: `Linux 6.18.9`.
    pub what: String,
    /// Why that matters; empty for what is as it should be.
    pub why: String,
    /// What to do; empty likewise.
    pub remedy: String,
}

/// What the runtime of a maker's GPUs says: the library's version and the GPU, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtime {
    Works {
        /// `HIP 7.1`
        version: String,
        /// `AMD Radeon 8060S (gfx1151)`
        gpu: String,
        /// As targets are named.
        chip: String,
        /// Bytes of memory that are free.
        free: u64,
    },
    Fails(String),
}

/// The runtimes of both makers.
#[derive(Clone, Debug)]
pub struct Runtimes {
    pub hip: Runtime,
    pub cuda: Runtime,
}

impl Runtimes {
    /// This machine's, which are loaded for it.
    pub fn here() -> Runtimes {
        let runtime = |seen: Result<Seen, crate::Error>| match seen {
            Ok(seen) => Runtime::Works {
                version: seen.about.runtime,
                gpu: format!("{} ({})", seen.about.name, seen.about.chip),
                chip: seen.about.chip,
                free: seen.free,
            },
            Err(error) => Runtime::Fails(error.to_string()),
        };
        Runtimes {
            hip: runtime(gpu::see_hip()),
            cuda: runtime(gpu::see_cuda()),
        }
    }
}

/// What a bundle needs of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    pub target: Target,
    /// Bytes of weights, and of what a step needs beside them.
    pub bytes: u64,
    /// Bytes of the KV cache of one sequence of the bundle's whole context.
    pub sequence_bytes: u64,
}

impl Needs {
    pub fn of(loaded: &Loaded) -> Needs {
        let plan = loaded.plan();
        let blocks = u64::from(plan.limits.context).div_ceil(KV_BLOCK as u64);
        let block: u64 = plan.kv.iter().map(|kv| kv.block_bytes()).sum();
        Needs {
            target: loaded.manifest().target,
            bytes: loaded.bundle().weights_range().len() as u64 + plan.arena_bytes,
            sequence_bytes: blocks * block,
        }
    }
}

/// Looks at a machine; for a bundle, at what that needs, otherwise at all there is.
pub fn examine(tree: &Tree, runtimes: &Runtimes, needs: Option<&Needs>) -> Vec<Finding> {
    let target = needs.map(|n| n.target);
    let is_nvidia = |target: Target| target.compute_capability().is_some();
    let mut findings = machine::examine(tree, needs);
    if target.is_none_or(|target| target.is_gpu() && !is_nvidia(target)) {
        findings.extend(amd::examine(tree, &runtimes.hip, needs));
    }
    if target.is_none_or(is_nvidia) {
        findings.extend(nvidia::examine(tree, &runtimes.cuda, needs));
    }
    findings
}

impl Part {
    fn good(self, what: impl Into<String>) -> Finding {
        self.finding(Grade::Good, what.into(), "", "")
    }

    fn advice(
        self,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        self.finding(Grade::Advice, what.into(), why, remedy)
    }

    fn problem(
        self,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        self.finding(Grade::Problem, what.into(), why, remedy)
    }

    fn finding(
        self,
        grade: Grade,
        what: String,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding {
            part: self,
            grade,
            what,
            why: why.into(),
            remedy: remedy.into(),
        }
    }
}

/// Bytes for people: `61.2 GiB`.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Whether a GPU's free memory holds a bundle, and one sequence of its full length beside it.
fn room(part: Part, free: u64, needs: &Needs, more: &str) -> Finding {
    let all = needs.bytes + needs.sequence_bytes;
    if free < needs.bytes {
        part.problem(
            format!(
                "{} of GPU memory are free; the bundle takes {}",
                gib(free),
                gib(needs.bytes)
            ),
            "it can't be loaded",
            format!("free some, take a smaller model or a finer quantisation, or {more}"),
        )
    } else if free < all {
        part.advice(
            format!(
                "{} of GPU memory are free; the bundle takes {}, and one sequence of its full context {} more",
                gib(free),
                gib(needs.bytes),
                gib(needs.sequence_bytes)
            ),
            "long sequences end early, with the reason `length`",
            format!("compile with a smaller --ctx or --kv q8_0, or {more}"),
        )
    } else {
        part.good(format!(
            "{} of GPU memory are free; the bundle takes {} and {} a sequence",
            gib(free),
            gib(needs.bytes),
            gib(needs.sequence_bytes)
        ))
    }
}

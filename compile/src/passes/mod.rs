//! The passes over the graph, in order. Each is one idea; after each, the graph is verified.
//!
//! Those that are only worth speed can be turned off (`--disable-pass`), so that each one's worth is measured.

mod fold;
mod fuse_norm;
mod fuse_quantise;
mod fuse_rope_kv;
mod fuse_siblings;
mod fuse_swiglu;
mod quantise;

use crate::error::Error;
use crate::ir::{Graph, verify};

/// A rewriting of the graph.
pub struct Pass {
    pub name: &'static str,
    /// What it does, for `explain` and help texts.
    pub about: &'static str,
    /// Whether `--disable-pass` takes it: the result is the same function without it.
    pub optional: bool,
    run: fn(&mut Graph),
}

/// Every pass, in the order in which they run.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "fold-rope",
        about: "permute the rows of query and key weights so that rotated pairs are half a head apart",
        optional: false,
        run: fold::fold_rope,
    },
    Pass {
        name: "quantise",
        about: "quantise the activations that meet quantised weights",
        optional: false,
        run: quantise::quantise_activations,
    },
    Pass {
        name: "fuse-qkv",
        about: "multiply with the query, key and value weights in one launch",
        optional: true,
        run: fuse_siblings::fuse_qkv,
    },
    Pass {
        name: "fuse-gate-up",
        about: "multiply with the gate and up weights in one launch",
        optional: true,
        run: fuse_siblings::fuse_gate_up,
    },
    Pass {
        name: "fuse-swiglu",
        about: "SwiGLU in the epilogue of gate and up, which then interleave",
        optional: true,
        run: fuse_swiglu::fuse_swiglu,
    },
    Pass {
        name: "fuse-rope-kv",
        about: "rotate and write KV in the epilogues of query, key and value",
        optional: true,
        run: fuse_rope_kv::fuse_rope_kv,
    },
    Pass {
        name: "fuse-add-norm",
        about: "add the residual, and gather the wanted rows, in the norm",
        optional: true,
        run: fuse_norm::fuse_add_norm,
    },
    Pass {
        name: "fuse-quantise",
        about: "quantise activations where they are made",
        optional: true,
        run: fuse_quantise::fuse_quantise,
    },
];

/// What the graph was after a pass.
pub struct Stage {
    pub pass: &'static Pass,
    pub enabled: bool,
    pub graph: Graph,
}

/// Checks that every name can be disabled.
pub fn check_disabled(disabled: &[String]) -> Result<(), Error> {
    let optional = || {
        PASSES
            .iter()
            .filter(|p| p.optional)
            .map(|p| p.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    for name in disabled {
        match PASSES.iter().find(|p| p.name == name) {
            Some(p) if p.optional => {}
            Some(_) => {
                let can = optional();
                return Err(Error::User(format!(
                    "--disable-pass {name}: this pass is needed; these are not: {can}"
                )));
            }
            None => {
                let can = optional();
                return Err(Error::User(format!(
                    "--disable-pass {name}: no such pass; there are {can}"
                )));
            }
        }
    }
    Ok(())
}

/// Runs every pass that isn't disabled and hands each stage to `seen`.
pub fn run(
    mut graph: Graph,
    disabled: &[String],
    mut seen: impl FnMut(Stage),
) -> Result<Graph, Error> {
    check_disabled(disabled)?;
    verify::verify(&graph)
        .map_err(|e| Error::Bug(format!("the imported graph breaks a rule: {e}")))?;
    for pass in PASSES {
        let enabled = !disabled.iter().any(|d| d == pass.name);
        if enabled {
            (pass.run)(&mut graph);
            graph.renumber();
            verify::verify(&graph)
                .map_err(|e| Error::Bug(format!("pass {} breaks a rule: {e}", pass.name)))?;
        }
        seen(Stage {
            pass,
            enabled,
            graph: graph.clone(),
        });
    }
    Ok(graph)
}

/// Runs one pass by name, for tests.
pub fn run_one(graph: &mut Graph, name: &str) -> Result<(), Error> {
    let pass = PASSES.iter().find(|p| p.name == name);
    let pass = pass.ok_or_else(|| Error::User(format!("no pass '{name}'")))?;
    (pass.run)(graph);
    graph.renumber();
    verify::verify(graph).map_err(|e| Error::Bug(format!("pass {name} breaks a rule: {e}")))
}

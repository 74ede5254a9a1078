//! The passes over the graph, in order. Each is one idea; after each, the graph is verified.
//!
//! Those that are only worth speed can be turned off (`--disable-pass`), so that each one's worth is measured.

mod fold;
mod fuse_norm;
mod fuse_norm_matmul;
mod fuse_quantise;
mod fuse_rope_kv;
mod fuse_siblings;
mod fuse_swiglu;
mod gather_early;
mod index_experts;
mod quantise;

pub use quantise::Activations;

use crate::error::Error;
use crate::ir::{Graph, verify};

/// What the passes are told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Passes not to run.
    pub disabled: Vec<String>,
    pub activations: Activations,
    /// Whether the target's launches take so few rows as are wanted where they take a prompt's otherwise.
    pub early_gather: bool,
    /// Whether the target's matmuls have prologues.
    pub prologues: bool,
    /// Whether the target's launches of one token may multiply with weights of two formats in one kernel.
    pub mixed_launches: bool,
    /// Features that an epilogue of the target's matmuls has together; none: as many as there are. What adds over heads that
    /// do not divide them is a launch of its own.
    pub epilogue_features: Option<u32>,
}

/// A rewriting of the graph.
pub struct Pass {
    pub name: &'static str,
    /// What it does, for `explain` and help texts.
    pub about: &'static str,
    /// Whether `--disable-pass` takes it: the result is the same function without it.
    pub optional: bool,
    run: fn(&mut Graph, &Settings),
}

/// Every pass, in the order in which they run.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "fold-rope",
        about: "permute the rows of query and key weights so that rotated pairs are half a head apart",
        optional: false,
        run: |graph, _| fold::fold_rope(graph),
    },
    Pass {
        name: "index-experts",
        about: "read the rows of each expert's tokens where they lie, without gathering them first",
        optional: true,
        run: |graph, _| index_experts::index_experts(graph),
    },
    Pass {
        name: "gather-early",
        about: "gather the wanted rows behind the last attention, before what only they need, where the target's kernels can",
        optional: true,
        run: |graph, settings| {
            if settings.early_gather {
                gather_early::gather_early(graph);
            }
        },
    },
    Pass {
        name: "quantise",
        about: "quantise the activations that are multiplied as integers",
        optional: false,
        run: quantise::quantise_activations,
    },
    Pass {
        name: "fuse-qkv",
        about: "multiply with the query, key and value weights in one launch",
        optional: true,
        run: |graph, _| fuse_siblings::fuse_qkv(graph),
    },
    Pass {
        name: "fuse-gate-up",
        about: "multiply with the gate and up weights in one launch",
        optional: true,
        run: |graph, _| fuse_siblings::fuse_gate_up(graph),
    },
    Pass {
        name: "fuse-router",
        about: "multiply with a router's weights and the gate of the shared expert in one launch",
        optional: true,
        run: |graph, _| fuse_siblings::fuse_router(graph),
    },
    Pass {
        name: "fuse-swiglu",
        about: "SwiGLU or GeGLU in the epilogue of gate and up, which then interleave",
        optional: true,
        run: |graph, _| fuse_swiglu::fuse_swiglu(graph),
    },
    Pass {
        name: "fuse-rope-kv",
        about: "bias, head norm, rotation and KV write in the epilogues of query, key and value",
        optional: true,
        run: |graph, settings| fuse_rope_kv::fuse_rope_kv(graph, settings.epilogue_features),
    },
    Pass {
        name: "fuse-add-norm",
        about: "add the residual (norming it first, if the model does), and gather the wanted rows, in the norm",
        optional: true,
        run: |graph, _| fuse_norm::fuse_add_norm(graph),
    },
    Pass {
        name: "fuse-quantise",
        about: "quantise activations where they are made",
        optional: true,
        run: |graph, _| fuse_quantise::fuse_quantise(graph),
    },
    Pass {
        name: "fuse-shared",
        about: "multiply with a router's weights and the shared expert's gate and up in one launch, where the target's kernels can",
        optional: true,
        run: |graph, settings| {
            if settings.mixed_launches {
                fuse_siblings::fuse_shared(graph);
            }
        },
    },
    Pass {
        name: "fuse-norm-matmul",
        about: "norm the input of a matmul in its prologue, where the target's kernels for one row can",
        optional: true,
        run: |graph, settings| {
            if settings.prologues {
                fuse_norm_matmul::fuse_norm_matmul(graph);
            }
        },
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
    settings: &Settings,
    mut seen: impl FnMut(Stage),
) -> Result<Graph, Error> {
    check_disabled(&settings.disabled)?;
    verify::verify(&graph)
        .map_err(|e| Error::Bug(format!("the imported graph breaks a rule: {e}")))?;
    for pass in PASSES {
        let enabled = !settings.disabled.iter().any(|d| d == pass.name);
        if enabled {
            (pass.run)(&mut graph, settings);
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

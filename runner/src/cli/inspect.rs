//! `fastrun inspect`: what is in a bundle, for people and as JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};

use bundle_format::hash::Digest;
use bundle_format::layout::{Compression, Section};
use bundle_format::model::Manifest;
use bundle_format::plan::{Launch, Op, Plan, Variant};
use bundle_format::stability::Profile;
use fastrun::load::Loaded;
use serde_json::{Value, json};

use super::args::InspectArgs;
use super::failure::Failure;

/// What inspect shows.
struct Contents<'a> {
    file_len: u64,
    root: Digest,
    sections: &'a [Section],
    manifest: &'a Manifest,
    plan: &'a Plan,
}

pub fn run(args: &InspectArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let loaded = Loaded::open_to_look(&args.bundle)?;
    let bundle = loaded.bundle();
    let contents = Contents {
        file_len: loaded.file_len(),
        root: bundle.root(),
        sections: bundle.section_table(),
        manifest: bundle.manifest(),
        plan: bundle.plan(),
    };
    if args.json {
        writeln!(out, "{:#}", to_json(&contents))?;
    } else {
        print(&contents, out)?;
    }
    Ok(())
}

fn print(contents: &Contents, out: &mut dyn Write) -> io::Result<()> {
    print_manifest(contents, out)?;
    print_sections(contents.sections, out)?;
    print_plan(contents.plan, out)?;
    print_stability(&contents.plan.stability, out)?;
    print_launches(contents.plan, out)
}

fn print_manifest(contents: &Contents, out: &mut dyn Write) -> io::Result<()> {
    let m = contents.manifest;
    let model = &m.model;
    writeln!(
        out,
        "{} ({}), {} parameters, {}, {} layers, embedding {}, vocabulary {}, trained for {} positions",
        or_unnamed(&model.name),
        model.arch,
        model.parameters,
        or_unnamed(&model.quantisation),
        model.layers,
        model.embedding,
        model.vocab,
        model.trained_context
    )?;
    match m.features.is_empty() {
        true => writeln!(out, "target      {}", m.target)?,
        false => writeln!(out, "target      {} ({})", m.target, m.features.join(" "))?,
    }
    writeln!(out, "compiler    {}", m.compiler)?;
    writeln!(out, "toolchain   {}", m.toolchain.join(", "))?;
    writeln!(out, "zstd        {}", m.zstd)?;
    writeln!(out, "kernel ABI  {}", m.kernel_abi)?;
    writeln!(out, "options     {}", m.options.join(" "))?;
    writeln!(out, "source      {}", Digest(m.source_hash))?;
    writeln!(out, "root        {}", contents.root)
}

fn or_unnamed(name: &str) -> &str {
    if name.is_empty() { "unnamed" } else { name }
}

fn print_sections(sections: &[Section], out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "\nsections          offset        stored           raw  hash"
    )?;
    for s in sections {
        writeln!(
            out,
            "  {:<14}{:>8}{:>14}{:>14}  {:.16}{}",
            s.kind.name(),
            s.offset,
            s.stored_len,
            s.raw_len,
            s.hash.to_string(),
            match s.compression {
                Compression::Raw => "",
                Compression::Zstd => "  zstd",
            }
        )?;
    }
    Ok(())
}

fn print_plan(plan: &Plan, out: &mut dyn Write) -> io::Result<()> {
    let l = &plan.limits;
    writeln!(
        out,
        "\nplan: a step takes {} tokens of {} sequences and yields {} rows; context {}",
        l.max_tokens, l.max_seqs, l.max_rows, l.context
    )?;
    writeln!(
        out,
        "  arena {} bytes for {} buffers, {} shard(s)",
        plan.arena_bytes,
        plan.buffers.len(),
        plan.world_size
    )?;
    for (i, kv) in plan.kv.iter().enumerate() {
        writeln!(
            out,
            "  KV group {i}: {} layers of {} heads of {}, {:?}, {}, {} bytes a block",
            kv.layers,
            kv.kv_heads,
            kv.head_dim,
            kv.dtype,
            match kv.window {
                Some(window) => format!("window {window}"),
                None => "no window".to_string(),
            },
            kv.block_bytes()
        )?;
    }
    for (encoding, (count, bytes)) in weights_by_encoding(plan) {
        writeln!(out, "  {count} weights {encoding}: {bytes} bytes")?;
    }
    Ok(())
}

/// The stability profiles, and what each has chosen.
fn print_stability(profiles: &[Profile], out: &mut dyn Write) -> io::Result<()> {
    let names: Vec<String> = profiles.iter().map(|p| p.stability.to_string()).collect();
    let Some(own) = names.first() else {
        return Ok(());
    };
    writeln!(
        out,
        "\nstability: {own}, and after a fault of the device the next of: {}",
        names.join(", ")
    )?;
    for profile in profiles {
        let launched = match profile.eager {
            true => "launches one by one",
            false => "launches as graphs",
        };
        writeln!(out, "  {}: {launched}", profile.stability)?;
        for rule in &profile.rules {
            writeln!(out, "    {}: {} ({})", rule.when, rule.choice, rule.reason)?;
        }
    }
    Ok(())
}

/// Number and bytes of the weights of each encoding and layout.
fn weights_by_encoding(plan: &Plan) -> BTreeMap<String, (usize, u64)> {
    let mut all: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for weight in &plan.weights {
        let key = format!("{:?} {:?}", weight.encoding, weight.layout);
        let (count, bytes) = all.entry(key).or_default();
        *count += 1;
        *bytes += weight.len;
    }
    all
}

fn print_launches(plan: &Plan, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nlaunches: {}", plan.launches.len())?;
    for (i, launch) in plan.launches.iter().enumerate() {
        writeln!(
            out,
            "{i:>5}  {}: {}",
            launch.name,
            describe(plan, &launch.op)
        )?;
        for v in &launch.variants {
            let (first, last, reason) = (v.min_rows, v.max_rows, &v.reason);
            let profiles: Vec<String> = v.profiles.iter().map(|p| p.to_string()).collect();
            let of = match profiles.is_empty() {
                true => String::new(),
                false => format!(" [{}]", profiles.join(", ")),
            };
            write!(out, "         rows {first}..={last}{of}: {}", parts(v))?;
            if !v.parts.is_empty() {
                write!(out, ", tile {}x{}", v.tile_rows, v.tile_cols)?;
            }
            writeln!(out, " ({reason})")?;
        }
    }
    Ok(())
}

/// What does the work of a variant: `micro 3 + code 192`, for each part, or its kernels.
fn parts(variant: &Variant) -> String {
    let part = |p: &bundle_format::plan::Part| {
        let micro = p.micro.map(|id| format!("micro {id}"));
        let code = p.code.map(|c| format!("{} bytes of code", c.len));
        let all: Vec<String> = micro.into_iter().chain(code).collect();
        all.join(" + ")
    };
    let kernel = |k: &bundle_format::gpu::Kernel| {
        let shared = k.fixed_shared + k.shared;
        format!(
            "kernel {} of {} threads, {} registers, {shared} bytes shared",
            k.symbol, k.threads, k.registers
        )
    };
    if variant.is_joined() {
        return "the next launch's kernels".to_string();
    }
    let parts = variant.parts.iter().map(part);
    let all: Vec<String> = parts.chain(variant.kernels.iter().map(kernel)).collect();
    all.join(", ")
}

/// An operation in a line.
fn describe(plan: &Plan, op: &Op) -> String {
    let buffer = |id: u32| {
        let buffer = plan.buffers.get(id as usize);
        buffer.map_or("?", |b| b.name.as_str()).to_string()
    };
    let weight = |id: u32| match plan.weights.get(id as usize) {
        Some(w) => format!("{} [{} x {} {:?}]", w.name, w.rows, w.cols, w.encoding),
        None => "?".to_string(),
    };
    let segment =
        |s: &bundle_format::plan::Segment| format!("{} -> {}", weight(s.weight), s.epilogue.name);
    match op {
        Op::Embed {
            tokens, table, out, ..
        } => format!(
            "{} = rows of {} at {}",
            buffer(*out),
            weight(*table),
            buffer(*tokens)
        ),
        Op::RopeTable { positions, out, .. } => {
            format!(
                "{} = cosines and sines at {}",
                buffer(*out),
                buffer(*positions)
            )
        }
        Op::Region { extent, region } => format!(
            "{} over {extent:?} x {}, {} instructions",
            region.name,
            region.cols,
            region.body.len()
        ),
        Op::MatMul {
            x,
            prologue,
            segments,
        } => {
            let segments: Vec<String> = segments.iter().map(segment).collect();
            let x = match prologue {
                Some(region) => format!("{} of {}", buffer(*x), region.name),
                None => buffer(*x),
            };
            format!("{x} times {}", segments.join(" and "))
        }
        Op::Route {
            logits,
            weights,
            tokens,
            ..
        } => format!(
            "{} and {} = the experts of the highest {}",
            buffer(*weights),
            buffer(*tokens),
            buffer(*logits)
        ),
        Op::ExpertMatMul {
            x,
            tokens,
            segments,
            ..
        } => {
            let segments: Vec<String> = segments.iter().map(segment).collect();
            format!(
                "{} by {} times those of their experts: {}",
                buffer(*x),
                buffer(*tokens),
                segments.join(" and ")
            )
        }
        Op::Attention {
            q,
            group,
            layer,
            heads,
            epilogue,
            ..
        } => format!(
            "attention of {heads} heads of {} over KV group {group}, layer {layer} -> {}",
            buffer(*q),
            epilogue.name
        ),
    }
}

fn to_json(contents: &Contents) -> Value {
    let (m, plan) = (contents.manifest, contents.plan);
    json!({
        "file_bytes": contents.file_len,
        "root": contents.root.to_string(),
        "manifest": {
            "compiler": m.compiler,
            "toolchain": m.toolchain,
            "zstd": m.zstd,
            "source_hash": Digest(m.source_hash).to_string(),
            "target": m.target.name(),
            "features": m.features,
            "kernel_abi": m.kernel_abi,
            "options": m.options,
            "model": m.model,
        },
        "sections": contents.sections.iter().map(section_json).collect::<Vec<_>>(),
        "plan": {
            "limits": plan.limits,
            "world_size": plan.world_size,
            "arena_bytes": plan.arena_bytes,
            "kv": plan.kv,
            "buffers": plan.buffers,
            "stability": plan.stability,
            "weights": plan.weights,
            "launches": plan.launches.iter().map(|l| launch_json(plan, l)).collect::<Vec<_>>(),
        },
    })
}

fn section_json(section: &Section) -> Value {
    json!({
        "kind": section.kind.name(),
        "offset": section.offset,
        "stored_bytes": section.stored_len,
        "raw_bytes": section.raw_len,
        "compression": match section.compression {
            Compression::Raw => "none",
            Compression::Zstd => "zstd",
        },
        "hash": section.hash.to_string(),
    })
}

fn launch_json(plan: &Plan, launch: &Launch) -> Value {
    json!({
        "name": launch.name,
        "op": describe(plan, &launch.op),
        "deps": launch.deps,
        "variants": launch.variants,
    })
}

//! Plans for a GPU that hash right and are wrong: each rule of validate/gpu.rs by a plan that breaks it.

mod common;

use bundle_format::gpu::{Arg, Extent, Kernel, Sampling};
use bundle_format::plan::*;
use bundle_format::region::{ColMap, Inst, KvPart, Operand, Region};
use bundle_format::stability::{Profile, Profiles, Rule, Stability};
use bundle_format::target::Target;
use bundle_format::{ErrorKind, codec, validate};
use common::edits::{self, ATTENTION, NORM, OUTPUT, QKV, SMALL};
use common::*;

/// The sample plan with kernels in place of microkernels.
fn gpu_plan() -> Plan {
    let mut plan = plan(SMALL);
    for launch in &mut plan.launches {
        let args = match &launch.op {
            Op::MatMul { x, segments, .. } => {
                vec![
                    Arg::Counts,
                    Arg::Buffer(*x),
                    Arg::Weight(segments[0].weight),
                ]
            }
            Op::Attention {
                q, group, layer, ..
            } => {
                let part = KvPart::Key;
                vec![
                    Arg::Buffer(*q),
                    Arg::Kv {
                        group: *group,
                        layer: *layer,
                        part,
                    },
                    Arg::Tables(*group),
                    Arg::TableStride,
                    // An input, which any launch may read.
                    Arg::Buffer(buf::POSITIONS),
                    Arg::Tiles,
                    Arg::Workspace,
                    Arg::Tickets,
                ]
            }
            _ => vec![Arg::Counts],
        };
        for variant in &mut launch.variants {
            variant.parts.clear();
            variant.kernels.push(Kernel {
                symbol: "matmul_0".into(),
                grid: [Extent::Fixed(132), Extent::Rows(8), Extent::Tiles(64)],
                threads: 256,
                registers: 128,
                fixed_shared: 100,
                shared: 32 << 10,
                workspace: 1 << 20,
                tickets: 16,
                args: args.clone(),
            });
        }
    }
    plan
}

fn open_for(target: Target, plan: &Plan) -> Result<(), bundle_format::Error> {
    let mut manifest = manifest(SMALL);
    manifest.target = target;
    manifest.features.clear();
    open(&Raw::of(&manifest, plan).build())
}

/// Opening the plan with one kernel of the launch changed fails with an error of the plan that has all of these texts.
fn bad(launch: usize, texts: &[&str], change: impl Fn(&mut Kernel)) {
    let good = gpu_plan();
    let mut plan = good.clone();
    change(&mut plan.launches[launch].variants[0].kernels[0]);
    assert!(plan != good, "{texts:?}: the change changes nothing");
    says(open_for(Target::Sm90a, &plan), texts);
}

fn says(result: Result<(), bundle_format::Error>, texts: &[&str]) {
    let error = result.expect_err("accepted");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(error.section(), Some("plan"), "{error}");
    for text in texts {
        assert!(error.to_string().contains(text), "no {text:?} in: {error}");
    }
}

#[test]
fn the_sample_opens_for_each_gpu() {
    for &target in Target::ALL.iter().filter(|t| t.is_gpu()) {
        open_for(target, &gpu_plan()).unwrap();
    }
}

#[test]
fn kernels_are_for_gpus_and_gpus_for_kernels() {
    let texts = [
        "launch 0 (embed): variant 0: kernels",
        "none, for x86-64-v3",
    ];
    says(open_for(Target::X86_64V3, &gpu_plan()), &texts);
    let texts = [
        "launch 0 (embed): variant 0: kernels",
        "kernels and no parts, for sm_80",
    ];
    says(open_for(Target::Sm80, &plan(SMALL)), &texts);
    let mut both = gpu_plan();
    both.launches[QKV].variants[0].parts = plan(SMALL).launches[QKV].variants[0].parts.clone();
    let texts = ["launch 3", "parts of a variant with kernels", "found 3"];
    says(open_for(Target::Sm90a, &both), &texts);
}

#[test]
fn a_launch_may_do_the_work_of_the_one_before() {
    let joined = |first: usize| {
        let mut plan = gpu_plan();
        plan.launches[first].variants[0].kernels.clear();
        plan
    };
    // Its kernels may take what either may.
    let of_norm = |plan: &mut Plan| {
        let args = &mut plan.launches[QKV].variants[0].kernels[0].args;
        args.push(Arg::Buffer(buf::X));
    };
    let mut plan = joined(NORM);
    of_norm(&mut plan);
    open_for(Target::Sm90a, &plan).unwrap();
    let mut apart = gpu_plan();
    of_norm(&mut apart);
    let texts = ["launch 3", "buffer", "one that the launch reads or writes"];
    says(open_for(Target::Sm90a, &apart), &texts);
    // There is such a launch.
    let last = gpu_plan().launches.len() - 1;
    let texts = ["variant 0: parts and kernels", "found none of either"];
    says(open_for(Target::Sm90a, &joined(last)), &texts);
    let mut none = joined(NORM);
    none.launches[QKV].variants[0].kernels.clear();
    says(open_for(Target::Sm90a, &none), &texts);
    // What the first reads is there as long as the second works.
    let mut plan = joined(QKV);
    open_for(Target::Sm90a, &plan).unwrap();
    let bytes = |plan: &Plan, buffer: u32| {
        let buffer = &plan.buffers[buffer as usize];
        buffer.row_bytes() * u64::from(plan.limits.max_tokens)
    };
    let end = plan.buffers[buf::NORMED as usize].place.offset + bytes(&plan, buf::NORMED);
    plan.buffers[buf::HEADS as usize].place.offset = end - bytes(&plan, buf::HEADS);
    let texts = [
        "launch 4",
        "read of buffer 7 (normed)",
        "for the launch before",
    ];
    says(open_for(Target::Sm90a, &plan), &texts);
}

#[test]
fn names() {
    for symbol in ["", "matmul 0", "matmul\0", "a.b", &"m".repeat(129)] {
        bad(
            NORM,
            &["launch 2", "variant 0", "kernel 0", "symbol"],
            |k| k.symbol = symbol.into(),
        );
    }
}

#[test]
fn sizes() {
    let at = "launch 3 (qkv): variant 0: kernel 0: ";
    let bad =
        |text: &str, change: &dyn Fn(&mut Kernel)| bad(QKV, &[&format!("{at}{text}")], change);
    bad("threads", &|k| k.threads = 0);
    bad("threads", &|k| k.threads = 1025);
    bad("registers", &|k| k.registers = 0);
    bad("registers", &|k| k.registers = 257);
    bad("registers of a block", &|k| {
        (k.threads, k.registers) = (1024, 65)
    });
    bad("shared", &|k| k.shared = 227 << 10);
    bad("shared", &|k| {
        (k.shared, k.fixed_shared) = (u32::MAX, u32::MAX)
    });
    bad("grid", &|k| k.grid[0] = Extent::Fixed(0));
    bad("grid", &|k| k.grid[1] = Extent::Rows(0));
    bad("grid", &|k| k.grid[2] = Extent::Tiles(65536));
    bad("workspace", &|k| k.workspace = u64::MAX);
    bad("tickets", &|k| k.tickets = u32::MAX);
    bad("args", &|k| k.args = vec![Arg::Counts; 1025]);
}

/// What one chip has room for another has not.
#[test]
fn shared_memory_of_each_chip() {
    for (target, most) in [
        (Target::Sm80, 163 << 10),
        (Target::Sm86, 99 << 10),
        (Target::Sm89, 99 << 10),
        (Target::Sm90a, 227 << 10),
        (Target::Sm100a, 227 << 10),
        (Target::Sm120a, 99 << 10),
        (Target::Gfx1151, 64 << 10),
    ] {
        let mut plan = gpu_plan();
        let kernel = &mut plan.launches[OUTPUT].variants[0].kernels[0];
        kernel.shared = most - kernel.fixed_shared;
        open_for(target, &plan).unwrap();
        plan.launches[OUTPUT].variants[0].kernels[0].shared += 1;
        says(open_for(target, &plan), &["kernel 0: shared"]);
    }
}

#[test]
fn arguments_are_the_launch_s_own() {
    let buffers = plan(SMALL).buffers.len() as u32;
    let at = |text: &str| format!("kernel 0: argument 1: {text}");
    let bad = |launch: usize, text: &str, arg: Arg| bad(launch, &[&at(text)], |k| k.args[1] = arg);
    bad(QKV, "buffer", Arg::Buffer(buffers));
    bad(QKV, "buffer", Arg::Buffer(buf::LOGITS));
    bad(QKV, "weight", Arg::Weight(99));
    bad(QKV, "weight", Arg::Weight(6));
    bad(QKV, "KV group", Arg::Tables(1));
    let part = KvPart::Value;
    let kv = |group, layer| Arg::Kv { group, layer, part };
    bad(ATTENTION, "", kv(1, 0));
    bad(ATTENTION, "", kv(0, 1));
    bad(OUTPUT, "KV pool", kv(0, 0));
}

/// What draws tokens is checked as the rest, and reads logits alone.
#[test]
fn what_draws_reads_logits() {
    let mut plan = gpu_plan();
    let kernel = |symbol: &str, args: &[Arg]| Kernel {
        symbol: symbol.into(),
        args: args.to_vec(),
        ..plan.launches[0].variants[0].kernels[0].clone()
    };
    let sampling = Sampling {
        likeliest: kernel(
            "likeliest",
            &[Arg::Counts, Arg::Buffer(buf::LOGITS), Arg::Drawn],
        ),
        weigh: kernel("weigh", &[Arg::Draws, Arg::Workspace]),
        select: kernel("select", &[Arg::Tickets]),
        draw: kernel("draw", &[Arg::Drawn]),
    };
    plan.sampling = Some(sampling.clone());
    open_for(Target::Sm90a, &plan).unwrap();
    let refused = |texts: &[&str], change: &dyn Fn(&mut Sampling)| {
        let mut sampling = sampling.clone();
        change(&mut sampling);
        let mut plan = plan.clone();
        plan.sampling = Some(sampling);
        says(open_for(Target::Sm90a, &plan), texts);
    };
    refused(&["sampling (select)", "weight"], &|s| {
        s.select.args[0] = Arg::Weight(0)
    });
    refused(&["sampling (draw)", "threads"], &|s| s.draw.threads = 0);
    refused(&["sampling", "shared"], &|s| s.draw.shared = 227 << 10);
}

/// The sample with a profile and all stricter ones, of which the product of launch 3 has kernels of their own.
fn plan_with_profiles(own: Stability) -> Plan {
    let mut plan = gpu_plan();
    let all: Vec<Stability> = Stability::ALL.into_iter().filter(|&s| s >= own).collect();
    for launch in &mut plan.launches {
        for variant in &mut launch.variants {
            variant.profiles = all.iter().copied().collect();
        }
    }
    plan.stability = all
        .iter()
        .map(|&stability| Profile {
            stability,
            eager: stability == Stability::Strict,
            rules: vec![Rule {
                when: "a step".into(),
                choice: "kernels one by one".into(),
                reason: "a fault is known by its launch".into(),
            }],
        })
        .collect();
    let variants = &mut plan.launches[QKV].variants;
    let of_one = std::mem::take(variants);
    for stability in all {
        variants.extend(of_one.iter().map(|variant| Variant {
            profiles: stability.into(),
            ..variant.clone()
        }));
    }
    plan
}

#[test]
fn profiles_are_one_and_all_stricter_ones() {
    for own in Stability::ALL {
        open_for(Target::Gfx1151, &plan_with_profiles(own)).unwrap();
    }
    let good = plan_with_profiles(Stability::Balanced);
    let refused = |texts: &[&str], change: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        change(&mut plan);
        says(open_for(Target::Gfx1151, &plan), texts);
    };
    says(
        open_for(Target::Sm90a, &good),
        &["stability", "no profiles, for sm_90a", "found 2"],
    );
    refused(&["stability: profiles", "up to the strictest"], &|p| {
        p.stability.truncate(1)
    });
    refused(&["stability: profile 1", "expected strict"], &|p| {
        p.stability[1].stability = Stability::Balanced
    });
    refused(&["stability: profile 0: rules", "at most 64"], &|p| {
        let rule = p.stability[0].rules[0].clone();
        p.stability[0].rules = vec![rule; 65];
    });
    refused(&["stability: profile 1: rule 0"], &|p| {
        p.stability[1].rules[0].reason = "\n".into()
    });
}

#[test]
fn each_profile_has_variants_for_all_rows() {
    let refused = |texts: &[&str], change: &dyn Fn(&mut Vec<Variant>)| {
        let mut plan = plan_with_profiles(Stability::Balanced);
        change(&mut plan.launches[QKV].variants);
        says(open_for(Target::Gfx1151, &plan), texts);
    };
    refused(
        &["launch 3", "variant 0: profiles", "balanced, strict"],
        &|v| v[0].profiles = Profiles::NONE,
    );
    refused(&["variant 0: profiles", "0b101"], &|v| {
        v[0].profiles = [Stability::Fast, Stability::Strict].into_iter().collect()
    });
    refused(&["variant 2: min_rows", "expected 9"], &|v| {
        v[2].profiles = Stability::Balanced.into()
    });
    refused(&["launch 3", "variants up to the limit"], &|v| {
        v.pop();
    });
    refused(&["launch 3", "variants up to the limit"], &|v| {
        v[1].max_rows = 7
    });
    // Of a plan without profiles.
    let mut plan = gpu_plan();
    plan.launches[0].variants[0].profiles = Stability::Strict.into();
    says(
        open_for(Target::Gfx1151, &plan),
        &["variant 0: profiles", "none"],
    );
}

/// A number behind the last argument is one that a later version may know.
#[test]
fn unknown_arguments_are_unsupported() {
    let plan = gpu_plan();
    let encoded = codec::encode(&plan).unwrap();
    let last = plan.launches.len() - 1;
    // The last argument of the last kernel is a weight: its number and the index.
    let Some(Arg::Weight(index)) = plan.launches[last].variants[0].kernels[0].args.last() else {
        panic!("the sample's last launch is a product")
    };
    let reason = "the only one";
    // Behind it are the variant's profiles, the reason and its length; and nothing is drawn, and there are no profiles.
    let tail = 1 + reason.len() + 1 + 1 + 1;
    let at = encoded.len() - tail - 2;
    assert_eq!(encoded[at..at + 2], [2, *index as u8]);
    let mut unknown = encoded.clone();
    unknown[at] = 77;
    let mut manifest = manifest(SMALL);
    manifest.target = Target::Sm90a;
    let manifest = codec::encode(&manifest).unwrap();
    let error = open(&Raw::from_bytes(&manifest, &unknown, &weights_section(&plan)).build());
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("77"), "{error}");
}

/// The sample with its norm in the prologue of the product that reads it, whose input is f16.
fn fused_plan() -> Plan {
    let mut plan = gpu_plan();
    plan.buffers[buf::NORMED as usize].dtype = DType::F16;
    let mut offset = 0;
    for (i, w) in plan.weights.iter_mut().enumerate() {
        if (3..=6).contains(&i) {
            w.layout = WeightLayout::Fragment16;
            w.len = validate::packed_len(w.encoding, w.layout, w.rows, w.cols).unwrap();
        }
        w.offset = offset;
        offset = (offset + w.len).next_multiple_of(ALIGN as u64);
    }
    // The other product of fragments, whose input isn't the prologue's.
    plan.buffers[buf::HEADS as usize].dtype = DType::F16;
    plain_stores(edits::region(&mut plan, ATTENTION));
    let mut norm = plan.launches.remove(NORM);
    let Op::Region { region, .. } = &mut norm.op else {
        panic!("the sample has a norm");
    };
    plain_stores(region);
    let Op::MatMul { prologue, .. } = &mut plan.launches[FUSED].op else {
        panic!("the sample's product is behind its norm");
    };
    *prologue = Some(region.clone());
    for (i, launch) in (0u32..).zip(&mut plan.launches) {
        launch.deps = i.checked_sub(1).into_iter().collect();
    }
    plan
}

/// Where the product with a prologue is, and the one of the attention's results.
const FUSED: usize = NORM;
const FUSED_O: usize = edits::O - 1;

fn plain_stores(region: &mut Region) {
    for inst in &mut region.body {
        if let Inst::StoreQuant { dst, col, x } = *inst {
            *inst = Inst::Store { dst, col, x };
        }
    }
}

fn prologue(plan: &mut Plan) -> &mut Region {
    match &mut plan.launches[FUSED].op {
        Op::MatMul {
            prologue: Some(region),
            ..
        } => region,
        other => panic!("{other:?} has no prologue"),
    }
}

#[test]
fn a_prologue_and_what_it_may_touch() {
    open_for(Target::Sm90a, &fused_plan()).unwrap();
    let refused = |texts: &[&str], change: &dyn Fn(&mut Plan)| {
        let mut plan = fused_plan();
        change(&mut plan);
        says(open_for(Target::Sm90a, &plan), texts);
    };
    let at = "launch 2 (qkv): prologue";
    // Nobody else reads what it makes.
    refused(&["launch 4 (o)", "read of buffer 7 (normed)"], &|p| {
        let launch = &mut p.launches[FUSED_O];
        if let Op::MatMul { x, .. } = &mut launch.op {
            *x = buf::NORMED;
        }
        let kernels = launch.variants.iter_mut().flat_map(|v| &mut v.kernels);
        kernels.for_each(|k| k.args[1] = Arg::Buffer(buf::NORMED));
    });
    // All of it is made.
    refused(&[at, "all 64 columns of x"], &|p| prologue(p).cols = 32);
    refused(&[at, "all 64 columns of x"], &|p| {
        prologue(p).body.pop();
    });
    // Blocks that are ahead change nothing that others still read.
    let stored_to = |p: &mut Plan, buffer: u32| {
        let region = prologue(p);
        region.operands.push(Operand::Buffer(buffer));
        region.body.push(Inst::Store {
            dst: region.operands.len() as u32 - 1,
            col: ColMap {
                per_unit: 32,
                offset: 0,
            },
            x: 0,
        });
    };
    refused(&[at, "none to a buffer that it loads"], &|p| {
        stored_to(p, buf::X)
    });
    let together = "stores nothing that an epilogue touches";
    refused(&["launch 2 (qkv): buffer 8", together], &|p| {
        stored_to(p, buf::QUERY)
    });
    refused(&["launch 2 (qkv): buffer 5", together], &|p| {
        edits::epilogue(p, FUSED, 0).operands[1] = Operand::Buffer(buf::X);
    });
    // Only a GPU's kernels have one.
    refused(&["launch 2 (qkv)", "microkernels have no prologue"], &|p| {
        let variant = &mut p.launches[FUSED].variants[0];
        variant.kernels.clear();
        variant.tile_cols = 32;
        variant.parts = plan(SMALL).launches[QKV].variants[0].parts.clone();
    });
    // Its operands are the launch's own.
    let mut plan = fused_plan();
    let args = &mut plan.launches[FUSED].variants[0].kernels[0].args;
    args.extend([Arg::Buffer(buf::X), Arg::Weight(2)]);
    open_for(Target::Sm90a, &plan).unwrap();
}

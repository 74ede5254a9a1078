//! Mixtures of experts on the CPU, against the reference device and against themselves: by numbers of tokens, of threads, in
//! chunks; with routers that send every token to the same experts, and with ones that can't send a token anywhere.

use e2e::experts::{
    COUNTS, SHAPES, agree, bits, by_threads_and_chunks, compiled, cpu, differences, ids, model,
    run, step, with_router,
};
use fastrun::Error;
use fastrun::device::Device;
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::load::Loaded;

#[test]
fn every_number_of_tokens_agrees_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let model = model(folder.path(), shape, "q4_0");
        let fused = compiled(&model, &[]);
        let mut reference =
            ReferenceDevice::open(fused.clone(), &ReferenceOptions::default()).unwrap();
        let mut device = cpu(&fused, 2);
        for count in COUNTS {
            let ids = ids(count);
            let found = run(&mut device, step(&ids, 0, count)).unwrap();
            let expected = run(&mut reference, step(&ids, 0, count)).unwrap();
            agree(&found, &expected, &format!("{shape}, {count} tokens"));
        }
    }
}

#[test]
fn encodings_agree_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for quant in [
        "f16", "bf16", "f32", "q8_0", "q4_1", "q5_0", "iq4_nl", "mxfp4",
    ] {
        let fused = compiled(&model(folder.path(), "tiny-qwen2moe", quant), &[]);
        let mut reference =
            ReferenceDevice::open(fused.clone(), &ReferenceOptions::default()).unwrap();
        let ids = ids(40);
        let found = run(&mut cpu(&fused, 2), step(&ids, 0, 40)).unwrap();
        let expected = run(&mut reference, step(&ids, 0, 40)).unwrap();
        agree(&found, &expected, quant);
    }
}

/// The same bits whatever the chunks, the threads and the form of the expert matmuls.
#[test]
fn chunks_threads_and_gathering_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let quants = ["q4_0", "f16"];
    for (shape, quant) in SHAPES.into_iter().flat_map(|s| quants.map(|q| (s, q))) {
        let model = model(folder.path(), shape, quant);
        let fused = compiled(&model, &[]);
        let whole = by_threads_and_chunks(&fused, &format!("{shape} {quant}"));
        let gathered = compiled(&model, &["--disable-pass", "index-experts"]);
        let found = run(&mut cpu(&gathered, 2), step(&ids(64), 0, 64)).unwrap();
        assert!(bits(&found) == bits(&whole), "{shape} {quant}: gathered");
    }
}

/// Equal logits: every token goes to the first experts, and nobody to the others.
#[test]
fn ties_send_all_tokens_to_the_first_experts() {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let model = model(folder.path(), shape, "q8_0");
        let fused = compiled(&with_router(&model, "ties", |_| 0.0), &[]);
        let mut reference =
            ReferenceDevice::open(fused.clone(), &ReferenceOptions::default()).unwrap();
        let mut device = cpu(&fused, 2);
        for count in [1, 2, 70, 512] {
            let ids = ids(count);
            let before = device.expert_bytes();
            let found = run(&mut device, step(&ids, 0, count)).unwrap();
            let expected = run(&mut reference, step(&ids, 0, count)).unwrap();
            // Nothing lies close: all is equal.
            let rows = differences(&found, &expected);
            let worst = rows[rows.len() - 1];
            assert!(worst < 0.004, "{shape}, {count} tokens: {worst}");
            // However many tokens, only these experts' weights are read.
            let read = device.expert_bytes() - before;
            assert_eq!(read, bytes_of_experts(&fused), "{shape}, {count} tokens");
        }
    }
}

/// Bytes of as many experts as a token goes to, in all launches.
fn bytes_of_experts(loaded: &Loaded) -> u64 {
    use bundle_format::plan::{Dim, Op};
    let plan = loaded.plan();
    let of = |op: &Op| match op {
        Op::ExpertMatMul {
            tokens,
            starts,
            segments,
            ..
        } => {
            let Dim::Pairs(used) = plan.buffers[*tokens as usize].extent else {
                panic!("the list is of pairs");
            };
            let experts = plan.buffers[*starts as usize].cols as u64 - 1;
            let len = |s: &bundle_format::plan::Segment| plan.weights[s.weight as usize].len;
            segments.iter().map(len).sum::<u64>() / experts * used as u64
        }
        _ => 0,
    };
    plan.launches.iter().map(|l| of(&l.op)).sum()
}

/// A router whose logits are no numbers is an error of the step that says where; it doesn't hang, and the device goes on.
#[test]
fn logits_that_are_not_finite_are_an_error_of_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), "tiny-qwen3moe", "q4_0");
    for (name, value) in [("nan", f32::NAN), ("inf", f32::INFINITY), ("large", 3e38)] {
        let broken = compiled(
            &with_router(&model, name, |i| if i == 200 { value } else { 0.01 }),
            &[],
        );
        let reference = ReferenceDevice::open(broken.clone(), &ReferenceOptions::default());
        let mut devices: [Box<dyn Device>; 3] = [
            Box::new(cpu(&broken, 1)),
            Box::new(cpu(&broken, 3)),
            Box::new(reference.unwrap()),
        ];
        for device in &mut devices {
            for count in [1, 40] {
                let error = run(device.as_mut(), step(&ids(count), 0, count));
                // 3e38 overflows for some tokens only.
                let text = match error {
                    Err(error @ Error::User(_)) => error.to_string(),
                    Err(other) => panic!("{name}: {other:?}"),
                    Ok(_) if name == "large" => continue,
                    Ok(_) => panic!("{name}: {count} tokens went somewhere"),
                };
                for says in ["blk.0.route", "token", "position", "finite"] {
                    assert!(text.contains(says), "{text}");
                }
            }
        }
    }
}

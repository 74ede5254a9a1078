//! Weights in blocks of 256 on the CPU, dense and of experts, against the reference device and against themselves: by numbers of
//! tokens, of threads, in chunks.

use bundle_format::plan::{DType, Op};
use e2e::experts::{
    agree_within, bits, by_threads_and_chunks, compiled, cpu, ids, model, run, step,
};
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::load::Loaded;

const QUANTS: [&str; 6] = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"];

/// Rows of 8 bits and of 11, by `--activations`, and what they may make of the largest logit.
const ROWS: [(&str, DType, f32); 2] = [("q8", DType::Q8K, 0.05), ("q11", DType::Q11, 0.008)];

/// Types of rows that a plan's products take, the router's f32 aside.
fn rows_of(loaded: &Loaded) -> Vec<DType> {
    let plan = loaded.plan();
    let of = |x: u32| plan.buffers[x as usize].dtype;
    let mut types: Vec<DType> = plan
        .launches
        .iter()
        .filter_map(|launch| match launch.op {
            Op::MatMul { x, .. } | Op::ExpertMatMul { x, .. } => Some(of(x)),
            _ => None,
        })
        .filter(|dtype| *dtype != DType::F32)
        .collect();
    types.dedup();
    types
}

#[test]
fn encodings_agree_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for quant in QUANTS {
        let model = model(folder.path(), "tiny256", quant);
        for (activations, dtype, tolerance) in ROWS {
            let fused = compiled(&model, &["--activations", activations]);
            assert_eq!(rows_of(&fused), [dtype], "{quant}");
            let mut reference =
                ReferenceDevice::open(fused.clone(), &ReferenceOptions::default()).unwrap();
            let ids = ids(40);
            for count in [1, 2, 7, 40] {
                let found = run(&mut cpu(&fused, 2), step(&ids, 0, count)).unwrap();
                let expected = run(&mut reference, step(&ids, 0, count)).unwrap();
                let what = format!("{quant} x {dtype:?}, {count} tokens");
                agree_within(tolerance, &found, &expected, &what);
            }
        }
    }
}

/// Experts' results are quantised in a launch of their own, between two products.
#[test]
fn experts_agree_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for quant in QUANTS {
        let model = model(folder.path(), "tiny-mixtral", quant);
        let fused = compiled(&model, &["--activations", "q8"]);
        assert!(rows_of(&fused).contains(&DType::Q8K), "{quant}");
        let mut reference =
            ReferenceDevice::open(fused.clone(), &ReferenceOptions::default()).unwrap();
        let ids = ids(40);
        for count in [1, 40] {
            let found = run(&mut cpu(&fused, 2), step(&ids, 0, count)).unwrap();
            let expected = run(&mut reference, step(&ids, 0, count)).unwrap();
            agree_within(0.05, &found, &expected, &format!("{quant}, {count} tokens"));
        }
    }
}

/// The same bits whatever the chunks, the threads and the passes.
#[test]
fn chunks_threads_and_passes_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (shape, quant) in [
        ("tiny256", "q4_k"),
        ("tiny256", "q6_k"),
        ("tiny256", "q2_k"),
        ("tiny256", "iq4_xs"),
        ("tiny-mixtral", "q5_k"),
    ] {
        let model = model(folder.path(), shape, quant);
        let fused = compiled(&model, &["--activations", "q8"]);
        let whole = by_threads_and_chunks(&fused, &format!("{shape} {quant}"));
        let apart = ["--activations", "q8", "--disable-pass", "fuse-quantise"];
        let found = run(
            &mut cpu(&compiled(&model, &apart), 2),
            step(&ids(64), 0, 64),
        )
        .unwrap();
        assert!(bits(&found) == bits(&whole), "{shape} {quant}: unfused");
    }
}

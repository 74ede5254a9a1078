//! Plans whose launches don't wait for one another as they must.

mod common;

use bundle_format::plan::*;
use bundle_format::region::*;
use common::edits::*;
use common::*;

/// A launch that does not wait for one that it must wait for is a data race.
#[test]
fn races() {
    bad(
        &[
            "launch 2 (norm): deps: expected to wait for launch 0 (embed)",
            "reads buffer 5 (x)",
            "found []",
        ],
        |p| p.launches[NORM].deps.clear(),
    );
    // Another launch is no help that doesn't wait for it either.
    bad(
        &["launch 2 (norm): deps", "launch 0 (embed)", "found [1]"],
        |p| p.launches[ROPE].deps.clear(),
    );
    bad(
        &[
            "launch 3 (qkv): deps",
            "launch 1 (rope)",
            "reads buffer 6 (rope)",
        ],
        |p| p.launches[NORM].deps = vec![0],
    );
    bad(&["launch 4 (attention): deps", "launch 3 (qkv)"], |p| {
        p.launches[ATTENTION].deps = vec![2]
    });
    bad(&["launch 5 (o): deps", "launch 4 (attention)"], |p| {
        p.launches[O].deps = vec![3]
    });
    bad(&["launch 6 (last norm): deps", "launch 5 (o)"], |p| {
        p.launches[LAST].deps = vec![4, 0]
    });
    bad(&["launch 7 (output): deps", "launch 6 (last norm)"], |p| {
        p.launches[OUTPUT].deps = vec![5]
    });
    // What is not needed may be left out, and what is may come by any way.
    check(|p| {
        p.launches[ROPE].deps.clear();
        p.launches[NORM].deps = vec![0];
        p.launches[QKV].deps = vec![1, 2];
    })
    .unwrap();
    check(|p| p.launches[OUTPUT].deps = vec![6, 6, 0]).unwrap();
    unsupported(&["launches", "at most 16384"], |p| {
        p.launches = vec![p.launches[0].clone(); 16385]
    });
}

/// A launch may not overwrite what another one may still read.
#[test]
fn races_with_readers() {
    let aside = |deps: &'static [u32]| {
        move |p: &mut Plan| {
            let offset = p.arena_bytes;
            let mut own = p.buffers[buf::NORMED as usize].clone();
            own.place.offset = offset;
            p.arena_bytes += 1 << 20;
            p.buffers.push(own);
            let mut aside = p.launches[NORM].clone();
            aside.name = "aside".into();
            p.launches.insert(ATTENTION, aside);
            // It reads x, which the product behind the attention updates.
            region(p, ATTENTION).operands[2] = Operand::Buffer(buf::LOGITS + 1);
            for (i, launch) in p.launches.iter_mut().enumerate().skip(ATTENTION) {
                launch.deps = vec![i as u32 - 1];
            }
            p.launches[ATTENTION].deps = vec![0];
            p.launches[ATTENTION + 1].deps = vec![QKV as u32];
            p.launches[O + 1].deps = deps.to_vec();
        }
    };
    bad(
        &[
            "launch 6 (o): deps: expected to wait for launch 4 (aside)",
            "writes buffer 5 (x)",
        ],
        aside(&[5]),
    );
    check(aside(&[5, 4])).unwrap();
    check(aside(&[4, 5])).unwrap();
}

/// The keys and the values of a layer are shared memory like any buffer.
#[test]
fn races_in_kv_pools() {
    // The values' product as a launch of its own, at this index, with these deps.
    let split = |at: usize, own: &'static [u32], attention: &'static [u32]| {
        move |p: &mut Plan| {
            let mut values = p.launches[QKV].clone();
            let cut = |launch: &mut Launch, range: std::ops::Range<usize>| {
                if let Op::MatMul { segments, .. } = &mut launch.op {
                    *segments = segments[range.clone()].to_vec();
                }
                for variant in &mut launch.variants {
                    variant.parts = variant.parts[range.clone()].to_vec();
                }
            };
            cut(&mut values, 2..3);
            cut(&mut p.launches[QKV], 0..2);
            values.name = "values".into();
            values.deps = own.to_vec();
            p.launches.insert(at, values);
            for i in at + 1..p.launches.len() {
                p.launches[i].deps = vec![i as u32 - 1];
            }
            let launch = p.launches.iter_mut().find(|l| l.name == "attention");
            launch.unwrap().deps = attention.to_vec();
        }
    };
    check(split(4, &[2], &[3, 4])).unwrap();
    bad(
        &[
            "launch 5 (attention): deps",
            "launch 4 (values)",
            "reads the values of layer 0 of KV group 0",
        ],
        split(4, &[2], &[3]),
    );
    bad(
        &["launch 5 (attention): deps", "launch 3 (qkv)"],
        split(4, &[2], &[4]),
    );
    check(split(5, &[4], &[3])).unwrap();
    bad(
        &[
            "launch 5 (values): deps",
            "launch 4 (attention)",
            "writes the values of layer 0 of KV group 0",
        ],
        split(5, &[3], &[3]),
    );
    bad(
        &["epilogue", "no store to the pools that the attention reads"],
        |p| {
            let store = epilogue(p, QKV, 2).clone();
            let attention = region(p, ATTENTION);
            attention.operands.extend(store.operands);
            attention.body.push(Inst::StoreKv {
                dst: 1,
                slots: 2,
                offset: 0,
                x: 0,
            });
            p.kv[0].kv_heads = 2;
            // Keys and values of two heads.
            for segment in [1, 2] {
                let weight = 3 + segment;
                p.weights[weight].rows *= 2;
                p.weights[weight].len *= 2;
                p.weights[weight].slices.clear();
                epilogue(p, QKV, segment).cols *= 2;
            }
            let mut end = 0;
            for weight in &mut p.weights {
                weight.offset = weight.offset.max(end);
                end = (weight.offset + weight.len).next_multiple_of(ALIGN as u64);
            }
        },
    );
}

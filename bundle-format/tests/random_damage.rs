//! Random damage behind hashes that hold: an error, or a plan that is safe to execute; never a panic.

mod common;

use bundle_format::plan::*;
use bundle_format::region::*;
use bundle_format::{Bundle, ErrorKind, codec, read::AlignedBytes};
use common::*;
use proptest::prelude::*;

const SMALL: u32 = 60;

/// An edit of the encoded plan.
#[derive(Clone, Debug)]
enum Edit {
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = 0usize..4096;
    prop_oneof![
        8 => (at.clone(), any::<u8>()).prop_map(|(i, b)| Edit::Set(i, b)),
        1 => (at.clone(), prop_oneof![
            // Integers that bincode spells in 2, 4 and 8 bytes, huge.
            Just(vec![251, 255, 255]),
            Just(vec![252, 255, 255, 255, 255]),
            Just(vec![253, 255, 255, 255, 255, 255, 255, 255, 127]),
            prop::collection::vec(any::<u8>(), 1..4),
        ]).prop_map(|(i, b)| Edit::Insert(i, b)),
        1 => (at, 1usize..9).prop_map(|(i, n)| Edit::Remove(i, n)),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    match edit {
        Edit::Set(i, b) => {
            let at = i % bytes.len();
            bytes[at] = *b;
        }
        Edit::Insert(i, new) => {
            let at = i % bytes.len();
            bytes.splice(at..at, new.iter().copied());
        }
        Edit::Remove(i, n) => {
            let at = i % bytes.len();
            let end = bytes.len().min(at + n);
            if end - at < bytes.len() {
                bytes.drain(at..end);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever a plan's bytes say behind hashes that hold: an error, or a plan that is safe to execute.
    #[test]
    fn damaged_plans(edits in prop::collection::vec(edit(), 1..4)) {
        let mut bytes = codec::encode(&plan(SMALL)).unwrap();
        for e in &edits {
            apply(&mut bytes, e);
        }
        let manifest = codec::encode(&manifest(SMALL)).unwrap();
        let file = Raw::from_bytes(&manifest, &bytes, &weights_section(&plan(SMALL))).build();
        let file = AlignedBytes::copy_of(&file);
        match Bundle::open(&file) {
            Ok(bundle) => executable(bundle.plan(), bundle.weights().len() as u64, bundle.code().len() as u64),
            Err(error) => prop_assert!(error.kind() != ErrorKind::Caller, "{error}"),
        }
    }

    #[test]
    fn damaged_manifests(edits in prop::collection::vec(edit(), 1..4)) {
        let mut bytes = codec::encode(&manifest(SMALL)).unwrap();
        for e in &edits {
            apply(&mut bytes, e);
        }
        let plan = plan(SMALL);
        let encoded = codec::encode(&plan).unwrap();
        let _ = open(&Raw::from_bytes(&bytes, &encoded, &weights_section(&plan)).build());
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut file = bytes.clone();
        prop_assert!(open(&file).is_err());
        let head = b"\x89FIB\r\n\x1a\n\x01\0\0\0";
        file.splice(0..0, head.iter().copied());
        prop_assert!(open(&file).is_err());
    }
}

/// Walks an accepted plan as an executor does, with plain indexing and every address computed one by one.
fn executable(plan: &Plan, weights_len: u64, code_len: u64) {
    let rows_of = |extent| plan.limits.rows(extent) as u64;
    for b in &plan.buffers {
        assert!(b.place.offset + rows_of(b.extent) * b.row_bytes() <= plan.arena_bytes);
    }
    for w in &plan.weights {
        assert!(w.offset + w.len <= weights_len);
    }
    for (i, launch) in plan.launches.iter().enumerate() {
        assert!(launch.deps.iter().all(|&d| (d as usize) < i));
        let extent = match &launch.op {
            Op::Region { extent, .. } => *extent,
            Op::MatMul { x, .. } => plan.buffers[*x as usize].extent,
            Op::ExpertMatMul { tokens, .. } => plan.buffers[*tokens as usize].extent,
            Op::Embed { .. } | Op::RopeTable { .. } | Op::Attention { .. } | Op::Route { .. } => {
                Dim::Tokens
            }
        };
        for rows in 1..=rows_of(extent) {
            let fits = |v: &&Variant| (v.min_rows as u64..=v.max_rows as u64).contains(&rows);
            assert_eq!(launch.variants.iter().filter(fits).count(), 1);
        }
        let code = launch.variants.iter().flat_map(|v| &v.parts);
        for code in code.filter_map(|p| p.code) {
            assert!(code.offset + code.len <= code_len);
        }
        match &launch.op {
            Op::Region { region, .. } => columns(plan, region),
            Op::MatMul {
                prologue, segments, ..
            } => {
                let epilogues = segments.iter().map(|s| &s.epilogue);
                let regions = prologue.iter().chain(epilogues);
                regions.for_each(|region| columns(plan, region));
            }
            Op::ExpertMatMul {
                starts, segments, ..
            } => {
                let experts = plan.buffers[*starts as usize].cols - 1;
                for s in segments {
                    columns(plan, &s.epilogue);
                    let rows = plan.weights[s.weight as usize].rows;
                    assert_eq!(rows, experts * s.epilogue.cols);
                }
            }
            Op::Route {
                logits,
                weights,
                places,
                ..
            } => {
                let cols = |buffer: u32| plan.buffers[buffer as usize].cols;
                assert_eq!(cols(*weights), cols(*places));
                assert!(cols(*weights) <= cols(*logits));
            }
            Op::Attention { epilogue, .. } => columns(plan, epilogue),
            Op::Embed { table, out, .. } => assert_eq!(
                plan.weights[*table as usize].cols,
                plan.buffers[*out as usize].cols
            ),
            Op::RopeTable { freqs, out, .. } => assert_eq!(
                plan.weights[*freqs as usize].cols * 2,
                plan.buffers[*out as usize].cols
            ),
        }
    }
}

/// Every column that a region touches lies in its operand.
fn columns(plan: &Plan, region: &Region) {
    let cols = |operand: OperandId| match region.operands[operand as usize] {
        Operand::Buffer(b) => plan.buffers[b as usize].cols as u64,
        Operand::Weight(w) => plan.weights[w as usize].cols as u64,
        Operand::Kv { group, .. } => plan.kv[group as usize].head_dim as u64,
    };
    for unit in 0..(region.cols / region.unit) as u64 {
        for c in 0..region.width as u64 {
            let at = |map: ColMap| unit * map.per_unit as u64 + map.offset as u64 + c;
            for inst in &region.body {
                match *inst {
                    Inst::Load { src, col, .. } => assert!(at(col) < cols(src)),
                    Inst::Store { dst, col, .. } | Inst::StoreQuant { dst, col, .. } => {
                        assert!(at(col) < cols(dst))
                    }
                    Inst::StoreKv { dst, offset, .. } => {
                        assert!(offset as u64 + c < cols(dst))
                    }
                    Inst::Tile { offset } => assert!(offset as u64 + c < region.unit as u64),
                    _ => {}
                }
            }
        }
    }
}

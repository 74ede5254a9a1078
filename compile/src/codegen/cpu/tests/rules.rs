//! Broken regions are refused, by name.

use bundle_format::plan::DType;
use bundle_format::region::{Binary, Inst, KvPart, RowMap};

use super::compile_region;
use super::regions::{Case, at};
use crate::error::Error;

/// What compiling the region complains about.
fn complaint(case: &Case) -> String {
    match compile_region(&case.region, &case.context()) {
        Err(Error::Bug(text)) => text,
        Err(other) => panic!("no bug: {other}"),
        Ok(_) => panic!("{} compiles", case.region.name),
    }
}

#[track_caller]
fn refused(name: &str, make: impl FnOnce(&mut Case), expected: &str) {
    refused_shape(name, (64, 64, 128), make, expected)
}

#[track_caller]
fn refused_shape(
    name: &str,
    (unit, width, cols): (u32, u32, u32),
    make: impl FnOnce(&mut Case),
    expected: &str,
) {
    let mut case = Case::new(name, unit, width, cols);
    make(&mut case);
    let text = complaint(&case);
    assert!(
        text.contains(&format!("region {name}:")) && text.contains(expected),
        "{text:?} doesn't say {expected:?}"
    );
}

#[test]
fn shapes() {
    let nothing = |_: &mut Case| {};
    refused_shape("zero", (0, 1, 8), nothing, "none of them zero");
    refused_shape("ragged", (3, 3, 8), nothing, "a multiple of the unit");
    refused_shape("huge", (1, 1, 1 << 29), nothing, "at most");
    refused("idle", nothing, "stores nothing");
    refused(
        "sum_of_tile",
        |case| {
            let out = case.buffer(DType::F32, 128);
            let x = case.tile(0);
            let sum = case.row_sum(x);
            case.store(out, at(64, 0), sum);
        },
        "no whole rows",
    );
    refused(
        "tile_stride",
        |case| {
            let out = case.buffer(DType::F32, 128);
            let x = case.tile(0);
            case.store(out, at(64, 0), x);
            case.tile_stride = 100;
        },
        "tile rows of 100",
    );
}

#[test]
fn values_and_operands() {
    refused(
        "later",
        |case| {
            let x = case.constant(1.0);
            case.binary(Binary::Add, x, 1);
        },
        "uses the later value 1",
    );
    refused(
        "beyond",
        |case| {
            case.row_sum(7);
        },
        "uses 7, past the end",
    );
    refused(
        "void",
        |case| {
            let out = case.buffer(DType::F32, 128);
            let x = case.constant(1.0);
            case.store(out, at(64, 0), x);
            case.row_sum(1);
        },
        "uses 1, a store",
    );
    refused(
        "void_unit",
        |case| {
            let out = case.buffer(DType::F32, 128);
            let x = case.tile(0);
            case.store(out, at(64, 0), x);
            case.unit_sum(1);
        },
        "uses 1, a store",
    );
    refused(
        "missing",
        |case| {
            case.load(3, at(64, 0));
        },
        "no operand 3",
    );
    refused(
        "type",
        |case| {
            let out = case.buffer(DType::Q8, 128);
            case.load(out, at(64, 0));
        },
        "can't load from Quant { ty: Q8",
    );
    refused(
        "vector_rows",
        |case| {
            let w = case.weight(128);
            case.load(w, at(64, 0));
        },
        "can't load from Vector",
    );
    refused(
        "via",
        |case| {
            let x = case.buffer(DType::F32, 128);
            case.load_row(x, RowMap::Via(x), at(64, 0));
        },
        "operand 0 holds no indices",
    );
}

#[test]
fn columns() {
    refused(
        "wide_load",
        |case| {
            let x = case.buffer(DType::F32, 128);
            case.load(x, at(64, 1));
        },
        "touches column 128 of 128",
    );
    refused(
        "wide_tile",
        |case| {
            case.tile(1);
        },
        "reads past its unit",
    );
    refused(
        "shared",
        |case| {
            let out = case.buffer(DType::F32, 128);
            let x = case.constant(1.0);
            case.store(out, at(0, 0), x);
        },
        "units store to the same columns",
    );
    refused_shape(
        "narrow_q8",
        (64, 48, 128),
        |case| {
            let out = case.buffer(DType::Q8, 128);
            let x = case.constant(1.0);
            case.store_quant(out, at(64, 0), x);
        },
        "isn't a multiple of the block",
    );
    refused(
        "head",
        |case| {
            let slots = case.buffer(DType::U32, 1);
            let pool = case.pool(KvPart::Key, 2, 64);
            let x = case.constant(1.0);
            case.store_kv(pool, slots, 1, x);
        },
        "stores past 2 heads of 64",
    );
    refused(
        "index",
        |case| {
            let rows = case.buffer(DType::U32, 2);
            let x = case.buffer(DType::F32, 128);
            let row = RowMap::At {
                index: rows,
                col: 2,
            };
            case.load_row(x, row, at(64, 0));
        },
        "or no column 2",
    );
}

#[test]
fn aliasing() {
    let load_after_store = |case: &mut Case| {
        let buffer = case.buffer(DType::F32, 128);
        let x = case.load(buffer, at(64, 0));
        case.store(buffer, at(64, 0), x);
        let y = case.load(buffer, at(64, 0));
        case.store(buffer, at(64, 0), y);
    };
    refused(
        "load_after_store",
        load_after_store,
        "loads what instruction 1 stored",
    );
    let neighbour = |case: &mut Case| {
        let buffer = case.buffer(DType::F32, 256);
        let x = case.load(buffer, at(64, 1));
        case.store(buffer, at(64, 0), x);
    };
    refused("neighbour", neighbour, "stores in another iteration");
    let other_unit = |case: &mut Case| {
        let buffer = case.buffer(DType::F32, 256);
        let x = case.load(buffer, at(64, 64));
        case.store(buffer, at(64, 0), x);
    };
    refused("other_unit", other_unit, "stores in another iteration");
    let other_row = |case: &mut Case| {
        let buffer = case.buffer(DType::F32, 128);
        let x = case.load_row(buffer, RowMap::Zero, at(64, 0));
        case.store(buffer, at(64, 0), x);
    };
    refused("other_row", other_row, "stores in another iteration");
    let stores = |case: &mut Case| {
        let buffer = case.buffer(DType::F32, 256);
        let x = case.constant(1.0);
        case.store(buffer, at(64, 0), x);
        case.store(buffer, at(64, 63), x);
    };
    refused("stores", stores, "stores to columns of instruction 1");
    let dimensions = |case: &mut Case| {
        let slots = case.buffer(DType::U32, 1);
        let pool = case.pool(KvPart::Value, 2, 128);
        let x = case.constant(1.0);
        case.store_kv(pool, slots, 0, x);
        case.store_kv(pool, slots, 63, x);
    };
    refused(
        "dimensions",
        dimensions,
        "stores to dimensions of instruction 1",
    );
}

#[test]
fn tables() {
    let mut case = Case::new("tables", 1, 1, 8);
    case.weight(8);
    let table = |case: &Case| {
        super::RegionContext::new(
            bundle_format::target::Target::X86_64V3,
            &case.region,
            &case.buffers,
            &case.weights,
            &case.kv,
            8,
        )
        .expect_err("the tables don't fit")
        .to_string()
    };
    case.weights[0].rows = 2;
    assert!(
        table(&case).contains("weight w0 is F32 of 2 rows"),
        "{}",
        table(&case)
    );
    case.weights.clear();
    assert!(
        table(&case).contains("number 0 of 0 weights"),
        "{}",
        table(&case)
    );
    let mut case = Case::new("tables", 1, 1, 8);
    case.buffer(DType::F16, 2);
    assert!(
        table(&case).contains("is f16, for GPUs"),
        "{}",
        table(&case)
    );
    let mut case = Case::new("tables", 1, 1, 8);
    case.pool(KvPart::Key, 1, 8);
    case.kv[0].layers = 1;
    assert!(
        table(&case).contains("layer 1 of a KV group of 1"),
        "{}",
        table(&case)
    );
    // Instructions that break a rule are shown.
    let mut case = Case::new("shown", 1, 1, 8);
    case.push(Inst::Tile { offset: 9 });
    assert!(complaint(&case).contains("instruction 0 (Tile { offset: 9 })"));
}

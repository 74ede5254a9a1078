//! Matrix products in every encoding and for numbers of rows around every kernel's range, against f32.

use std::sync::Arc;

use bundle_format::plan::Encoding;
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::device::{Device, Step, StepKv, TokenSource, Want};
use fastrun::load::Loaded;

use super::Machine;
use super::product::{Product, ROWS};

/// Features and depth: whole tiles and rounds, and neither.
pub const SHAPES: [(u32, u32); 2] = [(320, 512), (200, 768)];

/// Every encoding that a GPU has kernels for.
pub fn encodings() -> impl Iterator<Item = Encoding> {
    Encoding::ALL.into_iter().filter(|&e| e != Encoding::F32)
}

/// Encodings of products with a norm in the prologue: of each form of the kernel for one row.
pub const NORMED: [Encoding; 4] = [
    Encoding::F16,
    Encoding::Q4_0,
    Encoding::Q4_K,
    Encoding::Q6_K,
];

/// A step of tokens of which all rows' logits are wanted, and hidden states where there are any.
fn step(tokens: u32, product: &Product) -> Step {
    let vocab = product.features;
    let logits = Want {
        logits: true,
        hidden: product.normed,
        ..Want::default()
    };
    Step {
        tokens: (0..tokens)
            .map(|t| TokenSource::Id(t * 7 % vocab))
            .collect(),
        positions: (0..tokens).collect(),
        sequences: vec![0; tokens as usize],
        kv: vec![StepKv {
            slots: (0..tokens).collect(),
            tables: vec![(0..tokens.div_ceil(16)).collect()],
            copies: vec![],
        }],
        rows: (0..tokens).collect(),
        wants: vec![logits; tokens as usize],
    }
}

/// The logits of each row, then its hidden states.
pub fn results(device: &mut impl Device, tokens: u32, product: &Product) -> [Vec<Vec<f32>>; 2] {
    let ticket = device
        .submit(step(tokens, product))
        .expect("the step is valid");
    let outcome = loop {
        if let Some(outcome) = device.poll(ticket).expect("the step runs") {
            break outcome;
        }
    };
    let rows = outcome.rows.into_iter();
    let both = rows.map(|row| {
        let logits = row.logits.expect("logits were wanted");
        (logits, row.hidden.unwrap_or_default())
    });
    let (logits, hidden) = both.unzip();
    [logits, hidden]
}

/// In f32 arithmetic on the dequantised numbers.
pub fn reference(loaded: &Arc<Loaded>, tokens: u32, product: &Product) -> [Vec<Vec<f32>>; 2] {
    let options = ReferenceOptions {
        kv_blocks: Some(ROWS.div_ceil(16)),
        ..ReferenceOptions::default()
    };
    let mut device =
        ReferenceDevice::open(loaded.clone(), &options).expect("a bundle for a GPU has a meaning");
    results(&mut device, tokens, product)
}

/// The largest difference of two rows, relative to the mean size of what it is in.
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let square: f32 = expected.iter().map(|x| x * x).sum();
    let size = (square / expected.len() as f32).sqrt();
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    worst(differences) / size
}

/// The largest of some numbers; what is not a number is larger than any.
pub fn worst(numbers: impl Iterator<Item = f32>) -> f32 {
    let known = numbers.map(|x| if x.is_nan() { f32::INFINITY } else { x });
    known.fold(0.0, f32::max)
}

/// What the largest of a hundred thousand differences may be, which is about five times a usual one. Each factor that becomes an
/// f16 is off by a part in 4096 at most: activations all, weights where they are no f16, and scales of the last formats.
pub fn tolerance(encoding: Encoding) -> f32 {
    match encoding {
        Encoding::F16 | Encoding::BF16 => 1.5e-3,
        Encoding::Q2_K | Encoding::Q4_K | Encoding::Q5_K => 4e-3,
        _ => 2e-3,
    }
}

/// A row that is normed is rounded twice, as the table gives it and as the norm does.
fn tolerance_of(product: &Product) -> f32 {
    let roundings: f32 = if product.normed { 2.0 } else { 1.0 };
    tolerance(product.encoding) * roundings.sqrt()
}

/// Compares products with f32 arithmetic, for steps of so many rows each, the most last. `bundle` makes a product's bundle.
pub fn agree(
    machine: &Machine,
    products: impl Iterator<Item = Product>,
    steps: &[u32],
    bundle: impl Fn(&Product) -> Arc<Loaded>,
) {
    let mut failed = Vec::new();
    for product in products {
        let loaded = bundle(&product);
        let most = *steps.last().expect("there are some");
        let [expected, hidden] = reference(&loaded, most, &product);
        let mut device = machine.open(loaded, 16 << 20, None);
        let mut most: f32 = 0.0;
        for &tokens in steps {
            let found = results(&mut device, tokens, &product);
            let rows = found[0].iter().zip(&expected);
            let kept = found[1].iter().zip(&hidden).filter(|_| product.normed);
            let off = worst(rows.chain(kept).map(|(a, b)| difference(a, b)));
            if off > tolerance_of(&product) {
                failed.push(format!("{} with {tokens} rows: {off}", product.name()));
            }
            most = off.max(most);
            // The same again, bit for bit.
            assert_eq!(
                found,
                results(&mut device, tokens, &product),
                "{product:?}, {tokens} rows"
            );
        }
        println!("{}: {most:.1e}", product.name());
    }
    assert!(failed.is_empty(), "beyond the tolerance: {failed:#?}");
}

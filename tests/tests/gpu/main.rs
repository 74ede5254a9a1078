//! Matrix products on an NVIDIA GPU, in every encoding and for numbers of rows around every kernel's range, against f32.
//!
//! The tests that need a GPU are ignored, since machines that build have none:
//! `cargo test -p e2e --test gpu -- --ignored` where there is one. Where a GPU's machine has no compiler, another can make the
//! bundles: FASTINFER_GPU_BUNDLES names the folder that both use, and `bundles_for_a_machine_with_a_gpu` fills it.
#![cfg(target_os = "linux")]

mod product;

use std::path::PathBuf;
use std::sync::Arc;

use bundle_format::plan::Encoding;
use fastrun::device::gpu::{GpuDevice, GpuOptions};
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::device::{Device, Step, StepKv, TokenSource, Want};
use fastrun::load::Loaded;
use kernels::quant;

use product::{Product, ROWS};

const FOLDER: &str = "FASTINFER_GPU_BUNDLES";

/// Features and depth: whole tiles and rounds, and neither.
const SHAPES: [(u32, u32); 2] = [(320, 512), (200, 768)];

/// Encodings of products with a norm in the prologue: of each form of the kernel for one row.
const NORMED: [Encoding; 4] = [
    Encoding::F16,
    Encoding::Q4_0,
    Encoding::Q4_K,
    Encoding::Q6_K,
];

/// Around the ends of the kernels' ranges, and of their tiles.
const STEPS: [u32; 12] = [1, 2, 4, 5, 8, 9, 16, 33, 64, 65, 128, 300];

fn products(portable: bool) -> impl Iterator<Item = Product> {
    let matrices = Encoding::ALL.into_iter().filter(|&e| e != Encoding::F32);
    let plain = matrices.map(|encoding| (encoding, false));
    let normed = NORMED.map(|encoding| (encoding, true));
    plain.chain(normed).flat_map(move |(encoding, normed)| {
        SHAPES.map(|(features, depth)| Product {
            encoding,
            features,
            depth,
            portable,
            normed,
        })
    })
}

/// The product's bundle: from the folder, or made, in it or in `own`.
fn bundle(product: &Product, own: &tempfile::TempDir) -> Arc<Loaded> {
    let folder = std::env::var_os(FOLDER).map_or_else(|| own.path().to_path_buf(), PathBuf::from);
    let path = folder.join(product.name() + ".fib");
    if !path.is_file() {
        product.write(&path);
    }
    Arc::new(Loaded::open(&path).expect("the bundle is whole"))
}

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
fn results(device: &mut impl Device, tokens: u32, product: &Product) -> [Vec<Vec<f32>>; 2] {
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
fn reference(loaded: &Arc<Loaded>, tokens: u32, product: &Product) -> [Vec<Vec<f32>>; 2] {
    let options = ReferenceOptions {
        kv_blocks: Some(ROWS.div_ceil(16)),
        ..ReferenceOptions::default()
    };
    let mut device =
        ReferenceDevice::open(loaded.clone(), &options).expect("a bundle for a GPU has a meaning");
    results(&mut device, tokens, product)
}

/// The largest difference of two rows, relative to the mean size of what it is in.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let square: f32 = expected.iter().map(|x| x * x).sum();
    let size = (square / expected.len() as f32).sqrt();
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    worst(differences) / size
}

/// The largest of some numbers; what is not a number is larger than any.
fn worst(numbers: impl Iterator<Item = f32>) -> f32 {
    let known = numbers.map(|x| if x.is_nan() { f32::INFINITY } else { x });
    known.fold(0.0, f32::max)
}

/// What the largest of a hundred thousand differences may be, which is about five times a usual one. Each factor that becomes an
/// f16 is off by a part in 4096 at most: activations all, weights where they are no f16, and scales of the last formats.
///
/// A row that is normed is rounded twice, as the table gives it and as the norm does.
fn tolerance(product: &Product) -> f32 {
    let roundings: f32 = if product.normed { 2.0 } else { 1.0 };
    let of_one = match product.encoding {
        Encoding::F16 | Encoding::BF16 => 1.5e-3,
        Encoding::Q2_K | Encoding::Q4_K | Encoding::Q5_K => 4e-3,
        _ => 2e-3,
    };
    of_one * roundings.sqrt()
}

fn agree(portable: bool) {
    let own = tempfile::tempdir().expect("the system has a folder for temporary files");
    let mut failed = Vec::new();
    for product in products(portable) {
        let loaded = bundle(&product, &own);
        let most = *STEPS.last().expect("there are some");
        let [expected, hidden] = reference(&loaded, most, &product);
        let options = GpuOptions {
            kv_bytes: Some(16 << 20),
            ..GpuOptions::default()
        };
        let mut device = GpuDevice::open(loaded, &options).expect("there is a GPU that runs it");
        let mut most: f32 = 0.0;
        for tokens in STEPS {
            let found = results(&mut device, tokens, &product);
            let rows = found[0].iter().zip(&expected);
            let kept = found[1].iter().zip(&hidden).filter(|_| product.normed);
            let off = worst(rows.chain(kept).map(|(a, b)| difference(a, b)));
            if off > tolerance(&product) {
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

#[test]
#[ignore = "needs an NVIDIA GPU of compute capability 9.0"]
fn products_agree_with_f32_arithmetic() {
    agree(false);
}

#[test]
#[ignore = "needs an NVIDIA GPU of compute capability 9.0"]
fn products_by_the_kernels_of_other_chips_agree_with_f32_arithmetic() {
    agree(true);
}

#[test]
#[ignore = "makes files for a machine with a GPU, in the folder that FASTINFER_GPU_BUNDLES names"]
fn bundles_for_a_machine_with_a_gpu() {
    assert!(
        std::env::var_os(FOLDER).is_some(),
        "{FOLDER} names no folder"
    );
    let own = tempfile::tempdir().expect("the system has a folder for temporary files");
    for product in products(false).chain(products(true)) {
        bundle(&product, &own);
    }
}

/// What the GPU is compared with is the product of the numbers in the file, whatever the packing.
#[test]
fn the_reference_multiplies_what_was_packed() {
    let own = tempfile::tempdir().expect("the system has a folder for temporary files");
    for encoding in [Encoding::Q4_K, Encoding::Q6_K] {
        let product = Product {
            encoding,
            features: 200,
            depth: 768,
            portable: false,
            normed: false,
        };
        let path = own.path().join("product.fib");
        product.write(&path);
        let loaded = Arc::new(Loaded::open(&path).expect("the bundle is whole"));
        let [found, _] = reference(&loaded, 3, &product);
        let dense = product.matrices().map(|(encoding, bytes)| {
            let row = bytes.len() / product.features as usize;
            let rows = bytes.chunks_exact(row).map(|bytes| {
                let mut out = vec![0.0; product.depth as usize];
                quant::dequantise_row(encoding, bytes, &mut out);
                out
            });
            rows.collect::<Vec<_>>()
        });
        for (t, found) in found.iter().enumerate() {
            let x = &dense[0][t * 7 % product.features as usize];
            let expected: Vec<f32> = dense[1]
                .iter()
                .map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum())
                .collect();
            // Activations are f16.
            let off = difference(found, &expected);
            assert!(off < 2e-3, "{encoding:?}: {off}");
        }
    }
}

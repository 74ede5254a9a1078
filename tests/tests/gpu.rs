//! Matrix products on an NVIDIA GPU, in every encoding and for numbers of rows around every kernel's range, against f32.
//!
//! The tests that need a GPU are ignored, since machines that build have none:
//! `cargo test -p e2e --test gpu -- --ignored` where there is one. Where a GPU's machine has no compiler, another can make the
//! bundles: FASTINFER_GPU_BUNDLES names the folder that both use, and `bundles_for_a_machine_with_a_gpu` fills it.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::sync::Arc;

use bundle_format::plan::Encoding;
use bundle_format::target::Target;
use e2e::gpu::Machine;
use e2e::gpu::product::Product;
use e2e::gpu::products::{NORMED, SHAPES, agree, difference, encodings, reference};
use fastrun::load::Loaded;
use kernels::quant;

const FOLDER: &str = "FASTINFER_GPU_BUNDLES";

/// Around the ends of the kernels' ranges, and of their tiles.
const STEPS: [u32; 12] = [1, 2, 4, 5, 8, 9, 16, 33, 64, 65, 128, 300];

fn products(portable: bool) -> impl Iterator<Item = Product> {
    let plain = encodings().map(|encoding| (encoding, false));
    let normed = NORMED.map(|encoding| (encoding, true));
    plain.chain(normed).flat_map(move |(encoding, normed)| {
        SHAPES.map(|(features, depth)| Product {
            encoding,
            features,
            depth,
            target: Target::Sm90a,
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

fn agree_on_a_card(portable: bool) {
    let own = tempfile::tempdir().expect("the system has a folder for temporary files");
    agree(&Machine::card(), products(portable), &STEPS, |product| {
        bundle(product, &own)
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU of compute capability 9.0"]
fn products_agree_with_f32_arithmetic() {
    agree_on_a_card(false);
}

#[test]
#[ignore = "needs an NVIDIA GPU of compute capability 9.0"]
fn products_by_the_kernels_of_other_chips_agree_with_f32_arithmetic() {
    agree_on_a_card(true);
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
            target: Target::Sm90a,
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

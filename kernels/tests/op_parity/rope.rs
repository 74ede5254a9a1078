//! The rotary table.

use kernels::abi::{MicroFn, RopeTableArgs};
use kernels::cpu::MicroKernel;
use kernels::reference::rope_row;

use crate::data::bits;

pub fn check(kernel: &MicroKernel) {
    let positions = [0, 1, 2, 17, 511, 4096, 8191, 131_071, 1_000_003, u32::MAX];
    for n in [1, 16, 20, 32, 64, 128] {
        let freqs: Vec<f32> = (0..n)
            .map(|i| 10_000f32.powf(-(i as f32) / n as f32))
            .collect();
        for mscale in [1.0, 1.19] {
            let found = run(kernel, &positions, &freqs, mscale);
            let scalar = run(crate::scalar(kernel), &positions, &freqs, mscale);
            assert_eq!(bits(&found), bits(&scalar), "not as the scalar kernel");
            let mut expected = vec![0.0; 2 * n];
            for (row, position) in found.chunks_exact(2 * n + 8).zip(positions) {
                rope_row(position, &freqs, mscale, &mut expected);
                for (i, (found, expected)) in row.iter().zip(&expected).enumerate() {
                    assert!(
                        (found - expected).abs() <= 1.3e-7 * mscale,
                        "{} position {position} column {i}: {found}, expected {expected}",
                        kernel.level.name()
                    );
                }
                assert!(row[2 * n..].iter().all(|x| x.is_nan()), "written beyond");
            }
        }
    }
}

fn run(kernel: &MicroKernel, positions: &[u32], freqs: &[f32], mscale: f32) -> Vec<f32> {
    let MicroFn::RopeTable(func) = kernel.func else {
        panic!("{} is no rotary table", kernel.name)
    };
    let stride = 2 * freqs.len() + 8;
    let mut out = vec![f32::NAN; positions.len() * stride];
    let args = RopeTableArgs {
        positions: positions.as_ptr(),
        freqs: freqs.as_ptr(),
        out: out.as_mut_ptr(),
        out_stride: stride as u64,
        n: freqs.len() as u64,
        rows: positions.len() as u64,
        mscale,
    };
    // SAFETY: buffers of these sizes, an available level.
    unsafe { func(&args) };
    out
}

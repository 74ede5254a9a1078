//! Sources of GPU kernels, as text: templates that a compiler instantiates for a model. Each file says at its top what it
//! does and why so.

const BASE: &str = include_str!("base.cuh");
const FRAGMENT: &str = include_str!("fragment.cuh");
const REGION: &str = include_str!("region.cuh");
const MATMUL: &str = include_str!("matmul.cuh");
const MATMUL_MANY: &str = include_str!("matmul_many.cuh");
const ATTENTION: &str = include_str!("attention.cuh");
const SAMPLE: &str = include_str!("sample.cuh");

/// All templates for NVIDIA chips; with those for Hopper's matrix unit where `hopper` is set.
pub fn cuda(hopper: bool) -> String {
    let mut parts = vec![BASE, FRAGMENT, REGION, MATMUL, ATTENTION, SAMPLE];
    if hopper {
        parts.push(MATMUL_MANY);
    }
    parts.join("\n").replace("#pragma once\n", "")
}

//! Sources of GPU kernels, as text: templates that a compiler instantiates for a model. Each file says at its top what it
//! does and why so.

const BASE: &str = include_str!("base.cuh");
const BASE_CUDA: &str = include_str!("base_cuda.cuh");
const FRAGMENT: &str = include_str!("fragment.cuh");
const REGION: &str = include_str!("region.cuh");
const MATMUL: &str = include_str!("matmul.cuh");
const MATMUL_MANY: &str = include_str!("matmul_many.cuh");
const MATMUL_MANY_MMA: &str = include_str!("matmul_many_mma.cuh");
const ATTENTION: &str = include_str!("attention.cuh");
const ATTENTION_DECODE: &str = include_str!("attention_decode.cuh");
const ATTENTION_PREFILL: &str = include_str!("attention_prefill.cuh");
const SAMPLE: &str = include_str!("sample.cuh");

/// All templates for NVIDIA chips; where `hopper` is set, products of many rows are for Hopper's matrix unit.
pub fn cuda(hopper: bool) -> String {
    let many = match hopper {
        true => MATMUL_MANY,
        false => MATMUL_MANY_MMA,
    };
    let attention = [ATTENTION, ATTENTION_DECODE, ATTENTION_PREFILL].join("\n");
    [
        BASE, BASE_CUDA, FRAGMENT, REGION, MATMUL, many, &attention, SAMPLE,
    ]
    .join("\n")
    .replace("#pragma once\n", "")
}

//! Sources of GPU kernels, as text: templates that a compiler instantiates for a model. Each file says at its top what it
//! does and why so. What is element-wise, routing, products with f32, and drawing tokens, is the same text for all chips, over the names that
//! base_cuda.cuh and base_hip.h give to a chip's instructions.

const BASE: &str = include_str!("base.cuh");
const FRAGMENT: &str = include_str!("fragment.cuh");
const REGION: &str = include_str!("region.cuh");
const FLOATS: &str = include_str!("floats.cuh");
const EXPERTS: &str = include_str!("experts.cuh");
const ROUTE: &str = include_str!("route.cuh");
const SAMPLE: &str = include_str!("sample.cuh");

const BASE_CUDA: &str = include_str!("base_cuda.cuh");
const MATMUL: &str = include_str!("matmul.cuh");
const MATMUL_ONE: &str = include_str!("matmul_one.cuh");
const MATMUL_EXPERTS: &str = include_str!("matmul_experts.cuh");
const MATMUL_MANY: &str = include_str!("matmul_many.cuh");
const MATMUL_MANY_MMA: &str = include_str!("matmul_many_mma.cuh");
const ATTENTION: &str = include_str!("attention.cuh");
const ATTENTION_DECODE: &str = include_str!("attention_decode.cuh");
const ATTENTION_PREFILL: &str = include_str!("attention_prefill.cuh");

const BASE_HIP: &str = include_str!("base_hip.h");
const HIP_ROWS: &str = include_str!("hip/rows.h");
const HIP_MATMUL: &str = include_str!("hip/matmul.h");
const HIP_EXPERTS: &str = include_str!("hip/experts.h");
const HIP_ATTENTION: &str = include_str!("hip/attention.h");
const HIP_ATTENTION_DECODE: &str = include_str!("hip/attention_decode.h");
const HIP_KV_WRITE: &str = include_str!("hip/kv_write.h");
const HIP_ATTENTION_PREFILL: &str = include_str!("hip/attention_prefill.h");

/// All templates for NVIDIA chips; where `hopper` is set, products of many rows are for Hopper's matrix unit.
pub fn cuda(hopper: bool) -> String {
    let many = match hopper {
        true => MATMUL_MANY,
        false => MATMUL_MANY_MMA,
    };
    let attention = [ATTENTION, ATTENTION_DECODE, ATTENTION_PREFILL].join("\n");
    [
        BASE,
        BASE_CUDA,
        FRAGMENT,
        REGION,
        FLOATS,
        EXPERTS,
        ROUTE,
        MATMUL_ONE,
        MATMUL,
        MATMUL_EXPERTS,
        many,
        &attention,
        SAMPLE,
    ]
    .join("\n")
    .replace("#pragma once\n", "")
}

/// All templates for AMD's RDNA 3.5.
pub fn hip() -> String {
    [
        BASE,
        BASE_HIP,
        FRAGMENT,
        REGION,
        HIP_ROWS,
        HIP_MATMUL,
        HIP_EXPERTS,
        HIP_ATTENTION,
        HIP_ATTENTION_DECODE,
        HIP_ATTENTION_PREFILL,
        HIP_KV_WRITE,
        FLOATS,
        EXPERTS,
        ROUTE,
        SAMPLE,
    ]
    .join("\n")
}

//! Every microkernel, at every level that this processor has, against the naive reference, and bit for bit against its
//! scalar twin. A microkernel without a row here fails the test `every_microkernel_has_a_row`.

mod attention;
mod data;
mod embed;
mod matmul;
mod rope;
mod route;

use bundle_format::plan::{DType, Encoding, KvDType, WeightLayout};
use kernels::abi::id;
use kernels::cpu::{self, Level, MicroKernel};

/// Declares the rows: a test for each, and the list that the table is compared with.
macro_rules! rows {
    ($($name:ident: $id:expr => $check:expr,)*) => {
        const ROWS: &[u32] = &[$($id),*];
        $(
            #[test]
            fn $name() {
                at_every_level($id, $check);
            }
        )*
    };
}

rows! {
    matmul_f32: id::MATMUL_F32 => |k| matmul::check(k, Encoding::F32, DType::F32),
    matmul_f16: id::MATMUL_F16 => |k| matmul::check(k, Encoding::F16, DType::F32),
    matmul_bf16: id::MATMUL_BF16 => |k| matmul::check(k, Encoding::BF16, DType::F32),
    matmul_q4_0: id::MATMUL_Q4_0 => |k| matmul::check(k, Encoding::Q4_0, DType::Q8),
    matmul_q4_1: id::MATMUL_Q4_1 => |k| matmul::check(k, Encoding::Q4_1, DType::Q8),
    matmul_q5_0: id::MATMUL_Q5_0 => |k| matmul::check(k, Encoding::Q5_0, DType::Q8),
    matmul_q5_1: id::MATMUL_Q5_1 => |k| matmul::check(k, Encoding::Q5_1, DType::Q8),
    matmul_q8_0: id::MATMUL_Q8_0 => |k| matmul::check(k, Encoding::Q8_0, DType::Q8),
    matmul_q2_k_q8k: id::MATMUL_Q2_K_Q8K => |k| matmul::check(k, Encoding::Q2_K, DType::Q8K),
    matmul_q3_k_q8k: id::MATMUL_Q3_K_Q8K => |k| matmul::check(k, Encoding::Q3_K, DType::Q8K),
    matmul_q4_k_q8k: id::MATMUL_Q4_K_Q8K => |k| matmul::check(k, Encoding::Q4_K, DType::Q8K),
    matmul_q5_k_q8k: id::MATMUL_Q5_K_Q8K => |k| matmul::check(k, Encoding::Q5_K, DType::Q8K),
    matmul_q6_k_q8k: id::MATMUL_Q6_K_Q8K => |k| matmul::check(k, Encoding::Q6_K, DType::Q8K),
    matmul_iq4_nl: id::MATMUL_IQ4_NL => |k| matmul::check(k, Encoding::IQ4_NL, DType::Q8),
    matmul_iq4_xs_q8k: id::MATMUL_IQ4_XS_Q8K => |k| matmul::check(k, Encoding::IQ4_XS, DType::Q8K),
    matmul_mxfp4: id::MATMUL_MXFP4 => |k| matmul::check(k, Encoding::MXFP4, DType::Q8),
    matmul_q4_0_q11: id::MATMUL_Q4_0_Q11 => |k| matmul::check(k, Encoding::Q4_0, DType::Q11),
    matmul_q4_1_q11: id::MATMUL_Q4_1_Q11 => |k| matmul::check(k, Encoding::Q4_1, DType::Q11),
    matmul_q5_0_q11: id::MATMUL_Q5_0_Q11 => |k| matmul::check(k, Encoding::Q5_0, DType::Q11),
    matmul_q5_1_q11: id::MATMUL_Q5_1_Q11 => |k| matmul::check(k, Encoding::Q5_1, DType::Q11),
    matmul_q8_0_q11: id::MATMUL_Q8_0_Q11 => |k| matmul::check(k, Encoding::Q8_0, DType::Q11),
    matmul_q2_k_q11: id::MATMUL_Q2_K_Q11 => |k| matmul::check(k, Encoding::Q2_K, DType::Q11),
    matmul_q3_k_q11: id::MATMUL_Q3_K_Q11 => |k| matmul::check(k, Encoding::Q3_K, DType::Q11),
    matmul_q4_k_q11: id::MATMUL_Q4_K_Q11 => |k| matmul::check(k, Encoding::Q4_K, DType::Q11),
    matmul_q5_k_q11: id::MATMUL_Q5_K_Q11 => |k| matmul::check(k, Encoding::Q5_K, DType::Q11),
    matmul_q6_k_q11: id::MATMUL_Q6_K_Q11 => |k| matmul::check(k, Encoding::Q6_K, DType::Q11),
    matmul_iq4_nl_q11: id::MATMUL_IQ4_NL_Q11 => |k| matmul::check(k, Encoding::IQ4_NL, DType::Q11),
    matmul_iq4_xs_q11: id::MATMUL_IQ4_XS_Q11 => |k| matmul::check(k, Encoding::IQ4_XS, DType::Q11),
    matmul_mxfp4_q11: id::MATMUL_MXFP4_Q11 => |k| matmul::check(k, Encoding::MXFP4, DType::Q11),
    matmul_pairs: id::MATMUL_PAIRS => |k| {
        matmul::check(k, Encoding::F16, DType::Q14);
        matmul::check(k, Encoding::BF16, DType::Q14);
    },
    embed_f32: id::EMBED_F32 => |k| embed::check(k, Encoding::F32, WeightLayout::Interleave8),
    embed_f16: id::EMBED_F16 => |k| embed::check(k, Encoding::F16, WeightLayout::Interleave8),
    embed_bf16: id::EMBED_BF16 => |k| embed::check(k, Encoding::BF16, WeightLayout::Interleave8),
    embed_q4_0: id::EMBED_Q4_0 => |k| embed::check(k, Encoding::Q4_0, WeightLayout::Interleave8),
    embed_q4_1: id::EMBED_Q4_1 => |k| embed::check(k, Encoding::Q4_1, WeightLayout::Interleave8),
    embed_q5_0: id::EMBED_Q5_0 => |k| embed::check(k, Encoding::Q5_0, WeightLayout::Interleave8),
    embed_q5_1: id::EMBED_Q5_1 => |k| embed::check(k, Encoding::Q5_1, WeightLayout::Interleave8),
    embed_q8_0: id::EMBED_Q8_0 => |k| embed::check(k, Encoding::Q8_0, WeightLayout::Interleave8),
    embed_q2_k: id::EMBED_Q2_K => |k| embed::check(k, Encoding::Q2_K, WeightLayout::Interleave8),
    embed_q3_k: id::EMBED_Q3_K => |k| embed::check(k, Encoding::Q3_K, WeightLayout::Interleave8),
    embed_q4_k: id::EMBED_Q4_K => |k| embed::check(k, Encoding::Q4_K, WeightLayout::Interleave8),
    embed_q5_k: id::EMBED_Q5_K => |k| embed::check(k, Encoding::Q5_K, WeightLayout::Interleave8),
    embed_q6_k: id::EMBED_Q6_K => |k| embed::check(k, Encoding::Q6_K, WeightLayout::Interleave8),
    embed_iq4_nl: id::EMBED_IQ4_NL => |k| embed::check(k, Encoding::IQ4_NL, WeightLayout::Interleave8),
    embed_iq4_xs: id::EMBED_IQ4_XS => |k| embed::check(k, Encoding::IQ4_XS, WeightLayout::Interleave8),
    embed_mxfp4: id::EMBED_MXFP4 => |k| embed::check(k, Encoding::MXFP4, WeightLayout::Interleave8),
    embed_pairs: id::EMBED_PAIRS => |k| {
        embed::check(k, Encoding::F16, WeightLayout::Pairs8);
        embed::check(k, Encoding::BF16, WeightLayout::Pairs8);
    },
    attention_f16: id::ATTENTION_F16 => |k| attention::check(k, KvDType::F16),
    attention_q8_0: id::ATTENTION_Q8_0 => |k| attention::check(k, KvDType::Q8_0),
    rope_table: id::ROPE_TABLE => rope::check,
    route: id::ROUTE => route::check,
}

fn at_every_level(id: u32, check: impl Fn(&MicroKernel)) {
    for level in Level::ALL {
        if level.is_available() {
            check(cpu::lookup_at(level, id).expect("every level has every id"));
        } else {
            println!("not run: {id:#x} at {}: {}", level.name(), lacks(level));
        }
    }
}

/// The features of a level that this processor lacks.
fn lacks(level: Level) -> String {
    let required = level.required_features().iter().copied();
    let missing: Vec<&str> = required
        .filter(|name| cpu::has_feature(name) != Some(true))
        .collect();
    format!("this processor lacks {}", missing.join(", "))
}

/// A level is there just where its features are; run with `--nocapture` to see which were tested.
#[test]
fn levels_of_this_processor() {
    let mut best = Level::Scalar;
    for level in Level::ALL {
        let has = |name: &&str| cpu::has_feature(name) == Some(true);
        let all = level.required_features().iter().all(has);
        assert_eq!(level.is_available(), all, "{}", level.name());
        match all {
            true => best = level,
            false => println!("not run: {}: {}", level.name(), lacks(level)),
        }
    }
    assert_eq!(Level::detect(), best);
}

/// The scalar twin of a microkernel.
fn scalar(kernel: &MicroKernel) -> &'static MicroKernel {
    cpu::lookup_at(Level::Scalar, kernel.id).expect("every id has a scalar kernel")
}

#[test]
fn every_microkernel_has_a_row() {
    for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
        for kernel in cpu::table(level) {
            assert!(
                ROWS.contains(&kernel.id),
                "{} ({}) has no parity row",
                kernel.name,
                level.name()
            );
            assert_eq!(kernel.level, level);
        }
        assert_eq!(cpu::table(level).len(), ROWS.len(), "{}", level.name());
    }
    assert!(cpu::lookup(0).is_none());
}

//! The most that a level's code could do in a cycle, as NOTES.md derives it.

use std::time::Instant;

use bundle_format::plan::{DType, Encoding, KvDType};
use kernels::cpu::Level;
use kernels::pack;

/// MACs a cycle of a full tile of a prefill.
pub fn prefill(level: Level, encoding: Encoding, activations: DType) -> f64 {
    let wide = level >= Level::Avx512;
    match encoding {
        // Half the products of f32's, of twice the lanes, and two that scale 32 k.
        _ if activations == DType::Q14 && wide => return 512.0 * pipes() / 18.0,
        _ if activations == DType::Q14 && level == Level::AvxVnni => return 512.0 / 19.0,
        // 16 products, 15 additions, and three to scale them.
        _ if activations == DType::Q14 => return 768.0 / 34.0,
        Encoding::F32 | Encoding::F16 | Encoding::BF16 if wide => return 16.0 * pipes(),
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => return 16.0,
        // Two products of depth 64 for 64 k; the rest takes less than they do.
        _ if activations == DType::Q8K && level == Level::Amx => return 512.0,
        _ if activations == DType::Q8K && wide => {
            return 512.0 * pipes() / operations_of_blocks(level, encoding, 8.0);
        }
        _ if activations == DType::Q8K && level == Level::AvxVnni => {
            return 512.0 / operations_of_blocks(level, encoding, 32.0);
        }
        _ if activations == DType::Q8K => {
            return 768.0 / operations_of_blocks(level, encoding, 32.0);
        }
        _ if level == Level::Amx => return 512.0 / amx_cycles(encoding, activations),
        _ if wide => return 512.0 * pipes() / avx512_operations(encoding, activations, 8.0),
        _ => {}
    }
    // 256 MACs of a token with eight features by 32 k.
    match level {
        Level::AvxVnni => {
            512.0 / (vnni_operations(encoding, activations) - saved_by_blocks(encoding))
        }
        _ => 768.0 / (avx2_operations(encoding, activations) - saved_by_blocks(encoding)),
    }
}

/// With Q8K rows, operations of a token by 32 k: at AVX2 all of them, which three ports share, at the levels above those that multiply or, at
/// AVX-VNNI, convert. What converts a block's sums and scales them is shared by eight.
fn operations_of_blocks(level: Level, encoding: Encoding, tokens: f64) -> f64 {
    let has_mins = matches!(encoding, Encoding::Q2_K | Encoding::Q4_K | Encoding::Q5_K);
    let (scales, converts) = if has_mins { (3.0, 2.0) } else { (2.0, 1.0) };
    // Integer scales of the whole part, or of halves. Two operations each, but on processors with one pipe of 512 bits.
    let products = match encoding {
        Encoding::Q2_K => 0.0,
        Encoding::Q3_K | Encoding::Q6_K => 2.0,
        _ => 1.0,
    };
    match level {
        Level::Avx512 | Level::Amx => {
            let dots = match encoding {
                // Minima, and scales that are multiplied into the weights of a tile.
                Encoding::Q2_K => 16.0 + 8.0 / tokens,
                Encoding::Q4_K | Encoding::Q5_K => 8.5,
                _ => 8.0,
            };
            dots + products * pipes() + scales / 8.0
        }
        Level::AvxVnni => {
            let mins = match encoding {
                Encoding::Q2_K => 1.0,
                Encoding::Q4_K | Encoding::Q5_K => 0.5,
                _ => 0.0,
            };
            8.0 + 2.0 * products + mins + (scales + converts) / 8.0
        }
        Level::Scalar | Level::Avx2 => {
            let operations = match encoding {
                // 8 products, 7 or 8 additions, one or two that widen and as many that add; minima are a product and an addition for 64 k.
                Encoding::Q4_K => 19.0,
                Encoding::Q5_K => 21.0,
                Encoding::Q3_K | Encoding::Q6_K => 20.0,
                Encoding::Q2_K => 22.0,
                // 16 products and as many additions.
                _ => 32.0,
            };
            operations + (scales + converts) / 8.0
        }
    }
}

/// Of the operations of a token with 32 k those that come once for eight such: products of the factors of both sides, where a block of
/// 256 k has one. What is left of them is an addition for a block.
fn saved_by_blocks(encoding: Encoding) -> f64 {
    match encoding {
        Encoding::Q3_K | Encoding::Q4_K | Encoding::Q5_K | Encoding::Q6_K | Encoding::IQ4_XS => {
            7.0 / 8.0
        }
        // And that of the minima.
        Encoding::Q2_K => 7.0 / 4.0,
        _ => 0.0,
    }
}

/// At AVX2, operations of a token with eight features by 32 k, which three ports share. Unpacking, once for the tokens of a call, is
/// not in it.
fn avx2_operations(encoding: Encoding, activations: DType) -> f64 {
    let wide = activations == DType::Q11;
    match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => unreachable!("not quantised"),
        // 16 products and 15 additions; with integer minima a product and three to scale it.
        Encoding::Q2_K if wide => 38.0,
        Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4_K | Encoding::Q5_K if wide => 35.0,
        _ if wide => 34.0,
        Encoding::Q8_0 | Encoding::IQ4_NL | Encoding::IQ4_XS => 34.0,
        // 8 products, 8 additions, and one or two that widen.
        Encoding::Q4_0 => 20.0,
        Encoding::Q4_1 | Encoding::Q4_K => 21.0,
        Encoding::Q5_0 | Encoding::MXFP4 | Encoding::Q3_K | Encoding::Q6_K => 22.0,
        Encoding::Q5_1 | Encoding::Q5_K => 23.0,
        Encoding::Q2_K => 26.0,
    }
}

/// At AVX-VNNI, operations of a token with eight features by 32 k that multiply or convert, which two ports share.
fn vnni_operations(encoding: Encoding, activations: DType) -> f64 {
    // Those of Q11 are shifted once.
    let dots = if activations == DType::Q11 { 17.0 } else { 8.0 };
    match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => unreachable!("not quantised"),
        Encoding::Q4_0 | Encoding::Q5_0 | Encoding::MXFP4 => dots + 3.0,
        Encoding::Q8_0 | Encoding::IQ4_NL => dots + 3.0,
        Encoding::Q4_1 | Encoding::Q5_1 | Encoding::IQ4_XS => dots + 4.0,
        Encoding::Q4_K | Encoding::Q5_K => dots + 5.0,
        Encoding::Q2_K => dots + 7.0,
        // Each half is scaled: in f32, or by integer products of two operations each.
        Encoding::Q3_K | Encoding::Q6_K if activations == DType::Q11 => dots + 8.0,
        Encoding::Q3_K | Encoding::Q6_K => dots + 6.0,
    }
}

/// Weight bytes a cycle for a lone token, from the L1 cache.
pub fn decode(level: Level, encoding: Encoding, activations: DType) -> f64 {
    let (q8, q11) = match encoding {
        // Two loads a cycle: 16 of pairs, and 16 of quants for four groups, for 520 bytes. AVX-512 and AMX take AVX2's function.
        _ if activations == DType::Q14 => return 52.0,
        Encoding::F32 => return 56.9,
        Encoding::F16 => return 28.4,
        Encoding::BF16 => return 21.3,
        // AMX has no code of its own for a lone token.
        _ if level >= Level::Avx512 => {
            let bytes = pack::packed_len(encoding, 16, 256).expect("whole blocks");
            let operations = match activations {
                DType::Q8K => operations_of_blocks(level, encoding, 1.0),
                _ => avx512_operations(encoding, activations, 1.0),
            };
            return bytes as f64 / 8.0 * pipes() / operations;
        }
        // K-quants' are of when their factor was multiplied for each 32 k: some 1.5% more with Q11 rows, below with Q8K.
        Encoding::Q4_0 => (15.5, 10.9),
        Encoding::Q4_1 => (16.5, 12.1),
        Encoding::Q4_K => (15.3, 11.2),
        Encoding::Q5_0 => (11.7, 9.0),
        Encoding::Q5_1 => (12.8, 9.8),
        Encoding::Q5_K => (12.0, 9.2),
        Encoding::MXFP4 => (11.3, 8.2),
        Encoding::Q8_0 => (24.1, 15.3),
        Encoding::Q6_K => (10.1, 6.9),
        Encoding::Q3_K => (5.3, 3.7),
        Encoding::IQ4_NL => (9.0, 6.5),
        Encoding::IQ4_XS => (8.4, 5.9),
        Encoding::Q2_K => (5.6, 3.5),
    };
    match activations {
        DType::Q11 => q11,
        DType::Q8K => {
            // Of so many operations a conversion and two that scale are an addition now, those of minima likewise, and what ends a block.
            let bytes = pack::packed_len(encoding, 8, 256).expect("whole blocks") as f64 / 8.0;
            let operations = 3.0 * bytes / q8;
            let saved = match encoding {
                Encoding::Q2_K => 6.0 - 2.0 - 5.0 / 8.0,
                Encoding::Q4_K | Encoding::Q5_K => 4.0 - 2.0 - 5.0 / 8.0,
                _ => 3.0 - 1.0 - 3.0 / 8.0,
            };
            q8 * operations / (operations - saved)
        }
        _ => q8,
    }
}

/// MACs a cycle of attention: two f32 vectors, or two 16-bit ones.
pub fn attention(level: Level, dtype: KvDType) -> f64 {
    let lanes = match dtype {
        KvDType::F16 | KvDType::F16Rows => 1.0,
        KvDType::Q8_0 | KvDType::Q8Rows => 2.0,
    };
    match level {
        Level::Avx512 | Level::Amx => 16.0 * pipes() * lanes,
        Level::Scalar | Level::Avx2 | Level::AvxVnni => 16.0 * lanes,
    }
}

/// At AVX-512, operations a token of 16 features by 32 k in a tile of some tokens: those of 512 bits that multiply.
fn avx512_operations(encoding: Encoding, activations: DType, tokens: f64) -> f64 {
    let dots = if activations == DType::Q11 { 16.0 } else { 8.0 };
    // Signed weights with a scale a half are multiplied in 16 bits with Q11 rows of several tokens: scales are multiplied into them, once
    // for the tokens of a call, 32 in plans.
    let wide = activations == DType::Q11 && tokens > 1.0;
    let operations = match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => unreachable!("not quantised"),
        Encoding::Q4_0 | Encoding::Q5_0 | Encoding::MXFP4 => dots + 2.0,
        Encoding::Q8_0 | Encoding::IQ4_NL => dots + 2.0,
        Encoding::Q4_1 | Encoding::Q5_1 | Encoding::IQ4_XS => dots + 3.0,
        Encoding::Q4_K | Encoding::Q5_K => dots + 4.0,
        Encoding::Q3_K | Encoding::Q6_K if wide => dots + 2.5,
        Encoding::Q3_K | Encoding::Q6_K => dots + 4.0,
        // And the scales, multiplied into its weights once a tile.
        Encoding::Q2_K => 2.0 * dots + 4.0 + 8.0 / tokens,
    };
    operations - saved_by_blocks(encoding)
}

/// At AMX, cycles a token of 16 features by 32 k: the most of what the tiles' unit, the one pipe of 512 bits that multiplies while
/// tiles are in use, and the two ports for loads take. Unpacking is not in it.
fn amx_cycles(encoding: Encoding, activations: DType) -> f64 {
    // Weights of up to 5 bits meet both bytes of Q11 in one product.
    let five_bits = matches!(
        encoding,
        Encoding::Q4_0
            | Encoding::Q4_1
            | Encoding::Q4_K
            | Encoding::Q5_0
            | Encoding::Q5_1
            | Encoding::Q5_K
            | Encoding::MXFP4
    );
    let (bytes, words) = match activations {
        DType::Q11 if five_bits => (1.0, 16.0),
        DType::Q11 => (2.0, 8.0),
        _ => (1.0, 8.0),
    };
    let (mut min, mut half_mins) = (0.0, 0.0);
    // Tiles of weights, and operations that make an f32 of their results.
    let (tiles, scaled) = match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => unreachable!("not quantised"),
        Encoding::Q4_1 | Encoding::Q5_1 => {
            min = 1.0;
            (1.0, 1.0)
        }
        Encoding::Q4_K | Encoding::Q5_K => {
            min = 1.0;
            (1.0, 2.0)
        }
        Encoding::Q4_0 | Encoding::Q5_0 | Encoding::MXFP4 => (1.0, 1.0),
        Encoding::Q8_0 | Encoding::IQ4_NL => (1.0, 1.0),
        Encoding::IQ4_XS => (1.0, 2.0),
        Encoding::Q3_K | Encoding::Q6_K => (2.0, 4.0),
        Encoding::Q2_K => {
            half_mins = 1.0;
            (2.0, 1.0)
        }
    };
    let combined = |scaled: f64| bytes * scaled + bytes - 1.0;
    let operations = combined(scaled) + 2.0 + min + half_mins * (combined(1.0) + 2.0)
        - saved_by_blocks(encoding);
    // A row of activations and one of results for each product, factors, and the weights' tiles for sixteen.
    let loads = bytes + bytes * tiles + 1.0 + min + tiles * words / 16.0;
    (bytes * tiles).max(operations).max(loads / 2.0)
}

/// Fused multiply-adds of 512 bits that start in a cycle: measured, 1 or 2.
fn pipes() -> f64 {
    use std::sync::OnceLock;
    static PIPES: OnceLock<f64> = OnceLock::new();
    *PIPES.get_or_init(|| {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            // SAFETY: only asked for levels that have it.
            unsafe { chains(100_000) };
            best = best.min(start.elapsed().as_secs_f64());
        }
        (16.0 * 100_000.0 / best / super::clock()).round().max(1.0)
    })
}

/// Sixteen chains of fused multiply-adds.
///
/// # Safety
/// The processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn chains(len: usize) {
    use std::arch::x86_64::*;
    let factor = std::hint::black_box(_mm512_set1_ps(0.5));
    let mut sums = std::hint::black_box([_mm512_set1_ps(1.0); 16]);
    for _ in 0..len {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    std::hint::black_box(sums);
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn chains(_: usize) {}

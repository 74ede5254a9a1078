//! The levels against one another: every matmul microkernel at AVX2 and at AVX-512, in alternating stretches.
//!
//! `cargo bench -p kernels --bench levels [-- WORD ...]` prints a row for each product whose name has one of the words, such as
//! `Q4_0xQ8`: prefill (64 tokens by 64 features, k = 1536) in GMAC/s and a cycle, decode (one token by 64 features, k = 768)
//! in GB/s and a cycle. Figures are medians of alternating stretches, ratios the median of the ratios of neighbours, so that
//! what else the machine does meets both sides alike.

mod product;

use std::time::Instant;

use kernels::cpu::Level;
use kernels::pack;

use product::{Product, clock, products};

/// Alternating stretches of each side.
const ROUNDS: usize = 41;

/// The length of a stretch, in seconds: far above the timer's own cost, far below a time slice of a busy machine.
const STRETCH: f64 = 300e-6;

fn main() {
    let missing: Vec<&str> = [Level::Avx2, Level::Avx512]
        .into_iter()
        .filter(|level| !level.is_available())
        .map(Level::name)
        .collect();
    if !missing.is_empty() {
        println!("not run: this processor lacks {}", missing.join(" and "));
        return;
    }
    // Cargo adds options of its own.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    println!(
        "{:14} {:>46} {:>46}",
        "", "prefill: avx2, avx512vnni, GMAC/s (a cycle)", "decode: GB/s (a cycle)"
    );
    for (encoding, dtype) in products() {
        let name = format!("{encoding:?}x{dtype:?}");
        if !words.is_empty() && !words.contains(&name) {
            continue;
        }
        let of = |tokens, features, k| {
            [Level::Avx2, Level::Avx512]
                .map(|l| Product::new(l, encoding, dtype, tokens, features, k))
        };
        let bytes = pack::packed_len(encoding, 64, 768).expect("whole blocks");
        println!(
            "{name:14} {} {}",
            compare(&of(64, 64, 1536), 64.0 * 64.0 * 1536.0),
            compare(&of(1, 64, 768), bytes as f64),
        );
    }
}

/// Both sides' rates of `amount` a call.
fn compare(sides: &[Product; 2], amount: f64) -> String {
    let mut rates = [Vec::new(), Vec::new()];
    let mut ratios = Vec::new();
    let calls = sides.each_ref().map(|side| {
        side.call();
        let start = Instant::now();
        side.call();
        (STRETCH / start.elapsed().as_secs_f64()).ceil() as u32
    });
    for _ in 0..ROUNDS {
        for ((side, calls), rates) in sides.iter().zip(calls).zip(&mut rates) {
            let start = Instant::now();
            for _ in 0..calls {
                side.call();
            }
            rates.push(amount * f64::from(calls) / start.elapsed().as_secs_f64());
        }
        ratios.push(rates[1][rates[1].len() - 1] / rates[0][rates[0].len() - 1]);
    }
    let hertz = clock();
    let [first, second] = rates.map(median);
    format!(
        "{:8.1} ({:5.1}) {:8.1} ({:5.1}) ratio {:.2}",
        first / 1e9,
        first / hertz,
        second / 1e9,
        second / hertz,
        median(ratios)
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

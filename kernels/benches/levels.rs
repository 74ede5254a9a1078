//! The levels against one another: every matmul and attention microkernel at AVX2, AVX-VNNI, AVX-512 and AMX, as far as this processor
//! has them, in alternating stretches.
//!
//! `cargo bench -p kernels --bench levels [-- WORD ...]` prints a row for each case whose name begins with one of the words, such
//! as `prefill/Q4_0xQ8` (64 tokens by 64 features, k = 1536), `tile32/..`, `batch8/..`, `batch16/..` (as many tokens), `decode/..` (one
//! token by 64 features, k = 768) and `attention/..`: for each level what it does in a cycle, that as a part of the ceiling that
//! NOTES.md derives, and how many times what the level before does. Figures are medians of alternating stretches, ratios the
//! median of the ratios of neighbours, so that what else the machine does meets all sides alike.

mod product;

use std::time::Instant;

use bundle_format::plan::KvDType;
use kernels::cpu::Level;

use product::attention::{ATTENTIONS, Attention};
use product::{Product, ceiling, clock, products, weight_bytes};

/// Alternating stretches of each side.
const ROUNDS: usize = 41;

/// The length of a stretch, in seconds: far above the timer's own cost, far below a time slice of a busy machine.
const STRETCH: f64 = 300e-6;

/// Shapes of matmuls: name, tokens, k.
const SHAPES: [(&str, usize, usize); 5] = [
    ("prefill", 64, 1536),
    ("tile32", 32, 1536),
    ("batch8", 8, 1536),
    ("batch16", 16, 1536),
    ("decode", 1, 768),
];

/// Features of matmuls.
const FEATURES: usize = 64;

fn main() {
    let levels: Vec<Level> = [Level::Avx2, Level::AvxVnni, Level::Avx512, Level::Amx]
        .into_iter()
        .filter(|level| {
            if !level.is_available() {
                println!("not run: this processor lacks {}", level.name());
            }
            level.is_available()
        })
        .collect();
    // Cargo adds options of its own.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let asked = |name: &str| words.is_empty() || words.iter().any(|w| name.starts_with(w));
    println!(
        "{:.2} GHz; a cycle (of the ceiling) times the level before",
        clock() / 1e9
    );
    for (shape, tokens, k) in SHAPES {
        for (encoding, dtype) in products() {
            let name = format!("{shape}/{encoding:?}x{dtype:?}");
            if !asked(&name) {
                continue;
            }
            let of = |level: &Level| Product::new(*level, encoding, dtype, tokens, FEATURES, k);
            let sides: Vec<Product> = levels.iter().map(of).collect();
            let ceiling = |level: &Level| match tokens {
                1 => ceiling::decode(*level, encoding, dtype),
                _ => ceiling::prefill(*level, encoding, dtype),
            };
            // Bytes of weights where they are what decides.
            let amount = match tokens {
                1 => weight_bytes(encoding, dtype, FEATURES, k),
                _ => (tokens * FEATURES * k) as u64,
            };
            let calls: Vec<_> = sides.iter().map(|side| || side.call()).collect();
            compare(&name, &levels, &calls, amount as f64, ceiling);
        }
    }
    for dtype in [KvDType::F16, KvDType::Q8_0] {
        for (shape, head_dim, position, tokens) in ATTENTIONS {
            let name = format!("attention/{dtype:?}/{shape}");
            if !asked(&name) {
                continue;
            }
            let of = |level: &Level| Attention::new(*level, dtype, head_dim, position, tokens);
            let sides: Vec<Attention> = levels.iter().map(of).collect();
            let amount = sides.first().map_or(0.0, Attention::macs);
            let calls: Vec<_> = sides.iter().map(|side| || side.call()).collect();
            let ceiling = |level: &Level| ceiling::attention(*level, dtype);
            compare(&name, &levels, &calls, amount, ceiling);
        }
    }
}

/// Prints the sides' rates of `amount` a call.
fn compare(
    name: &str,
    levels: &[Level],
    sides: &[impl Fn()],
    amount: f64,
    ceiling: impl Fn(&Level) -> f64,
) {
    let calls: Vec<u32> = sides
        .iter()
        .map(|side| {
            side();
            let start = Instant::now();
            side();
            (STRETCH / start.elapsed().as_secs_f64()).ceil() as u32
        })
        .collect();
    let mut rates = vec![Vec::new(); sides.len()];
    for _ in 0..ROUNDS {
        for ((side, calls), rates) in sides.iter().zip(&calls).zip(&mut rates) {
            let start = Instant::now();
            for _ in 0..*calls {
                side();
            }
            rates.push(amount * f64::from(*calls) / start.elapsed().as_secs_f64());
        }
    }
    let hertz = clock();
    print!("{name:28}");
    for (i, level) in levels.iter().enumerate() {
        let a_cycle = median(rates[i].clone()) / hertz;
        let part = 100.0 * a_cycle / ceiling(level);
        print!("  {} {a_cycle:6.1} ({part:3.0}%)", level.name());
        if i > 0 {
            let before = rates[i - 1].iter();
            let ratios = rates[i]
                .iter()
                .zip(before)
                .map(|(now, before)| now / before);
            print!(" x{:.2}", median(ratios.collect()));
        }
    }
    println!();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

//! What a mixture of experts reads, by the size of a step.

use std::fmt::Write as _;

use bundle_format::plan::{Dim, Op, Plan};

/// Tokens of the steps that are shown.
const STEPS: [u32; 8] = [1, 2, 4, 8, 16, 32, 128, 512];

/// Experts, and those of a token, of a list of pairs.
pub fn of(plan: &Plan, tokens: u32, starts: u32) -> (u32, u32) {
    let used = match plan.buffers[tokens as usize].extent {
        Dim::Pairs(used) => used,
        _ => 1,
    };
    (plan.buffers[starts as usize].cols - 1, used)
}

/// How many of `experts` any of `tokens` tokens goes to that go to `used` different ones each, on average, were all equally
/// likely: a token leaves an expert out with the probability 1 - used / experts.
pub fn touched(experts: u32, used: u32, tokens: u32) -> f64 {
    let left_out = 1.0 - used as f64 / experts as f64;
    experts as f64 * (1.0 - left_out.powi(tokens as i32))
}

/// How many blocks of up to `rows` pairs of one expert the pairs of `tokens` tokens make on average: each token goes to an expert with
/// the probability used / experts, so that an expert's pairs are distributed binomially.
pub fn blocks(experts: u32, used: u32, tokens: u32, rows: u32) -> f64 {
    if used == experts {
        return f64::from(experts * tokens.div_ceil(rows));
    }
    let p = f64::from(used) / f64::from(experts);
    // A block begins behind each whole number of blocks' rows: the sum of the probabilities that an expert has more than those.
    let (mut of_expert, mut below) = (0.0, 0.0);
    // The logarithm of the probability of so many pairs.
    let mut log = f64::from(tokens) * (1.0 - p).ln();
    for pairs in 0..tokens {
        below += log.exp();
        if pairs.is_multiple_of(rows) {
            of_expert += (1.0 - below).max(0.0);
        }
        let more = f64::from(tokens - pairs) / f64::from(pairs + 1) * p / (1.0 - p);
        log += more.ln();
    }
    f64::from(experts) * of_expert
}

/// The weights of experts that a step touches, by its number of tokens; nothing for a model without experts.
pub fn print_experts(plan: &Plan) -> String {
    // Of all experts of a launch, bytes.
    let mut launches = Vec::new();
    let mut others = 0;
    for launch in &plan.launches {
        match &launch.op {
            Op::ExpertMatMul {
                tokens,
                starts,
                segments,
                ..
            } => {
                let bytes: u64 = segments
                    .iter()
                    .map(|s| plan.weights[s.weight as usize].len)
                    .sum();
                launches.push((of(plan, *tokens, *starts), bytes));
            }
            Op::MatMul { segments, .. } => {
                others += segments
                    .iter()
                    .map(|s| plan.weights[s.weight as usize].len)
                    .sum::<u64>();
            }
            _ => {}
        }
    }
    let Some(&((experts, used), _)) = launches.first() else {
        return String::new();
    };
    let all: u64 = launches.iter().map(|l| l.1).sum();
    let mut out = format!(
        "== experts: weights that a step touches, {used} of {experts} experts a token, were all equally likely\n"
    );
    let _ = writeln!(
        out,
        "  {:>6} {:>16} {:>16} {:>8} {:>20}",
        "tokens", "experts a layer", "expert bytes", "of all", "with other matrices"
    );
    for tokens in STEPS {
        if tokens > plan.limits.max_tokens {
            break;
        }
        let bytes: f64 = launches
            .iter()
            .map(|&((experts, used), bytes)| {
                bytes as f64 / experts as f64 * touched(experts, used, tokens)
            })
            .sum();
        let _ = writeln!(
            out,
            "  {tokens:>6} {:>16.1} {:>16.0} {:>7.1}% {:>20.0}",
            touched(experts, used, tokens),
            bytes,
            100.0 * bytes / all as f64,
            bytes + others as f64
        );
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_touches_its_own_and_many_touch_all() {
        assert_eq!(touched(128, 8, 1), 8.0);
        assert!((touched(60, 4, 2) - (4.0 + 4.0 * 56.0 / 60.0)).abs() < 1e-9);
        assert!(touched(8, 2, 512) > 7.999);
        assert_eq!(touched(4, 4, 3), 4.0);
    }

    #[test]
    fn blocks_are_those_of_experts_that_are_touched_and_of_their_rows() {
        for (experts, used, tokens) in [(128, 8, 1), (60, 4, 32), (8, 2, 16)] {
            let few = blocks(experts, used, tokens, 64);
            assert!((few - touched(experts, used, tokens)).abs() < 1e-6, "{few}");
            let pairs = f64::from(used * tokens);
            assert!((blocks(experts, used, tokens, 1) - pairs).abs() < 1e-6);
        }
        // 128 rows of an expert on average: a half more than whole blocks of them.
        let many = blocks(8, 2, 512, 64) / 8.0;
        assert!((2.3..2.7).contains(&many), "{many}");
    }
}

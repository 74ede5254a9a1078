//! How many prompt tokens a step takes in beside the rows that decode, so that answers that run don't stall.
//!
//! Whoever owns the engine tells it how long steps took; until then the costs of a small model on a CPU are assumed, where
//! reading the weights costs as much as some five tokens.

/// A mixed step may take this much longer than decoding alone: with what varies besides, less than twice as long.
const EXTRA: f32 = 0.7;

/// Tokens that cost as much as reading the weights, as long as nothing is measured.
const FREE_TOKENS: u32 = 4;

/// Measured costs of steps, in seconds.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Where the caller decides.
    fixed: Option<u32>,
    /// By decoding rows: the time of a step without prompt tokens; none where it was not seen yet.
    alone: Vec<Option<f32>>,
    /// What each prompt token adds.
    token: Option<f32>,
}

impl Pace {
    /// For steps of at most `rows` rows; `fixed` is the budget of mixed steps, if it is not to be found out.
    pub fn new(fixed: Option<u32>, rows: u32) -> Pace {
        Pace {
            fixed,
            alone: vec![None; rows as usize + 1],
            token: None,
        }
    }

    /// Prompt tokens for a step in which `rows` rows decode; at least one.
    pub fn budget(&self, rows: u32) -> u32 {
        let measured = || {
            let token = self.token?;
            let alone = self.alone(rows)?;
            // A cast that saturates.
            Some((EXTRA * alone / token) as u32)
        };
        let found = self.fixed.or_else(measured);
        found.unwrap_or(rows + FREE_TOKENS).max(1)
    }

    /// A step of `rows` decoding rows and `tokens` prompt tokens took so many seconds.
    pub fn observe(&mut self, rows: u32, tokens: u32, seconds: f32) {
        if rows == 0 || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        if tokens == 0 {
            if let Some(known) = self.alone.get_mut(rows as usize) {
                *known = Some(smoothed(*known, seconds));
            }
        } else if let Some(alone) = self.alone(rows) {
            // Where tokens seem to cost nothing, they cost little.
            let each = ((seconds - alone) / tokens as f32).max(alone * 1e-3);
            self.token = Some(smoothed(self.token, each));
        }
    }

    /// The time that `rows` rows take, or that of the nearest number of rows that was seen, fewer ones first: too low a time
    /// only makes prompts slower.
    fn alone(&self, rows: u32) -> Option<f32> {
        let rows = (rows as usize).min(self.alone.len() - 1);
        let (fewer, more) = self.alone.split_at(rows + 1);
        fewer.iter().rev().chain(more).find_map(|&time| time)
    }
}

/// Follows times down at once and up slowly: what disturbs a measurement makes it longer.
fn smoothed(known: Option<f32>, found: f32) -> f32 {
    match known {
        None => found,
        Some(known) if found < known => (known + found) / 2.0,
        Some(known) => known + (found.min(2.0 * known) - known) / 8.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device on which a step takes 6 ms, and 1.2 ms for each row and each prompt token.
    fn observed(pace: &mut Pace, rows: u32, tokens: u32) -> f32 {
        let seconds = 6e-3 + 1.2e-3 * (rows + tokens) as f32;
        pace.observe(rows, tokens, seconds);
        seconds
    }

    #[test]
    fn mixed_steps_take_less_than_twice_as_long() {
        let mut pace = Pace::new(None, 32);
        assert_eq!(pace.budget(8), 12, "assumed");
        for rows in [1, 8, 32] {
            let alone = observed(&mut pace, rows, 0);
            for _ in 0..50 {
                let budget = pace.budget(rows);
                let mixed = observed(&mut pace, rows, budget);
                assert!(budget >= 4 && mixed < 2.0 * alone, "{rows}: {budget}");
            }
        }
        assert_eq!(pace.budget(8), 9);
        // A row count that was not seen is taken for the next smaller one.
        assert_eq!(pace.budget(20), 9);
    }

    #[test]
    fn a_hiccup_changes_little() {
        let mut pace = Pace::new(None, 8);
        observed(&mut pace, 8, 0);
        observed(&mut pace, 8, 4);
        let before = pace.budget(8);
        pace.observe(8, 0, 1.0);
        assert!(pace.budget(8) <= before + before / 4);
        pace.observe(8, 0, f32::NAN);
        pace.observe(0, 100, 1.0);
        assert!(pace.budget(8) <= before + before / 4);
    }

    #[test]
    fn a_budget_that_is_given_stays() {
        let mut pace = Pace::new(Some(40), 8);
        observed(&mut pace, 8, 0);
        observed(&mut pace, 8, 4);
        assert_eq!(pace.budget(8), 40);
        assert_eq!(Pace::new(Some(0), 8).budget(8), 1, "prompts get on");
    }
}

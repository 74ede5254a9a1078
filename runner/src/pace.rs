//! How many prompt tokens a step takes in beside the rows that decode, so that answers that run don't stall.
//!
//! Whoever owns the engine tells it how long steps took; until then the costs of a small model on a CPU are assumed, where
//! reading the weights costs as much as some five tokens.
//!
//! A step costs what its decoding rows cost alone, and each prompt token so much more. Neither need have been seen by itself when
//! it has to be known: where many clients come to a server that has just started, prompts are fed in every step, and no step
//! decodes alone before the last of them is through. Steps of prompts alone and mixed ones have bounds of both.

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
    /// The least time of a prompt's token in a step of prompts alone, its share of reading the weights included: it is not less
    /// than what such a token adds.
    token_alone: Option<f32>,
    /// What a mixed step's rows took, if its tokens took `token_alone` each; of use until a step has decoded alone.
    rest: Option<f32>,
}

impl Pace {
    /// For steps of at most `rows` rows; `fixed` is the budget of mixed steps, if it is not to be found out.
    pub fn new(fixed: Option<u32>, rows: u32) -> Pace {
        Pace {
            fixed,
            alone: vec![None; rows as usize + 1],
            token: None,
            token_alone: None,
            rest: None,
        }
    }

    /// Prompt tokens for a step in which `rows` rows decode; at least one.
    pub fn budget(&self, rows: u32) -> u32 {
        let measured = || {
            let token = self.token.or(self.token_alone)?;
            let alone = self.alone(rows).or(self.rest)?;
            // A cast that saturates.
            Some((EXTRA * alone / token) as u32)
        };
        let found = self.fixed.or_else(measured);
        found.unwrap_or(rows + FREE_TOKENS).max(1)
    }

    /// A step of `rows` decoding rows and `tokens` prompt tokens took so many seconds.
    pub fn observe(&mut self, rows: u32, tokens: u32, seconds: f32) {
        if rows + tokens == 0 || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        if rows == 0 {
            let each = seconds / tokens as f32;
            self.token_alone = Some(self.token_alone.map_or(each, |known| known.min(each)));
        } else if tokens == 0 {
            if let Some(known) = self.alone.get_mut(rows as usize) {
                *known = Some(smoothed(*known, seconds));
            }
        } else if let Some(alone) = self.alone(rows) {
            // Where tokens seem to cost nothing, they cost little.
            let each = ((seconds - alone) / tokens as f32).max(alone * 1e-3);
            self.token = Some(smoothed(self.token, each));
        } else if let Some(each) = self.token_alone {
            // What the budget allows at most tells how much of the step the rows are at least: so the guess stays below the truth,
            // and comes near it where tokens add what they cost alone.
            let rest = (seconds - tokens as f32 * each).max(seconds / (1.0 + EXTRA));
            self.rest = Some(smoothed(self.rest, rest));
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

    /// A server that has just started, to which clients with long prompts come at once, on a device of these costs: a step, a
    /// decoding row, a prompt token, in seconds. The steps are shared out as the scheduler does. Gives the time until the last
    /// prompt is through, over that of prompts without answers between, and the longest mixed step over decoding alone.
    fn cold_start(costs: [f32; 3], clients: u32, prompt: u32, warm_up: bool) -> (f32, f32) {
        const MOST: u32 = 512;
        let [step, row, token] = costs;
        let mut pace = Pace::new(None, clients);
        let cost = |rows: u32, tokens: u32| step + row * rows as f32 + token * tokens as f32;
        if warm_up {
            // Somebody looked whether it lives, and asked for one token.
            pace.observe(0, 5, cost(0, 5));
        }
        let mut todo = vec![prompt; clients as usize];
        let (mut time, mut longest) = (0.0f32, 0.0f32);
        while todo.iter().any(|&n| n > 0) {
            let rows = todo.iter().filter(|&&n| n == 0).count() as u32;
            let mut room = match rows {
                0 => MOST,
                _ => pace.budget(rows).min(MOST - rows),
            };
            let before = room;
            for n in &mut todo {
                let fed = room.min(*n);
                (*n, room) = (*n - fed, room - fed);
            }
            let tokens = before - room;
            let seconds = cost(rows, tokens);
            pace.observe(rows, tokens, seconds);
            time += seconds;
            if rows > 0 {
                longest = longest.max(seconds / cost(rows, 0));
            }
        }
        let ideal = (clients * prompt).div_ceil(MOST) as f32 * cost(0, MOST);
        (time / ideal, longest)
    }

    #[test]
    fn prompts_get_their_share_of_a_server_that_never_decoded_alone() {
        // A processor with a small model, one with a large model, a GPU.
        // A processor with a small model and with a large one, a GPU: the assumed budget took 5.9 times as long there for four.
        for costs in [
            [6e-3, 1.2e-3, 1.2e-3],
            [0.1, 0.02, 0.02],
            [1.7e-3, 2e-5, 4e-5],
        ] {
            for (clients, prompt) in [(32, 1000), (4, 4000)] {
                for warm_up in [false, true] {
                    let (times, longest) = cold_start(costs, clients, prompt, warm_up);
                    // Of a mixed step at most 0.7 / 1.7 are for prompts.
                    let case = format!("{costs:?}, {clients} clients: {times} {longest}");
                    assert!(times < 1.7 / 0.7 + 0.1 && longest < 2.0, "{case}");
                }
            }
        }
    }

    #[test]
    fn what_was_measured_takes_the_place_of_what_was_inferred() {
        let mut pace = Pace::new(None, 8);
        pace.observe(0, 100, 6e-3 + 1.2e-1);
        pace.observe(4, 8, 6e-3 + 1.2e-3 * 12.0);
        let inferred = pace.budget(4);
        for _ in 0..20 {
            observed(&mut pace, 4, 0);
            let budget = pace.budget(4);
            observed(&mut pace, 4, budget);
        }
        let measured = pace.budget(4);
        // 0.7 times the time of 9 tokens.
        assert!(
            inferred <= measured && measured == 6,
            "{inferred} {measured}"
        );
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

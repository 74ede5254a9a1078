//! What a device remembers of the steps that it ran: outcomes until they are fetched, sampled ids a while longer.

use std::collections::VecDeque;

use super::{Outcome, RowOutcome, Step, Ticket, TokenSource};
use crate::Error;

/// Steps whose sampled ids can still be named as [`TokenSource::Sampled`].
pub const REMEMBERED: usize = 64;

/// The steps of one device.
#[derive(Debug, Default)]
pub struct Tickets {
    next: u64,
    /// Outcomes that were not fetched yet, oldest first.
    waiting: VecDeque<(Ticket, Outcome)>,
    /// Ids that the last steps sampled, by row, oldest first.
    sampled: VecDeque<(Ticket, Vec<Option<u32>>)>,
}

impl Tickets {
    /// The ids of a step's tokens, one after the other into `ids`.
    ///
    /// # Errors
    /// [`Error::User`] for an id outside the vocabulary, and for a ticket or row that sampled nothing (or too long ago).
    pub fn resolve(
        &self,
        step: &Step,
        vocab: u32,
        mut put: impl FnMut(usize, u32),
    ) -> Result<(), Error> {
        for (i, source) in step.tokens.iter().enumerate() {
            put(i, self.token(i, *source, vocab)?);
        }
        Ok(())
    }

    /// The id of token `i` of a step, with the errors of [`Self::resolve`].
    pub fn token(&self, i: usize, source: TokenSource, vocab: u32) -> Result<u32, Error> {
        self.id(source, vocab)
            .map_err(|text| Error::User(format!("invalid step: token {i} {text}")))
    }

    fn id(&self, source: TokenSource, vocab: u32) -> Result<u32, String> {
        match source {
            TokenSource::Id(id) if id < vocab => Ok(id),
            TokenSource::Id(id) => {
                Err(format!("is {id}, expected below the vocabulary of {vocab}"))
            }
            TokenSource::Sampled { ticket, row } => {
                let step = self.sampled.iter().rev().find(|(t, _)| *t == ticket);
                let Some((_, ids)) = step else {
                    return Err(format!(
                        "was sampled by step {}, which is not one of the last {REMEMBERED}",
                        ticket.0
                    ));
                };
                ids.get(row as usize)
                    .copied()
                    .flatten()
                    .ok_or_else(|| format!("is row {row} of step {}, which sampled none", ticket.0))
            }
        }
    }

    /// Files the outcome of a step, and names it.
    pub fn file(&mut self, outcome: Outcome) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        if self.sampled.len() == REMEMBERED {
            self.sampled.pop_front();
        }
        // A row that failed may be named by a step that is on its way; that step's other rows must not fail for it.
        let id = |row: &RowOutcome| row.token.or(row.error.as_ref().map(|_| 0));
        let ids = outcome.rows.iter().map(id).collect();
        self.sampled.push_back((ticket, ids));
        self.waiting.push_back((ticket, outcome));
        ticket
    }

    /// Hands an outcome out, once.
    ///
    /// # Errors
    /// [`Error::User`] for a ticket that is not of this device or was fetched before.
    pub fn fetch(&mut self, ticket: Ticket) -> Result<Outcome, Error> {
        let found = self.waiting.iter().position(|(t, _)| *t == ticket);
        match found.and_then(|i| self.waiting.remove(i)) {
            Some((_, outcome)) => Ok(outcome),
            None if ticket.0 < self.next => Err(Error::User(format!(
                "the outcome of step {} was fetched before",
                ticket.0
            ))),
            None => Err(Error::User(format!(
                "step {} was never submitted to this device",
                ticket.0
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(token: Option<u32>) -> Outcome {
        Outcome {
            rows: vec![RowOutcome {
                token,
                ..RowOutcome::default()
            }],
        }
    }

    fn resolve(tickets: &Tickets, source: TokenSource) -> Result<u32, String> {
        let step = Step {
            tokens: vec![source],
            ..Step::default()
        };
        let mut found = 0;
        tickets
            .resolve(&step, 100, |_, id| found = id)
            .map(|()| found)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn outcomes_are_fetched_once_and_in_any_order() {
        let mut tickets = Tickets::default();
        let a = tickets.file(outcome(Some(5)));
        let b = tickets.file(outcome(None));
        assert!(b > a);
        assert_eq!(tickets.fetch(b).unwrap().rows[0].token, None);
        assert_eq!(tickets.fetch(a).unwrap().rows[0].token, Some(5));
        let again = tickets.fetch(a).unwrap_err().to_string();
        assert!(again.contains("fetched before"), "{again}");
        let never = tickets.fetch(Ticket(9)).unwrap_err().to_string();
        assert!(never.contains("never submitted"), "{never}");
    }

    #[test]
    fn sampled_ids_feed_later_steps() {
        let mut tickets = Tickets::default();
        let ticket = tickets.file(outcome(Some(5)));
        let blank = tickets.file(outcome(None));
        tickets.fetch(ticket).unwrap();
        let sampled = |ticket, row| TokenSource::Sampled { ticket, row };
        assert_eq!(resolve(&tickets, sampled(ticket, 0)), Ok(5));
        let error = resolve(&tickets, sampled(ticket, 1)).unwrap_err();
        assert!(error.contains("row 1 of step 0"), "{error}");
        assert!(resolve(&tickets, sampled(blank, 0)).is_err());
        assert!(resolve(&tickets, sampled(Ticket(7), 0)).is_err());
        for _ in 0..REMEMBERED {
            tickets.file(outcome(None));
        }
        let error = resolve(&tickets, sampled(ticket, 0)).unwrap_err();
        assert!(error.contains("last 64"), "{error}");
    }

    #[test]
    fn ids_are_below_the_vocabulary() {
        let tickets = Tickets::default();
        assert_eq!(resolve(&tickets, TokenSource::Id(99)), Ok(99));
        let error = resolve(&tickets, TokenSource::Id(100)).unwrap_err();
        assert!(error.contains("token 0 is 100"), "{error}");
    }
}

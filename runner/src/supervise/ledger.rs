//! What was asked and what was answered so far: all that is needed to go on with another worker.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use super::message::{News, Task};
use crate::runner::Told;
use crate::{Event, FinishReason, Request, RequestId};

/// A request is given up at so many deaths of workers that it was with, none of its own tokens between.
pub const REQUEST_DEATHS: u32 = 3;
/// From so many on, it is under suspicion: it comes to a new worker last, and alone among those that are.
const SUSPICIOUS_DEATHS: u32 = 2;

/// All requests that have not ended, oldest first, and the tasks that the present worker has of them.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<RequestId, Entry>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    tasks: HashMap<u64, Part>,
    next_id: u64,
    next_key: u64,
}

#[derive(Debug)]
struct Entry {
    request: Request,
    choices: Vec<Choice>,
    /// The scores of its prompt were told.
    scored: bool,
    /// Deaths of workers since it last got on.
    deaths: u32,
    /// Names of its tasks.
    keys: Vec<u64>,
}

/// One answer.
#[derive(Clone, Debug, Default)]
struct Choice {
    tokens: Vec<u32>,
    /// Told with the first token.
    cached: Option<u32>,
    ended: bool,
}

/// What of a request a task is.
#[derive(Clone, Copy, Debug)]
struct Part {
    id: RequestId,
    /// The answer that the task's first one is; none: they are numbered alike.
    choice: Option<u32>,
}

impl Ledger {
    /// Enters a request, of which nobody has a task yet.
    pub fn add(&mut self, request: Request) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.deadlines.extend(request.deadline.map(|at| (at, id)));
        let entry = Entry {
            choices: vec![Choice::default(); request.choices as usize],
            request,
            scored: false,
            deaths: 0,
            keys: Vec::new(),
        };
        self.entries.insert(id, entry);
        id
    }

    /// The first deadline, and whose it is.
    pub fn deadline(&self) -> Option<(Instant, RequestId)> {
        self.deadlines.first().copied()
    }

    /// Whether the worker has something to do.
    pub fn has_tasks(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Requests, oldest first.
    pub fn ids(&self) -> Vec<RequestId> {
        self.entries.keys().copied().collect()
    }

    /// Answers that have not ended.
    pub fn open_choices(&self) -> usize {
        let open = |entry: &Entry| entry.choices.iter().filter(|c| !c.ended).count();
        self.entries.values().map(open).sum()
    }

    /// The tasks that a worker has to be given for what has not ended of a request: all of it, or each answer by itself,
    /// from where it is. An answer is a function of its own seed, so that it need not know the others.
    pub fn tasks(&mut self, id: RequestId) -> Vec<Task> {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Vec::new();
        };
        let request = &entry.request;
        let mut parts = Vec::new();
        let untouched = |c: &Choice| !c.ended && c.tokens.is_empty();
        if entry.choices.iter().all(untouched) {
            parts.push((None, Task::new(self.next_key, request)));
        } else {
            let open = (0..).zip(&entry.choices).filter(|(_, c)| !c.ended);
            for (number, choice) in open {
                let mut task = Task::new(self.next_key + parts.len() as u64, request);
                task.choices = 1;
                task.sampling.seed = task.sampling.seed.wrapping_add(u64::from(number));
                task.answered.extend(&choice.tokens);
                parts.push((Some(number), task));
            }
        }
        self.next_key += parts.len() as u64;
        for (choice, task) in &mut parts {
            task.prompt_logprobs = task.prompt_logprobs.filter(|_| !entry.scored);
            entry.keys.push(task.key);
            self.tasks.insert(
                task.key,
                Part {
                    id,
                    choice: *choice,
                },
            );
        }
        parts.into_iter().map(|(_, task)| task).collect()
    }

    /// The worker is gone, with all tasks that it had. If it may have died `of_them`, those are remembered that may be the
    /// reason: the oldest `running`, which are more than can have run. Gives those that have been there too often.
    pub fn worker_died(&mut self, of_them: bool, running: usize) -> Vec<RequestId> {
        self.tasks.clear();
        let mut given_up = Vec::new();
        let mut left = if of_them { running } else { 0 };
        for (&id, entry) in &mut self.entries {
            if !std::mem::take(&mut entry.keys).is_empty() && left > 0 {
                left -= 1;
                entry.deaths += 1;
                if entry.deaths >= REQUEST_DEATHS {
                    given_up.push(id);
                }
            }
        }
        given_up
    }

    /// In which order requests come to a new worker: those that may all come at once, then the suspects, of which each waits
    /// until the one before has got on.
    pub fn order(&self) -> (Vec<RequestId>, Vec<RequestId>) {
        let suspected = self.entries.values().any(|e| e.deaths >= SUSPICIOUS_DEATHS);
        let is_suspect = |id: &RequestId| suspected && self.entries[id].deaths > 0;
        let (suspects, others) = self.ids().into_iter().partition(is_suspect);
        (others, suspects)
    }

    /// Whether a request has got on since a worker died with it, or has ended.
    pub fn is_cleared(&self, id: RequestId) -> bool {
        self.entries.get(&id).is_none_or(|entry| entry.deaths == 0)
    }

    /// What the news of a task say of its request; nothing of a task or an answer that is not there any more.
    pub fn hear(&mut self, news: News) -> Option<Told> {
        match news {
            News::Token {
                key,
                choice,
                token,
                logprobs,
                cached,
            } => {
                let (id, choice) = self.place(key, choice)?;
                let entry = self.entries.get_mut(&id)?;
                entry.deaths = 0;
                let answer = entry.choices.get_mut(choice as usize)?;
                answer.tokens.push(token);
                answer.cached = answer.cached.or(cached);
                Some(Told::Engine(Event::Token {
                    id,
                    choice,
                    token,
                    logprobs,
                }))
            }
            News::Scored { key, scores } => {
                let Part { id, .. } = *self.tasks.get(&key)?;
                let entry = self.entries.get_mut(&id)?;
                entry.deaths = 0;
                let news = !std::mem::replace(&mut entry.scored, true);
                news.then_some(Told::Scored { id, scores })
            }
            News::Hidden { key, rows, sum } => {
                let (id, _) = self.place(key, 0)?;
                Some(Told::Hidden { id, rows, sum })
            }
            News::Finished {
                key,
                choice,
                reason,
                cached,
            } => {
                let (id, choice) = self.place(key, choice)?;
                self.finish(id, choice, reason, cached)
            }
        }
    }

    /// The request and the answer that a task's answer is.
    fn place(&self, key: u64, choice: u32) -> Option<(RequestId, u32)> {
        let part = self.tasks.get(&key)?;
        let choice = part.choice.unwrap_or(choice);
        let answer = self.entries.get(&part.id)?.choices.get(choice as usize)?;
        (!answer.ended).then_some((part.id, choice))
    }

    /// Ends what has not ended of a request: the news, and the tasks that nobody wants any more.
    pub fn end(&mut self, id: RequestId, reason: &FinishReason) -> (Vec<Told>, Vec<u64>) {
        let Some(entry) = self.entries.get(&id) else {
            return (Vec::new(), Vec::new());
        };
        let (choices, keys) = (0..entry.choices.len() as u32, entry.keys.clone());
        let end = |choice| self.finish(id, choice, reason.clone(), 0);
        (choices.filter_map(end).collect(), keys)
    }

    /// Ends one answer: the news, and which answer of which task nobody wants any more.
    pub fn end_choice(
        &mut self,
        id: RequestId,
        choice: u32,
        reason: FinishReason,
    ) -> (Option<Told>, Option<(u64, u32)>) {
        let entry = self.entries.get(&id);
        let mut keys = entry.into_iter().flat_map(|entry| &entry.keys);
        let task = keys.find_map(|key| match self.tasks.get(key)?.choice {
            None => Some((*key, choice)),
            Some(own) => (own == choice).then_some((*key, 0)),
        });
        (self.finish(id, choice, reason, 0), task)
    }

    /// `cached` counts where no token has told better.
    fn finish(
        &mut self,
        id: RequestId,
        choice: u32,
        reason: FinishReason,
        cached: u32,
    ) -> Option<Told> {
        let entry = self.entries.get_mut(&id)?;
        let answer = entry.choices.get_mut(choice as usize)?;
        if std::mem::replace(&mut answer.ended, true) {
            return None;
        }
        let cached_tokens = answer.cached.unwrap_or(cached);
        entry.deaths = 0;
        if entry.choices.iter().all(|c| c.ended) {
            entry.keys.iter().for_each(|key| {
                self.tasks.remove(key);
            });
            if let Some(at) = entry.request.deadline {
                self.deadlines.remove(&(at, id));
            }
            self.entries.remove(&id);
        }
        Some(Told::Engine(Event::Finished {
            id,
            choice,
            reason,
            cached_tokens,
        }))
    }
}

#[cfg(test)]
mod tests;

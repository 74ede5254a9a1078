//! A request in progress, as its caller holds it.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};

use crate::{FinishReason, RequestId};

use super::Inner;
use super::update::Update;
use super::worker::Command;

/// Keeps a request going: dropping it cancels what has not ended.
#[derive(Debug)]
pub struct Handle {
    /// The runner lives as long as its requests.
    inner: Arc<Inner>,
    id: RequestId,
}

impl Handle {
    pub(super) fn new(inner: Arc<Inner>, id: RequestId) -> Handle {
        Handle { inner, id }
    }

    /// Ends the request: its answers finish with [`FinishReason::Cancelled`]. Nothing where they have ended already.
    pub fn cancel(&self) {
        self.inner.send(Command::Cancel(self.id));
    }

    /// Cancels the request from elsewhere, without keeping it.
    pub fn canceller(&self) -> Canceller {
        Canceller {
            inner: Arc::downgrade(&self.inner),
            id: self.id,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Cancels a request, from any thread, whoever holds it.
#[derive(Clone, Debug)]
pub struct Canceller {
    inner: Weak<Inner>,
    id: RequestId,
}

impl Canceller {
    /// As [`Handle::cancel`].
    pub fn cancel(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.send(Command::Cancel(self.id));
        }
    }
}

/// The updates of a request as they come; the last is the [`Update::Finished`] of its last answer. Dropping it cancels the
/// request.
#[derive(Debug)]
pub struct Generation {
    updates: Receiver<Update>,
    handle: Handle,
    /// Answers that have not finished.
    open: u32,
}

impl Generation {
    pub(super) fn new(updates: Receiver<Update>, handle: Handle, choices: u32) -> Generation {
        Generation {
            updates,
            handle,
            open: choices,
        }
    }

    /// Ends the request; what was told before still comes, and its end.
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// Cancels the request from another thread.
    pub fn canceller(&self) -> Canceller {
        self.handle.canceller()
    }

    /// Waits for the end: the text of the first answer, and why it ended.
    pub fn text(self) -> (String, FinishReason) {
        let mut all = String::new();
        let mut end = FinishReason::Cancelled;
        for update in self {
            match update {
                Update::Delta {
                    choice: 0, text, ..
                } => all += &text,
                Update::Finished {
                    choice: 0, reason, ..
                } => end = reason,
                Update::Prompt { .. } | Update::Delta { .. } | Update::Finished { .. } => {}
            }
        }
        (all, end)
    }
}

impl Iterator for Generation {
    type Item = Update;

    fn next(&mut self) -> Option<Update> {
        if self.open == 0 {
            return None;
        }
        let update = self.updates.recv().ok()?;
        if matches!(update, Update::Finished { .. }) {
            self.open -= 1;
        }
        Some(update)
    }
}

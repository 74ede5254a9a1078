//! Whether a request makes sense for a model and a device, before anything is done for it.

use crate::Error;
use crate::engine::MAX_CHOICES;
use crate::kv::blocks_for;
use crate::request::Request;
use crate::sampler;

/// What requests are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    /// Positions of a sequence.
    pub context: u32,
    /// Token ids are below this.
    pub vocab: u32,
    /// Blocks of the device's smallest KV pool.
    pub kv_blocks: u32,
}

impl Admission {
    /// # Errors
    /// [`Error::User`] that says what is wrong with the request.
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        let (tokens, context) = (request.prompt.len(), self.context);
        if tokens == 0 {
            return Err(Error::User(
                "the prompt is empty, and this model puts no token of its own before it; give some text".into(),
            ));
        }
        if tokens > context as usize {
            return Err(Error::User(format!(
                "the prompt has {tokens} tokens, but the context of this bundle is {context}; shorten the prompt, or \
                 compile the model with a larger --ctx"
            )));
        }
        let (needed, total) = (blocks_for(tokens as u32), self.kv_blocks);
        if needed > total {
            return Err(Error::User(format!(
                "the prompt of {tokens} tokens takes {needed} KV blocks, but the device has {total}; shorten the prompt, \
                 or give the device more KV memory"
            )));
        }
        let vocab = self.vocab;
        let mut ids = request.prompt.iter().chain(&request.answered);
        if let Some(token) = ids.find(|&&t| t >= vocab) {
            return Err(Error::User(format!(
                "token {token} of the prompt is not in the vocabulary; ids are below {vocab}"
            )));
        }
        self.check_answered(request)?;
        sampler::check_bias(&request.bias, vocab).map_err(Error::User)?;
        let most = if request.hidden { 1 } else { MAX_CHOICES };
        if !(1..=most).contains(&request.choices) {
            return Err(Error::User(format!(
                "{} choices are asked for; expected 1 to {MAX_CHOICES}, and 1 for hidden states",
                request.choices
            )));
        }
        if request.hidden && request.prompt_logprobs.is_some() {
            return Err(Error::User(
                "a prompt's hidden states and log-probabilities are not given together; ask for one, then for the other"
                    .into(),
            ));
        }
        sampler::check(&request.sampling).map_err(Error::User)
    }

    /// An answer that has begun is one that can go on.
    fn check_answered(&self, request: &Request) -> Result<(), Error> {
        let answered = request.answered.len();
        if answered == 0 {
            return Ok(());
        }
        if request.choices != 1 || request.hidden || request.prompt_logprobs.is_some() {
            return Err(Error::User(
                "one answer that has begun goes on at a time, without hidden states or the prompt's log-probabilities; ask for \
                 one choice"
                    .into(),
            ));
        }
        let most = request.max_tokens.map_or(usize::MAX, |n| n as usize);
        let room = (self.context as usize + 1).saturating_sub(request.prompt.len());
        if answered >= most.min(room) {
            return Err(Error::User(format!(
                "the answer has its {answered} tokens already, and nothing is to follow them"
            )));
        }
        Ok(())
    }
}

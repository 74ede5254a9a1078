//! What an answer must match: JSON, a schema, a regular expression or a grammar, as masks over the vocabulary.
//!
//! A [`GrammarCompiler`] reads a tokenizer's vocabulary once, which takes 0.2 s for 50,000 tokens: make it when the first
//! grammar comes. It compiles any number of grammars over it, each in about a millisecond, on any thread.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bundle_format::tokenizer::Attr;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::Error;
use crate::device::TokenMask;
use crate::tokenizer::Tokenizer;

/// The form of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    Json,
    /// JSON of this schema.
    JsonSchema(Value),
    /// Text that a regular expression matches from start to end.
    Regex(String),
    /// Text of a grammar in llguidance's dialect of Lark, from the rule `start`.
    Lark(String),
}

/// Compiles grammars over one vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
    end: Arc<[u32]>,
}

impl GrammarCompiler {
    /// Reads the tokens of `tokenizer`. `vocab` is the model's, which may have more ids; those are in no mask. Neither are
    /// control tokens, but for those that end an answer, where it may end.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a vocabulary without a token that ends an answer.
    pub fn new(tokenizer: &Tokenizer<'_>, vocab: u32) -> Result<GrammarCompiler, Error> {
        let view = tokenizer.vocab();
        let end: Arc<[u32]> = view.end_of_generation().filter(|&id| id < vocab).collect();
        let Some(&eos) = end.first() else {
            return Err(Error::Unsupported(
                "grammars need a token that ends an answer, and this model's vocabulary has none"
                    .into(),
            ));
        };
        let spelled = |id: u32| match view.attr(id) {
            Some(attr)
                if !attr.is_hidden()
                    && attr.any(Attr::NORMAL | Attr::USER_DEFINED | Attr::BYTE) =>
            {
                view.token(id).unwrap_or_default().to_vec()
            }
            // The trie takes a token without bytes for none.
            _ => Vec::new(),
        };
        let words: Vec<Vec<u8>> = (0..vocab).map(spelled).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab, eos), &words).with_eos_tokens(&end);
        // Not canonical: the model may spell what is forced in any of its ways.
        let env: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|e| Error::Bug(format!("the vocabulary's masks can't be prepared: {e}")))?;
        factory.quiet();
        // Errors say what is wrong with the grammar; they need not repeat it.
        factory.limits_mut().verbose_errors = false;
        Ok(GrammarCompiler { factory, end })
    }

    /// # Errors
    /// [`Error::User`] that says what is wrong with the grammar and where.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, Error> {
        let (what, top) = match grammar {
            Grammar::Json => (
                "JSON grammar",
                TopLevelGrammar::from_json_schema(serde_json::json!({"type": "object"})),
            ),
            Grammar::JsonSchema(schema) => (
                "JSON schema",
                TopLevelGrammar::from_json_schema(schema.clone()),
            ),
            Grammar::Regex(regex) => ("regular expression", TopLevelGrammar::from_regex(regex)),
            Grammar::Lark(text) => ("Lark grammar", TopLevelGrammar::from_lark(text.clone())),
        };
        let mut matcher = Matcher::new(self.factory.create_parser(top));
        match matcher.get_error() {
            Some(text) => Err(Error::User(format!(
                "the {what} is not valid: {}",
                text.trim()
            ))),
            None => match matcher.compute_mask() {
                Ok(_) => Ok(Constraint {
                    matcher: Arc::new(matcher),
                    source: Arc::new(grammar.clone()),
                    end: self.end.clone(),
                }),
                Err(error) => Err(Error::User(format!(
                    "no token of this model's vocabulary can start what the {what} describes: {error}"
                ))),
            },
        }
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

/// A compiled grammar, before the first token of an answer. Cloning it is cheap.
#[derive(Clone)]
pub struct Constraint {
    matcher: Arc<Matcher>,
    /// What it was compiled from.
    source: Arc<Grammar>,
    /// Tokens that end an answer.
    end: Arc<[u32]>,
}

impl Constraint {
    /// What it was compiled from.
    pub fn source(&self) -> &Grammar {
        &self.source
    }

    /// The state of one answer, at its start.
    pub(crate) fn start(&self) -> Matching {
        Matching {
            matcher: Mutex::new(self.matcher.deep_clone()),
            end: self.end.clone(),
        }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

/// How far an answer has come in its grammar. Locked for the time of a call: the masks of a step are computed while nobody
/// advances it, for the token that it advances by is drawn with such a mask.
pub(crate) struct Matching {
    matcher: Mutex<Matcher>,
    end: Arc<[u32]>,
}

/// What a token made of an answer.
pub(crate) struct Advanced {
    /// The token ends the answer, and is not part of it.
    pub ended: bool,
    /// Nothing can follow the token.
    pub complete: bool,
}

impl Matching {
    fn lock(&self) -> MutexGuard<'_, Matcher> {
        // A matcher that panicked remembers it as an error.
        self.matcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on by a token that was drawn with a mask of this state.
    pub fn advance(&self, token: u32) -> Result<Advanced, String> {
        if self.end.contains(&token) {
            return Ok(Advanced {
                ended: true,
                complete: true,
            });
        }
        let mut matcher = self.lock();
        matcher
            .consume_token(token)
            .map_err(|e| format!("the grammar does not take token {token}: {e}"))?;
        Ok(Advanced {
            ended: false,
            complete: matcher.is_stopped(),
        })
    }

    /// How many of `guesses` the grammar allows, one after the other; no token that ends the answer is among them.
    pub fn valid(&self, guesses: &[u32]) -> usize {
        let end = guesses.iter().position(|t| self.end.contains(t));
        let guesses = &guesses[..end.unwrap_or(guesses.len())];
        // An error shows in the mask of this state.
        self.lock().validate_tokens(guesses).unwrap_or(0)
    }

    /// Fills in the masks of this state and of those behind each of `guesses`, which are [valid](Matching::valid).
    pub fn masks(&self, guesses: &[u32], masks: &[Arc<TokenMask>]) {
        let mut matcher = self.lock();
        let mut taken = 0;
        for (i, mask) in masks.iter().enumerate() {
            let words = matcher.compute_mask_or_eos();
            let failed = words.is_err();
            mask.set(match words {
                Ok(words) => Ok(words.as_slice().into()),
                Err(error) => Err(format!("the grammar fails: {error}")),
            });
            let next = guesses.get(i);
            if failed || next.is_none_or(|&token| matcher.consume_token(token).is_err()) {
                break;
            }
            taken += 1;
        }
        if let Err(error) = matcher.rollback(taken) {
            // The matcher is of no use any more, and says so at the next call.
            let failed = Err(format!("the grammar can't go back over guesses: {error}"));
            masks.iter().for_each(|mask| mask.set(failed.clone()));
        }
    }
}

impl fmt::Debug for Matching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matching").finish_non_exhaustive()
    }
}

//! What callers and the engine's thread share of an opened bundle: its tokenizer, its chat template, what is known of it.

use std::sync::{Arc, OnceLock};

use bundle_format::plan::{Output, Role};

use crate::Error;
use crate::chat::ChatTemplate;
use crate::grammar::{Constraint, Grammar, GrammarCompiler};
use crate::load::Loaded;
use crate::tokenizer::{EncodeOptions, Tokenizer};

use super::Input;

/// What is known of a model without running it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// As the model's file says, or the bundle's file name without its ending.
    pub name: String,
    /// GGUF's name of the architecture: `llama`.
    pub architecture: String,
    /// GGUF's name of the file's type: `Q4_1`; may be empty.
    pub quantisation: String,
    pub parameters: u64,
    pub layers: u32,
    /// Elements of a hidden state, and so of an embedding.
    pub embedding: u32,
    /// Token ids are below this.
    pub vocab: u32,
    /// Positions of a sequence, prompt and answer together.
    pub context: u32,
    /// Positions that the model was trained for.
    pub trained_context: u32,
    /// Sequences that may run together.
    pub max_sequences: u32,
    /// Whether the model has a chat template, so that it takes [`Input::Chat`].
    pub chat: bool,
    /// The bundle's root hash, in hexadecimal: what it is called by machines.
    pub root: String,
}

/// An opened bundle with what is read out of it.
#[derive(Debug)]
pub struct Model {
    /// These borrow from `loaded`; declared before it, so dropped before it.
    tokenizer: Tokenizer<'static>,
    template: Option<Result<ChatTemplate<'static>, Error>>,
    /// Made when the first grammar comes.
    grammars: OnceLock<Result<GrammarCompiler, Error>>,
    info: ModelInfo,
    loaded: Arc<Loaded>,
}

impl Model {
    pub fn open(loaded: Arc<Loaded>) -> Result<Model, Error> {
        let section = loaded.bundle().tokenizer();
        // SAFETY: only the lifetime is changed. The bytes lie in the map that `loaded` owns and never moves; the model keeps
        // `loaded` until what borrows from it is dropped, and hands it out with the lifetime of `self` only.
        let section = unsafe { std::mem::transmute::<&[u8], &'static [u8]>(section) };
        let tokenizer = Tokenizer::open(section)?;
        let template = tokenizer
            .chat_template()
            .map(|_| ChatTemplate::of_model(&tokenizer));
        let info = info(&loaded, template.is_some());
        Ok(Model {
            tokenizer,
            template,
            grammars: OnceLock::new(),
            info,
            loaded,
        })
    }

    pub fn loaded(&self) -> &Arc<Loaded> {
        &self.loaded
    }

    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    pub fn tokenizer(&self) -> Tokenizer<'_> {
        self.tokenizer
    }

    /// Whether steps yield what embeddings are made of.
    pub fn has_hidden_states(&self) -> bool {
        let hidden = Role::Output(Output::Hidden);
        let buffers = &self.loaded.plan().buffers;
        buffers.iter().any(|buffer| buffer.place.role == hidden)
    }

    /// The tokens that the model is fed.
    pub fn encode(&self, input: &Input) -> Result<Vec<u32>, Error> {
        match input {
            Input::Tokens(ids) => Ok(ids.clone()),
            Input::Text(text) => {
                let options = EncodeOptions {
                    parse_special: false,
                    add_special: true,
                };
                Ok(self.tokenizer.encode(text, options))
            }
            Input::Chat(chat) => {
                let prompt = self.template()?.render(chat)?;
                Ok(self.tokenizer.encode_prompt(&prompt))
            }
        }
    }

    /// A grammar over the model's vocabulary.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, Error> {
        let compiler = self
            .grammars
            .get_or_init(|| GrammarCompiler::new(&self.tokenizer, self.info.vocab));
        compiler.as_ref().map_err(Clone::clone)?.compile(grammar)
    }

    fn template(&self) -> Result<&ChatTemplate<'_>, Error> {
        match &self.template {
            Some(Ok(template)) => Ok(template),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::Unsupported(
                "the model has no chat template (GGUF's tokenizer.chat_template); give the prompt as text".into(),
            )),
        }
    }
}

fn info(loaded: &Loaded, chat: bool) -> ModelInfo {
    let (model, limits) = (&loaded.manifest().model, &loaded.plan().limits);
    let name = match model.name.as_str() {
        "" => loaded
            .path()
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        name => name.to_owned(),
    };
    ModelInfo {
        name,
        architecture: model.arch.clone(),
        quantisation: model.quantisation.clone(),
        parameters: model.parameters,
        layers: model.layers,
        embedding: model.embedding,
        vocab: model.vocab,
        context: limits.context,
        trained_context: model.trained_context,
        max_sequences: limits.max_seqs,
        chat,
        root: loaded.bundle().root().to_string(),
    }
}

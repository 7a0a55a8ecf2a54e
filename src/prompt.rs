//! Body bytes → [`Prompt`]: what vLLM's frontend makes of a request, before tokens.
//!
//! Two steps, so that the caller can look up the model in between and the body is parsed once:
//!
//! ```text
//! Request::parse(path, bytes) → .model() → .reread(&Renderer, bytes) → .render(&Renderer) → Prompt
//! ```
//!
//! The rules are those of vLLM 0.32 and 0.33 (`renderers/{hf,params,online_renderer}.py`,
//! `entrypoints/{openai,anthropic,pooling}/*/protocol.py`), recorded in `tests/fixtures/prompt`; where
//! a renderer's [`Dialect`] is Rust, those of `vllm-rs` 0.33, recorded in `rust.jsonl` there. Where
//! vLLM answers 4xx there is nothing to score: that is a [`PromptError`] here, and the request
//! goes its way for the engine to refuse. No error quotes a prompt.

use std::sync::Arc;

pub mod conversation;
pub mod json;
pub mod template;
mod api;
mod chat;
mod completion;
mod fields;
mod generate;
mod messages;
mod pooling;
mod responses;
mod typed;

pub use api::Api;
use json::{Json, JsonError, Object};
use template::{Dialect, Renderer};

/// A token's id in the model's vocabulary.
pub type TokenId = u32;

/// What a request asks the model to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The model or adapter that the request names.
    pub model: Option<String>,
    /// What to read: one for a conversation, one or more for texts. Never empty.
    pub texts: Vec<PromptText>,
    /// `cache_salt`: separates tenants in the prefix cache.
    pub cache_salt: Option<String>,
    /// False where the engine must compute every token, as for `prompt_logprobs`.
    pub reads_cache: bool,
    /// How much of the tokens the engine keeps; all of them if none.
    pub truncation: Option<Truncation>,
    /// Whether the answer is a stream of events.
    pub stream: bool,
}

impl Prompt {
    /// The prompt that a choice is made for: a batch goes to one endpoint as a whole.
    #[must_use]
    pub fn first(&self) -> &PromptText {
        self.texts
            .first()
            .expect("every way to make a Prompt puts a text in")
    }
}

/// One text to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptText {
    /// Text for the tokenizer.
    Text {
        /// The rendered chat, or the prompt as it came.
        text: String,
        /// Whether the tokenizer's post-processor adds its tokens, such as BOS.
        add_special_tokens: bool,
        /// False where the prompt goes on with something that is not text, such as an image:
        /// only tokens that no continuation changes are known.
        whole: bool,
    },
    /// Tokens that the client chose.
    Ids(Vec<TokenId>),
}

impl PromptText {
    /// Whether only the beginning is here: the prompt goes on with an image or the like.
    #[must_use]
    pub fn ends_at_medium(&self) -> bool {
        matches!(self, Self::Text { whole: false, .. })
    }
}

/// `truncate_prompt_tokens` and `truncation_side`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// Tokens at most.
    pub keep_tokens: usize,
    /// Which end goes.
    pub side: Side,
}

/// An end of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The beginning goes, the last tokens stay: the default, since vLLM loads the tokenizer of
    /// a generating model so (`tokenizers/registry.py`).
    Left,
    /// The end goes.
    Right,
}

impl Truncation {
    /// What stays of a prompt's tokens.
    #[must_use]
    pub fn apply(self, mut tokens: Vec<TokenId>) -> Vec<TokenId> {
        match self.side {
            Side::Right => tokens.truncate(self.keep_tokens),
            Side::Left => {
                tokens.drain(..tokens.len().saturating_sub(self.keep_tokens));
            }
        }
        tokens
    }
}

/// Why a request has no prompt to score. Names fields and kinds, never contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// None of the APIs whose prompts are read ([`Api`]).
    #[error("no prompt is known at this path")]
    UnknownPath,
    /// The server answers by itself: there is nothing to read for the engine.
    #[error("the engine reads no prompt for this path")]
    NoPrefill,
    /// Pairs to score or rank: how two texts become a prompt is decided by the model's code and
    /// by flags of its server.
    #[error("how pairs become prompts is known to the server alone")]
    ScoreTemplate,
    /// The prompt goes on from something that only one server keeps.
    #[error("{0}: what it names is kept by the server that made it")]
    ServerState(&'static str),
    /// The body is not what Python's `json.loads` takes.
    #[error("the body is not JSON: {0}")]
    MalformedJson(JsonError),
    /// The request names no model.
    #[error("model: missing, so no renderer can be looked up")]
    NoModel,
    /// vLLM refuses this field, or we cannot follow it.
    #[error("{field}: {reason}")]
    BadField {
        /// Where, such as `messages[3].content`.
        field: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// vLLM reads it, but it is not text.
    #[error("{field}: {what} are not scored")]
    Unsupported {
        /// Where.
        field: String,
        /// What it holds.
        what: &'static str,
    },
    /// The chat template refused the conversation, or used up its budget.
    #[error("chat template: {0}")]
    Template(String),
}

impl PromptError {
    /// A short, stable word for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::UnknownPath => "unknown_path",
            Self::NoPrefill => "no_prefill",
            Self::ScoreTemplate => "score_template",
            Self::ServerState(_) => "server_state",
            Self::MalformedJson(_) => "malformed_json",
            Self::NoModel => "no_model",
            Self::BadField { .. } => "bad_field",
            Self::Unsupported { .. } => "unsupported",
            Self::Template(_) => "template",
        }
    }

    fn bad(field: impl Into<String>, reason: &'static str) -> Self {
        let field = field.into();
        Self::BadField { field, reason }
    }
}

/// A request whose body is parsed and not yet rendered.
#[derive(Debug, Clone)]
pub struct Request {
    api: Api,
    body: Object,
    model: Option<Arc<str>>,
}

impl Request {
    /// Parses a body.
    ///
    /// # Errors
    /// An unknown path, a body that is not a JSON object, a model that is not a string.
    pub fn parse(path: &str, body: &[u8]) -> Result<Self, PromptError> {
        let api = Api::of_path(path)?;
        let Json::Object(body) = Json::loads_bytes(body).map_err(PromptError::MalformedJson)?
        else {
            return Err(PromptError::bad("body", "is not an object"));
        };
        let model = match body.get_some("model") {
            None => None,
            Some(Json::Str(model)) if model.is_empty() => None,
            Some(Json::Str(model)) => Some(Arc::clone(model)),
            Some(_) => return Err(PromptError::bad("model", "is not a string")),
        };
        Ok(Self { api, body, model })
    }

    /// This request as the renderer's frontend reads JSON: the Rust one reads some numbers
    /// otherwise. `body` is the bytes that were parsed. What only Python reads stays as Python
    /// reads it: the Rust frontend refuses most such bodies, but not where the oddity stands in a
    /// field that it does not know.
    #[must_use]
    pub fn reread(self, renderer: &Renderer, body: &[u8]) -> Self {
        match renderer.settings().dialect {
            Dialect::Python => self,
            Dialect::Rust => match Json::loads_strict(body) {
                Ok(Json::Object(body)) => Self { body, ..self },
                _ => self,
            },
        }
    }

    /// The model or adapter that the request names.
    ///
    /// # Errors
    /// [`PromptError::NoModel`], also where the name is empty; vLLM then serves its own model.
    pub fn model(&self) -> Result<&str, PromptError> {
        self.model.as_deref().ok_or(PromptError::NoModel)
    }

    /// Where the request goes.
    #[must_use]
    pub fn api(&self) -> Api {
        self.api
    }

    /// Whether the answer is a stream of events.
    #[must_use]
    pub fn stream(&self) -> bool {
        fields::flag(&self.body, "stream", false).unwrap_or(false)
    }

    /// Whether the engine will report the blocks that it reuses as if they were new
    /// (`vllm_xargs: {"kv_cache_report_mode": "full"}`, vLLM 0.26 and later).
    #[must_use]
    pub fn wants_cache_report(&self) -> bool {
        let extra = match self.api {
            Api::Generate => generate::sampling(&self.body).and_then(|p| p.get_some("extra_args")),
            _ if self.api.pools() => None,
            _ => self.body.get_some("vllm_xargs"),
        };
        let mode = extra.and_then(|extra| extra.as_object()?.get_some("kv_cache_report_mode"));
        mode.and_then(Json::as_str) == Some("full")
    }

    /// Whether the engine may serve the prompt from its cache.
    #[must_use]
    pub fn reads_cache(&self) -> bool {
        fields::reads_cache(&self.body, self.api).unwrap_or(true)
    }

    /// `n`: how many answers the engine computes. Each is a request of its own to it, and finds
    /// in the cache what those before it stored; the last to end reports its cached tokens.
    #[must_use]
    pub fn answers(&self) -> u32 {
        let asks = match self.api {
            Api::Chat | Api::Completions => Some(&self.body),
            Api::Generate => generate::sampling(&self.body),
            _ => None,
        };
        let n = asks
            .and_then(|asks| asks.get_some("n"))
            .and_then(fields::lax_int);
        n.and_then(|n| u32::try_from(n).ok()).unwrap_or(1)
    }

    /// Why the server's word of cached tokens will not be about the prompt as it is read here, or
    /// will not come at all; none where the two can be compared.
    #[must_use]
    pub fn caveat(&self) -> Option<&'static str> {
        let is_set = |name| fields::flag(&self.body, name, false).unwrap_or(false);
        match self.api {
            // Vectors and classes come without a report.
            Api::Embeddings | Api::Classify | Api::Pooling => Some("pooling"),
            Api::ChatBatch => Some("batch"),
            // The prompt is read once more for every token and beam, and nothing is reported.
            Api::Chat | Api::Completions if is_set("use_beam_search") => Some("beam_search"),
            Api::Generate if self.body.get_some("features").is_some() => Some("media"),
            _ if self.answers() > 1 => Some("answers"),
            _ => None,
        }
    }

    /// What Python's frontend makes of it, and whether the engine would truncate that.
    fn texts(&self, renderer: &Renderer) -> Result<(Vec<PromptText>, bool), PromptError> {
        let body = &self.body;
        match self.api {
            Api::Chat => chat::texts(body, renderer),
            Api::ChatBatch => chat::batch(body, renderer),
            Api::Completions => Ok((completion::texts(body)?, true)),
            Api::Responses => responses::texts(body, renderer),
            Api::Messages => messages::texts(body, renderer),
            Api::Embeddings | Api::Classify | Api::Pooling => pooling::texts(body, renderer),
            Api::Generate => generate::texts(body),
        }
    }

    /// What the model is to read.
    ///
    /// # Errors
    /// A [`PromptError`] where vLLM answers 4xx, or where a prompt is not text.
    pub fn render(&self, renderer: &Renderer) -> Result<Prompt, PromptError> {
        let body = &self.body;
        let settings = renderer.settings();
        let (texts, truncation) = match settings.dialect {
            Dialect::Rust => {
                let text = typed::text(body, self.api, renderer)?;
                (vec![text], typed::truncation(body, settings)?)
            }
            Dialect::Python => {
                let (texts, truncatable) = self.texts(renderer)?;
                let truncation = fields::truncation(body, self.api, settings.max_model_len)?;
                (texts, truncation.filter(|_| truncatable))
            }
        };
        Ok(Prompt {
            model: self.model.as_deref().map(str::to_owned),
            texts,
            cache_salt: fields::cache_salt(body)?,
            reads_cache: fields::reads_cache(body, self.api)?,
            truncation,
            stream: fields::flag(body, "stream", false)?,
        })
    }
}

#[cfg(test)]
mod tests;

//! Which API of vLLM's HTTP server a request goes to (0.33's routers).

use super::PromptError;

/// An API whose requests make the engine read a prompt that we know how to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/chat/completions/batch`: several conversations.
    ChatBatch,
    /// `/v1/completions`.
    Completions,
    /// `/v1/responses`.
    Responses,
    /// `/v1/messages`, Anthropic's.
    Messages,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/classify`.
    Classify,
    /// `/pooling`.
    Pooling,
    /// `/inference/v1/generate`: tokens in.
    Generate,
}

/// Where vLLM serves them.
const PATHS: [(&str, Api); 9] = [
    ("/v1/chat/completions", Api::Chat),
    ("/v1/chat/completions/batch", Api::ChatBatch),
    ("/v1/completions", Api::Completions),
    ("/v1/responses", Api::Responses),
    ("/v1/messages", Api::Messages),
    ("/v1/embeddings", Api::Embeddings),
    ("/classify", Api::Classify),
    ("/pooling", Api::Pooling),
    ("/inference/v1/generate", Api::Generate),
];

/// Pairs of texts.
const PAIRS: [&str; 2] = ["/score", "/rerank"];

/// What a server answers by itself, without its engine.
const NO_PREFILL: [&str; 13] = [
    "/derender",
    "/detokenize",
    "/health",
    "/load",
    "/metrics",
    "/ping",
    "/render",
    "/tokenize",
    "/tokenizer_info",
    "/v1/load_lora_adapter",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/unload_lora_adapter",
];

impl Api {
    /// The API behind a `:path`, which may carry a query, and before the server's own path a prefix:
    /// a gateway that takes it away (`URLRewrite`) does so after it has asked for an endpoint.
    ///
    /// # Errors
    /// [`PromptError::NoPrefill`] where the engine reads nothing, [`PromptError::ScoreTemplate`]
    /// for pairs, [`PromptError::UnknownPath`] for what is left.
    pub fn of_path(path: &str) -> Result<Self, PromptError> {
        let path = path.split('?').next().unwrap_or_default();
        let ends = |end: &&str| path.ends_with(*end);
        match PATHS.into_iter().find(|(end, _)| ends(end)) {
            Some((_, api)) => Ok(api),
            None if PAIRS.iter().any(ends) => Err(PromptError::ScoreTemplate),
            None if NO_PREFILL.iter().any(ends) => Err(PromptError::NoPrefill),
            // A stored response.
            None if path.contains("/v1/responses/") => Err(PromptError::NoPrefill),
            None => Err(PromptError::UnknownPath),
        }
    }

    /// Whether a request is one conversation.
    #[must_use]
    pub fn is_conversation(self) -> bool {
        matches!(self, Self::Chat | Self::Responses | Self::Messages)
    }

    /// Whether the engine makes vectors or classes out of the prompt, and no answer.
    #[must_use]
    pub fn pools(self) -> bool {
        matches!(self, Self::Embeddings | Self::Classify | Self::Pooling)
    }
}

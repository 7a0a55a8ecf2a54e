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

/// What a server answers by itself, without its engine.
const NO_PREFILL: [&str; 11] = [
    "/detokenize",
    "/health",
    "/load",
    "/metrics",
    "/ping",
    "/tokenize",
    "/tokenizer_info",
    "/v1/load_lora_adapter",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/unload_lora_adapter",
];

impl Api {
    /// The API behind a `:path`, which may carry a query.
    ///
    /// # Errors
    /// [`PromptError::NoPrefill`] where the engine reads nothing, [`PromptError::ScoreTemplate`]
    /// for pairs, [`PromptError::UnknownPath`] for what is left.
    pub fn of_path(path: &str) -> Result<Self, PromptError> {
        let path = path.split('?').next().unwrap_or_default();
        match path {
            "/v1/chat/completions" => Ok(Self::Chat),
            "/v1/chat/completions/batch" => Ok(Self::ChatBatch),
            "/v1/completions" => Ok(Self::Completions),
            "/v1/responses" => Ok(Self::Responses),
            "/v1/messages" => Ok(Self::Messages),
            "/v1/embeddings" => Ok(Self::Embeddings),
            "/classify" => Ok(Self::Classify),
            "/pooling" => Ok(Self::Pooling),
            "/inference/v1/generate" => Ok(Self::Generate),
            "/score" | "/v1/score" | "/rerank" | "/v1/rerank" | "/v2/rerank" => {
                Err(PromptError::ScoreTemplate)
            }
            _ if NO_PREFILL.contains(&path) => Err(PromptError::NoPrefill),
            // A stored response, or what only renders or parses.
            _ if path.starts_with("/v1/responses/")
                || path.ends_with("/render")
                || path.ends_with("/derender") =>
            {
                Err(PromptError::NoPrefill)
            }
            _ => Err(PromptError::UnknownPath),
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

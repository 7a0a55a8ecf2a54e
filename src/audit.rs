//! Predicted against reported.

/// What a model server reported of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Prompt tokens that the cache answered; `None` where the server does not say.
    ///
    /// vLLM 0.20.2 reports `prompt_tokens_details: null` on a miss, and so does a server started
    /// without `--enable-prompt-tokens-details`: both are `None` here. `cached_tokens: null`
    /// inside details that are there is 0.
    pub cached_tokens: Option<u64>,
}

//! A prompt, as far as it could be read.

use std::sync::Arc;
use std::time::Duration;

use crate::blocks::{Chain, Identity, Shape, TokenId};
use crate::choice::Basis;
use crate::fleet::load::ENGINE_REQUESTS_MAX;
use crate::parity;

/// A prompt as far as it could be read.
#[derive(Debug)]
pub(super) struct Reading {
    /// The entry of `models` by which it was to be read; none where none is known.
    pub entry: Option<usize>,
    /// The configured name that its tokens go by; none where they are not known.
    pub model: Option<Arc<str>>,
    /// The configured name that its request goes by; the same but where an endpoint says how it reads.
    pub asked_for: Option<Arc<str>>,
    pub basis: Basis,
    /// Shared with who watches what the server stores of it.
    pub tokens: Arc<Vec<TokenId>>,
    /// Of all prompts of a batch, or an estimate.
    pub prompt_tokens: u64,
    pub identity: Identity,
    /// Its blocks in the shapes of those it may go to, where they were known: made by the thread that has just made the tokens, since
    /// another waits for 0.4 MB of them from its cache.
    pub chains: Vec<Chain>,
    /// The engine may serve it from its cache.
    pub reads_cache: bool,
    /// Prompts, of which `tokens` are the first one's.
    pub prompts: usize,
    /// Answers wanted to each prompt.
    pub answers: u32,
    /// The engine will report its cached blocks again (`kv_cache_report_mode=full`).
    pub wants_report: bool,
    /// Bytes of its texts, once rendered; none where they are token ids or were not read.
    pub rendered_bytes: Option<usize>,
    /// A body that begins like this one's will be read quickly, as far as it does.
    pub is_quick_again: bool,
    /// What parsing and rendering took, and tokenizing.
    pub rendered_in: Duration,
    pub tokenized_in: Duration,
}

impl Reading {
    /// Nothing is known but the body's size: about four bytes a token.
    pub fn load_only(reason: &'static str, body_bytes: usize) -> Self {
        Self {
            entry: None,
            model: None,
            asked_for: None,
            basis: Basis::LoadOnly(reason),
            tokens: Arc::default(),
            prompt_tokens: body_bytes as u64 / 4,
            identity: Identity::default(),
            chains: Vec::new(),
            reads_cache: false,
            prompts: 1,
            answers: 1,
            wants_report: false,
            rendered_bytes: None,
            is_quick_again: false,
            rendered_in: Duration::ZERO,
            tokenized_in: Duration::ZERO,
        }
    }

    /// With its blocks in these shapes, where somebody looks for them.
    pub fn cut(self, shapes: &[Shape]) -> Self {
        let shapes = shapes.iter().filter(|_| self.reads_cache);
        let chain = |shape: &Shape| Chain::of_prompt(&self.tokens, *shape, &self.identity);
        let chains = shapes.map(chain).collect();
        Self { chains, ..self }
    }

    /// What the engine makes of the request: a request for each answer to each prompt.
    pub fn engine_requests(&self) -> u32 {
        let prompts = u32::try_from(self.prompts).unwrap_or(u32::MAX);
        let all = prompts.saturating_mul(self.answers.max(1));
        all.min(ENGINE_REQUESTS_MAX)
    }

    /// Every token of the first prompt is known.
    pub fn is_exact(&self) -> bool {
        matches!(
            self.basis,
            Basis::Overlap | Basis::Partial("answers" | "batch" | parity::REASON)
        )
    }
}

//! Predicted against reported: every response that says how much of its prompt was cached is
//! compared with what we said when we chose.

use crate::choice::{Basis, Choice};
use crate::fleet::Trust;
use crate::metrics::EndpointMetrics;

/// A response's own account of its tokens: `usage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// `prompt_tokens_details.cached_tokens`; none where the server does not say
    /// (`--enable-prompt-tokens-details` is off).
    pub cached_tokens: Option<u64>,
}

/// How a prediction compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To the token.
    Exact,
    /// More was predicted than reported.
    Over,
    /// Less was predicted than reported.
    Under,
}

/// Compares a choice with its response and counts the verdict; none where there is nothing to
/// compare: the server did not say, or nothing was predicted.
pub fn compare(choice: &Choice, usage: &Usage, metrics: &EndpointMetrics) -> Option<Verdict> {
    let reported = usage.cached_tokens?;
    metrics.reported.increment(reported);
    if matches!(choice.basis, Basis::LoadOnly(_)) || choice.trust == Trust::Silent {
        return None;
    }
    let (verdict, counter) = match choice.predicted_cached_tokens.cmp(&reported) {
        std::cmp::Ordering::Equal => (Verdict::Exact, &metrics.exact),
        std::cmp::Ordering::Greater => (Verdict::Over, &metrics.over),
        std::cmp::Ordering::Less => (Verdict::Under, &metrics.under),
    };
    counter.increment(1);
    Some(verdict)
}

//! Overlap and load → [`Choice`]. Pure: the same problem always has the same solution, on
//! every replica.

use crate::fleet::EndpointId;

/// How much of a choice rests on knowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The caches of every candidate are known.
    Overlap,
    /// Some are.
    Partial,
    /// None is; the word says why.
    LoadOnly(&'static str),
}

/// The endpoint for a request, and why.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Who serves.
    pub endpoint: EndpointId,
    /// What the choice rests on.
    pub basis: Basis,
    /// Tokens that the endpoint's cache should answer.
    pub predicted_cached_tokens: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
}

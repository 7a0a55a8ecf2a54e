//! Predicted against reported: every response that says how much of its prompt was cached is
//! compared with what we said when we chose.
//!
//! A prediction that missed has a cause ([`cause`]), which is counted, and an endpoint whose predictions
//! keep missing without an excuse ([`score`]) is mistrusted: its listener doubts its picture and learns
//! it again. One whose predictions are all one block too high takes hits otherwise ([`habit`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;

use crate::choice::Basis;
use crate::fleet::{Endpoint, EndpointId, Fleet, Trust};
use crate::metrics::{EndpointMetrics, Metrics};

pub mod cause;
mod habit;
pub mod score;

pub use cause::{Cause, Evidence};
use habit::Habit;
use score::Score;

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
    /// The API tells cached tokens whatever the server's flags, as that of responses does: it
    /// does not follow that other APIs tell them too.
    pub unasked: bool,
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

impl Verdict {
    fn of(predicted: u64, reported: u64) -> Self {
        match predicted.cmp(&reported) {
            std::cmp::Ordering::Equal => Self::Exact,
            std::cmp::Ordering::Greater => Self::Over,
            std::cmp::Ordering::Less => Self::Under,
        }
    }

    /// The word for labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Over => "over",
            Self::Under => "under",
        }
    }
}

/// What came of a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audited {
    /// How it compares.
    pub verdict: Verdict,
    /// Why it missed, if it did.
    pub cause: Option<Cause>,
}

/// What is counted of one endpoint's requests.
pub struct Counted {
    /// For Prometheus.
    pub metrics: EndpointMetrics,
    /// For `/audit`.
    pub score: Score,
    /// What its reports tell of how it takes hits.
    habit: Habit,
}

/// The scores of a fleet.
pub struct Audit {
    counted: RwLock<HashMap<EndpointId, Arc<Counted>>>,
    metrics: Arc<Metrics>,
}

impl Audit {
    /// Of endpoints of which nothing was predicted yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            counted: RwLock::default(),
            metrics,
        }
    }

    /// What is counted of an endpoint, until [`Self::forget_gone`].
    pub fn counted(&self, endpoint: &Endpoint) -> Arc<Counted> {
        if let Some(counted) = self.counted.read().get(&endpoint.id) {
            return counted.clone();
        }
        let counted = Arc::new(Counted {
            metrics: self.metrics.endpoint(&endpoint.name),
            score: Score::default(),
            habit: Habit::default(),
        });
        let mut all = self.counted.write();
        all.entry(endpoint.id).or_insert(counted).clone()
    }

    /// Lets go what is counted of endpoints that have left.
    pub fn forget_gone(&self, fleet: &Fleet) {
        let is_there = |id| fleet.heard().any(|endpoint| endpoint.id == id);
        self.counted.write().retain(|id, _| is_there(*id));
    }

    /// The score of an endpoint, if anything was placed there.
    #[must_use]
    pub fn score(&self, endpoint: EndpointId) -> Option<score::Tally> {
        let counted = self.counted.read();
        Some(counted.get(&endpoint)?.score.tally())
    }
}

/// Compares a prediction for an endpoint with the cached tokens that it reported, and counts what came
/// of it; none where nothing exact was predicted.
pub fn compare(
    endpoint: &Endpoint,
    evidence: &Evidence,
    counted: &Counted,
    now: Instant,
) -> Option<Audited> {
    let Evidence {
        basis,
        trust,
        reported,
        ..
    } = *evidence;
    let metrics = &counted.metrics;
    metrics.reported.increment(reported);
    let salted = basis == Basis::Partial(cause::SALT_REASON);
    if !(basis == Basis::Overlap || salted) || trust == Trust::Silent {
        return None;
    }
    let predicted = evidence.predicted.tokens();
    let verdict = Verdict::of(predicted, reported);
    let cause = (verdict != Verdict::Exact).then(|| cause::of(evidence));
    if let Some(cause) = cause {
        metrics.errors[cause as usize].increment(1);
    }
    // What a salted request would find was not promised.
    if salted {
        return None;
    }
    match verdict {
        Verdict::Exact => &metrics.exact,
        Verdict::Over => &metrics.over,
        Verdict::Under => &metrics.under,
    }
    .increment(1);
    metrics
        .error_tokens
        .record(predicted.abs_diff(reported) as f64);
    let audited = Audited { verdict, cause };
    if let Some(recomputes) = counted.habit.note(evidence, endpoint.recomputes()) {
        endpoint.set_recomputes(recomputes);
        tell(&endpoint.name, recomputes);
    }
    if counted.score.note(predicted, reported, audited, now) {
        metrics.mistrusted.increment(1);
        endpoint.mistrust();
    }
    Some(audited)
}

fn tell(endpoint: &str, recomputes: bool) {
    let told = match recomputes {
        true => {
            "it computes the last block of each hit again, as with speculative decoding before vLLM 0.33: predictions leave it out"
        }
        false => "it no longer computes the last block of each hit again: predictions count it",
    };
    tracing::info!(endpoint, "{told}");
}

#[cfg(test)]
mod tests;

//! Predicted against reported: every response that says how much of its prompt was cached is
//! compared with what we said when we chose.

use crate::choice::Basis;
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

/// What was said when a request was placed, of the endpoint that then served it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prediction {
    /// What it rested on.
    pub basis: Basis,
    /// How complete our picture of the endpoint was.
    pub trust: Trust,
    /// Tokens that it should find in its cache.
    pub cached_tokens: u64,
}

/// Compares a prediction with the reported cached tokens and counts the verdict; none where
/// nothing exact was predicted.
pub fn compare(
    prediction: &Prediction,
    reported: u64,
    metrics: &EndpointMetrics,
) -> Option<Verdict> {
    metrics.reported.increment(reported);
    if prediction.basis != Basis::Overlap || prediction.trust == Trust::Silent {
        return None;
    }
    let (verdict, counter) = match prediction.cached_tokens.cmp(&reported) {
        std::cmp::Ordering::Equal => (Verdict::Exact, &metrics.exact),
        std::cmp::Ordering::Greater => (Verdict::Over, &metrics.over),
        std::cmp::Ordering::Less => (Verdict::Under, &metrics.under),
    };
    counter.increment(1);
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn only_exact_predictions_are_held_against_reports() {
        let metrics = Metrics::default();
        let counted = metrics.endpoint("pod-1");
        let exact = Prediction {
            basis: Basis::Overlap,
            trust: Trust::Live,
            cached_tokens: 64,
        };
        assert_eq!(compare(&exact, 64, &counted), Some(Verdict::Exact));
        assert_eq!(compare(&exact, 32, &counted), Some(Verdict::Over));
        assert_eq!(compare(&exact, 96, &counted), Some(Verdict::Under));
        let silent = Prediction {
            trust: Trust::Silent,
            ..exact
        };
        let by_load = Prediction {
            basis: Basis::LoadOnly("unknown_model"),
            ..exact
        };
        assert_eq!(compare(&silent, 64, &counted), None);
        assert_eq!(compare(&by_load, 64, &counted), None);
        let text = metrics.handle().render();
        assert!(
            text.contains("kvscout_reported_cached_tokens_total{endpoint=\"pod-1\"} 320"),
            "{text}"
        );
    }
}

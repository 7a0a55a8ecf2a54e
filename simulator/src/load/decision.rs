//! The response header `x-kvscout-decision`, read.

/// Why kvscout chose an endpoint, as it told the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The endpoint's name.
    pub endpoint: String,
    /// `prefix` or `load`: what made the choice.
    pub by: String,
    /// How much was known of the prompt: `overlap`, `partial`, `load_only`.
    pub basis: String,
    /// How complete kvscout's picture of the endpoint was.
    pub trust: String,
    /// Tokens that the endpoint should report as cached.
    pub predicted_cached_tokens: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
}

/// The header's name.
pub const HEADER: &str = "x-kvscout-decision";

impl Decision {
    /// Reads `endpoint=pod-1; by=prefix; …`; none where a word that we need is missing.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let word = |name: &str| {
            let mut words = header
                .split(';')
                .filter_map(|word| word.trim().split_once('='));
            words.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        Some(Self {
            endpoint: word("endpoint")?.to_owned(),
            by: word("by")?.to_owned(),
            basis: word("basis")?.to_owned(),
            trust: word("trust")?.to_owned(),
            predicted_cached_tokens: word("predicted_cached_tokens")?.parse().ok()?,
            prompt_tokens: word("prompt_tokens")?.parse().ok()?,
        })
    }

    /// Predicted cached tokens / prompt tokens.
    #[must_use]
    pub fn matching_ratio(&self) -> f64 {
        self.predicted_cached_tokens as f64 / self.prompt_tokens.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_whatever_it_says_besides() {
        let header = "endpoint=pod-2; by=load; basis=load_only; reason=no_model; trust=live; \
                      predicted_cached_tokens=64; prompt_tokens=128; more=later";
        let decision = Decision::parse(header).expect("all words are there");
        assert_eq!(
            (decision.endpoint.as_str(), decision.by.as_str()),
            ("pod-2", "load")
        );
        assert_eq!(
            (decision.basis.as_str(), decision.trust.as_str()),
            ("load_only", "live")
        );
        assert!((decision.matching_ratio() - 0.5).abs() < 1e-9);
        assert_eq!(Decision::parse("endpoint=pod-2"), None);
        assert_eq!(Decision::parse(""), None);
    }
}

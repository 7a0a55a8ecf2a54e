//! How endpoints are chosen, as far as an operator decides it.

use super::print;
use super::yaml::Section;

/// Each is a choice of its own, and Envoy tries few.
const FALLBACKS_MAX: usize = 8;

/// How to choose.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// By what.
    pub strategy: Strategy,
    /// Predicted cached tokens / prompt tokens that the best endpoint must exceed for overlap
    /// to count.
    pub matching_ratio_min: f64,
    /// What a cached token is worth, by where it is.
    pub media: Media,
    /// Request headers that name a conversation, in lower case; the first that is there counts.
    pub session_headers: Vec<String>,
    /// Whether a conversation whose prompt cannot be read stays on its endpoint.
    pub session_affinity: bool,
    /// Endpoints that a reply names beside the best, for gateways that read a list.
    pub fallbacks: usize,
}

/// Shares of a computed token's cost that a cached one spares, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Media {
    /// In the engine's own cache.
    pub gpu: f64,
    /// In host memory: at 25 GB/s and 56 KB a token (7B) it is there in a twentieth of the time.
    pub cpu: f64,
    /// On disk or remote storage: at 3 GB/s in two fifths.
    pub storage: f64,
}

/// The routing strategies of the InferencePool annotation
/// `inference.networking.x-k8s.io/routing-strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Exact overlap and load.
    PrefixCache,
    /// Load alone.
    Default,
}

impl Strategy {
    /// The word of the annotation.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        print::word(print::STRATEGIES, &self)
    }
}

impl std::str::FromStr for Strategy {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let known = print::STRATEGIES.iter().find(|(known, _)| *known == word);
        known.map(|(_, strategy)| *strategy).ok_or_else(|| {
            let all: Vec<_> = print::STRATEGIES.iter().map(|(known, _)| *known).collect();
            format!("{word:?} is not one of {}", all.join(", "))
        })
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            strategy: Strategy::PrefixCache,
            matching_ratio_min: 0.5,
            media: Media::default(),
            // llm-d's name. None of a user: behind one account may be everybody.
            session_headers: vec!["x-session-id".to_owned()],
            session_affinity: true,
            // Envoy AI Gateway and agentgateway answer 503 to a list.
            fallbacks: 0,
        }
    }
}

impl Default for Media {
    fn default() -> Self {
        Self {
            gpu: 1.0,
            cpu: 0.9,
            storage: 0.6,
        }
    }
}

pub(super) fn read(policy: &mut Section<'_>) -> Policy {
    let defaults = Policy::default();
    Policy {
        strategy: policy.word("strategy", print::STRATEGIES, defaults.strategy),
        matching_ratio_min: policy.within(
            "matching_ratio_min",
            (0.0, 1.0),
            defaults.matching_ratio_min,
        ),
        media: policy
            .section("media", |media| Some(read_media(media)))
            .unwrap_or(defaults.media),
        session_headers: read_headers(policy).unwrap_or(defaults.session_headers),
        session_affinity: policy.get("session_affinity", defaults.session_affinity),
        fallbacks: policy.within("fallbacks", (0, FALLBACKS_MAX), defaults.fallbacks),
    }
}

/// Names of headers, as HTTP spells them: HTTP/2 has them in lower case, and so has Envoy.
fn read_headers(policy: &mut Section<'_>) -> Option<Vec<String>> {
    if !policy.has("session_headers") {
        return None;
    }
    let names = policy.texts("session_headers");
    let is_name = |name: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !name.is_empty() && name.chars().all(plain)
    };
    if let Some(wrong) = names.iter().find(|name| !is_name(name)) {
        policy.complain(
            "session_headers",
            format!("{wrong:?} is not a header's name"),
        );
    }
    Some(names.iter().map(|name| name.to_ascii_lowercase()).collect())
}

fn read_media(media: &mut Section<'_>) -> Media {
    let defaults = Media::default();
    let mut share = |name, default| media.within(name, (0.0, 1.0), default);
    Media {
        gpu: share("gpu", defaults.gpu),
        cpu: share("cpu", defaults.cpu),
        storage: share("storage", defaults.storage),
    }
}

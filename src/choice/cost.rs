//! What a prompt would cost at an endpoint.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Candidate, Problem};
use crate::config::Media;
use crate::fleet::Trust;
use crate::index::Cached;

/// What serving a prompt at one endpoint would cost; lower is better. Fields compare from the
/// top down, so the order they are declared in *is* the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// A server that fails, fails fast and so would look idle: it comes last.
    pub avoided: bool,
    /// No count of tokens says how long we would wait until another request ends.
    pub full: bool,
    /// Everything computed before our first token, the queue and then our own cache misses, and
    /// what these cost the others; in tokens of an endpoint of average pace.
    pub prefill_tokens: u64,
    /// Prefixes that are new to all spread over all caches, so that each loses as little as can be.
    pub recent_tokens: u64,
    /// Decodes that share each of our steps.
    pub requests: u32,
    /// Scatters strangers evenly, and identically on every replica of this scheduler.
    pub scatter: u64,
}

/// What put one endpoint before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Margin {
    /// The first field of [`Cost`] in which they differ, by its name.
    pub field: &'static str,
    /// By how much; 1 for a yes against a no.
    pub by: u64,
}

impl Cost {
    /// What puts it before, or behind, another one.
    #[must_use]
    pub fn margin(&self, other: &Self) -> Margin {
        let fields = [
            ("avoided", self.avoided.into(), other.avoided.into()),
            ("full", self.full.into(), other.full.into()),
            ("prefill_tokens", self.prefill_tokens, other.prefill_tokens),
            ("recent_tokens", self.recent_tokens, other.recent_tokens),
            ("requests", self.requests.into(), other.requests.into()),
        ];
        let decisive = fields.iter().find(|(_, own, others)| own != others);
        let &(field, own, others) = decisive.unwrap_or(&("scatter", self.scatter, other.scatter));
        Margin {
            field,
            by: own.abs_diff(others),
        }
    }
}

/// What is seen of all candidates together.
pub(super) struct Crowd {
    /// What one uncached token of ours costs, us and the others: 1 among idle endpoints.
    pub weight: f64,
    /// The mean of the paces that are known.
    pace: f64,
}

/// Whoever comes while a prompt is computed waits for half of it on average.
const BUSY_WEIGHT: f64 = 0.5;
/// A decode that waits for our prefill gives its next token late; that is a small part of what a late
/// first token is. Simulated (`make bench-policy`): with 0.02 to 0.05, fleets full of decodes keep
/// their caches (shared prefixes, 30 requests/s: mean TTFT 0.11 s; with none 0.37 s).
const DECODE_WEIGHT: f64 = 0.02;
/// And all decodes together count as one request at most: past that requests wait in front of
/// caches for longer than these save.
const DECODES_WEIGHT_MAX: f64 = 1.0;
/// Endpoints whose paces differ by less are taken for equal: so much is noise, and equals should tie.
const EQUAL_PACE: f64 = 1.5;
/// A pace is a mean of a few prompts: one odd figure must neither draw everybody nor repel them.
const PACE_RATIO_MAX: f64 = 8.0;

impl Crowd {
    pub fn of(candidates: &[Candidate]) -> Self {
        let (mut busy, mut requests) = (0_u32, 0.0);
        let (mut paces, mut known) = (0.0, 0.0);
        for candidate in candidates {
            busy += u32::from(candidate.queued_tokens > 0);
            requests += f64::from(candidate.requests);
            if let Some(pace) = candidate.pace {
                paces += pace;
                known += 1.0;
            }
        }
        let all = candidates.len().max(1) as f64;
        let decodes = (DECODE_WEIGHT * requests / all).min(DECODES_WEIGHT_MAX);
        Self {
            weight: 1.0 + BUSY_WEIGHT * f64::from(busy) / all + decodes,
            pace: paces / f64::max(known, 1.0),
        }
    }

    /// How many times as long as on average a token takes there.
    pub fn slowness(&self, pace: Option<f64>) -> f64 {
        let slowness = pace.filter(|pace| *pace > 0.0).map(|pace| self.pace / pace);
        match slowness {
            Some(slowness) if !(1.0 / EQUAL_PACE..=EQUAL_PACE).contains(&slowness) => {
                slowness.clamp(1.0 / PACE_RATIO_MAX, PACE_RATIO_MAX)
            }
            _ => 1.0,
        }
    }
}

pub(super) fn cost(
    problem: &Problem<'_>,
    candidate: &Candidate,
    prefix_aware: bool,
    crowd: &Crowd,
) -> Cost {
    let spared = if prefix_aware {
        credit(problem, candidate)
    } else {
        0
    };
    let scatter = xxh3_64_with_seed(problem.request.as_bytes(), u64::from(candidate.endpoint.0));
    let tokens = problem.prompt(candidate).tokens;
    let uncached = tokens.saturating_sub(spared) as f64;
    let work = candidate.queued_tokens as f64 + uncached * crowd.weight;
    Cost {
        avoided: candidate.avoided,
        full: candidate.full,
        prefill_tokens: (work * crowd.slowness(candidate.pace)) as u64,
        recent_tokens: candidate.recent_tokens,
        requests: candidate.requests,
        scatter,
    }
}

/// Cached tokens that a choice may count on. What a `Doubtful` or `Learning` endpoint is seen
/// to hold it most likely holds (its picture was rebuilt from live events), so it counts, but
/// an endpoint known to hold the same wins. What any endpoint holds of a doubtful prompt is worth
/// no more. What may have been removed in a gap counts half, and what has to be loaded from a
/// slower medium is worth less than what need not be.
pub(super) fn credit(problem: &Problem<'_>, candidate: &Candidate) -> u64 {
    let Cached {
        own,
        unsure,
        expected,
        cpu,
        storage,
    } = candidate.cached;
    let Media {
        gpu,
        cpu: of_cpu,
        storage: of_storage,
    } = problem.media;
    // What is computed there first costs its own request; whoever comes behind it finds it done.
    let own = (own + expected) as f64 - unsure as f64 / 2.0;
    let worth = own * gpu + cpu as f64 * of_cpu + storage as f64 * of_storage;
    match (candidate.trust, problem.prompt(candidate).doubtful) {
        (Trust::Live, false) => worth as u64,
        (Trust::Live, true) | (Trust::Learning | Trust::Doubtful, _) => worth as u64 * 9 / 10,
        (Trust::Silent, _) => 0,
    }
}

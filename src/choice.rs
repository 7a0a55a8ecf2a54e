//! Overlap and load → [`Choice`]. Pure: the same problem has the same solution on every replica.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::config::Media;
use crate::fleet::{EndpointId, Trust};
use crate::index::Cached;

pub mod affinity;

/// How much of a choice rests on knowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Basis {
    /// The prompt's tokens are exact, and so is the overlap with endpoints that are `Live`.
    Overlap,
    /// Only part of the prompt is known exactly.
    Partial(&'static str),
    /// Nothing is known of the prompt; the reason is a short word for labels.
    LoadOnly(&'static str),
}

impl Basis {
    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::Partial(_) => "partial",
            Self::LoadOnly(_) => "load_only",
        }
    }

    /// Why it is not `Overlap`; empty if it is.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Overlap => "",
            Self::Partial(reason) | Self::LoadOnly(reason) => reason,
        }
    }
}

/// An endpoint that could take the request, as of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub endpoint: EndpointId,
    /// Prompt tokens that it holds.
    pub cached: Cached,
    /// How sure that is.
    pub trust: Trust,
    /// It failed a moment ago.
    pub avoided: bool,
    /// Prefill work placed there and not done, in tokens.
    pub queued_tokens: u64,
    /// Requests placed there and not ended.
    pub requests: u32,
}

/// What is to be placed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem<'a> {
    /// Tokens of the prompt, or an estimate for `LoadOnly`.
    pub prompt_tokens: u64,
    /// What is known of the prompt.
    pub basis: Basis,
    /// The model's prompts have often not been what its servers computed.
    pub prompt_doubtful: bool,
    /// Best cached / prompt tokens that overlap must exceed to count.
    pub matching_ratio_min: f64,
    /// What a cached token is worth, by where it is.
    pub media: Media,
    /// Scatters ties: the request's id.
    pub request: &'a str,
}

/// What serving a prompt at one endpoint would cost; lower is better. Fields compare from the
/// top down, so the order they are declared in *is* the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// A server that fails, fails fast and so would look idle: it comes last.
    pub avoided: bool,
    /// Everything computed before our first token: the queue, then our own cache misses.
    pub prefill_tokens: u64,
    /// Decodes that share each of our steps.
    pub requests: u32,
    /// Scatters strangers evenly, and identically on every replica of this scheduler.
    pub scatter: u64,
}

/// Where a request goes, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Who gets it.
    pub endpoint: EndpointId,
    /// What the choice rests on.
    pub basis: Basis,
    /// Tokens that the endpoint should report as cached.
    pub predicted_cached_tokens: u64,
    /// Tokens of the prompt, or an estimate for `LoadOnly`.
    pub prompt_tokens: u64,
    /// The chosen endpoint's own matching ratio exceeded the threshold: its cache decided.
    pub prefix_aware: bool,
    /// The chosen endpoint's cost.
    pub cost: Cost,
    /// How sure the prediction is.
    pub trust: Trust,
}

impl Choice {
    /// Predicted cached tokens / prompt tokens; 0 for an empty prompt.
    #[must_use]
    pub fn matching_ratio(&self) -> f64 {
        matching_ratio(self.predicted_cached_tokens, self.prompt_tokens)
    }
}

fn matching_ratio(cached_tokens: u64, prompt_tokens: u64) -> f64 {
    if prompt_tokens == 0 {
        0.0
    } else {
        cached_tokens as f64 / prompt_tokens as f64
    }
}

/// The candidate whose first token comes soonest; none without candidates.
#[must_use]
pub fn choose(problem: &Problem<'_>, candidates: &[Candidate]) -> Option<Choice> {
    let best = candidates
        .iter()
        .map(|candidate| candidate.cached.tokens())
        .max()?;
    let exceeds =
        |cached| matching_ratio(cached, problem.prompt_tokens) > problem.matching_ratio_min;
    // Overlap counts for all where it counts for the best.
    let prefix_aware = exceeds(best);
    let (cost, chosen) = candidates
        .iter()
        .map(|candidate| (cost(problem, candidate, prefix_aware), candidate))
        .min_by_key(|(cost, _)| *cost)?;
    Some(Choice {
        endpoint: chosen.endpoint,
        basis: problem.basis,
        predicted_cached_tokens: chosen.cached.tokens(),
        prompt_tokens: problem.prompt_tokens,
        prefix_aware: exceeds(chosen.cached.tokens()),
        cost,
        trust: chosen.trust,
    })
}

fn cost(problem: &Problem<'_>, candidate: &Candidate, prefix_aware: bool) -> Cost {
    let spared = if prefix_aware {
        credit(problem, candidate)
    } else {
        0
    };
    let scatter = xxh3_64_with_seed(problem.request.as_bytes(), u64::from(candidate.endpoint.0));
    Cost {
        avoided: candidate.avoided,
        prefill_tokens: candidate.queued_tokens + problem.prompt_tokens.saturating_sub(spared),
        requests: candidate.requests,
        scatter,
    }
}

/// Cached tokens that a choice may count on. What a `Doubtful` or `Learning` endpoint is seen
/// to hold it most likely holds (its picture was rebuilt from live events), so it counts, but
/// an endpoint known to hold the same wins. What any endpoint holds of a doubtful prompt is worth
/// no more. What may have been removed in a gap counts half, and what has to be loaded from a
/// slower medium is worth less than what need not be.
fn credit(problem: &Problem<'_>, candidate: &Candidate) -> u64 {
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
    match (candidate.trust, problem.prompt_doubtful) {
        (Trust::Live, false) => worth as u64,
        (Trust::Live, true) | (Trust::Learning | Trust::Doubtful, _) => worth as u64 * 9 / 10,
        (Trust::Silent, _) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBLEM: Problem<'_> = Problem {
        prompt_tokens: 1000,
        basis: Basis::Overlap,
        prompt_doubtful: false,
        matching_ratio_min: 0.5,
        media: Media {
            gpu: 1.0,
            cpu: 0.9,
            storage: 0.6,
        },
        request: "r",
    };

    fn candidate(id: u32, cached_tokens: u64, queued_tokens: u64) -> Candidate {
        let endpoint = EndpointId(id);
        Candidate {
            endpoint,
            cached: own(cached_tokens),
            trust: Trust::Live,
            avoided: false,
            queued_tokens,
            requests: 0,
        }
    }

    fn own(own: u64) -> Cached {
        Cached {
            own,
            ..Cached::default()
        }
    }

    fn chosen(candidates: &[Candidate]) -> u32 {
        choose(&PROBLEM, candidates).expect("a choice").endpoint.0
    }

    #[test]
    fn a_warm_cache_is_worth_a_short_wait() {
        assert_eq!(chosen(&[candidate(0, 800, 500), candidate(1, 0, 0)]), 0);
    }

    #[test]
    fn siblings_follow_the_first_of_a_cold_burst_until_the_wait_costs_more() {
        // The first one's prompt is computed there; this one shares all of it but 100 tokens.
        let first = |queued_tokens| Candidate {
            cached: Cached {
                expected: 900,
                ..Cached::default()
            },
            ..candidate(0, 0, queued_tokens)
        };
        assert_eq!(chosen(&[first(0), candidate(1, 0, 0)]), 0);
        assert_eq!(chosen(&[first(800), candidate(1, 0, 0)]), 0);
        assert_eq!(chosen(&[first(1_000), candidate(1, 0, 0)]), 1);
    }

    #[test]
    fn and_not_a_long_one() {
        assert_eq!(chosen(&[candidate(0, 800, 900), candidate(1, 0, 0)]), 1);
    }

    #[test]
    fn a_server_that_failed_comes_last_but_is_better_than_none() {
        let failed = Candidate {
            avoided: true,
            ..candidate(0, 800, 0)
        };
        assert_eq!(chosen(&[failed, candidate(1, 0, 5000)]), 1);
        assert_eq!(chosen(&[failed]), 0);
    }

    #[test]
    fn a_small_overlap_does_not_bend_the_choice() {
        let candidates = [candidate(0, 400, 1), candidate(1, 0, 0)];
        let choice = choose(&PROBLEM, &candidates).expect("a choice");
        assert_eq!(
            (choice.endpoint, choice.prefix_aware),
            (EndpointId(1), false)
        );
    }

    #[test]
    fn certainty_wins_between_equals() {
        let doubtful = Candidate {
            trust: Trust::Doubtful,
            ..candidate(0, 800, 0)
        };
        assert_eq!(chosen(&[doubtful, candidate(1, 800, 0)]), 1);
        assert_eq!(chosen(&[doubtful, candidate(1, 0, 0)]), 0);
    }

    #[test]
    fn what_has_to_be_loaded_is_worth_less_than_what_is_there() {
        let of = |id, cached| Candidate {
            cached,
            ..candidate(id, 0, 0)
        };
        let cpu = Cached {
            own: 200,
            cpu: 600,
            ..Cached::default()
        };
        let storage = Cached {
            own: 200,
            storage: 600,
            ..Cached::default()
        };
        assert_eq!(chosen(&[of(0, cpu), of(1, own(800))]), 1);
        assert_eq!(chosen(&[of(0, storage), of(1, cpu)]), 1);
        assert_eq!(chosen(&[of(0, own(600)), of(1, cpu)]), 1, "740 against 600");
    }

    #[test]
    fn what_may_be_gone_counts_half() {
        let unsure = Cached {
            unsure: 400,
            ..own(800)
        };
        let unsure = Candidate {
            cached: unsure,
            ..candidate(0, 0, 0)
        };
        assert_eq!(chosen(&[unsure, candidate(1, 650, 0)]), 1);
        assert_eq!(chosen(&[unsure, candidate(1, 550, 0)]), 0);
    }

    #[test]
    fn a_doubtful_prompt_waits_for_its_cache_a_tenth_less() {
        let candidates = [candidate(0, 800, 750), candidate(1, 0, 0)];
        let doubtful = Problem {
            basis: Basis::Partial(crate::parity::REASON),
            prompt_doubtful: true,
            ..PROBLEM
        };
        let chosen = |problem| choose(problem, &candidates).expect("a choice").endpoint.0;
        assert_eq!((chosen(&PROBLEM), chosen(&doubtful)), (0, 1));
    }

    #[test]
    fn strangers_scatter_evenly_and_every_replica_agrees() {
        let candidates: Vec<_> = (0..4).map(|id| candidate(id, 0, 0)).collect();
        let mut counts = [0; 4];
        for request in 0..4000 {
            let request = format!("request-{request}");
            let problem = Problem {
                request: &request,
                ..PROBLEM
            };
            let first = choose(&problem, &candidates).expect("a choice").endpoint.0;
            let reversed: Vec<_> = candidates.iter().rev().copied().collect();
            assert_eq!(
                choose(&problem, &reversed).expect("a choice").endpoint.0,
                first
            );
            counts[first as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn nobody_to_choose_is_no_choice() {
        assert_eq!(choose(&PROBLEM, &[]), None);
    }
}

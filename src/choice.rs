//! Overlap and load → [`Choice`]. Pure: the same problem has the same solution on every replica.

use crate::config::Media;
use crate::fleet::{EndpointId, Trust};
use crate::index::Cached;

mod account;
pub mod affinity;
mod cost;

pub use account::{Account, Case, Entry, Weights};
pub use cost::{Cost, Margin};
use cost::{Crowd, cost};

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

/// What is to be placed, as some of the candidates read it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prompt {
    /// Its tokens, or an estimate for `LoadOnly`.
    pub tokens: u64,
    /// What is known of it.
    pub basis: Basis,
    /// The model's prompts have often not been what its servers computed.
    pub doubtful: bool,
}

/// An endpoint that could take the request, as of now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Which.
    pub endpoint: EndpointId,
    /// The place, in [`Problem::prompts`], of the prompt as it reads it.
    pub prompt: u16,
    /// Prompt tokens that it holds.
    pub cached: Cached,
    /// How sure that is.
    pub trust: Trust,
    /// It failed a moment ago.
    pub avoided: bool,
    /// Its cache has no room for one more request: whoever comes waits until another ends.
    pub full: bool,
    /// Prefill work placed there and not done, in tokens.
    pub queued_tokens: u64,
    /// Requests placed there and not ended.
    pub requests: u32,
    /// Uncached prompt tokens placed there lately: what its cache was made to take in.
    pub recent_tokens: u64,
    /// Prompt tokens that it computes in a second, as measured; none before that.
    pub pace: Option<f64>,
}

/// What is to be placed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem<'a> {
    /// The prompt, as candidates read it: nearly always alike, so that there is one.
    pub prompts: &'a [Prompt],
    /// Best cached / prompt tokens that overlap must exceed to count.
    pub matching_ratio_min: f64,
    /// What a cached token is worth, by where it is.
    pub media: Media,
    /// Scatters ties: the request's id.
    pub request: &'a str,
}

impl<'a> Problem<'a> {
    fn prompt(&self, candidate: &Candidate) -> &'a Prompt {
        &self.prompts[usize::from(candidate.prompt)]
    }
}

/// Where a request goes, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Who gets it.
    pub endpoint: EndpointId,
    /// The place of the prompt as it reads it: what follows is of that one.
    pub prompt: u16,
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
    /// Who would have got it otherwise; none where nobody else could.
    pub runner_up: Option<RunnerUp>,
}

/// The next best endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerUp {
    /// Which.
    pub endpoint: EndpointId,
    /// What it would have cost there.
    pub cost: Cost,
}

impl Choice {
    /// Predicted cached tokens / prompt tokens; 0 for an empty prompt.
    #[must_use]
    pub fn matching_ratio(&self) -> f64 {
        matching_ratio(self.predicted_cached_tokens, self.prompt_tokens)
    }

    /// What put it before the runner-up, and by how much; none where there was nobody else.
    #[must_use]
    pub fn margin(&self) -> Option<Margin> {
        let other = self.runner_up?;
        Some(self.cost.margin(&other.cost))
    }
}

fn matching_ratio(cached_tokens: u64, prompt_tokens: u64) -> f64 {
    if prompt_tokens == 0 {
        0.0
    } else {
        cached_tokens as f64 / prompt_tokens as f64
    }
}

/// Whether what a candidate holds is enough of the prompt to count.
fn exceeds(problem: &Problem<'_>, candidate: &Candidate) -> bool {
    let tokens = problem.prompt(candidate).tokens;
    matching_ratio(candidate.cached.tokens(), tokens) > problem.matching_ratio_min
}

/// Whether overlap counts: for all where it counts for the best.
fn prefix_aware(problem: &Problem<'_>, candidates: &[Candidate]) -> bool {
    let mut candidates = candidates.iter();
    candidates.any(|candidate| exceeds(problem, candidate))
}

/// The best so far.
type Ranked<'a> = Option<(Cost, &'a Candidate)>;

/// The candidate whose first token comes soonest; none without candidates.
#[must_use]
pub fn choose(problem: &Problem<'_>, candidates: &[Candidate]) -> Option<Choice> {
    let prefix_aware = prefix_aware(problem, candidates);
    let crowd = Crowd::of(candidates);
    let (mut best, mut second): (Ranked<'_>, Ranked<'_>) = (None, None);
    let comes_before = |cost: &Cost, than: &Ranked<'_>| than.is_none_or(|(other, _)| *cost < other);
    for candidate in candidates {
        let cost = cost(problem, candidate, prefix_aware, &crowd);
        if comes_before(&cost, &best) {
            second = best.replace((cost, candidate));
        } else if comes_before(&cost, &second) {
            second = Some((cost, candidate));
        }
    }
    let (cost, chosen) = best?;
    let prompt = problem.prompt(chosen);
    Some(Choice {
        endpoint: chosen.endpoint,
        prompt: chosen.prompt,
        basis: prompt.basis,
        predicted_cached_tokens: chosen.cached.tokens(),
        prompt_tokens: prompt.tokens,
        prefix_aware: exceeds(problem, chosen),
        cost,
        trust: chosen.trust,
        runner_up: second.map(|(cost, other)| RunnerUp {
            endpoint: other.endpoint,
            cost,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: Prompt = Prompt {
        tokens: 1000,
        basis: Basis::Overlap,
        doubtful: false,
    };
    const PROBLEM: Problem<'_> = Problem {
        prompts: &[PROMPT],
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
            prompt: 0,
            cached: own(cached_tokens),
            trust: Trust::Live,
            avoided: false,
            full: false,
            queued_tokens,
            requests: 0,
            recent_tokens: 0,
            pace: None,
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
        assert_eq!(chosen(&[first(1_200), candidate(1, 0, 0)]), 1);
    }

    #[test]
    fn and_not_a_long_one() {
        assert_eq!(chosen(&[candidate(0, 800, 1100), candidate(1, 0, 0)]), 1);
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
    fn a_full_server_comes_after_any_queue() {
        let full = Candidate {
            full: true,
            ..candidate(0, 800, 0)
        };
        assert_eq!(chosen(&[full, candidate(1, 0, 5000)]), 1);
        assert_eq!(chosen(&[full]), 0);
    }

    #[test]
    fn the_busier_the_fleet_the_longer_a_cache_is_waited_for() {
        // What is computed again delays whoever comes behind it.
        let warm = candidate(0, 800, 1100);
        assert_eq!(chosen(&[warm, candidate(1, 0, 0)]), 1);
        let busy = |id| candidate(id, 0, 1);
        assert_eq!(chosen(&[warm, busy(1), busy(2), busy(3)]), 0);
        // Nor do others' answers flow while it is.
        let decoding = |candidate| Candidate {
            requests: 30,
            ..candidate
        };
        assert_eq!(chosen(&[decoding(warm), decoding(candidate(1, 0, 0))]), 0);
        // But no crowd makes anybody wait for ever.
        let crowded = |candidate| Candidate {
            requests: 4000,
            ..candidate
        };
        let warm = candidate(0, 800, 2400);
        assert_eq!(chosen(&[crowded(warm), crowded(candidate(1, 0, 1))]), 1);
    }

    #[test]
    fn a_slow_server_is_chosen_where_its_cache_outweighs_its_pace() {
        let paced = |pace, candidate| Candidate {
            pace: Some(pace),
            ..candidate
        };
        let slow = |cached| paced(5_000.0, candidate(0, cached, 0));
        let fast = |cached| paced(20_000.0, candidate(1, cached, 0));
        assert_eq!(chosen(&[slow(600), fast(0)]), 1, "400 tokens at 5,000/s");
        assert_eq!(chosen(&[slow(800), fast(0)]), 0, "200 tokens at 5,000/s");
        // A fifth more or less is noise.
        let [other, ours] = [paced(16_000.0, candidate(0, 0, 0)), fast(0)];
        let fresh = |candidate| Candidate {
            recent_tokens: 10_000,
            ..candidate
        };
        assert_eq!(chosen(&[other, fresh(ours)]), 0);
        assert_eq!(chosen(&[fresh(other), ours]), 1);
    }

    #[test]
    fn new_prefixes_go_where_the_fewest_went_lately() {
        let recent = |id, recent_tokens, requests| Candidate {
            recent_tokens,
            requests,
            ..candidate(id, 0, 0)
        };
        assert_eq!(chosen(&[recent(0, 900, 0), recent(1, 800, 3)]), 1);
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
        let candidates = [candidate(0, 800, 950), candidate(1, 0, 0)];
        let prompt = Prompt {
            basis: Basis::Partial(crate::parity::REASON),
            doubtful: true,
            ..PROMPT
        };
        let doubtful = Problem {
            prompts: &[prompt],
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
    fn a_choice_says_who_came_second_and_what_decided() {
        let candidates = [
            candidate(0, 0, 700),
            candidate(1, 800, 0),
            candidate(2, 0, 0),
        ];
        let choice = choose(&PROBLEM, &candidates).expect("a choice");
        assert_eq!(choice.endpoint, EndpointId(1));
        assert_eq!(
            choice.runner_up.map(|other| other.endpoint),
            Some(EndpointId(2))
        );
        // 1,166 tokens' work (a third of the endpoints is busy) against 233.
        let margin = choice.margin().expect("two could have got it");
        assert_eq!((margin.field, margin.by), ("prefill_tokens", 933));
        let alone = choose(&PROBLEM, &candidates[..1]).expect("a choice");
        assert_eq!((alone.runner_up, alone.margin()), (None, None));
    }

    #[test]
    fn whoever_comes_second_is_the_choice_without_the_first() {
        let candidates: Vec<_> = (0..9)
            .map(|id| candidate(id, u64::from(id * 7 % 5) * 200, u64::from(id * 5 % 7) * 90))
            .collect();
        let first = choose(&PROBLEM, &candidates).expect("a choice");
        let others: Vec<_> = candidates
            .iter()
            .filter(|candidate| candidate.endpoint != first.endpoint)
            .copied()
            .collect();
        let second = choose(&PROBLEM, &others).expect("a choice").endpoint;
        assert_eq!(first.runner_up.map(|other| other.endpoint), Some(second));
    }

    #[test]
    fn each_candidate_is_weighed_with_the_prompt_as_it_reads_it() {
        let unread = Prompt {
            basis: Basis::LoadOnly("unknown_entry"),
            ..PROMPT
        };
        let longer = Prompt {
            tokens: 1_600,
            ..PROMPT
        };
        let problem = Problem {
            prompts: &[PROMPT, longer, unread],
            ..PROBLEM
        };
        let reads = |id, cached, prompt| Candidate {
            prompt,
            ..candidate(id, cached, 0)
        };
        let choose = |candidates: &[Candidate]| choose(&problem, candidates).expect("a choice");
        // 700 tokens left of a prompt of 1,600 are more than 400 of one of 1,000.
        let choice = choose(&[reads(0, 600, 0), reads(1, 900, 1), reads(2, 0, 2)]);
        assert_eq!(
            (choice.endpoint, choice.prompt_tokens),
            (EndpointId(0), 1_000)
        );
        let choice = choose(&[reads(0, 600, 0), reads(1, 1_300, 1)]);
        let chosen = (choice.endpoint, choice.prompt, choice.prompt_tokens);
        assert_eq!(chosen, (EndpointId(1), 1, 1_600));
        // 600 are too few of one and enough of the other.
        let choice = choose(&[reads(0, 600, 1), candidate(1, 0, 100)]);
        assert!(!choice.prefix_aware && choice.basis == Basis::Overlap);
        let alone = choose(&[reads(2, 0, 2)]);
        assert_eq!(alone.basis, Basis::LoadOnly("unknown_entry"));
    }

    #[test]
    fn nobody_to_choose_is_no_choice() {
        assert_eq!(choose(&PROBLEM, &[]), None);
    }
}

//! kvscout's own choice, the very function that serves.

use kvscout::choice::{Basis, Candidate, Problem, choose};
use kvscout::config::Config;

use super::{Ask, Choose, Pick};

pub(super) struct Ours;

impl Choose for Ours {
    fn pick(&mut self, ask: &mut Ask<'_, '_>) -> Pick {
        let cached = ask.cached();
        let candidates = ask.pods.iter().zip(&cached).map(|(pod, cached)| Candidate {
            endpoint: pod.endpoint,
            cached: *cached,
            trust: pod.trust,
            avoided: false,
            queued_tokens: pod.load.prefill_tokens,
            requests: pod.load.requests,
        });
        let candidates: Vec<Candidate> = candidates.collect();
        let policy = Config::default().policy;
        let problem = Problem {
            prompt_tokens: ask.prompt.tokens(),
            basis: Basis::Overlap,
            prompt_doubtful: false,
            matching_ratio_min: policy.matching_ratio_min,
            media: policy.media,
            request: ask.request,
        };
        let choice = choose(&problem, &candidates);
        let chosen = choice.and_then(|choice| {
            let is_chosen = |candidate: &Candidate| candidate.endpoint == choice.endpoint;
            let place = candidates.iter().position(is_chosen)?;
            let cached_tokens = choice.predicted_cached_tokens;
            Some(Pick {
                place,
                cached_tokens,
            })
        });
        let nobody = Pick {
            place: 0,
            cached_tokens: 0,
        };
        chosen.unwrap_or(nobody)
    }
}

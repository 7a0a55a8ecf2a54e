//! kvscout's own choice, the very function that serves.

use kvscout::choice::{Basis, Candidate, Problem, Prompt, choose};
use kvscout::config::{Config, Policy, Saturation};

use super::{Ask, Choose, Pick, Seen};

pub(super) struct Ours {
    policy: Policy,
    saturation: Saturation,
}

impl Default for Ours {
    fn default() -> Self {
        let Config { policy, load, .. } = Config::default();
        let saturation = load.saturation;
        Self { policy, saturation }
    }
}

impl Ours {
    fn is_full(&self, pod: &Seen) -> bool {
        let Saturation {
            queue_max,
            kv_usage_max,
        } = self.saturation;
        pod.gauges.waiting > queue_max as usize && pod.gauges.usage > kv_usage_max
    }
}

impl Choose for Ours {
    fn pick(&mut self, ask: &mut Ask<'_, '_>) -> Pick {
        let cached = ask.cached();
        let candidates = ask.pods.iter().zip(&cached).map(|(pod, cached)| Candidate {
            endpoint: pod.endpoint,
            prompt: 0,
            cached: *cached,
            trust: pod.trust,
            avoided: false,
            full: self.is_full(pod),
            queued_tokens: pod.load.prefill_tokens - pod.underway_tokens,
            requests: pod.load.requests,
            recent_tokens: pod.recent_tokens,
            pace: pod.pace,
        });
        let candidates: Vec<Candidate> = candidates.collect();
        let prompt = Prompt {
            tokens: ask.prompt.tokens(),
            basis: Basis::Overlap,
            doubtful: false,
        };
        let problem = Problem {
            prompts: &[prompt],
            matching_ratio_min: self.policy.matching_ratio_min,
            media: self.policy.media,
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

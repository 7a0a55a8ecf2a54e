//! llm-d's optimized baseline: the prefix-cache-affinity filter, then the token-load scorer.

use kvscout::fleet::EndpointId;

use super::recent::Recent;
use super::{Ask, Choose, Pick, keys, least};
use crate::dice::Dice;

/// Pods believed to hold 80 % of the prompt are sticky; if the best of them is behind the best other
/// by more than the penalty allows, or there are none, all are in play. Of these the fewest uncached
/// tokens in flight win.
pub(super) struct Affinity {
    recent: Recent,
    dice: Dice,
}

/// `affinityThreshold`, `maxTTFTPenaltyMs` and `peakPrefillThroughput`, by default (its guide calibrates
/// the last one to two H100 and Qwen3-32B; ours are about as fast).
const THRESHOLD: f64 = 0.80;
const PENALTY_MS_MAX: f64 = 18_000.0;
const PREFILL_PEAK: f64 = 15_928.0;

impl Affinity {
    pub(super) fn new(num_gpu_blocks: u32, dice: Dice) -> Self {
        let recent = Recent::new(num_gpu_blocks as usize);
        Self { recent, dice }
    }
}

impl Choose for Affinity {
    fn pick(&mut self, ask: &mut Ask<'_, '_>) -> Pick {
        let pods = ask.pods;
        let (size, chain) = (ask.block_size, ask.chain());
        let blocks = keys(chain);
        let depths = self
            .recent
            .depths(blocks, pods.iter().map(|pod| pod.endpoint));
        let is_sticky = |depth: &u32| f64::from(*depth) >= THRESHOLD * blocks.len().max(1) as f64;
        let sticky: Vec<bool> = depths.iter().map(is_sticky).collect();
        let ttft_ms = |wanted: bool| {
            let of = pods
                .iter()
                .zip(&sticky)
                .filter(|(_, sticky)| **sticky == wanted);
            let tokens = of.map(|(pod, _)| pod.load.prefill_tokens).min()?;
            Some(tokens as f64 / PREFILL_PEAK * 1000.0)
        };
        let narrow = match (ttft_ms(true), ttft_ms(false)) {
            (Some(sticky), Some(other)) => sticky - other <= PENALTY_MS_MAX,
            _ => false,
        };
        let costs = pods
            .iter()
            .zip(&sticky)
            .map(|(pod, sticky)| match narrow && !sticky {
                true => f64::INFINITY,
                false => pod.load.prefill_tokens as f64,
            });
        let place = least(&mut self.dice, costs);
        self.recent.sent(blocks, pods[place].endpoint);
        let cached_tokens = u64::from(depths[place]) * u64::from(size);
        Pick {
            place,
            cached_tokens,
        }
    }

    fn forget(&mut self, endpoint: EndpointId) {
        self.recent.forget(endpoint);
    }
}

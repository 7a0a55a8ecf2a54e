//! The Gateway API Inference Extension's and llm-d's default profile.

use kvscout::fleet::EndpointId;

use super::recent::Recent;
use super::{Ask, Choose, Pick, keys, least};
use crate::dice::Dice;

/// Prefix by what was sent there, queue length and KV usage, weighed 3:2:2 (llm-d-router's default
/// configuration; the prefix weight is GIE's of v1.0). Two differences, both in its favour: tokens are
/// exact where the original estimates four bytes each, and gauges are as fresh as its scrapes.
pub(super) struct Approximate {
    recent: Recent,
    dice: Dice,
}

const PREFIX: f64 = 3.0;
const QUEUE: f64 = 2.0;
const KV_USAGE: f64 = 2.0;

impl Approximate {
    /// It learns `num_gpu_blocks` from the engine's metrics.
    pub(super) fn new(num_gpu_blocks: u32, dice: Dice) -> Self {
        let recent = Recent::new(num_gpu_blocks as usize);
        Self { recent, dice }
    }
}

impl Choose for Approximate {
    fn pick(&mut self, ask: &mut Ask<'_, '_>) -> Pick {
        let pods = ask.pods;
        let (size, chain) = (ask.block_size, ask.chain());
        let blocks = keys(chain);
        let depths = self
            .recent
            .depths(blocks, pods.iter().map(|pod| pod.endpoint));
        let waiting = || pods.iter().map(|pod| pod.gauges.waiting);
        let (least_waiting, most) = (waiting().min().unwrap_or(0), waiting().max().unwrap_or(0));
        let costs = pods.iter().zip(&depths).map(|(pod, depth)| {
            let prefix = f64::from(*depth) / blocks.len().max(1) as f64;
            // Its scorer's min-max; all are 1 where all wait alike.
            let queue = match most - least_waiting {
                0 => 1.0,
                spread => (most - pod.gauges.waiting) as f64 / spread as f64,
            };
            -(PREFIX * prefix + QUEUE * queue + KV_USAGE * (1.0 - pod.gauges.usage))
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

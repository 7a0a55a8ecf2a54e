//! Policies that know nothing of caches.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Ask, Choose, Pick, least};
use crate::dice::Dice;

fn at(place: usize) -> Pick {
    let cached_tokens = 0;
    Pick {
        place,
        cached_tokens,
    }
}

/// Each pod in turn, from one by the dice: routers that start together are not in step.
pub(super) struct RoundRobin {
    next: usize,
}

impl RoundRobin {
    pub(super) fn new(mut dice: Dice) -> Self {
        let next = dice.below(1 << 16);
        Self { next }
    }
}

impl Choose for RoundRobin {
    fn pick(&mut self, ask: &mut Ask<'_, '_>) -> Pick {
        self.next = self.next.wrapping_add(1);
        at(self.next % ask.pods.len())
    }
}

/// Fewest requests in flight. Envoy looks at two pods by default; this one looks at all.
pub(super) struct LeastRequest {
    dice: Dice,
}

impl LeastRequest {
    pub(super) fn new(dice: Dice) -> Self {
        Self { dice }
    }
}

impl Choose for LeastRequest {
    fn pick(&mut self, ask: &mut Ask<'_, '_>) -> Pick {
        let costs = ask.pods.iter().map(|pod| f64::from(pod.load.requests));
        at(least(&mut self.dice, costs))
    }
}

/// A ring with bounded load (Mirrokni et al. 2016; KubeAI's PrefixHash): a session's first pod on the
/// ring whose load would stay within 1.25 times the mean.
#[derive(Default)]
pub(super) struct ConsistentHash {
    /// Points of pods on the ring, and whose they are, for the fleet that it was made for.
    ring: Vec<(u64, usize)>,
    fleet: Vec<u32>,
}

/// KubeAI's default.
const LOAD_FACTOR: f64 = 1.25;
/// KubeAI's default: shares of the ring differ by some 6 %.
const POINTS_OF_A_POD: u64 = 256;

impl Choose for ConsistentHash {
    fn pick(&mut self, ask: &mut Ask<'_, '_>) -> Pick {
        let fleet = ask.pods.iter().map(|pod| pod.endpoint.0);
        if !fleet.clone().eq(self.fleet.iter().copied()) {
            self.fleet = fleet.collect();
            self.ring.clear();
            for (place, id) in self.fleet.iter().enumerate() {
                let point = |point| xxh3_64_with_seed(&id.to_le_bytes(), point);
                self.ring
                    .extend((0..POINTS_OF_A_POD).map(|nth| (point(nth), place)));
            }
            self.ring.sort_unstable();
        }
        let all: u32 = ask.pods.iter().map(|pod| pod.load.requests).sum();
        let bound = (f64::from(all + 1) / ask.pods.len() as f64 * LOAD_FACTOR).ceil();
        let hash = xxh3_64_with_seed(&ask.session.to_le_bytes(), 0);
        let first = self.ring.partition_point(|(point, _)| *point < hash);
        let ring = self.ring[first..].iter().chain(&self.ring[..first]);
        let mut ring = ring.map(|(_, place)| *place);
        let fits = |place: &usize| f64::from(ask.pods[*place].load.requests + 1) <= bound;
        // The bound is above the mean, so somebody is below it.
        at(ring.find(fits).unwrap_or(0))
    }
}

//! What was sent where lately: prefix "knowledge" without events.

use std::collections::HashMap;

use kvscout::blocks::BlockKey;
use kvscout::fleet::EndpointId;

/// Blocks sent to each pod, the most recent so many (GIE's approximate prefix indexer).
pub(super) struct Recent {
    blocks_max: usize,
    /// Pods that a block was sent to, by number, one bit each.
    holders: HashMap<BlockKey, Vec<u64>>,
    pods: Vec<Lru>,
}

/// A pod's blocks in a list from the one sent last to the one sent first.
#[derive(Default)]
struct Lru {
    places: HashMap<BlockKey, usize>,
    links: Vec<Link>,
    newest: usize,
    oldest: usize,
}

#[derive(Clone, Copy)]
struct Link {
    key: BlockKey,
    newer: usize,
    older: usize,
}

const NONE: usize = usize::MAX;

impl Recent {
    pub(super) fn new(blocks_max: usize) -> Self {
        Self {
            blocks_max: blocks_max.max(1),
            holders: HashMap::new(),
            pods: Vec::new(),
        }
    }

    /// How many leading blocks were sent to each of these pods. Like GIE's, it walks from the first
    /// block on until no pod is left.
    pub(super) fn depths(
        &self,
        keys: &[BlockKey],
        endpoints: impl Iterator<Item = EndpointId>,
    ) -> Vec<u32> {
        let endpoints: Vec<usize> = endpoints.map(|endpoint| endpoint.0 as usize).collect();
        let mut depths = vec![0; endpoints.len()];
        let mut left: Vec<usize> = (0..endpoints.len()).collect();
        for (depth, key) in keys.iter().enumerate() {
            let holders = self.holders.get(key);
            left.retain(|&place| {
                let (word, bit) = (endpoints[place] / 64, endpoints[place] % 64);
                let held = holders
                    .and_then(|bits| bits.get(word))
                    .is_some_and(|bits| bits >> bit & 1 == 1);
                if !held {
                    depths[place] = depth as u32;
                }
                held
            });
            if left.is_empty() {
                return depths;
            }
        }
        for place in left {
            depths[place] = keys.len() as u32;
        }
        depths
    }

    /// Notes that these were sent to a pod.
    pub(super) fn sent(&mut self, keys: &[BlockKey], endpoint: EndpointId) {
        let pod = endpoint.0 as usize;
        if self.pods.len() <= pod {
            self.pods.resize_with(pod + 1, Lru::default);
        }
        // Backwards, so that a prefix is younger than what follows it.
        for key in keys.iter().rev() {
            let forgotten = self.pods[pod].touch(*key, self.blocks_max);
            let bits = self.holders.entry(*key).or_default();
            if bits.len() <= pod / 64 {
                bits.resize(pod / 64 + 1, 0);
            }
            bits[pod / 64] |= 1 << (pod % 64);
            if let Some(forgotten) = forgotten {
                self.unset(forgotten, pod);
            }
        }
    }

    /// A pod has gone.
    pub(super) fn forget(&mut self, endpoint: EndpointId) {
        let pod = endpoint.0 as usize;
        let Some(lru) = self.pods.get_mut(pod) else {
            return;
        };
        for key in std::mem::take(lru).places.into_keys() {
            self.unset(key, pod);
        }
    }

    fn unset(&mut self, key: BlockKey, pod: usize) {
        if let Some(bits) = self.holders.get_mut(&key) {
            if let Some(word) = bits.get_mut(pod / 64) {
                *word &= !(1 << (pod % 64));
            }
            if bits.iter().all(|word| *word == 0) {
                self.holders.remove(&key);
            }
        }
    }
}

impl Lru {
    /// Makes a block the newest; the one that has to go for it.
    fn touch(&mut self, key: BlockKey, most: usize) -> Option<BlockKey> {
        if let Some(&place) = self.places.get(&key) {
            self.unlink(place);
            self.link(place);
            return None;
        }
        if self.links.len() < most {
            self.links.push(Link {
                key,
                newer: NONE,
                older: NONE,
            });
            let place = self.links.len() - 1;
            self.places.insert(key, place);
            self.link(place);
            return None;
        }
        let place = self.oldest;
        self.unlink(place);
        let gone = std::mem::replace(&mut self.links[place].key, key);
        self.places.remove(&gone);
        self.places.insert(key, place);
        self.link(place);
        Some(gone)
    }

    fn unlink(&mut self, place: usize) {
        let Link { newer, older, .. } = self.links[place];
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links[older].newer = newer,
        }
    }

    fn link(&mut self, place: usize) {
        let alone = self.links.len() == 1;
        let older = if alone { NONE } else { self.newest };
        self.links[place].newer = NONE;
        self.links[place].older = older;
        match older {
            NONE => self.oldest = place,
            older => self.links[older].newer = place,
        }
        self.newest = place;
    }
}

#[cfg(test)]
mod tests {
    use kvscout::blocks::{Chain, Identity};

    use super::*;

    fn keys(first: u32, blocks: u32) -> Vec<BlockKey> {
        let tokens: Vec<u32> = (first..first + 16 * blocks).collect();
        Chain::of_full_blocks(&tokens, 16, &Identity::default()).keys
    }

    #[test]
    fn the_oldest_prompt_is_forgotten_from_its_end() {
        let (mut recent, pod) = (Recent::new(4), EndpointId(70));
        let (old, new) = (keys(0, 3), keys(900, 2));
        let depth = |recent: &Recent, keys: &[BlockKey]| recent.depths(keys, [pod].into_iter())[0];
        recent.sent(&old, pod);
        assert_eq!(depth(&recent, &old), 3);
        recent.sent(&new, pod);
        assert_eq!((depth(&recent, &old), depth(&recent, &new)), (2, 2));
        recent.sent(&old, pod);
        assert_eq!((depth(&recent, &old), depth(&recent, &new)), (3, 1));
        recent.forget(pod);
        assert_eq!((depth(&recent, &old), recent.holders.len()), (0, 0));
    }

    #[test]
    fn a_pod_counts_only_what_was_sent_to_it() {
        let mut recent = Recent::new(100);
        let prompt = keys(0, 3);
        recent.sent(&prompt[..2], EndpointId(1));
        let depths = recent.depths(&prompt, [0, 1].map(EndpointId).into_iter());
        assert_eq!(depths, [0, 2]);
    }
}

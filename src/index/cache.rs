//! The physical copies of one medium and group of an endpoint, by the engine's own names.

use serde::{Deserialize, Serialize};

use crate::blocks::{BlockKey, EngineHash, Medium, Rule, Shape};
use crate::index::keyed::KeyedMap;

/// Which of an endpoint's caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Where.
    pub medium: Medium,
    /// Of which group.
    pub group: u32,
}

impl Place {
    /// The engine's own cache of a model with one group.
    pub const OWN: Self = Self {
        medium: Medium::Gpu,
        group: 0,
    };
}

/// The copies that an engine hash stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copies {
    /// None for an orphan: what it holds is not known.
    pub key: Option<BlockKey>,
    pub count: u32,
    /// Last heard of before a gap: it may be gone.
    pub unsure: bool,
}

#[derive(Debug)]
pub(super) struct Cache {
    pub place: Place,
    pub rule: Rule,
    /// None until a store tells it; placeholders of offload connectors do not.
    pub shape: Option<Shape>,
    pub copies: KeyedMap<EngineHash, Copies>,
    /// All their counts.
    pub physical: u64,
    /// Hashes of the beginnings of blocks, by smaller block sizes: where groups are cut differently
    /// vLLM names these too. No hit ends within a block.
    pub partial: KeyedMap<EngineHash, u32>,
}

/// What a snapshot keeps of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachePicture {
    /// Which.
    pub place: Place,
    /// What makes a hit.
    pub rule: Rule,
    /// How prompts are cut.
    pub shape: Option<Shape>,
    /// Engine hash, our name (none where it was never known), physical copies.
    pub copies: Vec<(u64, Option<BlockKey>, u32)>,
}

impl Cache {
    pub(super) fn new(place: Place, rule: Rule, shape: Option<Shape>) -> Self {
        Self {
            place,
            rule,
            shape,
            copies: KeyedMap::default(),
            physical: 0,
            partial: KeyedMap::default(),
        }
    }

    /// Whether it is the engine's own: its groups share one pool, and are cleared together.
    pub(super) fn is_own(&self) -> bool {
        self.place.medium == Medium::Gpu
    }

    /// Whether the engine's hits depend on it in a way that is known. Of a group that is not modelled
    /// nothing is, and the endpoint is not trusted.
    pub(super) fn counts_for_hits(&self) -> bool {
        self.is_own() && self.rule != Rule::Unknown
    }

    /// Whether a hash means the same block here and there: engine hashes of one process name
    /// prefixes, so only how these are cut can differ.
    pub(super) fn names_as(&self, other: &Self) -> bool {
        match (self.shape, other.shape) {
            (Some(shape), Some(theirs)) => shape == theirs,
            _ => self.place.group == other.place.group,
        }
    }

    pub(super) fn name_of(&self, hash: EngineHash) -> Option<BlockKey> {
        self.copies.get(&hash)?.key
    }

    /// All but what may be gone.
    pub(super) fn picture(&self) -> CachePicture {
        let sure = self.copies.iter().filter(|(_, copies)| !copies.unsure);
        CachePicture {
            place: self.place,
            rule: self.rule,
            shape: self.shape,
            copies: sure
                .map(|(hash, copies)| (hash.0, copies.key, copies.count))
                .collect(),
        }
    }
}

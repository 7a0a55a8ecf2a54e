//! The physical copies of one medium and group of an endpoint, by the engine's own names.

use serde::{Deserialize, Serialize};

use crate::blocks::{EngineHash, Medium, Rule, Shape};
use crate::index::copies::CopyMap;
use crate::index::keyed::KeyedMap;
use crate::index::tree::{BlockId, Holder, Tree};

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

    /// Whether it is the engine's own: its groups share one pool, and are cleared together.
    pub(super) fn is_own(self) -> bool {
        self.medium == Medium::Gpu
    }
}

#[derive(Debug)]
pub(super) struct Cache {
    pub place: Place,
    pub rule: Rule,
    /// None until a store tells it; placeholders of offload connectors do not.
    pub shape: Option<Shape>,
    pub copies: CopyMap,
    /// All their counts.
    pub physical: u64,
    /// Hashes of the beginnings of blocks, by smaller block sizes: where groups are cut differently
    /// vLLM names these too. No hit ends within a block.
    pub partial: KeyedMap<EngineHash, u32>,
    /// Under which the trees know it. None where its blocks are not counted.
    pub any: Option<Presence>,
    /// The same for what it holds for sure, while that is not all.
    pub sure: Option<Presence>,
}

/// A holder in the trees, and what they need not know of it.
#[derive(Debug)]
pub(super) struct Presence {
    pub holder: Holder,
    /// Engine hashes beyond the first that mean a block: two hashes of one server can mean the same
    /// block to us where its events hide what tells them apart (a LoRA path, or a cache salt before
    /// vLLM 0.17.1).
    again: KeyedMap<BlockId, u32>,
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
    /// Engine hash, which of the picture's blocks (none where it was never known), physical copies.
    pub copies: Vec<(u64, Option<u32>, u32)>,
}

impl Presence {
    pub fn new(holder: Holder) -> Self {
        Self {
            holder,
            again: KeyedMap::default(),
        }
    }

    /// One engine hash more for each of these blocks.
    pub fn hold(&mut self, tree: &mut Tree, blocks: &[BlockId]) {
        let mut again = Vec::new();
        tree.hold(self.holder, blocks, &mut again);
        for block in again {
            *self.again.entry(block).or_default() += 1;
        }
    }

    /// One engine hash less.
    pub fn release(&mut self, tree: &mut Tree, block: BlockId) {
        match self.again.get_mut(&block) {
            Some(more) if *more > 1 => *more -= 1,
            Some(_) => drop(self.again.remove(&block)),
            None => tree.release(self.holder, block),
        }
    }
}

impl Cache {
    pub(super) fn new(place: Place, rule: Rule, shape: Option<Shape>) -> Self {
        Self {
            place,
            rule,
            shape,
            copies: CopyMap::default(),
            physical: 0,
            partial: KeyedMap::default(),
            any: None,
            sure: None,
        }
    }

    pub(super) fn is_own(&self) -> bool {
        self.place.is_own()
    }

    /// Whether a hash means the same block here and there: engine hashes of one process name
    /// prefixes, so only how these are cut can differ.
    pub(super) fn names_as(&self, other: &Self) -> bool {
        match (self.shape, other.shape) {
            (Some(shape), Some(theirs)) => shape == theirs,
            _ => self.place.group == other.place.group,
        }
    }

    pub(super) fn name_of(&self, hash: EngineHash) -> Option<BlockId> {
        self.copies.get(hash)?.block
    }

    /// Lets it have blocks, in all certainty or not.
    pub(super) fn hold(&mut self, tree: &mut Tree, blocks: &[BlockId], unsure: bool) {
        if let Some(any) = &mut self.any {
            any.hold(tree, blocks);
        }
        if let Some(sure) = self.sure.as_mut().filter(|_| !unsure) {
            sure.hold(tree, blocks);
        }
    }

    pub(super) fn release(&mut self, tree: &mut Tree, block: BlockId, unsure: bool) {
        if let Some(any) = &mut self.any {
            any.release(tree, block);
        }
        if let Some(sure) = self.sure.as_mut().filter(|_| !unsure) {
            sure.release(tree, block);
        }
    }

    /// The blocks that are known, and of these that are sure or all.
    pub(super) fn blocks(&self, and_unsure: bool) -> Vec<BlockId> {
        let copies = self.copies.iter().map(|(_, copies)| copies);
        let copies = copies.filter(|copies| and_unsure || !copies.unsure);
        copies.filter_map(|copies| copies.block).collect()
    }
}

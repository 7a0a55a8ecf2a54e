//! All trees, one lock each: by a prompt's first key, so that a prompt is all in one.

use std::hash::BuildHasher;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::blocks::BlockKey;
use crate::index::keyed::Keyed;
use crate::index::tree::{BlockId, Holder, TREES, Tree};

/// Blocks retired at a time: mostly of one run or a few, some ten microseconds.
const RETIRED_AT_ONCE: usize = 64;

/// Blocks that a tree hears of within one lock: 0.4 ms with their rows in a book. In blocks of 16 that is
/// 65,536 tokens, more than a step of an engine computes of a prompt: its event is seen at once. Unit
/// tests have short prompts.
pub(super) const HELD_AT_ONCE: usize = if cfg!(test) { 2 } else { 4096 };

#[derive(Debug)]
pub(super) struct Forest {
    trees: Box<[RwLock<Tree>]>,
    /// Nobody outside can choose his prompts' tree.
    keyed: Keyed,
}

impl Default for Forest {
    fn default() -> Self {
        let trees = (0..TREES as u32).map(|number| RwLock::new(Tree::new(number)));
        Self {
            trees: trees.collect(),
            keyed: Keyed::default(),
        }
    }
}

impl Forest {
    /// Which tree a prompt with this first key is in.
    #[inline]
    pub fn tree_of(&self, first: BlockKey) -> usize {
        self.keyed.hash_one(first) as usize % TREES
    }

    pub fn trees(&self) -> impl Iterator<Item = &RwLock<Tree>> {
        self.trees.iter()
    }

    pub fn read(&self, tree: usize) -> RwLockReadGuard<'_, Tree> {
        self.trees[tree].read()
    }

    pub fn write(&self, tree: usize) -> RwLockWriteGuard<'_, Tree> {
        self.trees[tree].write()
    }

    /// Takes all these blocks from a holder of which nobody asks any more, a few at a time so that
    /// nobody else waits for long.
    pub fn retire(&self, holder: Holder, blocks: &mut [BlockId]) {
        blocks.sort_unstable();
        for of_tree in blocks.chunk_by(|a, b| a.tree() == b.tree()) {
            for few in of_tree.chunks(RETIRED_AT_ONCE) {
                let mut tree = self.write(few[0].tree());
                few.iter().for_each(|block| tree.retire(holder, *block));
                // Or it would be locked again before those who wait for it wake up.
                RwLockWriteGuard::unlock_fair(tree);
            }
        }
    }

    /// Blocks that anybody's events named.
    pub fn len(&self) -> usize {
        self.trees.iter().map(|tree| tree.read().len()).sum()
    }

    pub fn bytes(&self) -> usize {
        self.trees.iter().map(|tree| tree.read().bytes()).sum()
    }

    #[cfg(test)]
    pub fn assert_sound(&self) {
        self.trees
            .iter()
            .for_each(|tree| tree.read().assert_sound());
    }
}

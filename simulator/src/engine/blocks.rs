//! The block pool: who uses which physical block, which blocks the cache can still offer,
//! and the events that say so.
//!
//! The rules are vLLM's (`v1/core/block_pool.py`, read in 0.32.0). A block that holds
//! computed tokens keeps its hash after its last user has left, and is found by it until it
//! is handed out again. Equal blocks are not merged: each physical copy is stored, offered
//! and removed by itself.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use kvscout::blocks::{BlockEvent, EngineHash, Group, Medium, Stored};
use smallvec::SmallVec;

pub use super::free_list::BlockId;
use super::free_list::FreeList;

/// Where a block without a hash (a request's last, partly filled one) goes when it is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FreeOrder {
    /// To the front of the free list, so that it is reused before anything cached is evicted
    /// (seen in the recordings of 0.24.0 and later).
    #[default]
    UnhashedFirst,
    /// To the end, behind everything cached (seen in the recordings up to 0.20.2).
    Lru,
}

/// The KV cache of one engine.
#[derive(Debug)]
pub struct Pool {
    blocks: Vec<Block>,
    free: FreeList,
    /// Copies in the order in which they were stored; a hit takes the first.
    cached: HashMap<EngineHash, SmallVec<[BlockId; 2]>, BuildHasherDefault<AsIs>>,
    order: FreeOrder,
    events: Vec<BlockEvent>,
}

/// Engine hashes are numbers as good as random already.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only numbers are hashed; what else came would do no worse than collide.
        self.0 ^= bytes.len() as u64;
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[derive(Debug, Clone, Default)]
struct Block {
    users: u32,
    hash: Option<EngineHash>,
}

impl Pool {
    /// `num_gpu_blocks` as vLLM reports it; one of them, the null block, is never used.
    #[must_use]
    pub fn new(num_gpu_blocks: u32, order: FreeOrder) -> Self {
        Self {
            blocks: vec![Block::default(); num_gpu_blocks.max(1) as usize],
            free: FreeList::new(num_gpu_blocks),
            cached: HashMap::default(),
            order,
            events: Vec::new(),
        }
    }

    /// Blocks that requests can have in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Blocks that no request uses, cached or not.
    #[must_use]
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// What the cache can offer: physical copies by hash.
    #[must_use]
    pub fn copies(&self) -> BTreeMap<u64, usize> {
        let copies = self.cached.iter();
        copies.map(|(hash, ids)| (hash.0, ids.len())).collect()
    }

    /// The share of blocks that requests use now, 0 to 1: cached leftovers do not count.
    #[must_use]
    pub fn usage(&self) -> f64 {
        1.0 - self.free_blocks() as f64 / self.capacity().max(1) as f64
    }

    /// The copy that a hit would take.
    #[must_use]
    pub fn find(&self, hash: EngineHash) -> Option<BlockId> {
        self.cached.get(&hash)?.first().copied()
    }

    /// How many of `blocks` would leave the free list if they were used.
    #[must_use]
    pub fn free_among(&self, blocks: &[BlockId]) -> usize {
        let is_free = |id: &&BlockId| self.blocks[id.index()].users == 0;
        blocks.iter().filter(is_free).count()
    }

    /// Makes one more request use `blocks`.
    pub fn touch(&mut self, blocks: &[BlockId]) {
        for &id in blocks {
            let block = &mut self.blocks[id.index()];
            if block.users == 0 {
                self.free.remove(id);
            }
            block.users += 1;
        }
    }

    /// Takes up to `count` free blocks, evicting what they held.
    pub fn allocate(&mut self, count: usize) -> Vec<BlockId> {
        if count == 0 {
            return Vec::new();
        }
        let taken: Vec<BlockId> = std::iter::from_fn(|| self.free.pop_front())
            .take(count)
            .collect();
        // A removal each, once the pool is full.
        self.events.reserve(taken.len());
        for &id in &taken {
            self.evict(id);
            self.blocks[id.index()].users = 1;
        }
        taken
    }

    /// Makes `block` findable by `hash`.
    pub fn insert(&mut self, block: BlockId, hash: EngineHash) {
        self.blocks[block.index()].hash = Some(hash);
        self.cached.entry(hash).or_default().push(block);
    }

    /// Gives back a request's blocks, tail first, since a prefix is worth more than what
    /// follows it.
    pub fn release(&mut self, blocks: &[BlockId]) {
        let mut unhashed = Vec::new();
        for &id in blocks.iter().rev() {
            let block = &mut self.blocks[id.index()];
            block.users -= 1;
            if block.users > 0 {
                continue;
            }
            if block.hash.is_none() && self.order == FreeOrder::UnhashedFirst {
                unhashed.push(id);
            } else {
                self.free.push_back(id);
            }
        }
        self.free.push_front(&unhashed);
    }

    /// Forgets every cached block. Refused while a request uses any block.
    pub fn clear(&mut self) -> bool {
        if self.free_blocks() < self.capacity() {
            return false;
        }
        self.cached.clear();
        for block in &mut self.blocks {
            block.hash = None;
        }
        self.events.push(BlockEvent::Cleared);
        true
    }

    /// Adds a stored event behind the removals that made room for it.
    pub fn announce(&mut self, stored: Stored) {
        self.events.push(BlockEvent::Stored(stored));
    }

    /// What happened since the last call, in order.
    pub fn take_events(&mut self) -> Vec<BlockEvent> {
        std::mem::take(&mut self.events)
    }

    fn evict(&mut self, id: BlockId) {
        let Some(hash) = self.blocks[id.index()].hash.take() else {
            return;
        };
        if let Some(copies) = self.cached.get_mut(&hash) {
            copies.retain(|copy| *copy != id);
            if copies.is_empty() {
                self.cached.remove(&hash);
            }
        }
        self.events.push(BlockEvent::Removed {
            hashes: vec![hash],
            medium: Medium::Gpu,
            group: Group::default(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool whose blocks 1.. hold the hashes 1.., all in use.
    fn full(blocks: u32, order: FreeOrder) -> (Pool, Vec<BlockId>) {
        let mut pool = Pool::new(blocks + 1, order);
        let taken = pool.allocate(blocks as usize);
        for &id in &taken {
            pool.insert(id, EngineHash(u64::from(id.0)));
        }
        (pool, taken)
    }

    fn evicted(pool: &mut Pool) -> Vec<u64> {
        let of = |event| match event {
            BlockEvent::Removed { hashes, .. } => hashes[0].0,
            other => panic!("expected a removal, got {other:?}"),
        };
        pool.take_events().into_iter().map(of).collect()
    }

    #[test]
    fn the_tail_is_evicted_first() {
        let (mut pool, taken) = full(3, FreeOrder::default());
        pool.release(&taken);
        pool.allocate(2);
        assert_eq!(evicted(&mut pool), [3, 2]);
        assert!(pool.find(EngineHash(1)).is_some());
    }

    #[test]
    fn a_hit_takes_a_block_off_the_free_list() {
        let (mut pool, taken) = full(2, FreeOrder::default());
        pool.release(&taken);
        pool.touch(&taken[1..]);
        assert_eq!(pool.free_blocks(), 1);
        pool.allocate(1);
        assert_eq!(evicted(&mut pool), [1], "the touched tail stays");
    }

    #[test]
    fn a_block_without_a_hash_is_reused_before_anything_cached() {
        for (order, expected) in [
            (FreeOrder::UnhashedFirst, vec![]),
            (FreeOrder::Lru, vec![1]),
        ] {
            let mut pool = Pool::new(3, order);
            let (cached, partial) = (pool.allocate(1), pool.allocate(1));
            pool.insert(cached[0], EngineHash(1));
            pool.release(&cached);
            pool.release(&partial);
            pool.allocate(1);
            assert_eq!(evicted(&mut pool), expected, "{order:?}");
        }
    }

    #[test]
    fn a_hash_lives_until_its_last_copy_is_evicted() {
        let mut pool = Pool::new(3, FreeOrder::default());
        for id in pool.allocate(2) {
            pool.insert(id, EngineHash(7));
            pool.release(&[id]);
        }
        pool.allocate(1);
        assert_eq!(pool.find(EngineHash(7)), Some(BlockId(2)));
        pool.allocate(1);
        assert_eq!(pool.find(EngineHash(7)), None);
        assert_eq!(evicted(&mut pool), [7, 7]);
    }

    #[test]
    fn a_pool_in_use_refuses_to_be_cleared() {
        let (mut pool, taken) = full(2, FreeOrder::default());
        assert!(!pool.clear());
        pool.release(&taken);
        assert!(pool.clear());
        assert_eq!(pool.take_events(), [BlockEvent::Cleared]);
        pool.allocate(2);
        assert!(pool.take_events().is_empty(), "nothing is left to evict");
    }
}

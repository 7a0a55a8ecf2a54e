//! Engine hashes → our names, by parent and tokens.

use parking_lot::RwLockWriteGuard;

use crate::blocks::{BlockKey, EngineHash, Shape, Stored};
use crate::index::book::Book;
use crate::index::tree::{BlockId, Tree};

/// Blocks of orphans that are named before whoever waits for the tree is let in: half a millisecond, or
/// twice that on a busy machine. Unit tests have few.
pub(super) const NAMED_AT_ONCE: usize = if cfg!(test) { 2 } else { 1024 };

/// What stands before a store's first block.
#[derive(Debug, Clone, Copy)]
pub(super) enum Before {
    /// Nothing: a prompt starts here, under this root.
    Start(BlockKey),
    Block(BlockId),
}

/// An orphan, and the block that it waited for, which is kept in the tree meanwhile.
struct Found {
    parent: BlockId,
    orphan: Stored,
}

impl Before {
    pub(super) fn block(self) -> Option<BlockId> {
        match self {
            Self::Start(_) => None,
            Self::Block(block) => Some(block),
        }
    }
}

impl Book {
    /// Tells which block a hash stands for to every copy of it that has none, and to the orphans that
    /// waited for it. All of them are in one tree, as they begin the same prompt. Whoever waits for the
    /// tree is let in after every so many; what is not pinned or held may be gone then.
    pub(super) fn name(
        &mut self,
        at: usize,
        hash: EngineHash,
        block: BlockId,
        tree: &mut RwLockWriteGuard<'_, Tree>,
    ) {
        let mut found = Vec::new();
        self.name_one(at, hash, block, tree, &mut found);
        while let Some(Found { parent, orphan }) = found.pop() {
            let (key, mut keys) = (tree.key(parent), Vec::with_capacity(orphan.hashes.len()));
            let mut hash = || keys_of(key, &orphan, &mut keys);
            // What is short is seen at once.
            match orphan.hashes.len() > NAMED_AT_ONCE {
                true => RwLockWriteGuard::unlocked_fair(tree, hash),
                false => hash(),
            }
            let mut before = parent;
            let pieces = orphan.hashes.chunks(NAMED_AT_ONCE);
            for (hashes, keys) in pieces.zip(keys.chunks(NAMED_AT_ONCE)) {
                let mut blocks = Vec::with_capacity(keys.len());
                let age = tree.age(before);
                tree.grow(Some(before), keys, age, &mut blocks);
                let Some(last) = blocks.last().copied() else {
                    break;
                };
                tree.pin(last);
                tree.unpin(std::mem::replace(&mut before, last));
                for (hash, block) in hashes.iter().zip(&blocks) {
                    self.name_one(at, *hash, *block, tree, &mut found);
                }
                self.named += blocks.len();
                if self.named >= NAMED_AT_ONCE {
                    self.named = 0;
                    RwLockWriteGuard::bump(tree);
                }
                if blocks.len() < keys.len() {
                    break;
                }
            }
            tree.unpin(before);
        }
    }

    /// The same without the orphans, which it adds to those that were found.
    fn name_one(
        &mut self,
        at: usize,
        hash: EngineHash,
        block: BlockId,
        tree: &mut Tree,
        found: &mut Vec<Found>,
    ) {
        for other in 0..self.caches.len() {
            if !self.caches[other].names_as(&self.caches[at]) {
                continue;
            }
            let cache = &mut self.caches[other];
            let Ok(slot) = cache.copies.find(hash) else {
                continue;
            };
            let mut copies = cache.copies.at(slot);
            if copies.block.is_none() {
                copies.block = Some(block);
                cache.copies.set(slot, copies);
                self.unnamed -= 1;
                cache.hold(tree, &[block], copies.unsure);
            }
        }
        let Some(shape) = self.caches[at].shape else {
            return;
        };
        for orphan in self.orphans.take(shape, hash) {
            tree.pin(block);
            let parent = block;
            found.push(Found { parent, orphan });
        }
    }

    pub(super) fn name_of(&self, hash: EngineHash, at: usize) -> Option<BlockId> {
        let own = &self.caches[at];
        own.name_of(hash).or_else(|| {
            let alike = self.caches.iter().filter(|cache| cache.names_as(own));
            alike.filter_map(|cache| cache.name_of(hash)).next()
        })
    }

    /// What stands before an event's first block; none where that was never seen.
    pub(super) fn before(&self, stored: &Stored, at: usize) -> Option<Before> {
        match stored.parent {
            // A placeholder names no parent either.
            None if stored.tokens.is_empty() => None,
            None => Some(Before::Start(self.root(stored))),
            Some(hash) => self.name_of(hash, at).map(Before::Block),
        }
    }

    fn root(&self, stored: &Stored) -> BlockKey {
        match (&stored.adapter, stored.adapter_id) {
            (Some(name), _) => BlockKey::root(Some(name)),
            (None, None) => BlockKey::root(None),
            (None, Some(id)) => {
                let nth = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
                match nth.and_then(|nth| self.adapters.get(nth)) {
                    Some(name) => BlockKey::root(Some(name)),
                    None => BlockKey::root(Some(&format!("lora_id:{id}"))),
                }
            }
        }
    }
}

/// None for a placeholder, and where no block is stored: a recurrent state that stays within one.
pub(super) fn shape_of(stored: &Stored) -> Option<Shape> {
    let lookahead = stored.lookahead.first().map_or(0, Vec::len) as u32;
    (stored.block_size > 0 && !stored.hashes.is_empty()).then_some(Shape {
        block_size: stored.block_size,
        lookahead,
    })
}

/// Whether every block between its first and its last token is stored.
pub(super) fn is_complete(stored: &Stored) -> bool {
    !stored.tokens.is_empty()
        && stored.tokens.len() == stored.hashes.len() * stored.block_size as usize
}

/// Our names for the blocks of an event behind `parent`; none where it does not say which of the
/// blocks between its tokens are stored.
pub(super) fn keys_of(mut parent: BlockKey, stored: &Stored, keys: &mut Vec<BlockKey>) {
    if !is_complete(stored) {
        return;
    }
    let extras = stored.extra_keys.as_deref().unwrap_or_default();
    let blocks = stored.tokens.chunks_exact(stored.block_size as usize);
    for (position, tokens) in blocks.enumerate() {
        let extras = extras.get(position).map_or(&[][..], Vec::as_slice);
        parent = match stored.lookahead.get(position) {
            Some(ahead) if !ahead.is_empty() => parent.child(&[tokens, ahead].concat(), extras),
            _ => parent.child(tokens, extras),
        };
        keys.push(parent);
    }
}

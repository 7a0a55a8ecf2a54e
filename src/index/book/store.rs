//! What a store adds to a book, and tells the trees.

use parking_lot::RwLockWriteGuard;

use crate::blocks::{BlockKey, EngineHash, Medium, Rule, Stored};
use crate::index::book::{Book, CACHES_MAX, COPIES_MAX, Of};
use crate::index::cache::{Cache, Place, Presence};
use crate::index::copies::Copies;
use crate::index::forest::{Forest, HELD_AT_ONCE};
use crate::index::names::{Before, is_complete, keys_of, shape_of};
use crate::index::seats::Shared;
use crate::index::tree::{BlockId, Tree};
use crate::index::{Applied, Seen};

/// Beginnings of blocks kept per cache: one for each request that ends within a block.
const PARTIAL_MAX: usize = COPIES_MAX / 64;

impl Book {
    pub(super) fn store(&mut self, stored: &Stored, applied: &mut Applied, of: &Of<'_>) {
        let blocks = stored.hashes.len() as u32;
        if stored.medium == Medium::Other {
            applied.elsewhere += blocks;
            return;
        }
        let Some(at) = self.cache_of(stored, of.shared) else {
            applied.unmodelled += blocks;
            return;
        };
        if stored.medium == Medium::Gpu {
            let shows_salt = Some(stored.extra_keys.is_some());
            self.changed |= self.shows_salt != shows_salt;
            self.shows_salt = shows_salt;
        }
        if self.is_partial(at, stored) {
            self.add_partial(at, &stored.hashes, applied);
            return;
        }
        let mut lists = std::mem::take(&mut self.lists);
        let is_stored = self.store_whole(at, stored, &mut lists, applied, of);
        lists.clear();
        self.lists = lists;
        if let Some(left) = self.unsure_for.filter(|_| is_stored) {
            // What was held then and is used no more has made room since.
            self.unsure_for = left.checked_sub(u64::from(blocks));
            if self.unsure_for.is_none() {
                self.drop_unsure();
            }
        }
    }

    /// False where these were reported, not stored.
    fn store_whole(
        &mut self,
        at: usize,
        stored: &Stored,
        lists: &mut Lists,
        applied: &mut Applied,
        of: &Of<'_>,
    ) -> bool {
        let keys = &mut lists.keys;
        let before = self.before(stored, at);
        let forest = &of.shared.forest;
        // Most are hashed within the lock: one more for the parent's key alone costs an event more than
        // its few hashes.
        let is_long = stored.hashes.len() > HELD_AT_ONCE;
        let mut parent = match before {
            Some(Before::Start(root)) => Some(root),
            Some(Before::Block(block)) if is_long => Some(forest.read(block.tree()).key(block)),
            _ => None,
        };
        if let Some(parent) = parent {
            keys_of(parent, stored, keys);
        }
        let tree = match before {
            Some(Before::Block(block)) => Some(block.tree()),
            Some(Before::Start(_)) => keys.first().map(|first| forest.tree_of(*first)),
            None => None,
        };
        let mut tree = tree.map(|tree| forest.write(tree));
        if let (None, Some(Before::Block(block)), Some(tree)) = (parent, before, &tree) {
            let key = tree.key(block);
            keys_of(key, stored, keys);
            parent = Some(key);
        }
        if self.main() == Some(at) {
            (of.observe)(&Seen {
                parent,
                keys,
                stored,
            });
        }
        if stored.medium == Medium::Gpu && self.is_report(at, stored, keys.last()) {
            applied.reported += stored.hashes.len() as u32;
            return false;
        }
        if let (None, Some(hash), Some(shape)) = (before, stored.parent, shape_of(stored))
            && is_complete(stored)
        {
            self.orphans.push(shape, hash, stored.clone());
        }
        match (before, &mut tree) {
            (Some(before), Some(tree)) if !keys.is_empty() => {
                lists.now = of.shared.room.now();
                self.add_behind(before.block(), at, &stored.hashes, lists, tree, applied);
            }
            _ => {
                drop(tree.take());
                self.add_unnamed(at, &stored.hashes, applied, of.shared);
            }
        }
        drop(tree);
        let cache = &mut self.caches[at];
        lists.held.tell_elsewhere(cache, forest);
        true
    }

    /// The cache that a store is about; none where it is not modelled.
    fn cache_of(&mut self, stored: &Stored, shared: &Shared) -> Option<usize> {
        let place = Place {
            medium: stored.medium,
            group: stored.group.index,
        };
        let shape = shape_of(stored);
        let Some(at) = self.caches.iter().position(|cache| cache.place == place) else {
            if self.caches.len() == CACHES_MAX {
                return None;
            }
            self.changed = true;
            let mut cache = Cache::new(place, stored.group.rule, shape);
            if cache.rule != Rule::Unknown {
                cache.any = Some(Presence::new(shared.take_holder()?));
            }
            self.caches.push(cache);
            return (stored.group.rule != Rule::Unknown).then_some(self.caches.len() - 1);
        };
        let known = self.caches[at].shape;
        match (known, shape) {
            (None, Some(_)) => {
                self.caches[at].shape = shape;
                self.changed = true;
            }
            // What came before were beginnings of blocks.
            (Some(known), Some(shape)) if known.block_size < shape.block_size => {
                let names = |(hash, copies): (EngineHash, Copies)| (hash, copies.count);
                let begun: Vec<_> = self.caches[at].copies.iter().map(names).collect();
                self.empty(at, shared, true);
                let begun = begun.into_iter().take(PARTIAL_MAX);
                self.caches[at].partial.extend(begun);
                self.caches[at].shape = Some(shape);
                self.changed = true;
            }
            (Some(known), Some(shape)) if known.lookahead != shape.lookahead => {
                self.caches[at].rule = Rule::Unknown;
                self.empty(at, shared, false);
                self.changed = true;
            }
            _ => {}
        }
        let cache = &mut self.caches[at];
        if cache.rule != Rule::Unknown && cache.any.is_none() {
            // Numbers of holders had run out.
            cache.any = Some(Presence::new(shared.take_holder()?));
            self.changed = true;
        }
        (cache.rule != Rule::Unknown).then_some(at)
    }

    /// Whether a store names only the beginning of a block.
    fn is_partial(&self, at: usize, stored: &Stored) -> bool {
        let shape = self.caches[at].shape;
        stored.block_size > 0 && shape.is_some_and(|shape| stored.block_size < shape.block_size)
    }

    fn add_partial(&mut self, at: usize, hashes: &[EngineHash], applied: &mut Applied) {
        // A recurrent state may be taken up within a block, if the engine is told to.
        if self.caches.iter().any(|cache| cache.rule == Rule::Last) {
            applied.unmodelled += hashes.len() as u32;
        }
        let partial = &mut self.caches[at].partial;
        for hash in hashes {
            if partial.len() < PARTIAL_MAX {
                *partial.entry(*hash).or_default() += 1;
                applied.stored += 1;
            } else {
                applied.over_limit += 1;
            }
        }
    }

    /// One copy more of each of these hashes, which stand for a row of blocks. Whoever waits for the tree
    /// is let in after every so many.
    fn add_behind(
        &mut self,
        mut parent: Option<BlockId>,
        at: usize,
        hashes: &[EngineHash],
        lists: &mut Lists,
        tree: &mut RwLockWriteGuard<'_, Tree>,
        applied: &mut Applied,
    ) {
        let Lists {
            now,
            keys,
            blocks,
            held,
        } = lists;
        let pieces = hashes.chunks(HELD_AT_ONCE);
        let mut pieces = pieces.zip(keys.chunks(HELD_AT_ONCE)).peekable();
        while let Some((hashes, keys)) = pieces.next() {
            blocks.clear();
            tree.grow(parent, keys, *now, blocks);
            self.add(at, hashes, blocks, held, tree, applied);
            if pieces.peek().is_none() {
                return;
            }
            // Only what is held stays while others have the tree.
            parent = blocks
                .last()
                .copied()
                .filter(|_| blocks.len() == keys.len());
            let name = hashes.last().and_then(|hash| self.name_of(*hash, at));
            if parent.is_none() || name != parent {
                break;
            }
            RwLockWriteGuard::bump(tree);
        }
        for (hashes, _) in pieces {
            self.add(at, hashes, &[], held, tree, applied);
        }
    }

    /// One copy more of each of these hashes, which stand for `blocks`.
    fn add(
        &mut self,
        at: usize,
        hashes: &[EngineHash],
        blocks: &[BlockId],
        held: &mut Held,
        tree: &mut RwLockWriteGuard<'_, Tree>,
        applied: &mut Applied,
    ) {
        let named = blocks.iter().copied().map(Some);
        let named = named.chain(std::iter::repeat(None));
        for (hash, block) in hashes.iter().zip(named) {
            self.add_one(at, *hash, block, held, applied);
        }
        held.tell(&mut self.caches[at], tree);
        let Some(last) = blocks.last() else { return };
        if self.unnamed > 0 {
            tree.pin(*last);
            for (hash, block) in hashes.iter().zip(blocks) {
                self.name(at, *hash, *block, tree);
            }
            tree.unpin(*last);
        } else {
            tree.prune(*last);
        }
    }

    /// The same where the event does not say which blocks these are: other groups or media may.
    fn add_unnamed(
        &mut self,
        at: usize,
        hashes: &[EngineHash],
        applied: &mut Applied,
        shared: &Shared,
    ) {
        let named = hashes.iter().map(|hash| (*hash, self.name_of(*hash, at)));
        let named: Vec<_> = named.collect();
        let tree_of = |block: &Option<BlockId>| block.map(BlockId::tree);
        let alike = named.chunk_by(|(_, a), (_, b)| tree_of(a) == tree_of(b));
        for alike in alike.flat_map(|alike| alike.chunks(HELD_AT_ONCE)) {
            let mut held = Held::default();
            for (hash, block) in alike {
                self.add_one(at, *hash, *block, &mut held, applied);
            }
            if let Some(tree) = tree_of(&alike[0].1) {
                let mut tree = shared.forest.write(tree);
                held.tell(&mut self.caches[at], &mut tree);
                for (hash, block) in alike {
                    if let Some(block) = block.filter(|_| self.unnamed > 0) {
                        self.name(at, *hash, block, &mut tree);
                    }
                }
            }
        }
    }

    fn add_one(
        &mut self,
        at: usize,
        hash: EngineHash,
        block: Option<BlockId>,
        held: &mut Held,
        applied: &mut Applied,
    ) {
        applied.stored += 1;
        self.any_sure = true;
        let cache = &mut self.caches[at];
        match cache.copies.find(hash) {
            Ok(slot) => {
                let mut copies = cache.copies.at(slot);
                if copies.unsure {
                    // Of those before the gap nobody knows how many are left.
                    cache.physical -= u64::from(copies.count);
                    (copies.unsure, copies.count) = (false, 0);
                    held.sure.extend(copies.block);
                }
                copies.count += 1;
                cache.physical += 1;
                cache.copies.set(slot, copies);
            }
            Err(slot) if self.len < COPIES_MAX => {
                let copies = Copies {
                    block,
                    count: 1,
                    unsure: false,
                };
                cache.copies.insert(slot, copies);
                cache.physical += 1;
                self.len += 1;
                held.any.extend(block);
                if cache.sure.is_some() {
                    held.sure.extend(block);
                }
                self.unnamed += u32::from(block.is_none());
            }
            Err(_) => applied.over_limit += 1,
        }
    }
}

/// What one store is about.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// By the clock of the memory.
    now: u32,
    keys: Vec<BlockKey>,
    blocks: Vec<BlockId>,
    held: Held,
}

impl Lists {
    /// An event of many blocks does not keep its room.
    fn clear(&mut self) {
        if self.keys.len() > LISTS_MAX {
            *self = Self::default();
        }
        self.keys.clear();
        self.blocks.clear();
        self.held.elsewhere = Vec::new();
    }
}

/// Blocks of a store whose lists are kept: 16,384 tokens in blocks of 16.
const LISTS_MAX: usize = 1024;

/// Blocks that an event gives to a cache, in order.
#[derive(Debug, Default)]
struct Held {
    any: Vec<BlockId>,
    /// Of these, and of those that were there before, what is sure now.
    sure: Vec<BlockId>,
    /// Of the latter those in another tree: what a hash meant before a gap, and an event now says it
    /// does not.
    elsewhere: Vec<BlockId>,
}

impl Held {
    fn tell(&mut self, cache: &mut Cache, tree: &mut Tree) {
        let of_others = |block: &mut BlockId| block.tree() != tree.number();
        self.elsewhere.extend(self.sure.extract_if(.., of_others));
        if let Some(any) = &mut cache.any {
            any.hold(tree, &self.any);
        }
        if let Some(sure) = &mut cache.sure {
            sure.hold(tree, &self.sure);
        }
        self.any.clear();
        self.sure.clear();
    }

    fn tell_elsewhere(&mut self, cache: &mut Cache, forest: &Forest) {
        for block in self.elsewhere.drain(..) {
            if let Some(sure) = &mut cache.sure {
                sure.hold(&mut forest.write(block.tree()), &[block]);
            }
        }
    }
}

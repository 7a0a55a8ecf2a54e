//! One endpoint's physical copies, by the engine's own names for them.
//!
//! A [`Cache`] for each medium and group: one for most endpoints. vLLM stores a prefix under the same
//! hash in every group that is cut alike, so a name that one of them learns is the others' too.
//!
//! What a cache holds is told to the trees under its holder's number, event by event, each within one
//! lock of the tree that it is about. What is given up at once is not taken out piece by piece: the
//! cache gets another number, and the old one is cleaned up when nobody sees it any more.

use std::collections::VecDeque;

use parking_lot::RwLockWriteGuard;
use smallvec::SmallVec;

use crate::blocks::{BlockEvent, BlockKey, EngineHash, Medium, Rule, Stored};
use crate::index::cache::{Cache, Place, Presence};
use crate::index::copies::Copies;
use crate::index::expect::Expected;
use crate::index::forest::{Forest, HELD_AT_ONCE};
use crate::index::hit::alignment_of;
use crate::index::keyed::KeyedMap;
use crate::index::names::{is_complete, keys_of, shape_of};
use crate::index::orphans::Orphans;
use crate::index::seats::{CacheView, Retired, Shared, View};
use crate::index::tree::{BlockId, Tree};
use crate::index::{Applied, Seen};

/// Engine hashes kept per endpoint: 64 GiB of KV cache in 16-token blocks of a 7B model make
/// about 75,000; this is fifty times that, and about 85 MB here.
pub(super) const COPIES_MAX: usize = 4_000_000;

/// Beginnings of blocks kept per cache: one for each request that ends within a block.
const PARTIAL_MAX: usize = COPIES_MAX / 64;

/// Caches kept per endpoint: more groups than any model has, on each medium.
pub(super) const CACHES_MAX: usize = 64;

/// Prompts whose reports are awaited per endpoint: as many as vLLM runs at once by default
/// (`max_num_seqs`).
const REPORTS_MAX: usize = 256;

/// Blocks of all of them: forty prompts of 100,000 tokens in 16-token blocks, 2 MB.
const REPORTED_MAX: usize = 1 << 18;

/// Reports of a prompt's leading blocks.
#[derive(Debug)]
struct Awaited {
    prompt: Vec<BlockKey>,
    /// How many from each group of the engine's own cache.
    reports: u32,
    /// How many came, by cache.
    came: Vec<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) caches: Vec<Cache>,
    /// Engine hashes in all of them.
    pub(super) len: usize,
    /// Those whose blocks are not known.
    pub(super) unnamed: u32,
    pub(super) orphans: Orphans,
    /// Whether anything was stored since the last doubt.
    pub(super) any_sure: bool,
    /// Blocks to be stored until what is unsure is given up; none where all is sure.
    unsure_for: Option<u64>,
    /// Prompts whose leading blocks are to be reported.
    reports: VecDeque<Awaited>,
    pub(super) adapters: Vec<String>,
    /// Whether this server's events show cache salts; none before its first store.
    pub(super) shows_salt: Option<bool>,
    /// Whether lookups are to see its caches anew.
    pub(super) changed: bool,
    /// Holders that its caches had before.
    pub(super) retired: Vec<Retired>,
    /// What it was given and has not told of yet.
    pub(super) expected: Expected,
    /// Lists that events fill again and again.
    lists: Lists,
    /// Whether copies were given up for room since it was empty.
    pub(super) gave_up: bool,
    /// Copies stored since the memory was looked at, and the bytes that were counted then.
    pub(super) stored: u32,
    pub(super) counted: usize,
    /// Forgotten: whoever still has it is to take the endpoint's new one.
    pub(super) closed: bool,
}

/// What stands before a store's first block.
#[derive(Debug, Clone, Copy)]
enum Before {
    /// Nothing: a prompt starts here, under this root.
    Start(BlockKey),
    Block(BlockId),
}

impl Before {
    fn block(self) -> Option<BlockId> {
        match self {
            Self::Start(_) => None,
            Self::Block(block) => Some(block),
        }
    }
}

impl Book {
    /// The engine's own cache of full attention, in which every block of a prompt is stored.
    fn main(&self) -> Option<usize> {
        self.caches
            .iter()
            .position(|cache| cache.is_own() && cache.rule == Rule::All && cache.shape.is_some())
    }

    /// What lookups are to see.
    pub(super) fn view(&self) -> View {
        let view = |cache: &Cache| CacheView {
            place: cache.place,
            rule: cache.rule,
            shape: cache.shape,
            any: cache.any.as_ref().map(|any| any.holder),
            sure: cache.sure.as_ref().map(|sure| sure.holder),
        };
        let caches: Vec<CacheView> = self.caches.iter().map(view).collect();
        let own = caches.iter().filter(|cache| cache.counts_for_hits());
        let shapes = own.filter_map(|cache| cache.shape);
        View {
            main: self.main(),
            alignment: alignment_of(shapes.map(|shape| u64::from(shape.block_size))),
            shows_salt: self.shows_salt,
            gave_up: self.gave_up,
            expected: self.expected.presence.as_ref().map(|of| of.holder),
            caches,
        }
    }

    /// Physical copies in the engine's own cache, of every group: they share one pool.
    pub(super) fn physical(&self) -> u64 {
        let own = self.caches.iter().filter(|cache| cache.is_own());
        own.map(|cache| cache.physical).sum()
    }

    pub(super) fn apply(&mut self, event: &BlockEvent, applied: &mut Applied, of: &Of<'_>) {
        match event {
            BlockEvent::Stored(stored) => self.store(stored, applied, of),
            BlockEvent::Removed {
                hashes,
                medium,
                group,
            } => {
                let place = Place {
                    medium: *medium,
                    group: group.index,
                };
                self.remove(place, hashes, applied, of.shared);
            }
            BlockEvent::Cleared => {
                applied.cleared += 1;
                self.clear_own(of.shared);
            }
        }
    }

    /// Ends every copy, and how its caches were. What an operator said of it outlives it.
    pub(super) fn clear(&mut self, shared: &Shared) {
        for at in 0..self.caches.len() {
            self.empty(at, shared, false);
        }
        self.caches.clear();
        self.reports.clear();
        self.orphans.clear();
        self.retired.extend(self.expected.end());
        self.unsure_for = None;
        self.gave_up = false;
        self.changed = true;
    }

    /// Ends the engine's own copies. What was offloaded stays (`reset_prefix_cache` resets its
    /// connector on demand only).
    fn clear_own(&mut self, shared: &Shared) {
        for at in 0..self.caches.len() {
            if self.caches[at].is_own() {
                self.empty(at, shared, true);
            }
        }
        self.reports.clear();
        self.orphans.clear();
        self.retired.extend(self.expected.end());
        self.changed = true;
        if self.caches.iter().all(Cache::is_own) {
            self.gave_up = false;
        }
        // What comes after a cleared cache is all known: nothing unsure stays beside it.
        self.drop_unsure();
    }

    /// Ends a cache's copies; `anew` where it is to hold others.
    fn empty(&mut self, at: usize, shared: &Shared, anew: bool) {
        let cache = &mut self.caches[at];
        cache.physical = 0;
        cache.partial = KeyedMap::default();
        if cache.copies.len() == 0 && anew {
            return;
        }
        let sure = cache.sure.take();
        let of_sure = sure.as_ref().map(|_| cache.blocks(false));
        let blocks = cache.blocks(true);
        let copies = std::mem::take(&mut cache.copies);
        self.len -= copies.len();
        self.unnamed -= (copies.len() - blocks.len()) as u32;
        let any = std::mem::take(&mut cache.any);
        if anew && cache.rule != Rule::Unknown {
            cache.any = shared.take_holder().map(Presence::new);
        }
        self.retire(any, blocks);
        self.retire(sure, of_sure.unwrap_or_default());
    }

    fn retire(&mut self, presence: Option<Presence>, blocks: Vec<BlockId>) {
        self.changed = true;
        let retired = presence.map(|Presence { holder, .. }| Retired { holder, blocks });
        self.retired.extend(retired);
    }

    /// Events were lost: whatever is held may be gone.
    pub(super) fn doubt(&mut self, shared: &Shared) {
        if !std::mem::take(&mut self.any_sure) {
            return;
        }
        for at in 0..self.caches.len() {
            let cache = &mut self.caches[at];
            if cache.copies.len() == 0 || cache.any.is_none() {
                continue;
            }
            let Some(holder) = shared.take_holder() else {
                // Not even numbers are left to tell them apart.
                return self.clear(shared);
            };
            let before = cache.sure.replace(Presence::new(holder));
            let blocks = match before {
                Some(_) => cache.blocks(false),
                None => Vec::new(),
            };
            cache.copies.each_mut(|copies| copies.unsure = true);
            self.retire(before, blocks);
        }
        self.unsure_for = (self.len > 0).then(|| self.physical().max(1));
    }

    /// Gives up what is unsure.
    pub(super) fn drop_unsure(&mut self) {
        self.unsure_for = None;
        for at in 0..self.caches.len() {
            let cache = &mut self.caches[at];
            let Some(sure) = cache.sure.take() else {
                continue;
            };
            let blocks = cache.blocks(true);
            let before = cache.any.replace(sure);
            let (len, unnamed) = (&mut self.len, &mut self.unnamed);
            cache.copies.retain(|copies| {
                if copies.unsure {
                    *len -= 1;
                    cache.physical -= u64::from(copies.count);
                    *unnamed -= u32::from(copies.block.is_none());
                }
                !copies.unsure
            });
            self.retire(before, blocks);
        }
    }

    pub(super) fn expect_reports(&mut self, prompt: Vec<BlockKey>, reports: u32) {
        let awaited = self.reports.iter().map(|awaited| awaited.prompt.len());
        let mut keys = awaited.sum::<usize>() + prompt.len();
        while keys > REPORTED_MAX || self.reports.len() == REPORTS_MAX {
            let Some(first) = self.reports.pop_front() else {
                return;
            };
            keys -= first.prompt.len();
        }
        self.reports.push_back(Awaited {
            prompt,
            reports,
            came: Vec::new(),
        });
    }

    fn store(&mut self, stored: &Stored, applied: &mut Applied, of: &Of<'_>) {
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
        self.caches[at].copies.prefetch(&stored.hashes);
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

    /// What stands before an event's first block; none where that was never seen.
    fn before(&self, stored: &Stored, at: usize) -> Option<Before> {
        match stored.parent {
            // A placeholder names no parent either.
            None if stored.tokens.is_empty() => None,
            None => Some(Before::Start(self.root(stored))),
            Some(hash) => self.name_of(hash, at).map(Before::Block),
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
        tree: &mut Tree,
        applied: &mut Applied,
    ) {
        let named = blocks.iter().copied().map(Some);
        let named = named.chain(std::iter::repeat(None));
        for (hash, block) in hashes.iter().zip(named) {
            self.add_one(at, *hash, block, held, applied);
        }
        held.tell(&mut self.caches[at], tree);
        if self.unnamed > 0 {
            for (hash, block) in hashes.iter().zip(blocks) {
                self.name(at, *hash, *block, tree);
            }
        }
        if let Some(last) = blocks.last() {
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

    /// A report starts at the prompt's start, names only what is held, and was announced. Those of a
    /// window name what is not held, too: every block before it.
    fn is_report(&mut self, at: usize, stored: &Stored, last: Option<&BlockKey>) -> bool {
        if self.reports.is_empty() || stored.parent.is_some() {
            return false;
        }
        let cache = &self.caches[at];
        let held = |hash: &EngineHash| cache.rule != Rule::All || cache.copies.get(*hash).is_some();
        let Some(end) = stored.hashes.len().checked_sub(1) else {
            return false;
        };
        if !stored.hashes.iter().all(held) {
            return false;
        }
        let of = |awaited: &Awaited| {
            let came = awaited.came.get(at).copied().unwrap_or(0);
            came < awaited.reports && last.is_some() && awaited.prompt.get(end) == last
        };
        let Some(which) = self.reports.iter().position(of) else {
            return false;
        };
        let Awaited { reports, came, .. } = &mut self.reports[which];
        came.resize(self.caches.len().max(came.len()), 0);
        came[at] += 1;
        let (reports, mut all) = (*reports, self.caches.iter().zip(came));
        if all.all(|(cache, came)| !cache.is_own() || *came == reports) {
            self.reports.remove(which);
        }
        true
    }

    fn remove(
        &mut self,
        place: Place,
        hashes: &[EngineHash],
        applied: &mut Applied,
        shared: &Shared,
    ) {
        let at = self.caches.iter().position(|cache| cache.place == place);
        let Some(at) = at else {
            match place.medium {
                Medium::Other => applied.elsewhere += hashes.len() as u32,
                _ => applied.unknown += hashes.len() as u32,
            }
            return;
        };
        for few in hashes.chunks(HELD_AT_ONCE) {
            self.remove_few(at, few, applied, shared);
        }
    }

    fn remove_few(
        &mut self,
        at: usize,
        hashes: &[EngineHash],
        applied: &mut Applied,
        shared: &Shared,
    ) {
        let mut gone: SmallVec<[(BlockId, bool); 4]> = SmallVec::new();
        for hash in hashes {
            gone.extend(self.remove_one(at, *hash, applied));
        }
        gone.sort_by_key(|(block, _)| block.tree());
        // What an event says is seen at once, so all its trees are locked until the last has heard of
        // it; in their order, as lookups lock them.
        let mut heard: SmallVec<[RwLockWriteGuard<'_, Tree>; 2]> = SmallVec::new();
        let of_trees = gone.chunk_by(|(a, _), (b, _)| a.tree() == b.tree());
        heard.extend(
            of_trees
                .clone()
                .map(|of| shared.forest.write(of[0].0.tree())),
        );
        for (tree, of_tree) in heard.iter_mut().zip(of_trees) {
            for (block, unsure) in of_tree {
                self.caches[at].release(tree, *block, *unsure);
            }
        }
    }

    /// The block that is held no more, and whether that was unsure.
    fn remove_one(
        &mut self,
        at: usize,
        hash: EngineHash,
        applied: &mut Applied,
    ) -> Option<(BlockId, bool)> {
        let cache = &mut self.caches[at];
        let Ok(slot) = cache.copies.find(hash) else {
            match (cache.partial.get_mut(&hash), cache.rule) {
                (Some(count), _) if *count > 1 => *count -= 1,
                (Some(_), _) => drop(cache.partial.remove(&hash)),
                (None, Rule::Unknown) => applied.unmodelled += 1,
                (None, _) => applied.unknown += 1,
            }
            return None;
        };
        let copies = cache.copies.at(slot);
        applied.removed += 1;
        cache.physical -= 1;
        if copies.count > 1 {
            let count = copies.count - 1;
            cache.copies.set(slot, Copies { count, ..copies });
            return None;
        }
        cache.copies.remove(slot);
        self.len -= 1;
        self.unnamed -= u32::from(copies.block.is_none());
        copies.block.map(|block| (block, copies.unsure))
    }
}

/// What one store is about.
#[derive(Debug, Default)]
struct Lists {
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

/// What surrounds a book while events are applied to it.
pub(super) struct Of<'a> {
    pub shared: &'a Shared,
    /// Is shown every store in the engine's own cache, before it counts.
    pub observe: &'a dyn Fn(&Seen<'_>),
}

//! One endpoint's physical copies, by the engine's own names for them.
//!
//! A [`Cache`] for each medium and group: one for most endpoints. vLLM stores a prefix under the same
//! hash in every group that is cut alike, so a name that one of them learns is the others' too.
//!
//! What a cache holds is told to the trees under its holder's number, event by event, each within one
//! lock of the tree that it is about, or a few if it is long. What is given up at once is not taken out piece by piece: the
//! cache gets another number, and the old one is cleaned up when nobody sees it any more.

use std::sync::Arc;

use parking_lot::{Mutex, RwLockWriteGuard};
use smallvec::SmallVec;

use crate::blocks::{BlockEvent, EngineHash, Medium, Rule};
use crate::index::cache::{Cache, Place, Presence};
use crate::index::copies::Copies;
use crate::index::expect::Expected;
use crate::index::forest::HELD_AT_ONCE;
use crate::index::hit::alignment_of;
use crate::index::keyed::KeyedMap;
use crate::index::orphans::Orphans;
use crate::index::seats::{CacheView, Retired, Shared, View};
use crate::index::tree::{BlockId, Tree};
use crate::index::{Applied, Seen};

mod reports;
mod store;

pub(super) use reports::Reports;
use store::Lists;

/// Engine hashes kept per endpoint: 64 GiB of KV cache in 16-token blocks of a 7B model make
/// about 75,000; this is fifty times that, and about 85 MB here.
pub(super) const COPIES_MAX: usize = 4_000_000;

/// Caches kept per endpoint: more groups than any model has, on each medium.
pub(super) const CACHES_MAX: usize = 64;

/// Engine hashes that are asked for ahead: they and what they are about stay near the processor until
/// their turn, and a step of an engine seldom tells of more. Unit tests have few.
const PREFETCHED_AT_ONCE: usize = if cfg!(test) { 2 } else { 256 };

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
    /// Blocks of orphans that were named since the tree was let go.
    pub(super) named: usize,
    /// Prompts whose leading blocks are to be reported.
    pub(super) reports: Arc<Mutex<Reports>>,
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
            expected: self.expected.holder,
            caches,
        }
    }

    /// Physical copies in the engine's own cache, of every group: they share one pool.
    pub(super) fn physical(&self) -> u64 {
        let own = self.caches.iter().filter(|cache| cache.is_own());
        own.map(|cache| cache.physical).sum()
    }

    /// Asks for the memory where the hashes of the next events stand, all at once: one after the other
    /// each would be waited for. Of how many events; of one at least.
    pub(super) fn prefetch(&self, events: &[BlockEvent]) -> usize {
        let mut asked = 0;
        for (before, event) in events.iter().enumerate() {
            if asked >= PREFETCHED_AT_ONCE {
                return before;
            }
            let (medium, group, hashes) = match event {
                BlockEvent::Stored(stored) => (stored.medium, stored.group.index, &stored.hashes),
                BlockEvent::Removed {
                    medium,
                    group,
                    hashes,
                } => (*medium, group.index, hashes),
                BlockEvent::Cleared => continue,
            };
            let place = Place { medium, group };
            if let Some(cache) = self.caches.iter().find(|cache| cache.place == place) {
                cache.copies.prefetch(hashes);
            }
            asked += hashes.len();
        }
        events.len()
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
        self.reports.lock().clear();
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
        self.reports.lock().clear();
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

/// What surrounds a book while events are applied to it.
pub(super) struct Of<'a> {
    pub shared: &'a Shared,
    /// Is shown every store in the engine's own cache, before it counts.
    pub observe: &'a dyn Fn(&Seen<'_>),
}

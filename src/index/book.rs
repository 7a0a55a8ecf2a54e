//! One endpoint's physical copies, by the engine's own names for them.
//!
//! A [`Cache`] for each medium and group: one for most endpoints. vLLM stores a prefix under the same
//! hash in every group that is cut alike, so a name that one of them learns is the others' too.

use std::collections::VecDeque;

use crate::blocks::{BlockEvent, BlockKey, EngineHash, Medium, Rule, Shape, Stored};
use crate::index::cache::{Cache, CachePicture, Copies, Place};
use crate::index::hit::alignment_of;
use crate::index::keyed::KeyedMap;
use crate::index::names::{is_complete, keys_of, shape_of};
use crate::index::orphans::Orphans;
use crate::index::{Applied, Seen};

/// Engine hashes kept per endpoint: 64 GiB of KV cache in 16-token blocks of a 7B model make
/// about 75,000; this is fifty times that, and about 200 MB here.
pub(super) const COPIES_MAX: usize = 4_000_000;

/// Beginnings of blocks kept per cache: one for each request that ends within a block.
const PARTIAL_MAX: usize = COPIES_MAX / 64;

/// Caches kept per endpoint: more groups than any model has, on each medium.
const CACHES_MAX: usize = 64;

/// Prompts whose reports are awaited per endpoint: as many as vLLM runs at once by default
/// (`max_num_seqs`). Of 100,000 tokens each, in 16-token blocks, they take 13 MB.
const REPORTS_MAX: usize = 256;

/// What an event changes in what the endpoint holds, copies and names aside. A key is held in one
/// of its caches, by number.
pub(super) enum Change<'a> {
    /// Told first.
    Stores(&'a Seen<'a>),
    Holds(u8, BlockKey),
    /// Whether it was unsure.
    Drops(u8, BlockKey, bool),
    /// It may be gone.
    Doubts(u8, BlockKey),
    /// It is there after all.
    Confirms(u8, BlockKey),
}

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
    len: usize,
    /// Those whose blocks are not known.
    pub(super) unnamed: u32,
    pub(super) orphans: Orphans,
    /// Whether anything was stored since the last doubt.
    any_sure: bool,
    /// Blocks to be stored until what is unsure is given up; none where all is sure.
    unsure_for: Option<u64>,
    /// Prompts whose leading blocks are to be reported.
    reports: VecDeque<Awaited>,
    pub(super) adapters: Vec<String>,
    /// Whether this server's events show cache salts; none before its first store.
    pub(super) shows_salt: Option<bool>,
}

impl Book {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The engine's own cache of full attention, in which every block of a prompt is stored.
    fn main(&self) -> Option<usize> {
        self.caches
            .iter()
            .position(|cache| cache.is_own() && cache.rule == Rule::All && cache.shape.is_some())
    }

    /// How prompts are cut there; none before the first store.
    pub(super) fn shape(&self) -> Option<Shape> {
        match self.main() {
            Some(main) => self.caches[main].shape,
            None => self.caches.iter().find(|cache| cache.is_own())?.shape,
        }
    }

    /// A multiple of the block sizes of all groups whose hits count.
    pub(super) fn alignment(&self) -> u64 {
        let own = self.caches.iter().filter(|cache| cache.counts_for_hits());
        let shapes = own.filter_map(|cache| cache.shape);
        alignment_of(shapes.map(|shape| u64::from(shape.block_size)))
    }

    /// Whether one cache is all there is, and every block of it is needed.
    pub(super) fn is_plain(&self) -> bool {
        self.caches.len() == 1 && self.main() == Some(0)
    }

    pub(super) fn is_unsure(&self) -> bool {
        self.unsure_for.is_some()
    }

    /// Physical copies in the engine's own cache, of every group: they share one pool.
    pub(super) fn physical(&self) -> u64 {
        let own = self.caches.iter().filter(|cache| cache.is_own());
        own.map(|cache| cache.physical).sum()
    }

    /// What a snapshot keeps.
    pub(super) fn picture(&self) -> Vec<CachePicture> {
        self.caches.iter().map(Cache::picture).collect()
    }

    /// Takes what a snapshot kept, into an empty book.
    pub(super) fn fill(&mut self, caches: &[CachePicture], change: &mut dyn FnMut(Change<'_>)) {
        self.caches.clear();
        for (at, picture) in caches.iter().take(CACHES_MAX).enumerate() {
            let mut cache = Cache::new(picture.place, picture.rule, picture.shape);
            for (hash, key, count) in picture.copies.iter().copied() {
                if self.len == COPIES_MAX {
                    break;
                }
                let copies = Copies {
                    key,
                    count,
                    unsure: false,
                };
                if count > 0 && !cache.copies.contains_key(&EngineHash(hash)) {
                    cache.copies.insert(EngineHash(hash), copies);
                    self.any_sure = true;
                    self.len += 1;
                    cache.physical += u64::from(count);
                    self.unnamed += u32::from(key.is_none());
                    key.into_iter()
                        .for_each(|key| change(Change::Holds(at as u8, key)));
                }
            }
            self.caches.push(cache);
        }
    }

    pub(super) fn apply(
        &mut self,
        event: &BlockEvent,
        applied: &mut Applied,
        change: &mut dyn FnMut(Change<'_>),
    ) {
        match event {
            BlockEvent::Stored(stored) => self.store(stored, applied, change),
            BlockEvent::Removed {
                hashes,
                medium,
                group,
            } => {
                let place = Place {
                    medium: *medium,
                    group: group.index,
                };
                let at = self.caches.iter().position(|cache| cache.place == place);
                for hash in hashes {
                    self.remove(at, *medium, *hash, applied, change);
                }
            }
            BlockEvent::Cleared => {
                applied.cleared += 1;
                self.clear_own(change);
            }
        }
    }

    /// Ends every copy, and how its caches were. What an operator said of it outlives it.
    pub(super) fn clear(&mut self, change: &mut dyn FnMut(Change<'_>)) {
        for at in 0..self.caches.len() {
            self.empty(at, change);
        }
        self.caches.clear();
        self.reports.clear();
        self.orphans.clear();
        self.unsure_for = None;
    }

    /// Ends the engine's own copies. What was offloaded stays (`reset_prefix_cache` resets its
    /// connector on demand only).
    fn clear_own(&mut self, change: &mut dyn FnMut(Change<'_>)) {
        for at in 0..self.caches.len() {
            if self.caches[at].is_own() {
                self.empty(at, change);
            }
        }
        self.reports.clear();
        self.orphans.clear();
        // What comes after a cleared cache is all known: nothing unsure stays beside it.
        self.drop_unsure(change);
    }

    /// Whether it has a group whose blocks nobody counts, though hits depend on them.
    pub(super) fn has_unmodelled(&self) -> bool {
        self.caches.iter().any(|cache| cache.rule == Rule::Unknown)
    }

    fn empty(&mut self, at: usize, change: &mut dyn FnMut(Change<'_>)) {
        let cache = &mut self.caches[at];
        cache.physical = 0;
        cache.partial = KeyedMap::default();
        // Taken with its room: an emptied table is as slow to go through as a full one.
        let copies = std::mem::take(&mut cache.copies);
        self.len -= copies.len();
        for copies in copies.into_values() {
            match copies.key {
                Some(key) => change(Change::Drops(at as u8, key, copies.unsure)),
                None => self.unnamed -= 1,
            }
        }
    }

    /// Events were lost: whatever is held may be gone.
    pub(super) fn doubt(&mut self, change: &mut dyn FnMut(Change<'_>)) {
        if !std::mem::take(&mut self.any_sure) {
            return;
        }
        for (at, cache) in self.caches.iter_mut().enumerate() {
            for copies in cache.copies.values_mut().filter(|copies| !copies.unsure) {
                copies.unsure = true;
                copies
                    .key
                    .into_iter()
                    .for_each(|key| change(Change::Doubts(at as u8, key)));
            }
        }
        self.unsure_for = (self.len > 0).then(|| self.physical().max(1));
    }

    /// Gives up what is unsure.
    pub(super) fn drop_unsure(&mut self, change: &mut dyn FnMut(Change<'_>)) {
        self.unsure_for = None;
        for (at, cache) in self.caches.iter_mut().enumerate() {
            let gone = cache.copies.extract_if(|_, copies| copies.unsure);
            for (_, copies) in gone {
                self.len -= 1;
                cache.physical -= u64::from(copies.count);
                match copies.key {
                    Some(key) => change(Change::Drops(at as u8, key, true)),
                    None => self.unnamed -= 1,
                }
            }
        }
    }

    pub(super) fn expect_reports(&mut self, prompt: Vec<BlockKey>, reports: u32) {
        if self.reports.len() == REPORTS_MAX {
            self.reports.pop_front();
        }
        self.reports.push_back(Awaited {
            prompt,
            reports,
            came: Vec::new(),
        });
    }

    fn store(
        &mut self,
        stored: &Stored,
        applied: &mut Applied,
        change: &mut dyn FnMut(Change<'_>),
    ) {
        let blocks = stored.hashes.len() as u32;
        if stored.medium == Medium::Other {
            applied.elsewhere += blocks;
            return;
        }
        let Some(at) = self.cache_of(stored, change) else {
            applied.unmodelled += blocks;
            return;
        };
        if stored.medium == Medium::Gpu {
            self.shows_salt = Some(stored.extra_keys.is_some());
        }
        if self.is_partial(at, stored) {
            self.add_partial(at, &stored.hashes, applied);
            return;
        }
        let parent = self.parent_of(stored, at);
        let keys = keys_of(parent, stored);
        if self.main() == Some(at) {
            change(Change::Stores(&Seen {
                parent,
                keys: &keys,
                stored,
            }));
        }
        let last = keys.last().copied().flatten();
        if stored.medium == Medium::Gpu && self.is_report(at, stored, last) {
            applied.reported += blocks;
            return;
        }
        if let (None, Some(hash), Some(shape)) = (parent, stored.parent, shape_of(stored))
            && is_complete(stored)
        {
            self.orphans.push(shape, hash, stored.clone());
        }
        for (hash, key) in stored.hashes.iter().zip(keys) {
            self.add(at, *hash, key, applied, change);
        }
        if let Some(left) = self.unsure_for {
            // What was held then and is used no more has made room since.
            self.unsure_for = left.checked_sub(u64::from(blocks));
            if self.unsure_for.is_none() {
                self.drop_unsure(change);
            }
        }
    }

    /// The cache that a store is about; none where it is not modelled.
    fn cache_of(&mut self, stored: &Stored, change: &mut dyn FnMut(Change<'_>)) -> Option<usize> {
        let place = Place {
            medium: stored.medium,
            group: stored.group.index,
        };
        let shape = shape_of(stored);
        let Some(at) = self.caches.iter().position(|cache| cache.place == place) else {
            if self.caches.len() == CACHES_MAX {
                return None;
            }
            self.caches
                .push(Cache::new(place, stored.group.rule, shape));
            return (stored.group.rule != Rule::Unknown).then_some(self.caches.len() - 1);
        };
        let known = self.caches[at].shape;
        match (known, shape) {
            (None, _) => self.caches[at].shape = shape,
            // What came before were beginnings of blocks.
            (Some(known), Some(shape)) if known.block_size < shape.block_size => {
                let names = |(hash, copies): (&EngineHash, &Copies)| (*hash, copies.count);
                let begun: Vec<_> = self.caches[at].copies.iter().map(names).collect();
                self.empty(at, change);
                self.caches[at].partial.extend(begun);
                self.caches[at].shape = Some(shape);
            }
            (Some(known), Some(shape)) if known.lookahead != shape.lookahead => {
                self.caches[at].rule = Rule::Unknown;
                self.empty(at, change);
            }
            _ => {}
        }
        (self.caches[at].rule != Rule::Unknown).then_some(at)
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

    fn add(
        &mut self,
        at: usize,
        hash: EngineHash,
        key: Option<BlockKey>,
        applied: &mut Applied,
        change: &mut dyn FnMut(Change<'_>),
    ) {
        let key = key.or_else(|| self.name_of(hash, at));
        applied.stored += 1;
        self.any_sure = true;
        let cache = &mut self.caches[at];
        if let Some(copies) = cache.copies.get_mut(&hash) {
            if copies.unsure {
                // Of those before the gap nobody knows how many are left.
                cache.physical -= u64::from(copies.count);
                (copies.unsure, copies.count) = (false, 0);
                copies
                    .key
                    .into_iter()
                    .for_each(|key| change(Change::Confirms(at as u8, key)));
            }
            copies.count += 1;
            cache.physical += 1;
        } else if self.len < COPIES_MAX {
            let copies = Copies {
                key,
                count: 1,
                unsure: false,
            };
            cache.copies.insert(hash, copies);
            cache.physical += 1;
            self.len += 1;
            match key {
                Some(key) => change(Change::Holds(at as u8, key)),
                None => self.unnamed += 1,
            }
        } else {
            applied.over_limit += 1;
        }
        if let Some(key) = key
            && self.unnamed > 0
        {
            self.name(at, hash, key, change);
        }
    }

    /// A report starts at the prompt's start, names only what is held, and was announced. Those of a
    /// window name what is not held, too: every block before it.
    fn is_report(&mut self, at: usize, stored: &Stored, last: Option<BlockKey>) -> bool {
        let cache = &self.caches[at];
        let held = |hash| cache.rule != Rule::All || cache.copies.contains_key(hash);
        if self.reports.is_empty() || stored.parent.is_some() || !stored.hashes.iter().all(held) {
            return false;
        }
        let Some(end) = stored.hashes.len().checked_sub(1) else {
            return false;
        };
        let of = |awaited: &Awaited| {
            let came = awaited.came.get(at).copied().unwrap_or(0);
            came < awaited.reports && last.is_some() && awaited.prompt.get(end).copied() == last
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
        at: Option<usize>,
        medium: Medium,
        hash: EngineHash,
        applied: &mut Applied,
        change: &mut dyn FnMut(Change<'_>),
    ) {
        let Some(at) = at else {
            match medium {
                Medium::Other => applied.elsewhere += 1,
                _ => applied.unknown += 1,
            }
            return;
        };
        let cache = &mut self.caches[at];
        let Some(copies) = cache.copies.get_mut(&hash) else {
            match (cache.partial.get_mut(&hash), cache.rule) {
                (Some(count), _) if *count > 1 => *count -= 1,
                (Some(_), _) => drop(cache.partial.remove(&hash)),
                (None, Rule::Unknown) => applied.unmodelled += 1,
                (None, _) => applied.unknown += 1,
            }
            return;
        };
        applied.removed += 1;
        cache.physical -= 1;
        copies.count -= 1;
        if copies.count > 0 {
            return;
        }
        let Copies { key, unsure, .. } = *copies;
        cache.copies.remove(&hash);
        self.len -= 1;
        match key {
            Some(key) => change(Change::Drops(at as u8, key, unsure)),
            None => self.unnamed -= 1,
        }
    }
}

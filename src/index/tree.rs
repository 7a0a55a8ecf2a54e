//! Prompts as a tree of runs, and who holds how much of each.
//!
//! A run is a row of blocks with nothing branching off between them. Whoever holds blocks of a run
//! nearly always holds the first so many: engines evict from a prompt's end. So a holder takes one
//! entry of 8 bytes in a run, not one for each block, and an entry says more than it seems to: that
//! *everything* up to there is held. Along a prompt that can only end, never begin again, which is
//! what makes the shortcuts of [`Tree::depths`] exact. A block that is held although one before it is
//! not is *loose*: it waits in a set beside the tree, in nobody's depth, until the hole is filled.
//!
//! What must hold, for every holder and between any two calls:
//! 1. an entry of `len` blocks in a run has `0 < len <= run.len`;
//! 2. an entry in a run means an entry of full length in the run before it;
//! 3. `below` of an entry counts the runs behind its run that have one of the same holder;
//! 4. a loose block stands behind none that its holder holds in its depth;
//! 5. `refs` of a block counts those who hold it, loosely or not, and the last block of a run with
//!    nothing behind it has some.

use std::collections::HashSet;
use std::ops::Range;

use smallvec::SmallVec;

use crate::blocks::BlockKey;
use crate::index::keyed::{Keyed, KeyedMap};
use crate::index::slab::Slab;

mod hold;
mod shape;
mod survey;
#[cfg(test)]
mod sound;

pub(super) use survey::Seen;

/// Blocks in a run at most: splitting or joining one takes a few microseconds.
const RUN_MAX: usize = 1024;

const NONE: u32 = u32::MAX;

/// Trees in the forest.
pub(super) const TREES: usize = 64;

const PLACE_BITS: u32 = u32::BITS - TREES.ilog2();

/// A block of the forest: which tree, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct BlockId(std::num::NonZeroU32);

impl BlockId {
    #[inline]
    fn new(tree: u32, place: u32) -> Self {
        let id = tree << PLACE_BITS | (place + 1);
        Self(std::num::NonZeroU32::new(id).expect("one was added"))
    }

    #[inline]
    pub fn tree(self) -> usize {
        (self.0.get() >> PLACE_BITS) as usize
    }

    #[inline]
    fn place(self) -> u32 {
        (self.0.get() & ((1 << PLACE_BITS) - 1)) - 1
    }
}

/// Blocks of one tree at most.
const BLOCKS_MAX: usize = (1 << PLACE_BITS) - 2;

/// What a block takes beside its part of its run: lists are a quarter larger than what they hold.
pub(super) const BLOCK_BYTES: usize = size_of::<Block>() + size_of::<Link>() * 5 / 4;

/// Who holds: one cache of one endpoint. Numbers are small, and given out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Holder(pub(super) u16);

/// How many leading blocks of a chain each holder has, by its number: zero for most.
#[derive(Debug, Clone, Default)]
pub struct Depths {
    of: Vec<u32>,
}

impl Depths {
    /// Of one.
    #[must_use]
    pub fn of(&self, holder: Holder) -> u32 {
        self.of.get(usize::from(holder.0)).copied().unwrap_or(0)
    }

    pub(super) fn clear(&mut self) {
        self.of.fill(0);
    }

    /// Of those with an entry in a run that stands behind so many blocks, and is so much the chain's.
    #[inline]
    fn set(&mut self, entries: &[Entry], passed: u32, same: u32) {
        let Some(last) = entries.last() else { return };
        let needed = usize::from(last.holder.0) + 1;
        if needed > self.of.len() {
            self.of.resize(needed, 0);
        }
        let of = &mut self.of[..needed];
        for entry in entries {
            if let Some(of) = of.get_mut(usize::from(entry.holder.0)) {
                *of = passed + u32::from(entry.len).min(same);
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Tree {
    number: u32,
    runs: Slab<Run>,
    blocks: Slab<Block>,
    /// Runs by their first key.
    starts: KeyedMap<BlockKey, u32>,
    loose: HashSet<Loose, Keyed>,
    /// Loose blocks of each holder.
    loose_of: Vec<u32>,
    /// Entries in all runs.
    entries: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    run: u32,
    /// Its place in the run.
    at: u16,
    refs: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Loose(u64);

impl Loose {
    fn new(holder: Holder, place: u32) -> Self {
        Self(u64::from(holder.0) << u32::BITS | u64::from(place))
    }
}

/// A block of a run: its key, and its number. 12 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(4))]
struct Link {
    key: BlockKey,
    block: u32,
}

#[derive(Debug)]
struct Run {
    links: Vec<Link>,
    /// Sorted.
    entries: SmallVec<[Entry; 2]>,
    /// The run before it.
    parent: u32,
    /// The runs behind it, in a ring of neighbours.
    first_child: u32,
    next: u32,
    previous: u32,
    /// When a store last named its end, by the clock of the index.
    touched: u32,
    /// It is to go for room.
    condemned: bool,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            links: Vec::new(),
            entries: SmallVec::new(),
            parent: NONE,
            first_child: NONE,
            next: NONE,
            previous: NONE,
            touched: 0,
            condemned: false,
        }
    }
}

/// That a holder has the first `len` blocks of a run, and everything before.
#[derive(Debug, Clone, Copy)]
struct Entry {
    holder: Holder,
    len: u16,
    below: u32,
}

impl Run {
    fn len(&self) -> usize {
        self.links.len()
    }

    /// Of its blocks, and of their rows in the books, of which each takes some 24.
    fn bytes(&self) -> usize {
        let rows: usize = self
            .entries
            .iter()
            .map(|entry| usize::from(entry.len))
            .sum();
        (size_of::<Link>() + size_of::<Block>()) * self.len() + 24 * rows
    }

    #[inline]
    fn entry(&self, holder: Holder) -> Result<usize, usize> {
        self.entries
            .binary_search_by_key(&holder, |entry| entry.holder)
    }

    /// Blocks that a holder has in its depth.
    fn held(&self, holder: Holder) -> usize {
        let entry = self.entry(holder);
        entry.map_or(0, |at| usize::from(self.entries[at].len))
    }
}

impl Tree {
    pub fn new(number: u32) -> Self {
        Self {
            number,
            runs: Slab::default(),
            blocks: Slab::default(),
            starts: KeyedMap::default(),
            loose: HashSet::default(),
            loose_of: Vec::new(),
            entries: 0,
        }
    }

    pub fn number(&self) -> usize {
        self.number as usize
    }

    /// Blocks that it knows.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// What it takes, near enough; what is free, and is given out again, is not counted.
    pub fn bytes(&self) -> usize {
        self.runs.len() * size_of::<Run>()
            + self.blocks.len() * BLOCK_BYTES
            + self.entries * size_of::<Entry>()
            + self.starts.len() * 24
            + self.loose.len() * 16
            + self.loose_of.capacity() * 4
    }

    pub fn key(&self, block: BlockId) -> BlockKey {
        let Block { run, at, .. } = self.blocks[block.place()];
        self.runs[run].links[usize::from(at)].key
    }

    /// When its run was last touched.
    pub fn age(&self, block: BlockId) -> u32 {
        self.runs[self.blocks[block.place()].run].touched
    }

    /// All numbers of runs, a few at a time: for whoever looks at all of them and lets others in between.
    pub fn runs(&self) -> Range<u32> {
        self.runs.numbers()
    }

    /// Of every run of these behind which nothing stands, when it was last touched and about how many
    /// bytes go with it.
    pub fn leaves(&self, runs: Range<u32>) -> impl Iterator<Item = (u32, usize)> + '_ {
        let runs = runs.filter_map(|run| self.runs.get(run));
        let leaves = runs.filter(|run| run.first_child == NONE && run.len() > 0);
        leaves.map(|run| (run.touched, run.bytes()))
    }

    /// Marks the leaves of these runs that were last touched before `until`, and of those touched then
    /// as many as take `left` bytes; marks of others end. Tells who may hold them.
    pub fn condemn(
        &mut self,
        runs: Range<u32>,
        until: u32,
        left: &mut usize,
        holders: &mut HashSet<Holder>,
    ) {
        for run in runs {
            let Some(of) = self.runs.get_mut(run) else {
                return;
            };
            let is_leaf = of.first_child == NONE && of.len() > 0;
            of.condemned = is_leaf && of.touched <= until && (of.touched < until || *left > 0);
            if of.condemned {
                if of.touched == until {
                    *left = left.saturating_sub(of.bytes());
                }
                holders.extend(of.entries.iter().map(|entry| entry.holder));
            }
        }
        let loose = (0u16..)
            .zip(&self.loose_of)
            .filter(|(_, blocks)| **blocks > 0);
        holders.extend(loose.map(|(holder, _)| Holder(holder)));
    }

    /// Of a block that is to go for room: its run, and its place there.
    pub fn condemned(&self, block: BlockId) -> Option<(u32, u16)> {
        let Block { run, at, .. } = self.blocks[block.place()];
        let of = &self.runs[run];
        (of.condemned && of.first_child == NONE).then_some((run, at))
    }

    pub fn parent(&self, block: BlockId) -> Option<BlockId> {
        let Block { run, at, .. } = self.blocks[block.place()];
        let run = &self.runs[run];
        let place = match at.checked_sub(1) {
            Some(at) => run.links[usize::from(at)].block,
            None if run.parent == NONE => return None,
            None => self.runs[run.parent].links.last()?.block,
        };
        Some(BlockId::new(self.number, place))
    }

    /// The runs of a chain, as far as any is known: the blocks of the chain before each, and how many of
    /// its own are the chain's. Touches each run once: of a run that is the chain's own to its end the
    /// last key says so, since a key stands for all before it; where they part is found by halves.
    fn runs_of(&self, keys: &[BlockKey]) -> impl Iterator<Item = (usize, &Run, usize)> {
        let (mut before, mut passed, mut parted) = (NONE, 0, false);
        std::iter::from_fn(move || {
            let rest = keys.get(passed..).filter(|_| !parted)?;
            let run = *self.starts.get(rest.first()?)?;
            let of = Some(&self.runs[run]).filter(|of| of.parent == before)?;
            let same = same(&of.links, rest);
            parted = same < of.len();
            before = run;
            passed += same;
            Some((passed - same, of, same))
        })
    }

    /// How many leading blocks of a chain each holder has.
    pub fn depths(&self, keys: &[BlockKey], depths: &mut Depths) {
        for (passed, run, same) in self.runs_of(keys) {
            depths.set(&run.entries, passed as u32, same as u32);
        }
    }

    /// The leading blocks of a chain, as far as any is known.
    pub fn path(&self, keys: &[BlockKey]) -> Vec<BlockId> {
        let runs = self.runs_of(keys);
        let links = runs.flat_map(|(_, run, same)| &run.links[..same]);
        let blocks = links.map(|link| BlockId::new(self.number, link.block));
        blocks.collect()
    }

    /// The last block of a chain.
    pub fn last(&self, keys: &[BlockKey]) -> Option<BlockId> {
        let (passed, run, same) = self.runs_of(keys).last()?;
        let link = run.links[..same].last()?;
        (passed + same == keys.len()).then(|| BlockId::new(self.number, link.block))
    }

    /// Whether a holder has a block without having all before it.
    pub fn is_loose(&self, holder: Holder, block: BlockId) -> bool {
        self.has_loose(holder) && self.loose.contains(&Loose::new(holder, block.place()))
    }

    pub fn has_loose(&self, holder: Holder) -> bool {
        let of = self.loose_of.get(usize::from(holder.0));
        of.is_some_and(|blocks| *blocks > 0)
    }

    /// Whether a holder has a block.
    pub fn is_held(&self, holder: Holder, block: BlockId) -> bool {
        let Block { run, at, .. } = self.blocks[block.place()];
        usize::from(at) < self.runs[run].held(holder) || self.is_loose(holder, block)
    }
}

/// How many leading keys are equal.
#[inline]
fn same(links: &[Link], keys: &[BlockKey]) -> usize {
    let both = links.len().min(keys.len());
    common(0..both, |at| keys[at] == { links[at].key })
}

/// Until where in a range two paths are equal; by halves, since a key and a block stand for all before them.
#[inline]
pub(super) fn common(range: Range<usize>, equal: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (range.start, range.end);
    // Mostly to the end.
    if low < high && equal(high - 1) {
        return high;
    }
    while low < high {
        let middle = (low + high) / 2;
        match equal(middle) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

//! Engine hash → copies: one endpoint's own names for its blocks.
//!
//! The largest table of the index, so it is made for this: 16 bytes a row and no other, and no step
//! that touches more than a few hundred rows. Each row lies where the high bits of its mixed hash
//! point, or in one of the next slots, and all are in the order of their mixed hashes (linear probing
//! with sorted runs: Amble and Knuth, 1974). So a search ends at the first that is larger, and rows
//! move into another table from front to back, a few with every change, as two sorted lists merge; page
//! by page the memory goes with them.

mod mixing;
mod table;

use crate::blocks::EngineHash;
use crate::index::prefetch::prefetch;
use crate::index::tree::BlockId;
use mixing::Mixing;
use table::{HOMES_MIN, PAGE, Page, Row, Table};

/// Slots that each change empties while rows move, a microsecond at most. A move ends long before the
/// next has to begin: after the 128th part of a table's slots in changes, of the quarter that it takes.
const MOVED_AT_ONCE: usize = 128;

/// Rows in 64 bytes, which a processor fetches at once. A hash is in the first such line or the next, and
/// what moves to make room for it seldom reaches beyond the third.
const ROWS_IN_LINE: usize = 64 / size_of::<Row>();

/// The copies that an engine hash stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copies {
    /// None for an orphan: what it holds is not known.
    pub block: Option<BlockId>,
    pub count: u32,
    /// Last heard of before a gap: it may be gone.
    pub unsure: bool,
}

/// Copies by engine hash.
#[derive(Debug)]
pub(super) struct CopyMap {
    mixing: Mixing,
    /// Where rows are, or move to.
    to: Table,
    /// Where they move from. Those with a home before `moved` have done so.
    from: Table,
    moved: usize,
    /// A page that `from` needs no more.
    spare: Option<Page>,
    len: usize,
}

/// Nothing is to be moved.
const ALL: usize = usize::MAX;

/// Where a hash stands, or would.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    name: u64,
    at: u32,
    is_moved: bool,
}

impl Default for CopyMap {
    fn default() -> Self {
        Self {
            mixing: Mixing::default(),
            to: Table::new(HOMES_MIN),
            from: Table::default(),
            moved: ALL,
            spare: None,
            len: 0,
        }
    }
}

impl CopyMap {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> usize {
        let spare = self.spare.as_ref().map_or(0, |page| page.len());
        self.to.bytes() + self.from.bytes() + spare * size_of::<Row>()
    }

    #[inline]
    fn is_moved(&self, name: u64) -> bool {
        self.from.home(name) < self.moved
    }

    #[inline]
    fn table(&self, is_moved: bool) -> &Table {
        if is_moved { &self.to } else { &self.from }
    }

    #[inline]
    fn table_mut(&mut self, is_moved: bool) -> &mut Table {
        if is_moved {
            &mut self.to
        } else {
            &mut self.from
        }
    }

    /// Asks for the memory where these hashes stand, all at once: one after the other each would be
    /// waited for.
    pub fn prefetch(&self, hashes: &[EngineHash]) {
        for hash in hashes {
            let name = self.mixing.mixed(hash.0);
            let table = self.table(self.is_moved(name));
            let home = table.home(name);
            let rows = [0, 1, 2].map(|line| table.row(home + line * ROWS_IN_LINE));
            rows.into_iter().flatten().for_each(prefetch);
        }
    }

    /// Where a hash stands; where it would, if it does not.
    #[inline]
    pub fn find(&self, hash: EngineHash) -> Result<Slot, Slot> {
        let name = self.mixing.mixed(hash.0);
        let is_moved = self.is_moved(name);
        let slot = |at: usize| Slot {
            name,
            at: at as u32,
            is_moved,
        };
        match self.table(is_moved).search(name) {
            Ok(at) => Ok(slot(at)),
            Err(at) => Err(slot(at)),
        }
    }

    pub fn get(&self, hash: EngineHash) -> Option<Copies> {
        self.find(hash).ok().map(|slot| self.at(slot))
    }

    /// The copies in a slot that [`Self::find`] has just found.
    #[inline]
    pub fn at(&self, slot: Slot) -> Copies {
        let row = self.table(slot.is_moved).row(slot.at as usize);
        row.expect("it was found there").copies()
    }

    #[inline]
    pub fn set(&mut self, slot: Slot, copies: Copies) {
        let row = Row::new(slot.name, copies);
        let table = self.table_mut(slot.is_moved);
        table.put(slot.at as usize, row, &mut None);
    }

    /// Puts copies where `find` has just said that a hash would stand.
    #[inline]
    pub fn insert(&mut self, slot: Slot, copies: Copies) {
        let row = Row::new(slot.name, copies);
        let table = self.table_mut(slot.is_moved);
        table.insert(slot.at as usize, row);
        self.len += 1;
        if self.moved != ALL {
            self.step();
        } else if self.len > self.to.homes / 4 * 3 {
            self.resize(self.to.homes * 3 / 2);
        }
    }

    /// Takes a row that `find` has just found.
    #[inline]
    pub fn remove(&mut self, slot: Slot) {
        let table = self.table_mut(slot.is_moved);
        table.remove(slot.at as usize);
        self.len -= 1;
        if self.moved != ALL {
            self.step();
        } else if self.len < self.to.homes / 4 && self.to.homes > HOMES_MIN {
            self.resize(self.len * 5 / 3);
        }
    }

    /// Begins to move all rows into a table with so many homes, or a few more.
    #[cold]
    fn resize(&mut self, homes: usize) {
        self.from = std::mem::replace(&mut self.to, Table::new(homes));
        self.moved = 0;
        self.step();
    }

    /// Moves some rows on. It stops at a free slot, which no row has passed on the way from its home.
    fn step(&mut self) {
        let Self {
            to, from, spare, ..
        } = self;
        let begun = self.moved;
        let mut pages = begun / PAGE;
        // Names that are yet to come have this one's home or a later one, in `to` too.
        let upper = ((begun as u64) << 32).div_ceil(from.homes as u64);
        let home = to.home(upper.min(u32::MAX.into()) << 32);
        let (mut at, mut next) = (begun, to.free(home));
        while let Some(page) = from.pages.get(pages) {
            for row in &page[at % PAGE..] {
                if row.is_empty() && at >= begun + MOVED_AT_ONCE {
                    self.moved = at;
                    for page in &mut from.pages[begun / PAGE..pages] {
                        let mut page = std::mem::take(page);
                        page.fill(Row::default());
                        *spare = Some(page);
                    }
                    return;
                }
                // Whether a slot is empty is chance: without a branch on it. What is empty goes where
                // the next row will.
                let slot = to.home(row.name).max(next);
                to.put(slot, *row, spare);
                next = slot + usize::from(!row.is_empty());
                at += 1;
            }
            pages += 1;
        }
        (self.from, self.moved) = (Table::default(), ALL);
        self.spare = None;
    }

    pub fn iter(&self) -> impl Iterator<Item = (EngineHash, Copies)> + '_ {
        let waits = |row: &&Row| !self.is_moved(row.name);
        let rows = self.to.rows().chain(self.from.rows().filter(waits));
        rows.map(|row| (EngineHash(self.mixing.unmixed(row.name)), row.copies()))
    }

    /// Calls for all copies, which may be changed.
    pub fn each_mut(&mut self, mut change: impl FnMut(&mut Copies)) {
        // Those that have moved are changed where they are of no account, too.
        let pages = self.to.pages.iter_mut().chain(&mut self.from.pages);
        for row in pages.flatten().filter(|row| !row.is_empty()) {
            let mut copies = row.copies();
            change(&mut copies);
            *row = Row::new(row.name, copies);
        }
    }

    /// Drops all that are not to be kept. The others get a table of their own: removals in the order of
    /// the places would leave what is left crowded at one end, and take the square of their number.
    pub fn retain(&mut self, mut keep: impl FnMut(&Copies) -> bool) {
        let kept: Vec<_> = self.iter().filter(|(_, copies)| keep(copies)).collect();
        *self = Self {
            mixing: self.mixing,
            to: Table::new(kept.len() * 5 / 3),
            ..Self::default()
        };
        for (hash, copies) in kept {
            match self.find(hash) {
                Ok(slot) => self.set(slot, copies),
                Err(slot) => self.insert(slot, copies),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn copies(count: u32) -> Copies {
        Copies {
            block: None,
            count,
            unsure: count.is_multiple_of(2),
        }
    }

    fn put(map: &mut CopyMap, hash: u64, count: u32) {
        match map.find(EngineHash(hash)) {
            Ok(slot) => map.set(slot, copies(count)),
            Err(slot) => map.insert(slot, copies(count)),
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_an_ordered_map_holds(
            steps in prop::collection::vec((0u64..700, 0u32..4), 0..6_000),
            step in prop_oneof![Just(1u64), Just(1 << 20), Just(1 << 57)],
        ) {
            let (mut map, mut model) = (CopyMap::default(), BTreeMap::new());
            for (hash, count) in steps {
                let hash = hash.wrapping_mul(step);
                if count > 0 {
                    put(&mut map, hash, count);
                    model.insert(hash, copies(count));
                } else if let Ok(slot) = map.find(EngineHash(hash)) {
                    map.remove(slot);
                    prop_assert!(model.remove(&hash).is_some());
                } else {
                    prop_assert!(!model.contains_key(&hash));
                }
            }
            prop_assert_eq!(map.len(), model.len());
            for (hash, copies) in &model {
                prop_assert_eq!(map.get(EngineHash(*hash)), Some(*copies));
            }
            let held: BTreeMap<u64, Copies> = map.iter().map(|(hash, of)| (hash.0, of)).collect();
            prop_assert_eq!(&held, &model);
            map.retain(|copies| !copies.unsure);
            model.retain(|_, copies| !copies.unsure);
            let held: BTreeMap<u64, Copies> = map.iter().map(|(hash, of)| (hash.0, of)).collect();
            prop_assert_eq!(&held, &model);
            prop_assert_eq!(map.len(), model.len());
        }
    }

    #[test]
    fn it_takes_little_more_than_its_rows_while_it_grows_and_shrinks() {
        let mut map = CopyMap::default();
        for hash in 0..200_000u64 {
            put(&mut map, hash, 1);
            if hash > 2_000 && hash % 1_000 == 0 {
                let per_row = map.bytes() as f64 / map.len() as f64;
                assert!(per_row < 34.0, "{per_row} bytes a row of {hash}");
            }
        }
        for hash in 0..199_900 {
            let slot = map.find(EngineHash(hash)).expect("put before");
            map.remove(slot);
        }
        assert!(map.bytes() < 80_000, "{} bytes", map.bytes());
    }

    /// Not in the order of their places: what is left would crowd at one end.
    #[test]
    fn dropping_all_of_many_takes_about_as_long_as_putting_them() {
        let (mut map, begun) = (CopyMap::default(), Instant::now());
        (0..100_000).for_each(|hash| put(&mut map, hash, 2));
        let (filled, begun) = (begun.elapsed(), Instant::now());
        map.retain(|copies| !copies.unsure);
        let dropped = begun.elapsed();
        assert_eq!(map.len(), 0);
        assert!(dropped < 8 * filled, "{dropped:?} after {filled:?}");
    }

    #[test]
    fn small_ones_keep_all_while_they_grow_and_shrink() {
        for _ in 0..300 {
            let mut map = CopyMap::default();
            for hash in 0..700 {
                put(&mut map, hash, 1);
                assert!(map.get(EngineHash(hash / 2)).is_some());
            }
            for hash in 0..700 {
                let slot = map.find(EngineHash(hash)).expect("put before");
                map.remove(slot);
                assert!(hash == 699 || map.get(EngineHash(699 - (699 - hash) / 2)).is_some());
            }
            assert_eq!(map.iter().count(), 0);
        }
    }
}

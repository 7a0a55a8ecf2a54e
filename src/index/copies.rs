//! Engine hash → copies: one endpoint's own names for its blocks.
//!
//! The largest table of the index, so it is made for this: 16 bytes a row and no other, and no step
//! that touches more than a few hundred rows. Rows lie in segments of up to 4 KiB by the low bits of
//! the mixed hash, and a full one is parted in two (extendible hashing: Fagin et al., TODS 1979);
//! within one each lies where its high bits point, or in the next free slot behind.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::blocks::EngineHash;
use crate::index::prefetch::prefetch;
use crate::index::tree::BlockId;

/// Slots that a segment may have. When the most are too few it is parted in two, and each half has a
/// little more than a hundred rows, which the size before fits.
const SIZES: [usize; 4] = [32, 72, 160, SLOTS_MAX];
const SLOTS_MAX: usize = 256;

/// Rows of two segments that become one again.
const ROWS_MIN: usize = SLOTS_MAX / 3;

/// The copies that an engine hash stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copies {
    /// None for an orphan: what it holds is not known.
    pub block: Option<BlockId>,
    pub count: u32,
    /// Last heard of before a gap: it may be gone.
    pub unsure: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Row {
    /// The mixed hash.
    name: u64,
    block: Option<BlockId>,
    /// Copies, and the highest bit for unsure; 0 where the slot is empty.
    count: u32,
}

const UNSURE: u32 = 1 << 31;

impl Row {
    fn new(name: u64, copies: Copies) -> Self {
        let Copies {
            block,
            count,
            unsure,
        } = copies;
        let count = count.clamp(1, UNSURE - 1) | if unsure { UNSURE } else { 0 };
        Self { name, block, count }
    }

    fn copies(self) -> Copies {
        Copies {
            block: self.block,
            count: self.count & !UNSURE,
            unsure: self.count & UNSURE != 0,
        }
    }

    fn is_empty(self) -> bool {
        self.count == 0
    }
}

/// Copies by engine hash.
#[derive(Debug)]
pub(super) struct CopyMap {
    mixing: Mixing,
    /// Which segment, by as many low bits of a name as it has entries for; a segment has several where
    /// it goes by fewer bits.
    directory: Vec<u32>,
    segments: Vec<Segment>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Segment {
    rows: Box<[Row]>,
    len: u16,
    /// Low bits that its rows share.
    bits: u8,
}

/// Where a hash stands, or would.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    name: u64,
    segment: u32,
    at: u32,
}

impl Default for CopyMap {
    fn default() -> Self {
        Self {
            mixing: Mixing::default(),
            directory: vec![0],
            segments: vec![Segment::of(&[], 0, 0)],
            len: 0,
        }
    }
}

impl CopyMap {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> usize {
        let rows: usize = self.segments.iter().map(|of| of.rows.len()).sum();
        rows * size_of::<Row>()
            + self.segments.capacity() * size_of::<Segment>()
            + self.directory.capacity() * size_of::<u32>()
    }

    #[inline]
    fn segment_of(&self, name: u64) -> u32 {
        self.directory[name as usize & (self.directory.len() - 1)]
    }

    /// Asks for the memory where these hashes stand, all at once: one after the other each would be
    /// waited for.
    pub fn prefetch(&self, hashes: &[EngineHash]) {
        for hash in hashes {
            let name = self.mixing.mixed(hash.0);
            let rows = &self.segments[self.segment_of(name) as usize].rows;
            rows.get(home(name, rows.len()))
                .into_iter()
                .for_each(prefetch);
        }
    }

    /// Where a hash stands; where it would, if it does not.
    #[inline]
    pub fn find(&self, hash: EngineHash) -> Result<Slot, Slot> {
        let name = self.mixing.mixed(hash.0);
        let segment = self.segment_of(name);
        let slot = |at: usize| Slot {
            name,
            segment,
            at: at as u32,
        };
        match self.segments[segment as usize].search(name) {
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
        self.segments[slot.segment as usize].rows[slot.at as usize].copies()
    }

    #[inline]
    pub fn set(&mut self, slot: Slot, copies: Copies) {
        self.segments[slot.segment as usize].rows[slot.at as usize] = Row::new(slot.name, copies);
    }

    /// Puts copies where `find` has just said that a hash would stand.
    #[inline]
    pub fn insert(&mut self, slot: Slot, copies: Copies) {
        let row = Row::new(slot.name, copies);
        self.len += 1;
        if !self.segments[slot.segment as usize].insert(slot.at as usize, row) {
            self.make_room(row);
        }
    }

    /// Puts a row where there was no room.
    fn make_room(&mut self, row: Row) {
        loop {
            let segment = self.segment_of(row.name);
            let of = &self.segments[segment as usize];
            match of.rows.len() {
                SLOTS_MAX => self.part(segment),
                slots => self.segments[segment as usize] = of.fitted(slots + 1),
            }
            let segment = self.segment_of(row.name);
            let of = &mut self.segments[segment as usize];
            let (Ok(at) | Err(at)) = of.search(row.name);
            if of.insert(at, row) {
                return;
            }
        }
    }

    /// Takes a row that `find` has just found.
    #[inline]
    pub fn remove(&mut self, slot: Slot) {
        let of = &mut self.segments[slot.segment as usize];
        of.remove(slot.at as usize);
        self.len -= 1;
        let rows = usize::from(of.len);
        if rows < of.rows.len() / 4 && of.rows.len() > SIZES[0] {
            *of = of.fitted(0);
        }
        if rows < ROWS_MIN / 4 && of.bits > 0 {
            self.join(slot.name);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (EngineHash, Copies)> + '_ {
        let rows = self.segments.iter().flat_map(Segment::held);
        rows.map(|row| (EngineHash(self.mixing.unmixed(row.name)), row.copies()))
    }

    /// Calls for all copies, which may be changed.
    pub fn each_mut(&mut self, mut change: impl FnMut(&mut Copies)) {
        let rows = self.segments.iter_mut().flat_map(|of| of.rows.iter_mut());
        for row in rows.filter(|row| !row.is_empty()) {
            let mut copies = row.copies();
            change(&mut copies);
            *row = Row::new(row.name, copies);
        }
    }

    /// Drops all that are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&Copies) -> bool) {
        let mut dropped = Vec::new();
        for row in self.segments.iter().flat_map(Segment::held) {
            if !keep(&row.copies()) {
                dropped.push(EngineHash(self.mixing.unmixed(row.name)));
            }
        }
        for hash in dropped {
            self.find(hash)
                .into_iter()
                .for_each(|slot| self.remove(slot));
        }
    }

    /// Moves half of a segment's rows into a new one.
    fn part(&mut self, segment: u32) {
        let of = &self.segments[segment as usize];
        let bits = of.bits + 1;
        // Without a branch for each row: whether a slot is empty, and where its row goes, is chance.
        let (mut halves, mut rows) = ([[Row::default(); SLOTS_MAX]; 2], [0; 2]);
        for row in of.in_order() {
            let half = (row.name >> (bits - 1) & 1) as usize;
            halves[half][rows[half]] = *row;
            rows[half] += usize::from(!row.is_empty());
        }
        let (kept, moved) = (&halves[0][..rows[0]], &halves[1][..rows[1]]);
        let added = self.segments.len() as u32;
        self.segments[segment as usize] = Segment::of(kept, 0, bits);
        self.segments.push(Segment::of(moved, 0, bits));
        if 1 << bits > self.directory.len() {
            self.directory.extend_from_within(..);
        }
        for (at, entry) in self.directory.iter_mut().enumerate() {
            if *entry == segment && at >> (bits - 1) & 1 == 1 {
                *entry = added;
            }
        }
    }

    /// Joins a segment with the one that it was parted from, if both have few rows.
    fn join(&mut self, name: u64) {
        let segment = self.segment_of(name);
        let bits = self.segments[segment as usize].bits;
        let other = self.segment_of(name ^ 1 << (bits - 1));
        let (one, two) = (
            &self.segments[segment as usize],
            &self.segments[other as usize],
        );
        if two.bits != bits || usize::from(one.len + two.len) > ROWS_MIN {
            return;
        }
        let rows: Vec<Row> = one.held().chain(two.held()).collect();
        self.segments[segment as usize] = Segment::of(&rows, 0, bits - 1);
        let last = self.segments.len() as u32 - 1;
        self.segments.swap_remove(other as usize);
        for entry in &mut self.directory {
            if *entry == other {
                *entry = segment;
            }
            if *entry == last {
                *entry = other;
            }
        }
    }
}

impl Segment {
    fn of(rows: &[Row], slots_min: usize, bits: u8) -> Self {
        let fits = |slots: &usize| rows.len() <= slots / 10 * 7 && *slots >= slots_min;
        let slots = SIZES.into_iter().find(fits).unwrap_or(SLOTS_MAX);
        let mut segment = Self {
            rows: vec![Row::default(); slots].into_boxed_slice(),
            len: rows.len() as u16,
            bits,
        };
        let (mut last, mut next) = (0, 0);
        for row in rows {
            let home = home(row.name, slots);
            // As long as homes come in order, what lies between one and the next free slot is taken.
            let to = match home.max(next) {
                to if home >= last && to < slots => to,
                _ => {
                    let (Ok(at) | Err(at)) = segment.search(row.name);
                    at
                }
            };
            segment.rows[to] = *row;
            (last, next) = (last.max(home), next.max(to + 1));
        }
        segment
    }

    /// All slots from a free one on, around the end: the homes of their rows are nearly in order.
    fn in_order(&self) -> impl Iterator<Item = &Row> {
        let free = self.rows.iter().position(|row| row.is_empty());
        let (before, from_free) = self.rows.split_at(free.unwrap_or(0));
        from_free.iter().chain(before)
    }

    /// The same rows with as many slots as they need, and so many at least.
    fn fitted(&self, slots_min: usize) -> Self {
        let (mut held, mut rows) = ([Row::default(); SLOTS_MAX], 0);
        for row in self.in_order() {
            held[rows] = *row;
            rows += usize::from(!row.is_empty());
        }
        Self::of(&held[..rows], slots_min, self.bits)
    }

    fn held(&self) -> impl Iterator<Item = Row> + '_ {
        self.rows.iter().copied().filter(|row| !row.is_empty())
    }

    /// The slot of a name, or the free one where it belongs. There is always a free one.
    #[inline]
    fn search(&self, name: u64) -> Result<usize, usize> {
        let home = home(name, self.rows.len());
        let (before, from_home) = self.rows.split_at(home);
        for (at, row) in (home..).zip(from_home).chain((0..).zip(before)) {
            if row.is_empty() {
                return Err(at);
            }
            if row.name == name {
                return Ok(at);
            }
        }
        unreachable!("a fifth of the slots is free")
    }

    /// Into a free slot; false where the segment is full.
    #[inline]
    fn insert(&mut self, at: usize, row: Row) -> bool {
        let has_room = usize::from(self.len) < self.rows.len() / 5 * 4;
        if has_room {
            self.rows[at] = row;
            self.len += 1;
        }
        has_room
    }

    #[inline]
    fn remove(&mut self, at: usize) {
        let slots = self.rows.len();
        // How far a slot is behind another, around the end.
        let behind = |at: usize, other: usize| match at.checked_sub(other) {
            Some(behind) => behind,
            None => at + slots - other,
        };
        // Those that the slot kept from their home move up.
        let (mut gap, mut at) = (at, at);
        loop {
            at = if at + 1 == slots { 0 } else { at + 1 };
            let row = self.rows[at];
            if row.is_empty() {
                break;
            }
            if behind(at, home(row.name, slots)) >= behind(at, gap) {
                self.rows[gap] = row;
                gap = at;
            }
        }
        self.rows[gap] = Row::default();
        self.len -= 1;
    }
}

/// Where the search for a name begins.
#[inline]
fn home(name: u64, slots: usize) -> usize {
    // The upper half is enough to tell the slots apart.
    ((name >> 32) * slots as u64 >> 32) as usize
}

/// A one-to-one mixing of hashes by numbers that nobody knows, so that names chosen to collide do not.
#[derive(Debug, Clone, Copy)]
struct Mixing {
    added: u64,
    odd: [u64; 2],
    inverse: [u64; 2],
}

impl Default for Mixing {
    fn default() -> Self {
        let random = RandomState::new();
        let odd = [random.hash_one(1) | 1, random.hash_one(2) | 1];
        Self {
            added: random.hash_one(0),
            odd,
            inverse: odd.map(inverse),
        }
    }
}

impl Mixing {
    #[inline]
    fn mixed(&self, hash: u64) -> u64 {
        let first = (hash ^ self.added).wrapping_mul(self.odd[0]);
        let second = (first ^ first >> 32).wrapping_mul(self.odd[1]);
        second ^ second >> 32
    }

    fn unmixed(&self, name: u64) -> u64 {
        let second = (name ^ name >> 32).wrapping_mul(self.inverse[1]);
        (second ^ second >> 32).wrapping_mul(self.inverse[0]) ^ self.added
    }
}

/// The number whose product with an odd one is 1 (modulo 2^64), by Newton's steps: each doubles the
/// bits that are right.
fn inverse(odd: u64) -> u64 {
    let step = |x: u64, _| x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
    (0..5).fold(odd.wrapping_mul(3) ^ 2, step)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
                assert!(per_row < 32.0, "{per_row} bytes a row of {hash}");
            }
        }
        for hash in 0..199_900 {
            let slot = map.find(EngineHash(hash)).expect("put before");
            map.remove(slot);
        }
        assert!(map.bytes() < 80_000, "{} bytes", map.bytes());
    }
}

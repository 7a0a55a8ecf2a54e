//! Rows in the order of their mixed hashes, near where those point.

use super::Copies;
use crate::index::tree::BlockId;

/// Slots in a page.
pub const PAGE: usize = 256;

/// Homes in the smallest table.
pub const HOMES_MIN: usize = 24;

/// Slots of the last page that are nobody's home, for rows that find theirs taken; if they are too
/// few, there is a page more.
pub const SPILL: usize = 24;

#[derive(Debug, Clone, Copy, Default)]
pub struct Row {
    /// The mixed hash.
    pub name: u64,
    pub block: Option<BlockId>,
    /// Copies, and the highest bit for unsure; 0 where the slot is empty.
    count: u32,
}

pub const UNSURE: u32 = 1 << 31;

impl Row {
    pub fn new(name: u64, copies: Copies) -> Self {
        let Copies {
            block,
            count,
            unsure,
        } = copies;
        let count = count.clamp(1, UNSURE - 1) | if unsure { UNSURE } else { 0 };
        Self { name, block, count }
    }

    pub fn copies(self) -> Copies {
        Copies {
            block: self.block,
            count: self.count & !UNSURE,
            unsure: self.count & UNSURE != 0,
        }
    }

    pub fn is_empty(self) -> bool {
        self.count == 0
    }
}

pub type Page = Box<[Row]>;

/// Rows near their homes. Pages at its end may be missing as long as nothing is there.
#[derive(Debug, Default)]
pub struct Table {
    pub homes: usize,
    pub pages: Vec<Page>,
}

impl Table {
    pub fn new(homes: usize) -> Self {
        let homes = match homes {
            0..=96 => HOMES_MIN * homes.div_ceil(HOMES_MIN).next_power_of_two(),
            _ => (homes + SPILL).next_multiple_of(PAGE) - SPILL,
        };
        let pages = Vec::with_capacity((homes + SPILL).div_ceil(PAGE));
        Self { homes, pages }
    }

    pub fn bytes(&self) -> usize {
        let slots: usize = self.pages.iter().map(|page| page.len()).sum();
        slots * size_of::<Row>() + self.pages.capacity() * size_of::<Page>()
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.pages.iter().flatten().filter(|row| !row.is_empty())
    }

    /// Where the search for a name begins.
    #[inline]
    pub fn home(&self, name: u64) -> usize {
        // The upper half is enough to tell the slots apart.
        (((name >> 32) * self.homes as u64) >> 32) as usize
    }

    #[inline]
    pub fn row(&self, at: usize) -> Option<&Row> {
        self.pages.get(at / PAGE)?.get(at % PAGE)
    }

    /// The slot of a name, or the one where it belongs.
    #[inline]
    pub fn search(&self, name: u64) -> Result<usize, usize> {
        let mut at = self.home(name);
        loop {
            match self.row(at) {
                Some(row) if !row.is_empty() & (row.name < name) => at += 1,
                Some(row) if !row.is_empty() & (row.name == name) => return Ok(at),
                _ => return Err(at),
            }
        }
    }

    /// Into the slot where it belongs; those that are there move on by one.
    #[inline]
    pub fn insert(&mut self, mut at: usize, mut row: Row) {
        while let Some(slot) = self.slot(at) {
            std::mem::swap(slot, &mut row);
            if row.is_empty() {
                return;
            }
            at += 1;
        }
        self.put_behind(at, row, &mut None);
    }

    #[inline]
    pub fn slot(&mut self, at: usize) -> Option<&mut Row> {
        self.pages.get_mut(at / PAGE)?.get_mut(at % PAGE)
    }

    /// The first free slot from one on.
    pub fn free(&self, mut at: usize) -> usize {
        while self.row(at).is_some_and(|row| !row.is_empty()) {
            at += 1;
        }
        at
    }

    /// Puts a row into a slot, which may be missing.
    #[inline]
    pub fn put(&mut self, at: usize, row: Row, spare: &mut Option<Page>) {
        match self.slot(at) {
            Some(slot) => *slot = row,
            None => self.put_behind(at, row, spare),
        }
    }

    #[cold]
    pub fn put_behind(&mut self, at: usize, row: Row, spare: &mut Option<Page>) {
        let slots = (self.homes + 8).min(PAGE);
        let page = |slots: usize| vec![Row::default(); slots].into_boxed_slice();
        while self.pages.len() <= at / PAGE {
            let next = spare.take().unwrap_or_else(|| page(slots));
            self.pages.push(next);
        }
        let last = &mut self.pages[at / PAGE];
        if last.len() <= at % PAGE {
            // A small table whose last rows are far behind their homes.
            let mut whole = page(PAGE);
            whole[..last.len()].copy_from_slice(last);
            *last = whole;
        }
        last[at % PAGE] = row;
    }

    #[inline]
    pub fn remove(&mut self, at: usize) {
        // Those behind it that are not at home move up.
        let mut gap = at;
        while let Some(row) = self.row(gap + 1).copied()
            && !row.is_empty()
            && self.home(row.name) <= gap
        {
            self.put(gap, row, &mut None);
            gap += 1;
        }
        self.put(gap, Row::default(), &mut None);
    }
}

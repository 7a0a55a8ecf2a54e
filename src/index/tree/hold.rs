//! Who comes to hold what in a tree, and who lets go of it.

use std::ops::Range;

use smallvec::SmallVec;

use crate::index::tree::{Block, BlockId, Entry, Holder, Loose, NONE, Tree};

impl Tree {
    /// Lets a holder have blocks. Those that it has already go into `again`.
    pub fn hold(&mut self, holder: Holder, blocks: &[BlockId], again: &mut Vec<BlockId>) {
        let mut rest = blocks;
        while let Some(first) = rest.first() {
            let Block { run, at, .. } = self.blocks[first.place()];
            let at = usize::from(at);
            let of = self.runs[run].links[at..].iter().zip(rest);
            let same = of.take_while(|(link, block)| link.block == block.place());
            // At least this one, whatever is said of it.
            let count = same.count().max(1);
            self.hold_in(holder, run, at..at + count, again);
            rest = &rest[count..];
        }
    }

    fn hold_in(&mut self, holder: Holder, run: u32, at: Range<usize>, again: &mut Vec<BlockId>) {
        let has_loose = self.has_loose(holder);
        let Self { runs, blocks, .. } = self;
        let of = &runs[run];
        let entry = of.entry(holder);
        let held = entry.map_or(0, |entry| usize::from(of.entries[entry].len));
        let new = held.clamp(at.start, at.end);
        let had = of.links[at.start..new].iter();
        again.extend(had.map(|link| BlockId::new(self.number, link.block)));
        if new == at.end {
            return;
        }
        let parent = of.parent;
        let is_next = new == held
            && (held > 0 || parent == NONE || runs[parent].held(holder) == runs[parent].len());
        if is_next && !has_loose {
            for link in &of.links[new..at.end] {
                blocks[link.block].refs += 1;
            }
            return self.lengthen(holder, run, entry, at.end);
        }
        for at in new..at.end {
            let place = self.runs[run].links[at].block;
            match self.loosen(holder, place) {
                true => self.blocks[place].refs += 1,
                false => again.push(BlockId::new(self.number, place)),
            }
        }
        if is_next {
            self.gather(holder, run);
        }
    }

    fn lengthen(&mut self, holder: Holder, run: u32, entry: Result<usize, usize>, len: usize) {
        let of = &mut self.runs[run];
        let len = len as u16;
        match entry {
            Ok(entry) => of.entries[entry].len = len,
            Err(entry) => {
                let (below, parent) = (0, of.parent);
                let new = Entry { holder, len, below };
                of.entries.insert(entry, new);
                self.entries += 1;
                if parent != NONE {
                    let parent = &mut self.runs[parent];
                    let above = parent.entry(holder).expect("2: an entry in the run before");
                    parent.entries[above].below += 1;
                }
            }
        }
    }

    /// Takes into a holder's depth what was loose and stands now right behind it.
    fn gather(&mut self, holder: Holder, run: u32) {
        let mut reached: SmallVec<[u32; 4]> = SmallVec::from_slice(&[run]);
        while let Some(run) = reached.pop() {
            let of = &self.runs[run];
            let entry = of.entry(holder);
            let held = entry.map_or(0, |at| usize::from(of.entries[at].len));
            let mut len = held;
            while len < self.runs[run].len()
                && self.tighten(holder, self.runs[run].links[len].block)
            {
                len += 1;
            }
            if len > held {
                self.lengthen(holder, run, entry, len);
            }
            if len == self.runs[run].len() && self.has_loose(holder) {
                let first = |child: &u32| self.runs[*child].links[0].block;
                let waits = |child: &u32| self.loose.contains(&Loose::new(holder, first(child)));
                reached.extend(self.children(run).filter(waits));
            }
        }
    }

    /// False where it was loose already.
    fn loosen(&mut self, holder: Holder, place: u32) -> bool {
        let is_new = self.loose.insert(Loose::new(holder, place));
        if is_new {
            let at = usize::from(holder.0);
            if at >= self.loose_of.len() {
                self.loose_of.resize(at + 1, 0);
            }
            self.loose_of[at] += 1;
        }
        is_new
    }

    fn tighten(&mut self, holder: Holder, place: u32) -> bool {
        let was = self.loose.remove(&Loose::new(holder, place));
        if was {
            self.loose_of[usize::from(holder.0)] -= 1;
        }
        was
    }

    /// Takes a block from a holder that has it.
    pub fn release(&mut self, holder: Holder, block: BlockId) {
        let place = block.place();
        let Block { run, at, .. } = self.blocks[place];
        let of = &self.runs[run];
        let at = usize::from(at);
        let entry = of.entry(holder);
        match entry.map(|entry| of.entries[entry]) {
            Ok(Entry { len, below, .. }) if at < usize::from(len) => {
                let last = at + 1 == usize::from(len) && below == 0;
                if !last {
                    self.break_off(holder, run, at + 1);
                }
                self.shorten(holder, run, at);
            }
            _ => {
                if !self.tighten(holder, place) {
                    debug_assert!(false, "it has the block");
                    return;
                }
            }
        }
        self.let_go(place);
    }

    /// Takes from a holder the last blocks of all that it has along a path: run by run what [`Self::release`] does to each.
    pub fn release_end(&mut self, holder: Holder, mut blocks: &[BlockId]) {
        while let Some(last) = blocks.last() {
            let Block { run, at, .. } = self.blocks[last.place()];
            let len = usize::from(at) + 1;
            let of = &self.runs[run];
            let ends = |entry: &Entry| usize::from(entry.len) == len && entry.below == 0;
            if !of.entry(holder).is_ok_and(|at| ends(&of.entries[at])) {
                debug_assert!(false, "it ends there");
                return;
            }
            let few = len.min(blocks.len());
            self.shorten(holder, run, len - few);
            let Self {
                runs, blocks: all, ..
            } = self;
            for link in &runs[run].links[len - few..len] {
                all[link.block].refs -= 1;
            }
            if all[last.place()].refs == 0 && len == runs[run].len() {
                self.trim(run);
            }
            blocks = &blocks[..blocks.len() - few];
        }
    }

    /// Makes loose what a holder has from a place in a run on, in all runs behind it too.
    fn break_off(&mut self, holder: Holder, run: u32, from: usize) {
        let mut broken: SmallVec<[(u32, usize); 4]> = SmallVec::from_slice(&[(run, from)]);
        while let Some((run, from)) = broken.pop() {
            let Ok(entry) = self.runs[run].entry(holder) else {
                continue;
            };
            let Entry { len, below, .. } = self.runs[run].entries[entry];
            for at in from..usize::from(len) {
                self.loosen(holder, self.runs[run].links[at].block);
            }
            if below > 0 {
                broken.extend(self.children(run).map(|child| (child, 0)));
            }
            let of = &mut self.runs[run];
            if from == 0 {
                of.entries.remove(entry);
                self.entries -= 1;
            } else {
                (of.entries[entry].len, of.entries[entry].below) = (from as u16, 0);
            }
        }
    }

    /// Ends a holder's entry before a place; what it has beyond is let go of.
    fn shorten(&mut self, holder: Holder, run: u32, at: usize) {
        let of = &mut self.runs[run];
        let entry = of.entry(holder).expect("it has the block");
        if at > 0 {
            of.entries[entry].len = at as u16;
            return;
        }
        of.entries.remove(entry);
        self.entries -= 1;
        let parent = of.parent;
        if parent != NONE {
            let parent = &mut self.runs[parent];
            let above = parent.entry(holder).expect("2: an entry in the run before");
            parent.entries[above].below -= 1;
        }
    }

    /// Keeps a block, whoever lets go of it, and all before it.
    pub fn pin(&mut self, block: BlockId) {
        self.blocks[block.place()].refs += 1;
    }

    pub fn unpin(&mut self, block: BlockId) {
        self.let_go(block.place());
    }

    /// One holder less.
    fn let_go(&mut self, place: u32) {
        let block = &mut self.blocks[place];
        block.refs -= 1;
        let Block { run, at, refs } = *block;
        if refs == 0 && usize::from(at) + 1 == self.runs[run].len() {
            self.trim(run);
        }
    }

    /// Takes from a holder everything that it has in a block's run, and the block itself. For one that
    /// is to lose all that it has, of which nobody asks any more: 2 to 4 need not hold of it.
    pub fn retire(&mut self, holder: Holder, block: BlockId) {
        let place = block.place();
        if self.has_loose(holder) && self.tighten(holder, place) {
            return self.let_go(place);
        }
        // Its run may be gone with another block of it, and the place given to another one: of that, too,
        // the holder is to lose all.
        let run = self.blocks.get(place).map(|block| block.run);
        let Some(run) = run.filter(|run| self.runs.get(*run).is_some()) else {
            return;
        };
        let of = &mut self.runs[run];
        let Ok(entry) = of.entry(holder) else { return };
        let len = usize::from(of.entries.remove(entry).len);
        self.entries -= 1;
        let parent = of.parent;
        let Self { runs, blocks, .. } = self;
        for link in &runs[run].links[..len] {
            blocks[link.block].refs -= 1;
        }
        self.trim(run);
        // They may not have been one because of this holder.
        if self.runs.get(parent).is_some_and(|parent| parent.len() > 0) {
            self.join(parent);
        }
    }
}

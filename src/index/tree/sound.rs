//! What must hold of a tree, said again so that tests can ask.

use std::collections::HashMap;

use crate::index::tree::{Loose, NONE, Tree};

impl Tree {
    /// Panics where something does not hold. Not for a tree of which a holder is being retired.
    pub fn assert_sound(&self) {
        let mut refs: HashMap<u32, u16> = HashMap::new();
        let mut entries = 0;
        for run in self.runs.numbers().filter(|run| self.runs[*run].len() > 0) {
            let of = &self.runs[run];
            entries += of.entries.len();
            assert_eq!(self.starts.get(&{ of.links[0].key }), Some(&run));
            assert!(of.entries.is_sorted_by_key(|entry| entry.holder));
            for (at, link) in (0u16..).zip(&of.links) {
                let block = self.blocks[link.block];
                assert_eq!((block.run, block.at), (run, at));
            }
            for child in self.children(run) {
                assert_eq!(self.runs[child].parent, run);
            }
            for entry in &of.entries {
                let len = usize::from(entry.len);
                assert!(len > 0 && len <= of.len(), "1");
                for link in &of.links[..len] {
                    *refs.entry(link.block).or_default() += 1;
                    assert!(!self.loose.contains(&Loose::new(entry.holder, link.block)));
                }
                if of.parent != NONE {
                    let parent = &self.runs[of.parent];
                    assert_eq!(parent.held(entry.holder), parent.len(), "2");
                }
                let below = self.children(run);
                let below = below.filter(|child| self.runs[*child].held(entry.holder) > 0);
                assert_eq!(entry.below as usize, below.count(), "3");
            }
            if of.first_child == NONE {
                let last = of.links[of.len() - 1].block;
                assert!(self.blocks[last].refs > 0, "5");
            }
        }
        for Loose(packed) in &self.loose {
            let place = *packed as u32;
            let holder = crate::index::Holder((*packed >> u32::BITS) as u16);
            *refs.entry(place).or_default() += 1;
            let block = self.blocks[place];
            let before = match block.at {
                0 if self.runs[block.run].parent == NONE => true,
                0 => {
                    let parent = &self.runs[self.runs[block.run].parent];
                    parent.held(holder) == parent.len()
                }
                at => self.runs[block.run].held(holder) >= usize::from(at),
            };
            assert!(!before, "4");
        }
        let mut known = 0;
        for run in self.runs.numbers() {
            for link in &self.runs[run].links {
                known += 1;
                let counted = refs.get(&{ link.block }).copied();
                assert_eq!(self.blocks[link.block].refs, counted.unwrap_or(0));
            }
        }
        assert_eq!((known, entries), (self.len(), self.entries));
        let loose: u32 = self.loose_of.iter().sum();
        assert_eq!(loose as usize, self.loose.len());
        let first = |run: &u32| self.runs[*run].len() > 0;
        let runs = self.runs.numbers().filter(first).count();
        assert_eq!((runs, runs), (self.starts.len(), self.runs.len()));
    }
}

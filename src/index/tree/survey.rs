//! Runs, as whoever looks at all of them sees them.

use std::ops::Range;

use crate::blocks::BlockKey;
use crate::index::tree::{Holder, NONE, Run, Tree};

/// A run, as of one look.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub run: u32,
    /// The run before it; none at a prompt's start.
    pub parent: Option<u32>,
    /// How many hold its first block.
    pub holders: u32,
    /// Blocks of each of them, added up.
    pub pairs: u64,
}

/// What a run is made of.
#[derive(Debug)]
pub struct Contents {
    /// Names its last block, and so all of it.
    pub key: BlockKey,
    pub blocks: u32,
    /// Who holds the first so many.
    pub held: Vec<(Holder, u32)>,
}

impl Tree {
    /// These runs, of what those hold who count.
    pub fn survey(&self, runs: Range<u32>, counts: impl Fn(Holder) -> bool) -> Vec<Seen> {
        let used = runs.filter_map(|run| Some((run, self.used(run)?)));
        let seen = used.map(|(run, of)| {
            let held = of.entries.iter().filter(|entry| counts(entry.holder));
            let (holders, pairs) = held.fold((0, 0), |(holders, pairs), entry| {
                (holders + 1, pairs + u64::from(entry.len))
            });
            let parent = (of.parent != NONE).then_some(of.parent);
            Seen {
                run,
                parent,
                holders,
                pairs,
            }
        });
        seen.collect()
    }

    /// One of them; none where it has gone.
    pub fn contents(&self, run: u32) -> Option<Contents> {
        let of = self.used(run)?;
        let held = of.entries.iter();
        Some(Contents {
            key: of.links.last()?.key,
            blocks: of.len() as u32,
            held: held
                .map(|entry| (entry.holder, u32::from(entry.len)))
                .collect(),
        })
    }

    fn used(&self, run: u32) -> Option<&Run> {
        self.runs.get(run).filter(|of| of.len() > 0)
    }
}

//! What prompts share, and who holds it: the largest shared runs of the forest, for people.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::blocks::BlockKey;
use crate::fleet::EndpointId;
use crate::index::Index;
use crate::index::forest::Forest;
use crate::index::room::slices;
use crate::index::tree::{Holder, Seen};

/// Runs looked at within one lock of a tree, which holds up its writers alone: with 500 holders of each some
/// 0.1 ms.
const LOOKED_AT_ONCE: usize = if cfg!(test) { 2 } else { 64 };

/// A run of blocks that several endpoints hold, or several prompts go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// Names its last block, and with it all before.
    pub key: BlockKey,
    /// Which of the list it goes on from; none at a prompt's start.
    pub parent: Option<usize>,
    /// Blocks of a prompt before it.
    pub before: u32,
    /// Its own.
    pub blocks: u32,
    /// Different ends of prompts at or behind it.
    pub ends: u32,
    /// Its blocks and all behind it, counted once for each endpoint that holds them.
    pub pairs: u64,
    /// Who holds the first so many of its blocks.
    pub holders: Vec<(EndpointId, u32)>,
}

/// A run that may be told of.
struct Ranked {
    tree: usize,
    run: Seen,
    below: Below,
}

/// What a run has with all behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Below {
    pairs: u64,
    ends: u32,
}

/// The holders that count, by number: of each endpoint its own cache of full attention.
struct Names(Vec<Option<EndpointId>>);

impl Names {
    fn of(&self, holder: Holder) -> Option<EndpointId> {
        self.0.get(usize::from(holder.0)).copied().flatten()
    }
}

impl Index {
    /// The largest prefixes that endpoints or prompts share, so many at most; each stands behind the one that
    /// it goes on from. The list is of no one moment: trees change while it is made. It takes some 50 bytes for
    /// each run of a tree, less than half of what the tree does, and one tree after the other; nobody else
    /// waits for it longer than for a few runs.
    #[must_use]
    pub fn prefixes(&self, limit: usize) -> Vec<Prefix> {
        let (names, forest) = (self.main_holders(), &self.shared.forest);
        let mut largest: Vec<Ranked> = Vec::new();
        for tree in 0..forest.trees().count() {
            let seen = survey(forest, tree, &names);
            let below = added_up(&seen);
            let shared = seen.into_iter().zip(below).filter_map(|(run, below)| {
                let is_shared = run.holders >= 2 || below.ends >= 2;
                (is_shared && below.pairs > 0).then_some(Ranked { tree, run, below })
            });
            largest.extend(shared);
            // Whoever holds a block holds all before it, so a run has more than any behind it: parents come
            // first, and stay.
            largest.sort_unstable_by_key(|one| Reverse(one.below.pairs));
            largest.truncate(limit);
        }
        told(forest, &names, &largest)
    }

    fn main_holders(&self) -> Names {
        let seats = self.shared.seats.read();
        let mut names = Vec::new();
        for (endpoint, seat) in &seats.by_endpoint {
            let main = seat.view.main.and_then(|main| seat.view.caches.get(main));
            let Some(holder) = main.and_then(|main| main.any) else {
                continue;
            };
            let number = usize::from(holder.0);
            names.resize(names.len().max(number + 1), None);
            names[number] = Some(*endpoint);
        }
        Names(names)
    }
}

/// All runs of a tree, by number.
fn survey(forest: &Forest, tree: usize, names: &Names) -> Vec<Seen> {
    let mut seen = Vec::new();
    let runs = forest.read(tree).runs();
    for few in slices(runs, LOOKED_AT_ONCE) {
        let counts = |holder| names.of(holder).is_some();
        seen.extend(forest.read(tree).survey(few, counts));
    }
    seen
}

/// For each of them, from the ends on.
fn added_up(seen: &[Seen]) -> Vec<Below> {
    let parents = seen.iter().map(|run| {
        let at = seen.binary_search_by_key(&run.parent?, |other| other.run);
        at.ok()
    });
    let parents: Vec<Option<usize>> = parents.collect();
    let mut children = vec![0u32; seen.len()];
    for parent in parents.iter().flatten() {
        children[*parent] += 1;
    }
    let own = seen.iter().zip(&children).map(|(run, children)| Below {
        pairs: run.pairs,
        ends: u32::from(*children == 0),
    });
    let mut below: Vec<Below> = own.collect();
    let mut whole: Vec<usize> = (0..seen.len()).filter(|at| children[*at] == 0).collect();
    // Where a number went to another run meanwhile there may be a ring, which nobody enters.
    while let Some(at) = whole.pop() {
        let Some(parent) = parents[at] else { continue };
        let Below { pairs, ends } = below[at];
        below[parent].pairs += pairs;
        below[parent].ends += ends;
        children[parent] -= 1;
        if children[parent] == 0 {
            whole.push(parent);
        }
    }
    below
}

/// These, with what they are made of; without those that have gone meanwhile.
fn told(forest: &Forest, names: &Names, ranked: &[Ranked]) -> Vec<Prefix> {
    let mut told: Vec<Prefix> = Vec::with_capacity(ranked.len());
    let mut places = HashMap::new();
    for Ranked { tree, run, below } in ranked {
        let parent = run
            .parent
            .map(|parent| places.get(&(*tree, parent)).copied());
        let contents = forest.read(*tree).contents(run.run);
        let (Some(contents), None | Some(Some(_))) = (contents, parent) else {
            continue;
        };
        let parent: Option<usize> = parent.flatten();
        let held = contents.held.into_iter();
        let holders = held.filter_map(|(holder, len)| Some((names.of(holder)?, len)));
        places.insert((*tree, run.run), told.len());
        told.push(Prefix {
            key: contents.key,
            parent,
            before: parent.map_or(0, |parent| told[parent].before + told[parent].blocks),
            blocks: contents.blocks,
            ends: below.ends,
            pairs: below.pairs,
            holders: holders.collect(),
        });
    }
    told
}

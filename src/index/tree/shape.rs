//! How a tree grows, parts, joins and is trimmed.

use smallvec::SmallVec;

use crate::blocks::BlockKey;
use crate::index::tree::{BLOCKS_MAX, Block, BlockId, Entry, Link, NONE, RUN_MAX, Run, Tree, same};

impl Tree {
    /// The blocks of a chain behind `parent`, or from a prompt's start on; those that nobody has had
    /// before are made. Fewer where there is no room, or another prompt has the same key.
    pub fn grow(
        &mut self,
        parent: Option<BlockId>,
        keys: &[BlockKey],
        now: u32,
        into: &mut Vec<BlockId>,
    ) {
        let run = self.grow_from(parent, keys, into);
        if run != NONE {
            let of = &mut self.runs[run];
            (of.touched, of.condemned) = (now.max(of.touched), false);
        }
    }

    /// The run of the last one.
    fn grow_from(
        &mut self,
        parent: Option<BlockId>,
        keys: &[BlockKey],
        into: &mut Vec<BlockId>,
    ) -> u32 {
        let mut rest = keys;
        // Where the next one stands, if it is known.
        let (mut run, mut at) = match parent.map(|parent| self.blocks[parent.place()]) {
            Some(Block { run, at, .. }) => (run, usize::from(at) + 1),
            None => (NONE, 0),
        };
        while let Some(first) = rest.first() {
            if run != NONE {
                let of = &self.runs[run];
                let same = same(&of.links[at..], rest);
                let links = of.links[at..at + same].iter();
                into.extend(links.map(|link| BlockId::new(self.number, link.block)));
                (at, rest) = (at + same, &rest[same..]);
                let Some(first) = rest.first() else {
                    return run;
                };
                if at < of.len() {
                    // A key that stands elsewhere too: nobody's honest prompt.
                    if self.starts.contains_key(&{ of.links[at].key }) {
                        return run;
                    }
                    run = self.part(run, at);
                } else if of.first_child == NONE && of.len() < RUN_MAX {
                    let room = (RUN_MAX - of.len()).min(BLOCKS_MAX - self.blocks.len());
                    if room == 0 {
                        return run;
                    }
                    let more = rest.len().min(room);
                    self.append(run, &rest[..more], into);
                    (at, rest) = (at + more, &rest[more..]);
                    continue;
                }
                match self.behind(run, first) {
                    Ok(child) => (run, at) = (child, 0),
                    Err(()) => return run,
                }
                continue;
            }
            match self.behind(NONE, first) {
                Ok(start) => run = start,
                Err(()) => return run,
            }
        }
        run
    }

    /// The run behind another, or at a prompt's start, that begins with a key: an empty one if there
    /// is none. Fails where that key stands elsewhere.
    fn behind(&mut self, parent: u32, first: &BlockKey) -> Result<u32, ()> {
        if let Some(run) = self.starts.get(first) {
            return match self.runs[*run].parent == parent {
                true => Ok(*run),
                false => Err(()),
            };
        }
        if self.blocks.len() >= BLOCKS_MAX {
            return Err(());
        }
        let run = self.runs.insert(Run::default());
        self.starts.insert(*first, run);
        self.link(run, parent);
        Ok(run)
    }

    fn append(&mut self, run: u32, keys: &[BlockKey], into: &mut Vec<BlockId>) {
        let Self { runs, blocks, .. } = self;
        let of = &mut runs[run];
        make_room(&mut of.links, keys.len());
        for key in keys {
            let at = of.links.len() as u16;
            let (key, block) = (*key, blocks.insert(Block { run, at, refs: 0 }));
            of.links.push(Link { key, block });
            into.push(BlockId::new(self.number, block));
        }
    }

    /// Parts a run before a place. The front is a new one; the rest keeps its number, and with it
    /// all that stands behind it.
    fn part(&mut self, run: u32, at: usize) -> u32 {
        let of = &mut self.runs[run];
        let rest = of.links[at].key;
        let links: Vec<Link> = of.links.drain(..at).collect();
        fit(&mut of.links);
        let mut front_entries = SmallVec::new();
        let cut = at as u16;
        for entry in &of.entries {
            front_entries.push(Entry {
                len: entry.len.min(cut),
                below: u32::from(entry.len > cut),
                ..*entry
            });
        }
        of.entries.retain(|entry| {
            entry.len = entry.len.saturating_sub(cut);
            entry.len > 0
        });
        self.entries += of.entries.len();
        let parent = of.parent;
        let first = links[0].key;
        let (touched, condemned) = (of.touched, of.condemned);
        let front = self.runs.insert(Run {
            links,
            entries: front_entries,
            touched,
            condemned,
            ..Run::default()
        });
        self.unlink(run);
        self.link(front, parent);
        self.link(run, front);
        self.starts.insert(first, front);
        self.starts.insert(rest, run);
        self.renumber(front);
        self.renumber(run);
        front
    }

    /// Joins a run with the only one behind it, if they may be one.
    pub(super) fn join(&mut self, front: u32) {
        let of = &self.runs[front];
        let run = of.first_child;
        if run == NONE || self.runs[run].next != NONE {
            return;
        }
        let rest = &self.runs[run];
        // One that is being retired may be missing from the front.
        let above = |entry: &Entry| of.held(entry.holder) == of.len();
        if of.len() + rest.len() > RUN_MAX || !rest.entries.iter().all(above) {
            return;
        }
        let parent = of.parent;
        let (first, cut) = (of.links[0].key, rest.links[0].key);
        self.unlink(run);
        self.unlink(front);
        let of = self.runs.remove(front);
        let rest = &mut self.runs[run];
        let len = of.len() as u16;
        let mut entries = of.entries;
        self.entries -= rest.entries.len();
        for entry in &mut entries {
            entry.below = 0;
            if let Ok(at) = rest.entry(entry.holder) {
                entry.len = len + rest.entries[at].len;
                entry.below = rest.entries[at].below;
            }
        }
        rest.entries = entries;
        rest.condemned &= of.condemned;
        rest.touched = rest.touched.max(of.touched);
        let mut links = of.links;
        make_room(&mut links, rest.len());
        links.append(&mut rest.links);
        rest.links = links;
        self.link(run, parent);
        self.starts.remove(&cut);
        self.starts.insert(first, run);
        self.renumber(run);
    }

    /// Takes the blocks at a run's end that nobody holds, and what they leave empty before it.
    pub(super) fn trim(&mut self, mut run: u32) {
        while self.runs[run].first_child == NONE {
            let Self { runs, blocks, .. } = self;
            let of = &mut runs[run];
            let first = of.links.first().map(|link| link.key);
            while let Some(Link { block, .. }) = of.links.last().copied()
                && blocks[block].refs == 0
            {
                blocks.remove(block);
                of.links.pop();
            }
            if !of.links.is_empty() {
                if of.links.len() < of.links.capacity() / 2 {
                    fit(&mut of.links);
                }
                return;
            }
            let parent = of.parent;
            if let Some(first) = first
                && self.starts.get(&first) == Some(&run)
            {
                self.starts.remove(&first);
            }
            self.unlink(run);
            self.runs.remove(run);
            if parent == NONE {
                return;
            }
            run = parent;
        }
        self.join(run);
    }

    /// Takes a block that was made and that nobody came to hold.
    pub fn prune(&mut self, block: BlockId) {
        let Some(Block { run, at, refs }) = self.blocks.get(block.place()).copied() else {
            return;
        };
        let of = self.runs.get(run);
        if refs == 0 && of.is_some_and(|of| usize::from(at) + 1 == of.len()) {
            self.trim(run);
        }
    }

    pub(super) fn children(&self, run: u32) -> impl Iterator<Item = u32> + '_ {
        let first = Some(self.runs[run].first_child).filter(|child| *child != NONE);
        std::iter::successors(first, |child| {
            Some(self.runs[*child].next).filter(|next| *next != NONE)
        })
    }

    fn link(&mut self, run: u32, parent: u32) {
        let next = match parent {
            NONE => NONE,
            _ => std::mem::replace(&mut self.runs[parent].first_child, run),
        };
        if next != NONE {
            self.runs[next].previous = run;
        }
        let of = &mut self.runs[run];
        (of.parent, of.next, of.previous) = (parent, next, NONE);
    }

    fn unlink(&mut self, run: u32) {
        let Run {
            parent,
            next,
            previous,
            ..
        } = self.runs[run];
        if previous != NONE {
            self.runs[previous].next = next;
        } else if parent != NONE {
            self.runs[parent].first_child = next;
        }
        if next != NONE {
            self.runs[next].previous = previous;
        }
    }

    /// Tells the blocks of a run where they are.
    fn renumber(&mut self, run: u32) {
        let Self { runs, blocks, .. } = self;
        for (at, link) in (0u16..).zip(&runs[run].links) {
            let block = &mut blocks[link.block];
            (block.run, block.at) = (run, at);
        }
    }
}

/// Room for some more, and half as much beyond: prompts grow block by block while they are answered.
fn make_room(links: &mut Vec<Link>, more: usize) {
    if links.capacity() - links.len() < more {
        let wanted = links.len() + more;
        links.reserve_exact(more + (wanted / 2).max(8));
    }
}

/// Gives back what is not needed.
fn fit(links: &mut Vec<Link>) {
    links.shrink_to(links.len() + links.len() / 4);
}

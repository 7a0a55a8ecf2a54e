//! One endpoint's physical copies, by the engine's own names for them.

use std::collections::{HashMap, VecDeque};

use crate::blocks::{BlockEvent, BlockKey, EngineHash, Medium, Stored};
use crate::index::{Applied, Seen};

/// Engine hashes kept per endpoint: 64 GiB of KV cache in 16-token blocks of a 7B model make
/// about 75,000; this is fifty times that, and about 200 MB here.
pub(super) const COPIES_MAX: usize = 4_000_000;

/// Prompts whose reports are awaited per endpoint: as many as vLLM runs at once by default
/// (`max_num_seqs`). Of 100,000 tokens each, in 16-token blocks, they take 13 MB.
const REPORTS_MAX: usize = 256;

/// A store, then what it and other events change in what the endpoint holds, copies and names
/// aside.
pub(super) enum Change<'a> {
    Stores(&'a Seen<'a>),
    Holds(BlockKey),
    Drops(BlockKey),
}

/// What a snapshot keeps of a book: how many copies an engine hash stands for, and our name.
pub(super) type Row = (u64, Option<BlockKey>, u32);

#[derive(Debug)]
struct Copies {
    /// None for an orphan: its parent was never seen, so what it holds is not known.
    key: Option<BlockKey>,
    count: u32,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    copies: HashMap<EngineHash, Copies>,
    /// Prompts and how many reports of their leading blocks are awaited.
    reports: VecDeque<(Vec<BlockKey>, u32)>,
    pub(super) block_size: Option<u32>,
    pub(super) adapters: Vec<String>,
    /// Whether this server's events show cache salts; none before its first store.
    pub(super) shows_salt: Option<bool>,
}

impl Book {
    pub(super) fn len(&self) -> usize {
        self.copies.len()
    }

    /// Every copy.
    pub(super) fn rows(&self) -> impl Iterator<Item = Row> {
        let row = |(hash, copies): (&EngineHash, &Copies)| (hash.0, copies.key, copies.count);
        self.copies.iter().map(row)
    }

    /// Takes copies that a snapshot kept, into an empty book.
    pub(super) fn fill(&mut self, rows: &[Row], held: &mut impl FnMut(BlockKey)) {
        for (hash, key, count) in rows.iter().take(COPIES_MAX).copied() {
            let copies = Copies { key, count };
            if self.copies.insert(EngineHash(hash), copies).is_none() {
                key.into_iter().for_each(&mut *held);
            }
        }
    }

    pub(super) fn apply(
        &mut self,
        event: &BlockEvent,
        applied: &mut Applied,
        change: &mut impl FnMut(Change<'_>),
    ) {
        match event {
            BlockEvent::Stored(stored) => self.store(stored, applied, change),
            BlockEvent::Removed {
                hashes,
                medium,
                group,
            } => {
                for hash in hashes {
                    match (medium, group.index) {
                        (Medium::Gpu, 0) => self.remove(*hash, applied, change),
                        (Medium::Gpu, _) => applied.unmodelled += 1,
                        _ => applied.elsewhere += 1,
                    }
                }
            }
            BlockEvent::Cleared => {
                applied.cleared += 1;
                self.clear(&mut |key| change(Change::Drops(key)));
            }
        }
    }

    /// Ends every copy. Adapters and block size outlive it: the process does.
    pub(super) fn clear(&mut self, dropped: &mut impl FnMut(BlockKey)) {
        self.reports.clear();
        self.copies
            .drain()
            .filter_map(|(_, copies)| copies.key)
            .for_each(dropped);
    }

    pub(super) fn expect_reports(&mut self, prompt: Vec<BlockKey>, reports: u32) {
        if self.reports.len() == REPORTS_MAX {
            self.reports.pop_front();
        }
        self.reports.push_back((prompt, reports));
    }

    fn store(
        &mut self,
        stored: &Stored,
        applied: &mut Applied,
        change: &mut impl FnMut(Change<'_>),
    ) {
        let blocks = stored.hashes.len() as u32;
        if stored.medium != Medium::Gpu {
            applied.elsewhere += blocks;
            return;
        }
        if stored.group.index != 0 || stored.group.partial_attention || stored.lookahead {
            applied.unmodelled += blocks;
            return;
        }
        self.block_size = Some(stored.block_size);
        self.shows_salt = Some(stored.extra_keys.is_some());
        let parent = self.parent_of(stored);
        let keys = keys_of(parent, stored);
        change(Change::Stores(&Seen {
            parent,
            keys: &keys,
            stored,
        }));
        if self.is_report(stored, keys.last().copied().flatten()) {
            applied.reported += blocks;
            return;
        }
        for (hash, key) in stored.hashes.iter().zip(keys) {
            applied.stored += 1;
            applied.orphans += u32::from(key.is_none());
            if let Some(copies) = self.copies.get_mut(hash) {
                copies.count += 1;
                // An orphan whose parent has come since.
                if let (None, Some(key)) = (copies.key, key) {
                    copies.key = Some(key);
                    change(Change::Holds(key));
                }
            } else if self.copies.len() < COPIES_MAX {
                self.copies.insert(*hash, Copies { key, count: 1 });
                key.into_iter().for_each(|key| change(Change::Holds(key)));
            } else {
                applied.over_limit += 1;
            }
        }
    }

    /// Our name for the block before an event's first; none where it was never seen.
    fn parent_of(&self, stored: &Stored) -> Option<BlockKey> {
        match stored.parent {
            None => Some(self.root(stored)),
            Some(hash) => self.copies.get(&hash).and_then(|copies| copies.key),
        }
    }

    fn root(&self, stored: &Stored) -> BlockKey {
        match (&stored.adapter, stored.adapter_id) {
            (Some(name), _) => BlockKey::root(Some(name)),
            (None, None) => BlockKey::root(None),
            (None, Some(id)) => {
                let nth = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
                match nth.and_then(|nth| self.adapters.get(nth)) {
                    Some(name) => BlockKey::root(Some(name)),
                    None => BlockKey::root(Some(&format!("lora_id:{id}"))),
                }
            }
        }
    }

    /// A report starts at the prompt's start, names only what is held, and was announced.
    fn is_report(&mut self, stored: &Stored, last: Option<BlockKey>) -> bool {
        let held = |hash| self.copies.contains_key(hash);
        if self.reports.is_empty() || stored.parent.is_some() || !stored.hashes.iter().all(held) {
            return false;
        }
        let blocks = stored.hashes.len();
        let of = |(prompt, _): &(Vec<BlockKey>, u32)| {
            last.is_some() && blocks.checked_sub(1).and_then(|at| prompt.get(at)).copied() == last
        };
        let Some(at) = self.reports.iter().position(of) else {
            return false;
        };
        self.reports[at].1 -= 1;
        if self.reports[at].1 == 0 {
            self.reports.remove(at);
        }
        true
    }

    fn remove(
        &mut self,
        hash: EngineHash,
        applied: &mut Applied,
        change: &mut impl FnMut(Change<'_>),
    ) {
        let Some(copies) = self.copies.get_mut(&hash) else {
            applied.unknown += 1;
            return;
        };
        applied.removed += 1;
        copies.count -= 1;
        if copies.count == 0
            && let Some(key) = self.copies.remove(&hash).and_then(|copies| copies.key)
        {
            change(Change::Drops(key));
        }
    }
}

/// Our names for the blocks of an event; none where the parent is unknown.
fn keys_of(mut parent: Option<BlockKey>, stored: &Stored) -> Vec<Option<BlockKey>> {
    let extras = stored.extra_keys.as_deref().unwrap_or_default();
    let size = stored.block_size.max(1) as usize;
    let child = |(position, tokens)| {
        let extras = extras.get(position).map_or(&[][..], Vec::as_slice);
        parent = parent.map(|parent: BlockKey| parent.child(tokens, extras));
        parent
    };
    stored
        .tokens
        .chunks_exact(size)
        .enumerate()
        .map(child)
        .collect()
}

//! Who holds which block: [`Index::apply`], [`Index::overlap`], [`Index::forget`].
//!
//! Two layers. Each endpoint has a [`Book`](book::Book) of the physical copies that its engine
//! hashes stand for; vLLM stores duplicates and removes them one by one, so copies are counted,
//! per hash. Above them stands one map from block key to its holders, which is all that a
//! lookup reads. One lock covers both, for the length of a batch of events or of a lookup:
//! readers see every endpoint between two of its batches, never inside one.

use std::collections::HashMap;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::blocks::{BlockEvent, BlockKey, Chain, Stored};
use crate::fleet::EndpointId;

mod book;

use book::{Book, Change};

/// The picture of every endpoint's cache.
#[derive(Default)]
pub struct Index {
    state: RwLock<State>,
    observer: Option<Box<Observer>>,
}

/// Is shown every store, while the index is locked for it: a quick look, no more.
type Observer = dyn Fn(EndpointId, &Seen<'_>) + Send + Sync;

/// Blocks that an endpoint says it stored in the engine's own cache, under our names.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The block before the first one, or the root; none where the parent is unknown.
    pub parent: Option<BlockKey>,
    /// One per block; none where the parent is unknown.
    pub keys: &'a [Option<BlockKey>],
    /// The event.
    pub stored: &'a Stored,
}

#[derive(Debug, Default)]
struct State {
    books: HashMap<EndpointId, Book>,
    holders: HashMap<BlockKey, Vec<Holder>>,
}

/// An endpoint that holds a block, under `names` engine hashes: two hashes of one server can
/// mean the same block to us where its events hide what tells them apart (a LoRA path, or a
/// cache salt before vLLM 0.17.1).
#[derive(Debug, Clone, Copy)]
struct Holder {
    endpoint: EndpointId,
    names: u32,
}

/// What a batch of events did to an endpoint's picture.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Physical copies that came.
    pub stored: u32,
    /// Physical copies that went.
    pub removed: u32,
    /// Times that everything went.
    pub cleared: u32,
    /// Copies whose parent we never saw: counted, but in nobody's overlap.
    pub orphans: u32,
    /// Removals of copies that we never saw.
    pub unknown: u32,
    /// Blocks reported again on a request's demand (`kv_cache_report_mode=full`), not stored.
    pub reported: u32,
    /// Blocks on media other than the engine's own cache: not indexed yet.
    pub elsewhere: u32,
    /// Blocks under rules that are not modelled yet (hybrid groups, lookahead hashes).
    pub unmodelled: u32,
    /// Copies past [`book::COPIES_MAX`], not indexed.
    pub over_limit: u32,
}

/// What one endpoint holds, apart from the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// Tokens in each block.
    pub block_size: u32,
    /// Whether its events show cache salts.
    pub shows_salt: Option<bool>,
    /// Engine hash, our name (none where the parent was never seen), physical copies.
    pub copies: Vec<(u64, Option<BlockKey>, u32)>,
}

/// How large the picture is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Different block keys.
    pub blocks: usize,
    /// (endpoint, engine hash) pairs.
    pub pairs: usize,
}

impl Index {
    /// An empty one that shows every store to `observer` before it counts it.
    #[must_use]
    pub fn observed(observer: impl Fn(EndpointId, &Seen<'_>) + Send + Sync + 'static) -> Self {
        Self {
            observer: Some(Box::new(observer)),
            ..Self::default()
        }
    }

    /// Applies what one endpoint did in one step, in order.
    pub fn apply(&self, endpoint: EndpointId, events: &[BlockEvent]) -> Applied {
        let mut state = self.state.write();
        let State { books, holders } = &mut *state;
        let book = books.entry(endpoint).or_default();
        let mut applied = Applied::default();
        for event in events {
            book.apply(event, &mut applied, &mut |change| match change {
                Change::Stores(seen) => {
                    if let Some(observer) = &self.observer {
                        observer(endpoint, seen);
                    }
                }
                Change::Holds(key) => hold(holders, key, endpoint),
                Change::Drops(key) => drop_hold(holders, key, endpoint),
            });
        }
        applied
    }

    /// What an endpoint holds, to restore elsewhere; none before its first event.
    #[must_use]
    pub fn picture(&self, endpoint: EndpointId) -> Option<Picture> {
        let state = self.state.read();
        let book = state.books.get(&endpoint)?;
        Some(Picture {
            block_size: book.block_size?,
            shows_salt: book.shows_salt,
            copies: book.rows().collect(),
        })
    }

    /// Puts what was kept of an endpoint in place of what is held of it, at once.
    pub fn restore(&self, endpoint: EndpointId, picture: &Picture) {
        let mut state = self.state.write();
        let State { books, holders } = &mut *state;
        let book = books.entry(endpoint).or_default();
        book.clear(&mut |key| drop_hold(holders, key, endpoint));
        book.block_size = Some(picture.block_size);
        book.shows_salt = picture.shows_salt;
        book.fill(&picture.copies, &mut |key| hold(holders, key, endpoint));
    }

    /// How many leading blocks of the chain each endpoint holds, by falling count; endpoints
    /// that hold none are left out.
    #[must_use]
    pub fn overlap(&self, chain: &Chain) -> Vec<(EndpointId, u32)> {
        let state = self.state.read();
        let mut ended: Vec<(EndpointId, u32)> = Vec::new();
        let mut alive: Vec<EndpointId> =
            match chain.keys.first().and_then(|key| state.holders.get(key)) {
                Some(holders) => holders.iter().map(|holder| holder.endpoint).collect(),
                None => return ended,
            };
        for (depth, key) in (0u32..).zip(&chain.keys) {
            let holders = state.holders.get(key).map_or(&[][..], Vec::as_slice);
            alive.retain(|endpoint| {
                let holds = holders.iter().any(|holder| holder.endpoint == *endpoint);
                if !holds {
                    ended.push((*endpoint, depth));
                }
                holds
            });
            if alive.is_empty() {
                break;
            }
        }
        let whole = chain.keys.len() as u32;
        ended.extend(alive.into_iter().map(|endpoint| (endpoint, whole)));
        ended.reverse();
        ended
    }

    /// Whether an endpoint holds a block.
    #[must_use]
    pub fn holds(&self, endpoint: EndpointId, key: BlockKey) -> bool {
        let state = self.state.read();
        let holders = state.holders.get(&key).map_or(&[][..], Vec::as_slice);
        holders.iter().any(|holder| holder.endpoint == endpoint)
    }

    /// Drops an endpoint's whole picture; its block size and adapters with it.
    pub fn forget(&self, endpoint: EndpointId) {
        let mut state = self.state.write();
        let State { books, holders } = &mut *state;
        if let Some(mut book) = books.remove(&endpoint) {
            book.clear(&mut |key| drop_hold(holders, key, endpoint));
        }
    }

    /// Tells the names behind an endpoint's `lora_id`s, in their order of loading: vLLM before
    /// 0.14.1 puts no name into its events. Kept until the endpoint is forgotten.
    pub fn name_adapters(&self, endpoint: EndpointId, names: Vec<String>) {
        self.state
            .write()
            .books
            .entry(endpoint)
            .or_default()
            .adapters = names;
    }

    /// Announces that a request with `kv_cache_report_mode=full` (vLLM 0.26 and later) will
    /// make this endpoint report leading blocks of `chain` again: indistinguishable from new
    /// copies, and none. Each of its `answers` reports what it finds; the first finds `blocks`,
    /// and is silent if that is none.
    pub fn expect_reports(&self, endpoint: EndpointId, chain: &Chain, blocks: u32, answers: u32) {
        let reports = answers.saturating_sub(u32::from(blocks == 0));
        if reports > 0 && !chain.keys.is_empty() {
            let mut state = self.state.write();
            let book = state.books.entry(endpoint).or_default();
            book.expect_reports(chain.keys.clone(), reports);
        }
    }

    /// The block size that an endpoint's events give; none before its first.
    #[must_use]
    pub fn block_size(&self, endpoint: EndpointId) -> Option<u32> {
        self.state
            .read()
            .books
            .get(&endpoint)
            .and_then(|book| book.block_size)
    }

    /// Whether an endpoint's events show cache salts (vLLM 0.17.1 and later); none before its
    /// first store.
    #[must_use]
    pub fn shows_salt(&self, endpoint: EndpointId) -> Option<bool> {
        self.state
            .read()
            .books
            .get(&endpoint)
            .and_then(|book| book.shows_salt)
    }

    /// What an endpoint holds, in two numbers: physical copies, and a sum over engine hashes and
    /// their copies. Equal pictures have equal ones, whoever keeps them.
    #[must_use]
    pub fn digest(&self, endpoint: EndpointId) -> (u64, u64) {
        let state = self.state.read();
        let rows = state.books.get(&endpoint).into_iter().flat_map(Book::rows);
        rows.fold((0, 0), |(copies, digest), (hash, _, count)| {
            let of_row = digest_of(hash, count);
            (copies + u64::from(count), digest.wrapping_add(of_row))
        })
    }

    /// How large the picture is.
    #[must_use]
    pub fn size(&self) -> Size {
        let state = self.state.read();
        let pairs = state.books.values().map(Book::len).sum();
        Size {
            blocks: state.holders.len(),
            pairs,
        }
    }

    /// Engine hashes that an endpoint's picture holds.
    #[must_use]
    pub fn blocks_of(&self, endpoint: EndpointId) -> usize {
        self.state.read().books.get(&endpoint).map_or(0, Book::len)
    }
}

/// An engine hash's part of [`Index::digest`].
#[must_use]
pub fn digest_of(hash: u64, copies: u32) -> u64 {
    xxh3_64_with_seed(&hash.to_le_bytes(), u64::from(copies))
}

fn hold(holders: &mut HashMap<BlockKey, Vec<Holder>>, key: BlockKey, endpoint: EndpointId) {
    let of_key = holders.entry(key).or_default();
    match of_key.iter_mut().find(|holder| holder.endpoint == endpoint) {
        Some(holder) => holder.names += 1,
        None => of_key.push(Holder { endpoint, names: 1 }),
    }
}

fn drop_hold(holders: &mut HashMap<BlockKey, Vec<Holder>>, key: BlockKey, endpoint: EndpointId) {
    let Some(of_key) = holders.get_mut(&key) else {
        return;
    };
    if let Some(at) = of_key.iter().position(|holder| holder.endpoint == endpoint) {
        of_key[at].names -= 1;
        if of_key[at].names == 0 {
            of_key.swap_remove(at);
        }
    }
    if of_key.is_empty() {
        holders.remove(&key);
    }
}

#[cfg(test)]
mod tests;

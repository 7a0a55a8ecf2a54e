//! Who holds which block: [`Index::apply`], [`Index::overlap`], [`Index::forget`].
//!
//! Two layers. Each endpoint has a [`Book`](book::Book) of the physical copies that its engine
//! hashes stand for, per medium and group; vLLM stores duplicates and removes them one by one, so
//! copies are counted, per hash. Above them stands one map from block key to its holders, which is
//! all that a lookup reads. One lock covers both, for the length of a batch of events or of a lookup:
//! readers see every endpoint between two of its batches, never inside one.

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::blocks::{
    BlockEvent, BlockKey, Chain, Chains, Identity, Medium, Shape, Stored, TokenId,
};
use crate::fleet::EndpointId;

mod book;
mod cache;
mod hit;
mod keyed;
mod names;
mod orphans;
mod overlap;

use book::{Book, Change};
pub use cache::{CachePicture, Place};
use keyed::KeyedMap;
pub use overlap::Cached;

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
    books: KeyedMap<EndpointId, Book>,
    holders: KeyedMap<BlockKey, Vec<Holder>>,
}

/// An endpoint that holds a block in one of its caches, under `names` engine hashes: two hashes of
/// one server can mean the same block to us where its events hide what tells them apart (a LoRA
/// path, or a cache salt before vLLM 0.17.1).
#[derive(Debug, Clone, Copy)]
struct Holder {
    endpoint: EndpointId,
    cache: u8,
    names: u32,
    /// Those of which it may have been removed in a gap.
    unsure: u32,
}

impl Holder {
    /// By which the holders of a block are sorted, so that those of two blocks are compared in one
    /// pass.
    fn place(&self) -> (EndpointId, u8) {
        (self.endpoint, self.cache)
    }

    fn is_sure(&self) -> bool {
        self.unsure < self.names
    }
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
    /// Copies that nobody can name yet, such as those whose parent we never saw: counted, but in
    /// nobody's overlap.
    pub orphans: u32,
    /// Removals of copies that we never saw.
    pub unknown: u32,
    /// Blocks reported again on a request's demand (`kv_cache_report_mode=full`), not stored.
    pub reported: u32,
    /// Blocks on media that this version does not know.
    pub elsewhere: u32,
    /// Blocks of groups whose hits follow a rule that is not modelled.
    pub unmodelled: u32,
    /// Copies past [`book::COPIES_MAX`], not indexed.
    pub over_limit: u32,
}

/// What one endpoint holds, apart from the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// Whether its events show cache salts.
    pub shows_salt: Option<bool>,
    /// Each medium and group.
    pub caches: Vec<CachePicture>,
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
        // What one group stores first, another may name later in the batch.
        let unnamed = book.unnamed;
        for event in events {
            book.apply(event, &mut applied, &mut |change| match change {
                Change::Stores(seen) => {
                    if let Some(observer) = &self.observer {
                        observer(endpoint, seen);
                    }
                }
                change => note(holders, endpoint, &change),
            });
        }
        applied.orphans = book.unnamed.saturating_sub(unnamed);
        applied
    }

    /// Events of an endpoint were lost: what it holds may be gone, and counts as
    /// [`Cached::unsure`] until it is heard of again. It is given up once as many blocks have been
    /// stored as there were.
    pub fn doubt(&self, endpoint: EndpointId) {
        self.with_book(endpoint, |book, change| book.doubt(change));
    }

    /// Gives up what an endpoint may not hold any more.
    pub fn drop_unsure(&self, endpoint: EndpointId) {
        self.with_book(endpoint, |book, change| book.drop_unsure(change));
    }

    /// Ends every block of an endpoint, but keeps what an operator said of it.
    pub fn empty(&self, endpoint: EndpointId) {
        self.with_book(endpoint, |book, change| book.clear(change));
    }

    fn with_book(
        &self,
        endpoint: EndpointId,
        act: impl FnOnce(&mut Book, &mut dyn FnMut(Change<'_>)),
    ) {
        let mut state = self.state.write();
        let State { books, holders } = &mut *state;
        if let Some(book) = books.get_mut(&endpoint) {
            act(book, &mut |change| note(holders, endpoint, &change));
        }
    }

    /// What an endpoint holds for sure, to restore elsewhere; none before its first event.
    #[must_use]
    pub fn picture(&self, endpoint: EndpointId) -> Option<Picture> {
        let state = self.state.read();
        let book = state.books.get(&endpoint)?;
        book.shape()?;
        Some(Picture {
            shows_salt: book.shows_salt,
            caches: book.picture(),
        })
    }

    /// Puts what was kept of an endpoint in place of what is held of it, at once.
    pub fn restore(&self, endpoint: EndpointId, picture: &Picture) {
        let mut state = self.state.write();
        let State { books, holders } = &mut *state;
        let book = books.entry(endpoint).or_default();
        let mut change = |change: Change<'_>| note(holders, endpoint, &change);
        book.clear(&mut change);
        book.shows_salt = picture.shows_salt;
        book.fill(&picture.caches, &mut change);
    }

    /// How much of a prompt's start each of these endpoints holds, in their order.
    #[must_use]
    pub fn cached(&self, endpoints: &[EndpointId], prompt: &mut Chains<'_>) -> Vec<Cached> {
        // A long prompt is hashed before the lock is held.
        let shapes = self.state.read().shapes(endpoints);
        for shape in shapes {
            prompt.of(shape);
        }
        self.state.read().cached(endpoints, prompt)
    }

    /// The same of one endpoint.
    #[must_use]
    pub fn cached_at(
        &self,
        endpoint: EndpointId,
        tokens: &[TokenId],
        identity: &Identity,
    ) -> Cached {
        let mut prompt = Chains::new(tokens, identity);
        let cached = self.cached(&[endpoint], &mut prompt);
        cached.first().copied().unwrap_or_default()
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
            book.clear(&mut |change| note(holders, endpoint, &change));
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

    /// How an endpoint cuts prompts into blocks; none before its first store.
    #[must_use]
    pub fn shape(&self, endpoint: EndpointId) -> Option<Shape> {
        self.state.read().books.get(&endpoint)?.shape()
    }

    /// Tokens at whose multiples an endpoint's hits end, and what it stores of a prompt: all block
    /// sizes of its groups divide them (`get_num_cacheable_tokens`).
    #[must_use]
    pub fn alignment(&self, endpoint: EndpointId) -> u64 {
        let state = self.state.read();
        state.books.get(&endpoint).map_or(1, Book::alignment)
    }

    /// Whether an endpoint has a group whose hit rule is not modelled.
    #[must_use]
    pub fn has_unmodelled(&self, endpoint: EndpointId) -> bool {
        let state = self.state.read();
        state.books.get(&endpoint).is_some_and(Book::has_unmodelled)
    }

    /// Physical copies in an endpoint's own cache: at most what its `num_gpu_blocks` allow, or
    /// removals were lost.
    #[must_use]
    pub fn physical(&self, endpoint: EndpointId) -> u64 {
        let state = self.state.read();
        state.books.get(&endpoint).map_or(0, Book::physical)
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

    /// What an endpoint holds for sure, in two numbers: physical copies, and a sum over engine hashes
    /// and their copies. Equal pictures have equal ones, whoever keeps them.
    #[must_use]
    pub fn digest(&self, endpoint: EndpointId) -> (u64, u64) {
        let state = self.state.read();
        let caches = state
            .books
            .get(&endpoint)
            .map_or(&[][..], |book| &book.caches);
        let mut digest = (0, 0u64);
        for cache in caches {
            let sure = cache.copies.iter().filter(|(_, copies)| !copies.unsure);
            for (hash, copies) in sure {
                digest.0 += u64::from(copies.count);
                let of_hash = digest_of(cache.place, hash.0, copies.count);
                digest.1 = digest.1.wrapping_add(of_hash);
            }
        }
        digest
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
pub fn digest_of(place: Place, hash: u64, copies: u32) -> u64 {
    let medium = match place.medium {
        Medium::Gpu => 0,
        Medium::Cpu => 1,
        Medium::Storage => 2,
        Medium::Other => 3,
    };
    let place = u64::from(place.group) << 40 | medium << 32;
    xxh3_64_with_seed(&hash.to_le_bytes(), place | u64::from(copies))
}

/// Keeps the holders of a block as a book's change says.
fn note(holders: &mut KeyedMap<BlockKey, Vec<Holder>>, endpoint: EndpointId, change: &Change<'_>) {
    let (cache, key) = match *change {
        Change::Stores(_) => return,
        Change::Holds(cache, key) | Change::Drops(cache, key, _) => (cache, key),
        Change::Doubts(cache, key) | Change::Confirms(cache, key) => (cache, key),
    };
    let of_key = holders.entry(key).or_default();
    let at = of_key.binary_search_by_key(&(endpoint, cache), Holder::place);
    let at = at.unwrap_or_else(|at| {
        let holder = Holder {
            endpoint,
            cache,
            names: 0,
            unsure: 0,
        };
        of_key.insert(at, holder);
        at
    });
    let holder = &mut of_key[at];
    match *change {
        Change::Stores(_) => {}
        Change::Holds(..) => holder.names += 1,
        Change::Doubts(..) => holder.unsure += 1,
        Change::Confirms(..) => holder.unsure -= 1,
        Change::Drops(_, _, unsure) => {
            holder.names -= 1;
            holder.unsure -= u32::from(unsure);
            if holder.names == 0 {
                of_key.remove(at);
            }
        }
    }
    if of_key.is_empty() {
        holders.remove(&key);
    }
}

#[cfg(test)]
mod tests;

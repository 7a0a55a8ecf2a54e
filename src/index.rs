//! Who holds which block: [`Index::apply`], [`Index::cached`], [`Index::forget`].
//!
//! Two layers. Each endpoint has a [`Book`](book::Book) of the physical copies that its engine
//! hashes stand for, per medium and group; vLLM stores duplicates and removes them one by one, so
//! copies are counted, per hash. Above them stand [trees](tree) of prompts that say who holds how much
//! of each, which is all that a lookup reads.
//!
//! A book has a lock of its own, for whoever applies that endpoint's events; each tree has one, for
//! the length of what one event says of it, and a prompt is all in one tree. So a lookup sees every
//! endpoint between two of its events; of one with more than 4,096 blocks it may see the first so many.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::blocks::{BlockEvent, BlockKey, Chain, Medium, Shape, Stored};
use crate::fleet::EndpointId;

mod book;
mod cache;
mod copies;
mod expect;
mod forest;
mod hit;
mod keyed;
mod names;
mod orphans;
mod overlap;
mod picture;
mod prefetch;
mod prefixes;
mod room;
mod seats;
mod slab;
mod tree;

use book::{Book, Of};
pub use cache::{CachePicture, Place};
pub use expect::Expectation;
pub use overlap::Cached;
pub use picture::Picture;
pub use prefixes::Prefix;
use seats::{Shared, View};
pub use tree::{Depths, Holder};

/// The picture of every endpoint's cache.
#[derive(Default)]
pub struct Index {
    shared: Shared,
    observer: Option<Box<Observer>>,
}

/// Is shown every store, while the endpoint's book and the prompt's tree are locked for it: a quick look
/// that does not come back to the index.
type Observer = dyn Fn(EndpointId, &Seen<'_>) + Send + Sync;

/// Where one endpoint's events go.
#[derive(Debug, Clone)]
pub struct Feed {
    endpoint: EndpointId,
    book: Arc<Mutex<Book>>,
}

/// Blocks that an endpoint says it stored in the engine's own cache, under our names.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The block before the first one, or the root; none where the parent is unknown.
    pub parent: Option<BlockKey>,
    /// One per block; none where the parent is unknown, or which of the blocks these are.
    pub keys: &'a [BlockKey],
    /// The event.
    pub stored: &'a Stored,
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

/// How large the picture is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Different block keys: of blocks that somebody holds, and of those that stand before one.
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

    /// Applies what one endpoint did, in order. Lookups may see it after any of the events.
    pub fn apply(&self, endpoint: EndpointId, events: &[BlockEvent]) -> Applied {
        self.take(&mut self.feed(endpoint), events)
    }

    /// The way in for whoever applies an endpoint's events for long.
    #[must_use]
    pub fn feed(&self, endpoint: EndpointId) -> Feed {
        let book = self.seat(endpoint, |seat| seat.book.clone());
        Feed { endpoint, book }
    }

    /// The same as [`Self::apply`].
    pub fn take(&self, feed: &mut Feed, events: &[BlockEvent]) -> Applied {
        let endpoint = feed.endpoint;
        let observe = |seen: &Seen<'_>| {
            if let Some(observer) = &self.observer {
                observer(endpoint, seen);
            }
        };
        let of = Of {
            shared: &self.shared,
            observe: &observe,
        };
        let (mut applied, mut looks) = (Applied::default(), false);
        self.with_book(feed, |book| {
            // What one group stores first, another may name later in the batch.
            let unnamed = book.unnamed;
            let mut rest = events;
            while !rest.is_empty() {
                let (next, later) = rest.split_at(book.prefetch(rest));
                for event in next {
                    book.apply(event, &mut applied, &of);
                    self.show(endpoint, book);
                }
                rest = later;
            }
            applied.orphans = book.unnamed.saturating_sub(unnamed);
            book.on_batch(&self.shared);
            book.stored += applied.stored;
            looks = book.stored >= room::LOOK;
            if looks {
                book.stored = 0;
                self.shared.room.tick();
                self.shared.room.count(book);
            }
        });
        if looks {
            self.look();
        }
        applied
    }

    /// Events of an endpoint were lost: what it holds may be gone, and counts as
    /// [`Cached::unsure`] until it is heard of again. It is given up once more blocks have been
    /// stored than there were.
    pub fn doubt(&self, endpoint: EndpointId) {
        self.change(endpoint, |book| book.doubt(&self.shared));
    }

    /// Gives up what an endpoint may not hold any more.
    pub fn drop_unsure(&self, endpoint: EndpointId) {
        self.change(endpoint, Book::drop_unsure);
    }

    /// Ends every block of an endpoint, but keeps what an operator said of it.
    pub fn empty(&self, endpoint: EndpointId) {
        self.change(endpoint, |book| book.clear(&self.shared));
    }

    /// What an endpoint holds for sure, to restore elsewhere; none before its first event.
    #[must_use]
    pub fn picture(&self, endpoint: EndpointId) -> Option<Picture> {
        let book = self.book(endpoint)?;
        let book = book.lock();
        book.view().shape()?;
        Some(book.picture(&self.shared.forest))
    }

    /// Puts what was kept of an endpoint in place of what is held of it, at once.
    pub fn restore(&self, endpoint: EndpointId, picture: &Picture) {
        self.with_new_book(endpoint, |book| {
            book.clear(&self.shared);
            book.fill(picture, &self.shared);
        });
        self.look();
    }

    /// Whether an endpoint holds the last block of a chain, in any of its caches.
    #[must_use]
    pub fn holds(&self, endpoint: EndpointId, chain: &Chain) -> bool {
        let seats = self.shared.seats.read();
        let (seat, first) = (seats.by_endpoint.get(&endpoint), chain.keys.first());
        let (Some(seat), Some(first)) = (seat, first) else {
            return false;
        };
        let tree = self.shared.forest.read(self.shared.forest.tree_of(*first));
        tree.last(&chain.keys).is_some_and(|last| {
            let mut holders = seat.view.caches.iter().filter_map(|cache| cache.any);
            holders.any(|holder| tree.is_held(holder, last))
        })
    }

    /// Drops an endpoint's whole picture; its block size and adapters with it.
    pub fn forget(&self, endpoint: EndpointId) {
        let seat = {
            let mut seats = self.shared.seats.write();
            let seat = seats.by_endpoint.remove(&endpoint);
            seats.count_shapes();
            seat
        };
        if let Some(seat) = seat {
            let mut book = seat.book.lock();
            book.closed = true;
            book.clear(&self.shared);
            self.shared.room.count(&mut book);
            self.shared.bury(std::mem::take(&mut book.retired));
        }
    }

    /// Tells the names behind an endpoint's `lora_id`s, in their order of loading: vLLM before
    /// 0.14.1 puts no name into its events. Kept until the endpoint is forgotten.
    pub fn name_adapters(&self, endpoint: EndpointId, names: Vec<String>) {
        self.with_new_book(endpoint, |book| book.adapters = names);
    }

    /// Announces that a request with `kv_cache_report_mode=full` (vLLM 0.26 and later) will
    /// make this endpoint report leading blocks of `chain` again: indistinguishable from new
    /// copies, and none. Each of its `answers` reports what it finds; the first finds `blocks`,
    /// and is silent if that is none.
    pub fn expect_reports(&self, endpoint: EndpointId, chain: &Chain, blocks: u32, answers: u32) {
        let reports = answers.saturating_sub(u32::from(blocks == 0));
        if reports > 0 && !chain.keys.is_empty() {
            let expected = self.seat(endpoint, |seat| seat.reports.clone());
            expected.lock().expect(chain.keys.clone(), reports);
        }
    }

    /// How an endpoint cuts prompts into blocks; none before its first store.
    #[must_use]
    pub fn shape(&self, endpoint: EndpointId) -> Option<Shape> {
        self.view(endpoint, View::shape)?
    }

    /// Tokens at whose multiples an endpoint's hits end, and what it stores of a prompt: all block
    /// sizes of its groups divide them (`get_num_cacheable_tokens`).
    #[must_use]
    pub fn alignment(&self, endpoint: EndpointId) -> u64 {
        let alignment = self.view(endpoint, |view| view.alignment);
        alignment.unwrap_or(1).max(1)
    }

    /// Whether an endpoint has a group whose hit rule is not modelled.
    #[must_use]
    pub fn has_unmodelled(&self, endpoint: EndpointId) -> bool {
        self.view(endpoint, View::has_unmodelled) == Some(true)
    }

    /// Whether an endpoint's events show cache salts (vLLM 0.17.1 and later); none before its
    /// first store.
    #[must_use]
    pub fn shows_salt(&self, endpoint: EndpointId) -> Option<bool> {
        self.view(endpoint, |view| view.shows_salt)?
    }

    /// Physical copies in an endpoint's own cache: at most what its `num_gpu_blocks` allow, or
    /// removals were lost.
    #[must_use]
    pub fn physical(&self, endpoint: EndpointId) -> u64 {
        let book = self.book(endpoint);
        book.map_or(0, |book| book.lock().physical())
    }

    /// What an endpoint holds for sure, in two numbers: physical copies, and a sum over engine hashes
    /// and their copies. Equal pictures have equal ones, whoever keeps them.
    #[must_use]
    pub fn digest(&self, endpoint: EndpointId) -> (u64, u64) {
        let mut digest = (0, 0u64);
        let Some(book) = self.book(endpoint) else {
            return digest;
        };
        for cache in &book.lock().caches {
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
        let books = self.shared.seats.read().books();
        Size {
            blocks: self.shared.forest.len(),
            pairs: books.iter().map(|(_, book)| book.lock().len).sum(),
        }
    }

    /// Engine hashes that an endpoint's picture holds.
    #[must_use]
    pub fn blocks_of(&self, endpoint: EndpointId) -> usize {
        self.book(endpoint).map_or(0, |book| book.lock().len)
    }

    fn view<T>(&self, endpoint: EndpointId, of: impl FnOnce(&View) -> T) -> Option<T> {
        let seats = self.shared.seats.read();
        let seat = seats.by_endpoint.get(&endpoint)?;
        Some(of(&seat.view))
    }

    /// The books of those who are any of these holders.
    fn books_of(&self, holders: &HashSet<Holder>) -> Vec<(EndpointId, Arc<Mutex<Book>>)> {
        let seats = self.shared.seats.read();
        let is_one = |seat: &seats::Seat| {
            let caches = seat.view.caches.iter();
            let mut of = caches.flat_map(|cache| [cache.any, cache.sure]).flatten();
            of.any(|holder| holders.contains(&holder))
        };
        let seats = seats.by_endpoint.iter().filter(|(_, seat)| is_one(seat));
        let books = seats.map(|(endpoint, seat)| (*endpoint, seat.book.clone()));
        books.collect()
    }

    fn book(&self, endpoint: EndpointId) -> Option<Arc<Mutex<Book>>> {
        let seats = self.shared.seats.read();
        Some(seats.by_endpoint.get(&endpoint)?.book.clone())
    }

    /// A part of an endpoint's seat; it has one from now on.
    fn seat<T>(&self, endpoint: EndpointId, part: impl Fn(&seats::Seat) -> T) -> T {
        let known = self.shared.seats.read();
        if let Some(seat) = known.by_endpoint.get(&endpoint) {
            return part(seat);
        }
        drop(known);
        let mut seats = self.shared.seats.write();
        part(seats.by_endpoint.entry(endpoint).or_default())
    }

    /// Changes an endpoint's book, and shows what became of it; nothing where there is none.
    fn change(&self, endpoint: EndpointId, change: impl FnOnce(&mut Book)) {
        if let Some(book) = self.book(endpoint) {
            let mut book = book.lock();
            if !book.closed {
                change(&mut book);
                self.show(endpoint, &mut book);
            }
        }
    }

    /// The same with a new book where there is none.
    fn with_new_book(&self, endpoint: EndpointId, change: impl FnOnce(&mut Book)) {
        self.with_book(&mut self.feed(endpoint), |book| {
            change(book);
            self.show(endpoint, book);
        });
    }

    fn with_book(&self, feed: &mut Feed, act: impl FnOnce(&mut Book)) {
        loop {
            let mut book = feed.book.lock();
            if !book.closed {
                return act(&mut book);
            }
            // Forgotten: there is a new one, or will be.
            drop(book);
            *feed = self.feed(feed.endpoint);
        }
    }

    /// Lets lookups see what has become of a book's caches, and cleans up what they saw before.
    fn show(&self, endpoint: EndpointId, book: &mut Book) {
        if std::mem::take(&mut book.changed) {
            // Of one that is forgotten there may be another seat by now.
            if !book.closed {
                self.shared.publish(endpoint, book.view());
            }
            self.shared.room.count(book);
            self.shared.bury(std::mem::take(&mut book.retired));
        }
    }

    /// Clears up if there is too much.
    fn look(&self) {
        if self.shared.bytes_lasting() > self.shared.room.bytes_max {
            self.make_room();
        }
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

#[cfg(test)]
mod tests;

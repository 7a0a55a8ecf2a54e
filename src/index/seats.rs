//! Who there is: of each endpoint its book, and what a lookup needs to know of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, RwLock};

use crate::blocks::{Rule, Shape};
use crate::fleet::EndpointId;
use crate::index::book::{Book, Reports};
use crate::index::cache::Place;
use crate::index::forest::Forest;
use crate::index::keyed::KeyedMap;
use crate::index::room::Room;
use crate::index::tree::{BlockId, Holder};

/// What books and lookups share. Whoever takes more than one of its locks takes a book's first, and a
/// tree's last.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub forest: Forest,
    pub room: Room,
    pub seats: RwLock<Seats>,
}

#[derive(Debug, Default)]
pub(super) struct Seats {
    pub by_endpoint: KeyedMap<EndpointId, Seat>,
    /// How their prompts are cut.
    shapes: Vec<Shape>,
    holders: Holders,
}

#[derive(Debug)]
pub(super) struct Seat {
    pub book: Arc<Mutex<Book>>,
    /// The book's.
    pub reports: Arc<Mutex<Reports>>,
    pub view: View,
}

impl Default for Seat {
    fn default() -> Self {
        let book = Book::default();
        Self {
            reports: book.reports.clone(),
            book: Arc::new(Mutex::new(book)),
            view: View::default(),
        }
    }
}

/// An endpoint's caches, as lookups see them. It changes at once: what a cache held before goes
/// out of sight with its holder's number, and is cleaned up after that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct View {
    pub caches: Vec<CacheView>,
    /// The engine's own cache of full attention, in which every block of a prompt is stored.
    pub main: Option<usize>,
    /// A multiple of the block sizes of all groups whose hits count.
    pub alignment: u64,
    /// Whether its events show cache salts; none before its first store.
    pub shows_salt: Option<bool>,
    /// Whether blocks of it were given up for room.
    pub gave_up: bool,
    /// Who holds what it was given and has not told of yet.
    pub expected: Option<Holder>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheView {
    pub place: Place,
    pub rule: Rule,
    pub shape: Option<Shape>,
    pub any: Option<Holder>,
    /// None where all is sure.
    pub sure: Option<Holder>,
}

/// A holder that is seen no more, and what it held.
#[derive(Debug)]
pub(super) struct Retired {
    pub holder: Holder,
    pub blocks: Vec<BlockId>,
}

impl View {
    /// How prompts are cut there; none before the first store.
    pub fn shape(&self) -> Option<Shape> {
        match self.main {
            Some(main) => self.caches[main].shape,
            None => self.caches.iter().find(|cache| cache.place.is_own())?.shape,
        }
    }

    /// Whether one cache is all there is, and every block of it is needed.
    pub fn is_plain(&self) -> bool {
        self.caches.len() == 1 && self.main == Some(0)
    }

    pub fn is_unsure(&self) -> bool {
        self.caches.iter().any(|cache| cache.sure.is_some())
    }

    /// Whether it has a group whose blocks nobody counts, though hits depend on them.
    pub fn has_unmodelled(&self) -> bool {
        self.caches.iter().any(|cache| cache.rule == Rule::Unknown)
    }
}

impl CacheView {
    /// Who holds there, all or what is sure.
    pub fn holder(&self, sure: bool) -> Option<Holder> {
        self.sure.filter(|_| sure).or(self.any)
    }

    /// Whether the engine's hits depend on it in a way that is known. Of a group that is not modelled
    /// nothing is, and the endpoint is not trusted.
    pub fn counts_for_hits(&self) -> bool {
        self.place.is_own() && self.rule != Rule::Unknown
    }
}

impl Shared {
    pub fn take_holder(&self) -> Option<Holder> {
        self.seats.write().holders.take()
    }

    /// Shows what has become of an endpoint's caches.
    pub fn publish(&self, endpoint: EndpointId, view: View) {
        let mut seats = self.seats.write();
        if let Some(seat) = seats.by_endpoint.get_mut(&endpoint) {
            seat.view = view;
        }
        seats.count_shapes();
    }

    /// Cleans up behind holders that are seen no more, and gives their numbers back.
    pub fn bury(&self, retired: Vec<Retired>) {
        for Retired { holder, mut blocks } in retired {
            let going = &self.room.going;
            going.fetch_add(blocks.len(), Ordering::Relaxed);
            self.forest.retire(holder, &mut blocks);
            going.fetch_sub(blocks.len(), Ordering::Relaxed);
            self.seats.write().holders.give_back(holder);
        }
    }
}

impl Seats {
    pub fn books(&self) -> Vec<(EndpointId, Arc<Mutex<Book>>)> {
        let seats = self.by_endpoint.iter();
        let books = seats.map(|(endpoint, seat)| (*endpoint, seat.book.clone()));
        books.collect()
    }

    /// How these endpoints cut prompts: of a fleet that does so in one way nobody is asked.
    pub fn shapes_of(&self, endpoints: impl Iterator<Item = EndpointId>) -> Vec<Shape> {
        if self.shapes.len() <= 1 {
            return self.shapes.clone();
        }
        shapes(endpoints.filter_map(|id| self.by_endpoint.get(&id)))
    }

    pub fn count_shapes(&mut self) {
        self.shapes = shapes(self.by_endpoint.values());
    }
}

/// Each of their shapes once.
fn shapes<'a>(seats: impl Iterator<Item = &'a Seat>) -> Vec<Shape> {
    let caches = seats.flat_map(|seat| &seat.view.caches);
    let mut shapes = Vec::new();
    for shape in caches.filter_map(|cache| cache.shape) {
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

/// Numbers of holders: the smallest that is free.
#[derive(Debug, Default)]
struct Holders {
    free: BTreeSet<u16>,
    given: u16,
}

impl Holders {
    /// None where all are in use: 65,534 caches. Blocks count who holds them in 16 bits, and who pins
    /// them while they are named.
    fn take(&mut self) -> Option<Holder> {
        if let Some(free) = self.free.pop_first() {
            return Some(Holder(free));
        }
        let next = self.given.checked_add(1).filter(|next| *next < u16::MAX)?;
        Some(Holder(std::mem::replace(&mut self.given, next)))
    }

    fn give_back(&mut self, holder: Holder) {
        self.free.insert(holder.0);
    }
}

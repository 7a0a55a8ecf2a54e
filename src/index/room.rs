//! The index within its memory: past its limit the prompts go first in which nothing was stored for
//! the longest, from their ends. Whoever held them holds more than we know from then on, and says so.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLockWriteGuard};

use crate::blocks::EngineHash;
use crate::fleet::EndpointId;
use crate::index::Index;
use crate::index::book::Book;
use crate::index::seats::Shared;
use crate::index::tree::{BLOCK_BYTES, BlockId, Holder};

/// Copies that an endpoint stores from one look at the memory to the next: some 50 KB.
pub(super) const LOOK: u32 = 1024;

/// Blocks given up at a time.
const GIVEN_UP_AT_ONCE: usize = 64;

/// Blocks, or runs, looked at at a time.
const LOOKED_AT_ONCE: usize = 4096;

/// Parts of a limit that are kept free once it was reached, so that not every store clears up.
const FREED: usize = 8;

/// Times that leaves are given up in a row: each lays bare those before them.
const ROUNDS_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Room {
    pub bytes_max: usize,
    /// Orders runs by when something was last stored in them: one tick is [`LOOK`] copies. Nothing
    /// else hangs on it, so it may be read late.
    clock: AtomicU32,
    counted: Mutex<Counted>,
    clearing: Mutex<()>,
    /// Bytes of the index when they were last added up, and of what was expected since: for those who
    /// cannot ask every tree. Behind by what was stored since, some 50 KB for each endpoint; ahead by
    /// what was expected and has ended, until the next look, which every [`LOOK`] copies bring.
    noted: AtomicUsize,
    /// Blocks that nobody asks for any more and that leave the trees at this moment.
    pub going: AtomicUsize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counted {
    /// Of all books.
    bytes: usize,
    given_up: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bytes_max: usize::MAX,
            clock: AtomicU32::new(0),
            counted: Mutex::default(),
            clearing: Mutex::default(),
            noted: AtomicUsize::new(0),
            going: AtomicUsize::new(0),
        }
    }
}

impl Room {
    pub fn now(&self) -> u32 {
        self.clock.load(Ordering::Relaxed)
    }

    pub fn tick(&self) {
        self.clock.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there was room at the last look for what is expected.
    pub fn has_some(&self) -> bool {
        self.noted.load(Ordering::Relaxed) < self.bytes_max
    }

    /// A tree has grown by what is expected.
    pub fn note_expected(&self, bytes: usize) {
        self.noted.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a book anew.
    pub fn count(&self, book: &mut Book) {
        let bytes = if book.closed { 0 } else { book.bytes() };
        let mut counted = self.counted.lock();
        counted.bytes = counted.bytes + bytes - book.counted;
        book.counted = bytes;
    }
}

impl Index {
    /// The same, of so many bytes at most, give or take what is stored between two looks. Past that
    /// the prompts go first in which nothing was stored for the longest.
    #[must_use]
    pub fn limited(mut self, bytes_max: usize) -> Self {
        self.shared.room.bytes_max = bytes_max;
        self
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.bytes()
    }

    /// Blocks given up for room, so far.
    #[must_use]
    pub fn given_up(&self) -> u64 {
        self.shared.room.counted.lock().given_up
    }

    /// Whether blocks of an endpoint were given up for room: it may hold more than is known.
    #[must_use]
    pub fn gave_up(&self, endpoint: EndpointId) -> bool {
        self.view(endpoint, |view| view.gave_up) == Some(true)
    }

    /// Gives up prompts until there is room again.
    pub(super) fn make_room(&self) {
        let shared = &self.shared;
        let Some(_clearing) = shared.room.clearing.try_lock() else {
            return;
        };
        let enough = shared.room.bytes_max - shared.room.bytes_max / FREED;
        for _ in 0..ROUNDS_MAX {
            let bytes = shared.bytes_lasting();
            if bytes <= enough {
                return;
            }
            let concerned = shared.condemn(bytes - enough);
            let mut given_up = 0;
            for (endpoint, book) in self.books_of(&concerned) {
                let mut book = book.lock();
                if book.closed {
                    continue;
                }
                given_up += book.give_up(shared);
                self.show(endpoint, &mut book);
            }
            if given_up == 0 {
                break;
            }
            shared.room.counted.lock().given_up += given_up as u64;
        }
        // What is left is in nobody's prompts.
        self.clear_largest();
    }

    /// Gives up whole pictures, the largest first.
    fn clear_largest(&self) {
        let shared = &self.shared;
        let books = shared.seats.read().books().into_iter();
        let mut books: Vec<_> = books
            .map(|(endpoint, book)| (endpoint, book.lock().counted, book.clone()))
            .collect();
        books.sort_unstable_by_key(|(_, bytes, _)| Reverse(*bytes));
        for (endpoint, _, book) in books {
            if shared.bytes_lasting() <= shared.room.bytes_max {
                return;
            }
            let mut book = book.lock();
            if book.closed {
                continue;
            }
            // One that names nothing has no less to say than before.
            let (lost, gave_up) = (book.len, book.gave_up);
            book.clear(shared);
            book.gave_up = gave_up || lost > 0;
            self.show(endpoint, &mut book);
            shared.room.counted.lock().given_up += lost as u64;
        }
    }
}

impl Shared {
    pub fn bytes(&self) -> usize {
        let bytes = self.forest.bytes() + self.room.counted.lock().bytes;
        self.room.noted.store(bytes, Ordering::Relaxed);
        bytes
    }

    /// The same once what is going is gone; too few by the blocks of that which others hold as well.
    pub fn bytes_lasting(&self) -> usize {
        let going = self.room.going.load(Ordering::Relaxed) * BLOCK_BYTES;
        self.bytes().saturating_sub(going)
    }

    /// Marks as many of the runs behind which nothing stands as take so many bytes, the oldest first.
    /// Who holds them.
    fn condemn(&self, bytes: usize) -> HashSet<Holder> {
        let mut by_age: BTreeMap<u32, usize> = BTreeMap::new();
        for tree in self.forest.trees() {
            let runs = tree.read().runs();
            for few in slices(runs, LOOKED_AT_ONCE) {
                for (touched, bytes) in tree.read().leaves(few) {
                    *by_age.entry(touched).or_default() += bytes;
                }
            }
        }
        let (mut until, mut left) = (0, bytes);
        for (touched, bytes) in by_age {
            until = touched;
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => break,
            }
        }
        let mut holders = HashSet::new();
        for tree in self.forest.trees() {
            let runs = tree.read().runs();
            for few in slices(runs, LOOKED_AT_ONCE) {
                tree.write().condemn(few, until, &mut left, &mut holders);
            }
        }
        holders
    }
}

/// So many at a time.
pub(super) fn slices(runs: Range<u32>, at_once: usize) -> impl Iterator<Item = Range<u32>> {
    let Range { start, end } = runs;
    (start..end)
        .step_by(at_once)
        .map(move |from| from..end.min(from.saturating_add(at_once as u32)))
}

impl Book {
    pub(super) fn bytes(&self) -> usize {
        let of = |cache: &crate::index::cache::Cache| {
            cache.copies.bytes() + cache.partial.capacity() * 16
        };
        self.orphans.bytes() + self.caches.iter().map(of).sum::<usize>()
    }

    /// Drops all copies of blocks that are marked; how many hashes that were.
    fn give_up(&mut self, shared: &Shared) -> usize {
        let mut given_up = 0;
        for cache in &mut self.caches {
            let named = cache.copies.iter();
            let named = named.filter_map(|(hash, copies)| Some((copies.block?, hash)));
            let mut named: Vec<(BlockId, EngineHash)> = named.collect();
            named.sort_unstable_by_key(|(block, _)| *block);
            let mut doomed: Vec<_> = Vec::new();
            for of_tree in named.chunk_by(|(a, _), (b, _)| a.tree() == b.tree()) {
                for few in of_tree.chunks(LOOKED_AT_ONCE) {
                    let tree = shared.forest.read(few[0].0.tree());
                    let place = |block: BlockId| tree.condemned(block);
                    let few = few.iter().copied();
                    doomed
                        .extend(few.filter_map(|(block, hash)| Some((block, place(block)?, hash))));
                }
            }
            // From each run's end, as engines evict.
            doomed.sort_unstable_by_key(|(block, (run, at), _)| (block.tree(), *run, Reverse(*at)));
            for of_tree in doomed.chunk_by(|(a, ..), (b, ..)| a.tree() == b.tree()) {
                for few in of_tree.chunks(GIVEN_UP_AT_ONCE) {
                    let mut tree = shared.forest.write(few[0].0.tree());
                    for (block, _, hash) in few {
                        let (Some(_), Ok(slot)) =
                            (tree.condemned(*block), cache.copies.find(*hash))
                        else {
                            continue;
                        };
                        let copies = cache.copies.at(slot);
                        cache.copies.remove(slot);
                        cache.physical -= u64::from(copies.count);
                        cache.release(&mut tree, *block, copies.unsure);
                        given_up += 1;
                    }
                    RwLockWriteGuard::unlock_fair(tree);
                }
            }
        }
        self.len -= given_up;
        self.gave_up |= given_up > 0;
        self.changed |= given_up > 0;
        given_up
    }
}

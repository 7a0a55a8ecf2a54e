//! What a server was given and has not told of yet.
//!
//! vLLM makes a prompt's blocks hittable when it schedules them, and tells after the step. Until then
//! whoever placed the prompt knows more than the events say: a sibling that goes to the same server
//! waits behind it there, and finds them. Blocks of a running request are not evicted, so this holds
//! until it ends, and until its last events have come.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLockWriteGuard};

use crate::blocks::{Chain, Chains};
use crate::fleet::EndpointId;
use crate::index::Index;
use crate::index::book::Book;
use crate::index::cache::Presence;
use crate::index::forest::HELD_AT_ONCE;
use crate::index::seats::{Retired, Shared, View};
use crate::index::tree::BlockId;

/// Prompts expected of an endpoint at once; more than vLLM runs by default (`max_num_seqs`), with those
/// that wait.
const EXPECTED_MAX: usize = 1024;

/// Blocks of theirs: of all these 8,000 tokens, in blocks of 16. 4 MB for each endpoint, whoever says what
/// to expect.
const BLOCKS_MAX: usize = EXPECTED_MAX * 512;

/// Batches of events after which an ended prompt's own have come: the first may have been on its way
/// when it ended.
const LINGERS: u64 = 2;

/// Neither a choice nor a request's end waits for an endpoint whose book is being cleared.
const WAIT_MAX: Duration = Duration::from_millis(1);

/// Prompts that an endpoint was given.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// Under which the trees know their blocks.
    pub presence: Option<Presence>,
    prompts: HashMap<u64, Vec<BlockId>>,
    /// Theirs, all together.
    blocks: usize,
    next: u64,
    over: Arc<Over>,
    /// Prompts that were answered, and the batch with which they go.
    ended: VecDeque<(u64, u64)>,
    /// Batches so far.
    batches: u64,
}

/// Prompts that are not expected any more, and whether they were answered: told beside the book, which
/// may be locked.
type Over = Mutex<Vec<(u64, bool)>>;

impl Expected {
    fn linger(&mut self, prompt: u64) {
        if self.prompts.contains_key(&prompt) {
            self.ended.push_back((prompt, self.batches + LINGERS));
        }
    }

    /// Ends all of it.
    pub fn end(&mut self) -> Option<Retired> {
        let blocks = self.prompts.drain().flat_map(|(_, blocks)| blocks);
        let blocks = blocks.collect();
        self.ended.clear();
        self.blocks = 0;
        let holder = self.presence.take()?.holder;
        Some(Retired { holder, blocks })
    }
}

/// That a prompt is expected of an endpoint, until this is dropped.
pub struct Expectation {
    index: Arc<Index>,
    book: Arc<Mutex<Book>>,
    over: Arc<Over>,
    prompt: u64,
    told: bool,
}

impl Expectation {
    /// It was answered, so events tell of it, or will with one of the next batches.
    pub fn answered(mut self) {
        self.told = true;
    }
}

impl Index {
    /// Counts a prompt as held by an endpoint that it is given to, as [`Cached::expected`]. None where
    /// that is not known to help: before its first store, behind caches of several kinds, past the
    /// limits.
    ///
    /// [`Cached::expected`]: crate::index::Cached::expected
    #[must_use]
    pub fn expect(
        self: &Arc<Self>,
        endpoint: EndpointId,
        prompt: &Chains<'_>,
    ) -> Option<Expectation> {
        self.expect_chain(endpoint, prompt.made(self.shape(endpoint)?)?)
    }

    /// The same of a chain that another replica made; none where this endpoint cuts prompts otherwise.
    #[must_use]
    pub fn expect_chain(
        self: &Arc<Self>,
        endpoint: EndpointId,
        chain: &Chain,
    ) -> Option<Expectation> {
        let helps = |view: &View| view.is_plain() && view.shape() == Some(chain.shape);
        self.view(endpoint, helps).filter(|helps| *helps)?;
        let book = self.book(endpoint)?;
        let (prompt, over) = {
            let mut book = book.try_lock_for(WAIT_MAX)?;
            let prompt = book.expect(chain, &self.shared)?;
            self.show(endpoint, &mut book);
            (prompt, book.expected.over.clone())
        };
        Some(Expectation {
            index: self.clone(),
            book,
            over,
            prompt,
            told: false,
        })
    }
}

impl fmt::Debug for Expectation {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("Expectation").field(&self.prompt).finish()
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        self.over.lock().push((self.prompt, self.told));
        // Or the next batch of events sees it.
        if let Some(mut book) = self.book.try_lock_for(WAIT_MAX) {
            book.end_expected(&self.index.shared);
        }
    }
}

impl Book {
    fn expect(&mut self, chain: &Chain, shared: &Shared) -> Option<u64> {
        let first = chain.keys.first()?;
        let plain = self.caches.len() == 1 && self.caches[0].shape == Some(chain.shape);
        let has_room = self.expected.prompts.len() < EXPECTED_MAX
            && self.expected.blocks + chain.keys.len() <= BLOCKS_MAX
            && shared.room.has_some();
        if self.closed || !plain || !has_room {
            return None;
        }
        if self.expected.presence.is_none() {
            self.expected.presence = Some(Presence::new(shared.take_holder()?));
            self.changed = true;
        }
        let mut blocks = Vec::with_capacity(chain.keys.len());
        let mut tree = shared.forest.write(shared.forest.tree_of(*first));
        let presence = self.expected.presence.as_mut()?;
        for keys in chain.keys.chunks(HELD_AT_ONCE) {
            let (from, bytes) = (blocks.len(), tree.bytes());
            tree.grow(blocks.last().copied(), keys, shared.room.now(), &mut blocks);
            presence.hold(&mut tree, &blocks[from..]);
            // Less where it gathers what was loose.
            let grown = tree.bytes().saturating_sub(bytes);
            shared.room.note_expected(grown);
            if blocks.len() < from + keys.len() {
                break;
            }
            RwLockWriteGuard::bump(&mut tree);
        }
        self.expected.next += 1;
        self.expected.blocks += blocks.len();
        self.expected.prompts.insert(self.expected.next, blocks);
        Some(self.expected.next)
    }

    fn end_expected(&mut self, shared: &Shared) {
        let over = std::mem::take(&mut *self.expected.over.lock());
        for (prompt, told) in over {
            match told {
                true => self.expected.linger(prompt),
                false => self.withdraw(prompt, shared),
            }
        }
    }

    /// A batch of events has come.
    pub(super) fn on_batch(&mut self, shared: &Shared) {
        // A lock less for whoever is given nothing.
        if !self.expected.prompts.is_empty() {
            self.end_expected(shared);
        }
        self.expected.batches += 1;
        while let Some((prompt, batch)) = self.expected.ended.front().copied()
            && batch <= self.expected.batches
        {
            self.expected.ended.pop_front();
            self.withdraw(prompt, shared);
        }
    }

    fn withdraw(&mut self, prompt: u64, shared: &Shared) {
        let Some(blocks) = self.expected.prompts.remove(&prompt) else {
            return;
        };
        self.expected.blocks -= blocks.len();
        let Some(presence) = &mut self.expected.presence else {
            return;
        };
        if let Some(first) = blocks.first() {
            let mut tree = shared.forest.write(first.tree());
            // From its end, so that what is left is always a beginning.
            for few in blocks.rchunks(HELD_AT_ONCE) {
                for block in few.iter().rev() {
                    presence.release(&mut tree, *block);
                }
                RwLockWriteGuard::bump(&mut tree);
            }
        }
    }
}

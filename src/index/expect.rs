//! What a server was given and has not told of yet.
//!
//! vLLM makes a prompt's blocks hittable when it schedules them, and tells after the step. Until then
//! whoever placed the prompt knows more than the events say: a sibling that goes to the same server
//! waits behind it there, and finds them. Blocks of a running request are not evicted, so this holds
//! until it ends, and until its last events have come.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLockWriteGuard};

use crate::blocks::{Chain, Chains};
use crate::fleet::EndpointId;
use crate::index::Index;
use crate::index::book::Book;
use crate::index::forest::HELD_AT_ONCE;
use crate::index::seats::{Retired, Shared, View};
use crate::index::tree::{BlockId, Holder, common};

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
    pub holder: Option<Holder>,
    prompts: HashMap<u64, Prompt>,
    /// Theirs, all together.
    blocks: usize,
    next: u64,
    over: Arc<Over>,
    /// Prompts that were answered, and the batch with which they go.
    ended: VecDeque<(u64, u64)>,
    /// Batches so far.
    batches: u64,
}

/// A prompt's blocks. Prompts that begin alike need their beginning once: each block is held on behalf of one of them,
/// which leaves it to another that needs it still.
#[derive(Debug)]
struct Prompt {
    blocks: Vec<BlockId>,
    /// Those before are held on behalf of others.
    own: usize,
}

impl Prompt {
    fn owned(&self) -> &[BlockId] {
        &self.blocks[self.own..]
    }

    /// Leading blocks that another prompt has too, which needs the first that is this one's own.
    fn shared(&self, other: &Self) -> usize {
        let both = self.blocks.len().min(other.blocks.len());
        common(self.own + 1..both, |at| self.blocks[at] == other.blocks[at])
    }
}

/// Prompts that are not expected any more, and whether they were answered: told beside the book, which
/// may be locked.
type Over = Mutex<Vec<(u64, bool)>>;

impl Expected {
    /// Leaves what a prompt held to one that needs it still; says from which of its blocks on nobody does.
    ///
    /// Of those that share the most with it, the one that holds the most: it holds all that they need beyond.
    fn pass_on(&mut self, gone: &Prompt) -> usize {
        let Some(first) = gone.owned().first() else {
            return gone.own;
        };
        let needs = |of: &&mut Prompt| of.own > gone.own && of.blocks.get(gone.own) == Some(first);
        let heirs = self.prompts.values_mut().filter(needs);
        let heirs = heirs.map(|heir| (gone.shared(heir), heir));
        let Some((shared, heir)) = heirs.max_by_key(|(shared, heir)| (*shared, Reverse(heir.own)))
        else {
            return gone.own;
        };
        debug_assert!(heir.own <= shared, "what it needs beyond is its own");
        heir.own = gone.own;
        shared
    }

    fn linger(&mut self, prompt: u64) {
        if self.prompts.contains_key(&prompt) {
            self.ended.push_back((prompt, self.batches + LINGERS));
        }
    }

    /// Ends all of it.
    pub fn end(&mut self) -> Option<Retired> {
        let prompts = self.prompts.drain();
        let owned = prompts.flat_map(|(_, mut prompt)| prompt.blocks.split_off(prompt.own));
        let blocks = owned.collect();
        self.ended.clear();
        self.blocks = 0;
        let holder = self.holder.take()?;
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
        let holder = match self.expected.holder {
            Some(holder) => holder,
            None => {
                self.changed = true;
                *self.expected.holder.insert(shared.take_holder()?)
            }
        };
        let mut tree = shared.forest.write(shared.forest.tree_of(*first));
        let mut prompt = Prompt {
            blocks: Vec::with_capacity(chain.keys.len()),
            own: 0,
        };
        let Prompt { blocks, own } = &mut prompt;
        for keys in chain.keys.chunks(HELD_AT_ONCE) {
            let (from, bytes) = (blocks.len(), tree.bytes());
            tree.grow(blocks.last().copied(), keys, shared.room.now(), blocks);
            if *own == from {
                // What others wait for begins where a prompt does.
                *own += blocks[from..].partition_point(|block| tree.is_held(holder, *block));
            }
            tree.hold(holder, &blocks[from.max(*own)..], &mut Vec::new());
            // Less where it gathers what was loose.
            let grown = tree.bytes().saturating_sub(bytes);
            shared.room.note_expected(grown);
            if blocks.len() < from + keys.len() {
                break;
            }
            RwLockWriteGuard::bump(&mut tree);
        }
        self.expected.next += 1;
        self.expected.blocks += prompt.blocks.len();
        self.expected.prompts.insert(self.expected.next, prompt);
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
        let Some(prompt) = self.expected.prompts.remove(&prompt) else {
            return;
        };
        self.expected.blocks -= prompt.blocks.len();
        let Some(holder) = self.expected.holder else {
            return;
        };
        let gone = &prompt.blocks[self.expected.pass_on(&prompt)..];
        if let Some(first) = gone.first() {
            let mut tree = shared.forest.write(first.tree());
            // From its end, so that what is left is always a beginning.
            for few in gone.rchunks(HELD_AT_ONCE) {
                tree.release_end(holder, few);
                RwLockWriteGuard::bump(&mut tree);
            }
        }
    }
}

//! Token parity: the `token_ids` in the events that follow a routed request must be the ones
//! that we computed. Pure: time is a parameter.
//!
//! A [`Watch`] is opened when a request is placed whose tokens are all known. It waits for one
//! block: the last full block of the prompt, whose key covers every token before it.
//!
//! # Why the absence of that block proves something
//!
//! A watch is opened only at an endpoint that is `Live` and, as far as its events have come, does
//! not hold that block. When the engine schedules the request, either it holds the block by then,
//! and so stored it after our place in its stream; or it computes the block, and stores it
//! then. Evictions, preemptions, chunks, siblings in one step, several answers and resets change
//! only which of the two it is: a server that computed the prompt as we read it tells of the
//! block after our place in its stream. So a watch is *judged*:
//!
//! * **agree** as soon as an event names the block, whoever made it;
//! * **differ** where the answer has ended well, and the stream has come to a batch that the
//!   engine made after that, and none did;
//! * **unjudged** where the request failed, was cancelled or served elsewhere, the stream broke,
//!   or nothing came for [`PENDING_MAX_S`].
//!
//! # When a batch was made after an answer's end
//!
//! A batch is stamped with the engine's clock before it is queued. It has to be stamped, *and* to
//! arrive, [`GRACE_S`] after the end of the answer: the first fails where that clock is so much
//! ahead, the second where the stream is so much behind, and a false alarm takes both at once. No
//! timer is needed: where nothing comes, nothing is judged.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::blocks::{BlockKey, Chain, Identity, TokenId};
use crate::fleet::{EndpointId, Trust};
use crate::index::{Index, Seen};

mod record;
mod waiting;

pub use record::Record;
pub use waiting::Fork;
use waiting::Waiting;

/// Why the choices of a model with doubtful prompts are only partly known: their basis's reason.
pub const REASON: &str = "token_parity";

/// An event leaves vLLM with the step that computes its blocks, so before or together with the
/// answer's first token; then come a queue, a socket and our queue: milliseconds, unless one
/// of them is overloaded. Clocks under NTP differ by less than 0.1 s.
pub const GRACE_S: f64 = 2.0;

/// After its answer, a watch waits so long for a batch that may judge it. Only of use where the
/// engine's clock is behind ours: by more than this, disagreement cannot be told there.
pub const PENDING_MAX_S: f64 = 120.0;

/// Watches per endpoint. Each store that an endpoint reports is held against all of them: 16 at
/// 8,000 blocks (a prompt of 128,000 tokens) are 128,000 comparisons of 8 bytes, about 30 µs.
/// A watch that agrees lives as long as a prefill; past the limit, requests are a sample.
const WATCHES_MAX: usize = 16;

/// Tokens of all watches together: 4 bytes each, and 8 for the key of every block, make about
/// 80 MB with blocks of 16.
const TOKENS_MAX: usize = 16_000_000;

/// Who watches what, and what came of it.
#[derive(Debug, Default)]
pub struct Parity {
    /// Watches open, so that a store costs one load where there are none.
    open: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<EndpointId, Vec<Waiting>>,
    /// Tokens that they keep.
    tokens: usize,
    /// One per configured model or adapter name.
    records: BTreeMap<Arc<str>, Record>,
    next: u64,
}

/// A request that is placed, as far as parity is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Placed<'a> {
    /// For the log.
    pub request: &'a str,
    /// The configured name that its tokens go by.
    pub model: &'a Arc<str>,
    /// All of its (first) prompt.
    pub tokens: &'a Arc<Vec<TokenId>>,
    /// What else decides about its blocks.
    pub identity: &'a Identity,
    /// Its chain in the endpoint's shape, where somebody made it.
    pub chain: Option<&'a Chain>,
    /// Tokens of it that the endpoint holds.
    pub cached_tokens: u64,
}

/// What an endpoint's stream has come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heard {
    /// The engine's clock at the batch just applied, seconds since the epoch.
    pub timestamp: Option<f64>,
    /// Ours.
    pub now_s: f64,
    /// The endpoint is `Live`, and nothing was lost or thrown away with this batch.
    pub unbroken: bool,
}

/// What a watch came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The request, for the log.
    pub request: String,
    /// Its model.
    pub model: Arc<str>,
    /// What it came to.
    pub verdict: Verdict,
    /// Whether the model's prompts are doubtful now, where that has changed.
    pub doubtful: Option<bool>,
}

/// Whether the tokens were ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To the end of the last full block.
    Agree,
    /// They were not.
    Differ(Fork),
    /// Nobody knows.
    Unjudged,
}

/// Seconds since the epoch.
#[must_use]
pub fn epoch_s(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

impl Parity {
    /// One for these models: each is counted from the start.
    #[must_use]
    pub fn of(models: impl IntoIterator<Item = Arc<str>>) -> Arc<Self> {
        let records = models
            .into_iter()
            .map(|model| (model, Record::default()))
            .collect();
        let state = State {
            records,
            ..State::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
            ..Self::default()
        })
    }

    /// An index whose stores are shown to the watches.
    #[must_use]
    pub fn index(self: &Arc<Self>) -> Index {
        let parity = self.clone();
        Index::observed(move |endpoint, seen| parity.stored(endpoint, seen))
    }

    /// Watches a request, if anything can be learnt from it. `trust` is asked last: a stream
    /// that breaks later finds the watch there, and closes it.
    pub fn open(
        self: &Arc<Self>,
        index: &Index,
        endpoint: EndpointId,
        placed: &Placed<'_>,
        trust: impl FnOnce() -> Trust,
    ) -> Option<Watch> {
        let shape = index.shape(endpoint)?;
        let salted = placed.identity.cache_salt.is_some();
        if salted && index.shows_salt(endpoint) != Some(true) {
            return None;
        }
        let (size, tokens) = (shape.block_size.max(1) as usize, placed.tokens);
        let lookahead = shape.lookahead as usize;
        // Of a hybrid model's prompt nothing is stored past the last place where a hit may end.
        let alignment = index.alignment(endpoint) as usize;
        let full = tokens.len().saturating_sub(lookahead) / alignment * alignment / size;
        let known = placed.cached_tokens as usize / size;
        if full <= known || !self.state.lock().has_room(endpoint, tokens.len()) {
            return None;
        }
        let stored = &tokens[..(full * size + lookahead).min(tokens.len())];
        let begun = placed.chain.filter(|chain| chain.shape == shape);
        let chain = Arc::new(match begun {
            Some(begun) => begun.to_full_blocks(stored, placed.identity),
            None => Chain::of_full_blocks(stored, shape, placed.identity),
        });
        chain.keys.last()?;
        let watch = self.wait(endpoint, placed, chain.clone(), known);
        // In this order: a store that the index has not counted yet is shown to the watch.
        if index.holds(endpoint, &chain) || trust() != Trust::Live {
            watch.forget();
            return None;
        }
        Some(watch)
    }

    fn wait(
        self: &Arc<Self>,
        endpoint: EndpointId,
        placed: &Placed<'_>,
        chain: Arc<Chain>,
        known: usize,
    ) -> Watch {
        let tokens = placed.tokens.clone();
        let mut state = self.state.lock();
        state.next += 1;
        let id = state.next;
        state.tokens += tokens.len();
        let root = BlockKey::root(placed.identity.adapter.as_deref());
        let waiting = Waiting {
            id,
            request: placed.request.to_owned(),
            model: placed.model.clone(),
            root,
            chain,
            tokens,
            known,
            stored: false,
            parts_at: None,
            renamed: false,
            ended_s: None,
        };
        state.waiting.entry(endpoint).or_default().push(waiting);
        self.open.fetch_add(1, Ordering::AcqRel);
        Watch {
            parity: self.clone(),
            endpoint,
            id,
            done: false,
        }
    }

    /// Shows a store of an endpoint to its watches.
    fn stored(&self, endpoint: EndpointId, seen: &Seen<'_>) {
        if self.open.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut state = self.state.lock();
        let waiting = state.waiting.get_mut(&endpoint);
        waiting
            .into_iter()
            .flatten()
            .for_each(|waiting| waiting.compare(seen));
    }

    /// Judges what can be judged by now: to be called after every batch, and whenever the stream
    /// breaks.
    pub fn heard(&self, endpoint: EndpointId, heard: Heard) -> Vec<Judgement> {
        if self.open.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut state = self.state.lock();
        let Some(waiting) = state.waiting.get_mut(&endpoint) else {
            return Vec::new();
        };
        let judged: Vec<(Waiting, Verdict)> = waiting
            .extract_if(.., |waiting| waiting.verdict(&heard).is_some())
            .filter_map(|waiting| waiting.verdict(&heard).map(|verdict| (waiting, verdict)))
            .collect();
        if waiting.is_empty() {
            state.waiting.remove(&endpoint);
        }
        judged
            .into_iter()
            .map(|(waiting, verdict)| {
                self.open.fetch_sub(1, Ordering::AcqRel);
                state.judge(waiting, verdict)
            })
            .collect()
    }

    /// Closes every watch of an endpoint whose stream ends.
    pub fn lost(&self, endpoint: EndpointId) {
        let heard = Heard {
            timestamp: None,
            now_s: 0.0,
            unbroken: false,
        };
        self.heard(endpoint, heard);
    }

    /// Whether a model's prompts are doubtful: too many of its last requests differed.
    #[must_use]
    pub fn is_doubtful(&self, model: &str) -> bool {
        let state = self.state.lock();
        state.records.get(model).is_some_and(Record::is_doubtful)
    }

    /// What came of every model's watches.
    #[must_use]
    pub fn records(&self) -> BTreeMap<Arc<str>, Record> {
        self.state.lock().records.clone()
    }
}

impl State {
    fn has_room(&self, endpoint: EndpointId, tokens: usize) -> bool {
        let there = self.waiting.get(&endpoint).map_or(0, Vec::len);
        there < WATCHES_MAX && self.tokens + tokens <= TOKENS_MAX
    }

    fn find(&mut self, endpoint: EndpointId, id: u64) -> Option<&mut Waiting> {
        let waiting = self.waiting.get_mut(&endpoint)?;
        waiting.iter_mut().find(|waiting| waiting.id == id)
    }

    fn take(&mut self, endpoint: EndpointId, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.get_mut(&endpoint)?;
        let at = waiting.iter().position(|waiting| waiting.id == id)?;
        let taken = waiting.swap_remove(at);
        if waiting.is_empty() {
            self.waiting.remove(&endpoint);
        }
        Some(taken)
    }

    fn judge(&mut self, waiting: Waiting, verdict: Verdict) -> Judgement {
        let Waiting {
            request,
            model,
            tokens,
            ..
        } = waiting;
        self.tokens -= tokens.len();
        let record = self.records.entry(model.clone()).or_default();
        let doubtful = record.count(verdict);
        Judgement {
            request,
            model,
            verdict,
            doubtful,
        }
    }
}

/// A request's watch. Dropped, it is cancelled.
#[derive(Debug)]
pub struct Watch {
    parity: Arc<Parity>,
    endpoint: EndpointId,
    id: u64,
    done: bool,
}

impl Watch {
    /// The answer has ended, and well: the server has computed the whole prompt.
    pub fn ended(mut self, now_s: f64) {
        self.done = true;
        if let Some(waiting) = self.parity.state.lock().find(self.endpoint, self.id) {
            waiting.ended_s = Some(now_s);
        }
    }

    /// Was never there.
    fn forget(mut self) {
        self.done = true;
        let mut state = self.parity.state.lock();
        if let Some(waiting) = state.take(self.endpoint, self.id) {
            state.tokens -= waiting.tokens.len();
            self.parity.open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.parity.state.lock();
        // One that has agreed is judged by the batch that is being applied.
        if state
            .find(self.endpoint, self.id)
            .is_some_and(|waiting| !waiting.stored)
            && let Some(waiting) = state.take(self.endpoint, self.id)
        {
            self.parity.open.fetch_sub(1, Ordering::AcqRel);
            state.judge(waiting, Verdict::Unjudged);
        }
    }
}

#[cfg(test)]
mod tests;

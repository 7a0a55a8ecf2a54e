//! Deliveries → index and trust: decode → order → apply, for one endpoint. Pure but for the
//! index it writes to; the live loop and `kvscout replay` both run on it.
//!
//! What may be gone is not claimed: after a gap, or bytes that cannot be read, everything held is
//! unsure until it is heard of again, and the endpoint is `Doubtful` until its process restarts or
//! it reports an empty cache; after a restart everything is forgotten. Where the server can
//! replay, the listener asks for what is missing first, and nothing is lost.

use std::collections::HashMap;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::events::order::{Order, Place};
use crate::events::snapshot::Snapshot;
use crate::events::wire::{self, Batch};
use crate::fleet::{EndpointId, Trust};
use crate::index::{Applied, Feed, Index};

/// One endpoint's stream, as far as it was heard.
#[derive(Debug)]
pub struct Follower {
    endpoint: EndpointId,
    order: Order,
    verdict: Verdict,
    /// The last batch taken: its number and the hash of its bytes.
    last: Option<(u64, u64)>,
    /// The verdict before we stopped hearing. It stands again only where a replay shows the last
    /// batch that we know: then the same process still publishes.
    unheard: Option<Verdict>,
    /// Hashes of the payloads that a replay brought, by sequence number, until the live stream
    /// brings them too. Bounded by the replay's own limit: vLLM keeps 10,000 batches.
    replayed: HashMap<u64, u64>,
    /// The process that publishes: a hash of the first batch that was taken of it. Whoever hears it
    /// from its start names it the same.
    epoch: Option<u64>,
    /// The engine's clock at the last batch that was taken.
    timestamp: Option<f64>,
    /// Where its events go.
    feed: Option<Feed>,
    /// Stands above the verdict while whoever hears the server for us is not sure.
    doubted: Option<Verdict>,
}

/// How complete the endpoint's picture is, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How complete.
    pub trust: Trust,
    /// For an operator, with the next step where there is one.
    pub reason: String,
}

impl Verdict {
    fn new(trust: Trust, reason: impl Into<String>) -> Self {
        Self {
            trust,
            reason: reason.into(),
        }
    }
}

/// What one delivery did.
#[derive(Debug, Default)]
pub struct Followed {
    /// It was a batch that had not been taken before.
    pub taken: bool,
    /// To the index.
    pub applied: Applied,
    /// Batches that were lost before this one.
    pub missed: u64,
    /// The endpoint's picture was thrown away.
    pub forgotten: bool,
    /// All of the picture became unsure.
    pub doubted: bool,
    /// The batch could not be decoded at all.
    pub undecodable: bool,
    /// Events of a type that this version does not know.
    pub unknown: u32,
    /// Events that do not say what they must.
    pub malformed: u32,
    /// The engine's clock at this batch, seconds since the epoch.
    pub timestamp: Option<f64>,
}

impl Follower {
    /// Follows an endpoint of which nothing was heard.
    #[must_use]
    pub fn new(endpoint: EndpointId) -> Self {
        let verdict = Verdict::new(Trust::Silent, "no event seen yet");
        Self {
            endpoint,
            order: Order::default(),
            verdict,
            last: None,
            unheard: None,
            replayed: HashMap::new(),
            epoch: None,
            timestamp: None,
            feed: None,
            doubted: None,
        }
    }

    /// How complete the picture is by now.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        self.doubted.as_ref().unwrap_or(&self.verdict)
    }

    /// The first batch that a replay must bring before `seq` can be taken without a loss; none
    /// where nothing is missing. After a time without hearing that is the last one known, by
    /// which its process is recognised.
    #[must_use]
    pub fn missing_before(&self, seq: u64, payload: &[u8]) -> Option<u64> {
        if self.is_old(seq, payload) {
            return None;
        }
        match (self.replayed.contains_key(&seq), &self.unheard, self.last) {
            (true, _, _) => None,
            (false, Some(_), Some((last, _))) => Some(last),
            (false, _, _) => self.order.missing_before(seq),
        }
    }

    /// Hears what a replay says of the last batch that we know, `None` where it lacks it.
    /// `false` where that shows another process: what the old one held is forgotten, and the
    /// new one's batches are to be asked for from 0.
    pub fn on_recognition(&mut self, index: &Index, last: Option<&[u8]>) -> bool {
        let Some(before) = self.unheard.take() else {
            return true;
        };
        let same = match (self.last, last) {
            (Some((_, known)), Some(payload)) => known == xxh3_64(payload),
            _ => false,
        };
        if same {
            self.verdict = before;
        } else {
            self.on_restarted(index);
        }
        same
    }

    /// The same where a connection has just been made and nothing has come yet: what an idle
    /// server holds shows in its past alone.
    #[must_use]
    pub fn missing_now(&self) -> Option<u64> {
        match (&self.unheard, self.last) {
            (_, None) => Some(0),
            (Some(_), Some((last, _))) => Some(last),
            (None, Some(_)) => None,
        }
    }

    /// Takes what a bridge kept in place of everything heard before.
    pub fn on_snapshot(&mut self, index: &Index, snapshot: &Snapshot) {
        index.restore(self.endpoint, &snapshot.picture);
        let (trust, reason) = match snapshot.whole {
            true => (Trust::Live, "complete from a snapshot on"),
            false => (Trust::Doubtful, snapshot.reason.as_str()),
        };
        *self = Self {
            verdict: Verdict::new(trust, reason),
            order: Order::after(snapshot.seq),
            last: Some((snapshot.seq, snapshot.hash)),
            epoch: Some(snapshot.epoch),
            doubted: self.doubted.take(),
            ..Self::new(self.endpoint)
        };
    }

    /// The same before the server itself was heard: whether the process still runs shows in its
    /// replay.
    pub fn resume(&mut self, index: &Index, snapshot: &Snapshot) {
        self.on_snapshot(index, snapshot);
        self.unheard = Some(self.verdict.clone());
        self.verdict = Verdict::new(Trust::Silent, "not heard since the last snapshot");
    }

    /// What follows comes from another process, or is this one's from its start.
    pub fn on_restarted(&mut self, index: &Index) {
        index.empty(self.endpoint);
        let verdict = Verdict::new(Trust::Silent, "another process publishes here now");
        *self = Self {
            verdict,
            doubted: self.doubted.take(),
            ..Self::new(self.endpoint)
        };
    }

    /// Whoever hears the server for us is not sure, or does not hear it. What the batches say counts
    /// again once it is sure.
    pub fn on_doubted(&mut self, silent: bool, reason: String) {
        let trust = match silent {
            true => Trust::Silent,
            false => Trust::Doubtful,
        };
        self.doubted = Some(Verdict::new(trust, reason));
    }

    /// Whoever hears the server for us is sure again: nothing was lost.
    pub fn on_resumed(&mut self) {
        self.doubted = None;
    }

    /// Whether what was taken leaves the picture incomplete, whoever hears the server.
    #[must_use]
    pub fn lacks(&self) -> bool {
        self.verdict.trust != Trust::Live
    }

    /// The process that publishes, as its first batch that was taken tells it from others, and the
    /// last batch: number and hash. None before the first.
    #[must_use]
    pub fn position(&self) -> Option<(u64, (u64, u64))> {
        Some((self.epoch?, self.last?))
    }

    /// Takes one message of a replay. The live stream may bring it again.
    pub fn on_replayed(&mut self, index: &Index, seq: u64, payload: &[u8]) -> Followed {
        let hash = xxh3_64(payload);
        self.replayed.insert(seq, hash);
        if self.last == Some((seq, hash)) {
            return Followed::default();
        }
        self.take(index, seq, hash, payload)
    }

    /// Takes one published message.
    pub fn on_batch(&mut self, index: &Index, seq: u64, payload: &[u8]) -> Followed {
        // Another process could use the same number, but not for the same bytes: they begin with
        // a timestamp.
        let hash = xxh3_64(payload);
        if self.replayed.get(&seq) == Some(&hash) || self.is_old(seq, payload) {
            return Followed::default();
        }
        self.replayed.clear();
        self.take(index, seq, hash, payload)
    }

    /// Whether a batch whose number has passed comes again or late, and not from another process:
    /// that one would have made it after everything that we took.
    fn is_old(&self, seq: u64, payload: &[u8]) -> bool {
        self.order.has_passed(seq)
            && match (self.timestamp, wire::decode(payload)) {
                (Some(last), Ok(batch)) => batch.timestamp <= last,
                (None, Ok(_)) => false,
                // Nobody knows when it was made; another process shows in its next batch.
                (_, Err(_)) => true,
            }
    }

    fn take(&mut self, index: &Index, seq: u64, hash: u64, payload: &[u8]) -> Followed {
        let mut followed = Followed::default();
        self.last = Some((seq, hash));
        followed.taken = true;
        self.on_place(index, seq, &mut followed);
        self.epoch
            .get_or_insert_with(|| xxh3_64_with_seed(&seq.to_le_bytes(), hash));
        match wire::decode(payload) {
            Ok(batch) => self.on_decoded(index, &batch, &mut followed),
            Err(error) => {
                followed.undecodable = true;
                self.distrust(
                    index,
                    &mut followed,
                    format!("batch {seq} cannot be read: {error}"),
                );
            }
        }
        followed
    }

    /// Takes the news that batches were dropped on our side of the wire. Which ones shows in the
    /// next sequence number, and a replay may bring them.
    pub fn on_overrun(&mut self, batches: u64) -> Followed {
        self.unheard.get_or_insert_with(|| self.verdict.clone());
        let reason =
            format!("{batches} batches dropped here: they come faster than they are applied");
        self.verdict = Verdict::new(Trust::Doubtful, reason);
        Followed {
            missed: batches,
            ..Followed::default()
        }
    }

    /// Takes the news that a message was no batch: its number is unknown.
    pub fn on_loss(&mut self, index: &Index, reason: &str) -> Followed {
        let mut followed = Followed::default();
        self.distrust(index, &mut followed, reason.to_owned());
        followed
    }

    /// The publisher can be heard. What it said in between shows in the next sequence number.
    pub fn on_connected(&mut self) -> Followed {
        if self.unheard.is_some() {
            let reason = "connected again; the next batch shows whether any was lost";
            self.verdict = Verdict::new(Trust::Doubtful, reason);
        } else if self.verdict.trust == Trust::Silent {
            self.verdict.reason = "connected; no event seen yet".into();
        }
        Followed::default()
    }

    /// The publisher cannot be heard: what we hold may be gone by now, and the whole server with
    /// it. Nothing is counted on until it is heard again.
    pub fn on_disconnected(&mut self, reason: &str) -> Followed {
        if self.verdict.trust == Trust::Silent {
            // Disconnected before anything was heard, or disconnected still.
            self.verdict.reason = format!("not connected: {reason}");
        } else {
            self.unheard.get_or_insert_with(|| self.verdict.clone());
            self.verdict = Verdict::new(Trust::Silent, format!("not connected: {reason}"));
        }
        Followed::default()
    }

    /// Holds what was counted against what the engine's own cache can hold. More of it means that
    /// removals were lost, or that what was reported again was counted: what is unsure goes first,
    /// then all becomes so.
    pub fn on_capacity(&mut self, index: &Index, blocks_max: u64) -> Followed {
        let mut followed = Followed::default();
        // Who is not heard is not believed in any case, and is to be recognised first.
        let heard = self.verdict.trust != Trust::Silent && self.unheard.is_none();
        if !heard || index.physical(self.endpoint) <= blocks_max {
            return followed;
        }
        index.drop_unsure(self.endpoint);
        let counted = index.physical(self.endpoint);
        if counted > blocks_max {
            let reason = format!("{counted} blocks were counted in a cache of {blocks_max}");
            self.distrust(index, &mut followed, reason);
        }
        followed
    }

    /// What the picture says keeps missing what the server reports, and nothing that is known excuses it.
    pub fn on_mistrusted(&mut self, index: &Index) -> Followed {
        let mut followed = Followed::default();
        if self.verdict.trust == Trust::Live {
            let reason = "its predictions keep missing what it reports (kvscout audit says how)";
            self.distrust(index, &mut followed, reason.to_owned());
        }
        followed
    }

    /// Looks whether blocks of the endpoint were given up for room: true where that is news.
    pub fn on_room(&mut self, index: &Index) -> bool {
        let is_news = self.verdict.trust == Trust::Live && index.gave_up(self.endpoint);
        if is_news {
            let reason = "blocks were given up: the index is at limits.index_bytes_max";
            self.verdict = Verdict::new(Trust::Doubtful, reason);
        }
        is_news
    }

    fn on_place(&mut self, index: &Index, seq: u64, followed: &mut Followed) {
        let unheard = self.unheard.take();
        match self.order.place(seq) {
            Place::First => self.verdict = Verdict::new(Trust::Live, "complete from sequence 0"),
            // As expected, but an engine that restarted and published as much would look the same.
            Place::Next if unheard.is_some() => {
                let reason = "connected again, and no replay shows that it is the same process";
                self.distrust(index, followed, reason.to_owned());
            }
            Place::Next => {}
            Place::Late { missed: 0 } | Place::Restart { missed: 0 } => {
                self.epoch = None;
                self.forget(index, followed);
                self.verdict = Verdict::new(Trust::Live, "complete since the engine restarted");
            }
            Place::Late { missed } => {
                followed.missed = missed;
                let reason = format!("joined at sequence {seq}: {missed} batches came before");
                self.distrust(index, followed, reason);
            }
            Place::Gap { missed } => {
                followed.missed = missed;
                let reason = format!("{missed} batches lost before sequence {seq}");
                self.distrust(index, followed, reason);
            }
            Place::Restart { missed } => {
                self.epoch = None;
                followed.missed = missed;
                self.forget(index, followed);
                let reason = format!("the engine restarted and {missed} of its batches were lost");
                self.distrust(index, followed, reason);
            }
        }
    }

    fn on_decoded(&mut self, index: &Index, batch: &Batch, followed: &mut Followed) {
        followed.timestamp = Some(batch.timestamp);
        self.timestamp = Some(batch.timestamp);
        followed.unknown = batch.unknown;
        followed.malformed = batch.malformed;
        let feed = self.feed.get_or_insert_with(|| index.feed(self.endpoint));
        followed.applied = index.take(feed, &batch.events);
        let applied = followed.applied;
        let unmodelled =
            applied.unmodelled > 0 || (applied.cleared > 0 && index.has_unmodelled(self.endpoint));
        if batch.malformed > 0 {
            let reason = format!("{} events could not be read", batch.malformed);
            self.distrust(index, followed, reason);
        } else if unmodelled {
            let reason = "it has a cache group whose hit rule is not modelled";
            self.verdict = Verdict::new(Trust::Doubtful, reason);
        } else if applied.over_limit > 0 {
            self.verdict = Verdict::new(Trust::Doubtful, "more blocks than the index may hold");
        } else if applied.elsewhere > 0 {
            let reason = "blocks are offloaded to a medium that this version does not know";
            self.verdict = Verdict::new(Trust::Doubtful, reason);
        } else if applied.orphans + applied.unknown > 0 {
            if self.verdict.trust == Trust::Live {
                let reason = "events name blocks that were never stored: events are missing";
                self.verdict = Verdict::new(Trust::Doubtful, reason);
            }
        } else if applied.cleared > 0 {
            // An engine that says that it holds nothing is known completely from there on.
            self.verdict = Verdict::new(Trust::Live, "complete since the engine cleared its cache");
        }
        self.on_room(index);
    }

    fn distrust(&mut self, index: &Index, followed: &mut Followed, reason: String) {
        index.doubt(self.endpoint);
        followed.doubted = true;
        self.unheard = None;
        self.verdict = Verdict::new(Trust::Doubtful, reason);
    }

    /// Ends every block but keeps what the operator said of the endpoint.
    fn forget(&self, index: &Index, followed: &mut Followed) {
        index.empty(self.endpoint);
        followed.forgotten = true;
    }
}

#[cfg(test)]
mod tests;

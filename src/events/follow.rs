//! Deliveries → index and trust: decode → order → apply, for one endpoint. Pure but for the
//! index it writes to; the live loop and `kvscout replay` both run on it.
//!
//! A picture that may be wrong is thrown away, not kept: after a gap, a restart or bytes that
//! cannot be read, the endpoint's blocks are forgotten and the live tail builds up again. What
//! is held then is true but not all, so the endpoint is `Doubtful` until its process restarts
//! or it reports an empty cache.

use crate::blocks::BlockEvent;
use crate::events::order::{Order, Place};
use crate::events::wire::{self, Batch};
use crate::fleet::{EndpointId, Trust};
use crate::index::{Applied, Index};

/// One endpoint's stream, as far as it was heard.
#[derive(Debug)]
pub struct Follower {
    endpoint: EndpointId,
    order: Order,
    verdict: Verdict,
    /// The verdict before the connection was lost; it stands again if the next sequence number
    /// is the one expected.
    unheard: Option<Verdict>,
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
    /// To the index.
    pub applied: Applied,
    /// Batches that were lost before this one.
    pub missed: u64,
    /// The endpoint's picture was thrown away.
    pub forgotten: bool,
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
            unheard: None,
        }
    }

    /// How complete the picture is by now.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Takes one published message.
    pub fn on_batch(&mut self, index: &Index, seq: u64, payload: &[u8]) -> Followed {
        let mut followed = Followed::default();
        self.on_place(index, seq, &mut followed);
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

    /// Takes the news that messages were lost on our side of the wire.
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

    fn on_place(&mut self, index: &Index, seq: u64, followed: &mut Followed) {
        let unheard = self.unheard.take();
        match self.order.place(seq) {
            Place::First => self.verdict = Verdict::new(Trust::Live, "complete from sequence 0"),
            Place::Next => self.verdict = unheard.unwrap_or_else(|| self.verdict.clone()),
            Place::Late { missed: 0 } | Place::Restart { missed: 0 } => {
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
                followed.missed = missed;
                let reason = format!("the engine restarted and {missed} of its batches were lost");
                self.distrust(index, followed, reason);
            }
        }
    }

    fn on_decoded(&mut self, index: &Index, batch: &Batch, followed: &mut Followed) {
        followed.timestamp = Some(batch.timestamp);
        followed.unknown = batch.unknown;
        followed.malformed = batch.malformed;
        followed.applied = index.apply(self.endpoint, &batch.events);
        let applied = followed.applied;
        if batch.malformed > 0 {
            let reason = format!("{} events could not be read", batch.malformed);
            self.distrust(index, followed, reason);
        } else if applied.unmodelled > 0 {
            let reason =
                "hybrid cache groups or lookahead hashes: their hit rule is not modelled yet";
            self.verdict = Verdict::new(Trust::Doubtful, reason);
        } else if applied.over_limit > 0 {
            self.verdict = Verdict::new(Trust::Doubtful, "more blocks than the index may hold");
        } else if self.verdict.trust == Trust::Live && applied.orphans + applied.unknown > 0 {
            let reason = "events name blocks that were never stored: events are missing";
            self.verdict = Verdict::new(Trust::Doubtful, reason);
        } else if applied.cleared > 0 {
            // An engine that says that it holds nothing is known completely from there on.
            self.verdict = Verdict::new(Trust::Live, "complete since the engine cleared its cache");
        }
    }

    fn distrust(&mut self, index: &Index, followed: &mut Followed, reason: String) {
        self.forget(index, followed);
        self.verdict = Verdict::new(Trust::Doubtful, reason);
    }

    /// Ends every block but keeps what the operator said of the endpoint.
    fn forget(&self, index: &Index, followed: &mut Followed) {
        index.apply(self.endpoint, &[BlockEvent::Cleared]);
        followed.forgotten = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{Chain, Identity};

    const POD: EndpointId = EndpointId(0);

    /// A batch that stores one two-token block.
    fn stored(hash: u64, parent: Option<u64>) -> Vec<u8> {
        rmp_serde::to_vec(&(1.0, (("BlockStored", (hash,), parent, (1, 1), 2, ()),), 0))
            .expect("packs")
    }

    fn holds_anything(index: &Index) -> bool {
        !index
            .overlap(&Chain::of_prompt(&[1, 1, 0], 2, &Identity::default()))
            .is_empty()
    }

    fn follow(seqs: &[(u64, Vec<u8>)]) -> (Index, Follower) {
        let (index, mut follower) = (Index::default(), Follower::new(POD));
        for (seq, payload) in seqs {
            follower.on_batch(&index, *seq, payload);
        }
        (index, follower)
    }

    #[test]
    fn a_gap_is_never_silent() {
        let (index, follower) = follow(&[(0, stored(1, None)), (2, stored(7, Some(6)))]);
        assert_eq!(follower.verdict().trust, Trust::Doubtful);
        assert!(
            follower
                .verdict()
                .reason
                .starts_with("1 batches lost before sequence 2")
        );
        assert!(
            !holds_anything(&index),
            "what a lost batch may have removed is not claimed"
        );
    }

    #[test]
    fn a_restarted_engine_is_live_again_with_an_empty_cache() {
        let (index, follower) = follow(&[
            (0, stored(1, None)),
            (1, stored(2, Some(1))),
            (0, stored(9, Some(8))),
        ]);
        assert!(!holds_anything(&index));
        assert_eq!(
            follower.verdict().trust,
            Trust::Doubtful,
            "its block has a parent that we never saw"
        );
        let (index, follower) = follow(&[
            (0, stored(5, None)),
            (1, stored(6, Some(5))),
            (0, stored(1, None)),
        ]);
        assert!(holds_anything(&index));
        assert_eq!(follower.verdict().trust, Trust::Live);
    }

    #[test]
    fn a_late_joiner_knows_what_it_heard_and_does_not_claim_more() {
        let (index, follower) = follow(&[(41, stored(1, None))]);
        assert!(holds_anything(&index));
        assert_eq!(follower.verdict().trust, Trust::Doubtful);
    }

    #[test]
    fn a_cleared_cache_ends_all_doubt() {
        let cleared = rmp_serde::to_vec(&(1.0, (("AllBlocksCleared",),), 0)).expect("packs");
        let (_, follower) = follow(&[(41, stored(1, None)), (42, cleared)]);
        assert_eq!(follower.verdict().trust, Trust::Live);
    }

    #[test]
    fn a_batch_that_cannot_be_read_is_a_gap() {
        let (index, follower) = follow(&[(0, stored(1, None)), (1, b"\xc1".to_vec())]);
        assert!(!holds_anything(&index));
        assert_eq!(follower.verdict().trust, Trust::Doubtful);
    }

    #[test]
    fn a_lost_connection_is_silence_then_doubt_until_the_next_batch_proves_otherwise() {
        let (index, mut follower) = follow(&[(0, stored(1, None))]);
        follower.on_disconnected("reset by peer");
        follower.on_disconnected("refused");
        assert_eq!(follower.verdict().trust, Trust::Silent);
        follower.on_connected();
        assert_eq!(follower.verdict().trust, Trust::Doubtful);
        assert!(holds_anything(&index));
        follower.on_batch(&index, 1, &stored(2, Some(1)));
        assert_eq!(follower.verdict().trust, Trust::Live);
        follower.on_disconnected("reset by peer");
        follower.on_connected();
        follower.on_batch(&index, 3, &stored(2, Some(1)));
        assert_eq!(follower.verdict().trust, Trust::Doubtful);
    }
}

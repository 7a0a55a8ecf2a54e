//! One endpoint: next → decode → order → apply.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Way;
use super::repair::Asking;
use crate::events::backoff::Backoff;
use crate::events::bind::{Acceptor, BoundSource};
use crate::events::capacity;
use crate::events::discover::Discovery;
use crate::events::follow::{Followed, Follower};
use crate::events::nats::NatsSource;
use crate::events::silence::{Silence, advice};
use crate::events::tap::{Tap, Untapped};
use crate::events::zmq::{DepthGauge, Limits, ZmqSource};
use crate::events::{Delivery, EventSource};
use crate::fleet::{Endpoint, Publisher, Trust};
use crate::index::Index;
use crate::metrics::EndpointMetrics;
use crate::parity::Parity;
use crate::readiness::Ticket;
/// Hears one endpoint; being dropped, it forgets it.
pub(super) struct Listener {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) index: Arc<Index>,
    pub(super) parity: Arc<Parity>,
    pub(super) metrics: EndpointMetrics,
    pub(super) way: Way,
    pub(super) tap: Option<Tap>,
    pub(super) asking: Option<Asking>,
    pub(super) first: Option<Ticket>,
    pub(super) replay_after: Option<Instant>,
    /// When a doubtful picture may be learnt again, and how long to wait then.
    pub(super) relearn_after: Option<Instant>,
    pub(super) relearn_wait: Duration,
    /// A turn at replaying.
    pub(super) replays: Arc<Semaphore>,
    pub(super) silence: Silence,
    pub(super) silent_after: Duration,
    /// No bridge says how the server is heard: nobody knows whose silence it is.
    pub(super) bridge_away: bool,
    /// Copies that the engine's own cache can hold, where it has said so.
    pub(super) capacity: Option<u64>,
    pub(super) capacity_asked: JoinSet<Option<u64>>,
    pub(super) capacity_after: Instant,
    /// What its operator was told to do, so that it speaks.
    pub(super) advice: Option<String>,
}

/// Between two questions for what an engine can hold, where it does not say.
const CAPACITY_PAUSE: Duration = Duration::from_secs(60);
/// How often it is seen whether a tap is to get a picture.
const PICTURE_LOOK: Duration = Duration::from_secs(1);

impl Listener {
    pub(super) async fn run(mut self) {
        match (self.way.clone(), self.endpoint.events.clone()) {
            (Way::Nats(cluster), _) => {
                let source = NatsSource::open(&cluster, &self.endpoint);
                self.follow(source, None).await;
            }
            (way, Some(events)) => {
                if let Err(reason) = self.follow_publisher(way, &events.publisher).await {
                    self.trust(Trust::Silent, &reason);
                    self.first = None;
                    std::future::pending().await
                }
            }
            (Way::Zmq { .. }, None) => {}
        }
    }

    /// Until the source ends, or at once where there is none: then with why.
    async fn follow_publisher(&mut self, way: Way, publisher: &Publisher) -> Result<(), String> {
        let Way::Zmq {
            topic,
            limits,
            acceptor,
        } = way
        else {
            return Ok(());
        };
        match publisher {
            Publisher::At(address) => {
                let source = ZmqSource::connect(address, &topic, limits);
                let source = source.map_err(|error| error.to_string())?;
                let depth = source.gauge();
                self.follow(source, Some(depth)).await;
            }
            Publisher::Discovered => {
                let asking = self.asking.as_ref();
                let replay = asking.map(|asking| asking.at.clone()).unwrap_or_default();
                let discovery = Discovery::of(&self.endpoint);
                let source = ZmqSource::discover(discovery, replay, &topic, limits);
                let depth = source.gauge();
                self.follow(source, Some(depth)).await;
            }
            Publisher::Connects => {
                let acceptor =
                    acceptor.ok_or("its publisher connects, and events.bind is not set")?;
                let source = self.bound(&acceptor, &limits).await;
                let depth = source.gauge();
                self.follow(source, Some(depth)).await;
            }
        }
        Ok(())
    }

    /// Tries until the port of its rank can be had.
    async fn bound(&mut self, acceptor: &Acceptor, limits: &Limits) -> BoundSource {
        let mut backoff = Backoff::new(limits.backoff_min, limits.backoff_max);
        loop {
            match acceptor.source(&self.endpoint) {
                Ok(source) => return source,
                Err(error) => self.trust(Trust::Silent, &error.to_string()),
            }
            self.first = None;
            sleep(backoff.after(Duration::ZERO)).await;
        }
    }

    async fn follow(&mut self, mut source: impl EventSource, depth: Option<DepthGauge>) {
        let mut follower = Follower::new(self.endpoint.id);
        if let Some(tap) = &mut self.tap
            && let Some(snapshot) = tap.resume().await
        {
            follower.resume(&self.index, &snapshot);
        }
        let mut ticks = interval(PICTURE_LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let delivery = tokio::select! {
                delivery = source.next() => delivery,
                Some(Ok(found)) = self.capacity_asked.join_next() => {
                    self.capacity = found;
                    self.hold_against_capacity(&mut follower);
                    continue;
                }
                _ = ticks.tick() => {
                    if follower.on_room(&self.index) {
                        let verdict = follower.verdict();
                        self.trust(verdict.trust, &verdict.reason);
                    }
                    self.look_for_silence(&follower);
                    self.hold_against_audit(&mut follower);
                    self.ask_capacity_again(&follower);
                    self.learn_again(&mut follower).await;
                    if self.tap_picture(&mut follower).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let Some(delivery) = delivery else { return };
            if let Some(depth) = &depth {
                self.metrics.queue_bytes.set(depth.read().bytes as f64);
            }
            let missing = match &delivery {
                // What an idle server holds shows in its past alone.
                Delivery::Connected => follower.missing_now(),
                Delivery::Batch(batch) => follower.missing_before(batch.seq, &batch.payload),
                _ => None,
            };
            match delivery {
                Delivery::Connected => {
                    self.silence.on_unheard();
                    self.ask_capacity();
                }
                Delivery::Restarted | Delivery::Snapshot(_) => self.ask_capacity(),
                Delivery::Doubted { by_bridge, .. } => self.bridge_away = !by_bridge,
                Delivery::Resumed => self.bridge_away = false,
                _ => {}
            }
            if let Some(from_seq) = missing {
                self.repair(&mut follower, from_seq).await;
            }
            let batch = match &delivery {
                Delivery::Batch(batch) => Some((batch.seq, batch.payload.clone())),
                _ => None,
            };
            let taken = self.take(&mut follower, delivery);
            self.hold_against_capacity(&mut follower);
            source.want_snapshot(follower.lacks());
            self.first = None;
            if let Some((seq, payload)) = batch
                && taken
                && self.tap_batch(&mut follower, seq, &payload).await.is_err()
            {
                return;
            }
        }
    }

    /// Asks the server how many blocks it has. Another process may have others.
    fn ask_capacity(&mut self) {
        self.capacity = None;
        self.capacity_after = Instant::now() + CAPACITY_PAUSE;
        // The answer of the process before is dropped with its question.
        self.capacity_asked = JoinSet::new();
        self.capacity_asked
            .spawn(capacity::of(self.endpoint.address));
    }

    /// Events come before HTTP is up: a server that just started does not answer yet.
    fn ask_capacity_again(&mut self, follower: &Follower) {
        let heard = follower.verdict().trust != Trust::Silent;
        if heard && self.capacity.is_none() && Instant::now() >= self.capacity_after {
            self.ask_capacity();
        }
    }

    pub(super) fn hold_against_capacity(&self, follower: &mut Follower) {
        let Some(blocks_max) = self.capacity else {
            return;
        };
        let followed = follower.on_capacity(&self.index, blocks_max);
        if followed.doubted {
            self.count(&followed);
            let verdict = follower.verdict();
            self.trust(verdict.trust, &verdict.reason);
        }
    }

    /// Doubts a picture whose predictions keep missing; it is then learnt again.
    fn hold_against_audit(&self, follower: &mut Follower) {
        if !self.endpoint.take_mistrusted() {
            return;
        }
        let followed = follower.on_mistrusted(&self.index);
        self.count(&followed);
        let verdict = follower.verdict();
        self.trust(verdict.trust, &verdict.reason);
        self.judge(&followed, verdict.trust);
    }

    /// Tells of a server that works and never sends an event.
    fn look_for_silence(&mut self, follower: &Follower) {
        let verdict = follower.verdict();
        let heard = follower.position().is_some() || verdict.trust != Trust::Silent;
        let (computed, now) = (self.endpoint.take_computed(), Instant::now());
        if self.bridge_away {
            return self.silence.on_unheard();
        }
        let silent = self.silence.look(heard, computed, now, self.silent_after);
        if heard {
            self.advice = None;
        }
        if silent {
            let (endpoint, events) = (self.endpoint.name.as_str(), &self.endpoint.events);
            let (reason, advice) = (&verdict.reason, advice(events.as_ref()));
            tracing::warn!(endpoint, ?reason, "{advice}");
            self.advice = Some(advice);
            self.trust(verdict.trust, &verdict.reason);
        }
    }

    /// Gives the tap a batch that was just taken.
    pub(super) async fn tap_batch(
        &mut self,
        follower: &mut Follower,
        seq: u64,
        payload: &Bytes,
    ) -> Result<(), Untapped> {
        let (Some(tap), Some((epoch, _))) = (&mut self.tap, follower.position()) else {
            return Ok(());
        };
        tap.give_batch(epoch, seq, payload.clone()).await?;
        match tap.is_full() {
            true => self.tap_picture(follower).await,
            false => Ok(()),
        }
    }

    /// Gives the tap what the endpoint holds, if it is time.
    async fn tap_picture(&mut self, follower: &mut Follower) -> Result<(), Untapped> {
        let (Some(tap), Some((epoch, last))) = (&mut self.tap, follower.position()) else {
            return Ok(());
        };
        let trusted =
            |follower: &Follower| matches!(follower.verdict().trust, Trust::Live | Trust::Doubtful);
        if !tap.is_due() || !trusted(follower) {
            return Ok(());
        }
        let Some(picture) = self.index.picture(self.endpoint.id) else {
            return Ok(());
        };
        // In this order: what was given up for room before that is known by now.
        follower.on_room(&self.index);
        let verdict = follower.verdict().clone();
        tap.give_picture(epoch, last, verdict, picture).await
    }

    /// Whether it was a batch that had not been taken before.
    fn take(&self, follower: &mut Follower, delivery: Delivery) -> bool {
        let followed = match delivery {
            Delivery::Batch(batch) => {
                self.metrics.batches.increment(1);
                follower.on_batch(&self.index, batch.seq, &batch.payload)
            }
            Delivery::Malformed { reason } => {
                self.metrics.undecodable.increment(1);
                follower.on_loss(&self.index, &format!("a message is no batch: {reason}"))
            }
            Delivery::Overrun { messages } => follower.on_overrun(messages),
            Delivery::Snapshot(snapshot) => {
                follower.on_snapshot(&self.index, &snapshot);
                Followed {
                    forgotten: true,
                    ..Followed::default()
                }
            }
            Delivery::Restarted => {
                follower.on_restarted(&self.index);
                Followed {
                    forgotten: true,
                    ..Followed::default()
                }
            }
            Delivery::Doubted { silent, reason, .. } => {
                follower.on_doubted(silent, reason);
                Followed::default()
            }
            Delivery::Resumed => {
                follower.on_resumed();
                Followed::default()
            }
            Delivery::Connected => follower.on_connected(),
            Delivery::Disconnected { reason } => {
                // A publisher that was heard lives and dies with its server. One that never was
                // may just be out of reach, and says nothing of the server.
                if follower.verdict().trust != Trust::Silent {
                    self.endpoint.failed(Instant::now());
                }
                follower.on_disconnected(&reason)
            }
        };
        self.count(&followed);
        let verdict = follower.verdict();
        self.trust(verdict.trust, &verdict.reason);
        // After the trust is told: no watch is opened that this would have to close.
        self.judge(&followed, verdict.trust);
        followed.taken
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.index.forget(self.endpoint.id);
        self.endpoint
            .set_trust(Trust::Silent, "nobody listens to it", Instant::now());
        self.parity.lost(self.endpoint.id);
    }
}

//! A task for each endpoint that publishes: next → decode → order → apply.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::config::Events;
use crate::events::backoff::Backoff;
use crate::events::bind::{Acceptor, BindError, BoundSource};
use crate::events::capacity;
use crate::events::discover::{Discovery, ReplayAt};
use crate::events::follow::{Followed, Follower};
use crate::events::nats::{Cluster, NatsSource};
use crate::events::replay::{Replay, ReplayEnd, replay};
use crate::events::silence::{SILENT_AFTER, Silence, advice};
use crate::events::tap::{NewTap, Tap, Untapped};
use crate::events::zmq::{DepthGauge, Limits, ZmqSource};
use crate::events::{Delivery, EventSource};
use crate::fleet::{Endpoint, EndpointId, Fleet, Publisher, Trust};
use crate::index::Index;
use crate::metrics::{EndpointMetrics, Metrics};
use crate::parity::{self, Heard, Judgement, Parity, epoch_s};
use crate::readiness::Ticket;

/// By which way events come.
#[derive(Debug, Clone)]
pub enum Way {
    /// Straight from each endpoint's publisher.
    Zmq {
        /// Only topics that start so.
        topic: String,
        /// What hearing one endpoint may cost.
        limits: Limits,
        /// Lets publishers in that connect to us.
        acceptor: Option<Acceptor>,
    },
    /// Out of the stream that bridges fill.
    Nats(Box<Cluster>),
}

impl Way {
    /// Straight from publishers, as an operator configured it.
    ///
    /// # Errors
    /// Those that connect to us cannot: the port is taken.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn zmq(events: &Events, metrics: &Metrics) -> Result<Self, BindError> {
        let limits = Limits {
            queue_bytes_max: events.queue_bytes_max,
            ..Limits::default()
        };
        let accept = |at| Acceptor::bind(at, &events.topic, limits.clone(), metrics.unclaimed());
        Ok(Self::Zmq {
            acceptor: events.bind.map(accept).transpose()?,
            topic: events.topic.clone(),
            limits,
        })
    }

    fn asking(&self, endpoint: &Endpoint) -> Option<Asking> {
        let Self::Zmq { limits, .. } = self else {
            return None;
        };
        Some(Asking {
            at: ReplayAt::new(endpoint.events.as_ref()?.replay.clone()),
            limits: limits.clone(),
        })
    }

    /// Whether an endpoint can be heard so.
    #[must_use]
    pub fn reaches(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Zmq { .. } => endpoint.events.is_some(),
            Self::Nats(_) => true,
        }
    }
}

/// Hears every endpoint of the fleet.
pub struct Listeners {
    /// Who serves.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// What the events build.
    pub index: Arc<Index>,
    /// Who compares them with the prompts that we placed.
    pub parity: Arc<Parity>,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
    /// How they are heard.
    pub way: Way,
    /// Who else takes what was heard: a bridge.
    pub tap: Option<NewTap>,
    /// LoRA adapters by order of loading, for servers whose events do not name them.
    pub adapters: Vec<String>,
    /// Given back when an endpoint was first reached, or could not be.
    pub first: HashMap<EndpointId, Ticket>,
    /// How long a server may work and say nothing before its operator is told.
    pub silent_after: Duration,
}

impl Listeners {
    /// Hears a fleet for an index, and for nothing else.
    #[must_use]
    pub fn new(fleet: watch::Receiver<Arc<Fleet>>, index: Arc<Index>, way: Way) -> Self {
        Self {
            fleet,
            index,
            parity: Arc::default(),
            metrics: Arc::default(),
            way,
            tap: None,
            adapters: Vec::new(),
            first: HashMap::new(),
            silent_after: SILENT_AFTER,
        }
    }

    /// Runs until the fleet's writer is gone, or a listener has failed. An endpoint that leaves
    /// the fleet takes its picture along.
    pub async fn run(mut self) {
        let mut tasks = JoinSet::new();
        let replays = Arc::new(Semaphore::new(REPLAYS_MAX));
        let mut heard: HashMap<EndpointId, AbortHandle> = HashMap::new();
        loop {
            let fleet = self.fleet.borrow_and_update().clone();
            heard.retain(|id, task| {
                let stays = fleet.endpoints.iter().any(|endpoint| endpoint.id == *id);
                if !stays {
                    task.abort();
                }
                stays
            });
            for endpoint in &fleet.endpoints {
                if self.way.reaches(endpoint) && !heard.contains_key(&endpoint.id) {
                    heard.insert(
                        endpoint.id,
                        tasks.spawn(self.listener(endpoint, &replays).run()),
                    );
                }
            }
            tokio::select! {
                changed = self.fleet.changed() => if changed.is_err() { return },
                // A listener ends by being told to; one that ends otherwise ends the app.
                Some(ended) = tasks.join_next() => {
                    if !ended.is_err_and(|error| error.is_cancelled()) {
                        return;
                    }
                }
            }
        }
    }

    fn listener(&mut self, endpoint: &Arc<Endpoint>, replays: &Arc<Semaphore>) -> Listener {
        self.index.name_adapters(endpoint.id, self.adapters.clone());
        Listener {
            endpoint: endpoint.clone(),
            index: self.index.clone(),
            parity: self.parity.clone(),
            metrics: self.metrics.endpoint(&endpoint.name),
            way: self.way.clone(),
            tap: self.tap.as_mut().map(|new| new(endpoint)),
            asking: self.way.asking(endpoint),
            first: self.first.remove(&endpoint.id),
            replay_after: None,
            relearn_after: None,
            relearn_wait: RELEARN.0,
            replays: replays.clone(),
            silence: Silence::default(),
            bridge_away: matches!(self.way, Way::Nats(_)),
            silent_after: self.silent_after,
            capacity: None,
            capacity_asked: JoinSet::new(),
            advice: None,
        }
    }
}

/// Hears one endpoint; being dropped, it forgets it.
struct Listener {
    endpoint: Arc<Endpoint>,
    index: Arc<Index>,
    parity: Arc<Parity>,
    metrics: EndpointMetrics,
    way: Way,
    tap: Option<Tap>,
    asking: Option<Asking>,
    first: Option<Ticket>,
    replay_after: Option<Instant>,
    /// When a doubtful picture may be learnt again, and how long to wait then.
    relearn_after: Option<Instant>,
    relearn_wait: Duration,
    /// A turn at replaying.
    replays: Arc<Semaphore>,
    silence: Silence,
    silent_after: Duration,
    /// No bridge says how the server is heard: nobody knows whose silence it is.
    bridge_away: bool,
    /// Copies that the engine's own cache can hold, where it has said so.
    capacity: Option<u64>,
    capacity_asked: JoinSet<Option<u64>>,
    /// What its operator was told to do, so that it speaks.
    advice: Option<String>,
}

/// How a server is asked for what was not heard. Where there is a bridge, that does it.
#[derive(Debug)]
struct Asking {
    at: ReplayAt,
    limits: Limits,
}

/// A replay, and the turn that it takes until it is dropped.
struct Fetched {
    replay: Replay,
    _turn: OwnedSemaphorePermit,
}

/// What a replay was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// All that was asked for.
    Whole,
    /// Some of it, or nothing.
    Partial,
    /// Another process answered than the one that we heard.
    Stranger,
}

/// Replays at once, over the fleet: each may take `replay_bytes_max` of memory.
const REPLAYS_MAX: usize = 4;
/// Batches applied before other tasks get a turn: about a millisecond.
const REPLAYED_AT_ONCE: u64 = 64;
/// Half a second is enough for the 10,000 batches that vLLM keeps, even when some are lost on the
/// way and asked for again.
const REPLAY_MAX: Duration = Duration::from_secs(10);
/// Between two replays of one server: each is work for its publisher thread.
const REPLAY_PAUSE: Duration = Duration::from_secs(30);
/// Between two attempts to learn a doubtful picture again, doubled up to the second: each asks for
/// all that the server keeps.
const RELEARN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// How often it is seen whether a tap is to get a picture.
const PICTURE_LOOK: Duration = Duration::from_secs(1);

/// For an operator: what happened, what it costs, what to look at.
const MODEL_DOUBTFUL: &str = "servers store other token ids than we compute for this model's \
    prompts, so its cache hits count less: is models.folder the servers' own model? Does \
    models.server say --chat-template, --chat-template-content-format and \
    --default-chat-template-kwargs as the servers were started? Are adapters named in order? \
    (docs/runbook.md#token-parity)";

impl Listener {
    async fn run(mut self) {
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
                    self.look_for_silence(&follower);
                    self.learn_again(&mut follower).await;
                    if self.tap_picture(&follower).await.is_err() {
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
                && self.tap_batch(&follower, seq, &payload).await.is_err()
            {
                return;
            }
        }
    }

    /// Asks a server that we hear ourselves how many blocks it has. Another process may have others.
    fn ask_capacity(&mut self) {
        if matches!(self.way, Way::Zmq { .. }) && self.capacity_asked.is_empty() {
            self.capacity = None;
            self.capacity_asked
                .spawn(capacity::of(self.endpoint.address));
        }
    }

    fn hold_against_capacity(&self, follower: &mut Follower) {
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

    /// Where a gap stayed, the server may still keep everything since its start, or since its cache
    /// was empty: a replay that was cut short or slow may be whole by now. There may be holes in it
    /// that nothing fills; whether the cache was empty since, the batches say.
    async fn learn_again(&mut self, follower: &mut Follower) {
        if follower.verdict().trust != Trust::Doubtful || follower.position().is_none() {
            self.relearn_wait = RELEARN.0;
            return;
        }
        let early = |after| Instant::now() < after;
        if !self.can_ask() || self.relearn_after.is_some_and(early) {
            return;
        }
        self.relearn_after = Some(Instant::now() + self.relearn_wait);
        self.relearn_wait = (self.relearn_wait * 2).min(RELEARN.1);
        let fetched = self.fetch(0).await;
        let whole = fetched.filter(|fetched| {
            fetched.replay.end == ReplayEnd::Complete && !fetched.replay.batches.is_empty()
        });
        let Some(fetched) = whole else { return };
        tracing::info!(endpoint = self.endpoint.name, "learning again");
        follower.on_restarted(&self.index);
        if self.take_replay(follower, &fetched.replay).await.is_ok() {
            let verdict = follower.verdict();
            self.trust(verdict.trust, &verdict.reason);
        }
    }

    /// Gives the tap a batch that was just taken.
    async fn tap_batch(
        &mut self,
        follower: &Follower,
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
    async fn tap_picture(&mut self, follower: &Follower) -> Result<(), Untapped> {
        let (Some(tap), Some((epoch, last))) = (&mut self.tap, follower.position()) else {
            return Ok(());
        };
        let verdict = follower.verdict();
        if !tap.is_due() || !matches!(verdict.trust, Trust::Live | Trust::Doubtful) {
            return Ok(());
        }
        match self.index.picture(self.endpoint.id) {
            Some(picture) => {
                tap.give_picture(epoch, last, verdict.clone(), picture)
                    .await
            }
            None => Ok(()),
        }
    }

    /// Asks the server for what was not heard, if it can replay. The live stream waits in its
    /// queue meanwhile. Whatever is still missing shows when the live batch is taken.
    async fn repair(&mut self, follower: &mut Follower, from_seq: u64) {
        // A server that cannot fill a gap is not asked again at once.
        let early = |after| Instant::now() < after;
        if !self.can_ask() || self.replay_after.is_some_and(early) {
            return;
        }
        self.trust(
            Trust::Learning,
            &format!("asking for what came from batch {from_seq} on"),
        );
        let answer = match self.ask(follower, from_seq).await {
            Answer::Stranger => self.ask(follower, 0).await,
            answer => answer,
        };
        if answer != Answer::Whole {
            self.replay_after = Some(Instant::now() + REPLAY_PAUSE);
        }
    }

    /// Whether it is known where to ask for a replay.
    fn can_ask(&self) -> bool {
        let asking = self.asking.as_ref();
        asking.is_some_and(|asking| asking.at.get().is_some())
    }

    async fn ask(&mut self, follower: &mut Follower, from_seq: u64) -> Answer {
        let Some(fetched) = self.fetch(from_seq).await else {
            return Answer::Partial;
        };
        let replay = &fetched.replay;
        let last = replay.batches.get(&from_seq);
        let last = last.map(|batch| &batch.payload[..]);
        if !follower.on_recognition(&self.index, last) {
            return Answer::Stranger;
        }
        // Where nobody takes it, the next live batch shows so.
        let taken = self.take_replay(follower, replay).await;
        let whole = replay.end == ReplayEnd::Complete && replay.gaps().next().is_none();
        match taken.is_ok() && whole {
            true => Answer::Whole,
            false => Answer::Partial,
        }
    }

    /// What the server still keeps from a batch on; none where it does not answer.
    async fn fetch(&self, from_seq: u64) -> Option<Fetched> {
        let Asking { at, limits } = self.asking.as_ref()?;
        let address = &at.get()?;
        // Closed only where the app is gone.
        let turn = self.replays.clone().acquire_owned().await.ok()?;
        let endpoint = self.endpoint.name.as_str();
        match replay(address, from_seq, REPLAY_MAX, limits).await {
            Ok(replay) => {
                tracing::info!(endpoint, batches = replay.batches.len(), from_seq, end = ?replay.end, "replayed");
                Some(Fetched {
                    replay,
                    _turn: turn,
                })
            }
            Err(error) => {
                tracing::warn!(endpoint, error = ?error.to_string(), address, "no replay");
                None
            }
        }
    }

    async fn take_replay(
        &mut self,
        follower: &mut Follower,
        replay: &Replay,
    ) -> Result<(), Untapped> {
        for (seq, batch) in &replay.batches {
            self.take_replayed(follower, *seq, &batch.payload).await?;
        }
        Ok(())
    }

    /// Takes one batch of a replay, and gives it to the tap.
    async fn take_replayed(
        &mut self,
        follower: &mut Follower,
        seq: u64,
        payload: &Bytes,
    ) -> Result<(), Untapped> {
        let followed = follower.on_replayed(&self.index, seq, payload);
        self.judge(&followed, follower.verdict().trust);
        let taken = followed.taken;
        self.count(&Followed {
            timestamp: None,
            ..followed
        });
        if seq.is_multiple_of(REPLAYED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
        match taken {
            true => self.tap_batch(follower, seq, payload).await,
            false => Ok(()),
        }
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

    /// Judges the watches that this delivery decides.
    fn judge(&self, followed: &Followed, trust: Trust) {
        let lost = followed.forgotten || followed.missed > 0;
        let heard = Heard {
            timestamp: followed.timestamp,
            now_s: epoch_s(SystemTime::now()),
            unbroken: trust == Trust::Live && !lost,
        };
        for judgement in self.parity.heard(self.endpoint.id, heard) {
            self.tell(&judgement);
        }
    }

    fn tell(&self, judgement: &Judgement) {
        let Judgement {
            request,
            model,
            verdict,
            doubtful,
        } = judgement;
        let (endpoint, model) = (self.endpoint.name.as_str(), model.as_ref());
        if let parity::Verdict::Differ(fork) = verdict {
            let (position, why) = (fork.position(), fork.as_str());
            tracing::debug!(
                ?request,
                endpoint,
                model,
                position,
                why,
                "the server did not store the tokens that we computed"
            );
        }
        match doubtful {
            Some(true) => tracing::warn!(model, endpoint, "{MODEL_DOUBTFUL}"),
            Some(false) => tracing::info!(model, endpoint, "token ids agree with the events again"),
            None => {}
        }
    }

    fn trust(&self, trust: Trust, reason: &str) {
        let advised = match (&self.advice, trust) {
            (Some(advice), Trust::Silent) => format!("{reason}; {advice}"),
            _ => String::new(),
        };
        let reason = if advised.is_empty() { reason } else { &advised };
        if self.endpoint.set_trust(trust, reason, Instant::now()) {
            let (endpoint, trust) = (self.endpoint.name.as_str(), trust.as_str());
            // Quoted and escaped: some of the reason is the peer's own word.
            tracing::info!(endpoint, trust, ?reason, "trust changed");
        }
    }

    fn count(&self, followed: &Followed) {
        let Followed { applied, .. } = followed;
        let metrics = &self.metrics;
        metrics.missed.increment(followed.missed);
        metrics.forgotten.increment(u64::from(followed.forgotten));
        metrics.doubted.increment(u64::from(followed.doubted));
        metrics
            .undecodable
            .increment(u64::from(followed.undecodable));
        metrics.malformed.increment(u64::from(followed.malformed));
        metrics.unknown.increment(u64::from(followed.unknown));
        metrics.stored.increment(u64::from(applied.stored));
        metrics.removed.increment(u64::from(applied.removed));
        metrics.orphans.increment(u64::from(applied.orphans));
        metrics.strangers.increment(u64::from(applied.unknown));
        metrics.elsewhere.increment(u64::from(applied.elsewhere));
        metrics.unmodelled.increment(u64::from(applied.unmodelled));
        if let Some(timestamp) = followed.timestamp {
            let now = epoch_s(SystemTime::now());
            metrics.lag.record((now - timestamp).max(0.0));
        }
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

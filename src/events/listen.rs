//! A task for each endpoint that publishes: next → decode → order → apply.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::events::follow::{Followed, Follower};
use crate::events::replay::{ReplayEnd, replay};
use crate::events::zmq::{Limits, ZmqSource};
use crate::events::{Delivery, EventSource};
use crate::fleet::{Endpoint, EndpointId, Fleet, Trust};
use crate::index::Index;
use crate::metrics::{EndpointMetrics, Metrics};
use crate::parity::{Heard, Judgement, Parity, Verdict, epoch_s};
use crate::readiness::Ticket;

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
    /// Only topics that start so.
    pub topic: String,
    /// What hearing one endpoint may cost.
    pub limits: Limits,
    /// LoRA adapters by order of loading, for servers whose events do not name them.
    pub adapters: Vec<String>,
    /// Given back when an endpoint was first reached, or could not be.
    pub first: HashMap<EndpointId, Ticket>,
}

impl Listeners {
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
                if endpoint.events.is_some() && !heard.contains_key(&endpoint.id) {
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
            topic: self.topic.clone(),
            limits: self.limits.clone(),
            first: self.first.remove(&endpoint.id),
            replay_after: None,
            replays: replays.clone(),
        }
    }
}

/// Hears one endpoint; being dropped, it forgets it.
struct Listener {
    endpoint: Arc<Endpoint>,
    index: Arc<Index>,
    parity: Arc<Parity>,
    metrics: EndpointMetrics,
    topic: String,
    limits: Limits,
    first: Option<Ticket>,
    replay_after: Option<Instant>,
    /// A turn at replaying.
    replays: Arc<Semaphore>,
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

/// For an operator: what happened, what it costs, what to look at.
const MODEL_DOUBTFUL: &str = "servers store other token ids than we compute for this model's \
    prompts, so its cache hits count less: is models.folder the servers' own model? Does \
    models.server say --chat-template, --chat-template-content-format and \
    --default-chat-template-kwargs as the servers were started? Are adapters named in order? \
    (docs/runbook.md#token-parity)";

impl Listener {
    async fn run(mut self) {
        let Some(events) = self.endpoint.events.as_ref() else {
            return;
        };
        let mut source = match ZmqSource::connect(events, &self.topic, self.limits.clone()) {
            Ok(source) => source,
            Err(error) => {
                self.trust(Trust::Silent, &format!("{}: {error}", events.publisher));
                self.first = None;
                return std::future::pending().await;
            }
        };
        let (mut follower, depth) = (Follower::new(self.endpoint.id), source.gauge());
        while let Some(delivery) = source.next().await {
            self.metrics.queue_bytes.set(depth.read().bytes as f64);
            let missing = match &delivery {
                // What an idle server holds shows in its past alone.
                Delivery::Connected => follower.missing_now(),
                Delivery::Batch(batch) => follower.missing_before(batch.seq),
                _ => None,
            };
            if let Some(from_seq) = missing {
                self.repair(&mut follower, from_seq).await;
            }
            self.take(&mut follower, delivery);
            self.first = None;
        }
    }

    /// Asks the server for what was not heard, if it can replay. The live stream waits in its
    /// queue meanwhile. Whatever is still missing shows when the live batch is taken.
    async fn repair(&mut self, follower: &mut Follower, from_seq: u64) {
        let replay = self
            .endpoint
            .events
            .as_ref()
            .and_then(|events| events.replay.clone());
        let Some(address) = replay else { return };
        // A server that cannot fill a gap is not asked again at once.
        if self
            .replay_after
            .is_some_and(|after| Instant::now() < after)
        {
            return;
        }
        self.trust(
            Trust::Learning,
            &format!("asking for what came from batch {from_seq} on"),
        );
        let answer = match self.ask(follower, &address, from_seq).await {
            Answer::Stranger => self.ask(follower, &address, 0).await,
            answer => answer,
        };
        if answer != Answer::Whole {
            self.replay_after = Some(Instant::now() + REPLAY_PAUSE);
        }
    }

    async fn ask(&self, follower: &mut Follower, address: &str, from_seq: u64) -> Answer {
        // Closed only where the app is gone.
        let _turn = self.replays.acquire().await;
        let endpoint = self.endpoint.name.as_str();
        let replay = match replay(address, from_seq, REPLAY_MAX, &self.limits).await {
            Ok(replay) => replay,
            Err(error) => {
                tracing::warn!(endpoint, error = ?error.to_string(), address, "no replay");
                return Answer::Partial;
            }
        };
        tracing::info!(endpoint, batches = replay.batches.len(), from_seq, end = ?replay.end, "replayed");
        let last = replay
            .batches
            .get(&from_seq)
            .map(|batch| &batch.payload[..]);
        if !follower.on_recognition(&self.index, last) {
            return Answer::Stranger;
        }
        for (seq, batch) in &replay.batches {
            let followed = follower.on_replayed(&self.index, *seq, &batch.payload);
            self.judge(&followed, follower.verdict().trust);
            self.count(&Followed {
                timestamp: None,
                ..followed
            });
            if seq % REPLAYED_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
        let whole = replay.end == ReplayEnd::Complete && replay.gaps().next().is_none();
        if whole {
            Answer::Whole
        } else {
            Answer::Partial
        }
    }

    fn take(&self, follower: &mut Follower, delivery: Delivery) {
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
        if let Verdict::Differ(fork) = verdict {
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

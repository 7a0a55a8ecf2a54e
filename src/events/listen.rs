//! A task for each endpoint that publishes: next → decode → order → apply.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::events::follow::{Followed, Follower};
use crate::events::zmq::{Limits, ZmqSource};
use crate::events::{Delivery, EventSource};
use crate::fleet::{Endpoint, EndpointId, Fleet, Trust};
use crate::index::Index;
use crate::metrics::{EndpointMetrics, Metrics};
use crate::readiness::Ticket;

/// Hears every endpoint of the fleet.
pub struct Listeners {
    /// Who serves.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// What the events build.
    pub index: Arc<Index>,
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
    /// Runs until the fleet's writer is gone. An endpoint that leaves the fleet takes its
    /// picture along.
    pub async fn run(mut self) {
        let mut tasks = JoinSet::new();
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
                    heard.insert(endpoint.id, tasks.spawn(self.listener(endpoint).run()));
                }
            }
            tokio::select! {
                changed = self.fleet.changed() => if changed.is_err() { return },
                // Ends are reaped as they come: a listener only ends by being told to.
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    fn listener(&mut self, endpoint: &Arc<Endpoint>) -> Listener {
        self.index.name_adapters(endpoint.id, self.adapters.clone());
        Listener {
            endpoint: endpoint.clone(),
            index: self.index.clone(),
            metrics: self.metrics.endpoint(&endpoint.name),
            topic: self.topic.clone(),
            limits: self.limits.clone(),
            first: self.first.remove(&endpoint.id),
        }
    }
}

/// Hears one endpoint; being dropped, it forgets it.
struct Listener {
    endpoint: Arc<Endpoint>,
    index: Arc<Index>,
    metrics: EndpointMetrics,
    topic: String,
    limits: Limits,
    first: Option<Ticket>,
}

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
        let mut follower = Follower::new(self.endpoint.id);
        while let Some(delivery) = source.next().await {
            self.take(&mut follower, delivery);
            self.first = None;
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
            Delivery::Overrun { messages } => {
                self.metrics.missed.increment(messages);
                let reason = format!(
                    "{messages} batches dropped here: events come faster than they are applied"
                );
                follower.on_loss(&self.index, &reason)
            }
            Delivery::Connected => {
                self.endpoint.set_unreachable(false);
                follower.on_connected()
            }
            Delivery::Disconnected { reason } => {
                self.endpoint.set_unreachable(true);
                follower.on_disconnected(&reason)
            }
        };
        self.count(&followed);
        let verdict = follower.verdict();
        self.trust(verdict.trust, &verdict.reason);
    }

    fn trust(&self, trust: Trust, reason: &str) {
        if self.endpoint.set_trust(trust, reason, Instant::now()) {
            let (endpoint, trust) = (self.endpoint.name.as_str(), trust.as_str());
            tracing::info!(endpoint, trust, reason, "trust changed");
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
        if let (Some(timestamp), Ok(now)) = (
            followed.timestamp,
            SystemTime::now().duration_since(UNIX_EPOCH),
        ) {
            metrics.lag.record((now.as_secs_f64() - timestamp).max(0.0));
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.index.forget(self.endpoint.id);
    }
}

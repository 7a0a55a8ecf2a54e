//! A task for each endpoint that publishes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::Events;
use crate::events::bind::{Acceptor, BindError};
use crate::events::discover::ReplayAt;
use crate::events::nats::Cluster;
use crate::events::silence::{SILENT_AFTER, Silence};
use crate::events::tap::NewTap;
use crate::events::zmq::Limits;
use crate::fleet::{Endpoint, EndpointId, Fleet};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::parity::Parity;
use crate::readiness::Ticket;

mod listener;
mod repair;
mod tell;

use listener::Listener;
use repair::{Asking, RELEARN, REPLAYS_MAX};

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
                let stays = fleet.heard().any(|endpoint| endpoint.id == *id);
                if !stays {
                    task.abort();
                }
                stays
            });
            for endpoint in fleet.heard() {
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
            capacity_after: Instant::now(),
            advice: None,
        }
    }
}

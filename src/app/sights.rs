//! What the admin port shows of an app.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::admin::{EndpointScore, EndpointState, Prefixes};
use crate::audit::Audit;
use crate::config::{ReadsAs, Saturation};
use crate::decisions::Decisions;
use crate::door::Seats;
use crate::ext_proc::Capacity;
use crate::fleet::{Endpoint, Fleet};
use crate::index::Index;
use crate::metrics::{EndpointSizes, Metrics, ModelSizes, ParitySizes, SaidSizes, Sizes};
use crate::models::Models;
use crate::parity::Parity;
use crate::replicas::Replicas;
use crate::scheduler::Scheduler;
use crate::tokens::TokenPool;

/// Where it looks.
pub(super) struct Sights {
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub index: Arc<Index>,
    pub parity: Arc<Parity>,
    pub models: watch::Receiver<Arc<Models>>,
    pub pool: Arc<TokenPool>,
    pub replicas: Option<Arc<Replicas>>,
    pub audit: Arc<Audit>,
    pub decisions: Arc<Decisions>,
    pub scheduler: Arc<Scheduler>,
    pub saturation: Saturation,
    pub capacity: Arc<Capacity>,
    /// Of the ports ext_proc, health and admin.
    pub seats: [Seats; 3],
    pub metrics: Arc<Metrics>,
}

impl Sights {
    /// What is known of each endpoint.
    pub fn endpoints(&self, digests: bool) -> Vec<EndpointState> {
        let (fleet, saturation) = (self.fleet.borrow().clone(), &self.saturation);
        let (models, index) = (self.models.borrow().clone(), &self.index);
        let states = fleet.endpoints.iter();
        states
            .map(|one| EndpointState::of((one, &fleet), &models, index, saturation, digests))
            .collect()
    }

    /// What prompts share.
    pub fn prefixes(&self) -> Prefixes {
        let fleet = self.fleet.borrow().clone();
        Prefixes::of(&self.index, &fleet)
    }

    /// How predictions have come out.
    pub fn scores(&self) -> Vec<EndpointScore> {
        let fleet = self.fleet.borrow().clone();
        let scores = fleet.endpoints.iter();
        scores
            .map(|endpoint| score(endpoint, &self.audit))
            .collect()
    }

    /// Reads sizes into the metrics.
    pub fn observe(&self) {
        let (fleet, models) = (self.fleet.borrow(), self.models.borrow());
        let (index, saturation) = (&self.index, &self.saturation);
        self.metrics.waiting(self.scheduler.waiting());
        for (port, seats) in ["ext_proc", "health", "admin"].iter().zip(&self.seats) {
            self.metrics.connections(port, seats.taken());
        }
        let capacity = &self.capacity;
        let wait = capacity.longest_delay();
        self.metrics
            .exchanges(capacity.open(), capacity.held_bytes(), wait);
        self.metrics.decisions_kept(self.decisions.kept_bytes());
        if let Some(replicas) = &self.replicas {
            let sizes = replicas.sizes(Instant::now());
            self.metrics
                .replicas(sizes.peers, sizes.in_flight, sizes.oldest_word);
        }
        let (size, records) = (index.size(), self.parity.records());
        let endpoints = fleet.endpoints.iter().map(|endpoint| EndpointSizes {
            name: &endpoint.name,
            pools: fleet.pools_of(endpoint).collect(),
            trust: endpoint.trust().as_str(),
            requests: endpoint.load.requests(),
            queued_tokens: endpoint.load.prefill_tokens(),
            blocks: index.blocks_of(endpoint.id),
            pace: endpoint.load.pace(),
            avoided: endpoint.avoided(Instant::now()),
            model_unknown: match endpoint.reads_as {
                ReadsAs::Named => None,
                ReadsAs::Entry(_) => Some(false),
                ReadsAs::Unknown => Some(true),
            },
            said: said(endpoint, saturation),
        });
        let states = models.states().map(|(name, cache)| ModelSizes {
            name,
            loaded: cache.is_some(),
            cache: cache.unwrap_or_default(),
        });
        let parity = records.iter().map(|(name, record)| ParitySizes {
            name,
            agree: record.agree,
            differ: record.differ,
            unjudged: record.unjudged,
            prompts_doubtful: record.is_doubtful(),
        });
        self.metrics.observe(&Sizes {
            index_blocks: size.blocks,
            index_pairs: size.pairs,
            index_bytes: index.bytes(),
            index_given_up: index.given_up(),
            tokenizer_waiting: self.pool.waiting(),
            tokenizer_working: self.pool.working(),
            pools: fleet.pools.iter().map(|pool| &*pool.name).collect(),
            endpoints: endpoints.collect(),
            models: states.collect(),
            parity: parity.collect(),
        });
    }
}

fn score(endpoint: &Endpoint, audit: &Audit) -> EndpointScore {
    let trust = endpoint.trust_since();
    EndpointScore {
        name: endpoint.name.clone(),
        trust: trust.trust.as_str().to_owned(),
        reason: trust.reason,
        score: audit.score(endpoint.id),
    }
}

/// What an endpoint says of its load, as of now.
fn said(endpoint: &Endpoint, saturation: &Saturation) -> Option<SaidSizes> {
    let (now, load) = (Instant::now(), &endpoint.load);
    let (report, age) = load.report(now)?;
    let outside = load.outside(now);
    Some(SaidSizes {
        age,
        waiting: report.waiting,
        running: report.running,
        kv_usage: report.kv_usage,
        outside_requests: outside.requests,
        outside_tokens: outside.prefill_tokens,
        saturated: load.saturated(now, saturation),
        fullness: {
            let waiting = f64::from(report.waiting) / f64::from(saturation.queue_max.max(1));
            let used = report.kv_usage.unwrap_or_default() / saturation.kv_usage_max.max(0.01);
            waiting.max(used)
        },
    })
}

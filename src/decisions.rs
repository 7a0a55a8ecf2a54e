//! What was decided lately, and why: kept in memory for an operator, and in a log if he wants one.
//!
//! A [`Decision`] is shared by the placement that it made and by whoever keeps it, so keeping it copies
//! nothing. What is kept is bounded in bytes; the oldest go first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use opentelemetry::TraceId;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::audit::Audited;
use crate::choice::{Candidate, Case, Choice};
use crate::fleet::{Endpoint, EndpointId, Fleet};
use crate::metrics::Metrics;

pub mod json;
pub mod log;
pub mod what_if;

/// One request's.
#[derive(Debug)]
pub struct Decision {
    /// Counts decisions of this process from 1.
    pub number: u64,
    /// When it was placed.
    pub at: SystemTime,
    /// What it is, as it was made.
    made: Made,
    /// Set once.
    ended: OnceLock<Ended>,
}

/// A decision that is about to be made known.
#[derive(Debug)]
pub struct Made {
    /// The trace that the request belongs to, if any.
    pub trace: Option<TraceId>,
    /// The configured model whose prompt was read.
    pub model: Option<Arc<str>>,
    /// The model that serves it in place of the one that it names.
    pub target: Option<Arc<str>>,
    /// The pool that it is for, where pools say who serves and one is known.
    pub pool: Option<Arc<str>>,
    /// What the choice rested on; candidates in the order of the fleet's endpoints.
    pub case: Case,
    /// Who could have got it.
    pub fleet: Arc<Fleet>,
    /// Who got it.
    pub choice: Choice,
    /// How long it took.
    pub took: Took,
}

/// How long each stage of a decision took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Took {
    /// From whole body to tokens: the wait for a core, `render`, `tokenize`.
    pub read: Duration,
    /// Parsing the body and rendering its prompt.
    pub render: Duration,
    /// Tokenizing what was rendered.
    pub tokenize: Duration,
    /// For an endpoint with room.
    pub wait: Duration,
    /// Block keys, and the look into the index.
    pub overlap: Duration,
    /// Load, costs, and the booking.
    pub choose: Duration,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ended {
    /// The response's status, if one came.
    pub status: Option<u16>,
    /// Who served it.
    pub served: Option<EndpointId>,
    /// From the choice to the first bytes of the answer.
    pub first_output: Option<Duration>,
    /// From the choice to the end.
    pub took: Duration,
    /// Tokens of the prompt, as the server counts them.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the server counts them.
    pub completion_tokens: Option<u64>,
    /// Tokens that the server reports as cached.
    pub cached_tokens: Option<u64>,
    /// Tokens that were predicted for whoever served it.
    pub predicted: Option<u64>,
    /// What came of the prediction.
    pub audited: Option<Audited>,
}

impl std::ops::Deref for Decision {
    type Target = Made;

    fn deref(&self) -> &Made {
        &self.made
    }
}

impl Decision {
    /// With a number, as of now; 0 for one that places nothing.
    #[must_use]
    pub fn of(made: Made, number: u64) -> Self {
        Self {
            number,
            at: SystemTime::now(),
            made,
            ended: OnceLock::new(),
        }
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.get()
    }

    /// An endpoint that could have got it, and what was known of it.
    pub fn candidate(&self, place: usize) -> Option<(&Arc<Endpoint>, &Candidate)> {
        Some((
            self.fleet.endpoints.get(place)?,
            self.case.candidates.get(place)?,
        ))
    }

    /// The word for what decided: `prefix`, `load` or `home`.
    #[must_use]
    pub fn decided_by(&self) -> &'static str {
        match (self.case.home, self.choice.prefix_aware) {
            (Some(_), _) => "home",
            (None, true) => "prefix",
            (None, false) => "load",
        }
    }

    fn name(&self, endpoint: EndpointId) -> &str {
        let mut all = self.fleet.endpoints.iter();
        all.find(|one| one.id == endpoint)
            .map_or("", |one| &one.name)
    }

    fn names(&self) -> HashMap<EndpointId, &str> {
        let all = self.fleet.endpoints.iter();
        all.map(|endpoint| (endpoint.id, endpoint.name.as_str()))
            .collect()
    }

    /// What keeping it takes, about.
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&self.case.candidates[..])
            + size_of_val(&self.fleet.endpoints[..])
            + self.case.request_id.len()
    }
}

/// Those of this process.
pub struct Decisions {
    bytes_max: usize,
    recent: Mutex<Recent>,
    log: Option<mpsc::Sender<Arc<Decision>>>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Recent {
    made: u64,
    kept: VecDeque<Arc<Decision>>,
    bytes: usize,
}

impl Decisions {
    /// Keeps so many bytes of them, and gives each that has ended to the log, if there is one.
    #[must_use]
    pub fn new(
        bytes_max: usize,
        log: Option<mpsc::Sender<Arc<Decision>>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            bytes_max,
            recent: Mutex::default(),
            log,
            metrics,
        }
    }

    /// Numbers and keeps one.
    pub fn keep(self: &Arc<Self>, made: Made) -> Open {
        let mut recent = self.recent.lock();
        recent.made += 1;
        let decision = Arc::new(Decision::of(made, recent.made));
        if self.bytes_max > 0 {
            recent.bytes += decision.bytes();
            recent.kept.push_back(decision.clone());
            while recent.bytes > self.bytes_max
                && let Some(oldest) = recent.kept.pop_front()
            {
                recent.bytes -= oldest.bytes();
            }
        }
        drop(recent);
        Open {
            decision,
            of: self.clone(),
        }
    }

    /// What the recent ones take.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.recent.lock().bytes
    }

    /// The newest of a request.
    #[must_use]
    pub fn of_request(&self, id: &str) -> Option<Arc<Decision>> {
        let recent = self.recent.lock();
        let newest = recent.kept.iter().rev();
        let mut same = newest.filter(|decision| decision.case.request_id == id);
        same.next().cloned()
    }

    /// The newest so many of those after a number, newest first.
    #[must_use]
    pub fn newest(&self, count: usize, after: u64) -> Vec<Arc<Decision>> {
        let recent = self.recent.lock();
        let newest = recent.kept.iter().rev().take(count);
        newest
            .take_while(|decision| decision.number > after)
            .cloned()
            .collect()
    }
}

/// A decision whose request has not ended. Dropped, it goes into the log.
pub struct Open {
    decision: Arc<Decision>,
    of: Arc<Decisions>,
}

impl std::ops::Deref for Open {
    type Target = Decision;

    fn deref(&self) -> &Decision {
        &self.decision
    }
}

impl Open {
    /// To be looked at when the request has ended, too.
    #[must_use]
    pub fn decision(&self) -> Arc<Decision> {
        self.decision.clone()
    }

    /// Its request ended so.
    pub fn end(&self, ended: Ended) {
        self.decision.ended.get_or_init(|| ended);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(log) = &self.of.log else { return };
        // Never waits: a disk that is slow or full loses lines, and they are counted.
        if log.try_send(self.decision.clone()).is_err() {
            self.of.metrics.decisions_unlogged(1);
        }
    }
}

#[cfg(test)]
mod tests;

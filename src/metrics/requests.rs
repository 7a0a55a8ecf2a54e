//! What is counted of every request: handles are kept, so that none is looked up by a text.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram};
use metrics_exporter_prometheus::PrometheusRecorder;
use parking_lot::RwLock;

use super::{Metrics, histogram};

/// Basis, reason, outcome: words of our own source.
type Answer = (&'static str, &'static str, &'static str);

/// Pools that are counted by name, in a process's life; those that come after them are told apart no more.
const POOLS_MAX: usize = 64;

/// Of all requests.
pub(super) struct Requests {
    answered: RwLock<HashMap<Arc<str>, HashMap<Answer, Counter>>>,
    decision: Histogram,
    stages: [(&'static str, Histogram); 3],
    matching_ratio: Histogram,
    first_output: [(&'static str, Histogram); 3],
}

impl Requests {
    pub fn new(recorder: &PrometheusRecorder) -> Self {
        let by = |family, label, word| (word, histogram(recorder, family, &[(label, word)]));
        let stage = |word| by("kvscout_decision_stage_seconds", "stage", word);
        let decided = |word| by("kvscout_first_output_seconds", "decided_by", word);
        Self {
            answered: RwLock::default(),
            decision: histogram(recorder, "kvscout_decision_seconds", &[]),
            stages: ["read", "overlap", "choose"].map(stage),
            matching_ratio: histogram(recorder, "kvscout_matching_ratio", &[]),
            first_output: ["prefix", "load", "home"].map(decided),
        }
    }
}

impl Metrics {
    /// A request of a pool, or of `metrics.pool` where there are none, was answered so: basis, reason, and `placed`
    /// or a refusal's word.
    pub fn answered(&self, pool: Option<&str>, answer: Answer) {
        let pool = pool.unwrap_or(&self.pool);
        let counted = self.requests.answered.read();
        if let Some(counter) = counted.get(pool).and_then(|pool| pool.get(&answer)) {
            return counter.increment(1);
        }
        drop(counted);
        let mut counted = self.requests.answered.write();
        let pool = match counted.len() < POOLS_MAX || counted.contains_key(pool) {
            true => pool,
            false => "other",
        };
        let counter = counted.entry(pool.into()).or_default().entry(answer);
        let (basis, reason, outcome) = answer;
        let labels = [
            ("pool", pool),
            ("basis", basis),
            ("reason", reason),
            ("outcome", outcome),
        ];
        let counter = counter.or_insert_with(|| self.counter("kvscout_requests_total", &labels));
        counter.increment(1);
    }

    /// A choice took so long, stage by stage, from whole body on, without a wait for room.
    pub fn decided(&self, stages: &[(&'static str, Duration)]) {
        let mut all = Duration::ZERO;
        for (stage, took) in stages {
            all += *took;
            record(&self.requests.stages, stage, *took);
        }
        self.requests.decision.record(all);
        if let Some(names) = &self.inference {
            names.decided(self, all);
        }
    }

    /// So much of a prompt was predicted to be cached.
    pub fn matched(&self, ratio: f64) {
        self.requests.matching_ratio.record(ratio);
        if let Some(names) = &self.inference {
            names.matched(self, ratio);
        }
    }

    /// The first bytes of a streamed answer came so long after the choice.
    pub fn first_output(&self, decided_by: &'static str, after: Duration) {
        record(&self.requests.first_output, decided_by, after);
    }
}

fn record(of: &[(&'static str, Histogram)], word: &str, took: Duration) {
    if let Some((_, histogram)) = of.iter().find(|(known, _)| *known == word) {
        histogram.record(took);
    }
}

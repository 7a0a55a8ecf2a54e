//! One look at the picker.

use std::time::Duration;

use serde::Serialize;

use super::asking::Tally;
use super::audited::UNEXCUSED;
use crate::decisions::process;
use crate::load::Spread;
use crate::stack::Scrape;

/// What the picker took, and did since the sample before.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    /// Seconds since the load began.
    pub at_s: f64,
    /// Picks a second.
    pub picks_per_s: f64,
    /// Cores that kvscout took.
    pub cores: f64,
    /// Requests asked again since a pod had died.
    pub retried: u64,
    /// Requests that were not answered.
    pub failed: u64,
    /// From a stream's begin to the pick: half took no longer.
    pub pick_p50_ms: f64,
    /// And ninety-nine in a hundred.
    pub pick_p99_ms: f64,
    /// From an engine's clock to the index, on average.
    pub event_lag_ms: f64,
    /// Predictions that were right, to the token.
    pub exact: u64,
    /// Those that were not, for a reason that was known.
    pub excused: u64,
    /// Those that were not, for no reason that is known.
    pub unexcused: u64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// What the index takes of it.
    pub index_bytes: u64,
    /// What the segment caches do.
    pub token_cache_bytes: u64,
    /// (endpoint, block) pairs in the index.
    pub index_pairs: u64,
    /// File descriptors that are open.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Streams that are open.
    pub streams: u64,
    /// Pods.
    pub pods: u64,
}

/// Looks again and again.
pub(super) struct Sampler {
    process: u32,
    cpu: Duration,
    at: f64,
    page: Scrape,
}

impl Sampler {
    /// As things stand at the begin.
    ///
    /// # Errors
    /// There is no such process.
    pub fn new(process: u32, page: Scrape) -> anyhow::Result<Self> {
        Ok(Self {
            process,
            cpu: process::cpu(process)?,
            at: 0.0,
            page,
        })
    }

    /// As they stand now, by the picker's own page and what was seen of it.
    ///
    /// # Errors
    /// The process is gone.
    pub fn look(
        &mut self,
        at: f64,
        page: Scrape,
        seen: Tally,
        pods: usize,
    ) -> anyhow::Result<Sample> {
        let now = |name: &str, label: &str| page.sum(name, label).unwrap_or(0.0);
        let grown = |name: &str, label: &str| page.grown(&self.page, name, label);
        let cpu = process::cpu(self.process)?;
        let lasted = (at - self.at).max(f64::MIN_POSITIVE);
        let millis = |of: Duration| 1e3 * of.as_secs_f64();
        let errors = |label: &str| grown("kvscout_prediction_errors_total", label);
        let unexcused: f64 = UNEXCUSED
            .iter()
            .map(|cause| errors(&format!("cause={cause:?}")))
            .sum();
        let exact = grown("kvscout_predictions_total", "verdict=\"exact\"");
        let batches = grown("kvscout_event_lag_seconds_count", "");
        let picks = seen.picks.len() as f64;
        let spread = Spread::of(seen.picks);
        let sample = Sample {
            at_s: at,
            picks_per_s: picks / lasted,
            cores: cpu.saturating_sub(self.cpu).as_secs_f64() / lasted,
            retried: seen.retried,
            failed: seen.failed,
            pick_p50_ms: millis(spread.p50),
            pick_p99_ms: millis(spread.p99),
            event_lag_ms: 1e3 * grown("kvscout_event_lag_seconds_sum", "") / batches.max(1.0),
            exact: exact as u64,
            excused: (errors("") - unexcused).max(0.0) as u64,
            unexcused: unexcused as u64,
            resident_bytes: process::resident(self.process)?,
            index_bytes: now("kvscout_index_bytes", "") as u64,
            token_cache_bytes: now("kvscout_token_cache_bytes", "") as u64,
            index_pairs: now("kvscout_index_pairs", "") as u64,
            descriptors: process::descriptors(self.process)?,
            threads: process::threads(self.process)?,
            streams: now("kvscout_exchanges", "") as u64,
            pods: pods as u64,
        };
        (self.cpu, self.at, self.page) = (cpu, at, page);
        Ok(sample)
    }
}

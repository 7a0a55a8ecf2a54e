//! A run in the numbers and curves that reports show.

use serde::Serialize;

use super::clock::{SECOND, Time};
use super::policies::Policy;
use super::record::Record;

/// Points of a curve at most: a page of twenty scenarios has 1,400 curves' worth of them.
const POINTS: usize = 48;

/// A policy's run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Its name.
    pub policy: &'static str,
    /// Requests that were answered.
    pub requests: usize,
    /// Times to first token, in seconds.
    pub ttft_s: Ttft,
    /// Cached tokens / prompt tokens.
    pub hit_rate: f64,
    /// That, by the oracle's; none where it did not run.
    pub of_oracle: Option<f64>,
    /// The busiest pod's requests / the mean.
    pub imbalance: f64,
    /// Prompt tokens computed by the pod that computed most / the mean.
    pub prefill_imbalance: f64,
    /// Requests pushed back for want of blocks.
    pub preemptions: u64,
    /// From the first request to the last answer's end, in seconds.
    pub took_s: f64,
    /// Curves, as (x, y).
    pub curves: Curves,
}

/// How times are spread, in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Ttft {
    /// The arithmetic mean.
    pub mean: f64,
    /// Half were no longer.
    pub p50: f64,
    /// Nine in ten were no longer.
    pub p90: f64,
    /// Ninety-nine in a hundred were no longer.
    pub p99: f64,
}

/// What is drawn.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Curves {
    /// Seconds to first token, and the share of requests that got it by then.
    pub ttft: Vec<(f64, f64)>,
    /// Seconds, and the hit rate of what was asked about then.
    pub hit_rate: Vec<(f64, f64)>,
    /// Seconds, and the busiest pod's requests / the mean then.
    pub imbalance: Vec<(f64, f64)>,
}

impl Summary {
    /// Of a run.
    #[must_use]
    pub fn of(policy: Policy, record: &Record) -> Self {
        let spread = record.ttft();
        let all: u64 = record.computed.iter().sum();
        let most = record.computed.iter().max().copied().unwrap_or(0);
        let mean = all as f64 / record.computed.len().max(1) as f64;
        Self {
            policy: policy.name(),
            requests: record.answered().count(),
            ttft_s: Ttft {
                mean: spread.mean.as_secs_f64(),
                p50: spread.p50.as_secs_f64(),
                p90: spread.p90.as_secs_f64(),
                p99: spread.p99.as_secs_f64(),
            },
            hit_rate: record.hit_rate(),
            of_oracle: None,
            imbalance: record.imbalance(),
            prefill_imbalance: if mean > 0.0 { most as f64 / mean } else { 1.0 },
            preemptions: record.preemptions,
            took_s: in_seconds(record.ended_at),
            curves: Curves::of(record),
        }
    }
}

impl Curves {
    fn of(record: &Record) -> Self {
        let mut times: Vec<Time> = record.answered().filter_map(|told| told.ttft).collect();
        times.sort_unstable();
        let point = |nth: usize| {
            let rank = (times.len() * nth).div_ceil(POINTS).max(1) - 1;
            let share = (rank + 1) as f64 / times.len() as f64;
            times.get(rank).map(|time| (in_seconds(*time), share))
        };
        // Neighbours by fours: a single look says little.
        let imbalance = record.samples.chunks(4).filter_map(|samples| {
            let most: f64 = samples.iter().map(|sample| sample.most).sum();
            let mean: f64 = samples.iter().map(|sample| sample.mean).sum();
            let last = samples.last()?;
            (mean > 0.0).then(|| (in_seconds(last.at), most / mean))
        });
        Self {
            ttft: (1..=POINTS).filter_map(point).collect(),
            hit_rate: record.hit_rates(POINTS / 2),
            imbalance: imbalance.collect(),
        }
    }
}

fn in_seconds(time: Time) -> f64 {
    time as f64 / SECOND as f64
}

/// Fills in what each hit rate is of the oracle's.
pub fn relate(summaries: &mut [Summary]) {
    let is_oracle = |summary: &&Summary| summary.policy == Policy::Oracle.name();
    let oracle = summaries
        .iter()
        .find(is_oracle)
        .map(|oracle| oracle.hit_rate);
    for summary in summaries {
        let of = oracle.filter(|oracle| *oracle > 0.0);
        summary.of_oracle = of.map(|oracle| summary.hit_rate / oracle);
    }
}

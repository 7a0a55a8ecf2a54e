//! What a load amounts to.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Sample;

/// A load in numbers. Durations are of requests that succeeded; the others are counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Requests sent.
    pub requests: usize,
    /// Those that failed, by what they said.
    pub errors: BTreeMap<String, usize>,
    /// Times to first token.
    pub ttft: Spread,
    /// Prompt tokens, as reported.
    pub prompt_tokens: u64,
    /// Those that the servers found in their caches, as reported.
    pub cached_tokens: u64,
    /// kvscout's predictions against the reports.
    pub predictions: Predictions,
    /// Requests that kvscout placed, by endpoint.
    pub placed: BTreeMap<String, usize>,
    /// Requests sent later than scheduled, since the answer before them had not come.
    pub late: usize,
}

/// How durations are spread. All are zero where there was nothing to measure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    /// The arithmetic mean.
    pub mean: Duration,
    /// Half took no longer.
    pub p50: Duration,
    /// Nine in ten took no longer.
    pub p90: Duration,
    /// Ninety-nine in a hundred took no longer.
    pub p99: Duration,
}

/// How predicted cached tokens compare with reported ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Predictions {
    /// Equal, to the token.
    pub exact: usize,
    /// More predicted than reported.
    pub over: usize,
    /// Less predicted than reported.
    pub under: usize,
}

impl Summary {
    /// Sums up.
    #[must_use]
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let (mut summary, mut ttfts) = (Self::default(), Vec::new());
        for sample in samples {
            summary.requests += 1;
            summary.late += usize::from(sample.late);
            match &sample.result {
                Err(error) => *summary.errors.entry(error.clone()).or_default() += 1,
                Ok(answer) => {
                    ttfts.push(answer.ttft);
                    summary.prompt_tokens += answer.usage.prompt_tokens;
                    summary.cached_tokens += answer.cached_tokens().unwrap_or(0);
                    if let Some(decision) = &answer.decision {
                        *summary.placed.entry(decision.endpoint.clone()).or_default() += 1;
                        let reported = answer.cached_tokens();
                        summary
                            .predictions
                            .count(decision.predicted_cached_tokens, reported);
                    }
                }
            }
        }
        summary.ttft = Spread::of(ttfts);
        summary
    }

    /// Requests that failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.errors.values().sum()
    }

    /// Cached tokens / prompt tokens, 0 to 1.
    #[must_use]
    pub fn cached_share(&self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens.max(1) as f64
    }
}

impl Predictions {
    fn count(&mut self, predicted: u64, reported: Option<u64>) {
        let Some(reported) = reported else { return };
        match predicted.cmp(&reported) {
            std::cmp::Ordering::Equal => self.exact += 1,
            std::cmp::Ordering::Greater => self.over += 1,
            std::cmp::Ordering::Less => self.under += 1,
        }
    }
}

impl Spread {
    /// Of these durations, in any order; percentiles by nearest rank.
    #[must_use]
    pub fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        let Ok(count @ 1..) = u32::try_from(durations.len()) else {
            return Self::default();
        };
        let rank = |percent: usize| durations[(durations.len() * percent).div_ceil(100) - 1];
        Self {
            mean: durations.iter().sum::<Duration>() / count,
            p50: rank(50),
            p90: rank(90),
            p99: rank(99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Answer, Decision, Usage};

    fn millis(all: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        all.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_of_values_that_were_measured() {
        let spread = Spread::of(millis((1..=200).rev()));
        let expected = [100, 180, 198].map(Duration::from_millis);
        assert_eq!([spread.p50, spread.p90, spread.p99], expected);
        assert_eq!(spread.mean, Duration::from_micros(100_500));
        let one = Duration::from_millis(7);
        assert_eq!(
            Spread::of(vec![one]),
            Spread {
                mean: one,
                p50: one,
                p90: one,
                p99: one
            }
        );
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    fn sample(predicted: u64, reported: u64, ttft: Duration) -> Sample {
        let decision = Decision {
            endpoint: "pod-1".into(),
            by: "prefix".into(),
            basis: "overlap".into(),
            trust: "live".into(),
            predicted_cached_tokens: predicted,
            prompt_tokens: 100,
        };
        let usage = serde_json::json!({
            "prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": reported},
        });
        let usage: Usage = serde_json::from_value(usage).expect("a usage");
        let text = String::new();
        let answer = Answer {
            text,
            ttft,
            total: ttft,
            usage,
            decision: Some(decision),
        };
        Sample {
            user: 0,
            round: 0,
            late: false,
            result: Ok(answer),
        }
    }

    #[test]
    fn a_failure_is_counted_and_leaves_no_mark_on_the_mean() {
        let second = Duration::from_secs(1);
        let failed = Sample {
            user: 1,
            round: 0,
            late: true,
            result: Err("refused".into()),
        };
        let all = [
            sample(64, 64, second),
            sample(64, 48, second),
            sample(32, 48, second),
            failed,
        ];
        let summary = Summary::of(&all);
        assert_eq!(
            (summary.requests, summary.failed(), summary.late),
            (4, 1, 1)
        );
        assert_eq!(summary.ttft.mean, second);
        assert_eq!(
            summary.predictions,
            Predictions {
                exact: 1,
                over: 1,
                under: 1
            }
        );
        assert!((summary.cached_share() - 160.0 / 300.0).abs() < 1e-9);
        assert_eq!(summary.placed["pod-1"], 3);
    }
}

//! What must stay as it was, and where it did not.

use serde_json::Value;

use super::run::Report;
use super::sample::Sample;
use crate::plot::round;
use crate::table::table;

/// A shorter run says nothing of what stays: caches are still filling.
const FLAT_FROM_S: f64 = 240.0;

/// Of something that is looked at: early and late are the medians of the second quarter and of the last one.
struct Watched {
    name: &'static str,
    unit: &'static str,
    of: fn(&Sample) -> f64,
    /// Late / early at most, and so much more besides; none where it is only told.
    limit: Option<(f64, f64)>,
}

const MB: f64 = 1e6;

const WATCHED: [Watched; 8] = [
    Watched {
        name: "memory",
        unit: "MB",
        of: |sample| sample.resident_bytes as f64 / MB,
        limit: Some((1.1, 0.0)),
    },
    Watched {
        name: "index",
        unit: "MB",
        of: |sample| sample.index_bytes as f64 / MB,
        limit: Some((1.25, 0.0)),
    },
    Watched {
        name: "descriptors",
        unit: "",
        of: |sample| sample.descriptors as f64,
        limit: Some((1.0, 16.0)),
    },
    Watched {
        name: "threads",
        unit: "",
        of: |sample| sample.threads as f64,
        limit: Some((1.0, 4.0)),
    },
    // Neighbours on the same cores change latencies, and last longer than a quarter.
    Watched {
        name: "pick p50",
        unit: "ms",
        of: |sample| sample.pick_p50_ms,
        limit: Some((2.0, 0.5)),
    },
    Watched {
        name: "pick p99",
        unit: "ms",
        of: |sample| sample.pick_p99_ms,
        limit: None,
    },
    Watched {
        name: "events' lag",
        unit: "ms",
        of: |sample| sample.event_lag_ms,
        limit: Some((2.0, 5.0)),
    },
    Watched {
        name: "CPU",
        unit: "cores",
        of: |sample| sample.cores,
        limit: None,
    },
];

impl Watched {
    /// Medians of the second quarter and of the last.
    fn early_and_late(&self, samples: &[Sample]) -> (f64, f64) {
        let quarter = samples.len() / 4;
        let median = |of: &[Sample]| {
            let mut values: Vec<f64> = of.iter().map(self.of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(0.0)
        };
        (
            median(&samples[quarter..2 * quarter]),
            median(&samples[samples.len() - quarter..]),
        )
    }
}

impl Report {
    /// Everything that is not as it should be; nothing where all is well.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let sum = |of: fn(&Sample) -> u64| self.samples.iter().map(of).sum::<u64>();
        let mut complaints = Vec::new();
        let failed = self.failed + sum(|sample| sample.failed);
        if failed > 0 {
            let words = self.failures.join("; ");
            complaints.push(format!("requests failed: {failed}: {words}"));
        }
        let mut wrong = self.without_excuse();
        if let Some(first) = wrong.next() {
            let count = 1 + wrong.count();
            complaints.push(format!(
                "predictions were wrong and claimed certainty: {count}, the first {first}"
            ));
        }
        if sum(|sample| sample.exact) == 0 {
            complaints.push("no prediction was compared with an answer".into());
        }
        if self.streams_left > 0 {
            let left = self.streams_left;
            complaints.push(format!("streams are open after the last answer: {left}"));
        }
        for watched in self.is_long().then_some(WATCHED).into_iter().flatten() {
            let (early, late) = watched.early_and_late(&self.samples);
            let (name, unit) = (watched.name, watched.unit);
            let Some((times, more)) = watched.limit else {
                continue;
            };
            if late > early * times + more {
                let (early, late) = (round(early), round(late));
                complaints.push(format!(
                    "{name} does not stay: {early} {unit} early, {late} late"
                ));
            }
        }
        complaints
    }

    /// Figures for people.
    #[must_use]
    pub fn table(&self) -> String {
        let sum = |of: fn(&Sample) -> u64| self.samples.iter().map(of).sum::<u64>();
        let mut rows = vec![["", "early", "late", ""].map(str::to_owned)];
        for watched in WATCHED {
            let (early, late) = watched.early_and_late(&self.samples);
            rows.push([
                watched.name.to_owned(),
                round(early),
                round(late),
                watched.unit.to_owned(),
            ]);
        }
        format!(
            "\n{}\n  {} requests, {:.0}/s of {:.0}/s; {} asked again since a pod had died, {} failed\n  \
             predictions: {} exact, {} missed for a known reason, {} for none; {} wrong, {} of them of a server that had just died\n",
            table(1, &rows),
            self.requests,
            self.rate,
            self.capacity,
            sum(|sample| sample.retried),
            self.failed + sum(|sample| sample.failed),
            sum(|sample| sample.exact),
            sum(|sample| sample.excused),
            sum(|sample| sample.unexcused),
            self.wrong.len(),
            self.wrong.len() - self.without_excuse().count(),
        )
    }

    /// Wrong predictions of servers that had not just died.
    fn without_excuse(&self) -> impl Iterator<Item = &Value> {
        let overtaken = |decision: &Value| self.restarts.iter().any(|one| one.overtook(decision));
        self.wrong
            .iter()
            .filter(move |decision| !overtaken(decision))
    }

    fn is_long(&self) -> bool {
        let lasted = self.samples.last().map_or(0.0, |sample| sample.at_s);
        lasted >= FLAT_FROM_S && self.samples.len() >= 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::audited::Restart;

    fn report(change: impl Fn(&mut Sample)) -> Report {
        let sample = |number: u32| {
            let mut sample = Sample {
                at_s: f64::from(number) * 10.0,
                exact: 100,
                resident_bytes: 300 << 20,
                pick_p50_ms: 1.0,
                descriptors: 40,
                ..Sample::default()
            };
            change(&mut sample);
            sample
        };
        Report {
            capacity: 100.0,
            rate: 70.0,
            requests: 7_000,
            failed: 0,
            failures: Vec::new(),
            wrong: Vec::new(),
            restarts: Vec::new(),
            streams_left: 0,
            samples: (1..=100).map(sample).collect(),
        }
    }

    #[test]
    fn what_stays_is_well_and_what_grows_is_named() {
        assert_eq!(report(|_| ()).complaints(), Vec::<String>::new());
        type Change = fn(&mut Sample);
        let cases: [(&str, Change); 4] = [
            ("memory", |sample| {
                sample.resident_bytes += (sample.at_s * 1e5) as u64
            }),
            ("descriptors", |sample| {
                sample.descriptors += sample.at_s as u64 / 10
            }),
            ("pick p50", |sample| {
                sample.pick_p50_ms += sample.at_s / 10.0
            }),
            ("requests failed", |sample| {
                sample.failed = u64::from(sample.at_s == 10.0)
            }),
        ];
        for (name, change) in cases {
            let complaints = report(change).complaints();
            assert!(
                complaints.len() == 1 && complaints[0].contains(name),
                "{complaints:?}"
            );
        }
    }

    #[test]
    fn a_short_run_says_nothing_of_what_stays() {
        let mut short = report(|sample| sample.resident_bytes += (sample.at_s * 1e6) as u64);
        short.samples.truncate(20);
        assert_eq!(short.complaints(), Vec::<String>::new());
        short.streams_left = 1;
        short.wrong.push(serde_json::json!({"number": 7}));
        assert_eq!(short.complaints().len(), 2);
        let overtaken = serde_json::json!({"endpoint": "pod-1", "time_ms": 5_000});
        short.wrong[0] = overtaken;
        short.restarts.push(Restart {
            pod: "pod-1".into(),
            began_ms: 5_000,
            ended_ms: 5_010,
        });
        assert_eq!(short.complaints().len(), 1, "the streams");
    }
}

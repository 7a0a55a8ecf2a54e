//! What is counted of endpoints, each in a recorder of its own that goes when the endpoint has.
//!
//! The exporter forgets series by idleness, and what somebody still holds of a series that it forgot is
//! counted nowhere. An endpoint may be idle for a night and come back; one that left must not stay, or
//! every pod of every rollout would.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use metrics_exporter_prometheus::PrometheusRecorder;
use parking_lot::Mutex;

use super::{IDLE_MAX, builder, families};

/// All of them, by name.
#[derive(Default)]
pub(super) struct Recorders {
    all: Mutex<BTreeMap<String, Kept>>,
}

struct Kept {
    recorder: Arc<PrometheusRecorder>,
    /// Since when neither the fleet nor anybody else knows it.
    gone: Option<Instant>,
}

impl Recorders {
    /// An endpoint's own.
    pub fn of(&self, name: &str) -> Arc<PrometheusRecorder> {
        let mut all = self.all.lock();
        let kept = all.entry(name.to_owned()).or_insert_with(|| Kept {
            recorder: Arc::new(builder().build_recorder()),
            gone: None,
        });
        kept.gone = None;
        kept.recorder.clone()
    }

    /// Gives up those that are not there and that nobody has held for a minute: whoever reads the metrics
    /// has seen their last by then.
    pub fn forget_gone(&self, is_there: impl Fn(&str) -> bool, now: Instant) {
        self.all.lock().retain(|name, kept| {
            let is_held = Arc::strong_count(&kept.recorder) > 1;
            if is_held || is_there(name) {
                kept.gone = None;
                return true;
            }
            let since = *kept.gone.get_or_insert(now);
            now.saturating_duration_since(since) < IDLE_MAX
        });
    }

    /// Makes room where samples wait.
    pub fn run_upkeep(&self) {
        for recorder in self.recorders() {
            recorder.handle().run_upkeep();
        }
    }

    /// All series, each family once.
    pub fn render(&self) -> String {
        let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
        for recorder in self.recorders() {
            let text = recorder.handle().render();
            for family in text.split("\n\n").filter(|family| !family.is_empty()) {
                let (kind, series) = family.split_once('\n').unwrap_or((family, ""));
                let name = kind.split(' ').nth(2).unwrap_or_default();
                let (_, all) = families
                    .entry(name.to_owned())
                    .or_insert_with(|| (kind.to_owned(), String::new()));
                all.push_str(series.trim_end());
                all.push('\n');
            }
        }
        let mut text = String::new();
        for (name, (kind, series)) in families {
            writeln!(text, "# HELP {name} {}\n{kind}\n{series}", help(&name))
                .expect("writing to a String does not fail");
        }
        text
    }

    fn recorders(&self) -> Vec<Arc<PrometheusRecorder>> {
        let all = self.all.lock();
        all.values().map(|kept| kept.recorder.clone()).collect()
    }
}

fn help(name: &str) -> &'static str {
    let found = families::all().find(|family| family.name == name);
    found.map_or("", |family| family.help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn what_is_counted_of_an_endpoint_goes_a_minute_after_it() {
        let metrics = Metrics::default();
        let (begin, minute) = (Instant::now(), IDLE_MAX);
        let held = metrics.endpoint("pod-1");
        held.stored.increment(3);
        held.lag.record(0.5);
        metrics.unscraped("pod-2", "refused");
        let has = |name: &str| metrics.handle().render().contains(&format!("\"{name}\""));
        let is_there = |name: &str| name == "pod-2";
        metrics.forget_gone(is_there, begin);
        metrics.forget_gone(is_there, begin + minute);
        assert!(
            has("pod-1") && has("pod-2"),
            "one is held, one in the fleet"
        );
        drop(held);
        let nobody = |_: &str| false;
        metrics.forget_gone(nobody, begin + minute);
        assert!(has("pod-1") && has("pod-2"), "somebody may still read them");
        // Who comes back meanwhile is counted on.
        metrics.endpoint("pod-1").stored.increment(1);
        metrics.forget_gone(nobody, begin + 2 * minute);
        assert!(has("pod-1") && !has("pod-2"));
        let text = metrics.handle().render();
        let counted = "kvscout_event_blocks_total{endpoint=\"pod-1\",what=\"stored\"} 4";
        assert!(text.contains(counted), "{text}");
        metrics.forget_gone(nobody, begin + 3 * minute);
        assert!(!has("pod-1"));
    }

    #[test]
    fn every_family_is_said_once_and_its_series_together() {
        let metrics = Metrics::default();
        let held: Vec<_> = ["a", "b", "c"].map(|name| metrics.endpoint(name)).into();
        held.iter().for_each(|one| one.lag.record(0.5));
        let text = metrics.handle().render();
        let mut heads = Vec::new();
        for line in text.lines().filter(|line| line.starts_with("# ")) {
            assert!(!heads.contains(&line), "{line}\n{text}");
            heads.push(line);
        }
        let help = "# HELP kvscout_event_batches_total Batches of KV events heard, by endpoint\n\
                    # TYPE kvscout_event_batches_total counter\n\
                    kvscout_event_batches_total{endpoint=\"a\"} 0\n\
                    kvscout_event_batches_total{endpoint=\"b\"} 0\n\
                    kvscout_event_batches_total{endpoint=\"c\"} 0\n\n";
        assert!(text.contains(help), "{text}");
        assert!(
            text.contains("kvscout_event_lag_seconds_count{endpoint=\"b\"} 1"),
            "{text}"
        );
    }
}

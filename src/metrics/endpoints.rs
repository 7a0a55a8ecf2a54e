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

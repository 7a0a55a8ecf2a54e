//! What an operator may watch: every family is declared in [`families`].
//!
//! No global recorder: a [`Metrics`] belongs to the app that made it, so that tests run many.
//! Counters are held, not looked up, where requests or events pass. Labels are bounded: the
//! fleet's endpoint names, the configuration's model names, and words from our own source.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use metrics_util::MetricKindMask;

use crate::{config, log};

mod endpoint;
mod endpoints;
pub mod families;
mod inference;
mod requests;
mod sizes;

pub use endpoint::{CAUSES, EndpointMetrics};
use endpoints::Recorders;
use families::Kind;
use inference::InferenceNames;
pub use inference::{Ending, Running, Tokens};
use requests::Requests;
pub use sizes::{CacheSizes, EndpointSizes, ModelSizes, ParitySizes, SaidSizes, Sizes};

/// 10 µs to 50 s, in steps of about 2.
const SECONDS: &[f64] = &[
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
    2.0, 5.0, 10.0, 20.0, 50.0,
];

/// Gauges are set at every scrape; one that was not for this long is of an endpoint that left. So long
/// stays what was counted of it, too.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Tokens that predictions are off: none, and then blocks of 16 in steps of 4.
const ERROR_TOKENS: &[f64] = &[0.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0];
/// Tenths.
const RATIOS: &[f64] = &[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// The inference extension's own.
const TOKENS: &[f64] = &[
    1.0,
    8.0,
    16.0,
    32.0,
    64.0,
    128.0,
    256.0,
    512.0,
    1_024.0,
    2_048.0,
    4_096.0,
    8_192.0,
    16_384.0,
    32_778.0,
    65_536.0,
    131_072.0,
    262_144.0,
    524_288.0,
    1_048_576.0,
];
/// The inference extension's own for requests, which are larger than answers.
const BYTES: &[f64] = &[
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// By how a family's name ends.
const BUCKETS: &[(&str, &[f64])] = &[
    ("_seconds", SECONDS),
    ("_error_tokens", ERROR_TOKENS),
    ("_ratio", RATIOS),
    ("put_tokens", TOKENS),
    ("prompt_cached_tokens", TOKENS),
    ("_sizes", BYTES),
];

/// Where every measurement goes.
pub struct Metrics {
    recorder: PrometheusRecorder,
    /// What is held by whoever works for an endpoint.
    endpoints: Arc<Recorders>,
    pool: Arc<str>,
    requests: Requests,
    inference: Option<InferenceNames>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&config::Metrics::default())
    }
}

impl Metrics {
    /// With the names that an operator wants.
    #[must_use]
    pub fn new(settings: &config::Metrics) -> Self {
        let recorder = builder()
            .idle_timeout(MetricKindMask::GAUGE, Some(IDLE_MAX))
            .build_recorder();
        for family in families::all() {
            let (name, unit) = (KeyName::from(family.name), Some(family.unit()));
            match family.kind {
                Kind::Counter => recorder.describe_counter(name, unit, family.help.into()),
                Kind::Gauge => recorder.describe_gauge(name, unit, family.help.into()),
                Kind::Histogram => recorder.describe_histogram(name, unit, family.help.into()),
            }
        }
        let pool = Arc::from(settings.pool.as_str());
        Self {
            requests: Requests::new(&recorder),
            inference: settings
                .inference_extension_names
                .then(|| InferenceNames::new(&pool)),
            pool,
            recorder,
            endpoints: Arc::default(),
        }
    }
}

fn builder() -> PrometheusBuilder {
    let with_buckets = |builder: PrometheusBuilder, (ending, buckets): &(&str, &[f64])| {
        let matcher = Matcher::Suffix((*ending).to_owned());
        builder
            .set_buckets_for_metric(matcher, buckets)
            .expect("the buckets are not empty")
    };
    BUCKETS.iter().fold(PrometheusBuilder::new(), with_buckets)
}

/// Renders the metrics, for as long as somebody may ask.
#[derive(Clone)]
pub struct Handle {
    all: PrometheusHandle,
    endpoints: Arc<Recorders>,
    log_lines_lost: Counter,
}

impl Handle {
    /// Prometheus' text.
    #[must_use]
    pub fn render(&self) -> String {
        self.log_lines_lost.absolute(log::lines_lost());
        self.all.render() + &self.endpoints.render()
    }

    /// Makes room where samples wait; to be called again and again.
    pub fn run_upkeep(&self) {
        self.all.run_upkeep();
        self.endpoints.run_upkeep();
    }
}

static METADATA: Metadata<'static> = Metadata::new("kvscout", Level::INFO, None);

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(name, labels)
}

/// A series that no family declares would be in no document.
fn assert_declared(kind: Kind, key: &Key) {
    let declared = families::all().any(|family| {
        let mut labels = key.labels().map(Label::key);
        family.name == key.name()
            && family.kind == kind
            && family
                .labels
                .iter()
                .all(|label| labels.next() == Some(label))
            && labels.next().is_none()
    });
    debug_assert!(declared, "{key} is not declared in metrics/families.rs");
}

fn counter(
    recorder: &PrometheusRecorder,
    name: &'static str,
    labels: &[(&'static str, &str)],
) -> Counter {
    let key = key(name, labels);
    assert_declared(Kind::Counter, &key);
    recorder.register_counter(&key, &METADATA)
}

fn gauge(
    recorder: &PrometheusRecorder,
    name: &'static str,
    labels: &[(&'static str, &str)],
) -> Gauge {
    let key = key(name, labels);
    assert_declared(Kind::Gauge, &key);
    recorder.register_gauge(&key, &METADATA)
}

fn histogram(
    recorder: &PrometheusRecorder,
    name: &'static str,
    labels: &[(&'static str, &str)],
) -> Histogram {
    let key = key(name, labels);
    assert_declared(Kind::Histogram, &key);
    recorder.register_histogram(&key, &METADATA)
}

impl Metrics {
    fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        counter(&self.recorder, name, labels)
    }

    fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        gauge(&self.recorder, name, labels)
    }

    fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        histogram(&self.recorder, name, labels)
    }

    /// What `/metrics` renders.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            all: self.recorder.handle(),
            endpoints: self.endpoints.clone(),
            log_lines_lost: self.counter("kvscout_log_lines_lost_total", &[]),
        }
    }

    /// Gives up what is counted of endpoints that have been gone for a minute.
    pub fn forget_gone(&self, is_there: impl Fn(&str) -> bool, now: Instant) {
        self.endpoints.forget_gone(is_there, now);
    }

    /// A request for a model was given to one of its targets.
    pub fn served_by(&self, model: &str, target: &str) {
        let labels = [("model", model), ("target", target)];
        self.counter("kvscout_model_targets_total", &labels)
            .increment(1);
    }

    /// A request named an objective that is not declared.
    pub fn objective_unknown(&self) {
        self.counter("kvscout_objectives_unknown_total", &[])
            .increment(1);
    }

    /// A kind of resource could not be listed or watched.
    pub fn kubernetes_error(&self, kind: &str) {
        self.counter("kvscout_kubernetes_errors_total", &[("kind", kind)])
            .increment(1);
    }

    /// A request was refused since every endpoint was saturated.
    pub fn shed(&self, reason: &str, criticality: &str) {
        let labels = [("reason", reason), ("criticality", criticality)];
        self.counter("kvscout_requests_shed_total", &labels)
            .increment(1);
    }

    /// A message of this kind was sent to other replicas, or received.
    pub fn replicas_said(&self, direction: &str, kind: &str) {
        let labels = [("direction", direction), ("kind", kind)];
        self.counter("kvscout_replica_messages_total", &labels)
            .increment(1);
    }

    /// So much of what they said does not count.
    pub fn replicas_skipped(&self, reason: &str, count: u64) {
        self.counter("kvscout_replica_skipped_total", &[("reason", reason)])
            .increment(count);
    }

    /// Something of what one said is missing.
    pub fn replicas_gap(&self) {
        self.counter("kvscout_replica_gaps_total", &[]).increment(1);
    }

    /// So many replicas are heard, so much do they have in flight, and so long ago was the quietest of
    /// them heard, as of a scrape.
    pub fn replicas(&self, peers: usize, requests: usize, oldest_word: Duration) {
        self.gauge("kvscout_replica_peers", &[]).set(peers as f64);
        self.gauge("kvscout_replica_requests", &[])
            .set(requests as f64);
        self.gauge("kvscout_replica_oldest_word_seconds", &[])
            .set(oldest_word.as_secs_f64());
    }

    /// So many requests wait for an endpoint with room, as of a scrape.
    pub fn waiting(&self, requests: usize) {
        let gauge = self.gauge("kvscout_admission_waiting", &[]);
        gauge.set(requests as f64);
        if let Some(names) = &self.inference {
            names.waiting(self, requests);
        }
    }

    /// A request waited this long for an endpoint with room.
    pub fn waited(&self, outcome: &str, took: Duration) {
        self.histogram("kvscout_admission_wait_seconds", &[("outcome", outcome)])
            .record(took);
        if let Some(names) = &self.inference {
            names.waited(self, outcome, took);
        }
    }

    /// What is counted of one model.
    #[must_use]
    pub fn model(&self, name: &str) -> ModelMetrics {
        let by = [("model", name)];
        ModelMetrics {
            loads: self.counter("kvscout_model_loads_total", &by),
            failures: self.counter("kvscout_model_load_failures_total", &by),
        }
    }

    /// What is measured where prompts are read.
    #[must_use]
    pub fn tokenizer(&self) -> TokenizerMetrics {
        let histogram = |family| self.histogram(family, &[]);
        TokenizerMetrics {
            wait: histogram("kvscout_tokenizer_wait_seconds"),
            work: histogram("kvscout_tokenizer_work_seconds"),
        }
    }

    /// What a server says of its load could not be read.
    pub fn unscraped(&self, endpoint: &str, reason: &str) {
        let labels = [("endpoint", endpoint), ("reason", reason)];
        let recorder = self.endpoints.of(endpoint);
        counter(&recorder, "kvscout_scrape_failures_total", &labels).increment(1);
    }

    /// So many bytes of recent decisions are kept, as of a scrape.
    pub fn decisions_kept(&self, bytes: usize) {
        self.gauge("kvscout_decisions_kept_bytes", &[])
            .set(bytes as f64);
    }

    /// Lines were written to the decision log.
    pub fn decisions_logged(&self, lines: u64) {
        self.counter(
            "kvscout_decision_log_lines_total",
            &[("outcome", "written")],
        )
        .increment(lines);
    }

    /// Lines of it were lost.
    pub fn decisions_unlogged(&self, lines: u64) {
        self.counter("kvscout_decision_log_lines_total", &[("outcome", "lost")])
            .increment(lines);
    }

    /// Traced requests were `sent` to the collector, not taken by it (`failed`), or `dropped` at a full queue.
    pub fn traces(&self, outcome: &'static str, requests: u64) {
        self.counter("kvscout_traces_total", &[("outcome", outcome)])
            .increment(requests);
    }

    /// What is counted of one of our ports.
    #[must_use]
    pub fn door(&self, port: &'static str) -> DoorMetrics {
        let refused = DOOR_REFUSALS.map(|reason| {
            let by = [("port", port), ("reason", reason)];
            (
                reason,
                self.counter("kvscout_connections_refused_total", &by),
            )
        });
        DoorMetrics { port, refused }
    }

    /// So many connections a port has, as of a scrape.
    pub fn connections(&self, port: &str, connections: usize) {
        self.gauge("kvscout_connections", &[("port", port)])
            .set(connections as f64);
    }

    /// So many exchanges are open, and hold so many bytes of bodies, and so long does work wait for a core, as of
    /// a scrape.
    pub fn exchanges(&self, open: usize, held_bytes: usize, core_wait: Duration) {
        self.gauge("kvscout_exchanges", &[]).set(open as f64);
        self.gauge("kvscout_exchange_held_bytes", &[])
            .set(held_bytes as f64);
        self.gauge("kvscout_core_wait_seconds", &[])
            .set(core_wait.as_secs_f64());
    }

    /// An exchange was ended by us.
    pub fn exchange_given_up(&self, reason: &'static str) {
        self.counter("kvscout_exchanges_given_up_total", &[("reason", reason)])
            .increment(1);
    }

    /// A certificate's files had changed and were read: `renewed` or `failed`.
    pub fn certificate_read(&self, outcome: &'static str) {
        self.counter("kvscout_certificate_reads_total", &[("outcome", outcome)])
            .increment(1);
    }

    /// Counts what publishers say that belong to no endpoint.
    pub fn unclaimed(&self) -> Counter {
        self.counter("kvscout_event_batches_unclaimed_total", &[])
    }
}

/// Why a connection is refused.
const DOOR_REFUSALS: [&str; 5] = [
    "accept",
    "full",
    "handshake_failed",
    "handshake_late",
    "silent",
];

/// What is counted of one of our ports.
pub struct DoorMetrics {
    /// Its name in the configuration.
    pub port: &'static str,
    refused: [(&'static str, Counter); 5],
}

impl DoorMetrics {
    /// A connection was refused, or ended before it had said anything.
    pub fn refused(&self, reason: &str) {
        let counter = self.refused.iter().find(|(known, _)| *known == reason);
        debug_assert!(counter.is_some(), "{reason} is not among DOOR_REFUSALS");
        if let Some((_, counter)) = counter {
            counter.increment(1);
        }
    }
}

/// What is counted of one model.
pub struct ModelMetrics {
    /// `kvscout_model_loads_total`.
    pub loads: Counter,
    /// `kvscout_model_load_failures_total`.
    pub failures: Counter,
}

/// What is measured where prompts are read.
#[derive(Clone)]
pub struct TokenizerMetrics {
    /// `kvscout_tokenizer_wait_seconds`.
    pub wait: Histogram,
    /// `kvscout_tokenizer_work_seconds`.
    pub work: Histogram,
}

impl TokenizerMetrics {
    /// For who does not export any.
    #[must_use]
    pub fn none() -> Self {
        let (wait, work) = (Histogram::noop(), Histogram::noop());
        Self { wait, work }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered_with_its_description() {
        let metrics = Metrics::default();
        metrics.answered(None, ("overlap", "", "placed"));
        metrics.decided(&[("read", Duration::from_micros(30))]);
        metrics.endpoint("pod-1").stored.increment(3);
        let text = metrics.handle().render();
        for line in [
            "# TYPE kvscout_requests_total counter",
            "# HELP kvscout_requests_total Requests by their pool",
            "kvscout_requests_total{pool=\"default\",basis=\"overlap\",reason=\"\",outcome=\"placed\"} 1",
            "kvscout_event_blocks_total{endpoint=\"pod-1\",what=\"stored\"} 3",
            "kvscout_decision_seconds_bucket{le=\"0.00005\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn every_family_is_on_the_page_and_the_page_is_the_documents() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let written = std::fs::read_to_string(file).expect("docs/metrics.md");
        assert_eq!(written, families::page(), "run make metrics-page");
        let mut names: Vec<_> = families::all().map(|family| family.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
    }

    #[test]
    fn a_name_cannot_forge_a_line() {
        let metrics = Metrics::default();
        metrics.served_by("a\"} 1\nb\\", "c");
        let text = metrics.handle().render();
        assert!(text.contains(r#"model="a\"} 1\nb\\",target="c""#), "{text}");
    }

    #[test]
    fn two_apps_do_not_share_counters() {
        let (one, two) = (Metrics::default(), Metrics::default());
        one.answered(None, ("overlap", "", "placed"));
        assert!(!two.handle().render().contains("kvscout_requests_total{"));
    }
}

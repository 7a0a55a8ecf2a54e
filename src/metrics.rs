//! What an operator may watch: every family is declared here.
//!
//! No global recorder: a [`Metrics`] belongs to the app that made it, so that tests run many.
//! Counters are held, not looked up, where requests or events pass. Labels are bounded: the
//! fleet's endpoint names, the configuration's model names, and words from our own source.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use metrics_util::MetricKindMask;

/// Every family: name, unit, what it says.
const COUNTERS: &[(&str, Unit, &str)] = &[
    (
        "kvscout_requests_total",
        Unit::Count,
        "Requests by basis, reason and outcome",
    ),
    (
        "kvscout_model_targets_total",
        Unit::Count,
        "Requests for a model with targets, by that model and the target that served it",
    ),
    (
        "kvscout_requests_shed_total",
        Unit::Count,
        "Requests refused since every endpoint was saturated, by reason and criticality",
    ),
    (
        "kvscout_objectives_unknown_total",
        Unit::Count,
        "Requests that named an objective which nobody declared",
    ),
    (
        "kvscout_index_given_up_total",
        Unit::Count,
        "(endpoint, engine hash) pairs dropped to stay within limits.index_bytes_max",
    ),
    (
        "kvscout_prompt_tokens_total",
        Unit::Count,
        "Tokens of the prompts placed, by endpoint",
    ),
    (
        "kvscout_predicted_cached_tokens_total",
        Unit::Count,
        "Tokens predicted to be cached, by endpoint",
    ),
    (
        "kvscout_reported_cached_tokens_total",
        Unit::Count,
        "Tokens that endpoints reported as cached, by endpoint",
    ),
    (
        "kvscout_predictions_total",
        Unit::Count,
        "Predictions compared with a report, by endpoint and verdict",
    ),
    (
        "kvscout_event_batches_total",
        Unit::Count,
        "Batches of KV events heard, by endpoint",
    ),
    (
        "kvscout_event_blocks_total",
        Unit::Count,
        "Blocks in KV events, by endpoint and what became of them",
    ),
    (
        "kvscout_event_batches_missed_total",
        Unit::Count,
        "Batches of KV events lost, by endpoint",
    ),
    (
        "kvscout_event_errors_total",
        Unit::Count,
        "Messages or events not understood, by endpoint and kind",
    ),
    (
        "kvscout_event_batches_unclaimed_total",
        Unit::Count,
        "Messages of publishers that came to events.bind and belong to no endpoint",
    ),
    (
        "kvscout_pictures_forgotten_total",
        Unit::Count,
        "Times that an endpoint's picture was thrown away",
    ),
    (
        "kvscout_pictures_doubted_total",
        Unit::Count,
        "Times that all of an endpoint's picture became unsure, by endpoint",
    ),
    (
        "kvscout_scrape_failures_total",
        Unit::Count,
        "Times that a server's load could not be read from its metrics, by endpoint and reason",
    ),
    (
        "kvscout_kubernetes_errors_total",
        Unit::Count,
        "Times that a kind of resource could not be listed or watched, by kind; the last fleet serves on",
    ),
    (
        "kvscout_model_loads_total",
        Unit::Count,
        "Times that a model's files were loaded, by model; more than one is a reload",
    ),
    (
        "kvscout_model_load_failures_total",
        Unit::Count,
        "Times that a model's files could not be had or loaded, by model",
    ),
    (
        "kvscout_token_parity_total",
        Unit::Count,
        "Requests whose token ids were compared with the events that followed, by model and verdict",
    ),
    (
        "kvscout_token_cache_segments_total",
        Unit::Count,
        "Segments of prompts looked up, by model and result; a miss is tokenized",
    ),
    (
        "kvscout_token_cache_text_bytes_total",
        Unit::Bytes,
        "Bytes of prompts in them, by model and result",
    ),
    (
        "kvscout_token_cache_evictions_total",
        Unit::Count,
        "Segments that had to go for others, by model",
    ),
    (
        "kvscout_replica_messages_total",
        Unit::Count,
        "Messages between replicas, by direction (sent, received) and kind (deltas, full, ask, bye)",
    ),
    (
        "kvscout_replica_skipped_total",
        Unit::Count,
        "Messages of replicas, or requests in them, that do not count, by reason",
    ),
    (
        "kvscout_replica_gaps_total",
        Unit::Count,
        "Times that words of a replica were lost on the way, or it was met amid its work",
    ),
];
const GAUGES: &[(&str, Unit, &str)] = &[
    (
        "kvscout_admission_waiting",
        Unit::Count,
        "Requests that wait for an endpoint with room",
    ),
    (
        "kvscout_endpoint_trust",
        Unit::Count,
        "1 for the trust that an endpoint's picture has, else 0",
    ),
    (
        "kvscout_endpoint_requests",
        Unit::Count,
        "Requests placed and not ended, replicas' included, by endpoint; of several prompts or answers each counts",
    ),
    (
        "kvscout_endpoint_queued_tokens",
        Unit::Count,
        "Prefill tokens placed and not done, replicas' included, by endpoint",
    ),
    (
        "kvscout_endpoint_report_age_seconds",
        Unit::Seconds,
        "Since an endpoint's own metrics were last read",
    ),
    (
        "kvscout_endpoint_reported_requests",
        Unit::Count,
        "Requests that an endpoint itself counts, by endpoint and state (waiting, running)",
    ),
    (
        "kvscout_endpoint_reported_kv_usage",
        Unit::Count,
        "The share of an endpoint's KV cache that requests use, as it says, 0 to 1",
    ),
    (
        "kvscout_endpoint_outside_requests",
        Unit::Count,
        "Of the requests that an endpoint counts, those that neither we nor replicas placed; older reports count less",
    ),
    (
        "kvscout_endpoint_outside_tokens",
        Unit::Count,
        "Prefill tokens that the waiting ones of them stand for",
    ),
    (
        "kvscout_endpoint_saturated",
        Unit::Count,
        "1 for an endpoint that says more than load.queue_max or load.kv_usage_max, else 0",
    ),
    (
        "kvscout_endpoint_blocks",
        Unit::Count,
        "Different blocks that an endpoint's picture holds",
    ),
    (
        "kvscout_index_blocks",
        Unit::Count,
        "Different block keys in the index",
    ),
    (
        "kvscout_index_pairs",
        Unit::Count,
        "(endpoint, engine hash) pairs in the index",
    ),
    (
        "kvscout_index_bytes",
        Unit::Bytes,
        "Memory that the index takes; limits.index_bytes_max bounds it",
    ),
    (
        "kvscout_model_prompts_doubtful",
        Unit::Count,
        "1 where a model's servers have often computed other tokens than we did, else 0",
    ),
    ("kvscout_build_info", Unit::Count, "1, by version"),
    (
        "kvscout_event_queue_bytes",
        Unit::Bytes,
        "Undecoded events that wait here, by endpoint",
    ),
    (
        "kvscout_model_loaded",
        Unit::Count,
        "1 for a model whose prompts can be read, else 0",
    ),
    (
        "kvscout_tokenizer_waiting",
        Unit::Count,
        "Long prompts that wait for a core to read them",
    ),
    (
        "kvscout_tokenizer_working",
        Unit::Count,
        "Long prompts that are being read; the cores are the most",
    ),
    (
        "kvscout_token_cache_bytes",
        Unit::Bytes,
        "What a model's segment cache takes; limits.token_cache_bytes_max at most",
    ),
    (
        "kvscout_token_cache_segments",
        Unit::Count,
        "Segments that a model's cache holds",
    ),
    (
        "kvscout_replica_peers",
        Unit::Count,
        "Other replicas that are heard",
    ),
    (
        "kvscout_replica_requests",
        Unit::Count,
        "Requests that other replicas placed and that have not ended, as they tell",
    ),
    (
        "kvscout_replica_oldest_word_seconds",
        Unit::Seconds,
        "Since the replica that has been silent for the longest was heard; past 5 it is forgotten",
    ),
];
const HISTOGRAMS: &[(&str, Unit, &str)] = &[
    (
        "kvscout_decision_seconds",
        Unit::Seconds,
        "From whole body to choice",
    ),
    (
        "kvscout_admission_wait_seconds",
        Unit::Seconds,
        "That requests waited for an endpoint with room, by what ended it",
    ),
    (
        "kvscout_event_lag_seconds",
        Unit::Seconds,
        "From the engine's clock to our index, by endpoint",
    ),
    (
        "kvscout_tokenizer_wait_seconds",
        Unit::Seconds,
        "That long prompts waited for a core, those that gave up included",
    ),
    (
        "kvscout_tokenizer_work_seconds",
        Unit::Seconds,
        "That reading a prompt took, without the wait",
    ),
];

/// 10 µs to 50 s, in steps of about 2.
const SECONDS: &[f64] = &[
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
    2.0, 5.0, 10.0, 20.0, 50.0,
];

/// Gauges are set at every scrape; one that was not for this long is of an endpoint that left.
const GAUGE_IDLE_MAX: Duration = Duration::from_secs(60);

/// Where every measurement goes.
pub struct Metrics {
    recorder: PrometheusRecorder,
    /// [`Metrics::decided`].
    decision: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let matcher = Matcher::Suffix("_seconds".into());
        let builder = PrometheusBuilder::new().set_buckets_for_metric(matcher, SECONDS);
        let recorder = builder
            .expect("the buckets are not empty")
            .idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_IDLE_MAX))
            .build_recorder();
        for (name, unit, help) in COUNTERS {
            recorder.describe_counter(KeyName::from(*name), Some(*unit), (*help).into());
        }
        for (name, unit, help) in GAUGES {
            recorder.describe_gauge(KeyName::from(*name), Some(*unit), (*help).into());
        }
        for (name, unit, help) in HISTOGRAMS {
            recorder.describe_histogram(KeyName::from(*name), Some(*unit), (*help).into());
        }
        let decision =
            recorder.register_histogram(&key("kvscout_decision_seconds", &[]), &METADATA);
        Self { recorder, decision }
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

impl Metrics {
    fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        debug_assert!(
            COUNTERS.iter().any(|(known, ..)| *known == name),
            "{name} is not declared"
        );
        self.recorder
            .register_counter(&key(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        debug_assert!(
            GAUGES.iter().any(|(known, ..)| *known == name),
            "{name} is not declared"
        );
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// What `/metrics` renders.
    #[must_use]
    pub fn handle(&self) -> PrometheusHandle {
        self.recorder.handle()
    }

    /// A request was answered; `outcome` is `placed` or a refusal's word.
    pub fn answered(&self, basis: &str, reason: &str, outcome: &str) {
        let labels = [("basis", basis), ("reason", reason), ("outcome", outcome)];
        self.counter("kvscout_requests_total", &labels).increment(1);
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
    }

    /// A request waited this long for an endpoint with room.
    pub fn waited(&self, outcome: &str, took: Duration) {
        let key = key("kvscout_admission_wait_seconds", &[("outcome", outcome)]);
        let histogram = self.recorder.register_histogram(&key, &METADATA);
        histogram.record(took);
    }

    /// A choice took this long, from whole body on, without a wait for room.
    pub fn decided(&self, took: Duration) {
        self.decision.record(took);
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
        let histogram = |family| {
            self.recorder
                .register_histogram(&key(family, &[]), &METADATA)
        };
        TokenizerMetrics {
            wait: histogram("kvscout_tokenizer_wait_seconds"),
            work: histogram("kvscout_tokenizer_work_seconds"),
        }
    }

    /// What a server says of its load could not be read.
    pub fn unscraped(&self, endpoint: &str, reason: &str) {
        let labels = [("endpoint", endpoint), ("reason", reason)];
        self.counter("kvscout_scrape_failures_total", &labels)
            .increment(1);
    }

    /// Counts what publishers say that belong to no endpoint.
    pub fn unclaimed(&self) -> Counter {
        self.counter("kvscout_event_batches_unclaimed_total", &[])
    }

    /// What is counted of one endpoint; held by whoever works for it.
    #[must_use]
    pub fn endpoint(&self, name: &str) -> EndpointMetrics {
        let by = [("endpoint", name)];
        let counter = |family| self.counter(family, &by);
        let blocks = |what| self.counter("kvscout_event_blocks_total", &[by[0], ("what", what)]);
        let errors = |kind| self.counter("kvscout_event_errors_total", &[by[0], ("kind", kind)]);
        let predictions =
            |verdict| self.counter("kvscout_predictions_total", &[by[0], ("verdict", verdict)]);
        EndpointMetrics {
            prompt_tokens: counter("kvscout_prompt_tokens_total"),
            predicted: counter("kvscout_predicted_cached_tokens_total"),
            reported: counter("kvscout_reported_cached_tokens_total"),
            exact: predictions("exact"),
            over: predictions("over"),
            under: predictions("under"),
            batches: counter("kvscout_event_batches_total"),
            missed: counter("kvscout_event_batches_missed_total"),
            forgotten: counter("kvscout_pictures_forgotten_total"),
            doubted: counter("kvscout_pictures_doubted_total"),
            stored: blocks("stored"),
            removed: blocks("removed"),
            orphans: blocks("orphan"),
            strangers: blocks("removed_unknown"),
            elsewhere: blocks("elsewhere"),
            unmodelled: blocks("unmodelled"),
            undecodable: errors("batch"),
            malformed: errors("event"),
            unknown: errors("unknown_type"),
            queue_bytes: self.gauge("kvscout_event_queue_bytes", &by),
            lag: self
                .recorder
                .register_histogram(&key("kvscout_event_lag_seconds", &by), &METADATA),
        }
    }

    /// Sizes, read when somebody looks.
    pub fn observe(&self, sizes: &Sizes<'_>) {
        self.gauge(
            "kvscout_build_info",
            &[("version", env!("CARGO_PKG_VERSION"))],
        )
        .set(1.0);
        self.gauge("kvscout_index_blocks", &[])
            .set(sizes.index_blocks as f64);
        self.gauge("kvscout_index_pairs", &[])
            .set(sizes.index_pairs as f64);
        self.gauge("kvscout_index_bytes", &[])
            .set(sizes.index_bytes as f64);
        self.counter("kvscout_index_given_up_total", &[])
            .absolute(sizes.index_given_up);
        self.gauge("kvscout_tokenizer_waiting", &[])
            .set(sizes.tokenizer_waiting as f64);
        self.gauge("kvscout_tokenizer_working", &[])
            .set(sizes.tokenizer_working as f64);
        for one in &sizes.models {
            self.observe_model(one);
        }
        for one in &sizes.parity {
            let by = [("model", one.name)];
            for (verdict, count) in [
                ("agree", one.agree),
                ("differ", one.differ),
                ("unjudged", one.unjudged),
            ] {
                let by = [by[0], ("verdict", verdict)];
                self.counter("kvscout_token_parity_total", &by)
                    .absolute(count);
            }
            let doubtful = if one.prompts_doubtful { 1.0 } else { 0.0 };
            self.gauge("kvscout_model_prompts_doubtful", &by)
                .set(doubtful);
        }
        for one in &sizes.endpoints {
            self.observe_endpoint(one);
        }
    }

    fn observe_endpoint(&self, one: &EndpointSizes<'_>) {
        let by = [("endpoint", one.name)];
        self.gauge("kvscout_endpoint_requests", &by)
            .set(f64::from(one.requests));
        self.gauge("kvscout_endpoint_queued_tokens", &by)
            .set(one.queued_tokens as f64);
        self.gauge("kvscout_endpoint_blocks", &by)
            .set(one.blocks as f64);
        for trust in ["live", "learning", "doubtful", "silent"] {
            let held = if trust == one.trust { 1.0 } else { 0.0 };
            self.gauge("kvscout_endpoint_trust", &[by[0], ("trust", trust)])
                .set(held);
        }
        let Some(said) = &one.said else { return };
        self.gauge("kvscout_endpoint_report_age_seconds", &by)
            .set(said.age.as_secs_f64());
        for (state, requests) in [("waiting", said.waiting), ("running", said.running)] {
            let by = [by[0], ("state", state)];
            self.gauge("kvscout_endpoint_reported_requests", &by)
                .set(f64::from(requests));
        }
        if let Some(usage) = said.kv_usage {
            self.gauge("kvscout_endpoint_reported_kv_usage", &by)
                .set(usage);
        }
        self.gauge("kvscout_endpoint_outside_requests", &by)
            .set(f64::from(said.outside_requests));
        self.gauge("kvscout_endpoint_outside_tokens", &by)
            .set(said.outside_tokens as f64);
        self.gauge("kvscout_endpoint_saturated", &by)
            .set(if said.saturated { 1.0 } else { 0.0 });
    }

    fn observe_model(&self, one: &ModelSizes<'_>) {
        let (by, cache) = ([("model", one.name)], &one.cache);
        self.gauge("kvscout_model_loaded", &by)
            .set(if one.loaded { 1.0 } else { 0.0 });
        self.gauge("kvscout_token_cache_bytes", &by)
            .set(cache.bytes as f64);
        self.gauge("kvscout_token_cache_segments", &by)
            .set(cache.entries as f64);
        for (result, segments, bytes) in [
            ("hit", cache.hits, cache.hit_bytes),
            ("miss", cache.misses, cache.missed_bytes),
        ] {
            let by = [by[0], ("result", result)];
            self.counter("kvscout_token_cache_segments_total", &by)
                .absolute(segments);
            self.counter("kvscout_token_cache_text_bytes_total", &by)
                .absolute(bytes);
        }
        self.counter("kvscout_token_cache_evictions_total", &by)
            .absolute(cache.evictions);
    }
}

/// Sizes as of a scrape.
#[derive(Debug)]
pub struct Sizes<'a> {
    /// Different block keys.
    pub index_blocks: usize,
    /// (endpoint, engine hash) pairs.
    pub index_pairs: usize,
    /// Memory of the index.
    pub index_bytes: usize,
    /// Pairs that were dropped to stay within it.
    pub index_given_up: u64,
    /// Long prompts that wait to be read.
    pub tokenizer_waiting: usize,
    /// Long prompts that are being read.
    pub tokenizer_working: usize,
    /// One per configured model.
    pub models: Vec<ModelSizes<'a>>,
    /// One per endpoint of the fleet.
    pub endpoints: Vec<EndpointSizes<'a>>,
    /// One per configured model or adapter name.
    pub parity: Vec<ParitySizes<'a>>,
}

/// One model as of a scrape.
#[derive(Debug)]
pub struct ModelSizes<'a> {
    /// Its first name.
    pub name: &'a str,
    /// Whether its prompts can be read.
    pub loaded: bool,
    /// Its segment cache.
    pub cache: CacheSizes,
}

/// A segment cache as of now. Counts outlive a reload of the tokenizer; what it holds does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheSizes {
    /// Segments held.
    pub entries: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Segments found.
    pub hits: u64,
    /// Bytes of text in them.
    pub hit_bytes: u64,
    /// Segments tokenized.
    pub misses: u64,
    /// Bytes of text in them.
    pub missed_bytes: u64,
    /// Segments that had to go for others.
    pub evictions: u64,
}

/// What came of one model's token parity by the time of a scrape.
#[derive(Debug)]
pub struct ParitySizes<'a> {
    /// The configured name.
    pub name: &'a str,
    /// Requests whose tokens were the server's.
    pub agree: u64,
    /// Requests whose tokens were not.
    pub differ: u64,
    /// Requests of which nobody knows.
    pub unjudged: u64,
    /// Too many of the last ones differed.
    pub prompts_doubtful: bool,
}

/// One endpoint as of a scrape.
#[derive(Debug)]
pub struct EndpointSizes<'a> {
    /// The endpoint's name.
    pub name: &'a str,
    /// The word for its trust.
    pub trust: &'static str,
    /// Requests placed and not ended.
    pub requests: u32,
    /// Prefill tokens placed and not done.
    pub queued_tokens: u64,
    /// Different blocks that its picture holds.
    pub blocks: usize,
    /// What it said of its load itself, if it did.
    pub said: Option<SaidSizes>,
}

/// What an endpoint last said of its load.
#[derive(Debug, Clone, Copy)]
pub struct SaidSizes {
    /// How long ago.
    pub age: Duration,
    /// Requests waiting there.
    pub waiting: u32,
    /// Requests running there.
    pub running: u32,
    /// The share of its KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Requests that were not placed here.
    pub outside_requests: u32,
    /// What they have to prefill.
    pub outside_tokens: u64,
    /// It is past a threshold.
    pub saturated: bool,
}

/// What is counted of one model.
pub struct ModelMetrics {
    /// `kvscout_model_loads_total`.
    pub loads: Counter,
    /// `kvscout_model_load_failures_total`.
    pub failures: Counter,
}

/// What is measured where prompts are read.
pub struct TokenizerMetrics {
    /// `kvscout_tokenizer_wait_seconds`.
    pub wait: Histogram,
    /// `kvscout_tokenizer_work_seconds`.
    pub work: Histogram,
}

/// What is counted of one endpoint.
#[expect(
    missing_docs,
    reason = "each field is one family or label, described above"
)]
pub struct EndpointMetrics {
    pub prompt_tokens: Counter,
    pub predicted: Counter,
    pub reported: Counter,
    pub exact: Counter,
    pub over: Counter,
    pub under: Counter,
    pub batches: Counter,
    pub missed: Counter,
    pub forgotten: Counter,
    pub doubted: Counter,
    pub stored: Counter,
    pub removed: Counter,
    pub orphans: Counter,
    pub strangers: Counter,
    pub elsewhere: Counter,
    pub unmodelled: Counter,
    pub undecodable: Counter,
    pub malformed: Counter,
    pub unknown: Counter,
    pub queue_bytes: Gauge,
    pub lag: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered_with_its_description() {
        let metrics = Metrics::default();
        metrics.answered("overlap", "", "placed");
        metrics.decided(Duration::from_micros(30));
        metrics.endpoint("pod-1").stored.increment(3);
        let text = metrics.handle().render();
        for line in [
            "# TYPE kvscout_requests_total counter",
            "# HELP kvscout_requests_total Requests by basis",
            "kvscout_requests_total{basis=\"overlap\",reason=\"\",outcome=\"placed\"} 1",
            "kvscout_event_blocks_total{endpoint=\"pod-1\",what=\"stored\"} 3",
            "kvscout_decision_seconds_bucket{le=\"0.00005\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn two_apps_do_not_share_counters() {
        let (one, two) = (Metrics::default(), Metrics::default());
        one.answered("overlap", "", "placed");
        assert!(!two.handle().render().contains("kvscout_requests_total{"));
    }
}

//! What is counted of one endpoint.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::{Metrics, gauge, histogram};

/// Why predictions miss: `crate::audit::Cause` says what each means.
pub const CAUSES: [&str; 8] = [
    "tokens_differ",
    "salt",
    "gap",
    "expected",
    "last_block",
    "eviction_race",
    "event_lag",
    "unknown",
];

impl Metrics {
    /// What is counted of one endpoint; held by whoever works for it.
    #[must_use]
    pub fn endpoint(&self, name: &str) -> EndpointMetrics {
        let (by, recorder) = ([("endpoint", name)], self.endpoints.of(name));
        let of = |family, labels: &[_]| super::counter(&recorder, family, labels);
        let counter = |family| of(family, &by);
        let blocks = |what| of("kvscout_event_blocks_total", &[by[0], ("what", what)]);
        let errors = |kind| of("kvscout_event_errors_total", &[by[0], ("kind", kind)]);
        let repairs = |result| of("kvscout_event_repairs_total", &[by[0], ("result", result)]);
        let missed_by = |cause| {
            let by = [by[0], ("cause", cause)];
            of("kvscout_prediction_errors_total", &by)
        };
        let predictions = |verdict| of("kvscout_predictions_total", &[by[0], ("verdict", verdict)]);
        EndpointMetrics {
            placed: match &self.inference {
                Some(_) => of(
                    "inference_extension_scheduler_attempts_total",
                    &[("status", "success"), ("pod_name", name)],
                ),
                None => Counter::noop(),
            },
            prompt_tokens: counter("kvscout_prompt_tokens_total"),
            predicted: counter("kvscout_predicted_cached_tokens_total"),
            reported: counter("kvscout_reported_cached_tokens_total"),
            blind: counter("kvscout_blind_cached_tokens_total"),
            saved: counter("kvscout_prefill_tokens_saved_total"),
            exact: predictions("exact"),
            over: predictions("over"),
            under: predictions("under"),
            errors: CAUSES.map(missed_by),
            error_tokens: histogram(&recorder, "kvscout_prediction_error_tokens", &by),
            mistrusted: counter("kvscout_endpoint_mistrusted_total"),
            batches: counter("kvscout_event_batches_total"),
            gaps: counter("kvscout_event_gaps_total"),
            repairs_whole: repairs("whole"),
            repairs_partial: repairs("partial"),
            repairs_stranger: repairs("stranger"),
            relearnt: repairs("relearnt"),
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
            queue_bytes: gauge(&recorder, "kvscout_event_queue_bytes", &by),
            lag: histogram(&recorder, "kvscout_event_lag_seconds", &by),
            _recorder: recorder,
        }
    }
}

/// What is counted of one endpoint.
#[expect(
    missing_docs,
    reason = "each field is one family or label, described above"
)]
pub struct EndpointMetrics {
    /// By the inference extension's name; none where that is not wanted.
    pub placed: Counter,
    pub prompt_tokens: Counter,
    pub predicted: Counter,
    pub reported: Counter,
    pub blind: Counter,
    pub saved: Counter,
    pub exact: Counter,
    pub over: Counter,
    pub under: Counter,
    /// By the place of the cause in [`CAUSES`].
    pub errors: [Counter; CAUSES.len()],
    pub error_tokens: Histogram,
    pub mistrusted: Counter,
    pub batches: Counter,
    pub gaps: Counter,
    pub repairs_whole: Counter,
    pub repairs_partial: Counter,
    pub repairs_stranger: Counter,
    pub relearnt: Counter,
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
    /// Where all that is, for as long as it is held.
    _recorder: Arc<PrometheusRecorder>,
}

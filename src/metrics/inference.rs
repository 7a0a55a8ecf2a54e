//! The same under the names of Gateway API's Inference Extension, for dashboards that exist.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Counter, Histogram};
use parking_lot::RwLock;

use super::{EndpointSizes, Metrics, Sizes};

/// A model that nobody configured: clients may name any.
const OTHER: &str = "*";

/// What was asked for, and what serves it.
type Names = (Option<Arc<str>>, Option<Arc<str>>);

/// What is counted under these names.
pub(super) struct InferenceNames {
    pool: Arc<str>,
    models: RwLock<HashMap<Names, Arc<ModelCounts>>>,
    decision: OnceLock<Histogram>,
    ratio: OnceLock<Histogram>,
}

/// A request that has not ended; dropped, it has.
pub struct Running(Arc<ModelCounts>);

impl Running {
    /// The first bytes of its streamed answer came so long after the choice.
    pub fn first_token(&self, after: Duration) {
        self.0.first_token.record(after);
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ending {
    /// With this status, if an answer came.
    pub status: Option<u16>,
    /// So long after the choice.
    pub took: Duration,
    /// As its server counts them.
    pub tokens: Option<Tokens>,
    /// Of its answer's body, if that was seen to its end.
    pub bytes: Option<u64>,
}

/// What went in and out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The prompt's.
    pub input: u64,
    /// How many of these were cached, if its server says.
    pub cached: Option<u64>,
    /// The answer's.
    pub output: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is counted of the requests for one model.
struct ModelCounts {
    model: Arc<str>,
    target: Arc<str>,
    requests: [Counter; 2],
    took: [Histogram; 2],
    first_token: Histogram,
    token: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    cached: Histogram,
    input: Histogram,
    output: Histogram,
    running: AtomicI64,
}

impl InferenceNames {
    pub fn new(pool: &Arc<str>) -> Self {
        Self {
            pool: pool.clone(),
            models: RwLock::default(),
            decision: OnceLock::new(),
            ratio: OnceLock::new(),
        }
    }

    pub fn decided(&self, metrics: &Metrics, took: Duration) {
        let family = "inference_extension_scheduler_e2e_duration_seconds";
        let histogram = self.decision.get_or_init(|| metrics.histogram(family, &[]));
        histogram.record(took);
    }

    pub fn matched(&self, metrics: &Metrics, ratio: f64) {
        let family = "inference_extension_prefix_indexer_hit_ratio";
        let histogram = self.ratio.get_or_init(|| metrics.histogram(family, &[]));
        histogram.record(ratio);
    }

    pub fn waiting(&self, metrics: &Metrics, requests: usize) {
        let pool = [("inference_pool", &*self.pool)];
        let gauge = metrics.gauge("inference_extension_flow_control_queue_size", &pool);
        gauge.set(requests as f64);
    }

    pub fn waited(&self, metrics: &Metrics, outcome: &str, took: Duration) {
        let family = "inference_extension_flow_control_request_queue_duration_seconds";
        let labels = [("inference_pool", &*self.pool), ("outcome", outcome)];
        metrics.histogram(family, &labels).record(took);
    }

    pub fn observe(&self, metrics: &Metrics, sizes: &Sizes<'_>) {
        match &sizes.pools[..] {
            [] => observe_pool(metrics, &self.pool, sizes.endpoints.iter()),
            pools => pools.iter().for_each(|pool| {
                let own = sizes.endpoints.iter();
                observe_pool(metrics, pool, own.filter(|one| one.pools.contains(pool)));
            }),
        }
        metrics
            .gauge("inference_extension_prefix_indexer_size", &[])
            .set(sizes.index_pairs as f64);
        let build = [("commit", ""), ("build_ref", env!("CARGO_PKG_VERSION"))];
        metrics.gauge("inference_extension_info", &build).set(1.0);
        let mut running: HashMap<Arc<str>, i64> = HashMap::new();
        for counts in self.models.read().values() {
            let of_model = running.entry(counts.model.clone()).or_default();
            *of_model += counts.running.load(Ordering::Relaxed);
        }
        for (model, requests) in running {
            let gauge = metrics.gauge(
                "inference_objective_running_requests",
                &[("model_name", &*model)],
            );
            gauge.set(requests as f64);
        }
    }
}

/// What its endpoints say of themselves.
fn observe_pool<'a>(
    metrics: &Metrics,
    pool: &str,
    endpoints: impl Iterator<Item = &'a EndpointSizes<'a>>,
) {
    let name = [("name", pool)];
    let set = |family, value: f64| metrics.gauge(family, &name).set(value);
    let endpoints: Vec<_> = endpoints.collect();
    set("inference_pool_ready_pods", endpoints.len() as f64);
    let said: Vec<_> = endpoints.iter().filter_map(|one| one.said).collect();
    let mean = |sum: f64, count: usize| if count == 0 { 0.0 } else { sum / count as f64 };
    let usage: Vec<f64> = said.iter().filter_map(|said| said.kv_usage).collect();
    let used = mean(usage.iter().sum(), usage.len());
    let waiting = said.iter().map(|said| f64::from(said.waiting)).sum();
    set("inference_pool_average_kv_cache_utilization", used);
    set(
        "inference_pool_average_queue_size",
        mean(waiting, said.len()),
    );
    let full = mean(said.iter().map(|said| said.fullness).sum(), said.len());
    metrics
        .gauge(
            "inference_extension_flow_control_pool_saturation",
            &[("inference_pool", pool)],
        )
        .set(full);
    for endpoint in endpoints {
        let Some(said) = endpoint.said else { continue };
        let by = [name[0], ("model_server_pod", endpoint.name)];
        let gauge = metrics.gauge("inference_pool_per_pod_queue_size", &by);
        gauge.set(f64::from(said.waiting));
    }
}

impl Metrics {
    /// A request for a configured model, of so many bytes, was placed; none is counted by model where nobody wants
    /// these names. `model` and `target` are configured names, so that there are few.
    pub fn placed_for(
        &self,
        model: Option<&Arc<str>>,
        target: Option<&Arc<str>>,
        bytes: usize,
    ) -> Option<Running> {
        let names = self.inference.as_ref()?;
        let key = (model.cloned(), target.cloned());
        let known = names.models.read().get(&key).cloned();
        let counts = known.unwrap_or_else(|| {
            let counts = Arc::new(self.model_counts(&key));
            let mut models = names.models.write();
            models.entry(key).or_insert(counts).clone()
        });
        counts
            .requests
            .iter()
            .for_each(|counter| counter.increment(1));
        counts.request_bytes.record(bytes as f64);
        counts.running.fetch_add(1, Ordering::Relaxed);
        Some(Running(counts))
    }

    /// It ended.
    pub fn ended_for(&self, Running(counts): &Running, ending: &Ending) {
        match ending.status {
            Some(status @ 400..) => {
                let status = status.to_string();
                for family in [
                    "inference_objective_request_error_total",
                    "inference_model_request_error_total",
                ] {
                    let labels = [
                        ("model_name", &*counts.model),
                        ("target_model_name", &*counts.target),
                        ("error_code", status.as_str()),
                    ];
                    self.counter(family, &labels).increment(1);
                }
            }
            Some(_) => counts.took.iter().for_each(|all| all.record(ending.took)),
            None => {}
        }
        if let Some(bytes) = ending.bytes {
            counts.response_bytes.record(bytes as f64);
        }
        let Some(tokens) = ending.tokens else { return };
        counts.input.record(tokens.input as f64);
        counts.output.record(tokens.output as f64);
        if let Some(cached) = tokens.cached {
            counts.cached.record(cached as f64);
        }
        if tokens.output > 0 {
            counts
                .token
                .record(ending.took.div_f64(tokens.output as f64));
        }
    }

    fn model_counts(&self, (model, target): &Names) -> ModelCounts {
        let other = || Arc::from(OTHER);
        let target = target.as_ref().or(model.as_ref());
        let target = target.cloned().unwrap_or_else(other);
        let model = model.clone().unwrap_or_else(other);
        let labels = [("model_name", &*model), ("target_model_name", &*target)];
        let counter = |family| self.counter(family, &labels);
        let histogram = |family| self.histogram(family, &labels);
        ModelCounts {
            requests: [
                counter("inference_objective_request_total"),
                counter("inference_model_request_total"),
            ],
            took: [
                histogram("inference_objective_request_duration_seconds"),
                histogram("inference_model_request_duration_seconds"),
            ],
            first_token: histogram("inference_objective_request_ttft_seconds"),
            token: histogram("inference_objective_normalized_time_per_output_token_seconds"),
            request_bytes: histogram("inference_objective_request_sizes"),
            response_bytes: histogram("inference_objective_response_sizes"),
            cached: histogram("inference_objective_prompt_cached_tokens"),
            input: histogram("inference_objective_input_tokens"),
            output: histogram("inference_objective_output_tokens"),
            running: AtomicI64::new(0),
            model: model.clone(),
            target: target.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn requests_are_counted_by_model_only_where_these_names_are_wanted() {
        let chat: Arc<str> = "chat".into();
        let unwanted = Metrics::default().placed_for(Some(&chat), None, 400);
        assert!(unwanted.is_none());
        let metrics = Metrics::new(&config::Metrics {
            pool: "llama".into(),
            inference_extension_names: true,
        });
        let went = metrics.placed_for(Some(&chat), None, 400).expect("wanted");
        went.first_token(Duration::from_millis(100));
        let ending = Ending {
            status: Some(200),
            took: Duration::from_secs(1),
            tokens: Some(Tokens {
                input: 100,
                cached: Some(96),
                output: 10,
            }),
            bytes: Some(60),
        };
        metrics.ended_for(&went, &ending);
        let failed = metrics.placed_for(None, None, 400).expect("wanted");
        let ending = Ending {
            status: Some(503),
            ..Ending::default()
        };
        metrics.ended_for(&failed, &ending);
        drop((went, failed));
        let _runs = metrics.placed_for(Some(&chat), None, 400);
        metrics.observe(&Sizes::default());
        let text = metrics.handle().render();
        for line in [
            "inference_objective_request_total{model_name=\"chat\",target_model_name=\"chat\"} 2",
            "inference_model_request_total{model_name=\"*\",target_model_name=\"*\"} 1",
            "inference_objective_request_error_total{model_name=\"*\",target_model_name=\"*\",error_code=\"503\"} 1",
            "inference_objective_running_requests{model_name=\"chat\"} 1",
            "inference_objective_input_tokens_bucket{model_name=\"chat\",target_model_name=\"chat\",le=\"128\"} 1",
            "inference_objective_request_ttft_seconds_bucket{model_name=\"chat\",target_model_name=\"chat\",le=\"0.1\"} 1",
            "inference_objective_normalized_time_per_output_token_seconds_sum{model_name=\"chat\",target_model_name=\"chat\"} 0.1",
            "inference_objective_request_sizes_bucket{model_name=\"chat\",target_model_name=\"chat\",le=\"1024\"} 2",
            "inference_objective_response_sizes_bucket{model_name=\"chat\",target_model_name=\"chat\",le=\"64\"} 1",
            "inference_objective_prompt_cached_tokens_sum{model_name=\"chat\",target_model_name=\"chat\"} 96",
            "inference_pool_ready_pods{name=\"llama\"} 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}

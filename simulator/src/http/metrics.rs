//! `GET /metrics`: the families of vLLM 0.32.0 that schedulers read, with its names and labels; of
//! several data-parallel ranks the first one's.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::App;
use crate::engine::Stats;
use crate::process::Rank;

/// `GET /metrics`
pub(super) async fn page(app: State<Arc<App>>) -> Response {
    let kind = "text/plain; version=1.0.0; charset=utf-8";
    (
        [(header::CONTENT_TYPE, kind)],
        render(&app, &app.processes.now().ranks[0]),
    )
        .into_response()
}

/// Text in Prometheus' format, written family by family.
struct Page {
    text: String,
    /// `engine="0",model_name="…"`
    labels: String,
}

impl Page {
    fn family(&mut self, kind: &str, name: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, more: &str, value: f64) {
        let comma = if more.is_empty() { "" } else { "," };
        let _ = writeln!(
            self.text,
            "{name}{{{}{comma}{more}}} {value:?}",
            self.labels
        );
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family("gauge", name, help);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family("counter", name, help);
        self.sample(name, "", value as f64);
    }
}

fn render(app: &App, Rank { rank, engine, .. }: &Rank) -> String {
    let stats = &engine.stats();
    let mut page = Page {
        text: String::new(),
        labels: format!("engine=\"{rank}\",model_name=\"{}\"", escape(&app.model)),
    };
    load(&mut page, stats);
    totals(&mut page, stats);
    lora(&mut page, app, stats);
    cache_config(&mut page, app, *rank);
    page.text
}

fn load(page: &mut Page, stats: &Stats) {
    let (running, waiting) = (stats.running as f64, stats.waiting as f64);
    page.gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        running,
    );
    page.gauge(
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        waiting,
    );
    let by_reason = "vllm:num_requests_waiting_by_reason";
    page.family("gauge", by_reason, "Number of waiting requests by reason.");
    page.sample(by_reason, "reason=\"capacity\"", waiting);
    page.sample(by_reason, "reason=\"deferred\"", 0.0);
    page.family("gauge", "vllm:engine_sleep_state", "Engine sleep state.");
    for (state, value) in [
        ("awake", 1.0),
        ("weights_offloaded", 0.0),
        ("discard_all", 0.0),
    ] {
        let label = format!("sleep_state=\"{state}\"");
        page.sample("vllm:engine_sleep_state", &label, value);
    }
    let help = "KV-cache usage. 1 means 100 percent usage.";
    page.gauge("vllm:kv_cache_usage_perc", help, stats.usage);
}

fn totals(page: &mut Page, stats: &Stats) {
    let families = [
        (
            "prefix_cache_queries",
            "Prefix cache queries, in tokens.",
            stats.query_tokens,
        ),
        (
            "prefix_cache_hits",
            "Prefix cache hits, in tokens.",
            stats.hit_tokens,
        ),
        (
            "external_prefix_cache_queries",
            "External prefix cache queries, in tokens.",
            0,
        ),
        (
            "external_prefix_cache_hits",
            "External prefix cache hits, in tokens.",
            0,
        ),
        (
            "num_preemptions",
            "Number of preemptions.",
            stats.preemptions,
        ),
        (
            "prompt_tokens",
            "Number of prefill tokens processed.",
            stats.prompt_tokens,
        ),
        (
            "prompt_tokens_cached",
            "Number of cached prompt tokens.",
            stats.hit_tokens,
        ),
        (
            "generation_tokens",
            "Number of generation tokens processed.",
            stats.generation_tokens,
        ),
    ];
    for (name, help, value) in families {
        page.counter(&format!("vllm:{name}_total"), help, value);
    }
    let success = "vllm:request_success_total";
    page.family(
        "counter",
        success,
        "Count of successfully processed requests.",
    );
    page.sample(success, "finished_reason=\"length\"", stats.finished as f64);
}

/// Which adapters ran and waited together, and when that was last so, in seconds since 1970.
/// Prometheus' client never forgets a set of labels, so vLLM shows all that ever were: who
/// reads them must take the latest.
#[derive(Debug, Default)]
pub struct LoraHistory(Mutex<VecDeque<(String, u64)>>);

/// Sets of labels remembered; the one not seen for longest goes first.
const LORA_SETS_MAX: usize = 256;

impl LoraHistory {
    fn see(&self, labels: String, seconds: u64) -> Vec<(String, u64)> {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sets.retain(|(known, _)| *known != labels);
        if sets.len() == LORA_SETS_MAX {
            sets.pop_front();
        }
        sets.push_back((labels, seconds));
        sets.iter().cloned().collect()
    }
}

/// Without the usual labels, and with the time as its value, as vLLM has it.
fn lora(page: &mut Page, app: &App, stats: &Stats) {
    if app.adapters.is_empty() {
        return;
    }
    let name = "vllm:lora_requests_info";
    page.family("gauge", name, "Running stats on lora requests.");
    let now = format!(
        "max_lora=\"{}\",running_lora_adapters=\"{}\",waiting_lora_adapters=\"{}\"",
        app.adapters.len(),
        escape(&stats.running_adapters.join(",")),
        escape(&stats.waiting_adapters.join(",")),
    );
    for (labels, seconds) in app.lora_history.see(now, super::now()) {
        let _ = writeln!(page.text, "{name}{{{labels}}} {:?}", seconds as f64);
    }
}

fn cache_config(page: &mut Page, app: &App, rank: u32) {
    let (size, blocks) = (
        app.engine_config.block_size,
        app.engine_config.num_gpu_blocks,
    );
    let name = "vllm:cache_config_info";
    page.family("gauge", name, "Information of the LLMEngine CacheConfig");
    let _ = writeln!(
        page.text,
        "{name}{{block_size=\"{size}\",effective_attention_block_size=\"{size}\",\
         enable_prefix_caching=\"True\",engine=\"{rank}\",hash_block_size=\"None\",\
         kv_cache_size_tokens=\"{}\",num_gpu_blocks=\"{blocks}\",\
         prefix_caching_hash_algo=\"sha256\"}} 1.0",
        size * blocks as usize,
    );
}

fn escape(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_once_seen_stay_with_their_time() {
        let history = LoraHistory::default();
        history.see("a".into(), 1);
        history.see("b".into(), 2);
        assert_eq!(
            history.see("a".into(), 3),
            [("b".into(), 2), ("a".into(), 3)]
        );
    }
}

//! `GET /metrics`: the families of vLLM 0.32.0 that schedulers read, with its names and labels, of
//! every data-parallel rank.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::App;
use crate::engine::Stats;

/// `GET /metrics`
pub(super) async fn page(app: State<Arc<App>>) -> Response {
    let kind = "text/plain; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], render(&app)).into_response()
}

/// Text in Prometheus' format, written family by family, in each a line for each engine.
struct Page {
    text: String,
    /// `engine="0",model_name="…"`, and how that engine is.
    engines: Vec<(String, Stats)>,
}

impl Page {
    fn family(&mut self, kind: &str, name: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, more: &str, value: impl Fn(&Stats) -> f64) {
        let comma = if more.is_empty() { "" } else { "," };
        for (labels, stats) in &self.engines {
            let value = value(stats);
            let _ = writeln!(self.text, "{name}{{{labels}{comma}{more}}} {value:?}");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Fn(&Stats) -> f64) {
        self.family("gauge", name, help);
        self.sample(name, "", value);
    }
}

fn render(app: &App) -> String {
    let now = app.processes.now();
    let model = escape(&app.model);
    let labels = |rank| format!("engine=\"{rank}\",model_name=\"{model}\"");
    let engines = now.ranks.iter();
    let engines = engines.map(|one| (labels(one.rank), one.engine.stats()));
    let mut page = Page {
        text: String::new(),
        engines: engines.collect(),
    };
    load(&mut page);
    totals(&mut page);
    first_tokens(&mut page);
    lora(&mut page, app);
    cache_config(&mut page, app, now.ranks.iter().map(|one| one.rank));
    page.text
}

fn load(page: &mut Page) {
    let waiting = |stats: &Stats| stats.waiting as f64;
    page.gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        |stats| stats.running as f64,
    );
    page.gauge(
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        waiting,
    );
    let by_reason = "vllm:num_requests_waiting_by_reason";
    page.family("gauge", by_reason, "Number of waiting requests by reason.");
    page.sample(by_reason, "reason=\"capacity\"", waiting);
    page.sample(by_reason, "reason=\"deferred\"", |_| 0.0);
    page.family("gauge", "vllm:engine_sleep_state", "Engine sleep state.");
    for (state, value) in [
        ("awake", 1.0),
        ("weights_offloaded", 0.0),
        ("discard_all", 0.0),
    ] {
        let label = format!("sleep_state=\"{state}\"");
        page.sample("vllm:engine_sleep_state", &label, |_| value);
    }
    let help = "KV-cache usage. 1 means 100 percent usage.";
    page.gauge("vllm:kv_cache_usage_perc", help, |stats| stats.usage);
}

/// A counter's name, what it says, and where it is.
type Total = (&'static str, &'static str, fn(&Stats) -> u64);

const TOTALS: [Total; 8] = [
    (
        "prefix_cache_queries",
        "Prefix cache queries, in tokens.",
        |stats| stats.query_tokens,
    ),
    (
        "prefix_cache_hits",
        "Prefix cache hits, in tokens.",
        |stats| stats.hit_tokens,
    ),
    (
        "external_prefix_cache_queries",
        "External prefix cache queries, in tokens.",
        |_| 0,
    ),
    (
        "external_prefix_cache_hits",
        "External prefix cache hits, in tokens.",
        |_| 0,
    ),
    ("num_preemptions", "Number of preemptions.", |stats| {
        stats.preemptions
    }),
    (
        "prompt_tokens",
        "Number of prefill tokens processed.",
        |stats| stats.prompt_tokens,
    ),
    (
        "prompt_tokens_cached",
        "Number of cached prompt tokens.",
        |stats| stats.cached_prompt_tokens,
    ),
    (
        "generation_tokens",
        "Number of generation tokens processed.",
        |stats| stats.generation_tokens,
    ),
];

fn totals(page: &mut Page) {
    for (name, help, value) in TOTALS {
        let name = format!("vllm:{name}_total");
        page.family("counter", &name, help);
        page.sample(&name, "", |stats| value(stats) as f64);
    }
    let success = "vllm:request_success_total";
    page.family(
        "counter",
        success,
        "Count of successfully processed requests.",
    );
    page.sample(success, "finished_reason=\"length\"", |stats| {
        stats.finished as f64
    });
}

/// How many came, but not how long they took: the last bucket and the count.
fn first_tokens(page: &mut Page) {
    let name = "vllm:time_to_first_token_seconds";
    page.family(
        "histogram",
        name,
        "Histogram of time to first token in seconds.",
    );
    let count = |stats: &Stats| stats.first_tokens as f64;
    page.sample(&format!("{name}_bucket"), "le=\"+Inf\"", count);
    page.sample(&format!("{name}_count"), "", count);
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

/// Without the usual labels, and with the time as its value, as vLLM has it: of several ranks nobody
/// knows whose it is. Here it is the first one's.
fn lora(page: &mut Page, app: &App) {
    if app.adapters.is_empty() {
        return;
    }
    let name = "vllm:lora_requests_info";
    page.family("gauge", name, "Running stats on lora requests.");
    let (_, stats) = &page.engines[0];
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

fn cache_config(page: &mut Page, app: &App, ranks: impl Iterator<Item = u32>) {
    let (size, blocks) = (
        app.engine_config.block_size,
        app.engine_config.num_gpu_blocks,
    );
    let name = "vllm:cache_config_info";
    page.family("gauge", name, "Information of the LLMEngine CacheConfig");
    for rank in ranks {
        let _ = writeln!(
            page.text,
            "{name}{{block_size=\"{size}\",effective_attention_block_size=\"{size}\",\
             enable_prefix_caching=\"True\",engine=\"{rank}\",hash_block_size=\"None\",\
             kv_cache_size_tokens=\"{}\",num_gpu_blocks=\"{blocks}\",\
             prefix_caching_hash_algo=\"sha256\"}} 1.0",
            size * blocks as usize,
        );
    }
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

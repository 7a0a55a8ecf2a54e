//! vLLM's HTTP surface (0.32.0), as far as clients, gateways and benchmarks use it.

mod ask;
mod error;
mod generate;
mod info;
mod metrics;
mod restart;
mod shape;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};

use crate::engine::EngineConfig;
use crate::events::FaultSwitch;
use crate::process::Processes;
use crate::text::Text;

/// The largest body read: a prompt of some 8 million tokens as text, more than any context.
const BODY_BYTES_MAX: usize = 32 << 20;

/// What every handler can see.
#[derive(Debug)]
pub struct App {
    /// The way to the engines, and where they publish.
    pub processes: Processes,
    /// How each engine was set up.
    pub engine_config: EngineConfig,
    /// Reads prompts, words answers.
    pub text: Text,
    /// The name the model is served by.
    pub model: String,
    /// LoRA adapters; the first has `lora_id` 1.
    pub adapters: Vec<String>,
    /// Prompt and answer together, in tokens.
    pub max_model_len: usize,
    /// Tokens of an answer whose request sets no limit.
    pub answer_tokens: usize,
    /// Whether usage says how much of a prompt was cached.
    pub prompt_tokens_details: bool,
    /// What goes wrong on their way.
    pub faults: FaultSwitch,
    /// Adapters seen together.
    pub lora_history: metrics::LoraHistory,
    /// Seconds since 1970 when the server started.
    pub created: u64,
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/completions", post(generate::completion))
        .route("/v1/models", get(info::models))
        .route("/tokenize", post(info::tokenize))
        .route("/reset_prefix_cache", post(info::reset_prefix_cache))
        .route("/kv_event_sources", get(info::kv_event_sources))
        .route("/sim/blocks", get(info::blocks))
        .route("/sim/blocks/{rank}", get(info::blocks_of_rank))
        .route("/sim/faults", get(info::faults).post(info::set_faults))
        .route("/sim/restart", post(restart::restart))
        .route("/version", get(info::version))
        .route("/health", get(info::healthy))
        .route("/ping", get(info::healthy).post(info::healthy))
        .route("/metrics", get(metrics::page))
        .fallback(error::unknown_path)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

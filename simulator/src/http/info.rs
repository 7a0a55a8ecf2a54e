//! What a server tells about itself, and what its operator may ask of it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::App;
use super::ask::{Api, read};
use super::error::json_body;
use crate::process::Rank;

/// The version whose behaviour this is.
const VLLM_VERSION: &str = "0.32.0+kvscout.sim";

/// `GET /sim/blocks`, which vLLM does not have: what the cache holds between two steps, as
/// `{hash: physical copies}`. What a picker believes can be held against it.
pub(super) async fn blocks(app: State<Arc<App>>) -> Response {
    blocks_of(&app.processes.now().ranks[0]).await
}

/// `GET /sim/blocks/RANK`: the same of one data-parallel rank.
pub(super) async fn blocks_of_rank(app: State<Arc<App>>, rank: Path<String>) -> Response {
    match app.processes.now().rank(Some(&rank)) {
        Some(rank) => blocks_of(rank).await,
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn blocks_of(rank: &Rank) -> Response {
    let copies = rank.engine.copies().await;
    json_body(&json!(copies)).into_response()
}

/// `GET /sim/faults`: what goes wrong with events.
pub(super) async fn faults(app: State<Arc<App>>) -> Response {
    json_body(&json!(app.faults.get())).into_response()
}

/// `POST /sim/faults`: what shall go wrong from now on; what is not named goes well.
pub(super) async fn set_faults(app: State<Arc<App>>, body: Bytes) -> Response {
    match serde_json::from_slice(&body) {
        Ok(faults) => {
            app.faults.set(faults);
            StatusCode::OK.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

/// `GET /v1/models`: the model, then its adapters with it as their parent.
pub(super) async fn models(app: State<Arc<App>>) -> Response {
    let card = |name: &str, parent: Option<&str>| {
        json!({
            "id": name, "object": "model", "created": app.created, "owned_by": "vllm",
            "root": name, "parent": parent,
            "max_model_len": parent.is_none().then_some(app.max_model_len),
            "permission": [],
        })
    };
    let mut cards = vec![card(&app.model, None)];
    cards.extend(
        app.adapters
            .iter()
            .map(|adapter| card(adapter, Some(&app.model))),
    );
    json_body(&json!({"object": "list", "data": cards})).into_response()
}

/// `POST /tokenize`: the ids of a prompt or of messages.
pub(super) async fn tokenize(app: State<Arc<App>>, body: Bytes) -> Response {
    let chat = serde_json::from_slice::<Value>(&body).is_ok_and(|b| !b["messages"].is_null());
    let api = if chat { Api::Chat } else { Api::Completion };
    let tokens = read(&app, api, &body).map(|reading| reading.prompts.concat());
    match tokens {
        Ok(tokens) => json_body(&json!({
            "count": tokens.len(), "max_model_len": app.max_model_len, "tokens": tokens,
            "token_strs": null,
        }))
        .into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// `POST /reset_prefix_cache`: no success while requests run.
pub(super) async fn reset_prefix_cache(app: State<Arc<App>>) -> Response {
    let mut success = true;
    for rank in &app.processes.now().ranks {
        success &= rank.engine.reset_prefix_cache().await;
    }
    json_body(&json!({"success": success})).into_response()
}

/// `GET /kv_event_sources` (vLLM 0.31 and later): where each rank publishes.
pub(super) async fn kv_event_sources(app: State<Arc<App>>) -> Response {
    let mut sources = json!({});
    let as_configured = |endpoint: &str| endpoint.replace("0.0.0.0", "*");
    let process = app.processes.now();
    for source in process
        .ranks
        .iter()
        .filter_map(|rank| rank.sources.as_ref())
    {
        sources[source.rank.to_string()] = json!({
            "enable_kv_cache_events": true, "publisher": "zmq",
            "endpoint": as_configured(&source.endpoint),
            "replay_endpoint": source.replay_endpoint.as_deref().map(as_configured),
            "buffer_steps": 10_000, "hwm": 100_000, "max_queue_size": 100_000,
            "topic": source.topic,
        });
    }
    json_body(&sources).into_response()
}

/// `GET /version`
pub(super) async fn version() -> Response {
    json_body(&json!({"version": VLLM_VERSION})).into_response()
}

/// `GET /health`, `/ping`
pub(super) async fn healthy() -> StatusCode {
    StatusCode::OK
}

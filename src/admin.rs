//! The admin port: `/healthz`, `/readyz` and, for whoever may ask ([`guard`]), `/metrics`, `/endpoints`, `/audit`, a
//! page for people that shows them (`/ui`), `/decisions`, `/explain` and `/prefixes`. None of them shows a prompt.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub use self::endpoints::{Digest, EndpointState, Says};
pub use self::guard::Guard;
use self::guard::Page;
pub use self::prefixes::{Prefix, Prefixes, PrefixesPage};
use crate::audit::score::Tally;
use crate::decisions::Decisions;
use crate::door::Door;
use crate::metrics::Handle;
use crate::readiness::Readiness;
use crate::scheduler::Scheduler;

mod decisions;
mod endpoints;
pub mod explain;
mod guard;
mod prefixes;
mod query;
mod ui;

/// What the pages show.
#[derive(Clone)]
pub struct Admin {
    /// Renders the metrics.
    pub metrics: Handle,
    /// Reads sizes into them first.
    pub observe: Arc<dyn Fn() + Send + Sync>,
    /// What is waited for.
    pub readiness: Readiness,
    /// What is known of each endpoint; with digests or without.
    pub endpoints: Arc<dyn Fn(bool) -> Vec<EndpointState> + Send + Sync>,
    /// What prompts share.
    pub prefixes: Arc<PrefixesPage>,
    /// How predictions have come out.
    pub audit: Arc<dyn Fn() -> Vec<EndpointScore> + Send + Sync>,
    /// What was decided lately.
    pub decisions: Arc<Decisions>,
    /// Who decides.
    pub scheduler: Arc<Scheduler>,
    /// Turns at explaining: [`explain::AT_ONCE_MAX`].
    pub explaining: Arc<Semaphore>,
    /// Who may ask.
    pub guard: Guard,
    /// The longest body that is explained, in bytes.
    pub body_bytes_max: usize,
}

/// How an endpoint's predictions have come out since it joined: one of the list that `/audit` answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndpointScore {
    /// The endpoint's name.
    pub name: String,
    /// How complete the picture of its cache is: `live`, `learning`, `doubtful` or `silent`.
    pub trust: String,
    /// Why.
    pub reason: String,
    /// Null where nothing was placed there yet.
    pub score: Option<Tally>,
}

/// Serves until dropped.
pub async fn serve(door: Door, admin: Admin) -> std::io::Result<()> {
    let guarded = |page| from_fn_with_state((admin.guard.clone(), page), guard::guard);
    let decisions = Router::new()
        .route("/decisions", get(decisions::newest))
        .route("/decisions/{id}", get(decisions::one))
        .route("/explain", post(explain::explain))
        .route("/prefixes", get(prefixes::prefixes))
        .route_layer(DefaultBodyLimit::max(admin.body_bytes_max))
        .route_layer(guarded(Page::Decisions));
    let state = Router::new()
        .route("/endpoints", get(endpoints::endpoints))
        .route("/ui", get(ui::ui))
        .route("/audit", get(audit))
        .route_layer(guarded(Page::State));
    let metrics = Router::new()
        .route("/metrics", get(metrics))
        .route_layer(guarded(Page::Metrics));
    let pages = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .merge(decisions)
        .merge(state)
        .merge(metrics)
        .with_state(admin)
        .into_make_service_with_connect_info::<SocketAddr>();
    // The way by which axum tells a page who asks, of a listener that is not its own.
    axum::serve(door.tap_io(|_| ()), pages).await
}

fn json(page: &impl Serialize) -> Response {
    let json = serde_json::to_string(page).expect("plain data is written");
    ([(header::CONTENT_TYPE, "application/json")], json + "\n").into_response()
}

async fn audit(State(admin): State<Admin>) -> Response {
    json(&(admin.audit)())
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    (admin.observe)();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        admin.metrics.render(),
    )
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let (status, mut said) = match admin.readiness.pending().as_slice() {
        [] => (StatusCode::OK, "ready\n".to_owned()),
        pending => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("waiting for {}\n", pending.join(", ")),
        ),
    };
    // What lowers precision and keeps no request away.
    for remark in admin.readiness.remarks() {
        said.push_str(&remark);
        said.push('\n');
    }
    (status, said)
}

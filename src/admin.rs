//! The admin port: `/metrics`, `/healthz`, `/readyz`, `/endpoints`. None of them shows a prompt.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::readiness::Readiness;

/// What the pages show.
#[derive(Clone)]
pub struct Admin {
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Reads sizes into them first.
    pub observe: Arc<dyn Fn() + Send + Sync>,
    /// What is waited for.
    pub readiness: Readiness,
    /// What is known of each endpoint.
    pub endpoints: Arc<dyn Fn() -> Vec<EndpointState> + Send + Sync>,
}

/// What is known of one endpoint.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointState {
    /// The pod's name.
    pub name: String,
    /// What Envoy connects to.
    pub address: String,
    /// How complete the picture of its cache is, why, and for how many seconds.
    pub trust: &'static str,
    /// See `trust`.
    pub reason: String,
    /// See `trust`.
    pub since_s: f64,
    /// Engine hashes in the picture, and the physical copies that they stand for.
    pub blocks: usize,
    /// See `blocks`.
    pub copies: u64,
    /// Equal where two replicas know the same, in hexadecimal.
    pub digest: String,
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, admin: Admin) -> std::io::Result<()> {
    let pages = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/endpoints", get(endpoints))
        .with_state(admin);
    axum::serve(listener, pages).await
}

async fn endpoints(State(admin): State<Admin>) -> impl IntoResponse {
    let states = (admin.endpoints)();
    let json = serde_json::to_string(&states).expect("plain data is written");
    ([(header::CONTENT_TYPE, "application/json")], json + "\n")
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

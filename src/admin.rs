//! The admin port: `/metrics`, `/healthz`, `/readyz`. None of them shows a prompt.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
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
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, admin: Admin) -> std::io::Result<()> {
    let pages = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(admin);
    axum::serve(listener, pages).await
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

//! The admin port: `/metrics`, `/healthz`, `/readyz`. None of them shows a prompt.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What must happen before requests are welcome: a [`Ticket`] for each, given back when done.
#[derive(Debug, Clone)]
pub struct Readiness {
    pending: watch::Sender<BTreeMap<&'static str, usize>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { pending: watch::Sender::new(BTreeMap::new()) }
    }
}

/// Something that is not ready yet, until dropped.
#[derive(Debug)]
pub struct Ticket {
    what: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Announces something to wait for.
    #[must_use]
    pub fn ticket(&self, what: &'static str) -> Ticket {
        self.pending.send_modify(|pending| *pending.entry(what).or_default() += 1);
        Ticket { what, readiness: self.clone() }
    }

    /// What is waited for; empty once ready.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.pending.borrow().keys().copied().collect()
    }

    /// Hears of every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BTreeMap<&'static str, usize>> {
        self.pending.subscribe()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.readiness.pending.send_modify(|pending| {
            if let Some(count) = pending.get_mut(self.what) {
                *count -= 1;
                if *count == 0 {
                    pending.remove(self.what);
                }
            }
        });
    }
}

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

/// Serves until `shutdown` says so.
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    mut shutdown: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let pages = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(admin);
    let told = async move {
        // An error means that the app is gone, which is an end as well.
        let _ended = shutdown.wait_for(|ending| *ending).await;
    };
    axum::serve(listener, pages).with_graceful_shutdown(told).await
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    (admin.observe)();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.render())
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.readiness.pending().as_slice() {
        [] => (StatusCode::OK, "ready\n".into()),
        pending => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}\n", pending.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_waits_for_every_ticket() {
        let readiness = Readiness::default();
        let (one, two) = (readiness.ticket("fleet"), readiness.ticket("fleet"));
        let three = readiness.ticket("tokenizer");
        drop(one);
        assert_eq!(readiness.pending(), ["fleet", "tokenizer"]);
        drop(two);
        assert_eq!(readiness.pending(), ["tokenizer"]);
        drop(three);
        assert!(readiness.pending().is_empty());
    }
}

//! What gateways and kubelets ask: grpc.health.v1.

use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthApi, HealthServer};
use tonic_health::server::{HealthReporter, HealthService};

use super::Patience;
use crate::door::Door;

/// The names that follow readiness: the whole server, the kubelet's probe, the gateways' probes,
/// and that of upstream's conformance suite.
const READY_NAMES: [&str; 4] = [
    "",
    "readiness",
    "envoy.service.ext_proc.v3.ExternalProcessor",
    "inference-extension",
];
const LIVE_NAME: &str = "liveness";
/// Whoever watches our health has a stream for each name.
const CONNECTION_STREAMS_MAX: u32 = 100;

/// Whether we serve; one handle for every port that is asked.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Alive, and not ready.
    pub async fn new() -> Self {
        let reporter = HealthReporter::new();
        let health = Self { reporter };
        health.set(LIVE_NAME, true).await;
        health.set_ready(false).await;
        health
    }

    /// Tells every port at once.
    pub async fn set_ready(&self, ready: bool) {
        for name in READY_NAMES {
            self.set(name, ready).await;
        }
    }

    /// The service to add to a gRPC server.
    #[must_use]
    pub fn service(&self) -> HealthServer<impl HealthApi> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// Serves health alone, unencrypted, until `shutdown`.
    ///
    /// # Errors
    /// Where the listener fails.
    pub async fn serve(
        &self,
        door: Door,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let keepalive = Patience::default().keepalive;
        Server::builder()
            .max_concurrent_streams(CONNECTION_STREAMS_MAX)
            .http2_keepalive_interval(Some(keepalive.0))
            .http2_keepalive_timeout(Some(keepalive.1))
            .serve_with_incoming_shutdown(self.service(), Box::pin(door.connections()), shutdown)
            .await
    }

    async fn set(&self, name: &str, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        self.reporter.set_service_status(name, status).await;
    }
}

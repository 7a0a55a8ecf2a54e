//! Two pickers behind one Envoy that asks for their health, as processes on ports that their successors have, too.

use std::net::{SocketAddr, TcpListener};

use super::envoy::{self, Bodies, Follow};
use super::process::Served;
use super::{PATIENCE, http};
use envoy::Envoy;

/// Between two of Envoy's questions.
const INTERVAL: &str = "0.1s";

/// One picker's ports, which its successor has, too.
#[derive(Clone, Copy)]
pub struct Ports {
    pub ext_proc: SocketAddr,
    pub health: SocketAddr,
}

impl Ports {
    pub fn free() -> Self {
        let listeners = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [ext_proc, health] = listeners.map(|one| one.local_addr().expect("bound"));
        Self { ext_proc, health }
    }

    pub fn serve(self, config: &str) -> Served {
        self.serve_with(config, &[])
    }

    /// The same with an environment.
    pub fn serve_with(self, config: &str, environment: &[(&str, String)]) -> Served {
        let (ext_proc, health) = (self.ext_proc.to_string(), self.health.to_string());
        let args = [
            "--config",
            config,
            "--ext-proc",
            &ext_proc,
            "--health",
            &health,
        ];
        let served = Served::start_with(&args, environment);
        served.line("listening");
        served
    }
}

/// The example with these pickers, of which Envoy asks the health ports, in plain text.
pub fn configured(pods: &[SocketAddr], pickers: &[Ports], bodies: Bodies) -> String {
    let mut text = envoy::configured(pods, pickers[0].ext_proc, bodies, Follow::Metadata);
    let place = |ports: &Ports| {
        let (port, health) = (ports.ext_proc.port(), ports.health.port());
        format!(
            "- {{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, \
             health_check_config: {{port_value: {health}}}}}}}"
        )
    };
    let first = pickers[0].ext_proc.port();
    let one = format!(
        "- {{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {first}}}}}}}}}"
    );
    let both: Vec<String> = pickers.iter().map(place).collect();
    text = envoy::swap(&text, &one, &both.join("\n              "));
    let checks = format!(
        "      health_checks:
        - timeout: 1s
          interval: {INTERVAL}
          no_traffic_interval: {INTERVAL}
          unhealthy_threshold: 1
          healthy_threshold: 1
          grpc_health_check: {{service_name: envoy.service.ext_proc.v3.ExternalProcessor}}
          transport_socket_match_criteria: {{plain: true}}
      transport_socket_matches:
        - name: plain
          match: {{plain: true}}
          transport_socket:
            name: envoy.transport_sockets.raw_buffer
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer
      # One stream a request."
    );
    envoy::swap(&text, "      # One stream a request.", &checks)
}

/// Waits until Envoy has seen that a picker serves, or that it does not.
pub async fn seen(envoy: &Envoy, picker: Ports, healthy: bool) {
    let port = picker.ext_proc.port();
    // It may have models to load and events to catch up with first.
    let waited = tokio::time::timeout(3 * PATIENCE, async {
        loop {
            let clusters = http::get(envoy.admin, "/clusters?format=json").await.json();
            let clusters = clusters["cluster_statuses"].as_array().expect("a list");
            let hosts = clusters
                .iter()
                .filter(|cluster| cluster["name"] == "kvscout")
                .flat_map(|cluster| cluster["host_statuses"].as_array().expect("a list"));
            let mut hosts =
                hosts.filter(|host| host["address"]["socket_address"]["port_value"] == port);
            let host = hosts.next().expect("it is one of them");
            if host["health_status"]["failed_active_health_check"].is_null() == healthy {
                return;
            }
            tokio::time::sleep(PATIENCE / 1000).await;
        }
    })
    .await;
    waited.expect("Envoy sees the picker");
}

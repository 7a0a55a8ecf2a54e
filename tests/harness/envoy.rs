//! A real Envoy that runs `deploy/envoy/envoy.yaml` with other addresses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kvscout_sim::stack::{Ports, envoy};

use super::{PATIENCE, http, soon};

/// How Envoy shows bodies to kvscout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bodies {
    /// Both ways in full duplex, and no second try: with one, Envoy 1.40 sends the body of a
    /// request with trailers twice (envoyproxy/envoy#45470).
    FullDuplexOnce,
    /// Full duplex both ways.
    FullDuplex,
    /// As the example has it: the request buffered, the response in chunks that Envoy keeps.
    Buffered,
    /// Both buffered.
    AllBuffered,
    /// Both in chunks that Envoy keeps until they are answered.
    Streamed,
    /// Neither shown.
    Unseen,
}

/// How Envoy follows the pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// `override_host` by dynamic metadata, as the example does and Istio.
    Metadata,
    /// `override_host` by header.
    Header,
    /// An ORIGINAL_DST cluster by header, as Envoy AI Gateway.
    OriginalDst,
}

/// A running Envoy, killed when dropped.
pub struct Envoy {
    /// Least request over the pods.
    pub plain: SocketAddr,
    /// By way of kvscout.
    pub routed: SocketAddr,
    pub admin: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Envoy {
    /// Starts before these pods and this kvscout.
    pub async fn start(
        pods: &[SocketAddr],
        kvscout: SocketAddr,
        bodies: Bodies,
        follow: Follow,
    ) -> Self {
        Self::run(&configured(pods, kvscout, bodies, follow)).await
    }

    /// Starts with this configuration.
    pub async fn run(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("envoy.yaml");
        std::fs::write(&config, text).expect("written");
        let child = spawn(folder.path(), &config);
        let admin_file = folder.path().join("admin");
        let mut envoy = Self {
            plain: SocketAddr::from(([127, 0, 0, 1], 0)),
            routed: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            child,
            _folder: folder,
        };
        envoy.admin = soon("Envoy is ready", envoy.ready(&admin_file)).await;
        let listeners = http::get(envoy.admin, "/listeners?format=json")
            .await
            .json();
        let port = |name: &str| {
            let all = listeners["listener_statuses"].as_array().expect("a list");
            let one = all
                .iter()
                .find(|one| one["name"] == name)
                .expect("is there");
            let port = &one["local_address"]["socket_address"]["port_value"];
            u16::try_from(port.as_u64().expect("a number")).expect("a port")
        };
        envoy.plain.set_port(port("plain"));
        envoy.routed.set_port(port("routed"));
        envoy
    }

    async fn ready(&mut self, admin_file: &Path) -> SocketAddr {
        let mut tick = tokio::time::interval(PATIENCE / 1000);
        loop {
            tick.tick().await;
            if let Some(status) = self.child.try_wait().expect("a child") {
                let log = std::fs::read_to_string(admin_file.with_file_name("log"));
                panic!("Envoy ended with {status}: {}", log.unwrap_or_default());
            }
            let written = std::fs::read_to_string(admin_file).ok();
            let Some(admin) = written.and_then(|text| text.trim().parse().ok()) else {
                continue;
            };
            if let Ok(answer) = http::try_get(admin, "/ready").await
                && answer.status == 200
            {
                return admin;
            }
        }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed, and need not be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, config: &Path) -> Child {
    let log = std::fs::File::create(folder.join("log")).expect("a log");
    let binary = binary();
    Command::new(&binary)
        .arg("-c")
        .arg(config)
        .arg("--admin-address-path")
        .arg(folder.join("admin"))
        .args([
            "--use-dynamic-base-id",
            "--concurrency",
            "1",
            "--log-level",
            "warning",
        ])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; run make setup", binary.display()))
}

fn binary() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match std::env::var_os("KVSCOUT_ENVOY") {
        Some(path) => path.into(),
        None => root.join(".tools/venv/bin/envoy"),
    }
}

/// The example with other addresses, modes and ways.
pub fn configured(
    pods: &[SocketAddr],
    kvscout: SocketAddr,
    bodies: Bodies,
    follow: Follow,
) -> String {
    let text = envoy::configure(&Ports::FREE, pods, kvscout);
    let mut text = text.expect("the example has its places");
    if bodies == Bodies::FullDuplexOnce {
        text = swap(
            &text,
            "retry_on: connect-failure,refused-stream,reset-before-request",
            "retry_on: \"\"",
        );
    }
    let (request, response) = match bodies {
        Bodies::FullDuplex | Bodies::FullDuplexOnce => {
            ("FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED")
        }
        Bodies::Buffered => ("BUFFERED", "STREAMED"),
        Bodies::AllBuffered => ("BUFFERED", "BUFFERED"),
        Bodies::Streamed => ("STREAMED", "STREAMED"),
        Bodies::Unseen => ("NONE", "NONE"),
    };
    for (side, shipped, mode) in [
        ("request", "BUFFERED", request),
        ("response", "STREAMED", response),
    ] {
        let line = format!("{side}_body_mode: ");
        let (from, to) = (format!("{line}{shipped}\n"), format!("{line}{mode}\n"));
        text = swap(&text, &from, &to);
    }
    match follow {
        Follow::Metadata => text,
        Follow::Header => swap(
            &text,
            "- metadata: {key: envoy.lb, path: [{key: x-gateway-destination-endpoint}]}",
            "- header: x-gateway-destination-endpoint",
        ),
        Follow::OriginalDst => swap(&text, "cluster: picked\n", "cluster: original_dst\n"),
    }
}

/// The same as Istio has it (`pilot/pkg/networking/core/route`, `pilot/pkg/xds/filters`, August 2026), with kvscout's
/// cluster under this name.
pub fn as_istio(text: &str, name: &str) -> String {
    let modes = "\
request_header_mode: SEND
                        request_body_mode: FULL_DUPLEX_STREAMED
                        request_trailer_mode: SEND
                        response_header_mode: SEND
                        response_body_mode: FULL_DUPLEX_STREAMED
                        response_trailer_mode: SEND
";
    let of_route = format!(
        "- match: {{prefix: \"/\"}}
                          typed_per_filter_config:
                            envoy.filters.http.ext_proc:
                              \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute
                              overrides:
                                failure_mode_allow: false
                                grpc_service: {{envoy_grpc: {{cluster_name: {name}}}}}
                                processing_mode: {{{}}}
                          route:
                            cluster: picked\n",
        modes.trim().replace('\n', ", ")
    );
    let route = "- match: {prefix: \"/\"}\n                          route:\n                            cluster: picked\n";
    let skips = "request_header_mode: SKIP\n                        response_header_mode: SKIP\n";
    let asks = "envoy_grpc: {cluster_name: kvscout}\n";
    let tls = "transport_sockets.tls.v3.UpstreamTlsContext\n";
    let swaps = [
        (modes, skips),
        (route, &of_route),
        (
            asks,
            "envoy_grpc: {cluster_name: dummy}\n                        timeout: 10s\n",
        ),
        ("message_timeout: 30s", "message_timeout: 1000s"),
        ("[envoy.lb, envoy.lb.subset_hint]", "[envoy.lb]"),
        ("- name: kvscout\n", &format!("- name: {name}\n")),
        (tls, &format!("{tls}          sni: kvscout\n")),
    ];
    let swap = |text: String, (from, to): (&str, &str)| swap(&text, from, to);
    swaps.into_iter().fold(text.to_owned(), swap)
}

/// The same where kvscout speaks plaintext.
pub fn without_tls(text: &str) -> String {
    let tls = "      transport_socket:\n        name: envoy.transport_sockets.tls\n        typed_config:\n          \
               \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n";
    swap(text, tls, "")
}

/// Replaces what stands in the example exactly once.
pub fn swap(text: &str, from: &str, to: &str) -> String {
    envoy::swap(text, from, to).expect("the example has it once")
}

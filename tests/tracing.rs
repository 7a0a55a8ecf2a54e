//! Spans, as a collector gets them: of kvscout's process, and of Envoy's before it.

mod harness;

use std::collections::HashMap;
use std::net::SocketAddr;

use harness::collector::{Collector, text};
use harness::envoy::{Bodies, Envoy, Follow, configured, swap};
use harness::exchange::{Exchange, channel, headers};
use harness::http::{self, full, post};
use harness::pod::Pod;
use harness::process::{ANY_PORT, Served, write};
use harness::{PATIENCE, sim, soon, tokenizer};
use hyper::Request;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::json;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const SECRET: &str = "the codeword is heliotrope";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A chat by a caller whose flags say whether it is traced, answered by a server that found nothing cached.
async fn chat(ext_proc: SocketAddr, flags: &str) {
    let mut exchange = Exchange::open(channel(ext_proc).await).await;
    let parent = format!("00-{TRACE}-{CALLER}-{flags}");
    let said = [
        (":path", "/v1/chat/completions"),
        ("x-request-id", "r-1"),
        ("traceparent", &parent),
    ];
    let chat = json!({"model": "sim", "messages": [{"role": "user", "content": SECRET}]});
    exchange.placed(&said, chat.to_string()).await;
    let usage = json!({"usage": {"prompt_tokens": 15, "completion_tokens": 3}});
    exchange.answered(usage.to_string()).await;
    exchange.ended().await;
}

/// kvscout over one simulated server whose model it has, and over a collector.
async fn serve(folder: &std::path::Path, tracing: &str) -> (Served, kvscout_sim::server::Bound) {
    let pod = sim::pod(64, 0, None).await.expect("a server");
    let pods = [pod];
    write(folder, "fleet.yaml", &sim::fleet_yaml(&pods, ""));
    let model = tokenizer().display().to_string();
    let config = format!(
        "{ANY_PORT}models: [{{names: [sim], folder: '{model}'}}]\ntracing: {{{tracing}}}\n"
    );
    let config = write(folder, "kvscout.yaml", &config);
    let environment = [("RUST_LOG", "kvscout=debug".to_owned())];
    let served = Served::start_with(&["--config", &config, "--plaintext"], &environment);
    let [pod] = pods;
    (served, pod)
}

async fn ready(admin: SocketAddr) {
    soon("kvscout is ready", async {
        while http::get(admin, "/readyz").await.status != 200 {
            tokio::time::sleep(PATIENCE / 1000).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_traced_request_is_a_span_with_one_for_each_stage_and_says_nothing_of_its_prompt() {
    let collector = Collector::encrypted().await;
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "ca.pem", &collector.pem);
    write(folder.path(), "headers", "Authorization: Bearer abc\n");
    let port = collector.address.port();
    let tracing = format!(
        "endpoint: 'https://localhost:{port}', sampling: 0, ca: ca.pem, headers: headers, \
         service_name: picker, resource: {{deployment.environment.name: test}}"
    );
    let (served, _pod) = serve(folder.path(), &tracing).await;
    let (ext_proc, admin) = served.addresses();
    ready(admin).await;
    // The caller's word counts, whatever the share of those who say none.
    chat(ext_proc, "00").await;
    chat(ext_proc, "01").await;
    let line = served.line("placed");
    assert!(line.contains(&format!("trace_id={TRACE}")), "{line}");
    // What was not sent before is sent at the end.
    served.terminate();
    let request = collector.span("picker", "request").await;
    let spans: Vec<Span> = collector
        .spans()
        .into_iter()
        .map(|(_, span)| span)
        .collect();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    assert_eq!(hex(&request.parent_span_id), CALLER);
    assert_eq!(request.kind(), SpanKind::Server);
    let names: HashMap<&str, &Span> = spans.iter().map(|span| (&*span.name, span)).collect();
    assert_eq!(names.len(), spans.len(), "one of each: {spans:#?}");
    let mut known: Vec<&str> = names.keys().copied().collect();
    known.sort_unstable();
    let stages = [
        "choose",
        "lookup",
        "queue_wait",
        "read",
        "receive_body",
        "render",
        "request",
        "response",
        "tokenize",
    ];
    assert_eq!(known, stages);
    for (name, span) in &names {
        let parent = match *name {
            "request" => continue,
            "render" | "tokenize" => names["read"],
            _ => &request,
        };
        assert_eq!(span.parent_span_id, parent.span_id, "{name}");
        let within = parent.start_time_unix_nano <= span.start_time_unix_nano
            && span.start_time_unix_nano <= span.end_time_unix_nano
            && span.end_time_unix_nano <= parent.end_time_unix_nano;
        assert!(within, "{name}: {span:#?}\n{parent:#?}");
    }
    for (attribute, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "sim"),
        ("gen_ai.usage.input_tokens", "15"),
        ("gen_ai.usage.output_tokens", "3"),
        ("http.response.status_code", "200"),
        ("kvscout.basis", "overlap"),
        ("kvscout.decided_by", "load"),
        ("kvscout.endpoint", "pod-0"),
        ("kvscout.pool", "default"),
        ("kvscout.predicted_cached_tokens", "0"),
        ("kvscout.request_id", "r-1"),
    ] {
        assert_eq!(text(&request.attributes, attribute), value, "{attribute}");
    }
    assert_eq!(collector.authorization().as_deref(), Some("Bearer abc"));
    let all = collector.all_text();
    assert!(all.contains("deployment.environment.name"), "{all}");
    assert!(!all.contains("heliotrope"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_takes_is_a_span_that_says_so() {
    let collector = Collector::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "fleet.yaml", "endpoints: []\n");
    let endpoint = collector.address;
    let config = format!("{ANY_PORT}tracing: {{endpoint: 'http://{endpoint}', sampling: 1}}\n");
    let config = write(folder.path(), "kvscout.yaml", &config);
    let served = Served::start(&["--config", &config, "--plaintext"]);
    let (ext_proc, _) = served.addresses();
    let mut exchange = Exchange::open(channel(ext_proc).await).await;
    exchange.say(headers("/v1/models", true)).await;
    exchange.hear().await;
    drop(exchange);
    let request = collector.span("kvscout", "request").await;
    assert!(request.parent_span_id.is_empty(), "{request:?}");
    let status = request.status.expect("a status");
    assert_eq!(status.code(), StatusCode::Error);
    assert_eq!(text(&request.attributes, "error.type"), "no_endpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    // Nobody listens on port 1.
    let (served, _pod) = serve(folder.path(), "endpoint: 'http://127.0.0.1:1', sampling: 1").await;
    let (ext_proc, admin) = served.addresses();
    ready(admin).await;
    for _ in 0..3 {
        chat(ext_proc, "01").await;
    }
    let lost = "kvscout_traces_total{outcome=\"failed\"} 3";
    soon("all are counted as lost", async {
        loop {
            let page = http::get(admin, "/metrics").await;
            let page = String::from_utf8(page.body.to_vec()).expect("text");
            if page.lines().any(|line| line == lost) {
                return;
            }
            tokio::time::sleep(PATIENCE / 1000).await;
        }
    })
    .await;
    served.line("the collector does not take spans");
}

/// As Envoy Gateway and Istio set it up: a tracer in the HTTP connection manager.
const TRACER: &str = r#"stat_prefix: routed
                tracing:
                  random_sampling: {value: 100}
                  spawn_upstream_span: true
                  provider:
                    name: envoy.tracers.opentelemetry
                    typed_config:
                      "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                      grpc_service: {envoy_grpc: {cluster_name: collector}}
                      service_name: envoy"#;

fn collector_cluster(collector: SocketAddr) -> String {
    let (ip, port) = (collector.ip(), collector.port());
    format!(
        r#"  clusters:
    - name: collector
      type: STATIC
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: {{http2_protocol_options: {{}}}}
      load_assignment:
        cluster_name: collector
        endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]
"#
    )
}

/// Envoy gathers five spans, or waits five seconds.
const AT_ONCE: &str = "layered_runtime:
  layers:
    - name: static
      static_layer: {tracing.opentelemetry.min_flush_spans: 1}

static_resources:
";

#[tokio::test(flavor = "multi_thread")]
async fn behind_envoy_a_request_is_one_trace_and_the_servers_span_is_envoys_child() {
    let collector = Collector::start().await;
    let pod = Pod::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = format!("endpoints: [{{name: pod-0, address: '{}'}}]\n", pod.address);
    write(folder.path(), "fleet.yaml", &fleet);
    let endpoint = collector.address;
    let config = format!("{ANY_PORT}tracing: {{endpoint: 'http://{endpoint}', sampling: 0}}\n");
    let config = write(folder.path(), "kvscout.yaml", &config);
    let served = Served::start(&["--config", &config]);
    let (ext_proc, _) = served.addresses();
    let text = configured(
        &[pod.address],
        ext_proc,
        Bodies::FullDuplex,
        Follow::Metadata,
    );
    let text = swap(&text, "stat_prefix: routed", TRACER);
    let text = swap(&text, "  clusters:\n", &collector_cluster(endpoint));
    let envoy = Envoy::run(&swap(&text, "static_resources:\n", AT_ONCE)).await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let request = post("/v1/completions").header("traceparent", parent);
    let request: Request<_> = request
        .body(full("{\"prompt\": \"hi\"}"))
        .expect("a request");
    let answer = http::send(envoy.routed, request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let ours = collector.span("kvscout", "request").await;
    assert_eq!(hex(&ours.trace_id), TRACE);
    let told = answer.header("x-traceparent");
    let told: Vec<&str> = told.split('-').collect();
    assert_eq!(told[1], TRACE, "{told:?}");
    let of_envoy = |id: &str| {
        let mut all = collector.spans().into_iter();
        all.any(|(service, span)| service == "envoy" && hex(&span.span_id) == id)
    };
    let (parent, server) = (hex(&ours.parent_span_id), told[2]);
    harness::until("Envoy's spans are there", || {
        of_envoy(&parent) && of_envoy(server)
    })
    .await;
    assert_ne!(hex(&ours.span_id), server);
}

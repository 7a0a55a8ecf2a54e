//! Golden conversations: each with kvscout alone, message by message, and each through a real Envoy.

mod harness;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use harness::envoy::{self, Envoy, Follow};
use harness::exchange::{Exchange, channel};
use harness::golden::{self, Bodies, Fleet, Golden, Said, Texts};
use harness::script::Script;
use harness::{Kvscout, http, soon};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{HeaderMap, Request};
use kvscout::config::{Config, Criticality, InferenceModel, InferenceObjective, Target, Tls};
use kvscout::ext_proc::{ExtProcSettings, Rules};
use kvscout::fleet::Booking;
use kvscout::routes::Routes;

/// What conversations call their pod.
const POD: &str = "10.0.0.7:8000";

/// kvscout as conversations have it: "chat" is served by "chat-v2", and "batch" may be shed.
async fn kvscout(
    pod: SocketAddr,
    fleet: Fleet,
    tls: Tls,
    conformance: bool,
) -> (Kvscout, Option<Booking>) {
    let chat = InferenceModel {
        name: "chat".into(),
        criticality: Criticality::Standard,
        priority: 0,
        targets: vec![Target {
            model: "chat-v2".into(),
            weight: 1,
        }],
    };
    let batch = InferenceObjective {
        name: "batch".into(),
        priority: -1,
    };
    let settings = ExtProcSettings {
        rules: Arc::new(Rules {
            conformance,
            ..Rules::default()
        }),
        ..ExtProcSettings::default()
    };
    let pods: &[SocketAddr] = if fleet == Fleet::Empty { &[] } else { &[pod] };
    let (routes, policy) = (Routes::of(&[chat], &[batch]), Config::default().policy);
    let kvscout = Kvscout::ruled(pods, tls, settings, routes, policy).await;
    let busy = (fleet == Fleet::Saturated).then(|| {
        let tokens = 1 + Config::default().admission.queued_tokens_max;
        Booking::new(kvscout.endpoints[0].clone(), tokens, 1, Instant::now())
    });
    (kvscout, busy)
}

#[tokio::test]
async fn kvscout_says_what_its_conversations_say() {
    let texts = Texts::new();
    let pod = POD.parse().expect("an address");
    for golden in golden::all() {
        let (kvscout, _busy) = kvscout(pod, golden.fleet, Tls::Off, golden.conformance_tests).await;
        let mut exchange = Exchange::open(channel(kvscout.address).await).await;
        let mut said = Vec::new();
        for message in &golden.conversation {
            match message {
                Said::Envoy(text) => {
                    let request = texts.request(&text.replace("$pod", POD));
                    exchange.say.send(request).await.expect("it listens");
                }
                Said::Kvscout(text) => {
                    let expected = texts.canonical(&text.replace("$pod", POD));
                    let reply = soon(&golden.name, exchange.hear.message()).await;
                    let reply = reply.expect("no error").map(|reply| texts.response(&reply));
                    said.push(reply.clone().unwrap_or_default());
                    let before = said.join("\n--\n");
                    assert_eq!(reply, Some(expected), "{}: {before}", golden.name);
                }
            }
        }
        drop(exchange.say);
        let more = soon(&golden.name, exchange.hear.message())
            .await
            .expect("no error");
        let more = more.map(|reply| texts.response(&reply));
        assert_eq!(more, None, "{}: and no more", golden.name);
    }
}

/// What a world has in common for all its conversations.
type Kind = (Bodies, Fleet, bool, bool);

fn kind(golden: &Golden) -> Kind {
    let hinted = golden.subset.is_some();
    (
        golden.bodies,
        golden.fleet,
        golden.conformance_tests,
        hinted,
    )
}

async fn envoy(pod: SocketAddr, kvscout: &Kvscout, golden: &Golden) -> Envoy {
    let bodies = match golden.bodies {
        // With a second try, Envoy 1.40 sends a body with trailers twice.
        Bodies::FullDuplex => envoy::Bodies::FullDuplexOnce,
        Bodies::Buffered => envoy::Bodies::AllBuffered,
        Bodies::BufferedRequest => envoy::Bodies::Buffered,
        Bodies::Streamed => envoy::Bodies::Streamed,
        Bodies::Unseen => envoy::Bodies::Unseen,
    };
    let mut text = envoy::configured(&[pod], kvscout.address, bodies, Follow::Metadata);
    let plain = "explicit_http_config: {http_protocol_options: {}}";
    let trailers = "explicit_http_config: {http_protocol_options: {enable_trailers: true}}";
    text = envoy::swap(&text, plain, trailers);
    let upgrades =
        "stat_prefix: routed\n                upgrade_configs: [{upgrade_type: websocket}]";
    text = envoy::swap(&text, "stat_prefix: routed", upgrades);
    if let Some(subset) = &golden.subset {
        let subset: Vec<String> = subset.iter().map(|one| on_pod(one, pod)).collect();
        let filter = "- name: envoy.filters.http.ext_proc\n";
        let hint = format!(
            "- name: hint
                    typed_config:
                      \"@type\": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config
                      metadata:
                        - metadata_namespace: envoy.lb.subset_hint
                          value: {{x-gateway-destination-endpoint-subset: {subset:?}}}
                  {filter}"
        );
        text = envoy::swap(&text, filter, &hint);
    }
    Envoy::run(&text).await
}

fn on_pod(text: &str, pod: SocketAddr) -> String {
    text.replace("$pod", &pod.to_string())
}

fn pairs(map: &BTreeMap<String, String>) -> HeaderMap {
    let pair = |(name, value): (&String, &String)| {
        let name: hyper::header::HeaderName = name.parse().expect("a name");
        (name, value.parse().expect("a value"))
    };
    map.iter().map(pair).collect()
}

async fn ask(envoy: &Envoy, golden: &Golden, pod: SocketAddr) -> http::Answer {
    let client = &golden.client;
    let chunks = client
        .body
        .iter()
        .map(|chunk| Frame::data(Bytes::from(chunk.clone())));
    let trailers = (!client.trailers.is_empty()).then(|| Frame::trailers(pairs(&client.trailers)));
    let frames: Vec<_> = chunks.chain(trailers).collect();
    let body = match frames.is_empty() {
        true => http::full(""),
        false => BodyExt::boxed(StreamBody::new(futures::stream::iter(frames).map(Ok))),
    };
    let uri = format!("http://{}{}", envoy.routed, client.path);
    let mut request = Request::builder().method(&client.method[..]).uri(uri);
    for (name, value) in &client.headers {
        request = request.header(name, on_pod(value, pod));
    }
    let request = request.body(body).expect("a request");
    match client.headers.contains_key("upgrade") {
        true => http::send(envoy.routed, request).await,
        false => http::send_h2(envoy.routed, request).await,
    }
}

fn has(found: &HeaderMap, name: &str, value: &str) -> bool {
    let found = found
        .get(name)
        .map_or("", |found| found.to_str().expect("text"));
    found == value
}

#[tokio::test(flavor = "multi_thread")]
async fn and_so_do_clients_and_pods_with_a_real_envoy_between() {
    let mut worlds: BTreeMap<Kind, Vec<Golden>> = BTreeMap::new();
    for golden in golden::all() {
        worlds.entry(kind(&golden)).or_default().push(golden);
    }
    for ((_, fleet, conformance, _), all) in worlds {
        let script = Script::start().await;
        let pod = script.address;
        let (kvscout, _busy) = kvscout(pod, fleet, Tls::SelfSigned, conformance).await;
        let envoy = envoy(pod, &kvscout, &all[0]).await;
        for golden in all {
            let name = &golden.name;
            let says = golden.pod.as_ref().map(|pod| {
                let headers = pod
                    .headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {value}"));
                (
                    pod.status.clone(),
                    headers.collect(),
                    pod.chunks.clone(),
                    pod.trailers.clone(),
                )
            });
            script.says(says);
            let answer = ask(&envoy, &golden, pod).await;
            let told = format!("{name}: {answer:?}");
            assert_eq!(answer.status, golden.answer.status, "{told}");
            assert_eq!(answer.body, on_pod(&golden.answer.body, pod), "{told}");
            for (header, value) in &golden.answer.headers {
                assert!(
                    has(&answer.headers, header, &on_pod(value, pod)),
                    "{header}: {told}"
                );
            }
            for (trailer, value) in &golden.answer.trailers {
                assert!(has(&answer.trailers, trailer, value), "{trailer}: {told}");
            }
            let seen = script.seen();
            let Some(expected) = &golden.pod else {
                assert!(seen.is_none(), "{name}: no pod was to see it: {seen:?}");
                continue;
            };
            let seen = seen.unwrap_or_else(|| panic!("{name}: no pod saw it"));
            assert_eq!(seen.body, expected.body, "{name}");
            for (header, value) in &expected.sees {
                assert!(
                    has(&seen.headers, header, &on_pod(value, pod)),
                    "{header}: {name}: {seen:?}"
                );
            }
        }
        let idle = if fleet == Fleet::Saturated { 1 } else { 0 };
        harness::until("no load is left", || kvscout.requests() == idle).await;
    }
}

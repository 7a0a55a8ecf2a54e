//! kvscout as a real Envoy sees it.

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use harness::envoy::{self, Bodies, Envoy, Follow};
use harness::http::{self, Answer, full, post};
use harness::pod::{Pod, STREAM};
use harness::{Kvscout, endpoint, soon, until};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kvscout::config::{Config, Policy, Tls};
use kvscout::ext_proc::{ExtProcSettings, Rules};
use kvscout::fleet::{Fleet, Pool};
use kvscout::routes::Routes;

const BOTH: [Bodies; 2] = [Bodies::FullDuplex, Bodies::Buffered];
const SELECT: &str = "test-epp-endpoint-selection";

/// Pods, kvscout over them, Envoy before both.
struct World {
    pods: Vec<Pod>,
    kvscout: Kvscout,
    envoy: Envoy,
}

/// Tests name the endpoint they want as upstream's conformance suite does.
fn settings() -> ExtProcSettings {
    ExtProcSettings {
        rules: Arc::new(Rules {
            conformance: true,
            decision_header: true,
            ..Rules::default()
        }),
        ..ExtProcSettings::default()
    }
}

impl World {
    async fn start(bodies: Bodies, follow: Follow) -> Self {
        let (pods, addresses) = Pod::several(3).await;
        Self::over(pods, &addresses, &addresses, bodies, follow).await
    }

    /// Where Envoy and kvscout may know of different pods.
    async fn over(
        pods: Vec<Pod>,
        envoys: &[SocketAddr],
        kvscouts: &[SocketAddr],
        bodies: Bodies,
        follow: Follow,
    ) -> Self {
        let kvscout = Kvscout::start(kvscouts, Tls::SelfSigned, settings()).await;
        let envoy = Envoy::start(envoys, kvscout.address, bodies, follow).await;
        Self {
            pods,
            kvscout,
            envoy,
        }
    }

    async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = post(path).body(full(body)).expect("a request");
        http::send(self.envoy.routed, request).await
    }

    async fn post_to(&self, pod: SocketAddr, body: impl Into<Bytes>) -> Answer {
        // A client's own word on where to go must not count.
        let request = post("/v1/completions")
            .header(SELECT, pod.to_string())
            .header("x-gateway-destination-endpoint", "127.0.0.1:1");
        let request = request.body(full(body)).expect("a request");
        http::send(self.envoy.routed, request).await
    }

    async fn idle(&self) {
        until("no load is left", || self.kvscout.requests() == 0).await;
    }
}

fn megabytes(count: usize) -> Bytes {
    let bytes: Vec<u8> = (0..count << 20)
        .map(|i| ((i * 31 + i / 257) % 251) as u8)
        .collect();
    bytes.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_and_every_policy_goes_where_kvscout_says() {
    let follows = [Follow::Metadata, Follow::Header, Follow::OriginalDst];
    let modes = [
        Bodies::FullDuplex,
        Bodies::Buffered,
        Bodies::AllBuffered,
        Bodies::Unseen,
    ];
    for bodies in modes {
        for follow in follows {
            let world = World::start(bodies, follow).await;
            for _ in 0..2 {
                for pod in &world.pods {
                    let answer = world.post_to(pod.address, "{\"prompt\": \"hi\"}").await;
                    let said = format!("{bodies:?} {follow:?}: {answer:?}");
                    assert_eq!(answer.status, 200, "{said}");
                    assert_eq!(answer.header("x-pod"), pod.address.to_string(), "{said}");
                    assert_eq!(answer.body, "{\"prompt\": \"hi\"}", "{said}");
                    assert!(
                        answer.header("x-kvscout-decision").contains("pod-"),
                        "{said}"
                    );
                }
            }
            world.idle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_listener_never_asks_kvscout() {
    let world = World::start(Bodies::FullDuplex, Follow::Metadata).await;
    let request = post("/v1/completions").body(full("{}")).expect("a request");
    let answer = http::send(world.envoy.plain, request).await;
    assert_eq!(
        (answer.status, answer.header("x-kvscout-decision")),
        (200, "")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_served_pod_is_told_back_to_us() {
    let world = World::start(Bodies::FullDuplex, Follow::Metadata).await;
    let pod = world.pods[1].address;
    let answer = world.post_to(pod, "{}").await;
    assert_eq!(
        answer.header("x-conformance-test-served-endpoint"),
        pod.to_string()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_passes_chunk_by_chunk() {
    for bodies in BOTH {
        let world = World::start(bodies, Follow::Metadata).await;
        let pod = &world.pods[2];
        let request = post("/stream").header(SELECT, pod.address.to_string());
        let request = request.body(full("{\"stream\": true}")).expect("a request");
        let (response, _connection) = soon("headers", http::open(world.envoy.routed, request))
            .await
            .expect("a response");
        let mut body = response.into_body();
        // The pod says its second chunk only after the first has arrived here.
        assert_eq!(http::next(&mut body).await, STREAM[0], "{bodies:?}");
        assert_eq!(world.kvscout.requests(), 1);
        pod.release.notify_one();
        let rest = soon("the rest", body.collect())
            .await
            .expect("whole")
            .to_bytes();
        assert_eq!(rest, STREAM[1], "{bodies:?}");
        world.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_come_back_as_they_were() {
    let sent = megabytes(10);
    for bodies in BOTH {
        let world = World::start(bodies, Follow::Metadata).await;
        let answer = world.post("/v1/chat/completions", sent.clone()).await;
        assert_eq!(answer.status, 200, "{bodies:?}");
        assert!(
            answer.body == sent,
            "{bodies:?}: {} bytes",
            answer.body.len()
        );
        world.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_limit_streams_through() {
    let (pods, addresses) = Pod::several(2).await;
    let mut settings = settings();
    Arc::make_mut(&mut settings.rules).body_bytes_max = 100_000;
    let kvscout = Kvscout::start(&addresses, Tls::SelfSigned, settings).await;
    let envoy = Envoy::start(
        &addresses,
        kvscout.address,
        Bodies::FullDuplex,
        Follow::Metadata,
    )
    .await;
    let world = World {
        pods,
        kvscout,
        envoy,
    };
    let sent = megabytes(3);
    let answer = world.post("/v1/completions", sent.clone()).await;
    assert!(
        answer.status == 200 && answer.body == sent,
        "{}",
        answer.status
    );
    world.idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_frees_its_place() {
    for bodies in BOTH {
        let world = World::start(bodies, Follow::Metadata).await;
        for path in ["/hold", "/stream"] {
            let pod = &world.pods[0];
            let request = post(path).header(SELECT, pod.address.to_string());
            let request = request.body(full("{}")).expect("a request");
            let routed = world.envoy.routed;
            let client = tokio::spawn(async move {
                let opened = http::open(routed, request).await;
                let _open = opened.expect("a response");
                std::future::pending::<()>().await;
            });
            soon("the pod has it", pod.arrived.notified()).await;
            assert_eq!(world.kvscout.requests(), 1, "{bodies:?} {path}");
            client.abort();
            drop(client);
            world.idle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_are_answered_and_harm_nobody() {
    for bodies in BOTH {
        let world = World::start(bodies, Follow::Metadata).await;
        let good = world.post("/v1/completions", "{\"prompt\": \"good\"}");
        let text = post("/v1/completions").header("content-type", "text/plain");
        let long = |kib: usize| post("/v1/completions").header("x-long", "x".repeat(kib << 10));
        let odd = [
            (post("/v1/completions").body(full("{\"prompt\": ")), 200),
            (post("/v1/completions").body(full("")), 200),
            (text.body(full("hello")), 200),
            (post("/v9/unknown?a=%20").body(full("{}")), 200),
            (
                hyper::Request::get("/v1/models")
                    .header("host", "m")
                    .body(full("")),
                200,
            ),
            // Envoy's own limit is 60 KiB of headers.
            (long(59).body(full("{}")), 200),
        ];
        let asked = odd.map(|(request, status)| async move {
            let request = request.expect("a request");
            let line = format!("{} {}", request.method(), request.uri());
            (line, http::send(world.envoy.routed, request).await, status)
        });
        let (good, odd) = futures::join!(good, futures::future::join_all(asked));
        assert_eq!(
            (good.status, &good.body[..]),
            (200, &b"{\"prompt\": \"good\"}"[..])
        );
        for (line, answer, status) in odd {
            assert_eq!(answer.status, status, "{bodies:?} {line}: {answer:?}");
        }
        world.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_trailers_end_a_body() {
    for bodies in [Bodies::FullDuplexOnce, Bodies::Buffered] {
        let world = World::start(bodies, Follow::Metadata).await;
        let mut trailers = hyper::HeaderMap::new();
        trailers.insert("x-checksum", "7".parse().expect("a value"));
        let frames = ["{\"prompt\":", "\"hi\"}"].map(|text| Frame::data(Bytes::from(text)));
        let frames = frames.into_iter().chain([Frame::trailers(trailers)]);
        let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames).map(Ok)));
        let uri = format!("http://{}/v1/completions", world.envoy.routed);
        let request = hyper::Request::post(uri).body(body).expect("a request");
        let answer = http::send_h2(world.envoy.routed, request).await;
        assert_eq!(answer.status, 200, "{bodies:?} {answer:?}");
        assert_eq!(answer.body, "{\"prompt\":\"hi\"}", "{bodies:?}");
        world.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_vanished_costs_a_second_try_or_a_503_where_envoy_has_no_list() {
    for (follow, status) in [(Follow::Metadata, 200), (Follow::OriginalDst, 503)] {
        let (pods, mut addresses) = Pod::several(2).await;
        let gone = Pod::start().await.address;
        addresses.push(gone);
        let world = World::over(pods, &addresses, &addresses, Bodies::FullDuplex, follow).await;
        // Once would be luck: the second try is by least request.
        for _ in 0..10 {
            assert_eq!(world.post_to(gone, "{}").await.status, status, "{follow:?}");
        }
        let answer = world.post_to(gone, "{}").await;
        if status == 200 {
            let served = answer.header("x-conformance-test-served-endpoint");
            assert_eq!(
                served,
                answer.header("x-pod"),
                "the one that served is told"
            );
            assert_ne!(served, gone.to_string());
        }
        let pod = world.pods[0].address;
        assert_eq!(world.post_to(pod, "{}").await.status, 200, "{follow:?}");
        world.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_says_where_the_second_try_goes() {
    let (pods, mut addresses) = Pod::several(3).await;
    let gone = Pod::start().await.address;
    addresses.push(gone);
    let policy = Policy {
        fallbacks: 1,
        ..Config::default().policy
    };
    let (tls, routes) = (Tls::SelfSigned, Routes::default());
    let kvscout = Kvscout::ruled(&addresses, tls, settings(), routes, policy).await;
    let (bodies, follow) = (Bodies::FullDuplex, Follow::Metadata);
    let envoy = Envoy::start(&addresses, kvscout.address, bodies, follow).await;
    let second = pods[1].address.to_string();
    let mut gone_came_first = false;
    for _ in 0..100 {
        let request = post("/v1/completions").header(SELECT, format!("{gone},{second}"));
        let answer = http::send(envoy.routed, request.body(full("{}")).expect("a request")).await;
        // Least request alone would often have said another one.
        assert_eq!((answer.status, answer.header("x-pod")), (200, &second[..]));
        gone_came_first = answer
            .header("x-kvscout-decision")
            .contains("endpoint=pod-3;");
        if gone_came_first {
            break;
        }
    }
    assert!(gone_came_first, "one time in two");
}

/// Istio names its clusters so, and Envoy says a cluster's name as `:authority`; no such one is allowed.
fn as_istio_names(cluster: &str) -> String {
    format!("\"outbound|9002||{cluster}.llm.svc.cluster.local\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_that_envoy_asks_at_says_the_pool_and_its_metadata_before_it() {
    let (pods, addresses) = Pod::several(3).await;
    let endpoints: Vec<_> = addresses.iter().enumerate().map(endpoint).collect();
    let pool = |n: usize| Pool {
        name: format!("pool-{n}").into(),
        namespace: "llm".into(),
        services: vec![format!("epp-{n}")],
        fleet: Arc::new(Fleet::of(vec![endpoints[n].clone()])),
    };
    let fleet = Fleet::of(endpoints.clone()).with_pools((0..3).map(pool).collect());
    let says = (Routes::default(), Config::default().policy);
    let ask = "envoy_grpc: {cluster_name: kvscout}\n";
    for tls in [Tls::SelfSigned, Tls::Off] {
        let kvscout = Kvscout::of(fleet.clone(), tls.clone(), settings(), says.clone()).await;
        let example = envoy::configured(
            &addresses,
            kvscout.address,
            Bodies::FullDuplex,
            Follow::Metadata,
        );
        let example = match tls {
            Tls::Off => envoy::without_tls(&example),
            _ => example,
        };
        for (service, metadata, pod) in [(1, None, 1), (2, None, 2), (2, Some("llm/pool-0"), 0)] {
            let name = as_istio_names(&format!("epp-{service}"));
            let metadata = metadata.map(|pool| format!("{{key: x-kvscout-pool, value: {pool}}}"));
            let metadata = metadata.unwrap_or_default();
            let asked = format!(
                "envoy_grpc: {{cluster_name: {name}}}\n                        initial_metadata: [{metadata}]\n"
            );
            let config = envoy::swap(&example, ask, &asked);
            let config = envoy::swap(&config, "- name: kvscout\n", &format!("- name: {name}\n"));
            let gateway = Envoy::run(&config).await;
            // More than one for each connection: what a name refers to later was said once.
            for _ in 0..4 {
                let request = post("/v1/completions").body(full("{}")).expect("a request");
                let answer = http::send(gateway.routed, request).await;
                let address = pods[pod].address.to_string();
                let said = format!("{tls:?} {service}: {answer:?}");
                assert_eq!(
                    (answer.status, answer.header("x-pod")),
                    (200, &*address),
                    "{said}"
                );
            }
        }
    }
}

/// A filter that asks nobody, and on the pool's route whom to ask, at its cluster's name.
#[tokio::test(flavor = "multi_thread")]
async fn what_istio_makes_of_a_pools_route_goes_where_kvscout_says() {
    let (pods, addresses) = Pod::several(2).await;
    let kvscout = Kvscout::start(&addresses, Tls::SelfSigned, settings()).await;
    let (bodies, follow) = (Bodies::FullDuplex, Follow::Metadata);
    let example = envoy::configured(&addresses, kvscout.address, bodies, follow);
    let gateway = Envoy::run(&envoy::as_istio(&example, &as_istio_names("kvscout"))).await;
    for (pod, body) in pods.iter().zip([Bytes::from("{}"), megabytes(2)]) {
        let address = pod.address.to_string();
        let request = post("/v1/completions").header(SELECT, &address);
        let request = request.body(full(body.clone())).expect("a request");
        let answer = http::send(gateway.routed, request).await;
        assert_eq!((answer.status, answer.header("x-pod")), (200, &*address));
        assert!(
            answer.body == body,
            "{} bytes of {}",
            answer.body.len(),
            body.len()
        );
        let served = answer.header("x-conformance-test-served-endpoint");
        assert_eq!(served, address, "who served is told back");
    }
    let get = http::get(gateway.routed, "/v1/models").await;
    assert_eq!(get.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_endpoints_the_answer_is_503_with_its_reason() {
    for bodies in BOTH {
        let (pods, addresses) = Pod::several(1).await;
        let world = World::over(pods, &addresses, &[], bodies, Follow::Metadata).await;
        let get = http::get(world.envoy.routed, "/v1/models").await;
        for answer in [world.post("/v1/completions", "{}").await, get] {
            assert_eq!(answer.status, 503, "{bodies:?}");
            let reason = answer.header("x-llm-d-request-dropped-reason");
            assert_eq!(reason, "rejected-no-endpoints");
            assert_eq!(answer.json()["error"]["code"], "no_endpoint");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subset_that_nobody_is_in_is_a_503() {
    let world = World::start(Bodies::FullDuplex, Follow::Metadata).await;
    let nobody = "10.9.9.9:1".parse().expect("an address");
    let answer = world.post_to(nobody, "{}").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.header("x-llm-d-request-dropped-reason"),
        "rejected-no-endpoints"
    );
}

/// Envoy fails open where it still has the whole request: without a body, or buffered. In full
/// duplex it keeps no body, and answers 500 whatever `failure_mode_allow` says.
#[tokio::test(flavor = "multi_thread")]
async fn without_kvscout_envoy_serves_what_it_still_has() {
    for (bodies, post) in [(Bodies::FullDuplex, 500), (Bodies::Buffered, 200)] {
        let mut world = World::start(bodies, Follow::Metadata).await;
        let server = world.kvscout.shut_down();
        soon("kvscout ends", server).await.expect("ended well");
        let get = http::get(world.envoy.routed, "/v1/models").await;
        assert_eq!(get.status, 200, "{bodies:?}");
        let answer = world.post("/v1/completions", "{}").await;
        assert_eq!(answer.status, post, "{bodies:?}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_lets_an_exchange_finish() {
    let mut world = World::start(Bodies::FullDuplex, Follow::Metadata).await;
    let release = world.pods[0].release.clone();
    let request = post("/stream").header(SELECT, world.pods[0].address.to_string());
    let request = request.body(full("{}")).expect("a request");
    let (response, _connection) = soon("headers", http::open(world.envoy.routed, request))
        .await
        .expect("a response");
    let mut body = response.into_body();
    assert_eq!(http::next(&mut body).await, STREAM[0]);
    let server = world.kvscout.shut_down();
    release.notify_one();
    let rest = soon("the rest", body.collect())
        .await
        .expect("whole")
        .to_bytes();
    assert_eq!(rest, STREAM[1]);
    soon("kvscout ends", server).await.expect("ended well");
}

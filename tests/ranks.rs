//! A pod of several data-parallel ranks behind one address, as Envoy's end sees the picker place.

mod harness;

use std::net::SocketAddr;
use std::time::Duration;

use harness::exchange::{Exchange, body, channel, headers};
use harness::http::{self, full, post};
use harness::process::{ANY_PORT, Served, write};
use harness::{soon, tokenizer};
use kvscout::proto::ext_proc::processing_response::Response as Reply;
use kvscout_sim::events::{EventConfig, Layout};
use kvscout_sim::server::{self, Server};
use kvscout_sim::timing::Timing;
use serde_json::{Value, json};

/// A pod of two ranks, with rank 0's sockets at these ports.
async fn pod([events, replay]: [u16; 2]) -> anyhow::Result<server::Bound> {
    let pod = Server::start(server::Config {
        timing: Timing::INSTANT,
        data_parallel_size: 2,
        events: Some(EventConfig {
            endpoint: format!("tcp://*:{events}"),
            replay_endpoint: Some(format!("tcp://*:{replay}")),
            topic: None,
            layout: Layout::Map,
            rank: 0,
        }),
        ..server::Config::default()
    });
    pod.await
}

/// The same at ports that are free, and so are the next ones.
async fn pod_at_neighbours() -> (server::Bound, [u16; 2]) {
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0");
        let address = listener.and_then(|listener| listener.local_addr());
        address.expect("a free port").port()
    };
    soon("neighbouring ports are free", async {
        loop {
            let ports = [free(), free()];
            if let Ok(pod) = pod(ports).await {
                return (pod, ports);
            }
        }
    })
    .await
}

/// What the pod says of a request, sent with these headers.
async fn sent(pod: SocketAddr, conversation: u32, set: &[(String, String)]) -> Value {
    let mut request = post("/v1/completions");
    for (name, value) in set {
        request = request.header(name, value);
    }
    let request = request.body(full(completion(conversation)));
    let answer = http::send(pod, request.expect("a request")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn completion(conversation: u32) -> String {
    let tokens: Vec<u32> = (0..100).map(|at| 1 + conversation * 1000 + at).collect();
    json!({"model": "sim", "prompt": tokens, "max_tokens": 2}).to_string()
}

/// The headers that the picker sets on a request.
async fn placed(ext_proc: SocketAddr, conversation: u32) -> Vec<(String, String)> {
    let mut exchange = Exchange::open(channel(ext_proc).await).await;
    exchange.say(headers("/v1/completions", false)).await;
    exchange.say(body(completion(conversation), true)).await;
    let Reply::RequestHeaders(reply) = exchange.hear().await else {
        panic!("not headers");
    };
    let mutation = reply.response.and_then(|common| common.header_mutation);
    let set = mutation.expect("a mutation").set_headers.into_iter();
    set.map(|one| one.header.expect("a header"))
        .map(|one| {
            let value = String::from_utf8(one.raw_value.to_vec());
            (one.key, value.expect("text"))
        })
        .collect()
}

async fn live(admin: SocketAddr, names: &[&str]) -> Value {
    soon("all are live", async {
        loop {
            let all = http::get(admin, "/endpoints").await.json();
            let is = |(at, name): (usize, &&str)| {
                all[at]["name"] == **name
                    && all[at]["trust"] == "live"
                    && all[at]["blocks"].as_u64() > Some(0)
            };
            if names.iter().enumerate().all(is) {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_to_the_rank_that_holds_its_prefix() {
    let server = pod([0, 0]).await.expect("free ports");
    goes_where_its_prefix_is(&server, "events: discover").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_is_heard_at_the_next_port() {
    let (server, [events, replay]) = pod_at_neighbours().await;
    let keys = format!("events: 'tcp://127.0.0.1:{events}', replay: 'tcp://127.0.0.1:{replay}'");
    goes_where_its_prefix_is(&server, &keys).await;
}

async fn goes_where_its_prefix_is(server: &server::Bound, keys: &str) {
    let pod = server.addresses.http;
    for (conversation, rank) in [(0, "0"), (1, "1")] {
        let header = ("x-data-parallel-rank".to_owned(), rank.to_owned());
        sent(pod, conversation, &[header]).await;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let fleet =
        format!("endpoints: [{{name: pod, address: '{pod}', data_parallel_size: 2, {keys}}}]");
    let fleet = write(folder.path(), "fleet.yaml", &fleet);
    let config = write(folder.path(), "kvscout.yaml", ANY_PORT);
    let model = format!("sim={}", tokenizer().display());
    let flags = [
        "--config",
        &config,
        "--fleet",
        &fleet,
        "--model",
        &model,
        "--plaintext",
    ];
    let served = Served::start(&flags);
    let (ext_proc, admin) = served.addresses();
    live(admin, &["pod/0", "pod/1"]).await;
    soon("the model is loaded", async {
        while http::get(admin, "/readyz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    for (conversation, rank) in [(0, "0"), (1, "1"), (0, "0")] {
        let set = placed(ext_proc, conversation).await;
        let wanted = [
            ("x-gateway-destination-endpoint", pod.to_string()),
            ("x-data-parallel-rank", rank.to_owned()),
        ];
        let wanted = wanted.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(set, wanted);
        // The rank that has the header's number is the one whose events were heard.
        let usage = &sent(pod, conversation, &set).await["usage"];
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 96);
    }
}

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

/// Two ranks, each an engine with sockets of its own, at a port + rank; and rank 0's two ports.
async fn ranks() -> ([server::Bound; 2], [u16; 2]) {
    let sockets = |events: u16, replay: u16, rank: u32| server::Config {
        timing: Timing::INSTANT,
        events: Some(EventConfig {
            endpoint: format!("tcp://127.0.0.1:{events}"),
            replay_endpoint: Some(format!("tcp://127.0.0.1:{replay}")),
            topic: None,
            layout: Layout::Map,
            rank,
        }),
        ..server::Config::default()
    };
    let port = |socket: &str| -> u16 {
        let port = socket.rsplit(':').next().expect("a port");
        port.parse().expect("a port")
    };
    soon("neighbouring ports are free", async {
        loop {
            let first = Server::start(sockets(0, 0, 0)).await.expect("free ports");
            let at = first.addresses.events.clone().expect("events are on");
            let replay = at.replay_endpoint.expect("replay is on");
            let at = [port(&at.endpoint), port(&replay)];
            let second = Server::start(sockets(at[0] + 1, at[1] + 1, 1)).await;
            if let Ok(second) = second {
                return ([first, second], at);
            }
        }
    })
    .await
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
    let (engines, [events, replay]) = ranks().await;
    // Each engine has an HTTP port here; for Envoy there is one.
    let pod = engines[0].addresses.http;
    for (conversation, engine) in (0..).zip(&engines) {
        let request = post("/v1/completions").body(full(completion(conversation)));
        let answer = http::send(engine.addresses.http, request.expect("a request")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = format!(
        "endpoints: [{{name: pod, address: '{pod}', data_parallel_size: 2, \
         events: 'tcp://127.0.0.1:{events}', replay: 'tcp://127.0.0.1:{replay}'}}]"
    );
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
    }
}

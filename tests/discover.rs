//! Publishers that are where their server says: `GET /kv_event_sources`, asked of simulated servers
//! and of peers that are none.

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use harness::http::{self, full, post};
use harness::{soon, until};
use kvscout::events::listen::{Listeners, Way};
use kvscout::events::zmq::Limits;
use kvscout::fleet::{Endpoint, EndpointId, EventAddress, Fleet, Publisher, Trust};
use kvscout::index::Index;
use kvscout_sim::events::{EventConfig, Layout};
use kvscout_sim::server::{self, Server};
use kvscout_sim::timing::Timing;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// One endpoint whose publisher is discovered, and what is known of it.
struct Ears {
    endpoint: Arc<Endpoint>,
    index: Arc<Index>,
    listening: JoinHandle<()>,
    _fleet: watch::Sender<Arc<Fleet>>,
}

impl Ears {
    fn open(address: SocketAddr, rank: Option<u32>) -> Self {
        let events = EventAddress {
            publisher: Publisher::Discovered,
            replay: None,
        };
        let endpoint = Endpoint::new(EndpointId(0), "pod".into(), address, Some(events));
        let endpoint = Arc::new(match rank {
            Some(rank) => endpoint.of_rank(rank),
            None => endpoint,
        });
        let endpoints = vec![endpoint.clone()];
        let (sender, fleet) = watch::channel(Arc::new(Fleet::of(endpoints)));
        let index = Arc::new(Index::default());
        let way = Way::Zmq {
            topic: String::new(),
            limits: Limits {
                backoff_max: Duration::from_millis(200),
                ..Limits::default()
            },
            acceptor: None,
        };
        let listeners = Listeners::new(fleet, index.clone(), way);
        Self {
            endpoint,
            index,
            listening: tokio::spawn(listeners.run()),
            _fleet: sender,
        }
    }

    /// Waits until what is believed is complete, and as many blocks as the server holds.
    async fn knows(&self, what: &str, pod: &server::Bound) {
        let held = http::get(pod.addresses.http, "/sim/blocks").await.json();
        let held = held.as_object().expect("copies by hash").len();
        assert!(held > 0, "{what}");
        until(what, || {
            self.endpoint.trust() == Trust::Live && self.index.blocks_of(self.endpoint.id) == held
        })
        .await;
    }

    async fn silent(&self, part: &str) -> String {
        until(part, || {
            let trust = self.endpoint.trust_since();
            trust.trust == Trust::Silent && trust.reason.contains(part)
        })
        .await;
        self.endpoint.trust_since().reason
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// A server whose sockets are anywhere, or at given ones.
async fn pod(http: &str, events: [&str; 2], rank: u32) -> anyhow::Result<server::Bound> {
    Server::start(server::Config {
        listen: http.to_owned(),
        timing: Timing::INSTANT,
        events: Some(EventConfig {
            endpoint: events[0].to_owned(),
            replay_endpoint: Some(events[1].to_owned()),
            topic: None,
            layout: Layout::Map,
            rank,
        }),
        ..server::Config::default()
    })
    .await
}

const ANY: [&str; 2] = ["tcp://*:0", "tcp://*:0"];

/// Some prompts, each a batch or more.
async fn ask(pod: &server::Bound, prompts: std::ops::Range<u32>) {
    for number in prompts {
        let tokens: Vec<u32> = (0..40).map(|at| 1 + number * 100 + at).collect();
        let body = json!({"model": "sim", "prompt": tokens, "max_tokens": 2}).to_string();
        let request = post("/v1/completions").body(full(body)).expect("a request");
        let answer = http::send(pod.addresses.http, request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Starts once the ports of one that ended are free.
async fn again(http: &str, events: [&str; 2]) -> server::Bound {
    soon("the ports are free again", async {
        loop {
            if let Ok(pod) = pod(http, events, 0).await {
                return pod;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_found_again_after_restarts_with_and_without_a_change_of_ports() {
    let first = pod("127.0.0.1:0", ANY, 0).await.expect("it starts");
    ask(&first, 0..5).await;
    let at = first.addresses.clone();
    let ears = Ears::open(at.http, None);
    ears.knows("what came before, by the replay that is discovered", &first)
        .await;
    ask(&first, 5..8).await;
    ears.knows("what comes", &first).await;
    first.shutdown().await;
    ears.silent("GET http://").await;

    let second = again(&at.http.to_string(), ANY).await;
    let (before, now) = (&at.events, &second.addresses.events);
    assert_ne!(before, now, "it has other ports");
    ask(&second, 10..13).await;
    ears.knows("the second", &second).await;
    let events = second.addresses.events.clone().expect("events are on");
    second.shutdown().await;
    ears.silent("GET http://").await;

    let replay = events.replay_endpoint.expect("replay is on");
    let third = again(&at.http.to_string(), [&events.endpoint, &replay]).await;
    ask(&third, 20..22).await;
    ears.knows("the third", &third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_asks_for_its_own_sockets() {
    let pod = pod("127.0.0.1:0", ANY, 3).await.expect("it starts");
    ask(&pod, 0..3).await;
    let third = Ears::open(pod.addresses.http, Some(3));
    third.knows("rank 3", &pod).await;
    let first = Ears::open(pod.addresses.http, Some(0));
    let reason = first.silent("no rank 0 among 3").await;
    assert!(reason.contains("data_parallel_size"), "{reason}");
}

/// A server that gives everyone this answer.
async fn answering(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 1024];
                // Whoever hangs up needs no answer.
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&answer).await;
                // Until the other side has enough.
                let _ = stream.read(&mut request).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_say_is_silent_with_the_question_and_the_fix() {
    let old = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    let endless = [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n"[..],
        &[b' '; 1 << 20],
    ]
    .concat();
    let elsewhere =
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    for (answer, part) in [
        (old.into(), "404 Not Found; vLLM answers from 0.31 on"),
        (endless, "more than 262144 bytes"),
        (elsewhere.into(), "302 Found"),
        (b"SSH-2.0\r\n".to_vec(), "does vLLM serve plain HTTP there"),
        (Vec::new(), "no answer within 3s"),
    ] {
        let address = answering(answer).await;
        let ears = Ears::open(address, None);
        let reason = ears.silent(part).await;
        let url = format!("GET http://{address}/kv_event_sources");
        assert!(reason.contains(&url), "{reason}");
    }
}

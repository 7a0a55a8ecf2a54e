//! A rolling restart of two pickers under load, through a real Envoy: nobody loses a request.

mod harness;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use harness::envoy::{Bodies, Envoy};
use harness::http::{self, full, post};
use harness::pair::{self, Ports, seen};
use harness::pod::{Pod, STREAM};
use harness::process::write;
use harness::{PATIENCE, soon};
use http_body_util::BodyExt;
use tokio::task::JoinHandle;

/// What pickers give it to see that they end: an interval, and the second in which Envoy gathers changes of
/// health before it obeys them (`update_merge_window`). With half a second every second run lost requests.
const NOTICE_MS: u32 = 1_500;
const CLIENTS: usize = 8;

/// Clients that ask again and again, and what became of it.
struct Load {
    served: Arc<AtomicUsize>,
    enough: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(to: SocketAddr) -> Self {
        let (served, enough) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let client = |_| {
            let (served, enough) = (served.clone(), enough.clone());
            tokio::spawn(async move {
                while !enough.load(Ordering::Relaxed) {
                    let request = post("/v1/completions").body(full("{\"prompt\": \"hi\"}"));
                    let answer = http::send(to, request.expect("a request")).await;
                    let placed = answer.header("x-kvscout-decision");
                    assert!(answer.status == 200 && !placed.is_empty(), "{answer:?}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self {
            served,
            enough,
            clients,
        }
    }

    /// So many more have been served.
    async fn goes_on(&self) {
        let enough = self.served.load(Ordering::Relaxed) + 20 * CLIENTS;
        let served = || self.served.load(Ordering::Relaxed) >= enough || self.failed();
        harness::until("requests are served", served).await;
    }

    fn failed(&self) -> bool {
        self.clients.iter().any(JoinHandle::is_finished)
    }

    /// No client has seen a failure; how many requests that were.
    async fn end(self) -> usize {
        self.enough.store(true, Ordering::Relaxed);
        for client in self.clients {
            soon("a client ends", client)
                .await
                .expect("no request is lost");
        }
        self.served.load(Ordering::Relaxed)
    }
}

/// An answer that has begun and not ended.
async fn stream(to: SocketAddr) -> hyper::body::Incoming {
    let request = post("/stream").body(full("{}")).expect("a request");
    let (response, connection) = soon("headers", http::open(to, request))
        .await
        .expect("a response");
    // It ends with the answer.
    drop(connection);
    let mut body = response.into_body();
    assert_eq!(http::next(&mut body).await, STREAM[0]);
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_request() {
    let (pods, addresses) = Pod::several(2).await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = configured(folder.path(), &addresses);
    let pickers = [Ports::free(), Ports::free()];
    let mut running = pickers.map(|ports| ports.serve(&config));
    let envoy = Envoy::run(&pair::configured(&addresses, &pickers, Bodies::FullDuplex)).await;
    for picker in pickers {
        seen(&envoy, picker, true).await;
    }
    let load = Load::start(envoy.routed);
    for (picker, served) in pickers.into_iter().zip(&mut running) {
        load.goes_on().await;
        // Answers of both pickers that take longer than the rest of its life.
        let mut streams = Vec::new();
        for _ in 0..CLIENTS {
            streams.push(stream(envoy.routed).await);
        }
        served.terminate();
        served.line("draining");
        seen(&envoy, picker, false).await;
        load.goes_on().await;
        served.line("no new streams");
        release(&pods, streams).await;
        let status = served.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(0));
        load.goes_on().await;
        *served = picker.serve(&config);
        seen(&envoy, picker, true).await;
    }
    load.goes_on().await;
    let served = load.end().await;
    assert!(served > 6 * 20 * CLIENTS, "{served}");
}

/// Every answer that has begun comes to its end.
async fn release(pods: &[Pod], streams: Vec<hyper::body::Incoming>) {
    let rests = streams.into_iter().map(|body| async {
        let rest = body.collect().await.expect("whole").to_bytes();
        assert_eq!(rest, Bytes::from(STREAM[1]));
    });
    let mut rests = Box::pin(futures::future::join_all(rests));
    // A word that nobody waits for is kept once: it is said until all have heard it.
    let mut tick = tokio::time::interval(PATIENCE / 1000);
    soon("the rest", async {
        loop {
            tokio::select! {
                _ = &mut rests => return,
                _ = tick.tick() => pods.iter().for_each(|pod| pod.release.notify_waiters()),
            }
        }
    })
    .await;
}

fn configured(folder: &Path, pods: &[SocketAddr]) -> String {
    let lines = pods.iter().map(|at| format!("  - {{address: \"{at}\"}}\n"));
    write(
        folder,
        "fleet.yaml",
        &format!("endpoints:\n{}", lines.collect::<String>()),
    );
    let text = format!(
        "listen: {{admin: '127.0.0.1:0'}}\nlimits: {{drain_notice_ms: {NOTICE_MS}}}\n\
         replies: {{decision_header: true}}\nload: {{scrape_interval_ms: 0}}\n"
    );
    write(folder, "kvscout.yaml", &text)
}

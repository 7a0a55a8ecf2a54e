//! What servers say of their own load, read by the process itself: traffic that goes past kvscout
//! counts where it goes, and a server that says nothing, or nonsense, changes nothing.

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use harness::exchange::{Exchange, channel, headers};
use harness::http::{self, Answer};
use harness::running::Running;
use harness::{PATIENCE, soon, until};
use kvscout::config::{self, Config, Tls};
use kvscout::fleet::report::Page;
use kvscout::fleet::scrape::Scraper;
use kvscout::fleet::{Endpoint, EndpointId, Fleet};
use kvscout_sim::engine::EngineConfig;
use kvscout_sim::server::{self, Server};
use kvscout_sim::timing::Timing;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

const INTERVAL_MS: u64 = 50;

/// kvscout as the process runs it, before servers that publish nothing: load decides.
struct Picker {
    kvscout: Running,
    channel: Channel,
}

impl Picker {
    async fn start(fleet: &str) -> Self {
        let mut config = Config {
            tls: Tls::Off,
            ..Config::default()
        };
        config.load.scrape_interval_ms = INTERVAL_MS;
        let kvscout = Running::over(&format!("endpoints:\n{fleet}"), config).await;
        Self {
            channel: channel(kvscout.bound.ext_proc).await,
            kvscout,
        }
    }

    async fn metrics(&self) -> String {
        text(&http::get(self.kvscout.bound.admin, "/metrics").await)
    }

    /// Waits for a line of the metrics.
    async fn says(&self, line: &str) {
        let said = async {
            while !says(&self.metrics().await, line) {
                tokio::time::sleep(PATIENCE / 1000).await;
            }
        };
        soon(line, said).await;
    }

    /// Where a request is sent. It ends at once.
    async fn pick(&self) -> SocketAddr {
        let mut exchange = Exchange::open(self.channel.clone()).await;
        let picked = exchange.picked().await;
        picked.parse().expect("an address")
    }

    /// How many of so many requests go where.
    async fn picks(&self, requests: usize) -> BTreeMap<SocketAddr, usize> {
        let mut picks = BTreeMap::new();
        for _ in 0..requests {
            *picks.entry(self.pick().await).or_default() += 1;
        }
        picks
    }

    async fn shut_down(self) {
        self.kvscout.shut_down().await;
    }
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// Whether a page has a line that starts so.
fn says(page: &str, line: &str) -> bool {
    page.lines().any(|one| one.starts_with(line))
}

fn line(name: &str, address: SocketAddr) -> String {
    format!("  - {{name: {name}, address: \"{address}\"}}\n")
}

/// A server of two places, whose answers take as long as the test does.
async fn slow_pod() -> server::Bound {
    let config = server::Config {
        engine: EngineConfig {
            max_num_seqs: 2,
            ..EngineConfig::default()
        },
        timing: Timing {
            decode_rate: 1.0,
            ..Timing::default()
        },
        ..server::Config::default()
    };
    Server::start(config).await.expect("it starts")
}

/// A request that goes past kvscout, until it is dropped: its prompt is like no other.
fn past(to: SocketAddr, number: usize) -> JoinHandle<()> {
    tokio::spawn(async move {
        let prompt = format!("{number}{}", " word".repeat(1_000));
        let body = json!({"model": "sim", "prompt": prompt, "max_tokens": 4_000});
        let request = http::post("/v1/completions").body(http::full(body.to_string()));
        let (_response, connection) = http::open(to, request.expect("a request"))
            .await
            .expect("an answer begins");
        // Its failure is the test's end.
        let _ = connection.await;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_that_goes_past_kvscout_makes_it_choose_another() {
    let (busy, idle) = (slow_pod().await, slow_pod().await);
    let (one, two) = (busy.addresses.http, idle.addresses.http);
    let picker = Picker::start(&(line("busy", one) + &line("idle", two))).await;
    for name in ["busy", "idle"] {
        let said = format!("kvscout_endpoint_outside_requests{{endpoint=\"{name}\"}} 0");
        picker.says(&said).await;
    }
    let before = picker.picks(40).await;
    assert_eq!(before.len(), 2, "equals share: {before:?}");

    let strangers: Vec<_> = (0..9).map(|number| past(one, number)).collect();
    for said in [
        "kvscout_endpoint_outside_requests{endpoint=\"busy\"} 9",
        "kvscout_endpoint_reported_requests{endpoint=\"busy\",state=\"running\"} 2",
        "kvscout_endpoint_reported_requests{endpoint=\"busy\",state=\"waiting\"} 7",
        "kvscout_endpoint_saturated{endpoint=\"busy\"} 1",
        "kvscout_endpoint_saturated{endpoint=\"idle\"} 0",
    ] {
        picker.says(said).await;
    }
    // Two are prefilled; the seven others, as long, will cost what these did.
    let prefilled = soon("two are prefilled", async {
        loop {
            let page = Page::read(&text(&http::get(one, "/metrics").await));
            let prefilled = page.of(None).expect("vLLM's").prefilled;
            match prefilled.expect("counted") {
                both if both.requests == 2.0 => return both.tokens,
                _ => tokio::time::sleep(PATIENCE / 1000).await,
            }
        }
    })
    .await;
    let tokens = 7.0 * prefilled / 2.0;
    assert!(tokens > 7.0 * 500.0, "{tokens}");
    picker
        .says(&format!(
            "kvscout_endpoint_outside_tokens{{endpoint=\"busy\"}} {tokens}"
        ))
        .await;
    let during = picker.picks(40).await;
    assert_eq!(during, BTreeMap::from([(two, 40)]));

    strangers.iter().for_each(JoinHandle::abort);
    picker
        .says("kvscout_endpoint_outside_requests{endpoint=\"busy\"} 0")
        .await;
    let after = picker.picks(40).await;
    assert_eq!(after.len(), 2, "{after:?}");
    picker.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kvscout_placed_is_not_counted_twice() {
    let pod = slow_pod().await;
    let address = pod.addresses.http;
    let picker = Picker::start(&line("pod", address)).await;
    // As Envoy does: kvscout is asked, and then the pod.
    let mut ours = Vec::new();
    for number in 0..3 {
        let mut exchange = Exchange::open(picker.channel.clone()).await;
        exchange.say(headers("/v1/completions", true)).await;
        exchange.hear().await;
        ours.push((exchange, past(address, number)));
    }
    // From the first request on until the server has told of all three, none is a stranger's.
    let third = "kvscout_endpoint_reported_requests{endpoint=\"pod\",state=\"waiting\"} 1";
    soon("the third waits", async {
        loop {
            let page = picker.metrics().await;
            let outside = "kvscout_endpoint_outside_requests{endpoint=\"pod\"} ";
            assert!(
                !says(&page, outside) || says(&page, &format!("{outside}0")),
                "{page}"
            );
            if says(&page, third) {
                return;
            }
        }
    })
    .await;
    let stranger = past(address, 3);
    picker
        .says("kvscout_endpoint_outside_requests{endpoint=\"pod\"} 1")
        .await;
    stranger.abort();
    ours.iter().for_each(|(_, request)| request.abort());
    drop(ours);
    picker.shut_down().await;
}

/// A server that has nothing but a page, or what it gives for one.
async fn page(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        axum::serve(listener, router).await.expect("it serves");
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_or_nonsense_is_counted_and_changes_nothing() {
    let garbage = "vllm:num_requests_running{engine=\"0} ¿\u{0}\n";
    let pages = [
        ("late", get(std::future::pending::<String>)),
        ("not_vllm", get(move || async move { garbage })),
        ("too_long", get(|| async { "x".repeat(5 << 20) })),
        (
            "status",
            get(|| async { axum::http::StatusCode::NOT_FOUND }),
        ),
    ];
    let mut fleet = String::new();
    for (reason, handler) in pages {
        let address = page(Router::new().route("/metrics", handler)).await;
        fleet += &line(reason, address);
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    fleet += &line("unreachable", nobody.local_addr().expect("bound"));
    drop(nobody);
    let picker = Picker::start(&fleet).await;
    for reason in ["late", "not_vllm", "too_long", "status", "unreachable"] {
        let labels = format!("endpoint=\"{reason}\",reason=\"{reason}\"");
        picker
            .says(&format!("kvscout_scrape_failures_total{{{labels}}} "))
            .await;
    }
    let metrics = picker.metrics().await;
    for family in ["outside_requests{", "report_age_seconds{", "saturated{"] {
        assert!(!metrics.contains(family), "nothing was said: {metrics}");
    }
    let picks = picker.picks(200).await;
    assert_eq!(picks.len(), 5, "all are equals: {picks:?}");
    picker.shut_down().await;
}

/// What three hundred fake servers see. They listen on one port, and are known by their address.
#[derive(Default)]
struct Seen {
    at_once: AtomicUsize,
    at_once_max: AtomicUsize,
    requests: AtomicUsize,
    /// Connections, by our end of each.
    peers: Mutex<BTreeSet<SocketAddr>>,
}

/// One question, for as long as it is open.
struct Open(Arc<Seen>);

impl Open {
    fn new(seen: &Arc<Seen>, peer: SocketAddr) -> Self {
        let at_once = seen.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        seen.at_once_max.fetch_max(at_once, Ordering::SeqCst);
        seen.peers.lock().insert(peer);
        Self(seen.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.requests.fetch_add(1, Ordering::SeqCst);
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_hundred_servers_few_are_read_at_once_each_by_a_connection_that_stays() {
    const SERVERS: usize = 300;
    let (seen, released) = (Arc::new(Seen::default()), Arc::new(Semaphore::new(0)));
    let handler = {
        let (seen, released) = (seen.clone(), released.clone());
        move |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move {
            let _open = Open::new(&seen, peer);
            let _released = released.acquire().await;
            "vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_waiting{engine=\"0\"} 0\n"
        }
    };
    // Every address of 127.0.0.0/8 is this machine.
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let router = Router::new().route("/metrics", get(handler));
    let serving = tokio::spawn(async move {
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, service).await.expect("it serves");
    });
    let endpoint = |number: usize| {
        let (high, low) = ((number / 250) as u8, (number % 250) as u8);
        let address = SocketAddr::from(([127, 1, high, 1 + low], port));
        let id = EndpointId(number as u32);
        Arc::new(Endpoint::new(id, format!("pod-{number}"), address, None))
    };
    let endpoints: Vec<_> = (0..SERVERS).map(endpoint).collect();
    let (fleet, receiver) = watch::channel(Arc::new(Fleet::of(endpoints.clone())));
    let scraper = Scraper {
        fleet: receiver,
        settings: config::Load::default(),
        metrics: Arc::default(),
        told: Arc::new(|| ()),
    };
    let scraping = tokio::spawn(scraper.run());
    let at_once_max = || seen.at_once_max.load(Ordering::SeqCst);
    // Nobody is answered: the lane fills.
    until("24 are read at once", || at_once_max() >= 24).await;
    released.add_permits(SERVERS);
    until("all have been read", || {
        let now = std::time::Instant::now();
        let mut reports = endpoints.iter().map(|one| one.load.report(now));
        reports.all(|report| report.is_some_and(|(report, _)| report.running == 3))
    })
    .await;
    let (connections, requests) = (
        seen.peers.lock().len(),
        seen.requests.load(Ordering::SeqCst),
    );
    until("all have been read twice more", || {
        seen.requests.load(Ordering::SeqCst) >= requests + 2 * SERVERS
    })
    .await;
    assert_eq!(
        seen.peers.lock().len(),
        connections,
        "none was opened again"
    );
    let at_once = at_once_max();
    assert!(at_once <= 24 + 8, "{at_once}");
    drop(fleet);
    let ended = soon("the scraper ends with its fleet", scraping).await;
    ended.expect("no panic").expect("it could ask");
    serving.abort();
}

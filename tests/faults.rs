//! Each part killed (`kill -9`) again and again under load, through a real Envoy with two pickers; and what a
//! machine runs out of.
//!
//! `FAULT_ROUNDS` (1) says how often; `make test-faults` does it ten times.

mod harness;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use harness::envoy::{self, Bodies, Envoy};
use harness::exchange::{Exchange, channel};
use harness::http::{self, full, post};
use harness::nats::NatsServer;
use harness::pair::{self, Ports, seen};
use harness::process::{ANY_PORT, Served, output, text, write};
use harness::{PATIENCE, sim, soon, until};
use kvscout::config::{
    Config, Engine, EventSourceKind, FleetSource, Model, RenderSettings, Source,
};
use kvscout_sim::server;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const PODS: usize = 3;
const CLIENTS: usize = 8;
/// More than the 64 KiB that Envoy keeps of a request to ask another picker: some 100,000 tokens of text.
const LONG_BYTES: usize = 400_000;

/// A generation may be asked for twice: a pod that was killed over one gives it to another.
const RETRIES: (&str, &str) = (
    "retry_on: connect-failure,refused-stream,reset-before-request",
    "retry_on: connect-failure,refused-stream,reset",
);

fn rounds() -> usize {
    let given = std::env::var("FAULT_ROUNDS").ok();
    given.map_or(1, |text| text.parse().expect("a number"))
}

/// A simulated server that can be killed as a process is: with its runtime go all its connections.
struct Pod {
    runtime: Option<Runtime>,
    addresses: server::Addresses,
}

impl Pod {
    async fn start(at: Option<server::Addresses>) -> Self {
        let started = tokio::task::spawn_blocking(move || {
            let mut runtime = Builder::new_multi_thread();
            let runtime = runtime.worker_threads(1).enable_all().build();
            let runtime = runtime.expect("a runtime");
            let pod = loop {
                // The port may be in use until the old one's sockets are closed.
                if let Ok(pod) = runtime.block_on(sim::pod(512, 0, at.as_ref())) {
                    break pod;
                }
                std::thread::yield_now();
            };
            let addresses = pod.addresses.clone();
            runtime.spawn(async move {
                let _kept = pod;
                std::future::pending::<()>().await;
            });
            Self {
                runtime: Some(runtime),
                addresses,
            }
        });
        soon("a pod", started).await.expect("it starts")
    }

    async fn kill_and_restart(&mut self) {
        self.kill();
        *self = Self::start(Some(self.addresses.clone())).await;
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Everything that runs.
struct World {
    nats: NatsServer,
    pods: Vec<Pod>,
    bridge: Served,
    ports: [Ports; 2],
    pickers: [Served; 2],
    envoy: Envoy,
    envoy_config: String,
    config: String,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start(bodies: Bodies) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let nats = NatsServer::start().await;
        let mut pods = Vec::new();
        for _ in 0..PODS {
            pods.push(Pod::start(None).await);
        }
        let config = configured(folder.path(), &nats, &pods);
        let made = output(&["bridge", "--init", "--config", &config]);
        assert!(made.status.success(), "{made:?}");
        let bridge = Served::run(&["bridge", "--config", &config]);
        let ports = [Ports::free(), Ports::free()];
        let pickers = ports.map(|ports| ports.serve(&config));
        let addresses: Vec<_> = pods.iter().map(|pod| pod.addresses.http).collect();
        let envoy_config = pair::configured(&addresses, &ports, bodies);
        let envoy_config = envoy::swap(&envoy_config, RETRIES.0, RETRIES.1);
        let envoy = Envoy::run(&envoy_config).await;
        let world = Self {
            nats,
            pods,
            bridge,
            ports,
            pickers,
            envoy,
            envoy_config,
            config,
            _folder: folder,
        };
        // Who never said anything is waited for, lest it say it late.
        for pod in &world.pods {
            ask(pod.addresses.http, 0).await.expect("an answer");
        }
        world.both_seen().await;
        world
    }

    async fn both_seen(&self) {
        for ports in self.ports {
            seen(&self.envoy, ports, true).await;
        }
    }

    /// `kill -9`, and another in its place; how many requests failed then and there.
    async fn kill_picker(&mut self, number: usize, load: &Load) -> usize {
        let ports = self.ports[number];
        self.pickers[number].child.kill().expect("it runs");
        until("it is dead", || {
            let status = self.pickers[number].child.try_wait();
            status.expect("a child").is_some()
        })
        .await;
        // Each client has had the answer to what it had asked, and asked again.
        load.goes_on().await;
        let failed = load.failures();
        assert!(failed.len() <= CLIENTS, "{failed:#?}");
        load.goes_on().await;
        assert_eq!(load.failures(), [""; 0]);
        self.pickers[number] = ports.serve(&self.config);
        seen(&self.envoy, ports, true).await;
        load.goes_on().await;
        failed.len()
    }

    async fn kill_bridge(&mut self, load: &Load) {
        self.bridge.child.kill().expect("it runs");
        load.goes_on().await;
        self.bridge = Served::run(&["bridge", "--config", &self.config]);
        load.goes_on().await;
    }

    async fn kill_nats(&mut self, load: &Load) {
        self.nats.kill();
        load.goes_on().await;
        self.nats.restart().await;
        load.goes_on().await;
    }

    async fn kill_pod(&mut self, number: usize, load: &Load) {
        self.pods[number].kill_and_restart().await;
        load.goes_on().await;
    }

    async fn kill_envoy(&mut self, load: &Load) {
        load.to.send_replace(None);
        // In place of the old one, which that kills.
        self.envoy = Envoy::run(&self.envoy_config).await;
        self.both_seen().await;
        load.to.send_replace(Some(self.envoy.routed));
        load.goes_on().await;
    }
}

fn configured(folder: &Path, nats: &NatsServer, pods: &[Pod]) -> String {
    let line = |(number, pod): (usize, &Pod)| {
        let events = pod.addresses.events.as_ref().expect("events are on");
        let replay = events.replay_endpoint.as_ref().expect("replay is on");
        let (http, events) = (pod.addresses.http, &events.endpoint);
        format!(
            "  - {{name: pod-{number}, address: \"{http}\", events: \"{events}\", replay: \"{replay}\"}}\n"
        )
    };
    let lines: String = pods.iter().enumerate().map(line).collect();
    let fleet = write(folder, "fleet.yaml", &format!("endpoints:\n{lines}"));
    let any = "127.0.0.1:0".parse().expect("an address");
    let mut config = Config {
        fleet: FleetSource::File(fleet.into()),
        models: vec![Model {
            names: vec!["sim".into()],
            adapters: Vec::new(),
            source: Source::Folder(harness::tokenizer()),
            engine: Engine::Fast,
            render: RenderSettings::default(),
        }],
        ..Config::default()
    };
    config.listen.admin = any;
    config.listen.health = any;
    config.limits.drain_notice_ms = 0;
    config.replies.decision_header = true;
    config.events.source = EventSourceKind::Nats;
    config.events.nats = nats.settings();
    let secret = write(folder, "secret", "of a bridge and two pickers");
    config.events.keys_secret = Some(secret.into());
    write(folder, "kvscout.yaml", &config.to_yaml())
}

/// Clients that ask again and again, and what became of it.
struct Load {
    /// Where to; none while there is no Envoy.
    to: watch::Sender<Option<SocketAddr>>,
    served: Arc<AtomicUsize>,
    /// Answers that say that the prompt was found cached.
    by_prefix: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    enough: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(to: SocketAddr) -> Self {
        let mut load = Self {
            to: watch::channel(Some(to)).0,
            served: Arc::default(),
            by_prefix: Arc::default(),
            failed: Arc::default(),
            enough: Arc::default(),
            clients: Vec::new(),
        };
        load.clients = (0..CLIENTS).map(|number| load.client(number)).collect();
        load
    }

    fn client(&self, number: usize) -> JoinHandle<()> {
        let mut to = self.to.subscribe();
        let (served, by_prefix) = (self.served.clone(), self.by_prefix.clone());
        let (failed, enough) = (self.failed.clone(), self.enough.clone());
        tokio::spawn(async move {
            while !enough.load(Ordering::Relaxed) {
                let there = to.wait_for(Option::is_some).await;
                let Some(there) = there.ok().and_then(|there| *there) else {
                    return;
                };
                let answered = ask(there, number).await;
                // What was in flight when its Envoy was killed may fail.
                if to.has_changed().unwrap_or(true) {
                    continue;
                }
                match answered {
                    Ok(decision) => {
                        let known = usize::from(decision.contains("prefix"));
                        by_prefix.fetch_add(known, Ordering::Relaxed);
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => failed.lock().push(format!("{error:#}")),
                }
            }
        })
    }

    /// So many more have been served.
    async fn goes_on(&self) {
        let enough = self.served.load(Ordering::Relaxed) + 20 * CLIENTS;
        until("requests are served", || {
            self.served.load(Ordering::Relaxed) >= enough
        })
        .await;
    }

    /// What failed since the last look.
    fn failures(&self) -> Vec<String> {
        std::mem::take(&mut *self.failed.lock())
    }

    /// Prompts are found cached, as before.
    async fn knows(&self) {
        let enough = self.by_prefix.load(Ordering::Relaxed) + CLIENTS;
        until("prompts are found cached", || {
            self.by_prefix.load(Ordering::Relaxed) >= enough
        })
        .await;
    }

    async fn end(self) {
        self.enough.store(true, Ordering::Relaxed);
        for client in self.clients {
            soon("a client ends", client).await.expect("it ends well");
        }
    }
}

/// One request, whose prompt this client has asked before; what is said of the decision. Every other client has a
/// long body.
async fn ask(to: SocketAddr, number: usize) -> anyhow::Result<String> {
    let prompt: Vec<usize> = (0..200).map(|at| 1 + 300 * number + at).collect();
    let body = json!({"model": "sim", "prompt": prompt, "max_tokens": 2, "user": "x".repeat(number % 2 * LONG_BYTES)});
    let request = post("/v1/completions").body(full(body.to_string()))?;
    let answered = async {
        let (response, connection) = http::open(to, request).await?;
        let answer = http::whole(response).await;
        connection.abort();
        answer
    };
    let answer = tokio::time::timeout(PATIENCE, answered).await??;
    let whole: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let is_whole = whole.is_some_and(|answer| answer["usage"]["completion_tokens"] == 2);
    anyhow::ensure!(answer.status == 200 && is_whole, "{answer:?}");
    Ok(answer.header("x-kvscout-decision").to_owned())
}

/// Every part in turn; how many requests failed. Only killed pickers may fail any, each at most what it had in hand.
async fn each_part_is_killed(bodies: Bodies) -> usize {
    let mut world = World::start(bodies).await;
    let load = Load::start(world.envoy.routed);
    load.knows().await;
    let mut lost = 0;
    for round in 0..rounds() {
        for part in ["picker", "pod", "nats", "bridge", "envoy"] {
            let begun = std::time::Instant::now();
            match part {
                "picker" => lost += world.kill_picker(round % 2, &load).await,
                "pod" => world.kill_pod(round % PODS, &load).await,
                "nats" => world.kill_nats(&load).await,
                "bridge" => world.kill_bridge(&load).await,
                _ => world.kill_envoy(&load).await,
            }
            let failed = load.failures();
            assert!(failed.is_empty(), "{part} of round {round}: {failed:#?}");
            println!("round {round}: {part} killed, {:?}", begun.elapsed());
        }
    }
    load.knows().await;
    let served = load.served.load(Ordering::Relaxed);
    println!("{bodies:?}: {served} requests served, {lost} failed");
    load.end().await;
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_any_part_again_and_again_fails_no_request() {
    assert_eq!(each_part_is_killed(Bodies::Buffered).await, 0);
}

/// Envoy keeps no body then, and does not fail open once it has sent a piece of one (envoyproxy/envoy#41276): a
/// request that its picker has not answered is given to the other one, up to 64 KiB, and every other one fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_full_duplex_a_killed_picker_fails_what_it_had_in_hand_and_nothing_after() {
    let lost = each_part_is_killed(Bodies::FullDuplex).await;
    assert!(lost <= rounds() * CLIENTS, "{lost}");
}

/// A process's time on a core so far.
fn cpu(process: &Served) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.child.id()));
    let stat = stat.expect("Linux");
    // utime and stime are the 14th and 15th of proc(5), after a name that may hold blanks.
    let after_name = stat.rsplit(')').next().expect("a name");
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    // A hundred ticks a second, on every Linux that we run on.
    Duration::from_millis(10 * ticks)
}

#[tokio::test]
async fn without_file_descriptors_it_waits_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    write(
        folder.path(),
        "fleet.yaml",
        "endpoints: [{address: '127.0.0.1:1'}]",
    );
    let config = format!("{ANY_PORT}tls: {{mode: off}}\nload: {{scrape_interval_ms: 0}}\n");
    let config = write(folder.path(), "kvscout.yaml", &config);
    let served = Served::start_with_descriptors(80, &["--config", &config]);
    let (ext_proc, admin) = served.addresses();
    let mut guests = Vec::new();
    for _ in 0..100 {
        let guest = soon("a connection", TcpStream::connect(ext_proc)).await;
        guests.push(guest.expect("the kernel takes it"));
    }
    served.line("cannot take a connection");
    let before = cpu(&served);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = cpu(&served) - before;
    assert!(spent < Duration::from_millis(300), "{spent:?} of a second");
    drop(guests);
    let mut exchange = Exchange::open(channel(ext_proc).await).await;
    assert_eq!(exchange.picked().await, "127.0.0.1:1");
    let metrics = text(&http::get(admin, "/metrics").await.body);
    let counted = metrics.lines().find(|line| {
        line.contains("connections_refused_total{port=\"ext_proc\",reason=\"accept\"}")
    });
    assert!(
        !counted.expect("it is counted").ends_with(" 0"),
        "{counted:?}"
    );
}

#[tokio::test]
async fn names_that_do_not_resolve_stop_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    write(
        folder.path(),
        "fleet.yaml",
        "endpoints: [{address: '127.0.0.1:1'}]",
    );
    let config = format!(
        "{ANY_PORT}tls: {{mode: off}}\nload: {{scrape_interval_ms: 0}}\n\
         events: {{source: nats, nats: {{servers: ['nats://nowhere.invalid:4222']}}}}\n\
         models: [{{names: [a], hub: {{repo: a/b}}}}]\nmodels_cache: cache\n"
    );
    let config = write(folder.path(), "kvscout.yaml", &config);
    let hub = [("HF_ENDPOINT", "http://nowhere.invalid".to_owned())];
    let served = Served::start_with(&["--config", &config], &hub);
    let (ext_proc, admin) = served.addresses();
    let mut exchange = Exchange::open(channel(ext_proc).await).await;
    assert_eq!(exchange.picked().await, "127.0.0.1:1");
    soon("what is missing is said", async {
        loop {
            let said = text(&http::get(admin, "/readyz").await.body);
            if said.contains("model a: is not loaded") {
                return;
            }
            tokio::time::sleep(PATIENCE / 1000).await;
        }
    })
    .await;
}

#[test]
fn a_crash_leaves_no_prompt_on_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "fleet.yaml", "endpoints: []");
    let config = write(folder.path(), "kvscout.yaml", ANY_PORT);
    let served = Served::start(&["--config", &config]);
    served.line("listening");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", served.child.id()));
    let limits = limits.expect("Linux");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<&str> = core.expect("a line").split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core:?}");
}

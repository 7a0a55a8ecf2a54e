//! Everything that runs, as processes: nats-server, pods, a bridge, two pickers, Envoy; and clients that ask.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kvscout::config::{
    Config, Engine, EventSourceKind, FleetSource, Model, RenderSettings, Source, Tls,
};
use kvscout_sim::server;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::envoy::{self, Bodies, Envoy};
use super::http::{self, full, post};
use super::nats::NatsServer;
use super::pair::{self, Ports, seen};
use super::process::{Served, kvscout, write};
use super::{PATIENCE, sim, soon, until};

pub const PODS: usize = 3;
pub const CLIENTS: usize = 8;
/// More than the 64 KiB that Envoy keeps of a request to ask another picker: some 100,000 tokens of text.
const LONG_BYTES: usize = 400_000;

/// A generation may be asked for twice: a pod that was killed over one gives it to another.
const RETRIES: (&str, &str) = (
    "retry_on: connect-failure,refused-stream,reset-before-request",
    "retry_on: connect-failure,refused-stream,reset",
);

/// A simulated server that can be killed as a process is: with its runtime go all its connections.
pub struct Pod {
    runtime: Option<Runtime>,
    pub addresses: server::Addresses,
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

/// How it runs.
pub struct Setting {
    pub bodies: Bodies,
    /// Of kvscout's processes.
    pub environment: Vec<(&'static str, String)>,
    /// Where they look for nats-server.
    pub nats_host: &'static str,
    /// What pickers show Envoy.
    pub tls: Tls,
    /// Of Envoy's configuration: what is otherwise.
    pub swaps: Vec<(&'static str, String)>,
}

impl Setting {
    /// As far as bodies go, and else as it comes.
    pub fn of(bodies: Bodies) -> Self {
        Self {
            bodies,
            environment: Vec::new(),
            nats_host: "127.0.0.1",
            tls: Tls::SelfSigned,
            swaps: Vec::new(),
        }
    }
}

/// Everything that runs.
pub struct World {
    pub nats: NatsServer,
    pub pods: Vec<Pod>,
    pub bridge: Served,
    pub ports: [Ports; 2],
    pub pickers: [Served; 2],
    pub envoy: Envoy,
    environment: Vec<(&'static str, String)>,
    envoy_config: String,
    config: String,
    _folder: tempfile::TempDir,
}

impl World {
    pub async fn start(setting: Setting) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let nats = NatsServer::start().await;
        let mut pods = Vec::new();
        for _ in 0..PODS {
            pods.push(Pod::start(None).await);
        }
        let config = configured(folder.path(), &nats, &pods, &setting);
        let environment = setting.environment;
        let made = kvscout(&["bridge", "--init", "--config", &config])
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .output()
            .expect("kvscout runs");
        assert!(made.status.success(), "{made:?}");
        let bridge = Served::run_with(&["bridge", "--config", &config], &environment);
        let ports = [Ports::free(), Ports::free()];
        let pickers = ports.map(|ports| ports.serve_with(&config, &environment));
        let addresses: Vec<_> = pods.iter().map(|pod| pod.addresses.http).collect();
        let mut envoy_config = pair::configured(&addresses, &ports, setting.bodies);
        envoy_config = envoy::swap(&envoy_config, RETRIES.0, RETRIES.1);
        for (from, to) in &setting.swaps {
            envoy_config = envoy::swap(&envoy_config, from, to);
        }
        let envoy = Envoy::run(&envoy_config).await;
        let world = Self {
            nats,
            pods,
            bridge,
            ports,
            pickers,
            envoy,
            environment,
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

    pub async fn both_seen(&self) {
        for ports in self.ports {
            seen(&self.envoy, ports, true).await;
        }
    }

    /// `kill -9`, and another in its place; how many requests failed then and there.
    pub async fn kill_picker(&mut self, number: usize, load: &Load) -> usize {
        let ports = self.ports[number];
        self.pickers[number].child.kill().expect("it runs");
        self.pickers[number].ended().await;
        // Each client has had the answer to what it had asked, and asked again.
        load.goes_on().await;
        let failed = load.failures();
        assert!(failed.len() <= CLIENTS, "{failed:#?}");
        load.goes_on().await;
        assert_eq!(load.failures(), [""; 0]);
        self.pickers[number] = ports.serve_with(&self.config, &self.environment);
        seen(&self.envoy, ports, true).await;
        load.goes_on().await;
        failed.len()
    }

    pub async fn kill_bridge(&mut self, load: &Load) {
        self.bridge.child.kill().expect("it runs");
        load.goes_on().await;
        self.bridge = Served::run_with(&["bridge", "--config", &self.config], &self.environment);
        load.goes_on().await;
    }

    pub async fn kill_nats(&mut self, load: &Load) {
        self.nats.kill();
        load.goes_on().await;
        self.nats.restart().await;
        load.goes_on().await;
    }

    pub async fn kill_pod(&mut self, number: usize, load: &Load) {
        self.pods[number].kill_and_restart().await;
        load.goes_on().await;
    }

    pub async fn kill_envoy(&mut self, load: &Load) {
        load.to.send_replace(None);
        // In place of the old one, which that kills.
        self.envoy = Envoy::run(&self.envoy_config).await;
        self.both_seen().await;
        load.to.send_replace(Some(self.envoy.routed));
        load.goes_on().await;
    }
}

fn configured(folder: &Path, nats: &NatsServer, pods: &[Pod], setting: &Setting) -> String {
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
            source: Source::Folder(super::tokenizer()),
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
    let port = nats.address().port();
    config.events.nats.servers = vec![format!("nats://{}:{port}", setting.nats_host)];
    config.tls = setting.tls.clone();
    let secret = write(folder, "secret", "of a bridge and two pickers");
    config.events.keys_secret = Some(secret.into());
    write(folder, "kvscout.yaml", &config.to_yaml())
}

/// Clients that ask again and again, and what became of it.
pub struct Load {
    /// Where to; none while there is no Envoy.
    to: watch::Sender<Option<SocketAddr>>,
    pub served: Arc<AtomicUsize>,
    /// Answers that say that the prompt was found cached.
    pub by_prefix: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    enough: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(to: SocketAddr) -> Self {
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
    pub async fn goes_on(&self) {
        let enough = self.served.load(Ordering::Relaxed) + 20 * CLIENTS;
        let served = async {
            while self.served.load(Ordering::Relaxed) < enough {
                tokio::time::sleep(PATIENCE / 1000).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, served).await;
        assert!(
            in_time.is_ok(),
            "too few are served: {:#?}",
            self.failures()
        );
    }

    /// What failed since the last look.
    pub fn failures(&self) -> Vec<String> {
        std::mem::take(&mut *self.failed.lock())
    }

    /// Prompts are found cached, as before.
    pub async fn knows(&self) {
        let enough = self.by_prefix.load(Ordering::Relaxed) + CLIENTS;
        until("prompts are found cached", || {
            self.by_prefix.load(Ordering::Relaxed) >= enough
        })
        .await;
    }

    pub async fn end(self) {
        self.enough.store(true, Ordering::Relaxed);
        for client in self.clients {
            soon("a client ends", client).await.expect("it ends well");
        }
    }
}

/// One request, whose prompt this client has asked before; what is said of the decision. Every other client has a
/// long body.
pub async fn ask(to: SocketAddr, number: usize) -> anyhow::Result<String> {
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

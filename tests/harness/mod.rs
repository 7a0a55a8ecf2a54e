//! A gateway, pods and kvscout in one place, for tests that see kvscout as Envoy does.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod collector;
pub mod ears;
pub mod envoy;
pub mod exchange;
pub mod frames;
pub mod golden;
pub mod http;
pub mod hub;
pub mod kube;
pub mod nats;
pub mod pair;
pub mod pod;
pub mod process;
pub mod publisher;
pub mod running;
pub mod script;
pub mod sim;
pub mod stack;
pub mod world;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvscout::audit::Audit;
use kvscout::config::{Config, Policy, Tls};
use kvscout::decisions::Decisions;
use kvscout::door::{Door, DoorRules, Patience, tls};
use kvscout::ext_proc::{self, Capacity, ExtProcSettings, Health};
use kvscout::fleet::{Endpoint, EndpointId, Fleet};
use kvscout::metrics::Metrics;
use kvscout::models::Models;
use kvscout::routes::Routes;
use kvscout::scheduler::{Parts, Reader, Scheduler};
use kvscout::tokens::TokenPool;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Nothing in a test may take longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The model folder that `make setup` fills.
pub fn tokenizer() -> PathBuf {
    let folder = std::env::var_os("KVSCOUT_TOKENIZER_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/tokenizer-qwen3"),
        PathBuf::from,
    );
    assert!(
        folder.join("tokenizer.json").is_file(),
        "no tokenizer in {}: run make setup",
        folder.display()
    );
    folder
}

/// What `future` gives, if it comes in time.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Waits for a condition that nothing announces.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let polled = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, polled).await;
}

/// kvscout's ext_proc server over a fleet that the test holds.
pub struct Kvscout {
    pub address: SocketAddr,
    pub health: Health,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub metrics: Arc<Metrics>,
    pub capacity: Arc<Capacity>,
    shutdown: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
    _fleet: watch::Sender<Arc<Fleet>>,
}

impl Kvscout {
    /// Starts over these pods.
    pub async fn start(pods: &[SocketAddr], tls: Tls, settings: ExtProcSettings) -> Self {
        Self::ruled(
            pods,
            tls,
            settings,
            Routes::default(),
            Config::default().policy,
        )
        .await
    }

    /// The same with rules for models, and of choosing.
    pub async fn ruled(
        pods: &[SocketAddr],
        tls: Tls,
        settings: ExtProcSettings,
        routes: Routes,
        policy: Policy,
    ) -> Self {
        let endpoints = pods.iter().enumerate().map(endpoint).collect();
        Self::of(Fleet::of(endpoints), tls, settings, (routes, policy)).await
    }

    /// Starts over this fleet.
    pub async fn of(
        fleet: Fleet,
        tls: Tls,
        settings: ExtProcSettings,
        (routes, policy): (Routes, Policy),
    ) -> Self {
        let endpoints = fleet.endpoints.clone();
        let (sender, fleet) = watch::channel(Arc::new(fleet));
        let metrics = Arc::<Metrics>::default();
        let scheduler = Arc::new(scheduler(fleet, routes, policy, metrics.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let health = Health::new().await;
        let (shutdown, stop) = oneshot::channel::<()>();
        let names = ["kvscout".to_owned()];
        let certificates = tls::open(&tls, &names).await.expect("a certificate");
        let (certificates, renewal) = certificates.unzip();
        let door = Door::new(
            listener,
            door_rules(),
            certificates,
            metrics.door("ext_proc"),
        );
        let capacity = Arc::new(Capacity::new(settings.limits, LANES));
        let parts = ext_proc::Parts {
            scheduler,
            health: health.clone(),
            capacity: capacity.clone(),
            metrics: metrics.clone(),
        };
        let server = tokio::spawn(async move {
            let stop = async {
                // A dropped sender is a shutdown as well.
                let _ = stop.await;
            };
            // Where nobody renews it, the certificate stays.
            let _renewal = renewal;
            ext_proc::serve(door, parts, settings, None, stop)
                .await
                .expect("it serves");
        });
        Self {
            address,
            health,
            endpoints,
            metrics,
            capacity,
            shutdown: Some(shutdown),
            server: Some(server),
            _fleet: sender,
        }
    }

    /// Requests placed and not ended, over the fleet.
    pub fn requests(&self) -> u32 {
        self.endpoints.iter().map(|e| e.load.requests()).sum()
    }

    /// Begins a graceful shutdown; the task ends when the last exchange has.
    pub fn shut_down(&mut self) -> JoinHandle<()> {
        self.shutdown.take();
        self.server.take().expect("shut down once")
    }
}

impl Drop for Kvscout {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// Threads that serve a gateway's connections.
const LANES: usize = 2;

/// As many as a test may want.
pub fn door_rules() -> DoorRules {
    DoorRules::new(1_000, Patience::First(PATIENCE))
}

/// An endpoint of which nothing is heard.
pub fn endpoint((number, address): (usize, &SocketAddr)) -> Arc<Endpoint> {
    let id = EndpointId(u32::try_from(number).expect("few pods"));
    let name = format!("pod-{number}");
    Arc::new(Endpoint::new(id, name, *address, None))
}

/// A scheduler that knows no model, so that load decides.
fn scheduler(
    fleet: watch::Receiver<Arc<Fleet>>,
    routes: Routes,
    policy: Policy,
    metrics: Arc<Metrics>,
) -> Scheduler {
    let (_, models) = watch::channel(Arc::default());
    let pool = TokenPool::new(2, 64, PATIENCE, metrics.tokenizer()).expect("threads");
    Scheduler::new(Parts {
        routes: watch::channel(Arc::new(routes)).1,
        policy,
        ..parts(fleet, models, Arc::new(pool), metrics)
    })
}

/// A scheduler that reads prompts of these models on this pool.
pub fn over(
    fleet: watch::Receiver<Arc<Fleet>>,
    models: watch::Receiver<Arc<Models>>,
    pool: Arc<TokenPool>,
    metrics: Arc<Metrics>,
) -> Scheduler {
    Scheduler::new(parts(fleet, models, pool, metrics))
}

fn parts(
    fleet: watch::Receiver<Arc<Fleet>>,
    models: watch::Receiver<Arc<Models>>,
    pool: Arc<TokenPool>,
    metrics: Arc<Metrics>,
) -> Parts {
    Parts {
        fleet,
        index: Arc::default(),
        replicas: None,
        audit: Arc::new(Audit::new(metrics.clone())),
        decisions: Arc::new(Decisions::new(1 << 20, None, metrics.clone())),
        parity: Arc::default(),
        routes: watch::channel(Arc::default()).1,
        reader: Reader::new(models, pool),
        policy: Config::default().policy,
        saturation: Config::default().load.saturation,
        admission: Config::default().admission,
        decision_max: PATIENCE,
        metrics,
    }
}

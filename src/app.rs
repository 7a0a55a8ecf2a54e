//! `build(Config) → App`: binds, wires, supervises, drains.
//!
//! Port 0 works everywhere, so that a test runs the whole process in its own. Tasks are named;
//! one that ends unbidden ends the app. Shutdown: not ready → time to notice → no new streams →
//! exchanges end or reach the drain limit → ingestion stops.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::admin::{self, Admin, Guard, PrefixesPage};
use crate::audit::Audit;
use crate::config::{self, Config, EventSourceKind, Model};
use crate::decisions::{self, Decisions};
use crate::discovery::Discovery;
use crate::door::{Door, DoorRules, Patience, tls};
use crate::events::listen::{Listeners, Way};
use crate::events::nats::Cluster;
use crate::ext_proc::{self, Capacity, ExtProcSettings, Health, Rules, capacity};
use crate::fleet::scrape::Scraper;
use crate::fleet::{EndpointId, Fleet};
use crate::metrics::Metrics;
use crate::models::{Hub, Loader};
use crate::parity::Parity;
use crate::readiness::{Readiness, Ticket};
use crate::replicas::Replicas;
use crate::replicas::share::{Farewell, Share};
use crate::scheduler::{Parts, Reader, Scheduler};
use crate::spans::{self, Spans};
use crate::tokens::TokenPool;

mod sights;

use sights::Sights;

/// Where we listen, with the ports that port 0 became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The External Processor.
    pub ext_proc: SocketAddr,
    /// grpc.health.v1.
    pub health: SocketAddr,
    /// HTTP.
    pub admin: SocketAddr,
}

/// A running kvscout.
pub struct App {
    bound: Bound,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    ending: watch::Sender<Phase>,
    /// Names of the tasks that run.
    running: Vec<&'static str>,
    readiness: Readiness,
    health: Health,
    notice: Duration,
    farewell: Option<Farewell>,
}

/// How far an app is; each follows the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// Not ready, and serving on.
    Draining,
    /// No new streams.
    Ending,
    /// No exchange is left.
    Ended,
}

/// Tasks that have something to finish when they are told to end: exchanges, and a lease to give back.
const FINISHING: [&str; 2] = ["ext_proc", "leader"];
/// And those that have what exchanges left them still to write.
const WRITING: [&str; 2] = ["decisions", "tracing"];
/// Between two clean-ups of the metrics: histograms keep every sample until one.
const UPKEEP: Duration = Duration::from_secs(5);
/// For a peer of a gRPC port to begin, once its handshake is done.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// For one of the admin port to ask something, or something more: Prometheus asks every minute or sooner.
const ADMIN_SILENCE_MAX: Duration = Duration::from_secs(90);
/// After the drain limit: from "no more time" to the end of every task.
const JOIN_MAX: Duration = Duration::from_secs(5);

/// Reads the fleet's file, or finds its cluster, binds every port, and starts. Models load, and the cluster
/// answers, meanwhile.
///
/// # Errors
/// Whatever an operator must mend: a taken port, a bad fleet file, no credentials; each says which.
pub async fn build(config: Config) -> anyhow::Result<App> {
    let metrics = Arc::new(Metrics::new(&config.metrics));
    let readiness = Readiness::default();
    let mut discovery = Discovery::open(&config, &metrics, &readiness).await?;
    let (fleet, routes) = (discovery.fleet(), discovery.routes());
    let [ext_proc, health_port, admin_port] = bind(&config).await?;
    let bound = Bound {
        ext_proc: ext_proc.local_addr()?,
        health: health_port.local_addr()?,
        admin: admin_port.local_addr()?,
    };

    let parity = Parity::of(config.models.iter().flat_map(Model::counted_names));
    let index = Arc::new(parity.index().limited(config.limits.index_bytes_max));
    let health = Health::new().await;
    let (loader, models) = Loader::new(&config, Hub::from_env(), &metrics, &readiness);
    let pool = TokenPool::new(
        config::threads(),
        config.limits.tokenizer_queue_max,
        Duration::from_millis(config.limits.tokenizer_wait_ms_max),
        metrics.tokenizer(),
    );
    let pool = Arc::new(pool.context("no threads for the tokenizer")?);
    let replicas = config.shares().then(|| Replicas::new(index.clone()));
    let audit = Arc::new(Audit::new(metrics.clone()));
    let (log, logged) = match &config.decisions.log {
        Some(log) => {
            let (sender, logged) = mpsc::channel(decisions::log::QUEUE_MAX);
            (Some(sender), Some((log.clone(), logged)))
        }
        None => (None, None),
    };
    let kept_bytes_max = config.decisions.kept_bytes_max;
    let decisions = Arc::new(Decisions::new(kept_bytes_max, log, metrics.clone()));
    let scheduler = Arc::new(Scheduler::new(Parts {
        fleet: fleet.clone(),
        index: index.clone(),
        replicas: replicas.clone(),
        audit: audit.clone(),
        decisions: decisions.clone(),
        parity: parity.clone(),
        routes,
        reader: Reader::new(models.clone(), pool.clone()),
        policy: config.policy.clone(),
        saturation: config.load.saturation,
        admission: config.admission,
        decision_max: Duration::from_millis(config.limits.decision_ms_max),
        metrics: metrics.clone(),
    }));
    let (ending, _) = watch::channel(Phase::Serving);
    let settings = settings(&config);
    let capacity = Arc::new(Capacity::new(settings.limits, config::threads()));
    let (certificates, renewal) = tls::open(&config.tls, &certificate_names()).await?.unzip();
    let connections_max = config.limits.connections_max;
    let door = |listener, port, patience, certificates| {
        let rules = DoorRules::new(connections_max, patience);
        Door::new(listener, rules, certificates, metrics.door(port))
    };
    let first = Patience::First(SILENCE_MAX);
    let ext_proc = door(ext_proc, "ext_proc", first, certificates);
    let health_port = door(health_port, "health", first, None);
    let admin_port = door(
        admin_port,
        "admin",
        Patience::Always(ADMIN_SILENCE_MAX),
        None,
    );
    let seats = [&ext_proc, &health_port, &admin_port].map(Door::seats);

    let mut app = App {
        bound,
        tasks: JoinSet::new(),
        ending,
        running: Vec::new(),
        readiness,
        health,
        notice: Duration::from_millis(config.limits.drain_notice_ms),
        farewell: None,
    };
    if let Some(candidate) = discovery.candidate() {
        let draining = app.told(Phase::Draining);
        app.spawn("leader", async {
            candidate.run(draining).await;
            Ok(())
        });
    }
    app.spawn("fleet", async {
        discovery.run().await;
        Ok(())
    });
    app.spawn("models", loader.run());
    if let Some(way) = way(&config, &metrics).await? {
        let mut listeners = Listeners {
            parity: parity.clone(),
            metrics: metrics.clone(),
            adapters: adapters(&config),
            ..Listeners::new(fleet.clone(), index.clone(), way)
        };
        let (mut known, readiness) = (fleet.clone(), app.readiness.clone());
        let events = readiness.ticket("events");
        app.spawn("events", async move {
            known.changed().await?;
            listeners.first = tickets(&known.borrow(), &listeners.way, &readiness);
            drop(events);
            listeners.run().await;
            Ok(())
        });
    }
    if let Some(replicas) = &replicas {
        let (replicas, waits) = (replicas.clone(), scheduler.clone());
        let (settings, freed) = (&config.events.nats, move || waits.freed());
        let share = Share::connect(replicas, settings, fleet.clone(), metrics.clone(), freed);
        let share = share.await?;
        app.farewell = Some(share.farewell());
        app.spawn("replicas", async {
            share.run().await;
            Ok(())
        });
    }
    if config.load.scrape_interval_ms > 0 {
        let scraper = Scraper {
            fleet: fleet.clone(),
            settings: config.load.clone(),
            metrics: metrics.clone(),
            told: Arc::new({
                let scheduler = scheduler.clone();
                move || scheduler.freed()
            }),
        };
        app.spawn("load", async { Ok(scraper.run().await?) });
    }
    if let Some((log, logged)) = logged {
        let (metrics, told) = (metrics.clone(), app.told(Phase::Ended));
        app.spawn("decisions", decisions::log::run(log, logged, metrics, told));
    }
    let spans = spans(&config, &metrics, &mut app)?;
    let known = fleet.clone();
    let counted = audit.clone();
    let forget_gone = move |fleet: &Fleet| counted.forget_gone(fleet);
    app.spawn("upkeep", upkeep(metrics.clone(), known, forget_gone));
    if let Some(renewal) = renewal {
        let metrics = metrics.clone();
        app.spawn("certificate", async {
            renewal.run(metrics).await;
            Ok(())
        });
    }
    // Probes are answered until the very end: health and admin are never told to end.
    let (health, never) = (app.health.clone(), std::future::pending());
    app.spawn("health", async move {
        Ok(health.serve(health_port, never).await?)
    });
    let sights = Arc::new(Sights {
        fleet,
        index,
        parity,
        models,
        pool,
        replicas,
        audit,
        decisions: decisions.clone(),
        scheduler: scheduler.clone(),
        saturation: config.load.saturation,
        capacity: capacity.clone(),
        seats,
        metrics: metrics.clone(),
    });
    let [states, scores, shared, sizes] = std::array::from_fn(|_| sights.clone());
    let admin = Admin {
        metrics: metrics.handle(),
        observe: Arc::new(move || sizes.observe()),
        readiness: app.readiness.clone(),
        endpoints: Arc::new(move |digests| states.endpoints(digests)),
        prefixes: Arc::new(PrefixesPage::new(move || shared.prefixes())),
        audit: Arc::new(move || scores.scores()),
        decisions,
        scheduler: scheduler.clone(),
        explaining: Arc::new(Semaphore::new(admin::explain::AT_ONCE_MAX)),
        guard: Guard {
            pages: config.decisions.pages,
            token: config.listen.admin_token.clone().map(Arc::new),
        },
        body_bytes_max: config.limits.body_bytes_max,
    };
    app.spawn("admin", async {
        Ok(admin::serve(admin_port, admin).await?)
    });
    let told = app.told(Phase::Ending);
    let parts = ext_proc::Parts {
        scheduler,
        health: app.health.clone(),
        capacity,
        metrics,
    };
    app.spawn("ext_proc", async move {
        Ok(ext_proc::serve(ext_proc, parts, settings, spans, told).await?)
    });
    let (health, readiness) = (app.health.clone(), app.readiness.watch());
    app.spawn("readiness", report_readiness(health, readiness));
    Ok(app)
}

impl App {
    /// Where we listen.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// Runs until `until`, then drains.
    ///
    /// # Errors
    /// A task failed, or ended unbidden.
    pub async fn run(mut self, until: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::select! {
            () = until => {}
            ended = self.tasks.join_next() => {
                let (name, result) = ended.context("nothing runs")??;
                result.with_context(|| format!("{name} failed"))?;
                bail!("{name} ended unbidden");
            }
        }
        tracing::info!("draining: running requests may end");
        let _not_ready = self.readiness.ticket("shutdown");
        self.health.set_ready(false).await;
        self.ending.send_replace(Phase::Draining);
        // Gateways and probes get the time to see it before new requests are refused.
        tokio::time::sleep(self.notice).await;
        tracing::info!("draining: no new streams");
        self.ending.send_replace(Phase::Ending);
        self.drain().await
    }

    /// Ends with the tasks of [`FINISHING`], whose own limits are the drain limit or less, and then of
    /// [`WRITING`]; everything else serves them.
    async fn drain(&mut self) -> anyhow::Result<()> {
        self.join(&FINISHING).await?;
        self.ending.send_replace(Phase::Ended);
        let rest = async {
            self.join(&WRITING).await?;
            self.tasks.shutdown().await;
            anyhow::Ok(())
        };
        match tokio::time::timeout(JOIN_MAX, rest).await {
            Ok(ended) => ended?,
            Err(_) => bail!("tasks did not end within {JOIN_MAX:?}"),
        }
        // What was in flight has ended, and nobody says otherwise any more.
        if let Some(farewell) = self.farewell.take() {
            farewell.say().await;
        }
        tracing::info!("ended");
        Ok(())
    }

    /// Waits until none of these runs.
    async fn join(&mut self, names: &[&str]) -> anyhow::Result<()> {
        while self.running.iter().any(|one| names.contains(one))
            && let Some(ended) = self.tasks.join_next().await
        {
            let (name, result) = ended?;
            result.with_context(|| format!("{name} failed"))?;
            self.running.retain(|one| *one != name);
        }
        Ok(())
    }

    fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.running.push(name);
        self.tasks.spawn(async move { (name, task.await) });
    }

    fn told(&self, phase: Phase) -> impl Future<Output = ()> + Send + use<> {
        let mut ending = self.ending.subscribe();
        async move {
            // An error means that the app is gone, which is an end as well.
            let _gone = ending.wait_for(|ending| *ending >= phase).await;
        }
    }
}

/// Cleans up the metrics again and again, whether anybody reads them or not; `forget_gone` gives up what
/// somebody else holds of endpoints that have left.
pub(crate) async fn upkeep(
    metrics: Arc<Metrics>,
    fleet: watch::Receiver<Arc<Fleet>>,
    forget_gone: impl Fn(&Fleet),
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        let known = fleet.borrow().clone();
        forget_gone(&known);
        let is_there = |name: &str| known.heard().any(|endpoint| endpoint.name == name);
        metrics.forget_gone(is_there, Instant::now());
        metrics.handle().run_upkeep();
    }
}

async fn bind(config: &Config) -> anyhow::Result<[TcpListener; 3]> {
    let listen = &config.listen;
    let mut bound = Vec::with_capacity(3);
    for (field, address) in [
        ("ext_proc", listen.ext_proc),
        ("health", listen.health),
        ("admin", listen.admin),
    ] {
        let listener = TcpListener::bind(address).await;
        bound.push(listener.with_context(|| {
            format!("listen.{field}: cannot listen on {address}; is another kvscout running? (flag --{})", field.replace('_', "-"))
        })?);
    }
    Ok(bound.try_into().expect("three were bound"))
}

/// Where traced requests go, if any is.
fn spans(
    config: &Config,
    metrics: &Arc<Metrics>,
    app: &mut App,
) -> anyhow::Result<Option<Arc<Spans>>> {
    let Some(exporter) = spans::export::exporter(&config.tracing)? else {
        return Ok(None);
    };
    let (sender, queue) = mpsc::channel(spans::QUEUE_MAX);
    let (sampling, pool) = (config.tracing.sampling, &config.metrics.pool);
    let spans = Spans::new(sampling, pool, sender, metrics.clone());
    let told = app.told(Phase::Ended);
    let sending = spans::export::run(exporter, queue, metrics.clone(), told);
    app.spawn("tracing", sending);
    Ok(Some(Arc::new(spans)))
}

/// How events come, if they do.
async fn way(config: &Config, metrics: &Metrics) -> anyhow::Result<Option<Way>> {
    let events = &config.events;
    Ok(match events.source {
        EventSourceKind::Off => None,
        EventSourceKind::Zmq => Some(Way::zmq(events, metrics)?),
        EventSourceKind::Nats => Some(Way::Nats(Box::new(Cluster::connect(&events.nats).await?))),
    })
}

fn adapters(config: &Config) -> Vec<String> {
    let models = config.models.iter();
    models.flat_map(Model::adapter_names).collect()
}

/// For everyone who is heard from the beginning.
fn tickets(fleet: &Fleet, way: &Way, readiness: &Readiness) -> HashMap<EndpointId, Ticket> {
    let endpoints = fleet.endpoints.iter();
    let reached = endpoints.filter(|endpoint| way.reaches(endpoint));
    reached
        .map(|endpoint| (endpoint.id, readiness.ticket("events")))
        .collect()
}

fn settings(config: &Config) -> ExtProcSettings {
    let limits = &config.limits;
    ExtProcSettings {
        rules: Arc::new(Rules {
            body_bytes_max: limits.body_bytes_max,
            decision_header: config.replies.decision_header,
            conformance: config.replies.conformance_tests,
            session_headers: config.policy.session_headers.clone().into(),
        }),
        limits: capacity::Limits {
            streams_max: limits.streams_max,
            reading_max: limits.exchanges_max,
            held_bytes_max: limits.held_bytes_max,
            unread_after: Duration::from_millis(limits.core_wait_ms_max) / 2,
            refused_after: Duration::from_millis(limits.core_wait_ms_max),
        },
        patience: ext_proc::Patience {
            body: Duration::from_millis(limits.body_ms_max),
            silence: Duration::from_millis(limits.silence_ms_max),
            ..ext_proc::Patience::default()
        },
        grace: Duration::from_millis(limits.drain_ms_max),
    }
}

/// Names in a self-signed certificate; gateways do not look at them.
fn certificate_names() -> Vec<String> {
    ["kvscout", "localhost"].map(str::to_owned).to_vec()
}

async fn report_readiness(
    health: Health,
    mut readiness: watch::Receiver<std::collections::BTreeMap<&'static str, usize>>,
) -> anyhow::Result<()> {
    loop {
        let ready = readiness.borrow_and_update().is_empty();
        health.set_ready(ready).await;
        readiness.changed().await?;
    }
}

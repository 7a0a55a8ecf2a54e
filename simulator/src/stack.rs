//! Everything the mission's picture shows, on one machine: vLLM servers (simulated, in this
//! process, over real sockets), kvscout and Envoy (processes of their own).
//!
//! ```text
//! client → Envoy :plain  ─────────── least request ──→ pod-1 … pod-4
//!        → Envoy :routed ─ ext_proc → kvscout ← KV events ─┘
//! ```
//!
//! Nothing outlives a [`Stack`]: dropping it ends processes, servers and the folder of their
//! files, whatever happened. [`Stack::stop`] does the same in order.

mod child;
mod churn;
pub(crate) mod elsewhere;
pub mod envoy;
mod parts;
mod ports;
mod scrape;
mod start;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use kvscout::config::Tls;
use tempfile::TempDir;

use crate::engine::EngineConfig;
use crate::load::{Client, Message};
use crate::outgoing;
use crate::server::Bound;
use crate::timing::Timing;
use child::Child;
use elsewhere::Elsewhere;
pub use parts::{Parts, PartsArgs};
pub use ports::Ports;
pub use scrape::Scrape;

/// What a stack is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The programs and files that it needs.
    pub parts: Parts,
    /// The name the model is served by.
    pub model: String,
    /// LoRA adapters that every server has.
    pub adapters: Vec<String>,
    /// Whether kvscout writes its decisions down.
    pub decision_log: bool,
    /// Simulated servers.
    pub pods: usize,
    /// Their cache.
    pub engine: EngineConfig,
    /// Their speed.
    pub timing: Timing,
    /// Whether they leave the cores to whoever needs them, as machines of their own would: where others' latencies are
    /// measured. On busy cores they hardly get on.
    pub servers_give_way: bool,
    /// Where to listen.
    pub ports: Ports,
    /// How kvscout shows itself to Envoy.
    pub tls: Tls,
}

impl Plan {
    /// Servers that answer at once, on whatever ports are free.
    #[must_use]
    pub fn new(parts: Parts, model: &str, pods: usize) -> Self {
        Self {
            parts,
            model: model.to_owned(),
            adapters: Vec::new(),
            decision_log: false,
            pods,
            engine: EngineConfig::default(),
            timing: Timing::INSTANT,
            servers_give_way: false,
            ports: Ports::FREE,
            tls: Tls::default(),
        }
    }
}

/// A simulated server and the name that kvscout knows it by.
#[derive(Debug)]
pub struct Pod {
    /// `pod-1` and on.
    pub name: String,
    server: Bound,
}

impl Pod {
    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.addresses.http
    }
}

/// A running stack.
#[derive(Debug)]
pub struct Stack {
    /// The servers.
    pub pods: Vec<Pod>,
    /// Envoy's listener that balances by least request.
    pub plain: SocketAddr,
    /// Envoy's listener that kvscout routes.
    pub routed: SocketAddr,
    /// Where Envoy asks kvscout.
    pub ext_proc: SocketAddr,
    /// kvscout's /metrics.
    pub admin: SocketAddr,
    kvscout: Child,
    envoy: Child,
    http: reqwest::Client,
    plan: Plan,
    elsewhere: Elsewhere,
    /// Servers so far, those that left included.
    numbered: usize,
    /// Last, so that it goes when nobody writes into it any more.
    folder: TempDir,
}

/// From a server's event to kvscout's picture; it takes milliseconds.
const FOLLOW_MAX: Duration = Duration::from_secs(20);
/// One look at a page.
const LOOK_MAX: Duration = Duration::from_secs(5);

impl Stack {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// A part is missing, a port is taken, something ended or was not ready in time; with what
    /// it logged last. Nothing is left running.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        plan.parts.check()?;
        plan.ports.check()?;
        let folder = tempfile::Builder::new().prefix("kvscout-").tempdir()?;
        let http = outgoing::client().timeout(LOOK_MAX).build()?;
        let elsewhere = Elsewhere::new(plan.servers_give_way)?;
        let pods = start::pods(&plan, &elsewhere).await?;
        let (kvscout, ext_proc, admin) = start::kvscout(&plan, &pods, folder.path(), &http).await?;
        let (envoy, plain, routed) =
            start::envoy(&plan, &pods, ext_proc, folder.path(), &http).await?;
        Ok(Self {
            plain,
            routed,
            ext_proc,
            admin,
            kvscout,
            envoy,
            http,
            numbered: pods.len(),
            pods,
            plan,
            elsewhere,
            folder,
        })
    }

    /// Where configurations and logs are, while the stack runs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where kvscout writes its decisions, if it does.
    #[must_use]
    pub fn decision_log(&self) -> PathBuf {
        start::decision_log(self.folder())
    }

    /// The processes that run.
    #[must_use]
    pub fn process_ids(&self) -> Vec<u32> {
        [&self.kvscout, &self.envoy]
            .into_iter()
            .filter_map(Child::id)
            .collect()
    }

    /// A client of one of the listeners.
    ///
    /// # Errors
    /// None in practice.
    pub fn client(&self, of: SocketAddr) -> anyhow::Result<Client> {
        Client::new(format!("http://{of}"), &self.plan.model)
    }

    /// kvscout's metrics as of now.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn scrape(&self) -> anyhow::Result<Scrape> {
        scrape(&self.http, self.admin)
            .await
            .context("kvscout's /metrics does not answer")
    }

    /// A mark in kvscout's log, for [`Self::logged`].
    #[must_use]
    pub fn log_mark(&self) -> u64 {
        self.kvscout.mark()
    }

    /// Waits for kvscout to log a line with `part` after `mark`.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn logged(&mut self, mark: u64, part: &str) -> anyhow::Result<String> {
        let log = self.kvscout.log().to_owned();
        let what = format!("a log line with {part:?}");
        let look = async || child::line_since(&log, mark, part);
        self.kvscout.until(&what, FOLLOW_MAX, look).await
    }

    /// Waits until kvscout's picture of an endpoint holds this many blocks or more.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn holds(&mut self, endpoint: &str, tokens: u64) -> anyhow::Result<()> {
        let blocks = tokens / self.plan.engine.block_size as u64;
        let what = format!("{blocks} blocks in kvscout's picture of {endpoint}");
        self.pictured(&what, endpoint, |held| held >= blocks as f64)
            .await
    }

    /// Empties every server's prefix cache, and waits until kvscout's picture is empty too.
    ///
    /// # Errors
    /// A server still works, or the picture does not follow.
    pub async fn reset_caches(&mut self) -> anyhow::Result<()> {
        for pod in &self.pods {
            let url = format!("http://{}/reset_prefix_cache", pod.address());
            let answer = self.http.post(url).send().await?;
            ensure!(
                answer.status().is_success(),
                "{} does not reset: {}",
                pod.name,
                answer.status()
            );
            // An engine tells of it with its next step, so there must be one; this prompt is
            // too short to fill a block.
            self.client(pod.address())?
                .chat(&[Message::user("hi")], 1)
                .await?;
        }
        let names: Vec<String> = self.pods.iter().map(|pod| pod.name.clone()).collect();
        for name in names {
            let what = format!("an empty picture of {name}");
            self.pictured(&what, &name, |held| held == 0.0).await?;
        }
        Ok(())
    }

    async fn pictured(
        &mut self,
        what: &str,
        endpoint: &str,
        so: impl Fn(f64) -> bool,
    ) -> anyhow::Result<()> {
        let (http, admin, label) = (
            self.http.clone(),
            self.admin,
            format!("endpoint={endpoint:?}"),
        );
        let look = async || {
            let held = scrape(&http, admin)
                .await
                .ok()?
                .sum("kvscout_endpoint_blocks", &label)?;
            so(held).then_some(())
        };
        self.kvscout.until(what, FOLLOW_MAX, look).await
    }

    /// Ends everything: first who asks, then who is asked.
    pub async fn stop(self) {
        self.envoy.stop().await;
        self.kvscout.stop().await;
        for pod in self.pods {
            pod.server.shutdown().await;
        }
    }
}

/// The page of whoever has this admin port.
///
/// # Errors
/// It does not answer.
pub async fn scrape(http: &reqwest::Client, admin: SocketAddr) -> anyhow::Result<Scrape> {
    let answer = http.get(format!("http://{admin}/metrics")).send().await?;
    Ok(Scrape::parse(&answer.error_for_status()?.text().await?))
}

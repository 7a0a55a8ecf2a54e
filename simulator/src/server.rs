//! One simulated server: build it, know where it listens, stop it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::EngineConfig;
use crate::events::{EventConfig, FaultSwitch, Faults, Publisher, Sources};
use crate::http::{self, App, Rank};
use crate::runner::Runner;
use crate::text::Text;
use crate::timing::Timing;

/// How long open answers may go on when the server is asked to stop.
const GRACE: Duration = Duration::from_secs(2);

/// What a server is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen for HTTP: `127.0.0.1:0` for any free port.
    pub listen: String,
    /// The name the model is served by.
    pub model: String,
    /// A folder with `tokenizer.json`; none means the built-in toy tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// Names of LoRA adapters.
    pub adapters: Vec<String>,
    /// Prompt and answer together; none means what the blocks can hold.
    pub max_model_len: Option<usize>,
    /// Tokens of an answer whose request sets no limit.
    pub answer_tokens: usize,
    /// Whether usage says how much of a prompt was cached.
    pub prompt_tokens_details: bool,
    /// Engines behind the one HTTP address, each with a cache and event sockets of its own.
    pub data_parallel_size: u32,
    /// The scheduler and its blocks.
    pub engine: EngineConfig,
    /// The server's speed.
    pub timing: Timing,
    /// Where to publish KV cache events; none means nowhere.
    pub events: Option<EventConfig>,
    /// What goes wrong on their way.
    pub faults: Faults,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".into(),
            model: "sim".into(),
            tokenizer: None,
            adapters: Vec::new(),
            max_model_len: None,
            answer_tokens: 128,
            prompt_tokens_details: true,
            data_parallel_size: 1,
            engine: EngineConfig::default(),
            timing: Timing::default(),
            events: None,
            faults: Faults::default(),
        }
    }
}

/// Where a server listens, as bound: port 0 has become a real one.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// HTTP.
    pub http: SocketAddr,
    /// The event sockets, of the first rank.
    pub events: Option<Sources>,
}

/// A simulated vLLM server.
#[derive(Debug)]
pub struct Server;

/// A server that serves. Dropping it closes its sockets and ends the engine at once: streams
/// end with an error, connections that are kept alive answer 503.
#[derive(Debug)]
pub struct Bound {
    /// Where it listens.
    pub addresses: Addresses,
    stop: oneshot::Sender<()>,
    http: JoinSet<()>,
    /// The engine and the event sockets.
    _others: JoinSet<()>,
}

impl Server {
    /// Binds all sockets and serves.
    pub async fn start(config: Config) -> anyhow::Result<Bound> {
        let capacity = config.engine.capacity_tokens();
        let max_model_len = config
            .max_model_len
            .map_or(capacity, |len| len.min(capacity));
        let text = match &config.tokenizer {
            None => Text::builtin(max_model_len),
            Some(folder) => Text::load(folder, max_model_len)?,
        };
        let listener = TcpListener::bind(&config.listen).await;
        let listener = listener
            .with_context(|| format!("cannot listen on {}: is the port in use?", config.listen))?;
        let http_address = listener
            .local_addr()
            .context("the listener has no address")?;
        let mut others = JoinSet::new();
        let faults = FaultSwitch::new(config.faults);
        let mut ranks = Vec::new();
        for offset in 0..config.data_parallel_size.max(1) {
            let events = config.events.as_ref().map(|events| events.of_rank(offset));
            let (mut publisher, mut sources) = (None, None);
            if let Some(events) = &events {
                let topic = events.topic.clone();
                let topic = topic.unwrap_or_else(|| format!("kv@{http_address}@{}", config.model));
                let started = Publisher::start(events, topic, &faults, &mut others).await;
                let (started, bound) = started?;
                (publisher, sources) = (Some(started), Some(bound));
            }
            let (runner, engine) = Runner::new(config.engine.clone(), config.timing, publisher);
            others.spawn(runner.run());
            ranks.push(Rank {
                rank: events.map_or(offset, |events| events.rank),
                engine,
                sources,
            });
        }
        let addresses = Addresses {
            http: listener
                .local_addr()
                .context("the listener has no address")?,
            events: ranks[0].sources.clone(),
        };
        let router = http::router(Arc::new(App {
            ranks,
            text,
            max_model_len: config
                .max_model_len
                .map_or(capacity, |len| len.min(capacity)),
            engine_config: config.engine,
            model: config.model,
            adapters: config.adapters,
            answer_tokens: config.answer_tokens,
            prompt_tokens_details: config.prompt_tokens_details,
            faults,
            lora_history: Default::default(),
            created: http::now(),
        }));
        let (stop, stopped) = oneshot::channel::<()>();
        let mut http = JoinSet::new();
        http.spawn(async move {
            let stopped = async { drop(stopped.await) };
            let served = axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "HTTP is over");
            }
        });
        Ok(Bound {
            addresses,
            stop,
            http,
            _others: others,
        })
    }
}

impl Bound {
    /// Stops: no new connections, and a moment for answers under way.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(());
        if timeout(GRACE, self.http.join_next()).await.is_err() {
            tracing::info!("connections cut that were still open");
        }
    }
}

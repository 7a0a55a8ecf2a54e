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
use crate::events::{EventConfig, FaultSwitch, Faults, Sources};
use crate::http::{self, App};
use crate::process::{Recipe, Supervisor};
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
    /// Whether `engine.hash_seed` was drawn, so that a restart draws another.
    pub seed_drawn: bool,
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
            seed_drawn: false,
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
    /// The event sockets of the first process, of its first rank.
    pub events: Option<Sources>,
}

/// A simulated vLLM server.
#[derive(Debug)]
pub struct Server;

/// A server that serves. Dropping it closes its sockets and ends the engines at once: streams
/// end with an error, connections that are kept alive answer 503.
#[derive(Debug)]
pub struct Bound {
    /// Where it listens.
    pub addresses: Addresses,
    stop: oneshot::Sender<()>,
    http: JoinSet<()>,
    /// Whoever keeps the engines and the event sockets.
    _supervisor: JoinSet<()>,
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
            // It takes a second or two: not on a thread that serves others.
            Some(folder) => {
                let folder = folder.clone();
                tokio::task::spawn_blocking(move || Text::load(&folder, max_model_len)).await??
            }
        };
        let listener = TcpListener::bind(&config.listen).await;
        let listener = listener
            .with_context(|| format!("cannot listen on {}: is the port in use?", config.listen))?;
        let http_address = listener
            .local_addr()
            .context("the listener has no address")?;
        let faults = FaultSwitch::new(config.faults);
        let events = config.events;
        let topic = events.as_ref().and_then(|events| events.topic.clone());
        let of_rank = |offset| events.as_ref().map(|events| events.of_rank(offset));
        let (supervisor, processes) = Supervisor::start(Recipe {
            engine: config.engine.clone(),
            seed_drawn: config.seed_drawn,
            timing: config.timing,
            ranks: (0..config.data_parallel_size.max(1)).map(of_rank).collect(),
            topic: topic.unwrap_or_else(|| format!("kv@{http_address}@{}", config.model)),
            faults: faults.clone(),
        })
        .await?;
        let mut supervised = JoinSet::new();
        supervised.spawn(supervisor.run());
        let addresses = Addresses {
            http: http_address,
            events: processes.now().ranks[0].sources.clone(),
        };
        let router = http::router(Arc::new(App {
            processes,
            text,
            max_model_len,
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
            _supervisor: supervised,
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

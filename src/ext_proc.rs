//! The ext_proc server: streams, deadlines, back-pressure.
//!
//! Every request is one gRPC stream ([`service`]). A task drives it ([`drive`]) through the conversation
//! ([`exchange`]); what Envoy hears is made in [`reply`]. A connection and its streams live on one of a few
//! threads ([`lane`]).

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use self::authority::mend::Mended;
use self::lane::{End, Lane};
use self::service::Service;
use crate::door::{Door, Entrance};
use crate::metrics::Metrics;
use crate::scheduler::Scheduler;
use crate::spans::Spans;

mod arriving;
mod authority;
pub mod capacity;
mod drive;
pub mod exchange;
pub mod health;
mod lane;
mod read;
pub mod reply;
pub mod restore;
mod service;
pub mod usage;

pub use capacity::Capacity;
pub use exchange::Rules;
pub use health::Health;

/// Streams on one connection. Envoy opens another connection where it needs more.
const CONNECTION_STREAMS_MAX: u32 = 16_384;
/// What one stream may have in flight: a body of 200,000 tokens comes without a wait for us to say that there is room.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// The same for all streams of a connection, so that one large body does not starve the others.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// After the grace, and the word to every exchange: for connections to close.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What the operator decides about the ext_proc server.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtProcSettings {
    /// How exchanges go.
    pub rules: Arc<Rules>,
    /// How much all exchanges together may take.
    pub limits: capacity::Limits,
    /// How long an exchange waits for whom.
    pub patience: Patience,
    /// How long exchanges may go on after a shutdown began.
    pub grace: Duration,
}

/// How long an exchange waits for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For its first message; one that says nothing is ended.
    pub first: Duration,
    /// From its first message to the end of the body; then the body passes, and load decides.
    pub body: Duration,
    /// For anything to move, either way; then it is ended, and its load given back.
    pub silence: Duration,
    /// How often a silent connection is asked whether it lives, and how long it may take to say so:
    /// a gateway whose machine died says no goodbye, and its exchanges hold load until then.
    pub keepalive: (Duration, Duration),
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // Envoy opens a stream to say something.
            first: Duration::from_secs(10),
            body: Duration::from_secs(10),
            // An answer that does not stream says nothing while it is made.
            silence: Duration::from_secs(3600),
            keepalive: (Duration::from_secs(20), Duration::from_secs(10)),
        }
    }
}

impl Default for ExtProcSettings {
    fn default() -> Self {
        Self {
            rules: Arc::default(),
            limits: capacity::Limits::default(),
            patience: Patience::default(),
            grace: Duration::from_secs(30),
        }
    }
}

/// Why the server ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The server could not be made.
    #[error("the ext_proc server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// There is no thread for a lane.
    #[error("no thread to serve ext_proc on: {0}")]
    Thread(std::io::Error),
    /// A bug of ours or of a library's; the panic's own message is on stderr.
    #[error("a thread that serves ext_proc panicked")]
    Panicked,
}

/// What a server works with.
#[derive(Clone)]
pub struct Parts {
    /// Who chooses.
    pub scheduler: Arc<Scheduler>,
    /// What is answered to probes on the same port.
    pub health: Health,
    /// How much it takes on.
    pub capacity: Arc<Capacity>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

/// Serves ext_proc and health to who comes in by `door` until `shutdown`; then takes no new streams, and
/// returns when the last exchange has finished, or has been told that the grace is over.
///
/// # Errors
/// Where the server cannot be made.
pub async fn serve(
    door: Door,
    parts: Parts,
    settings: ExtProcSettings,
    spans: Option<Arc<Spans>>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let grace = settings.grace;
    let (exchanges, over) = (TaskTracker::new(), CancellationToken::new());
    let (ending, abandoned) = (CancellationToken::new(), CancellationToken::new());
    // Whatever becomes of this future, no thread outlives it for long.
    let _abandons = abandoned.clone().drop_guard();
    let common = Arc::new(Common {
        parts,
        settings: Arc::new(settings),
        spans,
        exchanges: exchanges.clone(),
        over: over.clone(),
        number: AtomicU64::new(0),
    });
    let lanes = common.parts.capacity.delays().len();
    let (usher, entrances) = door.split(lanes);
    let mut lanes = Vec::with_capacity(entrances.len());
    for (number, entrance) in entrances.into_iter().enumerate() {
        let served = common.clone().serve(number, entrance, ending.clone());
        let name = format!("ext_proc-{number}");
        lanes.push(Lane::start(name, abandoned.clone(), served).map_err(ServeError::Thread)?);
    }
    let mut lanes: FuturesUnordered<_> = lanes.into_iter().map(Lane::end).collect();
    // A lane that ends unbidden ends all of them.
    let first = tokio::select! {
        first = lanes.next() => first,
        () = usher.run() => None,
        () = shutdown => None,
    };
    ending.cancel();
    let mut rest = pin!(lanes.collect::<Vec<_>>());
    let mut ended = timeout(grace, &mut rest).await.ok();
    if ended.is_none() {
        tracing::warn!(
            ?grace,
            open = exchanges.len(),
            "exchanges were still open when the grace was over"
        );
        over.cancel();
    }
    // Each has heard that its connection closed, or the word above: none waits for anybody else.
    exchanges.close();
    exchanges.wait().await;
    if ended.is_none() {
        ended = timeout(CLOSE_MAX, &mut rest).await.ok();
    }
    abandoned.cancel();
    let ended = match ended {
        Some(ended) => ended,
        None => rest.await,
    };
    for end in first.into_iter().chain(ended) {
        match end {
            End::Done(served) => served?,
            End::Abandoned => {}
            End::Panicked => return Err(ServeError::Panicked),
        }
    }
    Ok(())
}

/// What all lanes have in common.
struct Common {
    parts: Parts,
    settings: Arc<ExtProcSettings>,
    spans: Option<Arc<Spans>>,
    exchanges: TaskTracker,
    /// The grace is over.
    over: CancellationToken,
    /// The next exchange's.
    number: AtomicU64,
}

impl Common {
    /// Serves who comes in by one entrance, until it is told to end, and then until their last stream has ended.
    async fn serve(
        self: Arc<Self>,
        lane: usize,
        entrance: Entrance,
        ending: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let (settings, capacity) = (&self.settings, self.parts.capacity.clone());
        let (interval, patience) = settings.patience.keepalive;
        let server = Server::builder()
            .max_concurrent_streams(CONNECTION_STREAMS_MAX)
            // Against strangers h2 ends a connection at twenty; a gateway's is for all of its clients.
            .http2_max_pending_accept_reset_streams(Some(CONNECTION_STREAMS_MAX as usize))
            .http2_keepalive_interval(Some(interval))
            .http2_keepalive_timeout(Some(patience))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let health = self.parts.health.service();
        let connections = entrance.connections();
        let connections = Box::pin(connections.map(|connection| connection.map(Mended::new)));
        let service = Service::new(self, lane, health);
        let served =
            server.serve_with_incoming_shutdown(service, connections, ending.cancelled_owned());
        tokio::select! {
            served = served => served,
            never = capacity.delays()[lane].watch() => match never {},
        }
    }
}

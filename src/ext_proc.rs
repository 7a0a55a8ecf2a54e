//! The ext_proc server: streams, deadlines, back-pressure.
//!
//! Every request is one gRPC stream. A task drives it ([`drive`]) through the conversation
//! ([`exchange`]); what Envoy hears is made in [`reply`]. A connection and its streams live on one of a few
//! threads ([`lane`]).

use std::option;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::{self, Chain, FuturesUnordered, Iter, Map};
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use self::arriving::Counted;
use self::authority::mend::Mended;
use self::authority::{Shown, pool_hint};
use self::lane::{End, Lane};
use crate::door::{Door, Entrance};
use crate::metrics::Metrics;
use crate::proto::ext_proc::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use crate::proto::ext_proc::{ProcessingRequest, ProcessingResponse};
use crate::scheduler::{Refusal, Scheduler};
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
pub mod usage;

pub use capacity::Capacity;
pub use exchange::Rules;
pub use health::Health;

/// Replies between a driver and its gRPC stream. Eight chunks of 62 kB keep a connection busy.
const REPLIES_MAX: usize = 8;
/// Streams on one connection. Envoy opens another connection where it needs more.
const CONNECTION_STREAMS_MAX: u32 = 16_384;
/// What one stream may have in flight: a body of 200,000 tokens comes without a wait for us to say that there is room.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// The same for all streams of a connection, so that one large body does not starve the others.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// After the grace, and the word to every exchange: for connections to close.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// What a message may have beyond a body: headers and framing.
const MESSAGE_SLACK_BYTES: usize = 1024 * 1024;
/// The largest message at least. In buffered mode a whole body is one message, and one beyond the
/// limit for reading must still be heard to be passed on.
const MESSAGE_BYTES_MIN: usize = 64 * 1024 * 1024;

/// What the operator decides about the ext_proc server.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtProcSettings {
    /// How exchanges go.
    pub rules: Rules,
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
            rules: Rules::default(),
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
    let common = Common {
        parts,
        settings: Arc::new(settings),
        spans,
        exchanges: exchanges.clone(),
        over: over.clone(),
        number: Arc::default(),
    };
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
#[derive(Clone)]
struct Common {
    parts: Parts,
    settings: Arc<ExtProcSettings>,
    spans: Option<Arc<Spans>>,
    exchanges: TaskTracker,
    /// The grace is over.
    over: CancellationToken,
    /// The next exchange's.
    number: Arc<AtomicU64>,
}

impl Common {
    /// Serves who comes in by one entrance, until it is told to end, and then until their last stream has ended.
    async fn serve(
        self,
        lane: usize,
        entrance: Entrance,
        ending: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let (settings, capacity) = (&self.settings, self.parts.capacity.clone());
        let (interval, patience) = settings.patience.keepalive;
        let mut server = Server::builder()
            .max_concurrent_streams(CONNECTION_STREAMS_MAX)
            // Against strangers h2 ends a connection at twenty; a gateway's is for all of its clients.
            .http2_max_pending_accept_reset_streams(Some(CONNECTION_STREAMS_MAX as usize))
            .http2_keepalive_interval(Some(interval))
            .http2_keepalive_timeout(Some(patience))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let message_bytes_max =
            settings.rules.body_bytes_max.max(MESSAGE_BYTES_MIN) + MESSAGE_SLACK_BYTES;
        let (health, metrics) = (self.parts.health.service(), self.parts.metrics.clone());
        let service = Service { common: self, lane };
        let service =
            ExternalProcessorServer::new(service).max_decoding_message_size(message_bytes_max);
        let connections = entrance.connections();
        let connections = Box::pin(connections.map(|connection| connection.map(Mended::new)));
        let watched = capacity.clone();
        let served = server
            .add_service(Shown(Counted {
                service,
                capacity,
                metrics,
            }))
            .add_service(health)
            .serve_with_incoming_shutdown(connections, ending.cancelled_owned());
        tokio::select! {
            served = served => served,
            never = watched.delays()[lane].watch() => match never {},
        }
    }
}

/// The gRPC service on one lane.
struct Service {
    common: Common,
    lane: usize,
}

/// What Envoy hears, one after the other, of which the first is there; unpacked at the last moment.
type Replies = Map<
    Chain<Iter<option::IntoIter<drive::Reply>>, mpsc::Receiver<drive::Reply>>,
    fn(drive::Reply) -> Result<ProcessingResponse, Status>,
>;

#[tonic::async_trait]
impl ExternalProcessor for Service {
    type ProcessStream = Replies;

    /// Written out as `async_trait` would: an `async fn` keeps room for its request until the first reply, 0.5 kB a stream.
    fn process<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Replies>, Status>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
    {
        Box::pin(answer(self.begin(request)))
    }
}

/// Answers the call with its first reply, and not before: until then Envoy can ask another picker where this
/// one dies (`retry_policy`), and no longer once it has seen response headers.
async fn answer(mut replies: mpsc::Receiver<drive::Reply>) -> Result<Response<Replies>, Status> {
    let first = replies.next().await.transpose()?.map(Ok);
    let all = stream::iter(first).chain(replies);
    let unpacked: fn(drive::Reply) -> _ = |reply| reply.map(|reply| *reply);
    Ok(Response::new(all.map(unpacked)))
}

impl Service {
    /// Begins an exchange; where its replies will be.
    fn begin(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> mpsc::Receiver<drive::Reply> {
        let common = &self.common;
        let Some(place) = common.parts.capacity.enter(self.lane) else {
            return self.refuse();
        };
        // And one more, which the channel keeps for its only sender.
        let (replies, heard) = mpsc::channel(REPLIES_MAX - 1);
        let number = common.number.fetch_add(1, Ordering::Relaxed);
        let id = format!("kvscout-{number}");
        let drive = Box::new(drive::Drive::new(
            common.settings.clone(),
            (id, pool_hint(&request)),
            common.parts.scheduler.clone(),
            place,
            drive::Tracing::of(request.metadata(), common.spans.clone()),
        ));
        let (metrics, over) = (common.parts.metrics.clone(), common.over.clone());
        let mut said = request.into_inner();
        common.exchanges.spawn(async move {
            let ended = drive.run(&mut said, replies, &over).await;
            if let Some(reason) = ended.reason() {
                metrics.exchange_given_up(reason);
            }
        });
        heard
    }

    /// The answer to one too many: before it has said anything, so that it costs next to nothing.
    fn refuse(&self) -> mpsc::Receiver<drive::Reply> {
        let metrics = &self.common.parts.metrics;
        metrics.answered(None, ("", "", Refusal::Overloaded.as_str()));
        let (mut replies, heard) = mpsc::channel(0);
        let refused = Box::new(reply::refused(Refusal::Overloaded));
        replies.try_send(Ok(refused)).expect("it has room for one");
        heard
    }
}

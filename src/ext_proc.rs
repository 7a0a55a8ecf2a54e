//! The ext_proc server: streams, deadlines, back-pressure.
//!
//! Every request is one gRPC stream. A task drives it ([`drive`]) through the conversation
//! ([`exchange`]); what Envoy hears is made in [`reply`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use self::authority::mend::Mended;
use self::authority::{Shown, pool_hint};
use crate::config::Tls;
use crate::proto::ext_proc::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use crate::proto::ext_proc::{ProcessingRequest, ProcessingResponse};
use crate::scheduler::Scheduler;
use crate::spans::Spans;

mod authority;
mod drive;
pub mod exchange;
pub mod health;
mod read;
pub mod reply;
pub mod restore;
pub mod tls;
pub mod usage;

pub use exchange::Rules;
pub use health::Health;
pub use tls::TlsError;

/// Replies between a driver and its gRPC stream. Eight chunks of 62 kB keep a connection busy.
const REPLIES_MAX: usize = 8;
/// Streams on one connection. Envoy opens another connection where it needs more.
const CONNECTION_STREAMS_MAX: u32 = 16_384;
/// What one stream may have in flight: four buffers of Envoy's.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same for all streams of a connection, so that one large body does not starve the others.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// How often a silent connection is asked whether it lives, and how long it may take to say so:
/// a gateway whose machine died says no goodbye, and its exchanges hold load until then.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
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
    /// Bytes of bodies that all exchanges together may hold; past it bodies are not held, and
    /// load decides.
    pub held_bytes_max: usize,
    /// Exchanges that may read their bodies at once. Beyond it nothing is refused, but requests
    /// are placed by load, so that memory has a limit: this many bodies.
    pub reading_max: usize,
    /// Names in a self-signed certificate. In a cluster, add `<service>.<namespace>.svc`.
    pub certificate_names: Vec<String>,
    /// How long exchanges may go on after a shutdown began.
    pub grace: Duration,
}

impl Default for ExtProcSettings {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            held_bytes_max: 1 << 30,
            reading_max: 4096,
            certificate_names: vec!["kvscout".to_owned(), "localhost".to_owned()],
            grace: Duration::from_secs(30),
        }
    }
}

/// Why the server ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// It has no certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate does not fit, or the listener failed.
    #[error("the ext_proc server failed: {0}; check the certificate, its key and the port")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves ext_proc and health on `listener` until `shutdown`; then takes no new streams, and
/// returns when the last exchange has finished or the grace is over.
///
/// # Errors
/// Where the certificate or the listener fails.
pub async fn serve(
    listener: TcpListener,
    tls: &Tls,
    scheduler: Arc<Scheduler>,
    health: &Health,
    settings: ExtProcSettings,
    spans: Option<Arc<Spans>>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let grace = settings.grace;
    let mut server = Server::builder()
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let tls = tls::acceptor(tls, &settings.certificate_names).await?;
    let message_bytes_max =
        settings.rules.body_bytes_max.max(MESSAGE_BYTES_MIN) + MESSAGE_SLACK_BYTES;
    let service = ExternalProcessorServer::new(Service::new(scheduler, settings, spans))
        .max_decoding_message_size(message_bytes_max);
    let services = server
        .add_service(Shown(service))
        .add_service(health.service());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (began, ending) = oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        // Where the server has ended by itself, nobody waits for this.
        let _ = began.send(());
    };
    let served = match tls {
        None => {
            let connections = incoming.map(|connection| connection.map(Mended::new));
            services
                .serve_with_incoming_shutdown(connections, shutdown)
                .boxed()
        }
        Some(tls) => {
            let connections = tls::accepted(incoming, tls);
            let connections = connections.map(|connection| connection.map(Mended::new));
            services
                .serve_with_incoming_shutdown(connections, shutdown)
                .boxed()
        }
    };
    tokio::select! {
        ended = served => Ok(ended?),
        () = grace_over(ending, grace) => {
            tracing::warn!(?grace, "exchanges were still open when the grace was over");
            Ok(())
        }
    }
}

async fn grace_over(ending: oneshot::Receiver<()>, grace: Duration) {
    match ending.await {
        Ok(()) => tokio::time::sleep(grace).await,
        Err(_) => std::future::pending().await,
    }
}

/// The gRPC service.
struct Service {
    scheduler: Arc<Scheduler>,
    settings: ExtProcSettings,
    spans: Option<Arc<Spans>>,
    reading: Arc<Semaphore>,
    memory: Arc<drive::Memory>,
    exchanges: AtomicU64,
}

impl Service {
    fn new(
        scheduler: Arc<Scheduler>,
        settings: ExtProcSettings,
        spans: Option<Arc<Spans>>,
    ) -> Self {
        Self {
            scheduler,
            spans,
            reading: Arc::new(Semaphore::new(settings.reading_max)),
            memory: Arc::new(drive::Memory::new(settings.held_bytes_max)),
            settings,
            exchanges: AtomicU64::new(0),
        }
    }
}

#[tonic::async_trait]
impl ExternalProcessor for Service {
    type ProcessStream = ReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let (replies, stream) = mpsc::channel(REPLIES_MAX);
        let number = self.exchanges.fetch_add(1, Ordering::Relaxed);
        let reading = self.reading.clone().try_acquire_owned().ok();
        let id = format!("kvscout-{number}");
        let drive = drive::Drive::new(
            (self.settings.rules.clone(), id, pool_hint(&request)),
            self.scheduler.clone(),
            self.memory.clone(),
            reading,
            drive::Tracing::of(request.metadata(), self.spans.clone()),
        );
        tokio::spawn(async move {
            drive.run(request.into_inner(), replies).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

//! A vLLM publisher, heard over ZeroMQ.
//!
//! vLLM's PUB socket never waits for us: it keeps 100,000 messages per subscriber and then drops
//! the newest. Yet its process pays for that memory, so the socket is read as fast as it
//! fills, and what the consumer cannot take yet waits, or is dropped, on our side.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::Instrument;

use super::backoff::Backoff;
use super::discover::{DiscoverError, Discovery, ReplayAt};
use super::queue::Queue;
use super::zmtp::{Address, AddressError, Connection, Incoming, LinkError, Role};
use super::{Delivery, EventSource};

pub use super::queue::Depth;

/// What hearing one server may cost, and how patient to be with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Messages that wait for the consumer. At 100 batches a second, a busy server's rate,
    /// 10,000 are 100 seconds.
    pub queue_messages_max: usize,
    /// Bytes that wait for the consumer.
    pub queue_bytes_max: usize,
    /// One message. A batch holds one engine step: a million tokens of 5 bytes are 5 MiB.
    pub message_bytes_max: usize,
    /// All batches of one replay. vLLM keeps the last 10,000 (`buffer_steps`): 256 MiB are
    /// 26 KiB for each, some 5,000 tokens a step.
    pub replay_bytes_max: usize,
    /// From the first packet to the end of the handshake.
    pub connect_max: Duration,
    /// How often a peer is asked for a sign of life.
    pub ping_every: Duration,
    /// Without any sign of life for this long, the connection counts as dead.
    pub silence_max: Duration,
    /// The wait before the first new attempt; it doubles with each failure. Half of every
    /// wait is random, so that a fleet's subscribers do not come back as one.
    pub backoff_min: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_messages_max: 10_000,
            queue_bytes_max: 64 << 20,
            message_bytes_max: 16 << 20,
            replay_bytes_max: 256 << 20,
            connect_max: Duration::from_secs(5),
            ping_every: Duration::from_secs(5),
            silence_max: Duration::from_secs(15),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// One server's live events. Dropping it ends the task that reads and closes the connection.
#[derive(Debug)]
pub struct ZmqSource {
    queue: Arc<Queue>,
    task: JoinHandle<()>,
}

impl ZmqSource {
    /// Begins to listen to `publisher`, tcp://host:port, for topics that start with `topic_prefix` (empty:
    /// all). Returns at once: a server that is not up yet is tried again and again.
    ///
    /// # Errors
    /// The address is not one to connect to.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(
        publisher: &str,
        topic_prefix: &str,
        limits: Limits,
    ) -> Result<Self, AddressError> {
        let place = Place::At(publisher.parse()?);
        let span = tracing::info_span!("zmq", publisher);
        Ok(Self::open(place, topic_prefix, limits, span))
    }

    /// The same for a publisher whose server is asked where it is, before every connection. Where
    /// it replays is written to `replay`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn discover(
        discovery: Discovery,
        replay: ReplayAt,
        topic_prefix: &str,
        limits: Limits,
    ) -> Self {
        let span = tracing::info_span!("zmq", discovered = discovery.url());
        let place = Place::Discovered(discovery, replay);
        Self::open(place, topic_prefix, limits, span)
    }

    fn open(place: Place, topic_prefix: &str, limits: Limits, span: tracing::Span) -> Self {
        let queue = Queue::new(limits.queue_messages_max, limits.queue_bytes_max);
        let queue = Arc::new(queue);
        let listener = Listener {
            place,
            subscription: [&[1], topic_prefix.as_bytes()].concat(),
            limits,
            queue: queue.clone(),
        };
        let task = tokio::spawn(listener.run().instrument(span));
        Self { queue, task }
    }

    /// A reader of how much waits here, that may outlive the source.
    #[must_use]
    pub fn gauge(&self) -> DepthGauge {
        DepthGauge(self.queue.clone())
    }
}

impl EventSource for ZmqSource {
    async fn next(&mut self) -> Option<Delivery> {
        self.queue.pop().await
    }
}

impl Drop for ZmqSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads how much waits in a source.
#[derive(Debug, Clone)]
pub struct DepthGauge(pub(super) Arc<Queue>);

impl DepthGauge {
    /// As of now.
    #[must_use]
    pub fn read(&self) -> Depth {
        self.0.depth()
    }
}

/// Where a publisher is.
enum Place {
    At(Address),
    /// Where its server says that it is; and so for its replay socket.
    Discovered(Discovery, ReplayAt),
}

/// Why a publisher is not heard.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Place(#[from] DiscoverError),
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl Place {
    async fn find(&self) -> Result<Address, Unheard> {
        match self {
            Self::At(address) => Ok(address.clone()),
            Self::Discovered(discovery, replay) => {
                let found = discovery.ask().await?;
                tracing::debug!(publisher = found.publisher, replay = ?found.replay, "discovered");
                let address = found.publisher.parse()?;
                replay.set(found.replay);
                Ok(address)
            }
        }
    }
}

/// The task behind a source.
struct Listener {
    place: Place,
    /// 1, then the prefix: a SUB's request, as a message (ZMTP 3.0 and 3.1 both take it).
    subscription: Vec<u8>,
    limits: Limits,
    queue: Arc<Queue>,
}

/// Whatever ends the task, a panic included, ends the source.
impl Drop for Listener {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Listener {
    async fn run(self) {
        let mut backoff = Backoff::new(self.limits.backoff_min, self.limits.backoff_max);
        loop {
            let begun = Instant::now();
            let error = match self.subscribe().await {
                Ok(connection) => {
                    tracing::info!("connected");
                    self.queue.push(Delivery::Connected);
                    Unheard::from(self.listen(connection).await)
                }
                Err(error) => error,
            };
            let reason = error.to_string();
            tracing::debug!(reason, "disconnected");
            self.queue.push(Delivery::Disconnected { reason });
            sleep(backoff.after(begun.elapsed())).await;
        }
    }

    async fn subscribe(&self) -> Result<Connection, Unheard> {
        let address = self.place.find().await?;
        let Limits {
            connect_max,
            message_bytes_max,
            ..
        } = self.limits;
        let mut connection =
            Connection::open(&address, Role::Sub, connect_max, message_bytes_max).await?;
        connection.send(&[&self.subscription]).await?;
        Ok(connection)
    }

    /// Reads until the connection ends, and says why it did.
    async fn listen(&self, mut connection: Connection) -> LinkError {
        let mut heartbeat = interval(self.limits.ping_every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                incoming = connection.next() => match incoming {
                    Ok(incoming) => self.take(incoming, &mut connection).await,
                    Err(error) => Err(error),
                },
                _ = heartbeat.tick() => check_life(&mut connection, &self.limits).await,
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    async fn take(&self, incoming: Incoming, connection: &mut Connection) -> Result<(), LinkError> {
        match incoming {
            Incoming::Message(frames) => self.queue.push(Delivery::from_frames(&frames)),
            Incoming::Ping(context) => connection.pong(&context).await?,
            Incoming::Command(_) => {}
        }
        Ok(())
    }
}

/// A host that vanished sends nothing, and neither does an idle server: only an unanswered
/// question tells them apart.
pub(super) async fn check_life(
    connection: &mut Connection,
    limits: &Limits,
) -> Result<(), LinkError> {
    if !connection.has_heartbeat() {
        return Ok(());
    }
    if connection.heard().elapsed() > limits.silence_max {
        return Err(LinkError::Silent(limits.silence_max));
    }
    connection.ping().await
}

//! One endpoint's batches out of the stream: the newest snapshot first, then what followed it.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::{Message, jetstream};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{Fuse, FusedFuture as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::StreamExt as _;
use tracing::Instrument;

use super::{Beat, Cluster, NatsError, backoff, born, of_headers};
use crate::events::order::{Linked, Links};
use crate::events::snapshot::Snapshot;
use crate::events::{Batch, Delivery, EventSource};
use crate::fleet::Endpoint;

/// Deliveries that wait for the consumer: the stream keeps the rest.
const WAITING_MAX: usize = 256;
/// Without a bridge's word for so long, nobody knows whether the picture still holds.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// For so long a message may be missing that others were sent after, and a batch that a bridge
/// says it has published.
const LATE_MAX: Duration = Duration::from_secs(10);
/// Between two looks for a snapshot that makes a picture whole.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// One endpoint's events. Dropping it ends the task that reads.
#[derive(Debug)]
pub struct NatsSource {
    deliveries: mpsc::Receiver<Delivery>,
    wanted: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl NatsSource {
    /// Begins to read. Returns at once; a cluster that is not up yet is tried again and again.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn open(cluster: &Cluster, endpoint: &Arc<Endpoint>) -> Self {
        let (deliver, deliveries) = mpsc::channel(WAITING_MAX);
        let span = tracing::info_span!("nats", endpoint = endpoint.name);
        let wanted = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            wanted: wanted.clone(),
            cluster: cluster.clone(),
            endpoint: endpoint.clone(),
            deliver,
            links: Links::after(None),
            at: None,
            whole: false,
            sure: false,
            used: None,
            found: None,
            live: false,
            awaited: None,
            heard: Instant::now(),
            late_since: None,
        };
        let task = tokio::spawn(reader.run().instrument(span));
        Self {
            deliveries,
            wanted,
            task,
        }
    }
}

impl EventSource for NatsSource {
    async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }

    fn want_snapshot(&mut self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }
}

impl Drop for NatsSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task behind a source.
struct Reader {
    cluster: Cluster,
    endpoint: Arc<Endpoint>,
    deliver: mpsc::Sender<Delivery>,
    /// Whether the consumer's picture is incomplete.
    wanted: Arc<AtomicBool>,
    links: Links<Bytes>,
    /// The stream, by its time of birth, and the last message that counts.
    at: Option<(i64, u64)>,
    /// Whether everything that the server held is in what was told.
    whole: bool,
    /// Whether the consumer was told that all is well.
    sure: bool,
    /// The snapshot that was used last: its stream, its place there, its last batch.
    used: Option<(i64, u64, u64)>,
    /// One that makes the picture whole.
    found: Option<Snapshot>,
    /// Whether its bridge hears the server and has all that it held.
    live: bool,
    /// What a bridge said it had published, where that has not come yet, and since when.
    awaited: Option<((u64, u64), Instant)>,
    /// When a bridge was heard last.
    heard: Instant,
    /// Since when something is missing.
    late_since: Option<Instant>,
}

/// Why a session ends.
enum Ended {
    /// The consumer is gone.
    Unwanted,
    /// Something is missing for good, or a snapshot was found.
    Again,
    /// The connection is another one.
    Reconnected,
    Failed(NatsError),
}

impl From<NatsError> for Ended {
    fn from(error: NatsError) -> Self {
        Self::Failed(error)
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Ended {
    Ended::Failed(NatsError::new(what, error))
}

impl Reader {
    async fn run(mut self) {
        let mut backoff = backoff();
        loop {
            let begun = Instant::now();
            let Err(ended) = self.read().await;
            match ended {
                Ended::Unwanted => return,
                Ended::Again => {}
                // What was held for want of something before it comes again with that.
                Ended::Reconnected => self.links = Links::after(self.links.last()),
                Ended::Failed(error) => {
                    tracing::debug!(%error, "not read");
                    let reason = format!("not read from NATS: {error}");
                    if self.doubt(true, reason).await.is_err() {
                        return;
                    }
                    sleep(backoff.after(begun.elapsed())).await;
                }
            }
        }
    }

    /// Reads until something ends it.
    async fn read(&mut self) -> Result<Infallible, Ended> {
        let mut connections = self.cluster.connections.clone();
        connections.mark_unchanged();
        let stream = self.cluster.stream().await?;
        let created = born(&stream);
        let beats = self.cluster.beat_subject(&self.endpoint);
        let beats = self.cluster.client.subscribe(beats).await;
        let mut beats = beats.map_err(|error| failed("bridges cannot be heard", &error))?;
        self.start(created).await?;
        let from = self.at.map_or(0, |(_, seq)| seq) + 1;
        let consumer = stream
            .create_consumer(OrderedConfig {
                filter_subject: self.cluster.subject(&self.endpoint),
                deliver_policy: DeliverPolicy::ByStartSequence {
                    start_sequence: from,
                },
                ..OrderedConfig::default()
            })
            .await
            .map_err(|error| failed("a consumer", &error))?;
        let messages = consumer.messages().await;
        let mut messages = messages.map_err(|error| failed("a consumer", &error))?;
        self.heard = Instant::now();
        self.cluster.ask(&self.endpoint).await?;
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = Instant::now() + LOOK_EVERY;
        let mut looking = pin!(Fuse::terminated());
        loop {
            tokio::select! {
                // The consumer lives in a server's memory. One that started again has it no more,
                // and async-nats 0.51 takes 16 s to say so: it asks for it five times before.
                Ok(()) = connections.changed() => return Err(Ended::Reconnected),
                message = messages.next() => match message {
                    Some(Ok(message)) => self.on_message(created, message).await?,
                    Some(Err(error)) => return Err(failed("the stream", &error)),
                    None => return Err(failed("the stream", &"it ended")),
                },
                beat = beats.next() => match beat {
                    Some(beat) => self.on_beat(&beat).await?,
                    None => return Err(failed("bridges", &"the connection was closed")),
                },
                _ = ticks.tick() => {
                    self.on_tick().await?;
                    let due = Instant::now() > look && looking.is_terminated();
                    if due && self.is_snapshot_wanted() {
                        look = Instant::now() + LOOK_EVERY;
                        looking.set(self.newest(created).fuse());
                    }
                }
                // Beside the stream: a bucket that does not answer holds up nothing.
                newest = &mut looking => self.on_newest(newest)?,
            }
        }
    }

    /// Finds where to read from: on where we were, or after the newest snapshot.
    async fn start(&mut self, created: i64) -> Result<(), Ended> {
        let known = self.at.is_some_and(|(stream, _)| stream == created);
        let found = self.found.take();
        let newest = match (found.filter(|found| found.stream_created == created), known) {
            (Some(found), _) => Ok(Some(found)),
            (None, true) if !self.is_snapshot_wanted() => Ok(None),
            (None, _) => self.newest(created).await,
        };
        (self.late_since, self.awaited) = (None, None);
        let none = match newest {
            Ok(Some(snapshot)) => {
                self.used = Some((created, snapshot.stream_seq, snapshot.seq));
                self.links = Links::after(Some((snapshot.epoch, snapshot.seq)));
                self.at = Some((created, snapshot.stream_seq));
                self.whole = snapshot.whole;
                self.doubt(false, "catching up with the stream".to_owned())
                    .await?;
                return self.tell(Delivery::Snapshot(Box::new(snapshot))).await;
            }
            Ok(None) => "no snapshot".to_owned(),
            Err(error) => {
                tracing::warn!(%error, "snapshots cannot be read; going by the stream alone");
                format!("no snapshot ({error})")
            }
        };
        if !known {
            if self.at.is_some() {
                self.tell(Delivery::Restarted).await?;
            }
            (self.links, self.at, self.whole) = (Links::after(None), Some((created, 0)), false);
            self.doubt(false, format!("{none}, and no event seen yet"))
                .await?;
        } else if self.links.waits() {
            // What is missing is gone: the next batch shows how much.
            self.links = Links::after(None);
        }
        Ok(())
    }

    /// The newest snapshot, if it belongs to this stream and was not used already.
    fn newest(
        &self,
        created: i64,
    ) -> impl Future<Output = Result<Option<Snapshot>, NatsError>> + use<> {
        let (cluster, endpoint, used) = (self.cluster.clone(), self.endpoint.clone(), self.used);
        async move {
            let newest = cluster.read_snapshot(&endpoint).await?;
            Ok(newest.filter(|snapshot| {
                let here = (snapshot.stream_created, snapshot.stream_seq, snapshot.seq);
                here.0 == created && used != Some(here)
            }))
        }
    }

    fn is_snapshot_wanted(&self) -> bool {
        !self.whole || self.wanted.load(Ordering::Relaxed)
    }

    /// Goes on from a snapshot that makes the picture whole.
    fn on_newest(&mut self, newest: Result<Option<Snapshot>, NatsError>) -> Result<(), Ended> {
        match newest {
            Ok(Some(snapshot)) if snapshot.whole && self.is_snapshot_wanted() => {
                self.found = Some(snapshot);
                Err(Ended::Again)
            }
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, "no snapshot");
                Ok(())
            }
        }
    }

    async fn on_message(&mut self, created: i64, message: jetstream::Message) -> Result<(), Ended> {
        let info = message
            .info()
            .map_err(|error| failed("a message", &error))?;
        let stream_seq = info.stream_sequence;
        let headers = message.headers.as_ref();
        let Some(stamp) = headers.and_then(of_headers) else {
            let reason = "a message of the stream has none of a bridge's headers".to_owned();
            return self.tell(Delivery::Malformed { reason }).await;
        };
        let before = self.links.last();
        let Some(steps) = self.links.take(stamp, message.payload.clone()) else {
            self.whole = false;
            return Err(Ended::Again);
        };
        let mut last = before;
        for step in steps {
            match step {
                Linked::Restarted => {
                    (self.whole, last) = (false, None);
                    self.tell(Delivery::Restarted).await?;
                }
                Linked::Next(stamp, payload) => {
                    match last {
                        // The first of its process, or one with others lost before it.
                        None => self.whole = stamp.seq == 0,
                        Some((_, last)) if stamp.seq != last + 1 => self.whole = false,
                        Some(_) => {}
                    }
                    last = Some((stamp.epoch, stamp.seq));
                    let batch = Batch {
                        topic: Bytes::new(),
                        seq: stamp.seq,
                        payload,
                    };
                    self.tell(Delivery::Batch(batch)).await?;
                }
            }
        }
        if self.links.waits() {
            self.late_since.get_or_insert_with(Instant::now);
            return Ok(());
        }
        (self.at, self.late_since) = (Some((created, stream_seq)), None);
        if let Some((position, _)) = self.awaited
            && self.reached(position)
        {
            self.awaited = None;
            if self.live {
                self.assure().await?;
            }
        }
        Ok(())
    }

    async fn on_beat(&mut self, beat: &Message) -> Result<(), Ended> {
        let Ok(beat) = serde_json::from_slice::<Beat>(&beat.payload) else {
            tracing::debug!("a bridge's word is not understood");
            return Ok(());
        };
        self.heard = Instant::now();
        self.live = beat.is_live();
        if !self.live {
            self.whole = false;
            let reason = format!("its bridge: {}", beat.reason);
            self.sure = false;
            let doubted = Delivery::Doubted {
                silent: beat.is_silent(),
                by_bridge: true,
                reason,
            };
            return self.tell(doubted).await;
        }
        match beat.last {
            Some(last) if !self.reached(last) => {
                self.awaited.get_or_insert((last, self.heard));
                Ok(())
            }
            _ => {
                self.awaited = None;
                self.assure().await
            }
        }
    }

    async fn on_tick(&mut self) -> Result<(), Ended> {
        if self.heard.elapsed() > SILENCE_MAX {
            let reason = format!("its bridge is not heard for {} s", SILENCE_MAX.as_secs());
            return self.doubt(true, reason).await;
        }
        let (late, since) = (self.late_since, self.awaited.map(|(_, since)| since));
        if late
            .or(since)
            .is_some_and(|since| since.elapsed() > LATE_MAX)
        {
            self.doubt(
                false,
                "batches that its bridge published are missing".to_owned(),
            )
            .await?;
            // A snapshot may stand for them.
            self.whole = false;
            if self.links.waits() {
                return Err(Ended::Again);
            }
        }
        Ok(())
    }

    /// Whether this batch was told, or a later one.
    fn reached(&self, (epoch, seq): (u64, u64)) -> bool {
        let told = self.links.last();
        told.is_some_and(|(ours, last)| epoch == ours && seq <= last)
    }

    async fn assure(&mut self) -> Result<(), Ended> {
        if self.sure {
            return Ok(());
        }
        self.sure = true;
        self.tell(Delivery::Resumed).await
    }

    async fn doubt(&mut self, silent: bool, reason: String) -> Result<(), Ended> {
        self.sure = false;
        let by_bridge = false;
        let doubted = Delivery::Doubted {
            silent,
            by_bridge,
            reason,
        };
        self.tell(doubted).await
    }

    async fn tell(&self, delivery: Delivery) -> Result<(), Ended> {
        self.deliver
            .send(delivery)
            .await
            .map_err(|_gone| Ended::Unwanted)
    }
}

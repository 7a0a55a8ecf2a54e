//! Servers' events → JetStream: a durable log of every batch, unchanged, and snapshots.
//!
//! ```text
//! vLLM ── ZMQ ──> Listener (order, replay, a picture of its own) ── Tap ──> Publisher ──> stream
//! ```
//!
//! The same listeners as a picker's hear the servers and repair gaps by replay; what they took
//! comes here in order. A publisher per server keeps so many batches on their way, and sends again
//! from the first that was not confirmed. While the cluster is away it stops taking, the listener's
//! queue fills and then drops the newest, and vLLM's replay closes that gap later: memory stays
//! bounded, and vLLM waits for nobody.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{Fuse, FusedFuture as _};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::StreamExt as _;
use tracing::Instrument;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::blocks::keys_version;
use crate::events::nats::{
    BEAT_EVERY, Beat, Cluster, NatsError, backoff, born, of_headers, to_headers,
};
use crate::events::order::Stamp;
use crate::events::snapshot::Snapshot;
use crate::events::tap::{NewTap, Tap, Tapped};
use crate::fleet::{Endpoint, Trust};

/// What waits between a listener and its publisher: the listener's own queue is behind it.
const TAPPED_MAX: usize = 256;
/// Batches on their way to the stream at once, of one server.
const IN_FLIGHT_MAX: usize = 256;
/// How often a bucket is asked for what to begin with.
const SNAPSHOT_TRIES: u32 = 3;

/// The publishers of all servers; dropping it ends them.
#[derive(Debug, Clone)]
pub struct Bridge {
    cluster: Cluster,
    publishers: Arc<Mutex<JoinSet<()>>>,
}

impl Bridge {
    /// One that publishes into this cluster's stream.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            publishers: Arc::default(),
        }
    }

    /// What listeners give their batches to.
    #[must_use]
    pub fn tap(&self) -> NewTap {
        let bridge = self.clone();
        Box::new(move |endpoint| bridge.publish(endpoint))
    }

    fn publish(&self, endpoint: &Arc<Endpoint>) -> Tap {
        let (sender, tapped) = mpsc::channel(TAPPED_MAX);
        let (resume_by, resume) = oneshot::channel();
        let span = tracing::info_span!("bridge", endpoint = endpoint.name);
        let publisher = Publisher {
            subject: self.cluster.subject(endpoint),
            cluster: self.cluster.clone(),
            endpoint: endpoint.clone(),
            in_flight: VecDeque::new(),
            published: None,
            life: 0,
            stored: (0, 0),
            to_keep: None,
        };
        let mut publishers = self.publishers.lock();
        // Those of servers that left have ended.
        while publishers.try_join_next().is_some() {}
        publishers.spawn(publisher.run(tapped, resume_by).instrument(span));
        let settings = self.cluster.settings();
        let every = Duration::from_secs(settings.snapshot_s);
        Tap::new(sender, resume, settings.snapshot_batches, every)
    }
}

/// Publishes one server's batches.
struct Publisher {
    cluster: Cluster,
    endpoint: Arc<Endpoint>,
    subject: String,
    in_flight: VecDeque<InFlight>,
    /// The process and the last batch handed on.
    published: Option<(u64, u64)>,
    /// Another number whenever another process is published: it may be one that was published
    /// before, and that we took for gone.
    life: u64,
    /// The stream, by its time of birth, and the place in it of the last batch confirmed.
    stored: (i64, u64),
    /// The newest snapshot, where the one before is still being written.
    to_keep: Option<Snapshot>,
}

/// A batch on its way.
struct InFlight {
    stamp: Stamp,
    life: u64,
    payload: Bytes,
    /// Its deadline begins when it is first waited for: when it is the first on its way.
    ack: <PublishAckFuture as IntoFuture>::IntoFuture,
}

impl Publisher {
    async fn run(
        mut self,
        mut tapped: mpsc::Receiver<Tapped>,
        resume_by: oneshot::Sender<Option<Snapshot>>,
    ) {
        let snapshot = self.begin().await;
        // Where the listener is gone already, so are its batches.
        let _ = resume_by.send(snapshot);
        let mut asks = self.asks().await;
        let mut beats = interval(BEAT_EVERY);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Beside batches and beats: a bucket that is slow, or does not answer, holds up neither.
        let mut keeping = pin!(Fuse::terminated());
        loop {
            if keeping.is_terminated()
                && let Some(snapshot) = self.to_keep.take()
            {
                let (cluster, endpoint) = (self.cluster.clone(), self.endpoint.clone());
                keeping.set(keep(cluster, endpoint, snapshot).fuse());
            }
            tokio::select! {
                // Confirmations first, so that what is on its way stays little.
                Some(confirmed) = first_ack(&mut self.in_flight) => self.on_confirmed(confirmed).await,
                taken = tapped.recv(), if self.in_flight.len() < IN_FLIGHT_MAX => match taken {
                    Some(tapped) => self.on_tapped(tapped).await,
                    None => return,
                },
                _ = beats.tick() => self.beat().await,
                Some(_ask) = asks.next() => self.beat().await,
                () = &mut keeping => {}
            }
        }
    }

    /// Finds out what is in the stream already; tries until it is known. The bucket is asked a few
    /// times: without a snapshot of its own this bridge knows what the server still replays.
    async fn begin(&mut self) -> Option<Snapshot> {
        let mut backoff = backoff();
        while let Err(error) = self.read_place().await {
            tracing::warn!(%error, "cannot begin; trying again");
            sleep(backoff.after(Duration::ZERO)).await;
        }
        let mut backoff = self::backoff();
        for _ in 0..SNAPSHOT_TRIES {
            match self.cluster.read_snapshot(&self.endpoint).await {
                Ok(snapshot) => return snapshot,
                Err(error) => tracing::warn!(%error, "snapshots cannot be read"),
            }
            sleep(backoff.after(Duration::ZERO)).await;
        }
        None
    }

    /// Finds this server's last batch in the stream.
    async fn read_place(&mut self) -> Result<(), NatsError> {
        let stream = self.cluster.stream().await?;
        let created = born(&stream);
        self.stored = (created, 0);
        self.published = None;
        match stream.get_last_raw_message_by_subject(&self.subject).await {
            Ok(last) => {
                self.stored = (created, last.sequence);
                self.published = of_headers(&last.headers).map(|stamp| (stamp.epoch, stamp.seq));
                Ok(())
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(()),
            Err(error) => Err(NatsError::new("the last batch in the stream", &error)),
        }
    }

    /// Questions for a beat; tries until they can be heard.
    async fn asks(&mut self) -> async_nats::Subscriber {
        let mut backoff = backoff();
        let subject = self.cluster.ask_subject(&self.endpoint);
        loop {
            match self.cluster.client().subscribe(subject.clone()).await {
                Ok(asks) => return asks,
                Err(error) => {
                    tracing::warn!(%error, "cannot hear questions; trying again");
                    sleep(backoff.after(Duration::ZERO)).await;
                }
            }
        }
    }

    async fn beat(&mut self) {
        let trust = self.endpoint.trust_since();
        let beat = Beat {
            last: self.published,
            trust: trust.trust.as_str().to_owned(),
            reason: trust.reason,
        };
        if let Err(error) = self.cluster.beat(&self.endpoint, &beat).await {
            tracing::debug!(%error, "no beat");
        }
    }

    async fn on_tapped(&mut self, tapped: Tapped) {
        match tapped {
            Tapped::Batch {
                epoch,
                seq,
                payload,
            } => {
                let prev = match self.published {
                    // Published before a restart of ours; the engine replayed it.
                    Some((known, last)) if known == epoch && seq <= last => return,
                    Some((known, last)) if known == epoch => Some(last),
                    Some((known, last)) => {
                        self.life = xxh3_64_with_seed(&known.to_le_bytes(), last);
                        None
                    }
                    None => None,
                };
                self.published = Some((epoch, seq));
                self.send(Stamp { epoch, seq, prev }, self.life, payload)
                    .await;
            }
            Tapped::Picture {
                epoch,
                last: (seq, hash),
                verdict,
                picture,
            } => {
                // While a server is learnt again from its replay, the stream is ahead of the picture:
                // no place in it belongs to both.
                if self.published != Some((epoch, seq)) {
                    return;
                }
                self.flush().await;
                self.to_keep = Some(Snapshot {
                    keys: keys_version(),
                    epoch,
                    seq,
                    hash,
                    stream_seq: self.stored.1,
                    stream_created: self.stored.0,
                    whole: verdict.trust == Trust::Live,
                    reason: verdict.reason,
                    picture,
                });
            }
        }
    }

    /// Hands a batch to the connection; its confirmation is awaited later.
    async fn send(&mut self, stamp: Stamp, life: u64, payload: Bytes) {
        let mut backoff = backoff();
        loop {
            let headers = to_headers(&self.subject, stamp, life);
            let sent = self.cluster.jetstream().publish_with_headers(
                self.subject.clone(),
                headers,
                payload.clone(),
            );
            match sent.await {
                Ok(ack) => {
                    let batch = InFlight {
                        stamp,
                        life,
                        payload,
                        ack: ack.into_future(),
                    };
                    return self.in_flight.push_back(batch);
                }
                Err(error) if is_too_large(&error) => {
                    let bytes = payload.len();
                    tracing::warn!(%error, bytes, "a batch is too large for the cluster and is left out");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "a batch cannot be sent; trying again");
                    sleep(backoff.after(Duration::ZERO)).await;
                }
            }
        }
    }

    /// Waits until everything sent is in the stream.
    async fn flush(&mut self) {
        while let Some(confirmed) = first_ack(&mut self.in_flight).await {
            self.on_confirmed(confirmed).await;
        }
    }

    /// The first batch on its way is in the stream, or it and all after it are sent again: what
    /// arrived all the same, the stream knows by its id.
    async fn on_confirmed(&mut self, confirmed: Confirmed) {
        let mut backoff = backoff();
        let mut confirmed = confirmed;
        loop {
            match confirmed {
                Ok(stream_seq) => {
                    if stream_seq < self.stored.1 {
                        self.renewed().await;
                    }
                    self.stored.1 = self.stored.1.max(stream_seq);
                    return;
                }
                Err((first, error)) => {
                    tracing::warn!(%error, "a batch was not confirmed; sending again");
                    sleep(backoff.after(Duration::ZERO)).await;
                    let rest = std::mem::take(&mut self.in_flight);
                    let again = rest
                        .into_iter()
                        .map(|batch| (batch.stamp, batch.life, batch.payload));
                    for (stamp, life, payload) in std::iter::once(first).chain(again) {
                        self.send(stamp, life, payload).await;
                    }
                }
            }
            match first_ack(&mut self.in_flight).await {
                Some(next) => confirmed = next,
                None => return,
            }
        }
    }

    /// The stream counts from 1 again: somebody made it anew.
    async fn renewed(&mut self) {
        let mut backoff = backoff();
        loop {
            match self.cluster.stream().await {
                Ok(stream) => {
                    tracing::warn!("the stream was made anew; what it held is gone");
                    self.stored = (born(&stream), 0);
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the stream cannot be looked at; trying again");
                    sleep(backoff.after(Duration::ZERO)).await;
                }
            }
        }
    }
}

/// Keeps a snapshot in place of the one before. One that cannot be kept is let go: the next comes
/// soon.
async fn keep(cluster: Cluster, endpoint: Arc<Endpoint>, snapshot: Snapshot) {
    let write = async {
        let bytes = tokio::task::spawn_blocking(move || snapshot.to_bytes()).await;
        let bytes = bytes.map_err(|error| NatsError::new("a snapshot", &error))?;
        cluster.write_snapshot(&endpoint, &bytes).await?;
        Ok::<_, NatsError>(bytes.len())
    };
    let begun = Instant::now();
    match write.await {
        Ok(bytes) => {
            let ms = begun.elapsed().as_millis();
            tracing::debug!(bytes, ms, "a snapshot is kept");
        }
        Err(error) => tracing::warn!(%error, "a snapshot is not kept"),
    }
}

/// Where a batch stands in the stream; or the batch, and why it may not be there.
type Confirmed = Result<u64, ((Stamp, u64, Bytes), String)>;

/// The word on the first batch on its way, which it is no longer; none where nothing is. A dropped
/// future loses nothing.
async fn first_ack(in_flight: &mut VecDeque<InFlight>) -> Option<Confirmed> {
    let first = in_flight.front_mut()?;
    let acked = first.ack.as_mut().await;
    let first = in_flight.pop_front()?;
    Some(match acked {
        Ok(ack) => Ok(ack.sequence),
        Err(error) => Err(((first.stamp, first.life, first.payload), error.to_string())),
    })
}

fn is_too_large(error: &async_nats::jetstream::context::PublishError) -> bool {
    use async_nats::jetstream::context::PublishErrorKind;
    error.kind() == PublishErrorKind::MaxPayloadExceeded
}

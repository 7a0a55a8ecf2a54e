//! The talk itself, over a subject of plain NATS for each replica: `kv-work.<namespace>.<pool>.<replica>`.
//!
//! All that one says goes through one loop, so it arrives in order or not at all. Nothing is batched by
//! a clock: while words are on their way to the cluster, the next ones gather.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Message as Delivered, Subscriber};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::StreamExt as _;

use super::Replicas;
use super::wire::{Message, Skipped};
use crate::config::Nats;
use crate::events::nats::{Cluster, NatsError, backoff};
use crate::fleet::Fleet;
use crate::metrics::Metrics;

/// A replica says something at least so often.
pub const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Messages that wait to be read: what 64 replicas send while we are busy for some ten milliseconds. More
/// are lost, which is a gap. A payload is 1 MB at most by NATS's default.
const WAITING_MAX: usize = 512;

/// From words to the socket; past it nobody knows what was said.
const SEND_MAX: Duration = BEAT_EVERY;

/// Talks for one replica.
pub struct Share {
    replicas: Arc<Replicas>,
    cluster: Cluster,
    id: u64,
    fleet: watch::Receiver<Arc<Fleet>>,
    metrics: Arc<Metrics>,
    freed: Box<dyn Fn() + Send + Sync>,
}

/// Tells the others that this replica ends, once nothing else of it speaks.
pub struct Farewell {
    cluster: Cluster,
    subject: String,
}

impl Share {
    /// Begins to connect; a cluster that is not up yet is tried again and again. `freed` is called where
    /// others' work at an endpoint became less.
    ///
    /// # Errors
    /// A file that cannot be read, or an address that is none.
    pub async fn connect(
        replicas: Arc<Replicas>,
        settings: &Nats,
        fleet: watch::Receiver<Arc<Fleet>>,
        metrics: Arc<Metrics>,
        freed: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, NatsError> {
        Ok(Self {
            replicas,
            // A connection of its own: no word stands behind megabytes of events.
            cluster: Cluster::connect_with(settings, WAITING_MAX).await?,
            // Another one in every process, as std's hash maps are.
            id: RandomState::new().hash_one(std::process::id()),
            fleet,
            metrics,
            freed: Box::new(freed),
        })
    }

    /// For the end of the process.
    #[must_use]
    pub fn farewell(&self) -> Farewell {
        Farewell {
            cluster: self.cluster.clone(),
            subject: self.subject(),
        }
    }

    /// Talks until it is dropped. Without a cluster it tries again.
    pub async fn run(self) {
        tokio::select! {
            never = self.speak() => match never {},
            never = self.listen() => match never {},
        }
    }

    fn subject(&self) -> String {
        format!("{}.{:016x}", subjects(self.cluster.settings()), self.id)
    }

    async fn speak(&self) -> Infallible {
        let mut beats = interval(BEAT_EVERY);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (subject, mut joined) = (self.subject(), false);
        loop {
            let beat = tokio::select! {
                _ = beats.tick() => true,
                () = self.replicas.wake.notified() => false,
            };
            if beat {
                self.forget_silent();
            }
            if self.cluster.client().connection_state() != State::Connected {
                joined = false;
                self.replicas.own.lock().lose();
                continue;
            }
            let joins = !std::mem::replace(&mut joined, true);
            let said = self.say(&subject, self.words(beat, joins));
            let said = timeout(SEND_MAX, said).await;
            if let Ok(Err(error)) = &said {
                tracing::warn!(%error, "other replicas are not told");
            }
            if !matches!(said, Ok(Ok(()))) {
                self.replicas.own.lock().lose();
            }
        }
    }

    /// What there is to say by now.
    fn words(&self, beat: bool, joins: bool) -> Vec<Message> {
        let now = Instant::now();
        let mut words = self.replicas.own.lock().take(now, beat);
        let asks = self.replicas.peers.lock().asks(now);
        let all = joins.then_some(None);
        let asks = all.into_iter().chain(asks.into_iter().map(Some));
        words.extend(asks.map(|whom| Message::Ask { whom }));
        words
    }

    async fn say(&self, subject: &str, words: Vec<Message>) -> Result<(), NatsError> {
        let client = self.cluster.client();
        let failed = |error: &dyn std::fmt::Display| NatsError::new("a word to replicas", error);
        for word in &words {
            let sent = client.publish(subject.to_owned(), word.to_bytes().into());
            sent.await.map_err(|error| failed(&error))?;
            self.metrics.replicas_said("sent", word.kind());
        }
        client.flush().await.map_err(|error| failed(&error))
    }

    async fn listen(&self) -> Infallible {
        let mut backoff = backoff();
        let subjects = format!("{}.*", subjects(self.cluster.settings()));
        loop {
            let begun = Instant::now();
            match self.cluster.client().subscribe(subjects.clone()).await {
                Ok(messages) => self.hear(messages).await,
                Err(error) => tracing::warn!(%error, "other replicas cannot be heard"),
            }
            sleep(backoff.after(begun.elapsed())).await;
        }
    }

    /// Hears until the connection is closed for good.
    async fn hear(&self, mut messages: Subscriber) {
        let mut fleet = self.fleet.clone();
        fleet.mark_changed();
        loop {
            tokio::select! {
                biased;
                // Whoever is new in the fleet may be in the next message.
                Ok(()) = fleet.changed() => {
                    self.replicas.peers.lock().know(&fleet.borrow_and_update());
                    self.replicas.wake.notify_one();
                }
                message = messages.next() => match message {
                    Some(message) => self.on_message(&message),
                    None => return,
                },
            }
        }
    }

    fn on_message(&self, message: &Delivered) {
        let from = message.subject.rsplit('.').next();
        let from = from.and_then(|id| u64::from_str_radix(id, 16).ok());
        if from == Some(self.id) {
            return;
        }
        let read = Message::from_bytes(&message.payload);
        let (from, word) = match (from, read) {
            (Some(from), Ok(word)) => (from, word),
            (_, Err(why)) => return self.metrics.replicas_skipped(why.as_str(), 1),
            (None, _) => {
                return self
                    .metrics
                    .replicas_skipped(Skipped::Malformed.as_str(), 1);
            }
        };
        self.metrics.replicas_said("received", word.kind());
        if let Message::Ask { whom } = &word
            && whom.is_none_or(|whom| whom == self.id)
        {
            self.replicas.own.lock().want_full();
            self.replicas.wake.notify_one();
        }
        let heard = self.replicas.peers.lock().hear(from, word, Instant::now());
        for (why, count) in heard.skipped {
            self.metrics.replicas_skipped(why.as_str(), count);
        }
        if heard.gap {
            self.metrics.replicas_gap();
        }
        if heard.asks {
            self.replicas.wake.notify_one();
        }
        if heard.freed {
            (self.freed)();
        }
    }

    fn forget_silent(&self) {
        let forgotten = self.replicas.peers.lock().forget_silent(Instant::now());
        if forgotten > 0 {
            tracing::warn!(
                forgotten,
                "replicas are not heard any more; what they told of their requests is dropped"
            );
            (self.freed)();
        }
    }
}

impl Farewell {
    /// Says it, if it can be said at once.
    pub async fn say(self) {
        let said = async {
            let client = self.cluster.client();
            client
                .publish(self.subject, Message::Bye.to_bytes().into())
                .await
                .ok()?;
            client.flush().await.ok()
        };
        // Otherwise the others notice in some seconds.
        let _ = timeout(SEND_MAX, said).await;
    }
}

/// What all replicas' subjects begin with.
fn subjects(settings: &Nats) -> String {
    format!("kv-work.{}.{}", settings.namespace, settings.pool)
}

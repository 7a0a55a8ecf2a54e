//! One publisher's connection: whose it is, and what it says.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

use super::Shared;
use super::claims::Found;
use crate::events::Delivery;
use crate::events::queue::Queue;
use crate::events::zmq::check_life;
use crate::events::zmtp::{Connection, Incoming, LinkError, Role};
use crate::fleet::Endpoint;

/// Of a topic, what is looked at: names of pods are 253 bytes at most, and models' are paths.
const TOPIC_BYTES_MAX: usize = 1_024;
/// Peers that were warned of: an address of 16 bytes each.
const WARNED_MAX: usize = 1_024;
/// Why an endpoint loses a publisher that was taken for its own.
const NAMES_ANOTHER: &str = "its topic names another endpoint";

/// One connection. Dropping it frees its endpoint.
pub(super) struct Peer {
    shared: Arc<Shared>,
    id: u64,
    ip: IpAddr,
    /// Of the port that it came to.
    rank: u32,
    /// The endpoint whose publisher it is.
    slot: Option<(Arc<Endpoint>, Arc<Queue>)>,
    /// Of its last message.
    topic: Option<Bytes>,
    /// When an endpoint was looked for in vain, by count of changes.
    looked: Option<u64>,
    /// Why it ends.
    reason: String,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let reason = std::mem::take(&mut self.reason);
        self.release(reason);
        self.shared.claims.lock().leave(self.id);
    }
}

impl Peer {
    /// Of a stranger, that came to a rank's port.
    pub(super) fn new(shared: Arc<Shared>, id: u64, ip: IpAddr, rank: u32) -> Self {
        Self {
            shared,
            id,
            ip,
            rank,
            slot: None,
            topic: None,
            looked: None,
            reason: "hung up on here".to_owned(),
        }
    }

    pub(super) async fn serve(mut self, stream: TcpStream) {
        let error = match self.shake_hands(stream).await {
            Ok(connection) => self.listen(connection).await,
            Err(error) => error,
        };
        self.reason = error.to_string();
        tracing::debug!(reason = self.reason, "disconnected");
    }

    async fn shake_hands(&self, stream: TcpStream) -> Result<Connection, LinkError> {
        let connect_max = self.shared.limits.connect_max;
        let bytes_max = self.shared.stranger_bytes_max();
        let mut connection = Connection::accept(stream, Role::Sub, connect_max, bytes_max).await?;
        connection.send(&[&self.shared.subscription]).await?;
        Ok(connection)
    }

    /// Reads until the connection ends, and says why it did.
    async fn listen(&mut self, mut connection: Connection) -> LinkError {
        let mut heartbeat = interval(self.shared.limits.ping_every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                incoming = connection.next() => match incoming {
                    Ok(incoming) => self.take(incoming, &mut connection).await,
                    Err(error) => Err(error),
                },
                // The first is at once: a server that is idle is known by its address.
                _ = heartbeat.tick() => {
                    self.claim(&mut connection);
                    check_life(&mut connection, &self.shared.limits).await
                }
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    async fn take(
        &mut self,
        incoming: Incoming,
        connection: &mut Connection,
    ) -> Result<(), LinkError> {
        match incoming {
            Incoming::Message(frames) => self.take_message(&frames, connection),
            Incoming::Ping(context) => connection.pong(&context).await,
            Incoming::Command(_) => Ok(()),
        }
    }

    fn take_message(
        &mut self,
        frames: &[Bytes],
        connection: &mut Connection,
    ) -> Result<(), LinkError> {
        self.on_topic(frames.first())?;
        self.claim(connection);
        match &self.slot {
            Some((_, queue)) => queue.push(Delivery::from_frames(frames)),
            None => self.shared.unclaimed.increment(1),
        }
        Ok(())
    }

    /// Hears a topic. The first may move it from where its address led; it has one only.
    fn on_topic(&mut self, topic: Option<&Bytes>) -> Result<(), LinkError> {
        let topic = topic.map(|topic| &topic[..topic.len().min(TOPIC_BYTES_MAX)]);
        if self.topic.as_deref() == topic {
            return Ok(());
        }
        let is_first = self.topic.is_none();
        self.topic = topic.map(Bytes::copy_from_slice);
        self.looked = None;
        let Some((endpoint, _)) = &self.slot else {
            return Ok(());
        };
        let claims = self.shared.claims.lock();
        let named = claims.named(self.rank, self.topic.as_ref());
        drop(claims);
        match named {
            Some(named) if named != endpoint.id && is_first => {
                self.release(NAMES_ANOTHER.to_owned());
                Ok(())
            }
            Some(named) if named != endpoint.id => Err(LinkError::TwoTopics),
            _ => Ok(()),
        }
    }

    /// Looks for its endpoint, unless it has one that is still in the fleet.
    fn claim(&mut self, connection: &mut Connection) {
        let closed = |(_, queue): &(_, Arc<Queue>)| queue.is_closed();
        if self.slot.as_ref().is_some_and(closed) {
            self.release("the endpoint left the fleet".to_owned());
        }
        let changes = self.shared.changes.load(Ordering::Relaxed);
        if self.looked == Some(changes) {
            return;
        }
        self.looked = Some(changes);
        if let Some((endpoint, _)) = &self.slot {
            let claims = self.shared.claims.lock();
            let named = claims.named(self.rank, self.topic.as_ref());
            drop(claims);
            if named.is_none_or(|named| named == endpoint.id) {
                return;
            }
            // Its address led it elsewhere while whom its topic names was not in the fleet.
            self.release(NAMES_ANOTHER.to_owned());
        }
        connection.set_message_bytes_max(self.shared.stranger_bytes_max());
        let mut claims = self.shared.claims.lock();
        match claims.find(self.id, self.rank, self.topic.as_ref(), self.ip) {
            Found::Free(endpoint, queue) => {
                drop(claims);
                tracing::info!(endpoint = endpoint.name, "connected");
                queue.push(Delivery::Connected);
                connection.set_message_bytes_max(self.shared.limits.message_bytes_max);
                self.slot = Some((endpoint, queue));
            }
            // An address alone says little; what it publishes will say whose it is.
            _ if self.topic.is_none() => {}
            found => {
                let warned = claims.warns(self.ip, WARNED_MAX);
                drop(claims);
                if warned {
                    self.warn(&found);
                }
            }
        }
    }

    fn warn(&self, found: &Found) {
        let topic = String::from_utf8_lossy(self.topic.as_deref().unwrap_or_default());
        match found {
            Found::Taken(endpoint) => tracing::warn!(
                ?topic,
                endpoint = endpoint.name,
                "a second publisher for an endpoint that has one; its batches are dropped: do two \
                 servers share a topic, or is data_parallel_size missing in the fleet file?"
            ),
            _ => tracing::warn!(
                ?topic,
                rank = self.rank,
                "a publisher that belongs to no endpoint; its batches are dropped: name the pod in \
                 the topic of its --kv-events-config, as kv@POD@MODEL, or the pod in the fleet file"
            ),
        }
    }

    /// Its endpoint has no publisher any more.
    fn release(&mut self, reason: String) {
        if let Some((endpoint, queue)) = self.slot.take() {
            queue.push(Delivery::Disconnected { reason });
            self.shared.claims.lock().free(endpoint.id, self.id);
            self.shared.changed();
        }
    }
}

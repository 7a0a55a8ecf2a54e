//! The two sockets of vLLM's `ZmqEventPublisher`: PUB for live batches, ROUTER for those
//! that a subscriber missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use kvscout::blocks::BlockEvent;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use zeromq::{
    PubSocket, RouterRecvHalf, RouterSendHalf, RouterSocket, Socket as _, SocketRecv as _,
    SocketSend as _, ZmqMessage,
};

use super::faults::Fate;
use super::{FaultSwitch, Layout, REPLAYABLE_BATCHES_MAX, ReplayFault, encode};

/// Batches that may wait for the socket before the engine does: vLLM's `max_queue_size`.
const QUEUED_BATCHES_MAX: usize = 100_000;
/// The sequence number that ends a replay: -1.
const END_OF_REPLAY: [u8; 8] = [0xff; 8];

/// Where and how to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventConfig {
    /// The PUB socket: `tcp://*:5557`. Port 0 is any free one.
    pub endpoint: String,
    /// The ROUTER socket, if there is to be one.
    pub replay_endpoint: Option<String>,
    /// First frame of every message; none means `kv@<http address>@<model>`.
    pub topic: Option<String>,
    /// How events are spelled. It decides the shape of replays too: vLLM sends the topic with
    /// them from 0.26 on.
    pub layout: Layout,
    /// The data-parallel rank that batches carry.
    pub rank: u32,
}

impl EventConfig {
    /// The same for the process after one that was bound there: on its ports, or on any free ones.
    #[must_use]
    pub fn after(&self, bound: &Sources, change_ports: bool) -> Self {
        let next = |endpoint: &str, bound: &str| {
            let parts = endpoint.rsplit_once(':').zip(bound.rsplit_once(':'));
            match parts {
                Some(((host, _), (_, port))) if endpoint.starts_with("tcp://") => {
                    let port = if change_ports { "0" } else { port };
                    format!("{host}:{port}")
                }
                _ => endpoint.to_owned(),
            }
        };
        let replay = self.replay_endpoint.as_ref();
        let replay = replay.zip(bound.replay_endpoint.as_ref());
        Self {
            endpoint: next(&self.endpoint, &bound.endpoint),
            replay_endpoint: replay.map(|(endpoint, bound)| next(endpoint, bound)),
            ..self.clone()
        }
    }

    /// The same for a later rank: vLLM adds the rank to the ports, but for port 0.
    #[must_use]
    pub fn of_rank(&self, offset: u32) -> Self {
        let moved = |socket: &String| match socket.rsplit_once(':') {
            Some((host, port)) => match port.parse::<u32>() {
                Ok(port) if port > 0 => format!("{host}:{}", port + offset),
                _ => socket.clone(),
            },
            None => socket.clone(),
        };
        Self {
            endpoint: moved(&self.endpoint),
            replay_endpoint: self.replay_endpoint.as_ref().map(moved),
            rank: self.rank + offset,
            ..self.clone()
        }
    }
}

/// Where events are, as bound; what `GET /kv_event_sources` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The PUB socket.
    pub endpoint: String,
    /// The ROUTER socket, if there is one.
    pub replay_endpoint: Option<String>,
    /// First frame of every message.
    pub topic: String,
    /// The data-parallel rank that batches carry.
    pub rank: u32,
}

/// Sends batches to whoever subscribed. Dropping it ends the publication.
#[derive(Debug)]
pub struct Publisher {
    queue: mpsc::Sender<Batch>,
    faults: FaultSwitch,
}

struct Batch {
    seconds: f64,
    events: Vec<BlockEvent>,
}

/// What was published last, with its sequence number.
type Past = Arc<Mutex<VecDeque<(u64, Bytes)>>>;

impl Publisher {
    /// Binds the sockets and serves them within `tasks`. Returns the addresses as bound.
    pub async fn start(
        config: &EventConfig,
        topic: String,
        faults: &FaultSwitch,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<(Self, Sources)> {
        let past = Past::default();
        let mut live = PubSocket::new();
        let endpoint = bind(&mut live, &config.endpoint).await?;
        let mut replay_endpoint = None;
        if let Some(endpoint) = &config.replay_endpoint {
            let mut router = RouterSocket::new();
            replay_endpoint = Some(bind(&mut router, endpoint).await?);
            let (replies, requests) = router.split();
            let topic = (config.layout == Layout::Map).then(|| topic.clone().into());
            tasks.spawn(replay(
                requests,
                replies,
                Arc::clone(&past),
                topic,
                faults.clone(),
            ));
        }
        let sources = Sources {
            endpoint,
            replay_endpoint,
            topic,
            rank: config.rank,
        };
        let (queue, batches) = mpsc::channel(QUEUED_BATCHES_MAX);
        tasks.spawn(publish(
            live,
            batches,
            past,
            (config.layout, sources.clone()),
            faults.clone(),
        ));
        let faults = faults.clone();
        Ok((Self { queue, faults }, sources))
    }

    /// Whether the cache is to be reset after so many batches.
    #[must_use]
    pub fn is_reset_due(&self, batches: u64) -> bool {
        is_due(self.faults.get().reset_every, batches)
    }

    /// Queues a batch; waits while the queue is full, as vLLM's scheduler does.
    pub async fn publish(&self, events: Vec<BlockEvent>) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let batch = Batch {
            seconds: now.as_secs_f64(),
            events,
        };
        // The other end lives as long as the server; a batch of a dying one is not missed.
        let _ = self.queue.send(batch).await;
    }
}

/// `*` is vLLM's word for all interfaces; port 0 is any free one.
async fn bind(socket: &mut impl zeromq::Socket, endpoint: &str) -> anyhow::Result<String> {
    let address = endpoint.replace('*', "0.0.0.0");
    let bound = socket.bind(&address).await;
    let bound = bound.with_context(|| format!("cannot bind {endpoint}: is its port in use?"))?;
    Ok(bound.to_string())
}

async fn publish(
    mut live: PubSocket,
    mut batches: mpsc::Receiver<Batch>,
    past: Past,
    (layout, sources): (Layout, Sources),
    faults: FaultSwitch,
) {
    let mut sequence = 0u64;
    let mut behind: Option<(u64, Bytes)> = None;
    while let Some(Batch { seconds, events }) = batches.recv().await {
        let payload = Bytes::from(encode(layout, seconds, &events, sources.rank));
        let fate = faults.draw();
        let now = faults.get();
        if fate != Fate::Lost {
            remember(&past, sequence, payload.clone(), now.replay_batches);
        }
        let delay = Duration::from_millis(now.delay_ms);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let mut sent = Vec::new();
        match fate {
            Fate::Sent => sent.push((sequence, payload)),
            Fate::Twice => sent.extend([(sequence, payload.clone()), (sequence, payload)]),
            Fate::Damaged => sent.push((sequence, payload.slice(..payload.len() / 2))),
            Fate::Behind if behind.is_none() => behind = Some((sequence, payload)),
            Fate::Behind => sent.push((sequence, payload)),
            Fate::Dropped | Fate::Lost => {}
        }
        if fate != Fate::Behind {
            sent.extend(behind.take());
        }
        for (sequence, payload) in sent {
            let topic = Bytes::from(sources.topic.clone());
            let message = frames([topic, number(sequence), payload]);
            if let Err(error) = live.send(message).await {
                tracing::warn!(%error, sequence, "batch not published");
            }
        }
        sequence += 1;
        if is_due(now.restart_every, sequence) {
            faults.ask_restart();
            // The process dies here.
            std::future::pending().await
        }
    }
}

/// The newest batches; what a small ring has dropped does not come back when it grows.
fn remember(past: &Past, sequence: u64, payload: Bytes, batches_max: usize) {
    let mut past = past.lock().unwrap_or_else(PoisonError::into_inner);
    past.push_back((sequence, payload));
    let more = past
        .len()
        .saturating_sub(batches_max.min(REPLAYABLE_BATCHES_MAX));
    past.drain(..more);
}

/// Whether this is one of every so many; none of them if that is 0.
fn is_due(every: u64, batches: u64) -> bool {
    every > 0 && batches.is_multiple_of(every)
}

/// Answers `[identity, "", first sequence]` with all later batches and an end marker.
async fn replay(
    mut requests: RouterRecvHalf,
    mut replies: RouterSendHalf,
    past: Past,
    topic: Option<Bytes>,
    faults: FaultSwitch,
) {
    loop {
        let request = match requests.recv().await {
            Ok(request) => request.into_vec(),
            Err(error) => return tracing::warn!(%error, "the replay socket is gone"),
        };
        let [identity, empty, first] = &request[..] else {
            tracing::warn!(frames = request.len(), "not a replay request");
            continue;
        };
        let first = first
            .iter()
            .fold(0u64, |number, &byte| number << 8 | u64::from(byte));
        let batches: Vec<(u64, Bytes)> = {
            let past = past.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = past.len().saturating_sub(faults.get().replay_batches);
            past.iter()
                .skip(kept)
                .filter(|(sequence, _)| *sequence >= first)
                .cloned()
                .collect()
        };
        let fault = faults.get().replay;
        if fault == ReplayFault::Dead {
            continue;
        }
        let cut = match fault {
            ReplayFault::Truncated => batches.len() / 2,
            _ => usize::MAX,
        };
        let end = (Bytes::from_static(&END_OF_REPLAY), Bytes::new(), true);
        let all = batches
            .into_iter()
            .map(|(sequence, payload)| (number(sequence), payload, false));
        for (sequence, payload, is_end) in all.chain([end]).take(cut) {
            if fault == ReplayFault::Slow {
                sleep(Duration::from_millis(1)).await;
            }
            let mut reply = vec![identity.clone(), empty.clone()];
            let topic = topic
                .iter()
                .map(|topic| if is_end { Bytes::new() } else { topic.clone() });
            reply.extend(topic);
            reply.extend([sequence, payload]);
            if let Err(error) = replies.send(frames(reply)).await {
                tracing::info!(%error, "a replay was not read to its end");
                break;
            }
        }
    }
}

fn number(sequence: u64) -> Bytes {
    Bytes::copy_from_slice(&sequence.to_be_bytes())
}

fn frames(frames: impl IntoIterator<Item = Bytes>) -> ZmqMessage {
    let frames: Vec<Bytes> = frames.into_iter().collect();
    ZmqMessage::try_from(frames).expect("a message has at least one frame")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_batch_makes_room_for_the_newest() {
        let past = Past::default();
        for sequence in 0..=REPLAYABLE_BATCHES_MAX as u64 {
            remember(&past, sequence, Bytes::new(), usize::MAX);
        }
        let past = past.lock().expect("no one panicked");
        let numbers = (
            past.front().map(|batch| batch.0),
            past.back().map(|batch| batch.0),
        );
        assert_eq!(numbers, (Some(1), Some(REPLAYABLE_BATCHES_MAX as u64)));
    }

    #[test]
    fn what_a_small_ring_dropped_does_not_come_back() {
        let past = Past::default();
        (0..5).for_each(|sequence| remember(&past, sequence, Bytes::new(), 2));
        remember(&past, 5, Bytes::new(), 10);
        let past = past.lock().expect("no one panicked");
        let kept: Vec<u64> = past.iter().map(|batch| batch.0).collect();
        assert_eq!(kept, [3, 4, 5]);
    }

    #[test]
    fn the_next_process_has_the_ports_of_the_last_or_any() {
        let config = EventConfig {
            endpoint: "tcp://*:0".into(),
            replay_endpoint: Some("ipc:///tmp/replay".into()),
            topic: None,
            layout: Layout::Map,
            rank: 0,
        };
        let bound = Sources {
            endpoint: "tcp://0.0.0.0:4711".into(),
            replay_endpoint: config.replay_endpoint.clone(),
            topic: String::new(),
            rank: 0,
        };
        let next = config.after(&bound, false);
        assert_eq!(next.endpoint, "tcp://*:4711");
        assert_eq!(next.replay_endpoint, config.replay_endpoint);
        assert_eq!(next.after(&bound, true).endpoint, "tcp://*:0");
    }
}

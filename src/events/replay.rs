//! vLLM's replay: asks the ROUTER socket for the batches that it still keeps, the last 10,000.
//!
//! The answer cannot be trusted to be whole. Before 0.33.0 the ROUTER keeps 1,000 messages for
//! us and drops the rest, from the middle or the end, end marker included: of 10,000 batches on
//! one host 100 were missing on average, most often in two places, however fast they were read.
//! So we ask again from the first gap, and a deadline bounds the wait. Asking for older batches
//! than are kept silently starts at the oldest; and 0.9.2 consumed a sequence number for each
//! batch that it failed to encode, so that some gaps stay.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout, timeout_at};

use super::zmq::Limits;
use super::zmtp::{Address, AddressError, Connection, Incoming, LinkError, Role};
use super::{Batch, read_seq};

/// The sequence number of the end marker: -1.
const END: u64 = u64::MAX;
/// Questions for one replay: each fills most of the gaps that the ones before left, and costs
/// the server's publisher another reading of its buffer.
const ASKS_MAX: usize = 5;
/// An answer that pauses for so long is over. vLLM looks for questions every 100 ms
/// (`ZmqEventPublisher`'s queue timeout) and then answers in one go.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// No answer at all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The address is not one to connect to.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The replay socket could not be asked.
    #[error("cannot ask for a replay: {0}")]
    Link(#[from] LinkError),
    /// It answers, but not as any vLLM known.
    #[error("not a replay: {0}")]
    Malformed(String),
}

/// What a server replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The sequence number asked for.
    pub asked_seq: u64,
    /// By sequence number. May start late and may have gaps: see [`Replay::starts_late`],
    /// [`Replay::gaps`].
    pub batches: BTreeMap<u64, Batch>,
    /// Whether the end was reached.
    pub end: ReplayEnd,
}

/// How a replay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayEnd {
    /// With vLLM's end marker.
    Complete,
    /// Without: more batches may have existed.
    Truncated {
        /// Why, for an operator.
        reason: String,
    },
}

impl Replay {
    /// Whether the first batches asked for are kept no longer.
    #[must_use]
    pub fn starts_late(&self) -> bool {
        let first = self.batches.first_key_value();
        first.is_some_and(|(seq, _)| *seq > self.asked_seq)
    }

    /// The first sequence number that the replay does not reach.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        let last = self.batches.last_key_value();
        last.map_or(self.asked_seq, |(seq, _)| seq + 1)
    }

    /// The holes between batches, as the first sequence number missing and the next present.
    pub fn gaps(&self) -> impl Iterator<Item = (u64, u64)> {
        let seqs = self.batches.keys();
        let pairs = seqs.clone().zip(seqs.skip(1));
        pairs.filter_map(|(last, next)| (last + 1 != *next).then_some((last + 1, *next)))
    }
}

/// Asks the ROUTER at `address` for every batch since `from_seq`, and again for what it lost on
/// the way, for at most `deadline`. Reads without pause into memory, up to
/// `limits.replay_bytes_max`, because a slow reader loses more.
///
/// # Errors
/// See [`ReplayError`]. A replay that began and did not end is not one: it is
/// [`ReplayEnd::Truncated`], and what came is there to use.
pub async fn replay(
    address: &str,
    from_seq: u64,
    deadline: Duration,
    limits: &Limits,
) -> Result<Replay, ReplayError> {
    let address: Address = address.parse()?;
    let until = Instant::now() + deadline;
    let connect_max = limits.connect_max.min(deadline);
    let mut connection = Connection::open(
        &address,
        Role::Dealer,
        connect_max,
        limits.message_bytes_max,
    )
    .await?;
    let mut replay = Replay {
        asked_seq: from_seq,
        batches: BTreeMap::new(),
        end: ReplayEnd::Truncated {
            reason: "no end marker came".into(),
        },
    };
    match timeout_at(until, fill(&mut connection, &mut replay, limits)).await {
        Err(_elapsed) => Ok(replay),
        Ok(Ok(())) => Ok(replay),
        Ok(Err(ReplayError::Link(error))) => {
            replay.end = ReplayEnd::Truncated {
                reason: error.to_string(),
            };
            Ok(replay)
        }
        Ok(Err(error)) => Err(error),
    }
}

/// Asks until nothing is missing, or until a whole answer brings nothing new: what it lacks does
/// not exist.
async fn fill(
    connection: &mut Connection,
    replay: &mut Replay,
    limits: &Limits,
) -> Result<(), ReplayError> {
    let (mut seq, mut room) = (replay.asked_seq, limits.replay_bytes_max);
    for _ in 0..ASKS_MAX {
        let held = replay.batches.len();
        connection.send(&[b"", &seq.to_be_bytes()]).await?;
        // An answer that stops without its end marker has lost it.
        while let Ok(reply) = timeout(PAUSE_MAX, next_reply(connection)).await {
            let Some(batch) = reply? else {
                replay.end = ReplayEnd::Complete;
                break;
            };
            let Some(left) = room.checked_sub(cost(&batch)) else {
                let reason = format!("more than {} bytes", limits.replay_bytes_max);
                replay.end = ReplayEnd::Truncated { reason };
                return Ok(());
            };
            if replay.batches.insert(batch.seq, batch).is_none() {
                room = left;
            }
        }
        let nothing_new = replay.batches.len() == held;
        let gap = replay.gaps().next();
        match (gap, replay.end == ReplayEnd::Complete) {
            (None, true) => break,
            (Some(_), true) if nothing_new => break,
            (gap, _) => seq = gap.map_or_else(|| replay.next_seq(), |(missing, _)| missing),
        }
    }
    Ok(())
}

/// The next batch, or `None` for the end marker.
async fn next_reply(connection: &mut Connection) -> Result<Option<Batch>, ReplayError> {
    loop {
        match connection.next().await? {
            Incoming::Message(frames) => {
                let batch = read_reply(&frames).map_err(ReplayError::Malformed)?;
                return Ok((batch.seq != END).then_some(batch));
            }
            Incoming::Ping(context) => connection.pong(&context).await?,
            Incoming::Command(_) => {}
        }
    }
}

/// What a batch holds, its place in the map included.
fn cost(batch: &Batch) -> usize {
    128 + batch.topic.len() + batch.payload.len()
}

/// Reads one reply as a DEALER sees it: `["", seq, payload]` up to vLLM 0.25.1 and
/// `["", topic, seq, payload]` from 0.26.0. An end marker has the same frames, its sequence
/// number -1 and the rest empty.
///
/// # Errors
/// What is wrong.
pub fn read_reply(frames: &[Bytes]) -> Result<Batch, String> {
    let (topic, seq, payload) = match frames {
        [empty, seq, payload] if empty.is_empty() => (Bytes::new(), seq, payload),
        [empty, topic, seq, payload] if empty.is_empty() => (topic.clone(), seq, payload),
        _ => {
            let sizes: Vec<_> = frames.iter().map(Bytes::len).collect();
            return Err(format!("frames of {sizes:?} bytes"));
        }
    };
    Ok(Batch {
        topic,
        seq: read_seq(seq)?,
        payload: payload.clone(),
    })
}

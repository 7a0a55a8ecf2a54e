//! vLLM's replay: asks the ROUTER socket for the batches that it still keeps, the last 10,000.
//!
//! The answer cannot be trusted to be whole. Before 0.33.0 the ROUTER drops what a slow reader
//! has not taken, end marker included, so a deadline bounds the wait; asking for older batches
//! than are kept silently starts at the oldest; and 0.9.2 consumed a sequence number for each
//! batch that it failed to encode.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::zmq::Limits;
use super::zmtp::{Address, AddressError, Connection, Incoming, LinkError, Role};
use super::{Batch, read_seq};

/// The sequence number of the end marker: -1.
const END: u64 = u64::MAX;

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

/// What a server replayed: batches by ascending sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The sequence number asked for.
    pub asked_seq: u64,
    /// May start late and may have gaps: see [`Replay::starts_late`], [`Replay::gaps`].
    pub batches: Vec<Batch>,
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
        let first = self.batches.first();
        first.is_some_and(|batch| batch.seq > self.asked_seq)
    }

    /// The holes between batches, as the first sequence number missing and the next present.
    pub fn gaps(&self) -> impl Iterator<Item = (u64, u64)> {
        let pairs = self.batches.windows(2);
        pairs.filter_map(|pair| {
            let (missing, present) = (pair[0].seq + 1, pair[1].seq);
            (missing != present).then_some((missing, present))
        })
    }

    /// Takes one reply; `false` once there is nothing more to wait for.
    fn take(&mut self, frames: &[Bytes]) -> Result<bool, ReplayError> {
        let batch = read_reply(frames).map_err(ReplayError::Malformed)?;
        if batch.seq == END {
            self.end = ReplayEnd::Complete;
            return Ok(false);
        }
        if let Some(last) = self.batches.last().filter(|last| last.seq >= batch.seq) {
            let reason = format!("batch {} after batch {}", batch.seq, last.seq);
            return Err(ReplayError::Malformed(reason));
        }
        self.batches.push(batch);
        Ok(true)
    }
}

/// Asks the ROUTER at `address` for every batch since `from_seq`, and reads until the end
/// marker, for at most `deadline`. Reads without pause into memory, up to
/// `limits.replay_bytes_max`, because a slow reader loses the tail.
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
    connection.send(&[b"", &from_seq.to_be_bytes()]).await?;
    let mut replay = Replay {
        asked_seq: from_seq,
        batches: Vec::new(),
        end: ReplayEnd::Truncated {
            reason: format!("no end marker within {deadline:?}"),
        },
    };
    match timeout_at(until, collect(&mut connection, &mut replay, limits)).await {
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

async fn collect(
    connection: &mut Connection,
    replay: &mut Replay,
    limits: &Limits,
) -> Result<(), ReplayError> {
    let mut bytes = 0;
    loop {
        let frames = match connection.next().await? {
            Incoming::Message(frames) => frames,
            Incoming::Ping(context) => {
                connection.pong(&context).await?;
                continue;
            }
            Incoming::Command(_) => continue,
        };
        bytes += frames.iter().map(Bytes::len).sum::<usize>();
        if bytes > limits.replay_bytes_max {
            replay.end = ReplayEnd::Truncated {
                reason: format!("more than {} bytes", limits.replay_bytes_max),
            };
            return Ok(());
        }
        if !replay.take(&frames)? {
            return Ok(());
        }
    }
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

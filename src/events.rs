//! The event sentence: next → decode → order → apply.
//!
//! A source yields *bytes* with their sequence number, so that every source exercises the same
//! decoder; what the bytes mean is decided below.

use std::future::Future;

use bytes::Bytes;

use snapshot::Snapshot;

pub mod wire;
pub mod order;
pub mod snapshot;
pub mod follow;
pub mod backoff;
mod capacity;
mod queue;
pub mod zmtp;
pub mod discover;
pub mod zmq;
pub mod bind;
pub mod replay;
pub mod recording;
pub mod nats;

pub mod silence;
pub mod tap;
pub mod listen;

/// Where one server's events come from.
pub trait EventSource: Send {
    /// What happened next, or `None` once the source has ended for good. Cancel-safe: a
    /// dropped future loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Delivery>> + Send;

    /// Whether what was told so far leaves the picture incomplete, so that a [`Delivery::Snapshot`]
    /// would help. For sources that have any.
    fn want_snapshot(&mut self, wanted: bool) {
        let _has_none = wanted;
    }
}

/// One thing that a source has to tell, in the order that it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The server published a batch.
    Batch(Batch),
    /// A message that is no batch: the sequence number it may have had is unknown.
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// The publisher answered and our subscription is on its way to it. Whatever it published
    /// before, and in the first moments after, was not heard: compare sequence numbers.
    Connected,
    /// The publisher cannot be heard: the connection ended, or another attempt at one failed.
    Disconnected {
        /// Why, for an operator.
        reason: String,
    },
    /// What the server held when a bridge last looked, in place of everything before.
    Snapshot(Box<Snapshot>),
    /// What follows comes from another process: what the one before held is gone.
    Restarted,
    /// After [`Delivery::Doubted`]: nothing was lost.
    Resumed,
    /// The source is not sure of what it tells until it says [`Delivery::Resumed`].
    Doubted {
        /// The server is not heard at all.
        silent: bool,
        /// A bridge says so of the server; otherwise the bridge itself is not heard, or late.
        by_bridge: bool,
        /// Why, for an operator.
        reason: String,
    },
    /// A gap of our own making: our queue was full, so these messages were thrown away.
    Overrun {
        /// How many.
        messages: u64,
    },
}

/// One published message, undecoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The topic as the server was configured with; empty where it is not told.
    pub topic: Bytes,
    /// The publisher's count of batches: from 0 at its start, one more for each.
    pub seq: u64,
    /// `msgpack` of `[timestamp, events, data-parallel rank]`.
    pub payload: Bytes,
}

impl Batch {
    /// Reads the frames of a live message: topic, sequence number (8 bytes, big endian),
    /// payload; the same in every vLLM from 0.9.0.1 to 0.33.0.
    ///
    /// # Errors
    /// What is wrong, for [`Delivery::Malformed`].
    pub fn from_frames(frames: &[Bytes]) -> Result<Self, String> {
        let [topic, seq, payload] = frames else {
            return Err(format!("{} frames instead of 3", frames.len()));
        };
        Ok(Self {
            topic: topic.clone(),
            seq: read_seq(seq)?,
            payload: payload.clone(),
        })
    }
}

impl Delivery {
    /// A batch if the frames are one, [`Delivery::Malformed`] otherwise.
    #[must_use]
    pub fn from_frames(frames: &[Bytes]) -> Self {
        match Batch::from_frames(frames) {
            Ok(batch) => Self::Batch(batch),
            Err(reason) => Self::Malformed { reason },
        }
    }
}

fn read_seq(frame: &[u8]) -> Result<u64, String> {
    let bytes = <[u8; 8]>::try_from(frame)
        .map_err(|_| format!("a sequence number of {} bytes instead of 8", frame.len()))?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_no_batch_says_what_is_wrong() {
        let frame = |bytes: &'static [u8]| Bytes::from_static(bytes);
        let malformed = |reason: &str| Delivery::Malformed {
            reason: reason.into(),
        };
        assert_eq!(
            Delivery::from_frames(&[frame(b"kv"), frame(b"x")]),
            malformed("2 frames instead of 3")
        );
        assert_eq!(
            Delivery::from_frames(&[frame(b"kv"), frame(b"12"), frame(b"")]),
            malformed("a sequence number of 2 bytes instead of 8")
        );
    }
}

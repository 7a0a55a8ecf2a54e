//! What a listener gives to somebody else, a bridge: what one endpoint published, in order and once,
//! and now and then all that it holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::follow::Verdict;
use super::snapshot::Snapshot;
use crate::fleet::Endpoint;
use crate::index::Picture;

/// Makes a tap for an endpoint that is to be heard.
pub type NewTap = Box<dyn FnMut(&Arc<Endpoint>) -> Tap + Send>;

/// One endpoint's. A slow taker makes the source's own queue fill, never the engine wait.
#[derive(Debug)]
pub struct Tap {
    sender: mpsc::Sender<Tapped>,
    resume: oneshot::Receiver<Option<Snapshot>>,
    picture_batches: u64,
    picture_every: Duration,
    /// Batches since the last picture, and when that was.
    batches: u64,
    pictured: Instant,
}

/// What a tap takes.
#[derive(Debug)]
pub enum Tapped {
    /// A batch.
    Batch {
        /// The process that published it.
        epoch: u64,
        /// Its number.
        seq: u64,
        /// Its bytes.
        payload: Bytes,
    },
    /// What the endpoint holds after the batches before.
    Picture {
        /// The process.
        epoch: u64,
        /// The last batch: its number and the hash of its bytes.
        last: (u64, u64),
        /// Whether that is all, and why.
        verdict: Verdict,
        /// What it holds.
        picture: Picture,
    },
}

/// The tap's other end is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untapped;

impl Tap {
    /// Gives to `sender`; `resume` brings what is known of the endpoint already. A picture is due
    /// after so many batches, and after so much time if there was any.
    #[must_use]
    pub fn new(
        sender: mpsc::Sender<Tapped>,
        resume: oneshot::Receiver<Option<Snapshot>>,
        picture_batches: u64,
        picture_every: Duration,
    ) -> Self {
        Self {
            sender,
            resume,
            picture_batches,
            picture_every,
            batches: 0,
            pictured: Instant::now(),
        }
    }

    /// What is known of the endpoint already; asked once.
    pub(super) async fn resume(&mut self) -> Option<Snapshot> {
        (&mut self.resume).await.ok().flatten()
    }

    /// Gives a batch, and waits until there is room for it.
    pub(super) async fn give_batch(
        &mut self,
        epoch: u64,
        seq: u64,
        payload: Bytes,
    ) -> Result<(), Untapped> {
        self.batches += 1;
        self.give(Tapped::Batch {
            epoch,
            seq,
            payload,
        })
        .await
    }

    /// Whether so many batches came that a picture is due.
    pub(super) fn is_full(&self) -> bool {
        self.batches >= self.picture_batches
    }

    /// Whether a picture is due.
    pub(super) fn is_due(&self) -> bool {
        self.is_full() || self.batches > 0 && self.pictured.elapsed() >= self.picture_every
    }

    /// Gives a picture.
    pub(super) async fn give_picture(
        &mut self,
        epoch: u64,
        last: (u64, u64),
        verdict: Verdict,
        picture: Picture,
    ) -> Result<(), Untapped> {
        (self.batches, self.pictured) = (0, Instant::now());
        self.give(Tapped::Picture {
            epoch,
            last,
            verdict,
            picture,
        })
        .await
    }

    async fn give(&self, tapped: Tapped) -> Result<(), Untapped> {
        self.sender.send(tapped).await.map_err(|_gone| Untapped)
    }
}

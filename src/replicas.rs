//! What replicas of this picker tell each other: who has what in flight, so that each chooses as if it had
//! placed everything itself, but for what is on its way.
//!
//! Whatever a scheduler places stands in a ledger ([`own`]) until it ends, and every change is told as a
//! small delta. What others tell ([`peers`]) is booked as our own requests are. Nothing waits for
//! any of it: a request takes a short lock, and [`share`] does the talking, over plain NATS, where words
//! may be lost. They are counted, so a loss is noticed, and a full state mends it. Without NATS, or
//! without others, a replica knows what it placed itself and what servers say of their load.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::blocks::Chain;
use crate::fleet::Endpoint;
use crate::index::Index;

pub mod wire;
pub mod own;
pub mod peers;
pub mod share;

use own::Own;
use peers::{PeerSizes, Peers};

/// This replica's ledger, and what it knows of others.
pub struct Replicas {
    own: Mutex<Own>,
    peers: Mutex<Peers>,
    /// There may be something to say.
    wake: Notify,
}

impl Replicas {
    /// Alone, until [`share::Share`] runs.
    #[must_use]
    pub fn new(index: Arc<Index>) -> Arc<Self> {
        Arc::new(Self {
            own: Mutex::default(),
            peers: Mutex::new(Peers::new(index)),
            wake: Notify::new(),
        })
    }

    /// Tells of a request that was just placed, and of its prompt where that counts as held there. None
    /// where there are too many.
    #[must_use]
    pub fn tell(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        prefill_tokens: u64,
        requests: u32,
        chain: Option<&Chain>,
    ) -> Option<Told> {
        let placed = self
            .own
            .lock()
            .placed(endpoint, prefill_tokens, requests, chain);
        let number = placed?;
        self.wake.notify_one();
        Some(Told {
            replicas: self.clone(),
            number,
            answered: false,
        })
    }

    /// How much others have told.
    #[must_use]
    pub fn sizes(&self, now: Instant) -> PeerSizes {
        self.peers.lock().sizes(now)
    }
}

/// A request that others have been told of. Dropping it tells them that it ended.
pub struct Told {
    replicas: Arc<Replicas>,
    number: u64,
    answered: bool,
}

impl Told {
    /// Its first output came.
    pub fn prefilled(&mut self) {
        self.replicas.own.lock().prefilled(self.number);
        self.replicas.wake.notify_one();
    }

    /// It was answered there, so events tell of its prompt.
    pub fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.replicas.own.lock().ended(self.number, self.answered);
        self.replicas.wake.notify_one();
    }
}

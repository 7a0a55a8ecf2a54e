//! How much we take on at once, and what gives way first.
//!
//! | past | what happens |
//! |---|---|
//! | `reading_max` exchanges, `held_bytes_max` bytes, or `unread_after` of waiting for a core | bodies are not read: load decides |
//! | `streams_max` exchanges, or `refused_after` of waiting for a core | new requests are refused: 503 |
//!
//! Waiting for a core is what a task that has work waits until it runs ([`Delay`]): with short prompts, which
//! are read where they arrive, that is the only queue there is. Each lane has one, and gives way by itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// What all exchanges together may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Exchanges at once, of which an idle one takes some 5 kB; more are refused.
    pub streams_max: usize,
    /// Exchanges that may read their bodies at once. Beyond it nothing is refused, but requests
    /// are placed by load, so that memory has a limit: this many bodies.
    pub reading_max: usize,
    /// Bytes of bodies that all exchanges together may hold; past it bodies are not held, and
    /// load decides.
    pub held_bytes_max: usize,
    /// Past such a wait for a core bodies are not read.
    pub unread_after: Duration,
    /// Past such a wait new exchanges are refused.
    pub refused_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams_max: 30_000,
            reading_max: 10_000,
            held_bytes_max: 1 << 30,
            unread_after: Duration::from_millis(250),
            refused_after: Duration::from_millis(500),
        }
    }
}

/// What messages that are not all there yet may take past [`Limits::held_bytes_max`]: four of the longest.
const ARRIVING_BYTES_MAX: usize = 256 << 20;

/// What is taken of it.
#[derive(Debug)]
pub struct Capacity {
    limits: Limits,
    exchanges: Arc<Semaphore>,
    reading: Arc<Semaphore>,
    memory: Arc<Memory>,
    /// Of each lane.
    delays: Box<[Delay]>,
}

/// What one exchange has of it; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    _exchange: OwnedSemaphorePermit,
    /// The right to hold and read a body, given back when the request is placed; or why it has none.
    pub reading: Result<OwnedSemaphorePermit, &'static str>,
    pub held: Held,
}

impl Capacity {
    /// All of it, for exchanges on so many lanes, at least one.
    #[must_use]
    pub fn new(limits: Limits, lanes: usize) -> Self {
        Self {
            exchanges: Arc::new(Semaphore::new(limits.streams_max)),
            reading: Arc::new(Semaphore::new(limits.reading_max)),
            memory: Arc::new(Memory::new(limits.held_bytes_max)),
            delays: (0..lanes.max(1)).map(|_| Delay::default()).collect(),
            limits,
        }
    }

    /// A place for one more on this lane, if there is one.
    pub(super) fn enter(&self, lane: usize) -> Option<Place> {
        let waited = self.delays[lane].standing();
        if waited > self.limits.refused_after {
            return None;
        }
        let exchange = self.exchanges.clone().try_acquire_owned().ok()?;
        let reading = match waited > self.limits.unread_after {
            true => Err("core_wait"),
            false => {
                let permit = self.reading.clone().try_acquire_owned();
                permit.map_err(|_| "exchanges")
            }
        };
        Some(Place {
            _exchange: exchange,
            reading,
            held: self.held(0),
        })
    }

    /// For a message that is not all there yet. Past the limit bodies give way first: they are placed unread, and then held by
    /// nobody.
    pub(super) fn arriving(&self) -> Held {
        self.held(ARRIVING_BYTES_MAX)
    }

    fn held(&self, beyond: usize) -> Held {
        Held {
            memory: self.memory.clone(),
            bytes: 0,
            beyond,
        }
    }

    /// Exchanges that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.limits.streams_max - self.exchanges.available_permits()
    }

    /// Bytes of bodies that they hold.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.memory.held.load(Ordering::Relaxed)
    }

    /// How long work waits for a core, of each lane.
    #[must_use]
    pub fn delays(&self) -> &[Delay] {
        &self.delays
    }

    /// The same of the lane where it waits longest.
    #[must_use]
    pub fn longest_delay(&self) -> Duration {
        let all = self.delays.iter().map(Delay::standing);
        all.max().unwrap_or_default()
    }
}

/// Bytes of bodies that all exchanges hold, and how many they may.
#[derive(Debug)]
struct Memory {
    held: AtomicUsize,
    max: usize,
}

impl Memory {
    fn new(max: usize) -> Self {
        Self {
            held: AtomicUsize::new(0),
            max,
        }
    }
}

/// One exchange's share; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Held {
    memory: Arc<Memory>,
    bytes: usize,
    /// So much past the limit is not yet too much for it.
    beyond: usize,
}

impl Held {
    /// What is booked.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Books `bytes` in place of what was booked; `false` where all together is too much.
    pub fn book(&mut self, bytes: usize) -> bool {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let held = &self.memory.held;
        if bytes <= before {
            let all = held.fetch_sub(before - bytes, Ordering::Relaxed) - (before - bytes);
            return all <= self.memory.max + self.beyond;
        }
        let more = bytes - before;
        held.fetch_add(more, Ordering::Relaxed) + more <= self.memory.max + self.beyond
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.book(0);
    }
}

/// How long work waits for a core, without the moments when everybody waits: the least of the last
/// [`LOOKS`] looks, as CoDel (RFC 8289) tells a queue that stands from one that a burst made. A pause of the
/// whole machine is one late look.
#[derive(Debug, Default)]
pub struct Delay {
    late_us: [AtomicU64; LOOKS],
    next: AtomicUsize,
}

/// Looks that must all have been late.
const LOOKS: usize = 5;
/// Between two of them.
const LOOK: Duration = Duration::from_millis(100);

impl Delay {
    /// A look came so late.
    pub fn observe(&self, late: Duration) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % LOOKS;
        let late_us = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        self.late_us[next].store(late_us, Ordering::Relaxed);
    }

    /// What everything has waited lately.
    #[must_use]
    pub fn standing(&self) -> Duration {
        let late_us = self.late_us.iter().map(|one| one.load(Ordering::Relaxed));
        Duration::from_micros(late_us.min().unwrap_or(0))
    }

    /// Looks again and again, for ever.
    pub async fn watch(&self) -> Infallible {
        loop {
            let due = Instant::now() + LOOK;
            tokio::time::sleep_until(due).await;
            self.observe(due.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(limits: Limits) -> Capacity {
        Capacity::new(limits, 2)
    }

    fn waits(capacity: &Capacity, wait: Duration) {
        for _ in 0..LOOKS {
            capacity.delays()[0].observe(wait);
        }
    }

    #[test]
    fn memory_is_shared_and_given_back() {
        let memory = Arc::new(Memory::new(100));
        let held = || Held {
            memory: memory.clone(),
            bytes: 0,
            beyond: 0,
        };
        let (mut one, mut two) = (held(), held());
        assert!(one.book(60));
        assert!(!two.book(50), "110 of 100");
        assert!(two.book(0));
        drop(one);
        assert!(two.book(100));
        drop(two);
        assert_eq!(memory.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn beyond_the_last_place_nobody_enters_until_one_leaves() {
        let capacity = capacity(Limits {
            streams_max: 1,
            ..Limits::default()
        });
        let first = capacity.enter(0).expect("the only place");
        assert!(capacity.enter(0).is_none());
        assert_eq!(capacity.open(), 1);
        drop(first);
        assert!(capacity.enter(0).is_some());
    }

    #[test]
    fn reading_gives_way_before_a_request_does() {
        let capacity = capacity(Limits::default());
        assert!(capacity.enter(0).expect("idle").reading.is_ok());
        waits(&capacity, Duration::from_millis(300));
        let place = capacity.enter(0).expect("a place");
        assert_eq!(place.reading.err(), Some("core_wait"));
        waits(&capacity, Duration::from_millis(600));
        assert!(capacity.enter(0).is_none());
        assert!(capacity.enter(1).expect("an idle lane").reading.is_ok());
        assert_eq!(capacity.longest_delay(), Duration::from_millis(600));
        waits(&capacity, Duration::ZERO);
        assert!(capacity.enter(0).expect("idle again").reading.is_ok());
    }

    #[test]
    fn one_pause_of_the_whole_machine_refuses_nobody() {
        let capacity = capacity(Limits::default());
        capacity.delays()[0].observe(Duration::from_secs(30));
        assert!(capacity.enter(0).expect("a place").reading.is_ok());
    }

    #[tokio::test]
    async fn a_busy_core_is_seen() {
        let delay = Arc::new(Delay::default());
        let watched = delay.clone();
        let watching = tokio::spawn(async move { watched.watch().await });
        // The runtime has this thread alone, and it is busy whenever the watcher should look.
        let busy = Duration::from_millis(50);
        while delay.standing() < busy / 2 {
            std::thread::sleep(LOOK + busy);
            tokio::task::yield_now().await;
        }
        watching.abort();
    }
}

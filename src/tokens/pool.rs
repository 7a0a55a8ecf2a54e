//! Where prompts are read, so that a long one does not stall the runtime.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use crossbeam_channel::Sender;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::metrics::TokenizerMetrics;

/// Texts shorter than this are encoded where they are: 16 KiB take 0.1 ms.
const INLINE_BYTES_MAX: usize = 16 << 10;
/// Beside so many that were read before, which takes a tenth of the time: 1 MiB takes a millisecond. The way to another thread
/// and back takes 0.2 ms where cores are busy.
const KNOWN_BYTES_MAX: usize = 1 << 20;
/// So long no such text takes that was known indeed: the guess was wrong, or the cache has forgotten it.
const KNOWN_MAX: Duration = Duration::from_millis(2);
/// How far ahead a thread may read such texts of the half of its time that it has for them: it serves others too, and may be the
/// only one that has anything to serve.
const AHEAD_MAX: Duration = Duration::from_millis(4);

thread_local! {
    /// Until when this thread has spent half of its time.
    static SPENT_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Why work was not done. Load decides, then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// `limits.tokenizer_queue_max` long texts wait already.
    #[error("too many long prompts wait for the tokenizer")]
    Full,
    /// No core was free within `limits.tokenizer_wait_ms_max`.
    #[error("no core was free in time")]
    Waited,
    /// A bug of ours or of the tokenizer's; the panic's own message is on stderr.
    #[error("the work panicked")]
    Panicked,
}

impl NotDone {
    /// The word for labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Full => "tokenizer_busy",
            Self::Waited => "tokenizer_wait",
            Self::Panicked => "tokenizer_panic",
        }
    }
}

/// How much there is to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bytes that are new, as far as anybody can tell.
    pub new_bytes: usize,
    /// Bytes that were read before.
    pub known_bytes: usize,
}

impl Size {
    /// Of a text of which nothing is known.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            new_bytes: bytes,
            known_bytes: 0,
        }
    }

    /// Of a text of which so many bytes were read before.
    #[must_use]
    pub fn known(bytes: usize, known_bytes: usize) -> Self {
        Self {
            new_bytes: bytes - known_bytes,
            known_bytes,
        }
    }
}

/// Where work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// Here, and it is not worth counting.
    Here,
    /// Here, out of the time that this thread has for such work.
    HereCounted,
    Elsewhere,
}

impl Where {
    fn of(size: Size) -> Self {
        if size.new_bytes >= INLINE_BYTES_MAX || size.known_bytes > KNOWN_BYTES_MAX {
            return Self::Elsewhere;
        }
        if size.known_bytes < INLINE_BYTES_MAX {
            return Self::Here;
        }
        let spent_until = SPENT_UNTIL.get();
        match spent_until.is_none_or(|until| until < Instant::now() + AHEAD_MAX) {
            true => Self::HereCounted,
            false => Self::Elsewhere,
        }
    }
}

/// This thread has read for so long since then: that is half of twice as long. What took too long counts eight times that, so that
/// where caches are too small for what is asked, nearly all of it goes elsewhere.
fn spend(began: Instant, time: Duration) {
    let times = if time < KNOWN_MAX { 2 } else { 16 };
    let from = SPENT_UNTIL.get().map_or(began, |until| until.max(began));
    SPENT_UNTIL.set(Some(from + time * times));
}

type Work = Box<dyn FnOnce() + Send>;

/// Bounded parallelism for long texts, on threads of its own that live as long as it does.
///
/// The fast engine has tables for each thread: 17 MB for Qwen's vocabulary, 80 MB when they have grown (fastokens
/// 0.3, `PretokenCache`), and filling them takes as long as tokenizing hundreds of thousands of tokens. tokio's
/// threads for blocking work would each fill their own, as many as ever worked at once, and end after ten seconds
/// without work.
pub struct TokenPool {
    rooms: Arc<Rooms>,
    working_max: usize,
    places_max: usize,
    /// What has not begun by then is not begun.
    wait_max: Duration,
    measured: TokenizerMetrics,
    /// To whichever thread is free. They end with it.
    threads: Sender<Work>,
}

struct Rooms {
    /// Work at one time.
    permits: Semaphore,
    /// Work and waiting together.
    places: Semaphore,
}

impl TokenPool {
    /// The size of work that is never done where it is.
    pub const LONG: usize = INLINE_BYTES_MAX;

    /// A pool that works on so many texts at a time, at least one, while so many more wait so
    /// long. [`threads`](crate::config::threads) keeps every core busy and no more.
    ///
    /// # Errors
    /// The system has no more threads to give.
    pub fn new(
        working_max: usize,
        waiting_max: usize,
        wait_max: Duration,
        measured: TokenizerMetrics,
    ) -> io::Result<Self> {
        let working_max = working_max.max(1);
        Ok(Self {
            rooms: Arc::new(Rooms {
                permits: Semaphore::new(working_max),
                places: Semaphore::new(working_max + waiting_max),
            }),
            working_max,
            places_max: working_max + waiting_max,
            wait_max,
            measured,
            threads: start(working_max)?,
        })
    }

    /// How many texts are worked on.
    #[must_use]
    pub fn working(&self) -> usize {
        self.working_max - self.rooms.permits.available_permits()
    }

    /// How many texts wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        // Both are read one after the other, and work may end in between.
        (self.places_max - self.rooms.places.available_permits()).saturating_sub(self.working())
    }

    /// Runs `work` on a text: here if it takes little time, on a thread of the pool's if it takes longer.
    ///
    /// Dropping the future takes waiting work out of the queue; work that has begun runs to its
    /// end and keeps its permit until then.
    ///
    /// # Errors
    /// [`NotDone`]: the caller chooses by load alone.
    pub async fn run<T: Send + 'static>(
        &self,
        size: Size,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        match Where::of(size) {
            Where::Here => return measure(&self.measured, work),
            Where::HereCounted => {
                let began = Instant::now();
                let done = measure(&self.measured, work);
                spend(began, began.elapsed());
                return done;
            }
            Where::Elsewhere => {}
        }
        let place = self.rooms.places.try_acquire().map_err(|_| NotDone::Full)?;
        let asked = Instant::now();
        let permit = timeout(self.wait_max, self.rooms.permits.acquire()).await;
        self.measured.wait.record(asked.elapsed());
        // An error within means that the pool was closed, which nobody does.
        let Ok(Ok(permit)) = permit else {
            return Err(NotDone::Waited);
        };
        // The thread outlives this future if that is dropped, so it gives the permits back.
        permit.forget();
        place.forget();
        let held = Held(self.rooms.clone());
        let measured = self.measured.clone();
        let (tell, told) = oneshot::channel();
        let work = move || {
            let done = measure(&measured, work);
            drop(held);
            // Nobody may wait for it any more.
            let _ = tell.send(done);
        };
        // There is room: as many wait there as have permits. Nobody listens only once the pool is gone.
        let sent = self.threads.try_send(Box::new(work));
        sent.map_err(|_| NotDone::Full)?;
        told.await.unwrap_or(Err(NotDone::Panicked))
    }
}

/// So many threads that work until the sender is dropped, and what was begun is done. None of them holds what another
/// needs to take work: one whose core stands still, as a virtual machine's may, keeps no work from the others.
fn start(threads: usize) -> io::Result<Sender<Work>> {
    let (sender, receiver) = crossbeam_channel::bounded::<Work>(threads);
    for number in 0..threads {
        let receiver = receiver.clone();
        let thread = thread::Builder::new().name(format!("tokenizer-{number}"));
        thread.spawn(move || {
            while let Ok(work) = receiver.recv() {
                work();
            }
        })?;
    }
    Ok(sender)
}

/// A panic costs the overlap, and neither the request nor the thread.
fn measure<T>(measured: &TokenizerMetrics, work: impl FnOnce() -> T) -> Result<T, NotDone> {
    let began = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(work)).map_err(|_| NotDone::Panicked)?;
    measured.work.record(began.elapsed());
    Ok(done)
}

/// A permit and a place that belong to a thread.
struct Held(Arc<Rooms>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.permits.add_permits(1);
        self.0.places.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::metrics::Metrics;

    const LONG: Size = Size {
        new_bytes: TokenPool::LONG,
        known_bytes: 0,
    };
    const SHORT: Size = Size {
        new_bytes: TokenPool::LONG - 1,
        known_bytes: 0,
    };
    const WAITING: usize = 64;
    const PATIENCE: Duration = Duration::from_secs(20);

    fn pool(working_max: usize, wait_max: Duration) -> Arc<TokenPool> {
        let measured = Metrics::default().tokenizer();
        Arc::new(TokenPool::new(working_max, WAITING, wait_max, measured).expect("threads"))
    }

    #[tokio::test]
    async fn a_short_text_is_done_where_it_is() {
        let pool = pool(1, PATIENCE);
        let here = std::thread::current().id();
        let there = pool.run(SHORT, move || std::thread::current().id()).await;
        assert_eq!(there, Ok(here));
    }

    #[tokio::test]
    async fn a_long_text_leaves_the_runtime_free() {
        let pool = pool(1, PATIENCE);
        let here = std::thread::current().id();
        let there = pool.run(LONG, move || std::thread::current().id()).await;
        assert_ne!(there, Ok(here));
    }

    #[tokio::test]
    async fn what_was_read_before_is_read_where_it_is_for_half_of_a_threads_time() {
        let pool = pool(1, PATIENCE);
        let here = std::thread::current().id();
        let run = async |known_bytes, time: Duration| {
            let size = Size {
                known_bytes,
                ..SHORT
            };
            let work = move || {
                let began = Instant::now();
                while began.elapsed() < time {}
                std::thread::current().id()
            };
            pool.run(size, work).await.expect("done") == here
        };
        let (long, at_once, time) = (500_000, Duration::ZERO, Duration::from_millis(1));
        let began = Instant::now();
        assert!(run(long, time).await);
        let spent_until = || SPENT_UNTIL.get().expect("it has read");
        assert!(spent_until() >= began + 2 * time);
        SPENT_UNTIL.set(Some(began + PATIENCE));
        assert!(!run(long, at_once).await, "its half is spent for long");
        assert!(run(0, at_once).await, "short texts always");
        assert_eq!(spent_until(), began + PATIENCE, "which cost it nothing");
        SPENT_UNTIL.set(Some(began));
        assert!(run(long, at_once).await);
        assert!(!run(KNOWN_BYTES_MAX + 1, at_once).await);
    }

    #[test]
    fn a_wrong_guess_counts_eight_times() {
        let (began, time) = (Instant::now(), KNOWN_MAX / 2);
        spend(began, time);
        assert_eq!(SPENT_UNTIL.get(), Some(began + 2 * time));
        spend(began, KNOWN_MAX);
        assert_eq!(SPENT_UNTIL.get(), Some(began + 2 * time + 16 * KNOWN_MAX));
        let later = began + PATIENCE;
        spend(later, time);
        assert_eq!(
            SPENT_UNTIL.get(),
            Some(later + 2 * time),
            "nothing is saved up"
        );
    }

    /// Work that ends when told to.
    fn hold(pool: &Arc<TokenPool>) -> (mpsc::SyncSender<()>, tokio::task::JoinHandle<bool>) {
        let (go, wait) = mpsc::sync_channel::<()>(1);
        let pool = Arc::clone(pool);
        let held = async move { pool.run(LONG, move || wait.recv().is_ok()).await };
        (go, tokio::spawn(async { held.await == Ok(true) }))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_more_threads_than_work_at_once_ever_fill_tables() {
        let pool = pool(2, PATIENCE);
        let one = || {
            let pool = pool.clone();
            tokio::spawn(async move { pool.run(LONG, || std::thread::current().id()).await })
        };
        let runs: Vec<_> = std::iter::repeat_with(one).take(60).collect();
        let mut threads = std::collections::HashSet::new();
        for run in runs {
            threads.insert(run.await.unwrap().unwrap());
        }
        assert!(threads.len() <= 2, "{threads:?}");
    }

    #[tokio::test]
    async fn a_full_queue_answers_busy_and_recovers() {
        let pool = pool(1, PATIENCE);
        let (go, first) = hold(&pool);
        tokio::task::yield_now().await;
        let waiting: Vec<_> = (0..WAITING)
            .map(|number| {
                let pool = Arc::clone(&pool);
                tokio::spawn(async move { pool.run(LONG, move || number).await })
            })
            .collect();
        while pool.rooms.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((pool.working(), pool.waiting()), (1, WAITING));
        assert_eq!(pool.run(LONG, || 0).await, Err(NotDone::Full));
        assert_eq!(
            pool.run(SHORT, || 0).await,
            Ok(0),
            "short texts need no place"
        );
        go.send(()).unwrap();
        assert!(first.await.unwrap());
        for (number, done) in waiting.into_iter().enumerate() {
            assert_eq!(done.await.unwrap(), Ok(number));
        }
        assert_eq!(pool.run(LONG, || 0).await, Ok(0));
    }

    #[tokio::test]
    async fn what_has_not_begun_in_time_is_not_begun() {
        let metrics = Metrics::default();
        let wait_max = Duration::from_millis(10);
        let pool = TokenPool::new(1, WAITING, wait_max, metrics.tokenizer());
        let pool = Arc::new(pool.expect("a thread"));
        let (go, first) = hold(&pool);
        while pool.working() == 0 {
            tokio::task::yield_now().await;
        }
        let (begun, heard) = mpsc::sync_channel(1);
        let late = pool.run(LONG, move || begun.send(())).await;
        assert!(matches!(late, Err(NotDone::Waited)), "{late:?}");
        go.send(()).unwrap();
        assert!(first.await.unwrap());
        assert!(heard.recv().is_err(), "dropped without having run");
        assert_eq!(pool.run(LONG, || 1).await, Ok(1), "its place is free again");
        let text = metrics.handle().render();
        for line in [
            "kvscout_tokenizer_wait_seconds_count 3",
            "kvscout_tokenizer_work_seconds_count 2",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_permit_back() {
        let pool = pool(1, PATIENCE);
        for size in [LONG, SHORT] {
            let failed: Result<(), _> = pool.run(size, || panic!("as a test")).await;
            assert_eq!(failed, Err(NotDone::Panicked));
        }
        assert_eq!(pool.run(LONG, || 1).await, Ok(1));
    }
}

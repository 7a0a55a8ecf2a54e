//! Where tokenizing happens, so that a long prompt does not stall the runtime.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::Semaphore;

/// Texts shorter than this are encoded where they are: 16 KiB take 0.1 ms.
const INLINE_BYTES_MAX: usize = 16 << 10;

/// Work that was not done: too many texts wait already, or the runtime is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many long prompts wait for the tokenizer")]
pub struct Busy;

/// Bounded parallelism for long texts.
#[derive(Debug)]
pub struct TokenPool {
    /// Work at one time.
    permits: Semaphore,
    /// Work and waiting together.
    places: Semaphore,
}

impl TokenPool {
    /// A pool that works on so many texts at a time, at least one, while so many more wait.
    #[must_use]
    pub fn new(permits: usize, waiting_max: usize) -> Self {
        let permits = permits.max(1);
        Self {
            permits: Semaphore::new(permits),
            places: Semaphore::new(permits + waiting_max),
        }
    }

    /// A pool that keeps every core busy and no more.
    #[must_use]
    pub fn of_all_cores(waiting_max: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self::new(cores, waiting_max)
    }

    /// Runs `work` on a text of so many bytes: here if it is short, on a thread that may block
    /// if it is long.
    ///
    /// Dropping the future takes waiting work out of the queue; work that has begun runs to its
    /// end and keeps its permit until then.
    ///
    /// # Errors
    /// [`Busy`] if the queue is full: the caller chooses by load alone.
    pub async fn run<T: Send + 'static>(
        self: &std::sync::Arc<Self>,
        text_bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        if text_bytes < INLINE_BYTES_MAX {
            // A panic costs the overlap, as it does on a thread, and not the request.
            return catch_unwind(AssertUnwindSafe(work)).map_err(|_| Busy);
        }
        let place = self.places.try_acquire().map_err(|_| Busy)?;
        let permit = self.permits.acquire().await.map_err(|_| Busy)?;
        // The thread outlives this future if that is dropped, so it gives the permits back.
        permit.forget();
        place.forget();
        let held = Held(std::sync::Arc::clone(self));
        let done = tokio::task::spawn_blocking(move || {
            let _held = held;
            work()
        });
        done.await.map_err(|_| Busy)
    }
}

/// A permit and a place that belong to a thread.
struct Held(std::sync::Arc<TokenPool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.permits.add_permits(1);
        self.0.places.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    const LONG: usize = INLINE_BYTES_MAX;
    const WAITING: usize = 64;

    #[tokio::test]
    async fn a_short_text_is_done_where_it_is() {
        let pool = Arc::new(TokenPool::new(1, WAITING));
        let here = std::thread::current().id();
        let there = pool
            .run(LONG - 1, move || std::thread::current().id())
            .await;
        assert_eq!(there, Ok(here));
    }

    #[tokio::test]
    async fn a_long_text_leaves_the_runtime_free() {
        let pool = Arc::new(TokenPool::new(1, WAITING));
        let here = std::thread::current().id();
        let there = pool.run(LONG, move || std::thread::current().id()).await;
        assert_ne!(there, Ok(here));
    }

    #[tokio::test]
    async fn a_full_queue_answers_busy_and_recovers() {
        let pool = Arc::new(TokenPool::new(1, WAITING));
        let (go, wait) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.run(LONG, move || wait.recv().is_ok()).await }
        });
        tokio::task::yield_now().await;
        let waiting: Vec<_> = (0..WAITING)
            .map(|number| {
                let pool = Arc::clone(&pool);
                tokio::spawn(async move { pool.run(LONG, move || number).await })
            })
            .collect();
        while pool.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.run(LONG, || 0).await, Err(Busy));
        assert_eq!(pool.run(1, || 0).await, Ok(0), "short texts need no place");
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        for (number, done) in waiting.into_iter().enumerate() {
            assert_eq!(done.await.unwrap(), Ok(number));
        }
        assert_eq!(pool.run(LONG, || 0).await, Ok(0));
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_permit_back() {
        let pool = Arc::new(TokenPool::new(1, WAITING));
        let failed: Result<(), _> = pool.run(LONG, || panic!("as a test")).await;
        assert_eq!(failed, Err(Busy));
        let failed: Result<(), _> = pool.run(1, || panic!("as a test")).await;
        assert_eq!(failed, Err(Busy));
        assert_eq!(pool.run(LONG, || 1).await, Ok(1));
    }
}

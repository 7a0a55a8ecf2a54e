//! A thread with a runtime of its own, on which some of the connections live from their first byte to their last.
//!
//! A runtime of several threads wakes another thread for what each message brings: at 3,500 requests of 1,000 tokens a
//! second on two cores it did so three times a request, which took a fifth of a decision's CPU time.

use std::future::Future;
use std::{io, thread};

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Work on its way on a thread.
pub struct Lane<T>(oneshot::Receiver<End<T>>);

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End<T> {
    /// By itself, with this.
    Done(T),
    /// Nobody wanted it any more.
    Abandoned,
    /// With the thread.
    Panicked,
}

impl<T: Send + 'static> Lane<T> {
    /// Starts a thread that works until it has done, or until it is abandoned. What its work has spawned ends with it.
    ///
    /// # Errors
    /// The system has no more threads, or no more file descriptors, to give.
    pub fn start(
        name: String,
        abandoned: CancellationToken,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (tell, told) = oneshot::channel();
        thread::Builder::new().name(name).spawn(move || {
            let done = runtime.block_on(abandoned.run_until_cancelled_owned(work));
            drop(runtime);
            // Nobody may wait for it any more.
            let _ = tell.send(done.map_or(End::Abandoned, End::Done));
        })?;
        Ok(Self(told))
    }

    /// Waits for its end, after which nothing of it runs.
    pub async fn end(self) -> End<T> {
        self.0.await.unwrap_or(End::Panicked)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn start<T: Send + 'static>(
        abandoned: &CancellationToken,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Lane<T> {
        Lane::start("lane".into(), abandoned.clone(), work).expect("a thread")
    }

    #[tokio::test]
    async fn work_and_what_it_spawns_stay_on_one_thread() {
        let thread = async || std::thread::current().id();
        let work = async move { (thread().await, tokio::spawn(thread()).await.expect("runs")) };
        let End::Done((one, other)) = start(&CancellationToken::new(), work).end().await else {
            panic!("it ends by itself");
        };
        assert_eq!(one, other);
        assert_ne!(one, std::thread::current().id());
    }

    #[tokio::test]
    async fn abandoned_work_ends_with_what_it_has_spawned() {
        let abandoned = CancellationToken::new();
        let (held, dropped) = oneshot::channel::<()>();
        let work = async move {
            tokio::spawn(async move {
                let _held = held;
                pending::<()>().await;
            });
            pending::<()>().await;
        };
        let lane = start(&abandoned, work);
        abandoned.cancel();
        assert_eq!(lane.end().await, End::Abandoned);
        assert!(dropped.await.is_err(), "nobody holds it");
    }

    #[tokio::test]
    async fn a_panic_is_told() {
        let work = async { panic!("as a test") };
        let lane = start::<()>(&CancellationToken::new(), work);
        assert_eq!(lane.end().await, End::Panicked);
    }
}

//! Where the servers run: in the field each has a machine, here they have threads of their own.
//!
//! A server that reads a prompt of 100,000 tokens takes a thread for a millisecond. On the threads of whoever asks,
//! that would be a millisecond of every other request's time. Where latencies are measured the threads give way besides.

use std::future::Future;

use anyhow::Context as _;
use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Runtime};

/// The last in line for a core (setpriority(2), which is a thread's own on Linux).
const LAST: i32 = 19;

/// This work for another thread, which first gives way as much as this one does, and goes on to.
pub(crate) fn as_here<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let here = getpriority_process(None);
    move || {
        if let (Ok(here), Ok(there)) = (here, getpriority_process(None))
            && there < here
        {
            // Without it that thread is in the way, and nothing else is wrong.
            let _ = setpriority_process(None, here);
        }
        work()
    }
}

/// Threads that end with this, and with what runs on them.
#[derive(Debug)]
pub(crate) struct Elsewhere(Option<Runtime>);

impl Elsewhere {
    /// As many threads as there are cores, that leave these to everybody else if they are to give way.
    pub fn new(gives_way: bool) -> anyhow::Result<Self> {
        let begin = move || {
            // Without it the servers are in the way, and nothing else is wrong.
            if gives_way && let Err(error) = setpriority_process(None, LAST) {
                tracing::warn!(%error, "simulated servers have everybody's priority");
            }
        };
        let runtime = Builder::new_multi_thread()
            .thread_name("servers")
            .on_thread_start(begin)
            .enable_all()
            .build();
        let runtime = runtime.context("no threads for the servers")?;
        Ok(Self(Some(runtime)))
    }

    /// Does this there.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<T> {
        let runtime = self.0.as_ref().context("it has ended")?;
        runtime.spawn(work).await?
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // Threads are not waited for on a thread that runs tasks.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

//! Log lines, which a thread of their own writes: who reads standard error may stop reading, and no request
//! waits for that.

use std::io::{self, BufWriter, Stderr, Write};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Lines that wait for whoever reads them, of some 300 bytes. Those past it are lost, and counted.
const LINES_MAX: usize = 4096;

/// Lines are written at once that come so close together. To wake a thread for each of them would cost a
/// decision of 1,000 tokens a tenth of its CPU time (`make bench-decision`).
const GATHERED_FOR: Duration = Duration::from_millis(20);

/// Bytes that are written at once.
const WRITTEN_AT_ONCE: usize = 1 << 16;

/// Of the process, as its log is.
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// The process's log. What waits is written when this is dropped, if that takes no longer than a second.
#[must_use = "without it nothing is written"]
pub struct Log(#[expect(dead_code, reason = "writes until it is dropped")] WorkerGuard);

impl Log {
    /// Sends log lines to standard error; the environment's `RUST_LOG` says which.
    ///
    /// # Panics
    /// A process starts one log.
    pub fn start(format: LogFormat) -> Self {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let (writer, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(LINES_MAX)
            .thread_name("log")
            .finish(Gathering(BufWriter::with_capacity(
                WRITTEN_AT_ONCE,
                io::stderr(),
            )));
        let lost = LOST.set(writer.error_counter());
        lost.expect("a process starts one log");
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(writer);
        match format {
            LogFormat::Text => log.with_ansi(false).init(),
            LogFormat::Json => log.json().flatten_event(true).init(),
        }
        Self(guard)
    }
}

/// Standard error, which is flushed once no line waits.
struct Gathering(BufWriter<Stderr>);

impl Write for Gathering {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        thread::sleep(GATHERED_FOR);
        Ok(())
    }
}

/// Lines that were lost so far, because too many waited.
#[must_use]
pub fn lines_lost() -> u64 {
    LOST.get().map_or(0, |lost| lost.dropped_lines() as u64)
}

//! Linux's perf, looking at a process for a while.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// Samples a second of each core: off the beat of timers, and few enough to leave it as it is.
const HERTZ: &str = "499";
/// Stacks are unwound later, by .eh_frame, out of so many of their bytes: release builds keep no frame pointers.
const STACK: &str = "dwarf,32768";

/// A recording under way.
#[derive(Debug)]
pub struct Perf {
    child: Child,
}

impl Perf {
    /// Begins to record a process's stacks into a file.
    ///
    /// # Errors
    /// There is no perf, it may not look, or there can be no such folder.
    pub fn record(process: u32, into: &Path) -> anyhow::Result<Self> {
        if let Some(folder) = into.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("--perf {}", folder.display()))?;
        }
        let (process, file) = (process.to_string(), into.display().to_string());
        let child = Command::new("perf")
            .args(["record", "--quiet", "-F", HERTZ, "--call-graph", STACK])
            .args(["-p", &process, "-o", &file])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("perf does not start: install Debian's linux-perf")?;
        Ok(Self { child })
    }

    /// Ends it, and waits until the file is whole.
    ///
    /// # Errors
    /// It ended before, or could not write.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let process = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.try_into().ok()?));
        kill_process(process.context("perf ended by itself")?, Signal::INT)?;
        let status = self.child.wait().await?;
        // It ends by the signal that it was asked with.
        ensure!(
            status.success() || status.code().is_none(),
            "perf ended with {status}: is kernel.perf_event_paranoid above 2?"
        );
        Ok(())
    }
}

//! A process of ours: its log in a file, itself in a process group, gone when we are.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::time::{Instant, interval, timeout};

/// How often something is looked at that nothing announces.
const LOOK: Duration = Duration::from_millis(20);
/// From "please end" to "end".
const GRACE: Duration = Duration::from_secs(5);
/// Lines and bytes of a log's end that an error quotes.
const QUOTED_LINES: usize = 12;
const QUOTED_BYTES: u64 = 16 << 10;

/// A running process. Dropping it kills it and whatever it started.
#[derive(Debug)]
pub struct Child {
    name: &'static str,
    process: tokio::process::Child,
    group: Option<Pid>,
    log: PathBuf,
}

impl Child {
    /// Starts a program that logs into `folder`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        name: &'static str,
        program: &Path,
        args: &[String],
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let process = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // A group of its own: Ctrl-C reaches us alone, and we end things in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", program.display()))?;
        let group = process
            .id()
            .and_then(|id| Pid::from_raw(id.try_into().ok()?));
        Ok(Self {
            name,
            process,
            group,
            log,
        })
    }

    /// Its process id; none once it has ended.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Where its log is.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Looks until there is something to see.
    ///
    /// # Errors
    /// The process ended, or time is up; with the end of its log.
    pub async fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl AsyncFnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let (began, mut ticks) = (Instant::now(), interval(LOOK));
        loop {
            ticks.tick().await;
            if let Ok(Some(seen)) = timeout(limit, look()).await {
                return Ok(seen);
            }
            let name = self.name;
            if let Some(status) = self.process.try_wait()? {
                let log = self.last_lines();
                bail!(
                    "{name} ended with {status} while we waited for {what}; its log ends:\n{log}"
                );
            }
            if began.elapsed() > limit {
                let log = self.last_lines();
                bail!("not within {limit:?}: {what}; {name}'s log ends:\n{log}");
            }
        }
    }

    /// How long the log is, in bytes: a mark for [`line_since`].
    #[must_use]
    pub fn mark(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// The log's end, indented.
    fn last_lines(&self) -> String {
        let text = read_from(&self.log, self.mark().saturating_sub(QUOTED_BYTES));
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
        last.iter().map(|line| format!("    {line}\n")).collect()
    }

    /// Asks it to end, and sees to it.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        if timeout(GRACE, self.process.wait()).await.is_err() {
            self.signal(Signal::KILL);
            // Killed processes end.
            let _ = self.process.wait().await;
        }
    }

    fn signal(&self, signal: Signal) {
        // A group that is gone needs no signal.
        let _ = self.group.map(|group| kill_process_group(group, signal));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Once it was waited for, its number may be another's.
        if self.process.id().is_some() {
            self.signal(Signal::KILL);
        }
    }
}

/// The first whole line with `part` in a log after `mark` bytes.
#[must_use]
pub fn line_since(log: &Path, mark: u64, part: &str) -> Option<String> {
    let text = read_from(log, mark);
    let mut whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole
        .find(|line| line.contains(part))
        .map(|line| line.trim_end().to_owned())
}

/// Empty if it cannot be read: that must not hide why we wanted to read it.
fn read_from(log: &Path, mark: u64) -> String {
    let read = || {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(mark))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> Child {
        let args = ["-c".to_owned(), script.to_owned()];
        Child::start("shell", Path::new("/bin/sh"), &args, folder).expect("a shell")
    }

    #[tokio::test]
    async fn a_child_that_dies_says_its_last_words() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = shell("echo the port is taken >&2; exit 3", folder.path());
        let waited = child
            .until("it", Duration::from_secs(20), async || None::<()>)
            .await;
        let error = waited.expect_err("it ended").to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("the port is taken"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn dropping_a_child_ends_its_children_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = shell("sleep 600 & echo grandchild $!; wait", folder.path());
        let (log, limit) = (child.log().to_owned(), Duration::from_secs(20));
        let look = async || line_since(&log, 0, "grandchild");
        let line = child
            .until("a grandchild", limit, look)
            .await
            .expect("started");
        let grandchild = line.rsplit(' ').next().expect("a number").to_owned();
        drop(child);
        // A killed process that nobody has waited for yet is a zombie: ended all the same.
        let ended = || match std::fs::read_to_string(format!("/proc/{grandchild}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        let (began, mut ticks) = (Instant::now(), interval(LOOK));
        while !ended() {
            assert!(began.elapsed() < limit, "{grandchild} is left");
            ticks.tick().await;
        }
    }
}

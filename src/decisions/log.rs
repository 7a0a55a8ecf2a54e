//! The decision log: a file of [`json::Decision`](super::json::Decision)s, one a line, each written when its request
//! has ended.
//!
//! Nobody waits for the disk: the queue is bounded, and lines that find it full, or that cannot be
//! written, are lost and counted. The file is rotated by size, so that it never takes more than
//! `bytes_max` × `files_max`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use super::{Decision, json};
use crate::config::DecisionLog;
use crate::gather::Gather;
use crate::metrics::Metrics;

/// Decisions that wait to be written: at 1,000 a second a disk may stall for 4 s. Each is shared with
/// the ring of recent ones, or some kilobytes.
pub const QUEUE_MAX: usize = 4_096;
/// A decision among 64 endpoints is 8 kB.
const AT_ONCE: usize = 256;
/// Lines wait so long for others: to wake a thread and to write costs as much for one as for fifty.
const GATHERED: Duration = Duration::from_millis(50);
/// Given to the file at once.
const BUFFER_BYTES: usize = 64 << 10;
/// After a failure, before the file is tried again: a full disk is no reason to log in a loop.
const PAUSE: Duration = Duration::from_secs(5);

/// Writes whatever comes, and at the end what is left.
///
/// # Errors
/// None in practice: what cannot be written is lost and counted.
pub async fn run(
    settings: DecisionLog,
    queue: Receiver<Arc<Decision>>,
    metrics: Arc<Metrics>,
    ending: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let mut log = Log::of(settings);
    let mut decisions = Gather::new(queue, (GATHERED, AT_ONCE), ending);
    while let Some(lines) = decisions.next().await {
        let count = lines.len() as u64;
        let (back, written) = tokio::task::spawn_blocking(move || {
            let written = log.write(&lines);
            (log, written)
        })
        .await?;
        log = back;
        metrics.decisions_logged(written.lines);
        metrics.decisions_unlogged(count - written.lines);
        if let Err(error) = written.result {
            let file = log.settings.file.display();
            tracing::warn!(%file, %error, "decisions.log: lines are lost; is the disk full, or read-only?");
            // The queue fills meanwhile, and what does not fit is counted where it is dropped.
            decisions.pause(PAUSE).await;
        }
    }
    Ok(())
}

/// What became of some lines.
struct Written {
    lines: u64,
    result: io::Result<()>,
}

struct Log {
    settings: DecisionLog,
    file: Option<BufWriter<File>>,
    bytes: u64,
}

impl Log {
    fn of(settings: DecisionLog) -> Self {
        Self {
            settings,
            file: None,
            bytes: 0,
        }
    }

    fn write(&mut self, decisions: &[Arc<Decision>]) -> Written {
        let (mut lines, mut line) = (0, Vec::new());
        let mut all = || -> io::Result<()> {
            for decision in decisions {
                line.clear();
                serde_json::to_writer(&mut line, &json::Decision::whole(decision))?;
                line.push(b'\n');
                self.put(&line)?;
                lines += 1;
            }
            self.file.as_mut().map_or(Ok(()), Write::flush)
        };
        let result = all();
        if result.is_err() {
            // What is buffered is tried no second time: half a line may be on the disk already.
            self.file.take().map(BufWriter::into_parts);
            lines = 0;
        }
        Written { lines, result }
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        let bytes = line.len() as u64;
        if self.file.is_some() && self.bytes > 0 && self.bytes + bytes > self.settings.bytes_max {
            if let Some(mut file) = self.file.take() {
                file.flush()?;
            }
            rotate(&self.settings.file, self.settings.files_max)?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&self.settings.file)?;
                self.bytes = file.metadata()?.len();
                self.file
                    .insert(BufWriter::with_capacity(BUFFER_BYTES, file))
            }
        };
        file.write_all(line)?;
        self.bytes += bytes;
        Ok(())
    }
}

/// `log` becomes `log.1`, that `log.2`, and so on; of so many files the oldest goes.
fn rotate(file: &Path, files_max: u32) -> io::Result<()> {
    let old = |number: u32| match number {
        0 => file.to_owned(),
        _ => {
            let mut name = file.as_os_str().to_owned();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        }
    };
    let last = files_max.saturating_sub(1);
    if last == 0 {
        return fs::remove_file(file);
    }
    for number in (0..last).rev() {
        match fs::rename(old(number), old(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decisions::tests::{decision, log_lines};

    fn log(folder: &Path, bytes_max: u64) -> Log {
        Log::of(DecisionLog {
            file: folder.join("decisions.jsonl"),
            bytes_max,
            files_max: 3,
        })
    }

    #[test]
    fn lines_survive_a_restart_and_files_are_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let line = serde_json::to_vec(&json::Decision::whole(&decision("r0"))).expect("JSON");
        let bytes_max = 3 * line.len() as u64;
        for start in 0..4 {
            let mut log = log(folder.path(), bytes_max);
            for request in 0..5 {
                let written =
                    log.write(&[Arc::new(decision(&format!("r{}", start * 5 + request)))]);
                assert_eq!((written.lines, written.result.is_ok()), (1, true));
            }
        }
        let names = ["decisions.jsonl.2", "decisions.jsonl.1", "decisions.jsonl"];
        let kept: Vec<String> = names
            .iter()
            .flat_map(|name| log_lines(&folder.path().join(name)))
            .map(|decision| decision.id)
            .collect();
        let newest: Vec<String> = (20 - kept.len()..20).map(|n| format!("r{n}")).collect();
        assert_eq!(kept, newest, "in order, and none is cut");
        assert!((5..=8).contains(&kept.len()), "{kept:?}");
        let files = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(files, 3);
    }

    #[test]
    fn a_disk_that_takes_nothing_loses_lines_and_says_so() {
        // /dev/full takes no byte: ENOSPC, as a full disk.
        let mut log = Log::of(DecisionLog {
            file: "/dev/full".into(),
            bytes_max: 1 << 20,
            files_max: 3,
        });
        let written = log.write(&[Arc::new(decision("r"))]);
        assert_eq!(written.lines, 0);
        let error = written.result.expect_err("no space");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}

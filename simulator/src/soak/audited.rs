//! kvscout's decision log, read as it grows: predictions that were wrong and claimed certainty.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

/// Causes of misses for which there is no excuse: the picture was called live and whole, nothing was removed
/// meanwhile, and it was wrong all the same.
pub(super) const UNEXCUSED: [&str; 2] = ["unknown", "tokens_differ"];

/// What a choice rests on may be so much older than what its server has become: word of a restart comes with the
/// connection's end, or with the next batch of events.
const WORD_MS: u64 = 1_000;

/// A server that died and came back on its ports.
#[derive(Debug, Clone, Serialize)]
pub struct Restart {
    /// Its name.
    pub pod: String,
    /// Milliseconds since 1970 when it was told to.
    pub began_ms: u64,
    /// The same when it was back.
    pub ended_ms: u64,
}

impl Restart {
    /// Whether a decision's promise was of the process before, and its request the next one's.
    pub(super) fn overtook(&self, decision: &Value) -> bool {
        let about = self.began_ms.saturating_sub(WORD_MS)..=self.ended_ms + WORD_MS;
        let placed = decision["time_ms"].as_u64();
        decision["endpoint"] == self.pod.as_str() && placed.is_some_and(|at| about.contains(&at))
    }
}

/// Reads on where it stopped, over a file's end into the next one.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// A line whose end is not written yet.
    begun: String,
}

impl Log {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            begun: String::new(),
        }
    }

    /// Decisions that were wrong, of those written since the last time.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn wrong(&mut self) -> anyhow::Result<Vec<Value>> {
        let mut wrong = Vec::new();
        loop {
            if let Some(file) = &mut self.file {
                while file.read_line(&mut self.begun)? > 0 {
                    if !self.begun.ends_with('\n') {
                        break;
                    }
                    // Few lines have the word, so few are parsed.
                    if UNEXCUSED.iter().any(|cause| self.begun.contains(cause)) {
                        let decision = serde_json::from_str(&self.begun)?;
                        wrong.extend(Some(decision).filter(is_wrong));
                    }
                    self.begun.clear();
                }
            }
            match self.next()? {
                None => return Ok(wrong),
                next => self.file = next,
            }
        }
    }

    /// The file after the one that was read to its end: the log's name leads to another when one is full.
    fn next(&self) -> anyhow::Result<Option<BufReader<File>>> {
        let Ok(newest) = File::open(&self.path) else {
            // Nothing is written yet.
            return Ok(None);
        };
        let Some(file) = &self.file else {
            return Ok(Some(BufReader::new(newest)));
        };
        let read = file.get_ref().metadata()?.ino();
        if newest.metadata()?.ino() == read {
            return Ok(None);
        }
        // Several may have been filled since.
        let older = |nth: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{nth}"));
            File::open(name)
        };
        let mut after = newest;
        for nth in 1.. {
            let file = older(nth)?;
            if file.metadata()?.ino() == read {
                break;
            }
            after = file;
        }
        Ok(Some(BufReader::new(after)))
    }
}

/// Whether a decision promised what was not there, without an excuse, or read another prompt than its server. Where two
/// requests of one conversation overtake each other on their way, one finds what was promised to the other: that
/// promises too little, and misleads nobody.
fn is_wrong(decision: &Value) -> bool {
    let outcome = &decision["outcome"];
    let is = |field: &str, word: &str| outcome[field] == word;
    is("cause", "tokens_differ") || is("cause", "unknown") && is("verdict", "over")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use super::*;

    fn line(number: u64, verdict: &str, cause: &str) -> String {
        format!(
            "{{\"number\":{number},\"outcome\":{{\"verdict\":\"{verdict}\",\"cause\":\"{cause}\"}}}}\n"
        )
    }

    #[test]
    fn a_restart_overtakes_what_was_chosen_about_then_of_its_pod_alone() {
        let restart = Restart {
            pod: "pod-3".into(),
            began_ms: 50_000,
            ended_ms: 50_020,
        };
        let decision =
            |endpoint: &str, at: u64| serde_json::json!({"endpoint": endpoint, "time_ms": at});
        assert!(restart.overtook(&decision("pod-3", 49_990)));
        assert!(restart.overtook(&decision("pod-3", 50_200)));
        assert!(!restart.overtook(&decision("pod-2", 50_000)));
        assert!(!restart.overtook(&decision("pod-3", 52_000)));
        assert!(!restart.overtook(&decision("pod-3", 48_000)));
    }

    #[test]
    fn a_promise_without_an_excuse_is_found_in_a_log_that_grows_and_rotates() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| Path::join(folder.path(), name);
        let mut log = Log::new(at("log"));
        let mut numbers = || -> Vec<u64> {
            let wrong = log.wrong().expect("it is read");
            let number = |one: &Value| one["number"].as_u64().expect("a number");
            wrong.iter().map(number).collect()
        };
        assert!(numbers().is_empty());
        let mut file = File::create(at("log")).expect("created");
        let mut write = |text: &str| file.write_all(text.as_bytes()).expect("written");
        write(&line(1, "over", "eviction_race"));
        write(&line(2, "under", "unknown"));
        write(&line(3, "over", "unknown"));
        let whole = line(4, "under", "tokens_differ");
        let (half, rest) = whole.split_at(20);
        write(half);
        assert_eq!(numbers(), [3]);
        write(rest);
        // Two files are filled before it is looked at again.
        std::fs::rename(at("log"), at("log.2")).expect("moved");
        std::fs::write(at("log.1"), line(5, "over", "unknown")).expect("written");
        std::fs::write(at("log"), line(6, "over", "unknown")).expect("written");
        assert_eq!(numbers(), [4, 5, 6]);
        assert!(numbers().is_empty());
    }
}

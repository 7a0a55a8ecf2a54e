//! How far a load is: a bar on a terminal, a line at the end elsewhere.

use std::io::{IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};

use super::command::seconds;
use super::{Sample, Summary};

/// A bar on standard error, if that is a terminal.
fn bar(title: &str, steps: usize) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal {
        ProgressBar::new(steps as u64)
    } else {
        ProgressBar::hidden()
    };
    let style = ProgressStyle::with_template("  {prefix:<16} {bar:40} {pos}/{len} {msg}");
    bar.set_style(
        style
            .expect("the template is well-formed")
            .progress_chars("=> "),
    );
    bar.set_prefix(title.to_owned());
    bar
}

/// Many small steps under way.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Of so many.
    #[must_use]
    pub fn start(title: &str, steps: usize) -> Self {
        Self(bar(title, steps))
    }

    /// One was done.
    pub fn one_more(&self) {
        self.0.inc(1);
    }

    /// All were.
    pub fn end(self) {
        self.0.finish_and_clear();
    }
}

/// A load under way.
#[derive(Debug)]
pub struct Progress {
    title: String,
    bar: ProgressBar,
}

impl Progress {
    /// Of so many requests.
    pub fn start(title: &str, requests: usize) -> Self {
        let bar = bar(title, requests);
        Self {
            title: title.to_owned(),
            bar,
        }
    }

    /// A request ended.
    pub fn one_more(&self, sample: &Sample) {
        self.bar.inc(1);
        if let Err(error) = &sample.result {
            self.bar.set_message(format!(
                "last error: {}",
                error.chars().take(60).collect::<String>()
            ));
        }
    }

    /// All did.
    pub fn end(self, summary: &Summary) {
        self.bar.finish_and_clear();
        let Summary { requests, ttft, .. } = summary;
        let (title, failed, mean) = (self.title, summary.failed(), seconds(ttft.mean));
        // A progress line that cannot be written is no reason to stop the load.
        let _ = writeln!(
            std::io::stdout().lock(),
            "  {title:<16} {requests} requests, {failed} errors, mean TTFT {mean}"
        );
    }
}

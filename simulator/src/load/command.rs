//! `kvscout-sim load`: the load alone, against any OpenAI endpoint.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{bail, ensure};

use super::{Client, Load, Progress, Schedule, Summary};
use crate::table::table;

/// The flags of `load`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where to send it, without the path
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    url: String,
    /// The model to ask for
    #[arg(long, default_value = "/model/qwen")]
    model: String,
    #[command(flatten)]
    shape: Shape,
}

/// What a load is like.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Shape {
    /// Conversations at once
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub users: usize,
    /// Requests of each conversation
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub rounds: usize,
    /// Requests per second, over all conversations
    #[arg(long, value_name = "N", default_value_t = 3.5)]
    pub rate: f64,
    /// Words of the system prompt that all conversations share
    #[arg(long, value_name = "WORDS", default_value_t = 400)]
    pub system_words: usize,
    /// Words of context that each conversation begins with
    #[arg(long, value_name = "WORDS", default_value_t = 1_300)]
    pub user_words: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "TOKENS", default_value_t = 40)]
    pub answer_tokens: u32,
}

impl Shape {
    /// The load.
    ///
    /// # Errors
    /// It would never end, or send nothing.
    pub fn load(self) -> anyhow::Result<Load> {
        let Self {
            users,
            rounds,
            rate,
            system_words,
            user_words,
            answer_tokens,
        } = self;
        ensure!(
            rate.is_finite() && rate > 0.0,
            "--rate {rate}: must be above 0"
        );
        ensure!(users * rounds > 0, "no user or no round is no load");
        let schedule = Schedule {
            users,
            rounds,
            rate,
        };
        Ok(Load {
            schedule,
            system_words,
            user_words,
            answer_tokens,
            seed: 0,
        })
    }
}

/// Sends it and prints what came of it.
///
/// # Errors
/// A request failed; all of them are sent nevertheless.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let load = args.shape.load()?;
    let client = Client::new(&args.url, &args.model)?;
    let progress = Progress::start("load", load.schedule.requests());
    let samples = load.run(&client, |sample| progress.one_more(sample)).await;
    let summary = Summary::of(&samples);
    progress.end(&summary);
    let errors = errors("load", &summary);
    let page = format!(
        "\n{}{errors}",
        table(1, &[HEADING.map(str::to_owned), row("load", &summary)])
    );
    std::io::stdout().lock().write_all(page.as_bytes())?;
    if summary.failed() > 0 {
        bail!(
            "{} of {} requests failed",
            summary.failed(),
            summary.requests
        );
    }
    Ok(())
}

/// Above [`row`].
pub const HEADING: [&str; 8] = [
    "",
    "requests",
    "errors",
    "mean TTFT",
    "p50",
    "p90",
    "p99",
    "cached share",
];

/// A summary as a line of a table.
#[must_use]
pub fn row(name: &str, of: &Summary) -> [String; 8] {
    [
        name.into(),
        of.requests.to_string(),
        of.failed().to_string(),
        seconds(of.ttft.mean),
        seconds(of.ttft.p50),
        seconds(of.ttft.p90),
        seconds(of.ttft.p99),
        format!("{:.1} %", 100.0 * of.cached_share()),
    ]
}

/// What went wrong, a line for each kind.
#[must_use]
pub fn errors(name: &str, of: &Summary) -> String {
    let mut text = String::new();
    for (error, times) in &of.errors {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "  {name}: {times} x {error}");
    }
    if of.late > 0 {
        let _ = writeln!(
            text,
            "  {name}: {} requests waited for the answer before them",
            of.late
        );
    }
    text
}

/// `0.123 s`; `-` where nothing was measured.
#[must_use]
pub fn seconds(of: Duration) -> String {
    if of.is_zero() {
        return "-".into();
    }
    format!("{:.3} s", of.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_would_never_end_is_refused() {
        let shape = Shape {
            users: 1,
            rounds: 1,
            rate: 1.0,
            system_words: 0,
            user_words: 0,
            answer_tokens: 1,
        };
        assert!(shape.load().is_ok());
        assert!(Shape { rate: 0.0, ..shape }.load().is_err());
        assert!(Shape { rounds: 0, ..shape }.load().is_err());
    }
}

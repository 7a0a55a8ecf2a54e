//! The command: a run, its figures and its picture.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::picture::picture;
use super::run::Soak;
use super::sample::Sample;
use crate::stack::PartsArgs;

/// The flags of `soak`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How long, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600.0)]
    seconds: f64,
    /// Load, as a share of what went at once in the first half minute
    #[arg(long, value_name = "SHARE", default_value_t = 0.7)]
    share: f64,
    /// Seconds between two things that come or go
    #[arg(long, value_name = "SECONDS", default_value_t = 15.0)]
    churn_seconds: f64,
    /// Seconds between two looks at kvscout
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    look_seconds: f64,
    /// Write everything that was seen to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw it into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    parts: PartsArgs,
}

impl Args {
    fn soak(&self) -> anyhow::Result<Soak> {
        let positive = |flag: &str, value: f64| {
            ensure!(
                value > 0.0 && value < 1e6,
                "--{flag} {value}: must be above 0"
            );
            Ok(Duration::from_secs_f64(value))
        };
        ensure!(
            self.share > 0.0 && self.share <= 1.0,
            "--share {}: must be above 0, and 1 at most",
            self.share
        );
        Ok(Soak {
            parts: self.parts.parts()?,
            lasts: positive("seconds", self.seconds)?,
            share: self.share,
            churn: positive("churn-seconds", self.churn_seconds)?,
            look: positive("look-seconds", self.look_seconds)?,
        })
    }
}

/// Runs it.
///
/// # Errors
/// Something does not start or come back, or what should have stayed did not.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let soak = args.soak()?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let report = tokio::select! {
        report = soak.run(tell) => report?,
        _ = interrupted.recv() => bail!("interrupted"),
    };
    if let Some(file) = &args.json {
        write(file, &serde_json::to_string(&report)?)?;
    }
    if let Some(file) = &args.svg {
        write(file, &picture(&report))?;
    }
    say(&report.table())?;
    let complaints = report.complaints();
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn tell(sample: &Sample) {
    // Whoever closed the pipe does not read it.
    let _ = say(&format!(
        "{:>5.0} s  {:>5.0}/s  p50 {:.2} ms  p99 {:.2} ms  {:.0} MB  {} exact, {} excused, {} not  {} again, {} failed\n",
        sample.at_s,
        sample.picks_per_s,
        sample.pick_p50_ms,
        sample.pick_p99_ms,
        sample.resident_bytes as f64 / 1e6,
        sample.exact,
        sample.excused,
        sample.unexcused,
        sample.retried,
        sample.failed,
    ));
}

/// Standard output may be a closed pipe, which is an error like any other.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

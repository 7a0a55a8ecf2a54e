//! What each command does, and what those that go on until they are told to end have in common.

use std::io;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::yaml::Complaints;
use crate::config::{Config, FleetSource, LogFormat, Strategy};
use crate::decisions::what_if::Knobs;

mod admin_port;
pub mod audit;
pub mod bridge;
pub mod check;
pub mod crds;
pub mod explain;
mod process;
pub mod record;
pub mod replay;
pub mod serve;
pub mod tokenize;
pub mod what_if;

pub use admin_port::AdminPort;

/// Flags of every command that reads the configuration file.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// The configuration file. Without one, defaults and flags decide.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The file of endpoints.
    #[arg(long, value_name = "FILE")]
    pub fleet: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, value_enum)]
    pub log: Option<LogFormat>,
}

impl Common {
    /// The file's configuration with these flags over it.
    ///
    /// # Errors
    /// Everything that is wrong with the file.
    pub fn config(&self) -> Result<Config, Complaints> {
        let mut config = match &self.config {
            Some(file) => Config::load(file)?,
            None => Config::default(),
        };
        if let Some(fleet) = &self.fleet {
            config.fleet = FleetSource::File(fleet.clone());
        }
        config.log = self.log.unwrap_or(config.log);
        Ok(config)
    }
}

/// What of the policy is to be otherwise.
#[derive(Debug, clap::Args)]
pub struct WhatIf {
    /// PREFIX_CACHE, or DEFAULT: load alone.
    #[arg(long, value_name = "STRATEGY")]
    pub strategy: Option<Strategy>,
    /// As policy.matching_ratio_min.
    #[arg(long, value_name = "0..1", value_parser = share)]
    pub matching_ratio_min: Option<f64>,
    /// As policy.media.gpu.
    #[arg(long, value_name = "0..1", value_parser = share)]
    pub media_gpu: Option<f64>,
    /// As policy.media.cpu.
    #[arg(long, value_name = "0..1", value_parser = share)]
    pub media_cpu: Option<f64>,
    /// As policy.media.storage.
    #[arg(long, value_name = "0..1", value_parser = share)]
    pub media_storage: Option<f64>,
    /// An endpoint that cannot be chosen, by name; may be given again.
    #[arg(long, value_name = "ENDPOINT")]
    pub without: Vec<String>,
}

impl WhatIf {
    fn knobs(&self) -> Knobs {
        Knobs {
            strategy: self.strategy,
            matching_ratio_min: self.matching_ratio_min,
            media_gpu: self.media_gpu,
            media_cpu: self.media_cpu,
            media_storage: self.media_storage,
            without: self.without.clone(),
        }
    }

    /// As `/explain` is asked.
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let shares = [
            ("matching_ratio_min", self.matching_ratio_min),
            ("media_gpu", self.media_gpu),
            ("media_cpu", self.media_cpu),
            ("media_storage", self.media_storage),
        ];
        let shares = shares
            .into_iter()
            .filter_map(|(key, share)| Some((key, share?.to_string())));
        let strategy = self
            .strategy
            .map(|strategy| ("strategy", strategy.as_str().to_owned()));
        let without = self.without.iter().map(|name| ("without", name.clone()));
        shares.chain(strategy).chain(without).collect()
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share @ 0.0..=1.0) => Ok(share),
        _ => Err("is not between 0 and 1".to_owned()),
    }
}

/// Rows of equally many cells, the first column to the left and the others to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match column {
                0 => line += &format!("{cell:<width$}"),
                _ => line += &format!("  {cell:>width$}"),
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Ends with SIGTERM or Ctrl-C, which are heard from now on.
fn told_to_end() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

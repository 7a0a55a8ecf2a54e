//! What each command does, and what those that go on until they are told to end have in common.

use std::io;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::yaml::Complaints;
use crate::config::{Config, FleetSource, LogFormat};

pub mod bridge;
pub mod check;
pub mod crds;
pub mod record;
pub mod replay;
pub mod serve;
pub mod tokenize;

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

/// Sends log lines to stderr.
fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

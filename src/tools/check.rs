//! `kvscout check`: everything that is wrong with a configuration, before it is used.

use std::path::PathBuf;

use crate::config::yaml::Complaints;
use crate::config::{Config, FleetSource};
use crate::fleet::fixed;
use crate::fleet::roster::Settings;
use crate::models;

/// Checks a configuration file, and the fleet file and the models' folders that it names.
///
/// Folders are loaded, seconds each; neither the hub nor Kubernetes is asked. Names everything that is wrong at once, each with file, line and field, on stderr. Exit
/// status: 0 if all is well, 1 if not.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file, as for `kvscout serve --config`.
    pub file: PathBuf,
}

/// Runs the command; `false` where something is wrong.
#[must_use]
pub fn run(args: &Args) -> bool {
    match check(args) {
        Ok(found) => {
            eprintln!("{}: all is well: {found}", args.file.display());
            true
        }
        Err(all) => {
            for complaints in all {
                eprintln!("{complaints}");
            }
            false
        }
    }
}

fn check(args: &Args) -> Result<String, Vec<Complaints>> {
    let config = Config::load(&args.file).map_err(|complaints| vec![complaints])?;
    let loaded = models::check(&args.file, &config);
    let fleet = match &config.fleet {
        FleetSource::File(file) => fixed::check(file, &Settings::of(&config))
            .map(|endpoints| format!("{endpoints} endpoints")),
        FleetSource::Kubernetes(_) => Ok("endpoints from Kubernetes".to_owned()),
    };
    match (loaded, fleet) {
        (Ok(()), Ok(fleet)) => Ok(format!("{} models, {fleet}", config.models.len())),
        (loaded, endpoints) => Err(loaded.err().into_iter().chain(endpoints.err()).collect()),
    }
}

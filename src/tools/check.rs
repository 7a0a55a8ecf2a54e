//! `kvscout check`: everything that is wrong with a configuration, before it is used.

use std::path::PathBuf;

use crate::config::Config;
use crate::config::yaml::Complaints;
use crate::fleet::fixed;

/// Checks a configuration file and the fleet file that it names.
///
/// Names everything that is wrong at once, each with file, line and field, on stderr. Exit
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
        Err(complaints) => {
            eprintln!("{complaints}");
            false
        }
    }
}

fn check(args: &Args) -> Result<String, Complaints> {
    let config = Config::load(&args.file)?;
    let endpoints = fixed::check(&config.fleet_file)?;
    Ok(format!(
        "{} models, {endpoints} endpoints",
        config.models.len()
    ))
}

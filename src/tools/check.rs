//! `kvscout check`: everything that is wrong with a configuration, before it is used.

use std::path::{Path, PathBuf};

use crate::config::yaml::{Complaint, Complaints};
use crate::config::{Config, EventSourceKind, FleetSource, Tls};
use crate::door::tls;
use crate::fleet::fixed;
use crate::fleet::roster::Settings;
use crate::models;
use crate::tools::process;

/// Checks a configuration file, and the files that it names: the fleet, the models' folders, certificates, tokens
/// and credentials.
///
/// Folders are loaded, seconds each; neither the hub nor Kubernetes nor NATS is asked. Names everything that is wrong at
/// once, each with file, line and field, on stderr. Certificates and secrets that are not on this host, as they are in
/// a pod alone, are named and not looked at. Exit status: 0 if all is well, 1 if not.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file, as for `kvscout serve --config`.
    pub file: PathBuf,
}

/// Runs the command; `false` where something is wrong.
pub async fn run(args: &Args) -> bool {
    match check(args).await {
        Ok(Found { counts, absent }) => {
            let file = args.file.display();
            for field in absent {
                eprintln!("{file}: {field} is not on this host, so it was not looked at");
            }
            eprintln!("{file}: all is well: {counts}");
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

struct Found {
    counts: String,
    /// Fields whose files are elsewhere.
    absent: Vec<String>,
}

async fn check(args: &Args) -> Result<Found, Vec<Complaints>> {
    let config = Config::load(&args.file).map_err(|complaints| vec![complaints])?;
    let loaded = models::check(&args.file, &config);
    let fleet = match &config.fleet {
        FleetSource::File(file) => fixed::check(file, &Settings::of(&config))
            .map(|endpoints| format!("{endpoints} endpoints")),
        FleetSource::Kubernetes(_) => Ok("endpoints from Kubernetes".to_owned()),
    };
    match (loaded, fleet, files(&args.file, &config).await) {
        (Ok(()), Ok(fleet), Ok(absent)) => Ok(Found {
            counts: format!("{} models, {fleet}", config.models.len()),
            absent,
        }),
        (loaded, endpoints, files) => {
            let all = [loaded.err(), endpoints.err(), files.err()];
            Err(all.into_iter().flatten().collect())
        }
    }
}

/// Looks at certificates and secrets; says which of them are not there.
async fn files(file: &Path, config: &Config) -> Result<Vec<String>, Complaints> {
    let (mut complaints, mut absent) = (Vec::new(), Vec::new());
    let mut complain = |field: &str, problem: String| {
        complaints.push(Complaint {
            line: 0,
            field: field.to_owned(),
            problem,
        });
    };
    for (field, path) in named(config) {
        match std::fs::read(path) {
            Ok(bytes) if bytes.trim_ascii().is_empty() => {
                complain(field, format!("{} is empty", path.display()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                absent.push(format!("{field}: {}", path.display()));
            }
            Err(error) => {
                let path = path.display();
                complain(field, format!("{path} cannot be read: {error}"));
            }
        }
    }
    let is_there = |field: &str| !absent.iter().any(|one| one.starts_with(field));
    if matches!(config.tls, Tls::Files { .. })
        && is_there("tls.")
        && let Err(error) = tls::open(&config.tls, &[]).await
    {
        complain("tls", error.to_string());
    }
    if let Some(path) = &config.events.keys_secret
        && is_there("events.keys_secret")
        && let Err(error) = process::secret(path)
    {
        complain("events.keys_secret", format!("{error:#}"));
    }
    Complaints::unless_none(file, complaints)?;
    Ok(absent)
}

/// Files that are used, and the fields that name them.
fn named(config: &Config) -> Vec<(&'static str, &Path)> {
    let Config { listen, events, .. } = config;
    let mut all = vec![
        ("listen.admin_token", listen.admin_token.as_ref()),
        ("events.keys_secret", events.keys_secret.as_ref()),
    ];
    if let Tls::Files {
        cert,
        key,
        client_ca,
    } = &config.tls
    {
        all.extend([("tls.cert", Some(cert)), ("tls.key", Some(key))]);
        all.push(("tls.client_ca", client_ca.as_ref()));
    }
    if events.source == EventSourceKind::Nats || config.shares() {
        let nats = &events.nats;
        all.extend([
            ("events.nats.credentials", nats.credentials.as_ref()),
            ("events.nats.nkey", nats.nkey.as_ref()),
            ("events.nats.ca", nats.ca.as_ref()),
            ("events.nats.cert", nats.cert.as_ref()),
            ("events.nats.key", nats.key.as_ref()),
        ]);
    }
    if let FleetSource::Kubernetes(cluster) = &config.fleet {
        all.push(("fleet.kubernetes.kubeconfig", cluster.kubeconfig.as_ref()));
    }
    let named = all.into_iter();
    named
        .filter_map(|(field, path)| Some((field, path?.as_path())))
        .collect()
}

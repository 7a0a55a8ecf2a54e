//! `kvscout crds`: what a cluster may lack.

use std::io::Write;

use crate::kubernetes::resources::CRDS;

/// Prints the custom resource definitions that `fleet: {kubernetes: …}` reads, as YAML.
///
/// Gateways bring those that they know. One that is missing is no error, and is followed as soon as it
/// is there. For a cluster that lacks some: `kvscout crds | kubectl apply --server-side -f -`.
///
/// Do not apply them over others' of the same name: names, types and limits of their fields are those of
/// the Gateway API's inference extension and of llm-d's router, but not all versions that these serve.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints them.
pub fn run(Args {}: &Args) -> anyhow::Result<()> {
    let mut to = std::io::stdout().lock();
    for crd in CRDS {
        write!(to, "---\n{crd}")?;
    }
    Ok(())
}

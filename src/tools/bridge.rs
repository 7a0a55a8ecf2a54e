//! `kvscout bridge`: servers' events into NATS JetStream.

use std::io::Write;
use std::sync::Arc;

use anyhow::bail;

use crate::app::upkeep;
use crate::bridge::Bridge;
use crate::config::{Config, Model};
use crate::discovery::Discovery;
use crate::events::listen::{Listeners, Way};
use crate::events::nats::Cluster;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::tools::{Common, process, told_to_end};

/// Publishes servers' KV cache events into NATS JetStream, for any number of pickers.
///
/// Beside one vLLM pod, or for many at once: it hears every server of the fleet that has an
/// `events` address, or that connects to it (`events.bind` in the configuration), repairs gaps by vLLM's replay, publishes each batch unchanged, and keeps a
/// snapshot of what each server holds. Pickers with `events: {source: nats}` then know every
/// cache completely, however old its engine is, without asking vLLM.
///
/// Reads the same configuration file as `kvscout serve`: events.nats says where the cluster is,
/// and what `--init` makes there. One bridge for each server; a second one is harmless and of no use.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// A server of the cluster: nats://host:port or tls://host:port. May be given again.
    #[arg(long, value_name = "URL")]
    pub nats: Vec<String>,
    /// Make the stream and the bucket of snapshots, or give them the settings, say what was done,
    /// and end.
    #[arg(long)]
    pub init: bool,
}

impl Args {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = self.common.config()?;
        if !self.nats.is_empty() {
            config.events.nats.servers.clone_from(&self.nats);
        }
        Ok(config)
    }
}

/// Bridges until a signal says to end.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config()?;
    let _log = Log::start(config.log);
    process::prepare();
    // What a bridge keeps is for others to read: with a secret of its own nobody could.
    if config.events.keys_secret.is_some() {
        process::mix_block_keys(&config)?;
    }
    let cluster = Cluster::connect(&config.events.nats).await?;
    if args.init {
        for line in cluster.init().await? {
            writeln!(std::io::stdout().lock(), "{line}")?;
        }
        return Ok(());
    }
    let metrics = Arc::new(Metrics::default());
    let discovery = Discovery::open(&config, &metrics, &Readiness::default()).await?;
    let bridge = Bridge::new(cluster);
    let way = Way::zmq(&config.events, &metrics)?;
    let listeners = Listeners {
        tap: Some(bridge.tap()),
        adapters: config
            .models
            .iter()
            .flat_map(Model::adapter_names)
            .collect(),
        metrics: metrics.clone(),
        ..Listeners::new(discovery.fleet(), Arc::default(), way)
    };
    let known = discovery.fleet();
    let stream = config.events.nats.stream.name.as_str();
    tracing::info!(stream, "bridging");
    let told = told_to_end()?;
    tokio::select! {
        () = told => {}
        () = listeners.run() => bail!("a listener ended unbidden"),
        () = discovery.run() => bail!("the fleet's writer ended unbidden"),
        ended = upkeep(metrics, known, |_| {}) => ended?,
    }
    tracing::info!("ended");
    Ok(())
}

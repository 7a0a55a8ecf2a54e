//! `kvscout serve`: the endpoint picker.

use std::io::Write;
use std::net::SocketAddr;

use crate::app;
use crate::config::{Config, Engine, Model, RenderSettings, Source, Tls};
use crate::log::Log;
use crate::metrics::families;
use crate::tools::{Common, process, told_to_end};
use anyhow::bail;

/// Answers Envoy over ext_proc with the endpoint that holds the longest cached prefix.
///
/// Reads one YAML file; flags win over it. `kvscout serve --print-config` prints every key
/// with its meaning, and `kvscout check FILE` names everything that is wrong with a file.
///
/// Which log lines: the environment's RUST_LOG, e.g. RUST_LOG=kvscout=debug (default: info).
/// SIGTERM and Ctrl-C let running requests end, up to limits.drain_ms_max.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Flags that other commands have, too.
    #[command(flatten)]
    pub common: Common,
    /// A model to score prompts for: its served name and its folder. May be given again.
    #[arg(long, value_name = "NAME=DIR")]
    pub model: Vec<String>,
    /// Where Envoy asks (gRPC).
    #[arg(long, value_name = "IP:PORT")]
    pub ext_proc: Option<SocketAddr>,
    /// Where probes ask (grpc.health.v1).
    #[arg(long, value_name = "IP:PORT")]
    pub health: Option<SocketAddr>,
    /// Where people and Prometheus ask (HTTP).
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<SocketAddr>,
    /// Serve ext_proc without TLS.
    #[arg(long)]
    pub plaintext: bool,
    /// Print the configuration that would be used, and end.
    #[arg(long)]
    pub print_config: bool,
    /// Print what the metrics mean (docs/metrics.md), and end.
    #[arg(long)]
    pub print_metrics: bool,
}

impl Args {
    /// The file's configuration with the flags over it.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = self.common.config()?;
        for (flag, setting) in [
            (self.ext_proc, &mut config.listen.ext_proc),
            (self.health, &mut config.listen.health),
            (self.admin, &mut config.listen.admin),
        ] {
            *setting = flag.unwrap_or(*setting);
        }
        if self.plaintext {
            config.tls = Tls::Off;
        }
        for model in &self.model {
            config.models.push(read_model(model)?);
        }
        Ok(config)
    }
}

fn read_model(flag: &str) -> anyhow::Result<Model> {
    let Some((name, folder)) = flag.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        bail!("--model {flag}: is not NAME=DIR");
    };
    Ok(Model {
        names: vec![name.to_owned()],
        adapters: Vec::new(),
        source: Source::Folder(folder.into()),
        engine: Engine::default(),
        render: RenderSettings::default(),
    })
}

/// Serves until a signal says to end.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    if args.print_metrics {
        std::io::stdout()
            .lock()
            .write_all(families::page().as_bytes())?;
        return Ok(());
    }
    let config = args.config()?;
    if args.print_config {
        std::io::stdout()
            .lock()
            .write_all(config.to_yaml().as_bytes())?;
        return Ok(());
    }
    let _log = Log::start(config.log);
    process::prepare();
    process::mix_block_keys(&config)?;
    let app = app::build(config).await?;
    let bound = app.bound();
    tracing::info!(ext_proc = %bound.ext_proc, health = %bound.health, admin = %bound.admin, "listening");
    app.run(told_to_end()?).await
}

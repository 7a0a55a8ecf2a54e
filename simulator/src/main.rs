//! The `kvscout-sim` command.

use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use kvscout_sim::cli::{Cli, Command, Serve};
use kvscout_sim::{Addresses, Server, compare, decisions, demo, load, qa, soak};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// As in the picker: simulated pods and the demo's picker, too, live on small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let command = Cli::parse().command;
    let verbose = matches!(&command, Command::MultiRoundQa(flags) if flags.verbose());
    let level = if verbose {
        "warn,kvscout_sim=debug"
    } else {
        "warn"
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| level.into()))
        .with_writer(std::io::stderr)
        .init();
    let done = match command {
        Command::Serve(flags) => serve(*flags).await,
        Command::Load(flags) => load::command::run(&flags).await,
        Command::MultiRoundQa(flags) => qa::command::run(&flags).await,
        Command::BenchQa(flags) => qa::mission::run(&flags).await,
        Command::BenchDecision(flags) => decisions::command::run(&flags).await,
        Command::Soak(flags) => soak::command::run(&flags).await,
        Command::Demo(flags) => demo::run(&flags).await,
        Command::Compare(flags) => compare::command::run(&flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvscout-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(flags: Serve) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    // The standard library's own source of randomness, seeded by the system.
    let random = RandomState::new().hash_one("kvscout-sim");
    let server = Server::start(flags.config(random)).await?;
    announce(&server.addresses)?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    server.shutdown().await;
    Ok(())
}

/// One line on standard output, for whoever started us on port 0.
fn announce(addresses: &Addresses) -> anyhow::Result<()> {
    let events = addresses.events.as_ref();
    let line = json!({
        "http": format!("http://{}", addresses.http),
        "events": events.map(|sources| &sources.endpoint),
        "replay": events.map(|sources| &sources.replay_endpoint),
    });
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

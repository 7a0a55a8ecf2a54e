//! The `kvscout` command: parse, run, exit.

use clap::Parser;
use kvscout::cli::Cli;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    Cli::parse().run().await
}

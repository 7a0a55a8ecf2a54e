//! `kvscout` on the system's allocator, for heap profilers that take its place: `make heap-profile`. The real one's
//! (mimalloc) cannot be replaced from outside.

use clap::Parser as _;
use kvscout::cli::Cli;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    Cli::parse().run().await
}

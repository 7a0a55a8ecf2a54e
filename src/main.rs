//! The `kvscout` command: parse, run, exit.

use clap::Parser;
use kvscout::cli::Cli;

/// Requests are many short lists on all threads. musl's own allocator, which the image would have, takes
/// twice the CPU time for a decision (`make bench-decision`); glibc's takes a twentieth more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    Cli::parse().run().await
}

//! The `kvscout` command: parse, run, exit.

use clap::Parser;
use kvscout::cli::Cli;

/// Requests are many short lists on all threads. musl's own allocator, which the image would have, takes
/// twice the CPU time for a decision (`make bench-decision`); glibc's takes a twentieth more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(kvscout::config::threads())
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(cli.run()),
        Err(error) => {
            eprintln!("kvscout: no threads to run on: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

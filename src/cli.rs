//! The words that an operator types.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::tools::{audit, bridge, check, crds, explain, record, replay, serve, tokenize, what_if};

/// An endpoint picker that knows where every prompt's KV cache is.
///
/// Envoy asks it over ext_proc which vLLM server should get a request; it answers with the one
/// whose cache holds the longest prefix of that very prompt, because it hears every server's
/// KV cache events and tokenizes as vLLM does.
#[derive(Debug, Parser)]
#[command(name = "kvscout", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[expect(
    missing_docs,
    reason = "each command's Args say what it does, here and in --help"
)]
pub enum Command {
    Serve(serve::Args),
    Bridge(bridge::Args),
    Check(check::Args),
    Replay(replay::Args),
    Tokenize(tokenize::Args),
    Record(record::Args),
    Crds(crds::Args),
    Explain(explain::Args),
    WhatIf(what_if::Args),
    Audit(audit::Args),
}

impl Cli {
    /// Does it. Errors go to stderr with their causes; exit status 2 then, so that scripts can
    /// tell "it could not be done" from "it was done and the answer is no" (1).
    pub async fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Serve(args) => serve::run(&args).await.map(|()| true),
            Command::Bridge(args) => bridge::run(&args).await.map(|()| true),
            Command::Check(args) => Ok(check::run(&args).await),
            Command::Replay(args) => replay::run(&args),
            Command::Tokenize(args) => tokenize::run(&args).map(|()| true),
            Command::Record(args) => record::run(args).await.map(|()| true),
            Command::Crds(args) => crds::run(&args).map(|()| true),
            Command::Explain(args) => explain::run(&args).await.map(|()| true),
            Command::WhatIf(args) => what_if::run(&args).map(|()| true),
            Command::Audit(args) => audit::run(&args).await,
        };
        match done {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(error) => {
                eprintln!("kvscout: {error:#}");
                ExitCode::from(2)
            }
        }
    }
}

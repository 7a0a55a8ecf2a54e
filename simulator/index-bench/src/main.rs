//! The index beside its peers, over the same events and requests: `make bench-index`, and far
//! larger beside one of them: `make bench-index-scale`.
//!
//! Every answer of every index is checked against what the workload knows to be true; one that is
//! wrong ends the run. Contenders take turns within each round, since a shared machine's clock
//! swings by half from one minute to the next: ratios hold where the figures do not.

#![allow(clippy::print_stdout, reason = "a benchmark's table is its output")]

// A workspace of its own may still share a page or two.
#[path = "../../src/dice.rs"]
mod dice;
#[path = "../../src/table.rs"]
mod table;

mod heap;
mod measure;
mod workload;
mod index;
mod ours;
mod peers;
mod contender;
mod card;
mod progress;
mod run;
mod reach;
mod chart;
mod scale;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use ours::Ours;
use peers::Chain;
use progress::Progress;
use run::Size;
use scale::Scale;

#[global_allocator]
static ALLOCATOR: heap::Counting = heap::Counting;

/// kvscout's index beside kv-index's and Dynamo's
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure every index over the same events and requests
    #[command(args_override_self = true)]
    Peers(Peers),
    /// Fill our index, and then kv-index's, with a fleet as large as is planned for
    #[command(args_override_self = true)]
    Scale(Large),
}

#[derive(Debug, Args)]
struct Peers {
    /// Sizes of fleet to measure
    #[arg(long, value_delimiter = ',', default_value = "8,64,512")]
    endpoints: Vec<u32>,
    /// (endpoint, block) pairs to load
    #[arg(long, default_value_t = 1_000_000)]
    pairs: usize,
    /// Blocks to store after that, while as many are removed
    #[arg(long, default_value_t = 500_000)]
    churn: usize,
    /// The same once more, to see what memory is left behind
    #[arg(long, default_value_t = 3_000_000)]
    long_churn: usize,
    /// Requests to ask after the load, and again after the churn
    #[arg(long, default_value_t = 20_000)]
    queries: usize,
    /// Times to repeat everything
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the dice begin
    #[arg(long, default_value_t = 20_260_101)]
    seed: u64,
    /// Write the figures there
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Draw them there
    #[arg(long, value_name = "PATH")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Large {
    /// Endpoints of the fleet
    #[arg(long, default_value_t = 512)]
    endpoints: u32,
    /// Blocks that each holds
    #[arg(long, default_value_t = 100_000)]
    blocks: usize,
    /// Pairs at which finds are timed first
    #[arg(long, default_value_t = 1_000_000)]
    first: usize,
    /// Requests to ask each time
    #[arg(long, default_value_t = 20_000)]
    queries: usize,
    /// Endpoints to forget alone, and as many beside a reader
    #[arg(long, default_value_t = 5)]
    forgets: u32,
    /// Where the dice begin
    #[arg(long, default_value_t = 20_260_101)]
    seed: u64,
    /// Write the figures there
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Peers(peers) => peers.run(),
        Command::Scale(large) => large.run(),
    }
}

impl Peers {
    fn run(self) -> anyhow::Result<()> {
        let size = Size {
            pairs: self.pairs,
            churn: self.churn,
            long_churn: self.long_churn,
            queries: self.queries,
            rounds: self.rounds,
            seed: self.seed,
        };
        let progress = Progress::start();
        progress.at("right answers where blocks go from the middle");
        run::check_holes(64, &size)?;
        let mut cards = Vec::new();
        for endpoints in self.endpoints {
            let card = run::run(endpoints, &size, &progress)?;
            println!("{}", card.text());
            cards.push((endpoints, card));
        }
        progress.at("long prompts");
        let long = reach::run(size.seed)?;
        progress.clear();
        println!("{}", long.text());
        println!("{}", notes());
        let all = cards.iter().map(|(_, card)| card).chain([&long]);
        write_json(self.json.as_deref(), &all.map(card::Card::json).collect())?;
        if let Some(path) = self.svg {
            write(&path, &chart::svg(&cards))?;
        }
        Ok(())
    }
}

impl Large {
    fn run(self) -> anyhow::Result<()> {
        let scale = Scale {
            endpoints: self.endpoints,
            blocks: self.blocks,
            first: self.first,
            queries: self.queries,
            forgets: self.forgets,
            seed: self.seed,
        };
        let progress = Progress::start();
        // One is dropped before the other begins.
        let ours = scale::run::<Ours>(&scale, &progress)?;
        let peer = scale::run::<Chain>(&scale, &progress)?;
        progress.clear();
        println!("{}", scale::text(&ours, &peer));
        write_json(self.json.as_deref(), &json!([ours, peer]))
    }
}

fn notes() -> String {
    format!(
        "Medians. \"better by\": kvscout beside kv-index, over samples taken beside each other; above 1x\n\
         kvscout is better. Rates are blocks by the CPU time of the busiest lane. \"By steps\", what an engine\n\
         evicts and then stores comes at once, and kv-index takes the removals in one call; all else comes event\n\
         by event. What is inside the clock:\n\
         kvscout hashes a block's tokens into its key (the peers' hashes come with the event), Dynamo frees\n\
         its event and makes a map of its answer, the others write scores into an array. A find's time\n\
         is the best of its rounds and has two clock readings in it, {:.0} ns. kvscout alone keeps apart\n\
         media, groups and doubt; it and \"kv-index, counted\" alone count copies of a block.\n\
         All answers were right.",
        measure::clock_cost()
    )
}

fn write_json(path: Option<&Path>, figures: &Value) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let cores = std::thread::available_parallelism()?.get();
    let text = serde_json::to_string_pretty(&json!({"cores": cores, "results": figures}))?;
    write(path, &(text + "\n"))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(path, text));
    written.with_context(|| format!("cannot write {}", path.display()))
}

//! `kvscout audit`: how a running picker's predictions have come out.

use std::io::Write;

use anyhow::Context;

use crate::admin::EndpointScore;
use crate::audit::score::{Causes, Tally};
use crate::metrics::CAUSES;
use crate::tools::{AdminPort, table};

/// Prints how a running kvscout's predictions have come out, endpoint by endpoint.
///
/// Each response that says how many of its prompt's tokens were cached (vLLM's --enable-prompt-
/// tokens-details) is compared with what was predicted when it was placed. `wrong` is the tokens
/// that predictions were off, either way, of those reported. Those that missed are sorted by
/// cause:
///
///   tokens_differ   the server counts other prompt tokens: is its model folder ours?
///   salt            a cache_salt that its events do not show (vLLM before 0.17.1)
///   gap             events were lost, or the picture is being learnt
///   expected        a prompt placed there before was not computed as soon as expected
///   last_block      one block less than it holds: speculative decoding before vLLM 0.33, for the
///                   eight reports that it takes to learn of it
///   eviction_race   blocks went between choice and schedule
///   event_lag       it knew more than it had told, or its events are late
///   unknown         nothing that is known explains it
///
/// An endpoint of whose last 16 predictions 8 miss without an excuse (eviction_race, unknown) is
/// doubted, and learnt again from its replay socket. Exit status: 0 if every comparison was exact or
/// excused, 1 if not.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Where to ask.
    #[command(flatten)]
    pub admin: AdminPort,
    /// Print the answer as JSON, every field of it.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command; `false` where a prediction missed and nothing excuses it.
///
/// # Errors
/// Nobody answers.
pub async fn run(args: &Args) -> anyhow::Result<bool> {
    let answer = args.admin.get("/audit").await?;
    let scores: Vec<EndpointScore> =
        serde_json::from_slice(&answer).context("is that kvscout's admin port?")?;
    let mut out = std::io::stdout().lock();
    match args.json {
        true => out.write_all(&answer)?,
        false => out.write_all(told(&scores).as_bytes())?,
    }
    let tallies = scores.iter().filter_map(|score| score.score);
    let unexcused = |causes: Causes| causes.eviction_race + causes.unknown;
    Ok(tallies.map(|tally| unexcused(tally.causes)).sum::<u64>() == 0)
}

fn told(scores: &[EndpointScore]) -> String {
    let header = [
        "endpoint", "trust", "compared", "exact", "over", "under", "wrong",
    ];
    let header = header.iter().chain(&CAUSES).map(|word| (*word).to_owned());
    let mut rows = vec![header.collect::<Vec<_>>()];
    let mut all = Tally::default();
    for one in scores {
        let tally = one.score.unwrap_or_default();
        all.add(&tally);
        rows.push(row(&one.name, &one.trust, &tally));
    }
    rows.push(row("all", "", &all));
    table(&rows)
}

fn row(name: &str, trust: &str, tally: &Tally) -> Vec<String> {
    let share = |part: u64, of: u64| match of {
        0 => "-".to_owned(),
        _ => format!("{:.1} %", 100.0 * part as f64 / of as f64),
    };
    let mut row = vec![
        name.to_owned(),
        trust.to_owned(),
        tally.compared.to_string(),
        share(tally.exact, tally.compared),
        tally.over.to_string(),
        tally.under.to_string(),
        share(tally.error_tokens, tally.reported_tokens),
    ];
    row.extend(tally.causes.counts().map(|count| count.to_string()));
    row
}

//! `kvscout what-if`: a decision log under another policy.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::decisions::json::Decision;
use crate::decisions::what_if::{Knobs, Report, Sum};
use crate::tools::{WhatIf, table};

/// Makes the decisions of a log again, under another policy, and says how many change and what
/// that costs.
///
/// FILE is what `decisions.log.file` names; several are read in order. Each decision is made again
/// from what was known then, once as it was and once otherwise:
///
///   kvscout what-if --matching-ratio-min 0.2 decisions.jsonl.1 decisions.jsonl
///
/// `computed` is the prompt tokens that chosen endpoints did not hold, `queued` those that were to
/// be computed before them there: together what stood before first tokens. What would have
/// followed from another choice, other caches and other queues, is not told; for that there is
/// `kvscout-sim compare`. A line that cannot be read is told of on stderr and left out. Exit
/// status: 0, or 2 if nothing could be read.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Decision logs.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// What is to be otherwise.
    #[command(flatten)]
    pub what_if: WhatIf,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The longest line: 1,024 candidates of 500 bytes, eight times.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// Runs the command.
///
/// # Errors
/// A file that cannot be read, or none with a decision in it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (mut report, knobs) = (Report::default(), args.what_if.knobs());
    for file in &args.files {
        read(file, &knobs, &mut report)?;
    }
    if report.decisions == 0 {
        bail!("no decision in any of the files: is decisions.log.file set?");
    }
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => out.write_all(told(&report).as_bytes())?,
    }
    Ok(())
}

fn read(file: &Path, knobs: &Knobs, report: &mut Report) -> anyhow::Result<()> {
    let name = file.display();
    let open = File::open(file).with_context(|| format!("{name}: cannot be read"))?;
    let (mut lines, mut line, mut number) = (BufReader::new(open), Vec::new(), 0);
    loop {
        line.clear();
        let mut bounded = std::io::Read::take(&mut lines, LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        number += 1;
        let replayed = serde_json::from_slice::<Decision>(&line)
            .map_err(|error| error.to_string())
            .and_then(|decision| report.replay(&decision, knobs));
        if let Err(why) = replayed {
            eprintln!("{name}:{number}: {why}");
        }
    }
}

fn told(report: &Report) -> String {
    let share = |part: u64| 100.0 * part as f64 / report.decisions as f64;
    let mut text = format!(
        "{} decisions, {} made again as they were\n{} change ({:.1} %)\n",
        report.decisions,
        report.reproduced,
        report.changed,
        share(report.changed)
    );
    if report.nobody > 0 {
        text += &format!(
            "{} would have nobody to go to, and are left out\n",
            report.nobody
        );
    }
    let header = ["", "cached", "computed", "queued", "failed or full"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (name, sum) in [("as it was", &report.before), ("otherwise", &report.after)] {
        let Sum {
            cached_tokens,
            computed_tokens,
            queued_tokens,
            unfit,
        } = *sum;
        let counts = [cached_tokens, computed_tokens, queued_tokens, unfit];
        let counts = counts.iter().map(u64::to_string);
        rows.push(std::iter::once(name.to_owned()).chain(counts).collect());
    }
    text + "\n" + &table(&rows)
}

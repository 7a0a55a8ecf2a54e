//! `kvscout-sim multi-round-qa`: production-stack's flags, and a few of ours.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::csv;
use super::prompt::Texts;
use super::run::{Plan, Run, warm_up_engine};
use super::schedule::Workload;
use super::sharegpt::ShareGpt;
use super::summary::Summary;
use crate::load::Client;

/// The flags of `multi-round-qa`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    run: Option<RunArgs>,
    /// Print the summary of an old CSV, and do nothing else
    #[arg(long, value_name = "FILE", exclusive = true)]
    process_summary: Option<PathBuf>,
}

/// Above the help of flags that production-stack's script does not have.
const OURS: &str = "Not in production-stack's script";

/// What is run, and where. Flat, since clap knows whether an optional group is there only where
/// no other group is within.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Sessions at once
    #[arg(long, value_name = "N")]
    num_users: usize,
    /// Words of the system prompt that all users share
    #[arg(long, value_name = "WORDS")]
    shared_system_prompt: usize,
    /// Words of context that each user brings along
    #[arg(long, value_name = "WORDS")]
    user_history_prompt: usize,
    /// Tokens of each answer at most
    #[arg(long, value_name = "TOKENS")]
    answer_len: u32,
    /// Rounds of each session
    #[arg(long, value_name = "N")]
    num_rounds: u64,
    /// Requests per second, over all sessions
    #[arg(long, value_name = "N")]
    qps: f64,
    /// The model to ask for
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Where to send requests, with /v1
    #[arg(long, value_name = "URL")]
    base_url: String,
    /// Bearer token
    #[arg(long, value_name = "KEY", default_value = "EMPTY")]
    api_key: String,
    /// Seconds to run [default: until Ctrl-C]
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
    /// Where to write the table
    #[arg(long, value_name = "FILE", default_value = "summary.csv")]
    output: PathBuf,
    /// The first user is the next one
    #[arg(long, value_name = "N", default_value_t = 0)]
    init_user_id: u64,
    /// Taken for compatibility: the header x-user-id is sent in any case
    #[arg(long)]
    request_with_user_id: bool,
    /// Seconds between two summaries
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    log_interval: u64,
    /// Tell on standard error who comes, asks and ends
    #[arg(long)]
    verbose: bool,
    /// Take questions and lengths of answers from ./ShareGPT.json
    #[arg(long)]
    sharegpt: bool,
    /// Time runs so many times as fast, gaps and clock alike: for simulated servers that do, too.
    /// All times are told in the workload's seconds
    #[arg(long, value_name = "N", default_value_t = 1.0, help_heading = OURS)]
    compress: f64,
    /// Send ten chats first that are not counted; the default
    #[arg(long, overrides_with = "no_warm_up", help_heading = OURS)]
    warm_up: bool,
    /// Send none
    #[arg(long, help_heading = OURS)]
    no_warm_up: bool,
}

impl RunArgs {
    fn workload(&self) -> anyhow::Result<Workload> {
        let (users, rounds, qps) = (self.num_users, self.num_rounds, self.qps);
        ensure!(users > 0, "--num-users 0: nobody would ask");
        ensure!(rounds > 0, "--num-rounds 0: nobody would ask");
        ensure!(
            self.answer_len > 0,
            "--answer-len 0: no answer would have a first token"
        );
        ensure!(qps.is_finite() && qps > 0.0, "--qps {qps}: must be above 0");
        Ok(Workload { users, rounds, qps })
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let (workload, compress) = (self.workload()?, self.compress);
        ensure!(
            compress.is_finite() && compress > 0.0,
            "--compress {compress}: must be above 0"
        );
        let sharegpt = self
            .sharegpt
            .then(|| ShareGpt::read(Path::new("ShareGPT.json"), workload.rounds));
        Ok(Plan {
            workload,
            texts: Texts {
                system_words: self.shared_system_prompt,
                user_words: self.user_history_prompt,
                answer_tokens: self.answer_len,
                sharegpt: sharegpt.transpose()?,
            },
            seconds: self.time.map(|seconds| seconds as f64),
            log_interval: self.log_interval as f64,
            init_user_id: self.init_user_id,
            compress,
        })
    }
}

impl Args {
    /// Whether much is to be told.
    #[must_use]
    pub fn verbose(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.verbose)
    }
}

/// Runs it, or sums up an old table.
///
/// # Errors
/// A flag makes no sense, a file cannot be read or written, or a request failed; what came of
/// the others is printed and written nevertheless.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(file) = &args.process_summary {
        return process_summary(file);
    }
    let args = args.run.as_ref().context("clap asks for all of them")?;
    let plan = args.plan()?;
    let client = Client::of_base(&args.base_url, &args.model, &args.api_key)?;
    // Before the long part: who cannot write there should hear of it now.
    std::fs::write(&args.output, csv::write(&[])).with_context(|| cannot_write(&args.output))?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    if !args.no_warm_up {
        tokio::select! {
            errors = warm_up_engine(&client) => errors.iter().for_each(|error| {
                tracing::warn!("a warm-up chat failed: {error}");
            }),
            _ = interrupted.recv() => bail!("interrupted"),
        }
    }
    let run = Run::start("multi-round", &plan, &client);
    let outcome = run
        .finish(&mut interrupted, |summary| drop(print(summary)))
        .await;
    let table = csv::write(&outcome.rows.table());
    std::fs::write(&args.output, table).with_context(|| cannot_write(&args.output))?;
    print(&outcome.summary)?;
    if let Some(error) = outcome.cut_short {
        return Err(error);
    }
    let (failed, all) = (outcome.rows.failed(), outcome.rows.requests());
    if failed > 0 {
        bail!("{failed} of {all} requests failed");
    }
    Ok(())
}

fn cannot_write(file: &Path) -> String {
    format!("cannot write {}", file.display())
}

fn process_summary(file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file);
    let rows = text.map_err(Into::into).and_then(|text| csv::read(&text));
    let rows = rows.with_context(|| file.display().to_string())?;
    print(&Summary::of_file(&rows))
}

fn print(summary: &Summary) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(summary.to_string().as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let words = std::iter::once("multi-round-qa").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args)
    }

    const REQUIRED: &str = "--num-users 8 --shared-system-prompt 100 --user-history-prompt 2000 \
        --answer-len 100 --num-rounds 15 --qps 0.1 --model m --base-url http://localhost:8081/v1";

    #[test]
    fn the_scripts_command_lines_are_understood() {
        let args = parse(REQUIRED).expect("all that is required");
        let run = args.run.expect("a run");
        assert_eq!(
            (run.api_key.as_str(), run.output.as_path(), run.init_user_id),
            ("EMPTY", Path::new("summary.csv"), 0)
        );
        let plan = run.plan().expect("it makes sense");
        assert_eq!((plan.seconds, plan.log_interval), (None, 30.0));
        let more = "--api-key k --time 600 --output o.csv --init-user-id 16 \
            --request-with-user-id --log-interval 5 --verbose";
        let args = parse(&format!("{REQUIRED} {more}")).expect("all of its flags");
        assert!(args.verbose());
        let plan = args.run.expect("a run").plan().expect("it makes sense");
        assert_eq!((plan.seconds, plan.init_user_id), (Some(600.0), 16));
    }

    #[test]
    fn an_old_file_needs_no_other_flag() {
        let args = parse("--process-summary old.csv").expect("enough");
        assert_eq!(args.process_summary, Some("old.csv".into()));
        assert!(parse("").is_err(), "nothing is not enough");
        assert!(parse("--num-users 8").is_err());
    }

    #[test]
    fn what_would_never_ask_is_refused() {
        for wrong in [
            "--num-users 0",
            "--num-rounds 0",
            "--qps 0",
            "--answer-len 0",
        ] {
            let name = wrong.split(' ').next().expect("a flag");
            let words: Vec<&str> = REQUIRED.split_whitespace().collect();
            let at = words
                .iter()
                .position(|word| *word == name)
                .expect("required");
            let kept = [&words[..at], &words[at + 2..]].concat().join(" ");
            let args = parse(&format!("{kept} {wrong}")).expect("well-formed");
            let error = args.run.expect("a run").plan().expect_err("no sense");
            assert!(error.to_string().contains(name), "{error}");
        }
        let args = parse(&format!("{REQUIRED} --no-warm-up --warm-up"));
        let run = args.expect("the last one counts").run.expect("a run");
        assert!(run.warm_up && !run.no_warm_up);
        let args = parse(&format!("{REQUIRED} --compress 0")).expect("well-formed");
        assert!(args.run.expect("a run").plan().is_err());
    }
}

//! `kvscout-sim compare`: flags in, table and files out.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use super::churn::{Change, What};
use super::policies::Policy;
use super::scenario::{Scenario, run_all};
use super::setting::Setting;
use super::text::tell;
use super::workloads::{Agents, Groups, Mooncake, Rounds};
use super::{page, picture, suite};
use crate::engine::EngineConfig;
use crate::load::Bar;
use crate::timing::Timing;

/// The flags of `compare`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What is asked
    #[arg(long, value_enum, default_value_t = Workload::Groups)]
    workload: Workload,
    /// Every workload at several loads instead, in settings of their own; --trace, --seed, --policy
    /// and files count
    #[arg(long)]
    suite: bool,
    /// Requests per second; several are run one after the other. A trace's own rate by default
    #[arg(long, value_name = "N", num_args = 1.., value_delimiter = ',')]
    rate: Vec<f64>,
    /// Seconds in which requests are asked
    #[arg(long, value_name = "S", default_value_t = 120.0)]
    seconds: f64,
    /// Policies to run; all by default
    #[arg(long, value_enum, value_name = "POLICY", num_args = 1.., value_delimiter = ',')]
    policy: Vec<Policy>,
    /// Of everything that is drawn: the same seed gives the same bytes
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Runs at a time
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
    /// Where to write every number, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to write the report, a page that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Where to write the loads' mean times as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Workload")]
    shape: Shape,
    #[command(flatten, next_help_heading = "Fleet")]
    fleet: Fleet,
    #[command(flatten, next_help_heading = "What changes or goes wrong meanwhile")]
    churn: Churn,
}

/// The workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Workload {
    /// Users who ask on and on, as in production-stack's multi-round-qa
    Rounds,
    /// Groups with a long system prompt each, as in llm-d's published set-up
    Groups,
    /// A trace in Mooncake's format (--trace)
    Mooncake,
    /// Agents whose subtasks begin with all that came before
    Agents,
}

#[derive(Debug, Clone, clap::Args)]
struct Shape {
    /// Users at a time, or of each group [default: 320 (rounds), 5 (groups)]
    #[arg(long, value_name = "N")]
    users: Option<usize>,
    /// Questions of each user (rounds)
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: usize,
    /// Groups (groups)
    #[arg(long, value_name = "N", default_value_t = 150)]
    groups: usize,
    /// Tokens that all requests share, or those of a group [default: 1000 (rounds), 6000 (groups),
    /// 3000 (agents)]
    #[arg(long, value_name = "TOKENS")]
    system_tokens: Option<usize>,
    /// Tokens of each user's own, or of each task [default: 20000 (rounds), 1200 (groups), 1000
    /// (agents)]
    #[arg(long, value_name = "TOKENS")]
    user_tokens: Option<usize>,
    /// Tokens of each answer [default: 100 (rounds), 1000 (groups), 150 (agents)]
    #[arg(long, value_name = "TOKENS")]
    answer_tokens: Option<usize>,
    /// Steps of each agent in a row (agents)
    #[arg(long, value_name = "N", default_value_t = 5)]
    steps: usize,
    /// Subtasks of each agent (agents)
    #[arg(long, value_name = "N", default_value_t = 4)]
    branches: usize,
    /// Levels of subtasks below a task (agents)
    #[arg(long, value_name = "N", default_value_t = 2)]
    levels: usize,
    /// The trace: lines of JSON with timestamp, input_length, output_length, hash_ids; .zst or plain
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// The trace so many times at once, each with texts of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    copies: usize,
}

#[derive(Debug, Clone, clap::Args)]
struct Fleet {
    /// Pods
    #[arg(long, value_name = "N", default_value_t = 8)]
    pods: usize,
    /// Router replicas: each knows what it placed itself
    #[arg(long, value_name = "N", default_value_t = 1)]
    routers: usize,
    /// kvscout's replicas know nothing of each other, as without NATS
    #[arg(long)]
    alone: bool,
    /// Tokens in each block
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    block_size: usize,
    /// Blocks of each pod; by default 307,328 tokens, two H100 with a model of 32 billion
    #[arg(long, value_name = "N", default_value_t = 19_209)]
    num_gpu_blocks: u32,
    /// Tokens computed per step at most
    #[arg(long, value_name = "TOKENS", default_value_t = 8192)]
    max_num_batched_tokens: usize,
    /// Requests in a batch at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_num_seqs: usize,
    /// Prompt tokens computed per second
    #[arg(long, value_name = "TOK/S", default_value_t = 20_000.0)]
    prefill_rate: f64,
    /// Answer tokens computed per second, over the whole batch
    #[arg(long, value_name = "TOK/S", default_value_t = 5_000.0)]
    decode_rate: f64,
    /// What each step costs besides
    #[arg(long, value_name = "MS", default_value_t = 8.0)]
    step_overhead_ms: f64,
}

#[derive(Debug, Clone, clap::Args)]
struct Churn {
    /// How late events arrive: the median
    #[arg(long, value_name = "MS", default_value_t = 5.0)]
    event_delay_ms: f64,
    /// How much that differs: the standard deviation of its logarithm
    #[arg(long, value_name = "NUMBER", default_value_t = 0.5)]
    event_jitter: f64,
    /// The share of event batches that do not arrive, 0 to 1; with the next one they are asked for again
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    event_loss: f64,
    /// Nobody can be asked: what is lost is lost for good
    #[arg(long)]
    no_replay: bool,
    /// Changes: SECONDS:scale:+N or :-N pods, SECONDS:reset:POD, SECONDS:slow:POD:FACTOR
    #[arg(long, value_name = "CHANGE", num_args = 1..)]
    change: Vec<Change>,
    /// Requests per second that come past the routers, to any pod
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    outside: f64,
}

/// Runs it.
///
/// # Errors
/// A flag makes no sense, or a file cannot be read or written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let scenarios = match args.suite {
        true => suite::drawn(args.shape.trace.as_deref(), args.seed)?,
        false => args.scenarios()?,
    };
    let policies = match args.policy.is_empty() {
        true => Policy::ALL.to_vec(),
        false => args.policy.clone(),
    };
    for (flag, path) in [
        ("--json", &args.json),
        ("--html", &args.html),
        ("--svg", &args.svg),
    ] {
        // Before the minutes that it takes, not after them.
        if let Some(path) = path {
            let mut open = std::fs::OpenOptions::new();
            let opened = open.append(true).create(true).open(path);
            opened.with_context(|| unwritable(flag, path))?;
        }
    }
    let requests: usize = scenarios.iter().map(Scenario::requests).sum();
    let bar = Bar::start("requests", requests * policies.len());
    let outcomes = run_all(&scenarios, &policies, args.threads, &|| bar.one_more());
    bar.end();
    for (scenario, outcome) in scenarios.iter().zip(&outcomes) {
        let text = tell(&scenario.title(), outcome);
        std::io::stdout().lock().write_all(text.as_bytes())?;
    }
    let titles: Vec<String> = scenarios.iter().map(Scenario::title).collect();
    let all = json!({"seed": args.seed, "scenarios": outcomes});
    write("--json", args.json.as_deref(), || format!("{all:#}\n"))?;
    write("--html", args.html.as_deref(), || {
        page::page(&titles, &outcomes, args.seed)
    })?;
    write("--svg", args.svg.as_deref(), || picture::picture(&outcomes))
}

fn write(flag: &str, path: Option<&Path>, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, text()).with_context(|| unwritable(flag, path))
}

fn unwritable(flag: &str, path: &Path) -> String {
    format!(
        "{flag} {}: cannot be written; is its folder there?",
        path.display()
    )
}

impl Args {
    fn scenarios(&self) -> anyhow::Result<Vec<Scenario>> {
        let setting = self.setting()?;
        ensure!(
            self.seconds.is_finite() && self.seconds > 0.0,
            "--seconds {}: must be above 0",
            self.seconds
        );
        for rate in &self.rate {
            ensure!(
                rate.is_finite() && *rate > 0.0,
                "--rate {rate}: must be above 0"
            );
        }
        if self.workload == Workload::Mooncake {
            return self.traces(&setting);
        }
        ensure!(
            !self.rate.is_empty(),
            "--rate: how many requests per second? Several, as in --rate 5 10 20, show where \
             policies part"
        );
        let shape = &self.shape;
        let tokens = |flag: Option<usize>, default| flag.unwrap_or(default);
        let plan = |rate: f64| match self.workload {
            Workload::Rounds => Rounds {
                users: tokens(shape.users, 320).max(1),
                rounds: shape.rounds,
                system_tokens: tokens(shape.system_tokens, 1000),
                history_tokens: tokens(shape.user_tokens, 20_000),
                answer_tokens: tokens(shape.answer_tokens, 100),
                rate,
                seconds: self.seconds,
            }
            .plan(),
            Workload::Groups | Workload::Mooncake => Groups {
                groups: shape.groups,
                users: tokens(shape.users, 5),
                prefix_tokens: tokens(shape.system_tokens, 6000),
                question_tokens: tokens(shape.user_tokens, 1200),
                answer_tokens: tokens(shape.answer_tokens, 1000),
                rate,
                seconds: self.seconds,
                seed: self.seed,
            }
            .plan(),
            Workload::Agents => Agents {
                system_tokens: tokens(shape.system_tokens, 3000),
                task_tokens: tokens(shape.user_tokens, 1000),
                steps: shape.steps.max(1),
                tool_tokens: 400,
                branches: shape.branches,
                levels: shape.levels.min(6),
                answer_tokens: tokens(shape.answer_tokens, 150),
                tool_seconds: 1.0,
                rate,
                seconds: self.seconds,
                seed: self.seed,
            }
            .plan(),
        };
        let scenario = |rate: &f64| Scenario::new(plan(*rate), *rate, setting.clone());
        let scenarios: Vec<Scenario> = self.rate.iter().map(scenario).collect();
        if let Some(empty) = scenarios
            .iter()
            .find(|scenario| scenario.plan.requests.is_empty())
        {
            bail!(
                "--seconds {} at --rate {}: no request that fits falls into it; make one larger",
                self.seconds,
                empty.rate
            );
        }
        Ok(scenarios)
    }

    fn traces(&self, setting: &Setting) -> anyhow::Result<Vec<Scenario>> {
        let path = self.shape.trace.as_ref();
        let path =
            path.context("--workload mooncake needs --trace FILE, a trace in Mooncake's format")?;
        ensure!(self.shape.copies > 0, "--copies 0: must be 1 or more");
        let trace = Mooncake::read(path)?;
        let recorded = trace.recorded_rate() * self.shape.copies as f64;
        let rates = if self.rate.is_empty() {
            vec![recorded]
        } else {
            self.rate.clone()
        };
        let scenario = |rate: f64| {
            let plan = trace.plan(rate, self.shape.copies, self.seconds, self.seed);
            Scenario::new(plan, rate, setting.clone())
        };
        Ok(rates.into_iter().map(scenario).collect())
    }

    fn setting(&self) -> anyhow::Result<Setting> {
        let (fleet, churn) = (&self.fleet, &self.churn);
        ensure!(
            (1..=4096).contains(&fleet.pods),
            "--pods {}: must be 1 to 4096",
            fleet.pods
        );
        ensure!(
            (1..=64).contains(&fleet.routers),
            "--routers {}: must be 1 to 64",
            fleet.routers
        );
        ensure!(fleet.block_size > 0, "--block-size 0: must be 1 or more");
        ensure!(
            fleet.max_num_seqs > 0,
            "--max-num-seqs 0: must be 1 or more"
        );
        ensure!(
            fleet.max_num_batched_tokens > 0,
            "--max-num-batched-tokens 0: must be 1 or more"
        );
        for (flag, value, most) in [
            ("--event-loss", churn.event_loss, 1.0),
            ("--event-delay-ms", churn.event_delay_ms, 600_000.0),
            ("--event-jitter", churn.event_jitter, 10.0),
            ("--outside", churn.outside, 1e6),
            ("--step-overhead-ms", fleet.step_overhead_ms, 600_000.0),
        ] {
            ensure!(
                (0.0..=most).contains(&value),
                "{flag} {value}: must be 0 to {most}"
            );
        }
        for (flag, rate) in [
            ("--prefill-rate", fleet.prefill_rate),
            ("--decode-rate", fleet.decode_rate),
        ] {
            ensure!(rate > 0.0, "{flag} {rate}: must be above 0");
        }
        for change in &churn.change {
            if let What::Reset(pod) | What::Slow(pod, _) = change.what {
                ensure!(
                    pod < fleet.pods,
                    "--change names pod {pod}; with --pods {} the last one is {}",
                    fleet.pods,
                    fleet.pods - 1
                );
            }
        }
        Ok(Setting {
            pods: fleet.pods,
            routers: fleet.routers,
            sharing: !fleet.alone,
            engine: EngineConfig {
                block_size: fleet.block_size,
                num_gpu_blocks: fleet.num_gpu_blocks,
                max_num_batched_tokens: fleet.max_num_batched_tokens,
                max_num_seqs: fleet.max_num_seqs,
                ..EngineConfig::default()
            },
            timing: Timing {
                step_overhead: std::time::Duration::from_secs_f64(fleet.step_overhead_ms / 1000.0),
                prefill_rate: fleet.prefill_rate,
                decode_rate: fleet.decode_rate,
            },
            event_delay: churn.event_delay_ms / 1000.0,
            event_jitter: churn.event_jitter,
            event_loss: churn.event_loss,
            event_replay: !churn.no_replay,
            changes: churn.change.clone(),
            outside: churn.outside,
            seed: self.seed,
        })
    }
}

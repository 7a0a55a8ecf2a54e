//! `kvscout-sim demo`: the whole story on one machine, in about a minute.
//!
//! ```text
//! stack up → a chat of two rounds → the same load through both listeners → report
//! ```

pub mod report;
pub mod story;

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::engine::EngineConfig;
use crate::load::command::Shape;
use crate::load::{Load, Progress, Sample, Summary};
use crate::stack::{PartsArgs, Plan, Ports, Scrape, Stack};
use crate::timing::Timing;

/// The flags of `demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Stay up afterwards, and say what to try
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    shape: Shape,
    /// The name the model is served by
    #[arg(long, default_value = "/model/qwen")]
    model: String,
    #[command(flatten)]
    parts: PartsArgs,
    #[command(flatten)]
    ports: Ports,
}

/// What the servers and the load are like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Each server's cache.
    pub engine: EngineConfig,
    /// Each server's speed.
    pub timing: Timing,
    /// The load, sent four times.
    pub load: Load,
}

/// The load through both listeners.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// By least request.
    pub plain: Summary,
    /// By kvscout.
    pub routed: Summary,
    /// Upper bounds of what kvscout's decisions took, p50 and p99, in seconds.
    pub decision_seconds: [Option<f64>; 2],
}

/// Servers, in the mission's picture.
const PODS: usize = 4;

/// Slow enough that a prefill is felt, and a load that the servers carry with ease: a prompt of
/// 2,000 tokens takes half a second where nothing of it is cached, so 3.5 of them a second keep
/// four servers less than half busy.
const TIMING: Timing = Timing {
    step_overhead: Duration::from_millis(8),
    prefill_rate: 4_000.0,
    decode_rate: 5_000.0,
};

impl Args {
    fn settings(&self) -> anyhow::Result<Settings> {
        let engine = EngineConfig::default();
        Ok(Settings {
            engine,
            timing: TIMING,
            load: self.shape.load()?,
        })
    }

    fn plan(&self, settings: &Settings) -> anyhow::Result<Plan> {
        Ok(Plan {
            engine: settings.engine.clone(),
            timing: settings.timing,
            ports: self.ports,
            ..Plan::new(self.parts.parts()?, &self.model, PODS)
        })
    }
}

/// Runs it.
///
/// # Errors
/// Something does not start; a prediction of the story was wrong; the routed listener was not
/// faster; somebody pressed Ctrl-C before the end. Nothing is left running.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let plan = args.plan(&settings)?;
    let mut end = End::listen()?;
    say("Starting servers, kvscout and Envoy ...\n")?;
    let mut stack = tokio::select! {
        stack = Stack::start(plan) => stack?,
        () = end.asked() => bail!("interrupted"),
    };
    let shown = tokio::select! {
        shown = show(&mut stack, &settings) => Some(shown),
        () = end.asked() => None,
    };
    if let Some(shown) = shown.as_ref().filter(|_| args.keep) {
        say(&report::invitation(&stack, &args.model, shown))?;
        end.asked().await;
    }
    stack.stop().await;
    shown.unwrap_or_else(|| bail!("interrupted"))
}

/// Ctrl-C, a polite kill, or a terminal that closed.
struct End([Signal; 3]);

impl End {
    fn listen() -> std::io::Result<Self> {
        let [interrupt, terminate, hang_up] = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ]
        .map(signal);
        Ok(Self([interrupt?, terminate?, hang_up?]))
    }

    async fn asked(&mut self) {
        let Self([interrupt, terminate, hang_up]) = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

async fn show(stack: &mut Stack, settings: &Settings) -> anyhow::Result<()> {
    say(&format!("\n{}", report::stack(stack, settings)))?;
    say("\nA chat of two rounds through Envoy's routed listener, streamed\n\n")?;
    let story = story::tell(stack).await?;
    say(&report::story(&story))?;

    let Load {
        schedule,
        system_words,
        user_words,
        answer_tokens,
        ..
    } = settings.load;
    say(&format!(
        "\nThe same load through both listeners: {} conversations of {} rounds, {} requests/s;\n\
         {system_words} words shared by all, {user_words} of each user's own, {answer_tokens} tokens an answer. Sent plain, routed,\n\
         routed, plain, with empty caches each time.\n\n",
        schedule.users, schedule.rounds, schedule.rate
    ))?;
    let comparison = compare(stack, &settings.load).await?;
    say(&format!("\n{}", report::comparison(&comparison)))?;
    judge(&story, &comparison)
}

fn judge(story: &story::Story, comparison: &Comparison) -> anyhow::Result<()> {
    if !story.came_true() {
        bail!("the chat of two rounds did not go as predicted");
    }
    let failed = comparison.plain.failed() + comparison.routed.failed();
    if failed > 0 {
        bail!("{failed} requests of the load failed");
    }
    let (plain, routed) = (comparison.plain.ttft.mean, comparison.routed.ttft.mean);
    if routed >= plain {
        bail!(
            "routed requests were not faster: mean TTFT {routed:?}, and {plain:?} without kvscout"
        );
    }
    Ok(())
}

/// Plain, routed, routed, plain: whatever a machine does slower or faster over time, it does to
/// both.
///
/// # Errors
/// Caches cannot be emptied, or kvscout's picture does not follow. A request that fails is
/// counted instead.
pub async fn compare(stack: &mut Stack, load: &Load) -> anyhow::Result<Comparison> {
    let (mut plain, mut routed) = (Vec::new(), Vec::new());
    let before = stack.scrape().await?;
    for (part, is_routed) in [false, true, true, false].into_iter().enumerate() {
        stack.reset_caches().await.context("emptying caches")?;
        // Both listeners get the same texts; the second pair gets others than the first.
        let load = Load {
            seed: 1_000 * (part as u64 / 2),
            ..*load
        };
        let samples = part_of_load(stack, &load, part, is_routed).await?;
        if is_routed {
            routed.extend(samples)
        } else {
            plain.extend(samples)
        }
    }
    Ok(Comparison {
        plain: Summary::of(&plain),
        routed: Summary::of(&routed),
        decision_seconds: decision_seconds(&before, &stack.scrape().await?),
    })
}

async fn part_of_load(
    stack: &Stack,
    load: &Load,
    part: usize,
    routed: bool,
) -> anyhow::Result<Vec<Sample>> {
    let (name, to) = if routed {
        ("routed", stack.routed)
    } else {
        ("plain", stack.plain)
    };
    let title = format!("{} of 4, {name}", part + 1);
    let progress = Progress::start(&title, load.schedule.requests());
    let client = stack.client(to)?;
    let samples = load.run(&client, |sample| progress.one_more(sample)).await;
    progress.end(&Summary::of(&samples));
    Ok(samples)
}

fn decision_seconds(before: &Scrape, after: &Scrape) -> [Option<f64>; 2] {
    [0.5, 0.99].map(|quantile| after.quantile(before, "kvscout_decision_seconds", quantile))
}

/// Standard output may be a closed pipe, which is an error like any other.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

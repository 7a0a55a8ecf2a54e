//! The command: a stack, each size in turn, a table.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};

use super::ask::Asker;
use super::bare::Bare;
use super::bodies::Conversation;
use super::certificate::Certificate;
use super::measure::{Bench, Found, Size};
use super::{overload, stream};
use crate::engine::EngineConfig;
use crate::load::Spread;
use crate::outgoing;
use crate::stack::{PartsArgs, Plan, Stack};
use crate::table::table;

/// The flags of `bench-decision`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Seconds for each of a size's three parts
    #[arg(long, value_name = "SECONDS", default_value_t = 8.0)]
    seconds: f64,
    /// Only sizes whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Offer more than a core can do, and say what gives way, instead
    #[arg(long)]
    overload: bool,
    /// Record kvscout's stacks with Linux's perf, while as many requests as go are asked, into this folder (`make
    /// flame`)
    #[arg(long, value_name = "DIR")]
    perf: Option<PathBuf>,
    #[command(flatten)]
    parts: PartsArgs,
}

const MODEL: &str = "qwen";
const PODS: usize = 4;
/// Blocks of a pod: room for all conversations.
const BLOCKS: u32 = 80_000;
/// Requests through each of Envoy's listeners, in turn.
const THROUGH_ENVOY: u64 = 60;

const SIZES: [Size; 4] = [
    Size {
        name: "1k",
        tokens: 1_000,
        conversations: 64,
        held: 9_000,
    },
    Size {
        name: "8k",
        tokens: 8_000,
        conversations: 16,
        held: 3_000,
    },
    Size {
        name: "32k",
        tokens: 32_000,
        conversations: 8,
        held: 2_000,
    },
    Size {
        name: "100k",
        tokens: 100_000,
        conversations: 4,
        held: 1_200,
    },
];

/// Runs it.
///
/// # Errors
/// Something does not start, or a request failed.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.seconds > 0.0 && args.seconds.is_finite(),
        "--seconds {}: must be above 0",
        args.seconds
    );
    let certificate = Certificate::new()?;
    let plan = Plan {
        engine: EngineConfig::roomy(BLOCKS),
        tls: certificate.tls(),
        ..Plan::new(args.parts.parts()?, MODEL, PODS)
    };
    let measured = match args.overload {
        true => {
            with(plan, async |stack| {
                let asker = Asker::connect(stack.ext_proc, &certificate.path()).await?;
                overload::measure(stack, asker, MODEL, args.seconds).await
            })
            .await?
        }
        false => {
            let shown = certificate.path();
            let held = with(plan.clone(), async |stack| hold(args, stack, &shown).await).await?;
            // By a process of its own: where a gigabyte was held, memory lies scattered.
            let plan = Plan {
                servers_give_way: true,
                ..plan
            };
            with(plan, async |stack| {
                measure(args, stack, &certificate, &held).await
            })
            .await?
        }
    };
    say(&measured)
}

/// Does this with a stack.
async fn with<T>(
    plan: Plan,
    work: impl AsyncFnOnce(&Stack) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    say("Starting servers, kvscout and Envoy ...\n")?;
    let stack = tokio::select! {
        stack = Stack::start(plan) => stack?,
        _ = interrupted.recv() => bail!("interrupted"),
    };
    let done = tokio::select! {
        done = work(&stack) => done,
        _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted")),
    };
    stack.stop().await;
    done
}

fn sizes(args: &Args) -> impl Iterator<Item = &'static Size> + Clone {
    SIZES.iter().filter(|size| size.name.contains(&args.only))
}

async fn warmed(args: &Args, stack: &Stack, certificate: &Path) -> anyhow::Result<Arc<Bench>> {
    let asker = Asker::connect(stack.ext_proc, certificate).await?;
    let processes = stack.process_ids();
    let kvscout = *processes.first().context("kvscout runs")?;
    let bench = Arc::new(Bench::new(
        asker,
        kvscout,
        MODEL,
        args.seconds,
        args.perf.clone(),
    ));
    // What is done once, for the first prompts, is not a decision's.
    for size in sizes(args) {
        bench.first(size).await.with_context(|| size.name)?;
    }
    Ok(bench)
}

/// What bodies of each size take while they are held.
async fn hold(args: &Args, stack: &Stack, certificate: &Path) -> anyhow::Result<Vec<f64>> {
    let bench = warmed(args, stack, certificate).await?;
    // What was held once may stay the process's own: so each size holds many times what the one before did.
    let (mut held, idle) = (Vec::new(), bench.settled(stack).await?);
    for size in sizes(args) {
        // Streams that are given up all at once may take their connection with them, at our end (h2).
        let channel = stream::connect(stack.ext_proc, certificate).await?;
        let share = bench.hold(stack, &channel, (size, idle)).await;
        held.push(share.with_context(|| size.name)?);
    }
    Ok(held)
}

async fn measure(
    args: &Args,
    stack: &Stack,
    certificate: &Certificate,
    held: &[f64],
) -> anyhow::Result<String> {
    let bench = warmed(args, stack, &certificate.path()).await?;
    let pods = stack.pods.iter().map(|pod| pod.address()).collect();
    let bare = Bare::start(certificate, pods).await?;
    let bare_asker = Asker::connect(bare.address, &certificate.path()).await?;
    let mut rows = vec![heading()];
    let before = stack.scrape().await?;
    for (size, held) in sizes(args).zip(held) {
        let found = bench
            .measure(size, &bare_asker)
            .await
            .with_context(|| size.name)?;
        let added = through_envoy(stack, size)
            .await
            .with_context(|| size.name)?;
        say(&format!(
            "  {} done: {} requests; who asks was {:.0} ms late at most\n",
            size.name,
            found.requests,
            1e3 * found.late.as_secs_f64()
        ))?;
        rows.push(row(size, *held, &found, added));
    }
    let after = stack.scrape().await?;
    let since = |name: &str, label: &str| {
        let at = |scrape: &crate::stack::Scrape| scrape.sum(name, label).unwrap_or(0.0);
        at(&after) - at(&before)
    };
    let [exact, over, under] = ["exact", "over", "under"]
        .map(|verdict| since("kvscout_predictions_total", &format!("verdict={verdict:?}")));
    let [all, known] =
        ["", "basis=\"overlap\""].map(|label| since("kvscout_requests_total", label));
    let waited = since("kvscout_admission_wait_seconds_count", "");
    Ok(format!(
        "\n{}\n  {known} of {all} requests read to the token; predictions: {exact} exact, {over} over, {under} under; {waited} \
         waited for a server\n",
        table(1, &rows)
    ))
}

/// By how much the median grows when kvscout is asked: requests one by one, in turn.
async fn through_envoy(stack: &Stack, size: &Size) -> anyhow::Result<[Spread; 2]> {
    let http = outgoing::client()
        .timeout(Duration::from_secs(30))
        .build()?;
    let conversation = Conversation::new(size.tokens as u64, size.tokens, MODEL);
    let mut took = [Vec::new(), Vec::new()];
    // Every pod has the conversation, so that both ways find the same.
    for pod in &stack.pods {
        send(&http, pod.address(), conversation.body(0)).await?;
    }
    for number in 0..THROUGH_ENVOY {
        for (to, took) in [stack.plain, stack.routed].into_iter().zip(&mut took) {
            let body = conversation.body(1 << 40 | number);
            took.push(send(&http, to, body).await?);
        }
    }
    Ok(took.map(Spread::of))
}

async fn send(
    http: &reqwest::Client,
    to: std::net::SocketAddr,
    body: Bytes,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let request = http.post(format!("http://{to}/v1/chat/completions"));
    let request = request
        .header("content-type", "application/json")
        .body(body);
    request.send().await?.error_for_status()?.bytes().await?;
    Ok(began.elapsed())
}

fn heading() -> [String; 14] {
    [
        "prompt",
        "body",
        "CPU each",
        "a core does",
        "asked",
        "pick p50",
        "p99",
        "after its end p50",
        "p99",
        "reading nothing p50",
        "p99",
        "warm",
        "held",
        "Envoy: plain, routed",
    ]
    .map(str::to_owned)
}

fn row(size: &Size, held: f64, found: &Found, [plain, routed]: [Spread; 2]) -> [String; 14] {
    let millis = |of: Duration| format!("{:.2} ms", 1e3 * of.as_secs_f64());
    [
        size.name.to_owned(),
        format!("{} kB", found.body / 1000),
        millis(found.cpu),
        format!("{:.0}/s", 1.0 / found.cpu.as_secs_f64()),
        format!("{:.0}/s", found.rate),
        millis(found.pick.p50),
        millis(found.pick.p99),
        millis(found.after.p50),
        millis(found.after.p99),
        millis(found.bare.p50),
        millis(found.bare.p99),
        format!("{:.0} %", 100.0 * found.warm),
        format!("{held:.2}x"),
        format!("{}, {}", millis(plain.p50), millis(routed.p50)),
    ]
}

/// Standard output may be a closed pipe, which is an error like any other.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

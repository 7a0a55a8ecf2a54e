//! More than a core can do: how long a pick takes then, and what gives way.
//!
//! kvscout has one core and this process the others, so that who asks is not what is short: prompts are names that are in no
//! vocabulary, as a program's log may be, and take it ten times as long to read as they take to send. A request is late from when
//! it was due, not from when somebody came to send it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep_until, timeout};

use super::stream::{Link, Refused, Stream};
use super::{ask, process};
use crate::dice::Dice;
use crate::load::Spread;
use crate::stack::{Scrape, Stack};
use crate::table::table;

/// Names in a prompt, of so many letters each: 36 kB.
const NAMES: usize = 4_000;
const LETTERS: usize = 8;
/// Of what it can do.
const OFFERED: [f64; 4] = [0.5, 1.0, 1.5, 3.0];
/// Streams at once while that is found out.
const STREAMS: u64 = 8;
/// A stream that takes longer is an error.
const TAKES_MAX: Duration = Duration::from_secs(30);
/// What a pod answers; none is asked.
const ANSWER: &[u8] = br#"{"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;

/// Who asks.
struct Asker {
    gateway: ask::Asker,
    model: &'static str,
    /// Prompts so far: each is new.
    made: AtomicU64,
    /// And of those, so many were asked.
    asked: AtomicU64,
}

/// What became of a request, and how long after it was due.
enum Came {
    Placed(Duration),
    Refused(Duration),
}

/// All of it, as a table.
///
/// # Errors
/// A stream is lost, or takes too long.
pub async fn measure(
    stack: &Stack,
    gateway: ask::Asker,
    model: &'static str,
    seconds: f64,
) -> anyhow::Result<String> {
    let kvscout = *stack.process_ids().first().context("kvscout runs")?;
    on_one_core(kvscout).await?;
    let asker = Arc::new(Asker {
        gateway,
        model,
        made: AtomicU64::new(0),
        asked: AtomicU64::new(0),
    });
    // What is done once, for the first prompts, is not what it can do.
    asker.as_many_as_go(1.0).await?;
    let before = process::cpu(kvscout)?;
    let read = asker.as_many_as_go(seconds).await?;
    let took = process::cpu(kvscout)?.saturating_sub(before);
    ensure!(!took.is_zero(), "no CPU time is told of process {kvscout}");
    let can = f64::from(read) / took.as_secs_f64();
    let mut rows = vec![heading()];
    for share in OFFERED {
        let before = stack.scrape().await?;
        let came = asker.offer(share * can, seconds).await?;
        let after = stack.scrape().await?;
        rows.push(row(share, share * can, &came, [&before, &after]));
    }
    Ok(format!(
        "\n  {NAMES} names a prompt, each new: by its CPU time a core reads {can:.0} a second\n\n{}\n",
        table(1, &rows)
    ))
}

/// Pins a process, with all its threads, to the first core.
async fn on_one_core(process: u32) -> anyhow::Result<()> {
    let mut pin = Command::new("taskset");
    let pin = pin.args(["-a", "-c", "-p", "0", &process.to_string()]);
    let done = pin.output().await.context("taskset, of util-linux")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "taskset: {said}");
    Ok(())
}

impl Asker {
    fn body(&self) -> Bytes {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut dice = Dice::new(number);
        let mut letter = || char::from(b'a' + dice.below(26) as u8);
        let mut text = String::with_capacity(NAMES * (LETTERS + 1));
        for _ in 0..NAMES {
            text.extend(std::iter::repeat_with(&mut letter).take(LETTERS));
            text.push(' ');
        }
        let messages = [json!({"role": "user", "content": text})];
        let body = json!({"model": self.model, "max_tokens": 1, "messages": messages});
        body.to_string().into()
    }

    async fn ask(&self, body: &Bytes, due: Instant) -> anyhow::Result<Came> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let ask = async {
            let channel = self.gateway.channel(number);
            let mut stream = Stream::open(channel, number, body.len()).await?;
            stream.send(body, true, Link::Instant).await?;
            let placed = stream.placed(body.len()).await;
            let took = due.elapsed();
            match placed {
                Ok(_) => {
                    stream.answered(200, &Bytes::from_static(ANSWER)).await?;
                    Ok(Came::Placed(took))
                }
                Err(error) if error.is::<Refused>() => Ok(Came::Refused(took)),
                Err(error) => Err(error),
            }
        };
        let asked = timeout(TAKES_MAX, ask).await;
        asked.context("a stream takes too long")?
    }

    /// How many are placed where so many streams ask one after the other.
    async fn as_many_as_go(self: &Arc<Self>, seconds: f64) -> anyhow::Result<u32> {
        let ends = Instant::now() + Duration::from_secs_f64(seconds);
        let streams = (0..STREAMS).map(|_| {
            let asker = Arc::clone(self);
            let asked = tokio::spawn(async move {
                let mut placed = 0_u32;
                while Instant::now() < ends {
                    let body = asker.body();
                    match asker.ask(&body, Instant::now()).await? {
                        Came::Placed(_) => placed += 1,
                        Came::Refused(_) => anyhow::bail!("refused at leisure"),
                    }
                }
                anyhow::Ok(placed)
            });
            async { asked.await? }
        });
        Ok(try_join_all(streams).await?.into_iter().sum())
    }

    /// At this rate, by chance.
    async fn offer(self: &Arc<Self>, rate: f64, seconds: f64) -> anyhow::Result<Vec<Came>> {
        let bodies: Vec<Bytes> = (0..(rate * seconds) as u64).map(|_| self.body()).collect();
        let (mut dice, mut at) = (Dice::new(11), 0.0);
        let began = Instant::now();
        let mut requests = Vec::new();
        for body in bodies {
            at += -(1.0 - dice.share()).ln() / rate;
            let due = began + Duration::from_secs_f64(at);
            sleep_until(due).await;
            let asker = Arc::clone(self);
            let asked = tokio::spawn(async move { asker.ask(&body, due).await });
            requests.push(async { asked.await? });
        }
        try_join_all(requests).await
    }
}

fn heading() -> [String; 9] {
    [
        "offered",
        "a second",
        "pick p50",
        "p99",
        "longest",
        "read",
        "by load",
        "503",
        "503 after p99",
    ]
    .map(str::to_owned)
}

fn row(share: f64, rate: f64, came: &[Came], [before, after]: [&Scrape; 2]) -> [String; 9] {
    let placed = came.iter().filter_map(|came| match came {
        Came::Placed(took) => Some(*took),
        Came::Refused(_) => None,
    });
    let placed: Vec<Duration> = placed.collect();
    let refused = came.iter().filter_map(|came| match came {
        Came::Refused(took) => Some(*took),
        Came::Placed(_) => None,
    });
    let refused: Vec<Duration> = refused.collect();
    let since = |label: &str| {
        let at = |scrape: &Scrape| scrape.sum("kvscout_requests_total", label).unwrap_or(0.0);
        at(after) - at(before)
    };
    let percent = |part: f64| format!("{:.0} %", 100.0 * part / came.len().max(1) as f64);
    let millis = |of: Duration| format!("{:.0} ms", 1e3 * of.as_secs_f64());
    let longest = placed.iter().max().copied().unwrap_or_default();
    let denied = refused.len() as f64;
    let late = match refused.is_empty() {
        true => "-".to_owned(),
        false => millis(Spread::of(refused).p99),
    };
    let pick = Spread::of(placed);
    [
        format!("{share}x"),
        format!("{rate:.0}"),
        millis(pick.p50),
        millis(pick.p99),
        millis(longest),
        percent(since("basis=\"overlap\"")),
        percent(since("basis=\"load_only\"")),
        percent(denied),
        late,
    ]
}

//! One size of prompt, measured.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::Channel;

use super::ask::Asker;
use super::bodies::Conversation;
use super::perf::Perf;
use super::process;
use super::stream::{Link, Stream, Took};
use crate::dice::Dice;
use crate::load::Spread;
use crate::stack::Stack;

/// A size of prompt.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// What people call it.
    pub name: &'static str,
    /// Tokens of each prompt, about.
    pub tokens: usize,
    /// Conversations, each of which fits into its pod's cache beside the others.
    pub conversations: u64,
    /// Bodies that are held at once to see what one takes.
    pub held: usize,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Bytes of a body.
    pub body: usize,
    /// kvscout's CPU time for a request, from its headers to its answer's end.
    pub cpu: Duration,
    /// Requests that this comes from: as many as this machine, pods and all, carried in that time.
    pub requests: u64,
    /// Requests a second in the second and third part.
    pub rate: f64,
    /// From a stream's begin to the pick, at that rate, where all of the body is there.
    pub pick: Spread,
    /// From the body's end to the pick, where it comes by a link of 1 Gbit/s: what kvscout adds.
    pub after: Spread,
    /// The same at a picker that reads nothing, on this machine and at this rate.
    pub bare: Spread,
    /// How late who asks was with a request, at most: so long the machine, and not kvscout alone, stood still.
    pub late: Duration,
    /// Requests that went where their conversation had been.
    pub warm: f64,
}

/// Streams at once in the first part: four for each of two cores.
const STREAMS: u64 = 8;
/// How much of what went at once is asked in the second part.
const ASKED: f64 = 0.5;

/// Until all bodies have come that are to be held: kvscout gives up a slow one after ten seconds.
const HELD_MAX: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(20);
/// After so long without giving memory back a process has none left of what it took to start: mimalloc gives it back after a second,
/// when it is asked for more.
const SETTLED: Duration = Duration::from_secs(2);
/// Less than this is no change.
const SETTLED_BYTES: u64 = 1 << 20;

/// Who asks.
#[derive(Debug)]
pub struct Bench {
    /// To kvscout.
    pub asker: Asker,
    /// kvscout.
    pub process: u32,
    /// The model's name.
    pub model: String,
    /// How long each part lasts.
    pub seconds: f64,
    /// A folder for recordings of perf, one of each size.
    pub perf: Option<PathBuf>,
    /// Questions so far: each is new.
    asked: AtomicU64,
}

impl Bench {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(
        asker: Asker,
        process: u32,
        model: &str,
        seconds: f64,
        perf: Option<PathBuf>,
    ) -> Self {
        Self {
            perf,
            asker,
            process,
            model: model.to_owned(),
            seconds,
            asked: AtomicU64::new(0),
        }
    }

    /// All of one size, and what `bare`, a picker that reads nothing, is asked besides.
    ///
    /// # Errors
    /// A stream is lost, or a pod does not answer.
    pub async fn measure(self: &Arc<Self>, size: &Size, bare: &Asker) -> anyhow::Result<Found> {
        let conversations = self.conversations(size);
        let homes = self.first(size).await?;
        let body = conversations[0].body(0).len();
        let perf = self.perf.as_ref().map(|folder| {
            let file = folder.join(format!("{}.perf", size.name));
            Perf::record(self.process, &file)
        });
        let perf = perf.transpose()?;
        let (cpu, requests) = self.all_at_once(&conversations).await?;
        if let Some(perf) = perf {
            perf.stop().await?;
        }
        let rate = ASKED * requests as f64 / self.seconds;
        let now_and_then =
            async |asker, link| self.now_and_then(asker, &conversations, rate, link).await;
        let (instant, late) = now_and_then(&self.asker, Link::Instant).await?;
        let (linked, later) = now_and_then(&self.asker, Link::Gigabit).await?;
        let (bare, _) = now_and_then(bare, Link::Gigabit).await?;
        let after =
            |took: &[(usize, Took)]| Spread::of(took.iter().map(|(_, took)| took.after).collect());
        let all = || instant.iter().chain(&linked);
        let is_warm = |(at, took): &&(usize, Took)| homes[*at] == took.endpoint;
        let warm = all().filter(is_warm).count();
        Ok(Found {
            body,
            cpu,
            requests,
            rate,
            pick: Spread::of(instant.iter().map(|(_, took)| took.pick).collect()),
            after: after(&linked),
            bare: after(&bare),
            late: late.max(later),
            warm: warm as f64 / all().count().max(1) as f64,
        })
    }

    /// Each conversation once, and where it went.
    ///
    /// # Errors
    /// A stream is lost, or a pod does not answer.
    pub async fn first(&self, size: &Size) -> anyhow::Result<Vec<String>> {
        let mut homes = Vec::new();
        for conversation in self.conversations(size).iter() {
            let asked = self.ask(&self.asker, conversation, Link::Instant).await?;
            homes.push(asked.endpoint);
        }
        Ok(homes)
    }

    fn conversations(&self, size: &Size) -> Arc<[Conversation]> {
        let seed = |number| (size.tokens as u64) << 20 | number;
        let conversations = (0..size.conversations)
            .map(|number| Conversation::new(seed(number), size.tokens, &self.model));
        conversations.collect()
    }

    /// A new question.
    async fn ask(
        &self,
        asker: &Asker,
        conversation: &Conversation,
        link: Link,
    ) -> anyhow::Result<Took> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let asked = asker.ask(number, conversation.body(number), link).await?;
        asked.answered()
    }

    /// As many as go over one connection: kvscout's CPU time for each, and how many there were. What a core does is asked of
    /// one, as far as who asks leaves it: threads with less to do wake up more often for it.
    async fn all_at_once(
        self: &Arc<Self>,
        conversations: &Arc<[Conversation]>,
    ) -> anyhow::Result<(Duration, u64)> {
        let (before, first) = (
            process::cpu(self.process)?,
            self.asked.load(Ordering::Relaxed),
        );
        let ends = Instant::now() + Duration::from_secs_f64(self.seconds);
        let streams = (0..STREAMS).map(|stream| {
            let (bench, conversations) = (Arc::clone(self), Arc::clone(conversations));
            let asker = self.asker.over_one();
            let asked = tokio::spawn(async move {
                let mut dice = Dice::new(stream);
                while Instant::now() < ends {
                    let conversation = &conversations[dice.below(conversations.len())];
                    bench.ask(&asker, conversation, Link::Instant).await?;
                }
                anyhow::Ok(())
            });
            async { asked.await? }
        });
        try_join_all(streams).await?;
        let requests = self.asked.load(Ordering::Relaxed) - first;
        let cpu = process::cpu(self.process)?.saturating_sub(before);
        let each = cpu.div_f64(requests.max(1) as f64);
        ensure!(
            !each.is_zero(),
            "no CPU time is told of process {}",
            self.process
        );
        Ok((each, requests))
    }

    /// At this rate, by chance, over as many connections as Envoy would have: which conversation, and how long it took;
    /// and by how much a request began too late, at most.
    async fn now_and_then(
        self: &Arc<Self>,
        asker: &Asker,
        conversations: &Arc<[Conversation]>,
        rate: f64,
        link: Link,
    ) -> anyhow::Result<(Vec<(usize, Took)>, Duration)> {
        let (mut dice, mut at, mut late) = (Dice::new(7), 0.0, Duration::ZERO);
        let began = Instant::now();
        let mut requests = Vec::new();
        while at < self.seconds {
            at += -(1.0 - dice.share()).ln() / rate;
            let which = dice.below(conversations.len());
            let (bench, conversations) = (Arc::clone(self), Arc::clone(conversations));
            let asker = asker.clone();
            let due = began + Duration::from_secs_f64(at);
            sleep_until(due).await;
            late = late.max(due.elapsed());
            let asked = async move { bench.ask(&asker, &conversations[which], link).await };
            let asked = tokio::spawn(asked);
            requests.push(async move { anyhow::Ok((which, asked.await??)) });
        }
        Ok((try_join_all(requests).await?, late))
    }

    /// What kvscout takes, in bytes, once it has given back what it needs no more.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn settled(&self, stack: &Stack) -> anyhow::Result<u64> {
        let (mut least, mut since) = (process::resident(self.process)?, Instant::now());
        while since.elapsed() < SETTLED {
            sleep(LOOK).await;
            stack.scrape().await?;
            let now = process::resident(self.process)?;
            if now + SETTLED_BYTES < least {
                (least, since) = (now, Instant::now());
            }
        }
        process::resident(self.process)
    }

    /// What kvscout takes beside `idle` bytes for each byte of bodies that are not all there yet, all on one channel.
    ///
    /// # Errors
    /// A stream is lost.
    pub async fn hold(
        &self,
        stack: &Stack,
        channel: &Channel,
        (size, idle): (&Size, u64),
    ) -> anyhow::Result<f64> {
        let conversations = self.conversations(size);
        let bodies =
            (0..size.held).map(|number| conversations[number % conversations.len()].body(0));
        let bodies: Vec<Bytes> = bodies.map(|body| body.slice(..body.len() - 1)).collect();
        let bytes: usize = bodies.iter().map(Bytes::len).sum();
        let mut streams = Vec::new();
        for (number, body) in (0..).zip(&bodies) {
            let mut stream = Stream::open(channel, number, body.len() + 1).await?;
            stream.send(body, false, Link::Instant).await?;
            streams.push(stream);
        }
        let all_have_come = async {
            // Nothing is said to a stream whose body has no end yet.
            while stack.scrape().await?.sum("kvscout_exchange_held_bytes", "") < Some(bytes as f64)
            {
                sleep(LOOK).await;
            }
            // Tables of streams have grown, and left their last places.
            let resident = self.settled(stack).await?;
            let still = stack.scrape().await?.sum("kvscout_exchange_held_bytes", "");
            ensure!(still == Some(bytes as f64), "some were given up meanwhile");
            Ok(resident)
        };
        let held = timeout(HELD_MAX, all_have_come).await;
        let resident = held.with_context(|| format!("kvscout does not hold {bytes} bytes"))??;
        Ok(resident.saturating_sub(idle) as f64 / bytes as f64)
    }
}

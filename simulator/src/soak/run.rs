//! The whole of it: a stack, what it can do, and then a share of that for as long as is asked.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::asking::{Crowd, Pace, Shared};
use super::audited::{Log, Restart};
use super::churn::{self, Files};
use super::sample::{Sample, Sampler};
use crate::decisions::ask::Asker;
use crate::engine::EngineConfig;
use crate::outgoing;
use crate::stack::{Parts, Plan, Stack, scrape};

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Soak {
    /// Programs and files.
    pub parts: Parts,
    /// How long, all in all.
    pub lasts: Duration,
    /// Which share of what goes at once is asked.
    pub share: f64,
    /// Between two things that come or go.
    pub churn: Duration,
    /// Between two looks.
    pub look: Duration,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests a second that went at once.
    pub capacity: f64,
    /// Requests a second that were asked.
    pub rate: f64,
    /// Requests in all.
    pub requests: u64,
    /// Requests that failed after the last look.
    pub failed: u64,
    /// Why requests failed, of the first.
    pub failures: Vec<String>,
    /// Predictions that were wrong and claimed certainty, as the decision log tells them.
    pub wrong: Vec<Value>,
    /// When which server restarted.
    pub restarts: Vec<Restart>,
    /// Streams that were open when all was over.
    pub streams_left: u64,
    /// Over time.
    pub samples: Vec<Sample>,
}

const MODEL: &str = "qwen";
/// One more at times.
const PODS: usize = 4;
/// Blocks of a pod: it holds what is asked now two or three times over, and so forgets what was asked.
const BLOCKS: u32 = 40_000;
/// What it can do is measured in this part of the time, half a minute at most.
const MEASURED: u32 = 6;
const MEASURED_MAX: Duration = Duration::from_secs(30);
/// After the last answer nothing is open: an exchange ends with its stream.
const ENDED_MAX: Duration = Duration::from_secs(10);
/// Failures whose words are kept.
const FAILURES_MAX: usize = 5;
const LOOK_MAX: Duration = Duration::from_secs(20);

impl Soak {
    /// Runs it; `say` hears of every look.
    ///
    /// # Errors
    /// Something does not start or come back.
    pub async fn run(&self, say: impl Fn(&Sample)) -> anyhow::Result<Report> {
        let files = Files::new(&self.parts.tokenizer)?;
        let mut stack = Stack::start(self.plan(&files)).await?;
        let found = self.measure(&mut stack, &files, say).await;
        stack.stop().await;
        found
    }

    fn plan(&self, files: &Files) -> Plan {
        let mut parts = self.parts.clone();
        parts.tokenizer = files.vocabulary.path().to_owned();
        Plan {
            decision_log: true,
            adapters: (0..churn::ADAPTERS).map(churn::adapter).collect(),
            engine: EngineConfig::roomy(BLOCKS),
            tls: files.certificate.tls(),
            ..Plan::new(parts, MODEL, PODS)
        }
    }

    async fn measure(
        &self,
        stack: &mut Stack,
        files: &Files,
        say: impl Fn(&Sample),
    ) -> anyhow::Result<Report> {
        let asker = Asker::connect(stack.ext_proc, &files.certificate.path()).await?;
        let shared = Arc::new(Shared::new(asker, churn::adapters(0), PODS));
        let mut crowd = Crowd::new(Arc::clone(&shared), MODEL);
        let begin = (self.lasts / MEASURED).min(MEASURED_MAX);
        crowd.ask(Pace::AllAtOnce, begin).await;
        let begun = shared.take();
        ensure!(
            begun.failed == 0,
            "requests fail: {}",
            begun.words.join("; ")
        );
        let capacity = begun.picks.len() as f64 / begin.as_secs_f64();
        let rate = capacity * self.share;
        let page = stack.scrape().await?;
        let kvscout = *stack.process_ids().first().context("kvscout runs")?;
        let mut report = Report {
            capacity,
            rate,
            requests: 0,
            failed: 0,
            failures: Vec::new(),
            wrong: Vec::new(),
            restarts: Vec::new(),
            streams_left: 0,
            samples: Vec::new(),
        };
        let sampler = Sampler::new(kvscout, page)?;
        let (admin, mut log) = (stack.admin, Log::new(stack.decision_log()));
        tokio::select! {
            () = crowd.ask(Pace::Rate(rate), self.lasts - begin) => {}
            looked = look(sampler, &mut log, admin, self.look, &shared, &mut report, say) => looked?,
            churned = churn::churn(stack, &shared, files, self.churn) => churned?,
        }
        report.requests = crowd.asked();
        let rest = shared.take();
        report.failed = rest.failed;
        report.failures.extend(rest.words);
        report.streams_left = left(stack).await?;
        report.wrong.extend(log.wrong()?);
        report.restarts.clone_from(&shared.restarted.borrow());
        Ok(report)
    }
}

/// Looks until it is dropped.
async fn look(
    mut sampler: Sampler,
    log: &mut Log,
    admin: std::net::SocketAddr,
    every: Duration,
    shared: &Shared,
    report: &mut Report,
    say: impl Fn(&Sample),
) -> anyhow::Result<()> {
    let http = outgoing::client().timeout(LOOK_MAX).build()?;
    let (began, mut ticks) = (Instant::now(), interval(every));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let page = scrape(&http, admin).await?;
        let (seen, pods) = (shared.take(), *shared.pods.borrow());
        let room = FAILURES_MAX.saturating_sub(report.failures.len());
        report
            .failures
            .extend(seen.words.iter().take(room).cloned());
        let sample = sampler.look(began.elapsed().as_secs_f64(), page, seen, pods)?;
        report.wrong.extend(log.wrong()?);
        say(&sample);
        report.samples.push(sample);
    }
}

/// Streams that do not end.
async fn left(stack: &Stack) -> anyhow::Result<u64> {
    let began = Instant::now();
    loop {
        let page = stack.scrape().await?;
        let left = page.sum("kvscout_exchanges", "").unwrap_or(0.0) as u64;
        if left == 0 || began.elapsed() > ENDED_MAX {
            return Ok(left);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

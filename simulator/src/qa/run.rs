//! A run: the schedule's clock, the requests under way, and what came of them.

use std::collections::BTreeMap;

use futures::future::join_all;
use tokio::signal::unix::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::clock::Clock;
use super::progress::Progress;
use super::prompt::{Session, Texts, WARM_UP_TOKENS, WARM_UPS, warm_up};
use super::rows::{LeftOut, Row, Rows};
use super::schedule::{Event, Schedule, Workload};
use super::summary::Summary;
use crate::load::{Client, Reply};

/// The schedule's step, in seconds of the workload's time.
const STEP: f64 = 0.1;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// When who asks.
    pub workload: Workload,
    /// What.
    pub texts: Texts,
    /// Nobody asks any more after so many seconds; none is for ever.
    pub seconds: Option<f64>,
    /// Seconds between two summaries.
    pub log_interval: f64,
    /// Users are numbered from the next one on.
    pub init_user_id: u64,
    /// How much faster than the machine's the workload's time runs.
    pub compress: f64,
}

/// A request that has ended.
struct Landed {
    user: u64,
    launch_time: f64,
    result: anyhow::Result<Reply>,
    finish_time: f64,
}

/// A run under way.
#[derive(Debug)]
pub struct Run<'a> {
    plan: &'a Plan,
    client: &'a Client,
    clock: Clock,
    schedule: Schedule,
    sessions: BTreeMap<u64, Session>,
    rows: Rows,
    flying: JoinSet<Landed>,
    progress: Progress,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Outcome {
    /// What came of all requests.
    pub rows: Rows,
    /// The final summary.
    pub summary: Summary,
    /// Somebody interrupted it.
    pub interrupted: bool,
    /// Why it ended too early, if it did.
    pub cut_short: Option<anyhow::Error>,
}

impl std::fmt::Debug for Landed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Landed")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Concurrent chats that nobody counts; returns what went wrong with them.
pub async fn warm_up_engine(client: &Client) -> Vec<String> {
    let chats = (0..WARM_UPS).map(async |number| {
        let chat = client.ask(&[warm_up(number)], WARM_UP_TOKENS, None).await;
        chat.err().map(|error| format!("{error:#}"))
    });
    join_all(chats).await.into_iter().flatten().collect()
}

impl<'a> Run<'a> {
    /// Begins.
    #[must_use]
    pub fn start(title: &str, plan: &'a Plan, client: &'a Client) -> Self {
        Self {
            plan,
            client,
            clock: Clock::start(plan.compress),
            schedule: Schedule::new(plan.workload, plan.init_user_id),
            sessions: BTreeMap::new(),
            rows: Rows::default(),
            flying: JoinSet::new(),
            progress: Progress::start(title, plan.seconds),
        }
    }

    /// Runs until its time is over or somebody interrupts, and then until every request has
    /// ended or somebody interrupts again. `told` hears a summary in every interval.
    pub async fn finish(mut self, interrupted: &mut Signal, told: impl Fn(&Summary)) -> Outcome {
        let begun = self.clock.now();
        let (interrupted_once, cut_short) = match self.ask(interrupted, told).await {
            Ok(interrupted) => (interrupted, None),
            Err(error) => (false, Some(error)),
        };
        self.await_the_last(interrupted).await;
        let summary = self.summary([begun, self.clock.now()]);
        self.progress.end();
        Outcome {
            rows: self.rows,
            summary,
            interrupted: interrupted_once,
            cut_short,
        }
    }

    /// Whether somebody interrupted.
    async fn ask(
        &mut self,
        interrupted: &mut Signal,
        told: impl Fn(&Summary),
    ) -> anyhow::Result<bool> {
        let step = self.clock.real(STEP);
        // As a loop that sleeps between its steps, each a little later than the last: on a grid,
        // a gap of so many whole steps would be over or not by the timer's whim.
        let mut next_step = Instant::now();
        let mut last_summary = self.clock.now();
        loop {
            tokio::select! {
                () = sleep_until(next_step) => {}
                Some(landed) = self.flying.join_next() => {
                    self.land(landed);
                    continue;
                }
                _ = interrupted.recv() => return Ok(true),
            }
            if self
                .plan
                .seconds
                .is_some_and(|seconds| self.clock.elapsed() > seconds)
            {
                return Ok(false);
            }
            self.step()?;
            next_step = Instant::now() + step;
            let now = self.clock.now();
            if now - last_summary > self.plan.log_interval {
                let summary = self.summary([last_summary, now]);
                self.progress.aside(|| told(&summary));
                last_summary = now;
            }
        }
    }

    async fn await_the_last(&mut self, interrupted: &mut Signal) {
        loop {
            let landed = tokio::select! {
                landed = self.flying.join_next() => landed,
                _ = interrupted.recv() => return,
            };
            match landed {
                Some(landed) => self.land(landed),
                None => return,
            }
        }
    }

    fn step(&mut self) -> anyhow::Result<()> {
        self.progress.at(self.clock.elapsed());
        for event in self.schedule.step(self.clock.now()) {
            match event {
                Event::Joined { user } => {
                    let active = self.schedule.active();
                    self.debug(|| tracing::debug!(user, active, "joined"));
                }
                Event::Ask { user, question } => {
                    self.debug(|| tracing::debug!(user, question, "asks"));
                    self.launch(user, question)?;
                }
                Event::Behind { user } => self.progress.aside(|| {
                    tracing::warn!(user, "its request is unfinished, and the next one is due");
                }),
                Event::Ended { user } => {
                    self.sessions.remove(&user);
                    self.rows.ended(user);
                    self.debug(|| tracing::debug!(user, "ended"));
                }
            }
        }
        Ok(())
    }

    /// For those who asked for much: taking the bar away and back costs a redraw.
    fn debug(&self, write: impl FnOnce()) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            self.progress.aside(write);
        }
    }

    fn launch(&mut self, user: u64, question: u64) -> anyhow::Result<()> {
        let session = self
            .sessions
            .entry(user)
            .or_insert_with(|| Session::new(user));
        let (messages, tokens) = session.ask(question, &self.plan.texts)?;
        let (client, clock) = (self.client.clone(), self.clock);
        self.flying.spawn(async move {
            let launch_time = clock.now();
            let result = client.ask(&messages, tokens, Some(user)).await;
            Landed {
                user,
                launch_time,
                result,
                finish_time: clock.now(),
            }
        });
        Ok(())
    }

    fn land(&mut self, landed: Result<Landed, tokio::task::JoinError>) {
        let landed = landed.expect("requests do not panic, and nobody aborts them");
        self.schedule.finished(landed.user);
        let session = self.sessions.get_mut(&landed.user);
        match (&landed.result, session) {
            (Ok(reply), Some(session)) => session.answered(&reply.text),
            (Err(_), Some(session)) => session.failed(),
            (_, None) => {}
        }
        match landed.row(&self.clock) {
            Ok(row) => self.rows.add(row),
            Err(left_out) => self.rows.left_out.push(left_out),
        }
        let flying = self.flying.len();
        self.progress.tell(self.rows.so_far(flying));
    }

    fn summary(&self, window: [f64; 2]) -> Summary {
        let (rows, qps) = (self.rows.table(), self.plan.workload.qps);
        Summary::of_window(&rows, &self.rows.left_out, window, self.flying.len(), qps)
    }
}

impl Landed {
    /// Its row, unless there is no time to first token to put there.
    fn row(&self, clock: &Clock) -> Result<Row, LeftOut> {
        let left_out = |error: Option<String>| LeftOut {
            finish_time: self.finish_time,
            error,
        };
        let reply = match &self.result {
            Ok(reply) => reply,
            Err(error) => return Err(left_out(Some(format!("{error:#}")))),
        };
        let Some(ttft) = reply.ttft else {
            return Err(left_out(None));
        };
        let Some(usage) = reply.usage else {
            return Err(left_out(Some("an answer without usage".into())));
        };
        Ok(Row {
            prompt_tokens: usage.prompt_tokens,
            generation_tokens: usage.completion_tokens,
            ttft: clock.seconds(ttft),
            generation_time: clock.seconds(reply.total - ttft),
            user_id: self.user,
            question_id: 0,
            launch_time: self.launch_time,
            finish_time: self.finish_time,
            cached_tokens: usage.cached_tokens(),
        })
    }
}

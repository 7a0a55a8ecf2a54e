//! What ends and begins with a server's process: the engine of each data-parallel rank and its event
//! sockets. A restart replaces them all behind an HTTP port that stays.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::engine::EngineConfig;
use crate::events::{EventConfig, FaultSwitch, Publisher, Sources};
use crate::runner::{Handle, Runner};
use crate::timing::Timing;

/// Restarts that may be asked for while one is under way.
const ASKED_MAX: usize = 16;
/// For so long the ports of a process that has just ended may be taken still.
const PORTS_FREE_MAX: Duration = Duration::from_secs(5);
/// Between two attempts at them.
const PORTS_LOOK: Duration = Duration::from_millis(10);

/// What every process of a server is made of.
#[derive(Debug)]
pub struct Recipe {
    /// The scheduler and its blocks.
    pub engine: EngineConfig,
    /// Whether the hashes' seed was drawn: then the next process draws its own.
    pub seed_drawn: bool,
    /// The speed.
    pub timing: Timing,
    /// Where each rank publishes, if anywhere; at least one rank.
    pub ranks: Vec<Option<EventConfig>>,
    /// First frame of every message.
    pub topic: String,
    /// What goes wrong with events. It outlives processes.
    pub faults: FaultSwitch,
}

/// How to restart: the body of `POST /sim/restart`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    /// Publish on other ports, any free ones.
    pub change_ports: bool,
    /// Seeds the new process's hashes, in place of what its flags say.
    pub seed: Option<u64>,
}

/// A process, as those see it who ask it something.
#[derive(Debug)]
pub struct Process {
    /// At least one.
    pub ranks: Vec<Rank>,
}

/// A data-parallel rank.
#[derive(Debug)]
pub struct Rank {
    /// Its number.
    pub rank: u32,
    /// The way to its engine. Once it is gone, nothing is answered.
    pub engine: Handle,
    /// Where its events are published, if they are.
    pub sources: Option<Sources>,
}

impl Process {
    /// The rank that is named, or the one with the least to do.
    #[must_use]
    pub fn rank(&self, name: Option<&str>) -> Option<&Rank> {
        match name {
            Some(name) => self.ranks.iter().find(|one| name.parse() == Ok(one.rank)),
            None => self.ranks.iter().min_by_key(|one| {
                let stats = one.engine.stats();
                stats.running + stats.waiting
            }),
        }
    }
}

/// Reaches whichever process runs now.
#[derive(Debug, Clone)]
pub struct Processes {
    now: watch::Receiver<Arc<Process>>,
    ask: mpsc::Sender<(Restart, oneshot::Sender<anyhow::Result<()>>)>,
}

impl Processes {
    /// The one that runs, or that ran last.
    #[must_use]
    pub fn now(&self) -> Arc<Process> {
        Arc::clone(&self.now.borrow())
    }

    /// Whether the server goes on, whatever became of a process.
    #[must_use]
    pub fn go_on(&self) -> bool {
        !self.ask.is_closed()
    }

    /// Ends the process and starts another; returns once that one serves.
    pub async fn restart(&self, how: Restart) -> anyhow::Result<()> {
        let (answer, done) = oneshot::channel();
        let asked = self.ask.send((how, answer)).await;
        asked.ok().context("the server is shutting down")?;
        done.await.context("the server is shutting down")?
    }
}

/// Keeps one process running. Dropping it ends that process.
#[derive(Debug)]
pub struct Supervisor {
    recipe: Recipe,
    tasks: JoinSet<()>,
    now: watch::Sender<Arc<Process>>,
    asked: mpsc::Receiver<(Restart, oneshot::Sender<anyhow::Result<()>>)>,
}

impl Supervisor {
    /// Starts the first process.
    pub async fn start(recipe: Recipe) -> anyhow::Result<(Self, Processes)> {
        let mut tasks = JoinSet::new();
        let process = begin(&recipe, &mut tasks).await?;
        let (now, seen) = watch::channel(Arc::new(process));
        let (ask, asked) = mpsc::channel(ASKED_MAX);
        let supervisor = Self {
            recipe,
            tasks,
            now,
            asked,
        };
        Ok((supervisor, Processes { now: seen, ask }))
    }

    /// Restarts when asked to, and when a fault says so.
    pub async fn run(mut self) {
        let faults = self.recipe.faults.clone();
        loop {
            tokio::select! {
                asked = self.asked.recv() => {
                    let Some((how, answer)) = asked else { return };
                    let done = self.restart(how).await;
                    // Nobody waits any more if the client hung up.
                    let _ = answer.send(done);
                }
                change_ports = faults.restart_due() => {
                    let how = Restart { change_ports, ..Restart::default() };
                    if let Err(error) = self.restart(how).await {
                        tracing::error!(error = format!("{error:#}"), "no process runs");
                    }
                }
            }
        }
    }

    async fn restart(&mut self, how: Restart) -> anyhow::Result<()> {
        self.tasks.shutdown().await;
        // It restarts once, however many ranks asked for it.
        let _ = self.recipe.faults.restart_due().now_or_never();
        let seed = &mut self.recipe.engine.hash_seed;
        if let Some(given) = how.seed {
            *seed = given;
        } else if self.recipe.seed_drawn {
            *seed = RandomState::new().hash_one(*seed);
        }
        for (events, rank) in self.recipe.ranks.iter_mut().zip(&self.now.borrow().ranks) {
            if let (Some(events), Some(bound)) = (events, &rank.sources) {
                *events = events.after(bound, how.change_ports);
            }
        }
        let begun = Instant::now();
        let process = loop {
            // Sockets are closed by tasks that end after the ones that used them.
            match begin(&self.recipe, &mut self.tasks).await {
                Ok(process) => break process,
                Err(error) if begun.elapsed() > PORTS_FREE_MAX => return Err(error),
                Err(_taken) => self.tasks.shutdown().await,
            }
            sleep(PORTS_LOOK).await;
        };
        self.now.send_replace(Arc::new(process));
        Ok(())
    }
}

/// Starts a process's tasks.
async fn begin(recipe: &Recipe, tasks: &mut JoinSet<()>) -> anyhow::Result<Process> {
    let mut ranks = Vec::new();
    for (offset, events) in (0..).zip(&recipe.ranks) {
        let (mut publisher, mut sources) = (None, None);
        if let Some(events) = events {
            let topic = recipe.topic.clone();
            let started = Publisher::start(events, topic, &recipe.faults, tasks).await;
            let (started, bound) = started?;
            (publisher, sources) = (Some(started), Some(bound));
        }
        let (runner, engine) = Runner::new(recipe.engine.clone(), recipe.timing, publisher);
        tasks.spawn(runner.run());
        ranks.push(Rank {
            rank: events.as_ref().map_or(offset, |events| events.rank),
            engine,
            sources,
        });
    }
    Ok(Process { ranks })
}

//! The engine's own task: takes requests in between steps, lets each step last as long as it
//! would, hands out tokens, publishes events.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::engine::{Emission, Engine, EngineConfig, Request, RequestId, Stats};
use crate::events::Publisher;
use crate::timing::Timing;

/// Requests on their way to the engine; beyond it, their handlers wait.
const INBOX_MAX: usize = 1024;
/// How far a machine too slow for its timing may lag behind before it gives up catching up.
const LAG_MAX: Duration = Duration::from_millis(100);

/// A token for one choice of a client's request.
#[derive(Debug, Clone, Copy)]
pub struct Spoken {
    /// Index among the requests submitted together.
    pub choice: usize,
    /// The token, and whether it is the last.
    pub emission: Emission,
}

/// The answers to requests submitted together. Dropping it aborts what is unfinished.
pub type Answers = mpsc::Receiver<Spoken>;

/// Reaches the engine from any task.
#[derive(Debug, Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Command>,
    stats: watch::Receiver<Stats>,
}

#[derive(Debug)]
enum Command {
    Submit(Vec<Request>, mpsc::Sender<Spoken>),
    Reset(oneshot::Sender<bool>),
    Copies(oneshot::Sender<BTreeMap<u64, usize>>),
}

impl Handle {
    /// Queues requests that are answered through one channel, which has room for every token
    /// that they will get: the engine never waits for a client.
    pub async fn submit(&self, requests: Vec<Request>) -> Answers {
        let tokens: usize = requests.iter().map(|request| request.output.len()).sum();
        let (speaker, answers) = mpsc::channel(tokens.max(1));
        // A server that shuts down answers nothing: the channel closes at once.
        let _ = self.inbox.send(Command::Submit(requests, speaker)).await;
        answers
    }

    /// Empties the prefix cache once the step under way has ended; false while requests run.
    pub async fn reset_prefix_cache(&self) -> bool {
        let (answer, result) = oneshot::channel();
        let _ = self.inbox.send(Command::Reset(answer)).await;
        result.await.unwrap_or(false)
    }

    /// What the cache can offer, between two steps: physical copies by hash.
    pub async fn copies(&self) -> BTreeMap<u64, usize> {
        let (answer, result) = oneshot::channel();
        let _ = self.inbox.send(Command::Copies(answer)).await;
        result.await.unwrap_or_default()
    }

    /// How busy the engine was when it last changed.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats.borrow().clone()
    }
}

/// Owns an engine.
#[derive(Debug)]
pub struct Runner {
    engine: Engine,
    timing: Timing,
    publisher: Option<Publisher>,
    inbox: mpsc::Receiver<Command>,
    stats: watch::Sender<Stats>,
    /// Who waits for which request's tokens.
    seats: HashMap<RequestId, (usize, mpsc::Sender<Spoken>)>,
    resets: Vec<oneshot::Sender<bool>>,
    /// Batches of events so far.
    batches: u64,
    /// A fault asks for a reset, which waits until no request runs.
    reset_due: bool,
}

impl Runner {
    /// A runner to be run, and the way to reach it.
    #[must_use]
    pub fn new(
        config: EngineConfig,
        timing: Timing,
        publisher: Option<Publisher>,
    ) -> (Self, Handle) {
        let (commands, inbox) = mpsc::channel(INBOX_MAX);
        let (stats, seen) = watch::channel(Stats::default());
        let runner = Self {
            engine: Engine::new(config),
            timing,
            publisher,
            inbox,
            stats,
            seats: HashMap::new(),
            resets: Vec::new(),
            batches: 0,
            reset_due: false,
        };
        let handle = Handle {
            inbox: commands,
            stats: seen,
        };
        (runner, handle)
    }

    /// Runs until every handle is gone.
    pub async fn run(mut self) {
        let mut clock = Instant::now();
        loop {
            let Some(work) = self.engine.begin_step() else {
                self.report();
                let Some(command) = self.inbox.recv().await else {
                    return;
                };
                self.obey(command);
                self.obey_all();
                clock = Instant::now();
                continue;
            };
            self.report();
            // The next step starts when this one should have ended, not when the timer
            // noticed: timers are coarser than steps.
            clock = clock.max(Instant::now() - LAG_MAX) + self.timing.step(work);
            sleep_until(clock).await;
            self.end_step().await;
        }
    }

    /// Hang-ups count before the step's tokens do, as in vLLM's `EngineCore.step`.
    async fn end_step(&mut self) {
        self.obey_all_but_resets();
        self.abort_the_abandoned();
        let outcome = self.engine.finish_step();
        if let Some(publisher) = self
            .publisher
            .as_ref()
            .filter(|_| !outcome.events.is_empty())
        {
            publisher.publish(outcome.events).await;
            self.batches += 1;
            self.reset_due |= publisher.is_reset_due(self.batches);
        }
        for emission in outcome.emissions {
            self.speak(emission);
        }
        self.reset();
    }

    fn obey_all_but_resets(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            self.obey(command);
        }
    }

    fn obey_all(&mut self) {
        self.obey_all_but_resets();
        self.reset();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(requests, speaker) => {
                for (choice, request) in requests.into_iter().enumerate() {
                    if let Some(id) = self.engine.submit(request) {
                        self.seats.insert(id, (choice, speaker.clone()));
                    }
                }
            }
            Command::Reset(answer) => self.resets.push(answer),
            Command::Copies(answer) => {
                // Nobody waits any more if the client hung up.
                let _ = answer.send(self.engine.copies());
            }
        }
    }

    fn reset(&mut self) {
        for answer in std::mem::take(&mut self.resets) {
            // Nobody waits any more if the client hung up.
            let _ = answer.send(self.engine.reset_prefix_cache());
        }
        self.reset_due = self.reset_due && !self.engine.reset_prefix_cache();
    }

    fn abort_the_abandoned(&mut self) {
        let engine = &mut self.engine;
        self.seats.retain(|&id, (_, speaker)| {
            let abandoned = speaker.is_closed();
            if abandoned {
                engine.abort(id);
            }
            !abandoned
        });
    }

    fn speak(&mut self, emission: Emission) {
        let Some((choice, speaker)) = self.seats.get(&emission.request) else {
            return;
        };
        let choice = *choice;
        // A client that hung up meanwhile is noticed at the end of the next step.
        let _ = speaker.try_send(Spoken { choice, emission });
        if emission.last {
            self.seats.remove(&emission.request);
        }
    }

    fn report(&self) {
        self.stats.send_replace(self.engine.stats());
    }
}

//! What can go wrong between an engine and those who hear it, from a seed, changeable at run time.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use tokio::sync::Notify;

use crate::dice::Dice;

/// What goes wrong. Shares are of batches, 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Share of batches that are not sent live, but can be replayed
    #[arg(long = "fault-drop", value_name = "SHARE", default_value_t = 0.0)]
    pub drop: f64,
    /// Share that is sent twice
    #[arg(long = "fault-duplicate", value_name = "SHARE", default_value_t = 0.0)]
    pub duplicate: f64,
    /// Share that is sent behind the next one
    #[arg(long = "fault-reorder", value_name = "SHARE", default_value_t = 0.0)]
    pub reorder: f64,
    /// Share whose bytes arrive damaged; a replay has them whole
    #[arg(long = "fault-corrupt", value_name = "SHARE", default_value_t = 0.0)]
    pub corrupt: f64,
    /// Share that takes a sequence number and is lost for good, as vLLM 0.9.2 loses what it
    /// cannot encode
    #[arg(long = "fault-hole", value_name = "SHARE", default_value_t = 0.0)]
    pub hole: f64,
    /// Milliseconds that every batch is late
    #[arg(long = "fault-delay-ms", value_name = "MS", default_value_t = 0)]
    pub delay_ms: u64,
    /// Send nothing at all
    #[arg(long = "fault-silent")]
    pub silent: bool,
    /// How questions for a replay are answered
    #[arg(long = "fault-replay", value_enum, default_value_t = ReplayFault::None)]
    pub replay: ReplayFault,
    /// Batches that can be replayed; vLLM keeps 10,000
    #[arg(long, value_name = "N", default_value_t = super::REPLAYABLE_BATCHES_MAX)]
    pub replay_batches: usize,
    /// Restart the process once a rank of it has published so many batches; 0 is never
    #[arg(
        long = "fault-restart-every",
        value_name = "BATCHES",
        default_value_t = 0
    )]
    pub restart_every: u64,
    /// Such a restart takes other ports; GET /kv_event_sources tells which
    #[arg(long = "fault-restart-ports")]
    pub restart_ports: bool,
    /// Reset the prefix cache after every so many batches, once no request runs; 0 is never
    #[arg(
        long = "fault-reset-every",
        value_name = "BATCHES",
        default_value_t = 0
    )]
    pub reset_every: u64,
    /// Decides which batches it happens to
    #[arg(
        id = "fault_seed",
        long = "fault-seed",
        value_name = "NUMBER",
        default_value_t = 0
    )]
    pub seed: u64,
}

/// How a replay fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ReplayFault {
    /// Not at all.
    #[default]
    None,
    /// Nothing is answered.
    Dead,
    /// A millisecond lies between two answers.
    Slow,
    /// It ends in the middle, without its end marker.
    Truncated,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            drop: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            corrupt: 0.0,
            hole: 0.0,
            delay_ms: 0,
            silent: false,
            replay: ReplayFault::None,
            replay_batches: super::REPLAYABLE_BATCHES_MAX,
            restart_every: 0,
            restart_ports: false,
            reset_every: 0,
            seed: 0,
        }
    }
}

/// What happens to one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Sent,
    Dropped,
    Twice,
    Behind,
    Damaged,
    Lost,
}

/// Faults that an operator changes while a server runs.
#[derive(Debug, Clone, Default)]
pub struct FaultSwitch {
    state: Arc<Mutex<State>>,
    restart: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    dice: Dice,
}

impl State {
    fn new(faults: Faults) -> Self {
        let dice = Dice::new(faults.seed);
        Self { faults, dice }
    }
}

impl FaultSwitch {
    /// One that begins with these.
    #[must_use]
    pub fn new(faults: Faults) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(faults))),
            restart: Arc::default(),
        }
    }

    /// Changes them; the draws begin anew.
    pub fn set(&self, faults: Faults) {
        *self.lock() = State::new(faults);
    }

    /// As they are now.
    #[must_use]
    pub fn get(&self) -> Faults {
        self.lock().faults.clone()
    }

    /// A process has published as much as it was to.
    pub(super) fn ask_restart(&self) {
        self.restart.notify_one();
    }

    /// Waits until a process is to be restarted; whether on other ports.
    pub(crate) async fn restart_due(&self) -> bool {
        self.restart.notified().await;
        self.get().restart_ports
    }

    /// Decides about the next batch.
    pub(super) fn draw(&self) -> Fate {
        let mut state = self.lock();
        let mut share = state.dice.share();
        let faults = &state.faults;
        if faults.silent {
            return Fate::Dropped;
        }
        for (of, fate) in [
            (faults.drop, Fate::Dropped),
            (faults.duplicate, Fate::Twice),
            (faults.reorder, Fate::Behind),
            (faults.corrupt, Fate::Damaged),
            (faults.hole, Fate::Lost),
        ] {
            if share < of {
                return fate;
            }
            share -= of;
        }
        Fate::Sent
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(seed: u64) -> Vec<Fate> {
        let switch = FaultSwitch::new(Faults {
            drop: 0.25,
            hole: 0.25,
            seed,
            ..Faults::default()
        });
        (0..1_000).map(|_| switch.draw()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_fates_in_their_shares() {
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        for fate in [Fate::Dropped, Fate::Lost] {
            let count = fates(7).into_iter().filter(|drawn| *drawn == fate).count();
            assert!((200..300).contains(&count), "{fate:?}: {count}");
        }
    }
}

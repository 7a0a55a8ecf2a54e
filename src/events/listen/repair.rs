//! What was not heard is asked for, and a doubtful picture is learnt again.

use std::time::{Duration, Instant};

use bytes::Bytes;
use memchr::memmem;
use tokio::sync::OwnedSemaphorePermit;

use super::listener::Listener;
use crate::blocks::BlockEvent;
use crate::events::discover::ReplayAt;
use crate::events::follow::{Followed, Follower};
use crate::events::replay::{Replay, ReplayEnd, replay};
use crate::events::tap::Untapped;
use crate::events::wire;
use crate::events::zmq::Limits;
use crate::fleet::Trust;
/// How a server is asked for what was not heard. Where there is a bridge, that does it.
#[derive(Debug)]
pub(super) struct Asking {
    pub at: ReplayAt,
    pub limits: Limits,
}

/// A replay, and the turn that it takes until it is dropped.
struct Fetched {
    replay: Replay,
    _turn: OwnedSemaphorePermit,
}

/// What a replay was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// All that was asked for.
    Whole,
    /// Some of it, or nothing.
    Partial,
    /// Another process answered than the one that we heard.
    Stranger,
}

/// Replays at once, over the fleet: each may take `replay_bytes_max` of memory.
pub(super) const REPLAYS_MAX: usize = 4;
/// Batches applied before other tasks get a turn: about a millisecond.
const REPLAYED_AT_ONCE: u64 = 64;
/// Half a second is enough for the 10,000 batches that vLLM keeps, even when some are lost on the
/// way and asked for again.
const REPLAY_MAX: Duration = Duration::from_secs(10);
/// Between two replays of one server: each is work for its publisher thread.
const REPLAY_PAUSE: Duration = Duration::from_secs(30);
/// Between two attempts to learn a doubtful picture again, doubled up to the second: each asks for
/// all that the server keeps.
pub(super) const RELEARN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// Whether a replay tells more than what is held: all since the server's start, or since its cache
/// was empty. What is older than its first batch would be thrown away with what is held.
fn tells_all(replay: &Replay) -> bool {
    if replay.end != ReplayEnd::Complete || replay.batches.is_empty() {
        return false;
    }
    let gapless = replay.gaps().last().map_or(0, |(_, next)| next);
    let clears = |payload: &[u8]| {
        let named = memmem::find(payload, b"AllBlocksCleared").is_some();
        let cleared = |batch: wire::Batch| batch.events.contains(&BlockEvent::Cleared);
        named && wire::decode(payload).is_ok_and(cleared)
    };
    let mut since = replay.batches.range(gapless..);
    !replay.starts_late() || since.any(|(_, batch)| clears(&batch.payload))
}

impl Listener {
    /// Where a gap stayed, the server may still keep everything since its start, or since its cache
    /// was empty: a replay that was cut short or slow may be whole by now. There may be holes in it
    /// that nothing fills; whether the cache was empty since, the batches say.
    pub(super) async fn learn_again(&mut self, follower: &mut Follower) {
        let doubtful = follower.verdict().trust == Trust::Doubtful;
        // What was given up for room would be again.
        let for_room = self.index.gave_up(self.endpoint.id);
        if !doubtful || for_room || follower.position().is_none() {
            self.relearn_wait = RELEARN.0;
            return;
        }
        let early = |after| Instant::now() < after;
        if !self.can_ask() || self.relearn_after.is_some_and(early) {
            return;
        }
        self.relearn_after = Some(Instant::now() + self.relearn_wait);
        self.relearn_wait = (self.relearn_wait * 2).min(RELEARN.1);
        let fetched = self.fetch(0).await;
        let Some(fetched) = fetched.filter(|fetched| tells_all(&fetched.replay)) else {
            return;
        };
        tracing::info!(endpoint = self.endpoint.name, "learning again");
        self.metrics.relearnt.increment(1);
        follower.on_restarted(&self.index);
        if self.take_replay(follower, &fetched.replay).await.is_ok() {
            // A past that cannot be true is no more so for having been told twice.
            self.hold_against_capacity(follower);
            let verdict = follower.verdict();
            self.trust(verdict.trust, &verdict.reason);
        }
    }

    /// Asks the server for what was not heard, if it can replay. The live stream waits in its
    /// queue meanwhile. Whatever is still missing shows when the live batch is taken.
    pub(super) async fn repair(&mut self, follower: &mut Follower, from_seq: u64) {
        // A server that cannot fill a gap is not asked again at once.
        let early = |after| Instant::now() < after;
        if !self.can_ask() || self.replay_after.is_some_and(early) {
            return;
        }
        self.trust(
            Trust::Learning,
            &format!("asking for what came from batch {from_seq} on"),
        );
        let answer = match self.ask(follower, from_seq).await {
            Answer::Stranger => self.ask(follower, 0).await,
            answer => answer,
        };
        match answer {
            Answer::Whole => &self.metrics.repairs_whole,
            Answer::Partial => &self.metrics.repairs_partial,
            Answer::Stranger => &self.metrics.repairs_stranger,
        }
        .increment(1);
        if answer != Answer::Whole {
            self.replay_after = Some(Instant::now() + REPLAY_PAUSE);
        }
    }

    /// Whether it is known where to ask for a replay.
    pub(super) fn can_ask(&self) -> bool {
        let asking = self.asking.as_ref();
        asking.is_some_and(|asking| asking.at.get().is_some())
    }

    async fn ask(&mut self, follower: &mut Follower, from_seq: u64) -> Answer {
        let Some(fetched) = self.fetch(from_seq).await else {
            return Answer::Partial;
        };
        let replay = &fetched.replay;
        let last = replay.batches.get(&from_seq);
        let last = last.map(|batch| &batch.payload[..]);
        if !follower.on_recognition(&self.index, last) {
            return Answer::Stranger;
        }
        // Where nobody takes it, the next live batch shows so.
        let taken = self.take_replay(follower, replay).await;
        let whole = replay.end == ReplayEnd::Complete && replay.gaps().next().is_none();
        match taken.is_ok() && whole {
            true => Answer::Whole,
            false => Answer::Partial,
        }
    }

    /// What the server still keeps from a batch on; none where it does not answer.
    async fn fetch(&self, from_seq: u64) -> Option<Fetched> {
        let Asking { at, limits } = self.asking.as_ref()?;
        let address = &at.get()?;
        // Closed only where the app is gone.
        let turn = self.replays.clone().acquire_owned().await.ok()?;
        let endpoint = self.endpoint.name.as_str();
        match replay(address, from_seq, REPLAY_MAX, limits).await {
            Ok(replay) => {
                tracing::info!(endpoint, batches = replay.batches.len(), from_seq, end = ?replay.end, "replayed");
                Some(Fetched {
                    replay,
                    _turn: turn,
                })
            }
            Err(error) => {
                tracing::warn!(endpoint, error = ?error.to_string(), address, "no replay");
                None
            }
        }
    }

    async fn take_replay(
        &mut self,
        follower: &mut Follower,
        replay: &Replay,
    ) -> Result<(), Untapped> {
        for (seq, batch) in &replay.batches {
            self.take_replayed(follower, *seq, &batch.payload).await?;
        }
        Ok(())
    }

    /// Takes one batch of a replay, and gives it to the tap.
    async fn take_replayed(
        &mut self,
        follower: &mut Follower,
        seq: u64,
        payload: &Bytes,
    ) -> Result<(), Untapped> {
        let followed = follower.on_replayed(&self.index, seq, payload);
        self.judge(&followed, follower.verdict().trust);
        let taken = followed.taken;
        self.count(&Followed {
            timestamp: None,
            ..followed
        });
        if seq.is_multiple_of(REPLAYED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
        match taken {
            true => self.tap_batch(follower, seq, payload).await,
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Batch;

    /// A replay from 0 of these batches; a `c` clears the cache, a `-` is missing.
    fn replay(from: u64, batches: &str) -> Replay {
        let batch = |(seq, kind)| {
            let event = match kind {
                'c' => ("AllBlocksCleared",),
                _ => ("BlockMoved",),
            };
            let payload = rmp_serde::to_vec(&(1.0, (event,), 0)).expect("packs");
            let (topic, payload) = (Bytes::new(), payload.into());
            let batch = Batch {
                topic,
                seq,
                payload,
            };
            (kind != '-').then_some((seq, batch))
        };
        Replay {
            asked_seq: 0,
            batches: (from..).zip(batches.chars()).filter_map(batch).collect(),
            end: ReplayEnd::Complete,
        }
    }

    #[test]
    fn what_is_held_is_thrown_away_only_for_all_that_there_is() {
        assert!(tells_all(&replay(0, "..-.")));
        assert!(tells_all(&replay(9, "..-.c.")));
        assert!(
            !tells_all(&replay(9, "....")),
            "its ring has forgotten the start"
        );
        assert!(
            !tells_all(&replay(9, ".c.-.")),
            "blocks may be missing since"
        );
        assert!(!tells_all(&replay(9, "")));
        let cut = Replay {
            end: ReplayEnd::Truncated {
                reason: "late".to_owned(),
            },
            ..replay(0, "...")
        };
        assert!(!tells_all(&cut));
    }
}

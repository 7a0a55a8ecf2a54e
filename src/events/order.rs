//! What a sequence number means, given those before it. Pure: one [`Order`] per endpoint.
//!
//! vLLM numbers its batches from 0, one up each, per process and data-parallel rank. A number
//! is also consumed by a batch that fails to encode (0.9.2 with sha256), so a gap may be one
//! that no replay can fill.

use std::collections::BTreeMap;

/// Where an endpoint's stream stands.
#[derive(Debug, Default, Clone)]
pub struct Order {
    next: Option<u64>,
}

/// What a batch is to the stream so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The engine's very first: what follows is complete.
    First,
    /// The one expected.
    Next,
    /// The first that we hear, and the engine published `missed` before it.
    Late {
        /// Batches before this one.
        missed: u64,
    },
    /// `missed` batches lie between the last and this one.
    Gap {
        /// Batches lost.
        missed: u64,
    },
    /// The number fell: another process publishes now, and `missed` of its batches are lost.
    Restart {
        /// Batches of the new process before this one.
        missed: u64,
    },
}

impl Order {
    /// After a batch that is known.
    #[must_use]
    pub fn after(seq: u64) -> Self {
        Self {
            next: Some(seq.saturating_add(1)),
        }
    }

    /// The first batch that would be missing if `seq` came now; none where nothing would.
    #[must_use]
    pub fn missing_before(&self, seq: u64) -> Option<u64> {
        match self.clone().place(seq) {
            Place::First | Place::Next => None,
            Place::Late { missed } | Place::Restart { missed } => (missed > 0).then_some(0),
            Place::Gap { missed } => Some(seq - missed),
        }
    }

    /// Whether `seq` was expected earlier: it comes again, late, or from another process.
    #[must_use]
    pub fn has_passed(&self, seq: u64) -> bool {
        self.next
            .is_some_and(|next| seq < next && next - seq <= LATE_BATCHES_MAX)
    }

    /// Places the batch numbered `seq` and moves on to it.
    pub fn place(&mut self, seq: u64) -> Place {
        let place = match self.next {
            None if seq == 0 => Place::First,
            None => Place::Late { missed: seq },
            Some(next) if seq == next => Place::Next,
            Some(next) if seq > next => Place::Gap { missed: seq - next },
            Some(_) => Place::Restart { missed: seq },
        };
        self.next = Some(seq.saturating_add(1));
        place
    }
}

/// What a bridge says of a batch beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The engine's process.
    pub epoch: u64,
    /// The publisher's count.
    pub seq: u64,
    /// The batch of the same process that the bridge published before; none before the first.
    pub prev: Option<u64>,
}

/// Puts what a bridge published into order: a message that was sent again may come late, or
/// twice. A hole that the bridge itself could not fill shows in the sequence numbers.
#[derive(Debug)]
pub struct Links<T> {
    last: Option<(u64, u64)>,
    /// What came before what it follows, by sequence number.
    held: BTreeMap<u64, (Stamp, T)>,
}

/// What to do with a message, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Linked<T> {
    /// Everything before came from another process.
    Restarted,
    /// The next batch.
    Next(Stamp, T),
}

/// Batches that a late one may come behind: a socket keeps what is far apart in order.
const LATE_BATCHES_MAX: u64 = 16;

/// Messages that are held while one is missing: at 100 batches a second, a busy server's rate,
/// ten seconds of them.
const HELD_MAX: usize = 1_000;

impl<T> Links<T> {
    /// After a process's batch; none where nothing is known.
    #[must_use]
    pub fn after(last: Option<(u64, u64)>) -> Self {
        Self {
            last,
            held: BTreeMap::new(),
        }
    }

    /// The process and the batch that everything has come up to.
    #[must_use]
    pub fn last(&self) -> Option<(u64, u64)> {
        self.last
    }

    /// Whether something is held since what it follows is missing.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes a message. `None` where too many wait: what is missing will not come.
    pub fn take(&mut self, stamp: Stamp, message: T) -> Option<Vec<Linked<T>>> {
        let mut steps = Vec::new();
        match self.last {
            Some((epoch, last)) if epoch == stamp.epoch => {
                if stamp.seq <= last {
                    return Some(steps);
                }
                if stamp.prev.is_some_and(|prev| prev > last) {
                    self.held.insert(stamp.seq, (stamp, message));
                    return (self.held.len() <= HELD_MAX).then_some(steps);
                }
            }
            Some(_) => {
                self.held.clear();
                steps.push(Linked::Restarted);
            }
            None => {}
        }
        self.last = Some((stamp.epoch, stamp.seq));
        steps.push(Linked::Next(stamp, message));
        self.release(&mut steps);
        Some(steps)
    }

    /// What was held and need not wait any longer.
    fn release(&mut self, steps: &mut Vec<Linked<T>>) {
        while let (Some(first), Some((_, last))) = (self.held.first_entry(), self.last) {
            if first.get().0.prev.is_some_and(|prev| prev > last) {
                return;
            }
            let (stamp, message) = first.remove();
            if stamp.seq > last {
                self.last = Some((stamp.epoch, stamp.seq));
                steps.push(Linked::Next(stamp, message));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(seqs: &[u64]) -> Vec<Place> {
        let mut order = Order::default();
        seqs.iter().map(|seq| order.place(*seq)).collect()
    }

    #[test]
    fn a_stream_heard_from_its_start_is_complete() {
        assert_eq!(places(&[0, 1, 2]), [Place::First, Place::Next, Place::Next]);
    }

    /// What comes of messages (epoch, seq, prev) after batch 2 of process 1: a number for a batch,
    /// 0 for another process.
    fn linked(messages: &[(u64, u64, Option<u64>)]) -> Vec<u64> {
        let mut links = Links::after(Some((1, 2)));
        let steps = messages.iter().flat_map(|(epoch, seq, prev)| {
            let stamp = Stamp {
                epoch: *epoch,
                seq: *seq,
                prev: *prev,
            };
            links.take(stamp, ()).expect("few are held")
        });
        let number = |step| match step {
            Linked::Restarted => 0,
            Linked::Next(stamp, ()) => stamp.seq,
        };
        steps.map(number).collect()
    }

    #[test]
    fn what_a_bridge_sent_again_is_put_into_order_and_taken_once() {
        let late = [
            (1, 4, Some(3)),
            (1, 5, Some(4)),
            (1, 3, Some(2)),
            (1, 4, Some(3)),
            (1, 6, Some(5)),
        ];
        assert_eq!(linked(&late), [3, 4, 5, 6]);
        assert!(linked(&[(1, 1, None), (1, 2, Some(1))]).is_empty());
    }

    #[test]
    fn a_hole_that_the_bridge_could_not_fill_is_not_waited_for() {
        assert_eq!(linked(&[(1, 9, Some(2)), (1, 10, Some(9))]), [9, 10]);
    }

    #[test]
    fn another_process_is_told_once_and_ends_the_wait() {
        let messages = [
            (1, 5, Some(4)),
            (2, 7, None),
            (2, 8, Some(7)),
            (2, 12, Some(11)),
        ];
        assert_eq!(linked(&messages), [0, 7, 8]);
    }

    #[test]
    fn a_wait_has_an_end() {
        let mut links = Links::after(Some((1, 0)));
        let mut take = |seq| {
            let prev = Some(seq - 1);
            links.take(
                Stamp {
                    epoch: 1,
                    seq,
                    prev,
                },
                (),
            )
        };
        assert!((2..1_002).all(|seq| take(seq).is_some_and(|steps| steps.is_empty())));
        assert!(take(1_002).is_none());
    }

    #[test]
    fn joining_late_is_not_a_gap_but_not_complete_either() {
        assert_eq!(places(&[7, 8]), [Place::Late { missed: 7 }, Place::Next]);
    }

    #[test]
    fn every_lost_batch_is_noticed() {
        assert_eq!(places(&[0, 3]), [Place::First, Place::Gap { missed: 2 }]);
    }

    #[test]
    fn what_is_missing_is_asked_for_from_its_first_batch() {
        let missing = |heard: &[u64], seq| {
            let mut order = Order::default();
            heard.iter().for_each(|seq| {
                order.place(*seq);
            });
            order.missing_before(seq)
        };
        assert_eq!(
            (missing(&[], 0), missing(&[0, 1], 2), missing(&[7], 0)),
            (None, None, None)
        );
        assert_eq!(
            (missing(&[], 9), missing(&[0, 1], 9), missing(&[7], 3)),
            (Some(0), Some(2), Some(0))
        );
    }

    #[test]
    fn a_falling_number_is_another_process() {
        assert_eq!(
            places(&[5, 0, 1])[1..],
            [Place::Restart { missed: 0 }, Place::Next]
        );
        assert_eq!(places(&[5, 6, 3])[2], Place::Restart { missed: 3 });
    }
}

//! The deliveries between a socket that must be read at once and a consumer that may take its
//! time: bounded in messages and in bytes, and never a reason to wait for whoever fills it.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Delivery;

/// What an entry costs besides its bytes: two handles, a number, an allocation's header.
const ENTRY_BYTES: usize = 128;

/// How full a queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Deliveries that wait.
    pub messages: usize,
    /// What they hold.
    pub bytes: usize,
}

/// Many may fill it, one may empty it.
#[derive(Debug)]
pub(super) struct Queue {
    messages_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Delivery>,
    bytes: usize,
    /// What found no room since the last entry: messages by number, and of the changes of the
    /// link only the last, so that a flapping link cannot fill memory.
    lost: u64,
    link: Option<Delivery>,
    closed: bool,
}

impl Queue {
    /// Holds at most `messages_max` messages, of at most `bytes_max` bytes; an empty queue
    /// takes any one message.
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self {
            messages_max,
            bytes_max,
            state: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    /// Appends, or throws `delivery` away and remembers to say so.
    pub(super) fn push(&self, delivery: Delivery) {
        let mut state = self.state.lock();
        let bytes = state.bytes + cost(&delivery);
        let fits = state.entries.len() < self.messages_max && bytes <= self.bytes_max;
        if fits || state.entries.is_empty() {
            state.settle();
            state.append(delivery);
        } else if is_message(&delivery) {
            state.lost += 1;
        } else {
            state.link = Some(delivery);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// The next delivery, or `None` once the queue is closed and empty. Cancel-safe.
    pub(super) async fn pop(&self) -> Option<Delivery> {
        loop {
            // The lock is gone before the wait; a push in between leaves its notice behind.
            match self.state.lock().take() {
                (None, false) => {}
                (delivery, _) => return delivery,
            }
            self.arrived.notified().await;
        }
    }

    /// Nothing will be pushed any more.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Whether nobody takes any more.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    pub(super) fn depth(&self) -> Depth {
        let state = self.state.lock();
        Depth {
            messages: state.entries.len(),
            bytes: state.bytes,
        }
    }
}

impl State {
    fn take(&mut self) -> (Option<Delivery>, bool) {
        if self.entries.is_empty() {
            self.settle();
        }
        let delivery = self.entries.pop_front();
        self.bytes -= delivery.as_ref().map_or(0, cost);
        (delivery, self.closed)
    }

    /// Turns what found no room into entries: at most two beyond the limit.
    fn settle(&mut self) {
        let messages = std::mem::take(&mut self.lost);
        if messages > 0 {
            self.append(Delivery::Overrun { messages });
        }
        if let Some(link) = self.link.take() {
            self.append(link);
        }
    }

    fn append(&mut self, delivery: Delivery) {
        self.bytes += cost(&delivery);
        self.entries.push_back(delivery);
    }
}

fn is_message(delivery: &Delivery) -> bool {
    matches!(delivery, Delivery::Batch(_) | Delivery::Malformed { .. })
}

fn cost(delivery: &Delivery) -> usize {
    ENTRY_BYTES
        + match delivery {
            Delivery::Batch(batch) => batch.topic.len() + batch.payload.len(),
            Delivery::Malformed { reason }
            | Delivery::Disconnected { reason }
            | Delivery::Doubted { reason, .. } => reason.len(),
            // The last three come from a bridge alone, which has no queue of this kind.
            Delivery::Connected
            | Delivery::Overrun { .. }
            | Delivery::Snapshot(_)
            | Delivery::Restarted
            | Delivery::Resumed => 0,
        }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::Batch;
    use super::*;

    fn batch(seq: u64) -> Delivery {
        Delivery::Batch(Batch {
            topic: Bytes::new(),
            seq,
            payload: Bytes::from_static(&[0; 100]),
        })
    }

    fn taken(queue: &Queue) -> Vec<Delivery> {
        std::iter::from_fn(|| queue.state.lock().take().0).collect()
    }

    #[test]
    fn the_newest_are_lost_and_counted_where_they_would_have_stood() {
        let queue = Queue::new(2, usize::MAX);
        (0..5).for_each(|seq| queue.push(batch(seq)));
        assert_eq!(queue.state.lock().take().0, Some(batch(0)));
        queue.push(batch(5));
        let lost = Delivery::Overrun { messages: 3 };
        assert_eq!(taken(&queue), [batch(1), lost, batch(5)]);
    }

    #[test]
    fn a_loss_is_told_though_nothing_follows() {
        let queue = Queue::new(1, usize::MAX);
        (0..3).for_each(|seq| queue.push(batch(seq)));
        assert_eq!(taken(&queue), [batch(0), Delivery::Overrun { messages: 2 }]);
    }

    #[test]
    fn bytes_are_a_limit_of_their_own() {
        let queue = Queue::new(100, 500);
        (0..100).for_each(|seq| queue.push(batch(seq)));
        let full = Depth {
            messages: 2,
            bytes: 456,
        };
        assert_eq!(queue.depth(), full);
        assert_eq!(taken(&queue).len(), 3);
        assert_eq!(queue.depth(), Depth::default());
    }

    #[test]
    fn a_flapping_link_takes_no_memory() {
        let queue = Queue::new(1, usize::MAX);
        queue.push(batch(0));
        for _ in 0..1_000 {
            queue.push(Delivery::Disconnected {
                reason: "gone".into(),
            });
            queue.push(Delivery::Connected);
        }
        assert_eq!(taken(&queue), [batch(0), Delivery::Connected]);
    }

    #[tokio::test]
    async fn a_closed_queue_is_emptied_first() {
        let queue = Queue::new(1, usize::MAX);
        queue.push(batch(0));
        queue.close();
        assert_eq!(queue.pop().await, Some(batch(0)));
        assert_eq!(queue.pop().await, None);
    }
}

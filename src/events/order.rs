//! What a sequence number means, given those before it. Pure: one [`Order`] per endpoint.
//!
//! vLLM numbers its batches from 0, one up each, per process and data-parallel rank. A number
//! is also consumed by a batch that fails to encode (0.9.2 with sha256), so a gap may be one
//! that no replay can fill.

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
    /// The first batch that would be missing if `seq` came now; none where nothing would.
    #[must_use]
    pub fn missing_before(&self, seq: u64) -> Option<u64> {
        match self.clone().place(seq) {
            Place::First | Place::Next => None,
            Place::Late { missed } | Place::Restart { missed } => (missed > 0).then_some(0),
            Place::Gap { missed } => Some(seq - missed),
        }
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

//! One rank's messages, and how far they were applied.

use bytes::Bytes;

use super::line::Moment;
use crate::blocks::{BlockEvent, Stored, TokenId};
use crate::events::follow::{Followed, Follower};
use crate::events::wire;
use crate::fleet::{EndpointId, Trust};
use crate::index::Index;

pub(super) struct Message {
    /// When it arrived; 0 where the recorder does not say.
    pub(super) time: f64,
    pub(super) seq: u64,
    pub(super) payload: Bytes,
}

impl Message {
    /// Whether it had come by then.
    pub(super) fn by(&self, moment: Moment) -> bool {
        match moment {
            Moment::Seq(seq) => i64::try_from(self.seq).is_ok_and(|own| own <= seq),
            Moment::Time(time) => self.time <= time,
        }
    }

    pub(super) fn stores(&self) -> Vec<Stored> {
        let events = wire::decode(&self.payload).map_or(Vec::new(), |batch| batch.events);
        let stored = |event| match event {
            BlockEvent::Stored(stored) => Some(stored),
            _ => None,
        };
        events.into_iter().filter_map(stored).collect()
    }
}

/// A message that is being applied.
pub(super) enum Applying<'a> {
    /// It comes next.
    Next(&'a Message),
    /// It did this, and so much is the picture worth now.
    Done(&'a Message, Followed, Trust),
}

/// One rank's stream.
pub(super) struct Stream {
    pub(super) endpoint: EndpointId,
    follower: Follower,
    pub(super) messages: Vec<Message>,
    applied: usize,
    /// The sequence number of the last one applied.
    last: Option<u64>,
    /// A reset was asked for, and nothing was published since.
    pub(super) reset: bool,
}

impl Stream {
    pub(super) fn new(endpoint: EndpointId) -> Self {
        Self {
            endpoint,
            follower: Follower::new(endpoint),
            messages: Vec::new(),
            applied: 0,
            last: None,
            reset: false,
        }
    }

    /// Applies messages until `moment` is behind; the file's order is the wire's.
    pub(super) fn apply_until(
        &mut self,
        moment: Moment,
        index: &Index,
        mut each: impl FnMut(Applying<'_>),
    ) {
        if let Some(restart) = self.restart_before(moment) {
            while self.applied < restart {
                self.apply_next(index, &mut each);
            }
            // What the new process holds is nothing, and it has not said so yet.
            index.empty(self.endpoint);
            self.last = None;
        }
        while let Some(message) = self.messages.get(self.applied)
            && message.by(moment)
        {
            self.apply_next(index, &mut each);
        }
    }

    fn apply_next(&mut self, index: &Index, each: &mut impl FnMut(Applying<'_>)) {
        let message = &self.messages[self.applied];
        let Message { seq, payload, .. } = message;
        each(Applying::Next(message));
        self.applied += 1;
        self.last = Some(*seq);
        self.reset = false;
        let followed = self.follower.on_batch(index, *seq, payload);
        each(Applying::Done(
            message,
            followed,
            self.follower.verdict().trust,
        ));
    }

    pub(super) fn trust(&self) -> Trust {
        self.follower.verdict().trust
    }

    /// Whether messages were applied that had not come by then.
    pub(super) fn is_past(&self, moment: Moment) -> bool {
        let last = self.applied.checked_sub(1).filter(|_| self.last.is_some());
        last.is_some_and(|at| !self.messages[at].by(moment))
    }

    /// Where the next process's messages begin, if a sequence number tells that it runs already:
    /// one that is below what was applied.
    fn restart_before(&self, moment: Moment) -> Option<usize> {
        let (Moment::Seq(seq), Some(last)) = (moment, self.last) else {
            return None;
        };
        let rest = self.messages.get(self.applied - 1..)?;
        let falls = rest.windows(2).position(|two| two[1].seq <= two[0].seq);
        falls
            .filter(|_| seq < last.cast_signed())
            .map(|at| self.applied + at)
    }

    /// What came after one moment, up to another.
    pub(super) fn between(&self, from: Moment, to: Moment) -> impl Iterator<Item = &Message> {
        let came = move |message: &&Message| !message.by(from) && message.by(to);
        self.messages.iter().filter(came)
    }
}

/// Whether an event's tokens are part of these, block for block.
pub(super) fn is_part_of(stored: &Stored, tokens: &[TokenId]) -> bool {
    let size = stored.block_size.max(1) as usize;
    let at_start = stored.parent.is_none();
    !stored.tokens.is_empty()
        && tokens
            .chunks(size)
            .enumerate()
            .take(if at_start { 1 } else { usize::MAX })
            .any(|(block, _)| {
                let rest = &tokens[block * size..];
                // Where the answer was not recorded, the prompt's part decides.
                rest.iter().zip(&stored.tokens).all(|(a, b)| a == b)
            })
}

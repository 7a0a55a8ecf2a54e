//! What this replica has in flight: the truth, from which a full state can be made at any time, and
//! what of it the others have not been told.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wire::{ENTRIES_MAX, FILLED_BYTES, KEYS_MAX, Message, Placed, Work};
use crate::blocks::{Chain, keys_version};
use crate::fleet::{Endpoint, EndpointId};

/// What may wait to be told: as much as a slow link takes in a second. More is dropped, and a full
/// state told in its place.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// Between two full states, however many ask.
const FULL_EVERY: Duration = Duration::from_secs(1);

/// In MessagePack, near enough and rather more: numbers of up to nine bytes.
const ENTRY_BYTES: usize = 32;
const KEY_BYTES: usize = 9;

/// The ledger of one replica.
#[derive(Debug)]
pub struct Own {
    in_flight: HashMap<u64, Entry>,
    /// The last number given.
    last: u64,
    pending: VecDeque<Event>,
    pending_bytes: usize,
    pending_bytes_max: usize,
    /// Of the last deltas told.
    seq: u64,
    /// Somebody needs a full state.
    wanted: bool,
    /// When there was one.
    full: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Entry {
    endpoint: Arc<Endpoint>,
    prefill_tokens: Option<u64>,
    requests: u32,
}

#[derive(Debug)]
enum Event {
    Placed(u64, Entry, Option<Chain>),
    Prefilled(u64),
    Ended(u64, bool),
}

impl Event {
    fn bytes(&self) -> usize {
        let Self::Placed(_, _, Some(chain)) = self else {
            return ENTRY_BYTES;
        };
        ENTRY_BYTES + KEY_BYTES * chain.keys.len()
    }
}

impl Default for Own {
    fn default() -> Self {
        Self {
            in_flight: HashMap::new(),
            last: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            pending_bytes_max: PENDING_BYTES_MAX,
            seq: 0,
            wanted: false,
            full: None,
        }
    }
}

impl Own {
    /// A request begins; its number. None past the limit: the others do not hear of it.
    pub fn placed(
        &mut self,
        endpoint: &Arc<Endpoint>,
        prefill_tokens: u64,
        requests: u32,
        chain: Option<&Chain>,
    ) -> Option<u64> {
        if self.in_flight.len() >= ENTRIES_MAX {
            return None;
        }
        let entry = Entry {
            endpoint: endpoint.clone(),
            prefill_tokens: Some(prefill_tokens),
            requests,
        };
        self.last += 1;
        self.in_flight.insert(self.last, entry.clone());
        self.push(Event::Placed(self.last, entry, chain.map(beginning)));
        Some(self.last)
    }

    /// Its first output came.
    pub fn prefilled(&mut self, number: u64) {
        let entry = self.in_flight.get_mut(&number);
        if entry.is_some_and(|entry| entry.prefill_tokens.take().is_some()) {
            self.push(Event::Prefilled(number));
        }
    }

    /// It ended, answered or not.
    pub fn ended(&mut self, number: u64, answered: bool) {
        if self.in_flight.remove(&number).is_some() {
            self.push(Event::Ended(number, answered));
        }
    }

    /// Somebody needs all of it.
    pub fn want_full(&mut self) {
        self.wanted = true;
    }

    /// Nobody can be told now, or nobody knows what was: the next word is a full state.
    pub fn lose(&mut self) {
        self.pending.clear();
        self.pending_bytes = 0;
        self.wanted = true;
    }

    /// What there is to tell by now; on a `beat` also that there is nothing.
    pub fn take(&mut self, now: Instant, beat: bool) -> Vec<Message> {
        let mut messages = Vec::new();
        while !self.pending.is_empty() || (beat && messages.is_empty()) {
            messages.push(self.deltas());
        }
        let is_due = |full| now.saturating_duration_since(full) >= FULL_EVERY;
        if self.wanted && self.full.is_none_or(is_due) {
            self.wanted = false;
            self.full = Some(now);
            messages.extend(self.full());
        }
        messages
    }

    fn push(&mut self, event: Event) {
        self.pending_bytes += event.bytes();
        self.pending.push_back(event);
        if self.pending_bytes > self.pending_bytes_max {
            self.lose();
        }
    }

    /// As much of what is pending as fills a message.
    fn deltas(&mut self) -> Message {
        let mut filling = Filling::default();
        while filling.has_room()
            && let Some(event) = self.pending.pop_front()
        {
            self.pending_bytes -= event.bytes();
            filling.bytes += event.bytes();
            match event {
                Event::Placed(number, entry, chain) => filling.place(number, &entry, chain),
                Event::Prefilled(number) => filling.work.prefilled.push(number),
                Event::Ended(number, answered) => filling.work.ended.push((number, answered)),
            }
        }
        self.seq += 1;
        Message::Deltas {
            seq: self.seq,
            work: filling.work,
        }
    }

    fn full(&self) -> Vec<Message> {
        let mut filling = Filling::default();
        let mut parts = Vec::new();
        for (number, entry) in &self.in_flight {
            if !filling.has_room() {
                parts.push(mem::take(&mut filling).work);
            }
            filling.bytes += ENTRY_BYTES;
            filling.place(*number, entry, None);
        }
        parts.push(filling.work);
        let count = parts.len() as u32;
        let part = |(part, work)| Message::Full {
            seq: self.seq,
            part,
            parts: count,
            work,
        };
        (0..).zip(parts).map(part).collect()
    }
}

fn beginning(chain: &Chain) -> Chain {
    let keys = &chain.keys[..chain.keys.len().min(KEYS_MAX)];
    Chain {
        shape: chain.shape,
        keys: keys.to_vec(),
    }
}

/// A message being filled.
#[derive(Debug)]
struct Filling {
    work: Work,
    named: HashMap<EndpointId, u32>,
    bytes: usize,
}

impl Default for Filling {
    fn default() -> Self {
        let keys = keys_version();
        Self {
            work: Work {
                keys,
                ..Work::default()
            },
            named: HashMap::new(),
            bytes: 0,
        }
    }
}

impl Filling {
    fn has_room(&self) -> bool {
        self.bytes < FILLED_BYTES
    }

    fn place(&mut self, number: u64, entry: &Entry, chain: Option<Chain>) {
        let next = self.work.endpoints.len() as u32;
        let endpoint = *self.named.entry(entry.endpoint.id).or_insert(next);
        if endpoint == next {
            self.bytes += entry.endpoint.name.len();
            self.work.endpoints.push(entry.endpoint.name.clone());
        }
        self.work.placed.push(Placed {
            number,
            endpoint,
            prefill_tokens: entry.prefill_tokens,
            requests: entry.requests,
            chain,
        });
    }
}

#[cfg(test)]
impl Own {
    /// The same with less room for what is pending.
    pub fn limited(pending_bytes_max: usize) -> Self {
        Self {
            pending_bytes_max,
            ..Self::default()
        }
    }

    /// Number, endpoint, tokens and requests of all that is in flight.
    pub fn entries(&self) -> std::collections::BTreeMap<u64, (String, u64, u32)> {
        let entry = |(number, entry): (&u64, &Entry)| {
            let tokens = entry.prefill_tokens.unwrap_or(0);
            (
                *number,
                (entry.endpoint.name.clone(), tokens, entry.requests),
            )
        };
        self.in_flight.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BlockKey;

    fn endpoint(id: u32) -> Arc<Endpoint> {
        let address = "127.0.0.1:80".parse().expect("an address");
        Arc::new(Endpoint::new(
            EndpointId(id),
            format!("pod-{id}"),
            address,
            None,
        ))
    }

    fn chain(blocks: usize) -> Chain {
        Chain {
            shape: 16.into(),
            keys: vec![BlockKey::root(None); blocks],
        }
    }

    fn is_full(message: &Message) -> bool {
        matches!(message, Message::Full { .. })
    }

    #[test]
    fn nothing_is_said_twice_and_a_beat_says_that_there_is_nothing() {
        let (mut own, now, pod) = (Own::default(), Instant::now(), endpoint(0));
        assert_eq!(own.take(now, false), []);
        let number = own.placed(&pod, 5, 1, None).expect("room");
        own.prefilled(number);
        own.prefilled(number);
        own.ended(number, true);
        own.ended(number, true);
        own.prefilled(number);
        let told = own.take(now, true);
        let [Message::Deltas { seq: 1, work }] = &told[..] else {
            panic!("{told:?}");
        };
        assert_eq!(work.placed.len(), 1);
        assert_eq!(
            (&work.prefilled[..], &work.ended[..]),
            (&[1][..], &[(1, true)][..])
        );
        assert_eq!(own.take(now, false), []);
        let beat = own.take(now, true);
        assert!(matches!(&beat[..], [Message::Deltas { seq: 2, work }] if work.ended.is_empty()));
    }

    #[test]
    fn who_asks_is_answered_and_at_most_once_a_second() {
        let (mut own, now) = (Own::default(), Instant::now());
        let fulls = |own: &mut Own, ms| {
            own.want_full();
            let told = own.take(now + Duration::from_millis(ms), false);
            told.iter().filter(|told| is_full(told)).count()
        };
        assert_eq!([0, 1, 999].map(|ms| fulls(&mut own, ms)), [1, 0, 0]);
        // The last question is not forgotten.
        let told = own.take(now + FULL_EVERY, true);
        assert!(is_full(told.last().expect("told")), "{told:?}");
        assert_eq!(own.take(now + 3 * FULL_EVERY, false), []);
    }

    #[test]
    fn what_does_not_fit_one_message_goes_in_several() {
        let (mut own, now) = (Own::default(), Instant::now());
        for number in 0..20_000 {
            own.placed(&endpoint(number % 500), 1 << 30, 1_024, None)
                .expect("room");
        }
        own.want_full();
        let (deltas, full): (Vec<_>, Vec<_>) = own
            .take(now, true)
            .into_iter()
            .partition(|told| !is_full(told));
        for told in [&deltas, &full] {
            assert!(told.len() > 1, "{}", told.len());
            for message in told {
                assert!(message.to_bytes().len() < 2 * FILLED_BYTES);
            }
        }
    }

    #[test]
    fn a_long_prompt_is_told_by_its_beginning() {
        let mut own = Own::default();
        own.placed(&endpoint(0), 1, 1, Some(&chain(2 * KEYS_MAX)));
        let told = own.take(Instant::now(), false);
        assert_eq!(
            Message::from_bytes(&told[0].to_bytes()).as_ref(),
            Ok(&told[0])
        );
        let Message::Deltas { work, .. } = &told[0] else {
            panic!("{told:?}");
        };
        let keys = work.placed[0].chain.as_ref().map(|chain| chain.keys.len());
        assert_eq!(keys, Some(KEYS_MAX));
    }

    #[test]
    fn more_than_may_wait_becomes_a_full_state() {
        let (mut own, pod) = (Own::default(), endpoint(0));
        for _ in 0..1_000 {
            own.placed(&pod, 1, 1, Some(&chain(KEYS_MAX)));
        }
        assert!(own.pending_bytes <= PENDING_BYTES_MAX);
        let told = own.take(Instant::now(), false);
        let Some(Message::Full { work, .. }) = told.last() else {
            panic!("{} messages", told.len());
        };
        assert_eq!(work.placed.len(), 1_000);
    }

    #[test]
    fn the_ledger_is_bounded() {
        let (mut own, pod) = (Own::default(), endpoint(0));
        let placed = (0..=ENTRIES_MAX).filter_map(|_| own.placed(&pod, 1, 1, None));
        assert_eq!(placed.count(), ENTRIES_MAX);
        own.ended(1, false);
        assert!(own.placed(&pod, 1, 1, None).is_some());
    }
}

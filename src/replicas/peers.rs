//! What other replicas have in flight, as far as they were heard: bookings and expectations of the
//! kind that our own requests have, so that load and index know no difference.
//!
//! A replica's deltas are counted. Where one is missing, what it told before stays until its full
//! state says what of that is still true; where nothing is heard, not even that it is still there,
//! everything of it goes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wire::{ENTRIES_MAX, Message, Placed, Skipped, Work};
use crate::blocks::{Chain, keys_version};
use crate::fleet::{Booking, Endpoint, Fleet};
use crate::index::{Expectation, Index};

/// Replicas that are listened to. Each costs a message a second, and [`ENTRIES_MAX`] entries at most.
pub const PEERS_MAX: usize = 64;

/// Five beats: a replica that was paused, or a cluster that elected a leader, comes back sooner. Its
/// requests run on at their servers, and their own metrics tell of these after that.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Between two questions to one replica: it answers no more often.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Everybody else.
pub struct Peers {
    index: Arc<Index>,
    endpoints: HashMap<String, Arc<Endpoint>>,
    peers: HashMap<u64, Peer>,
}

/// One replica.
struct Peer {
    heard: Instant,
    /// The number that its next deltas should have.
    next: u64,
    /// Nothing that it told is missing.
    whole: bool,
    /// When it was last asked.
    asked: Option<Instant>,
    /// It told of endpoints that we did not know.
    met_unknown: bool,
    in_flight: HashMap<u64, InFlight>,
    /// A full state whose last part has not come.
    full: Option<Parts>,
}

struct InFlight {
    booking: Booking,
    expectation: Option<Expectation>,
}

struct Parts {
    seq: u64,
    next: u32,
    numbers: HashSet<u64>,
}

/// What a message did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Heard {
    /// An endpoint may have room again.
    pub freed: bool,
    /// Something was missing before it.
    pub gap: bool,
    /// Its replica's full state is needed.
    pub asks: bool,
    /// What of it does not count, and how much of that there is.
    pub skipped: BTreeMap<Skipped, u64>,
}

/// How much there is.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct PeerSizes {
    /// Replicas heard.
    pub peers: usize,
    /// Requests that they have in flight.
    pub in_flight: usize,
    /// Since the one that has been silent for the longest was heard.
    pub oldest_word: Duration,
}

impl Peers {
    /// Nobody yet.
    #[must_use]
    pub fn new(index: Arc<Index>) -> Self {
        Self {
            index,
            endpoints: HashMap::new(),
            peers: HashMap::new(),
        }
    }

    /// The endpoints that peers' words may mean from now on. Whoever told of others is asked again where
    /// some are new.
    pub fn know(&mut self, fleet: &Fleet) {
        let by_name = |endpoint: &Arc<Endpoint>| (endpoint.name.clone(), endpoint.clone());
        let endpoints: HashMap<_, _> = fleet.endpoints.iter().map(by_name).collect();
        let are_new = endpoints
            .keys()
            .any(|name| !self.endpoints.contains_key(name));
        self.endpoints = endpoints;
        for peer in self.peers.values_mut() {
            peer.whole &= !(are_new && peer.met_unknown);
        }
    }

    /// Takes what a replica says. A question says nothing of its work.
    pub fn hear(&mut self, from: u64, message: Message, now: Instant) -> Heard {
        let mut heard = Heard::default();
        if matches!(message, Message::Ask { .. }) {
            return heard;
        }
        if message == Message::Bye {
            heard.freed = self.peers.remove(&from).is_some();
            return heard;
        }
        let has_room = self.peers.len() < PEERS_MAX;
        let peer = match self.peers.entry(from) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) if has_room => place.insert(Peer::new(now)),
            Entry::Vacant(_) => {
                heard.skipped.insert(Skipped::PeersMax, 1);
                return heard;
            }
        };
        peer.heard = now;
        let mut hearing = Hearing {
            index: &self.index,
            endpoints: &self.endpoints,
            heard: &mut heard,
            now,
        };
        match message {
            Message::Deltas { seq, work } => hearing.deltas(peer, seq, work),
            Message::Full {
                seq,
                part,
                parts,
                work,
            } => hearing.full(peer, seq, (part, parts), work),
            Message::Ask { .. } | Message::Bye => {}
        }
        heard.asks = !peer.whole;
        heard
    }

    /// Replicas to be asked for their full states now.
    pub fn asks(&mut self, now: Instant) -> Vec<u64> {
        let mut asks = Vec::new();
        for (id, peer) in &mut self.peers {
            let is_due = |asked| now.saturating_duration_since(asked) >= ASK_EVERY;
            if !peer.whole && peer.asked.is_none_or(is_due) {
                peer.asked = Some(now);
                asks.push(*id);
            }
        }
        asks
    }

    /// Forgets those that were not heard for [`SILENCE_MAX`], with all that they had; how many.
    pub fn forget_silent(&mut self, now: Instant) -> usize {
        let before = self.peers.len();
        self.peers
            .retain(|_, peer| now.saturating_duration_since(peer.heard) < SILENCE_MAX);
        before - self.peers.len()
    }

    /// How much there is.
    #[must_use]
    pub fn sizes(&self, now: Instant) -> PeerSizes {
        let ages = self.peers.values();
        let ages = ages.map(|peer| now.saturating_duration_since(peer.heard));
        PeerSizes {
            peers: self.peers.len(),
            in_flight: self.peers.values().map(|peer| peer.in_flight.len()).sum(),
            oldest_word: ages.max().unwrap_or_default(),
        }
    }
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            heard: now,
            next: 1,
            whole: true,
            asked: None,
            met_unknown: false,
            in_flight: HashMap::new(),
            full: None,
        }
    }
}

/// One message on its way in.
struct Hearing<'a> {
    index: &'a Arc<Index>,
    endpoints: &'a HashMap<String, Arc<Endpoint>>,
    heard: &'a mut Heard,
    now: Instant,
}

impl Hearing<'_> {
    fn deltas(&mut self, peer: &mut Peer, seq: u64, work: Work) {
        self.heard.gap = seq != peer.next;
        peer.whole &= !self.heard.gap;
        peer.next = seq.wrapping_add(1);
        // Parts of a full state come in a row.
        peer.full = None;
        let Work {
            keys,
            endpoints,
            placed,
            prefilled,
            ended,
        } = work;
        for placed in placed {
            self.place(peer, &endpoints, keys, placed);
        }
        for number in prefilled {
            self.first_token(peer, number);
        }
        for (number, answered) in ended {
            let Some(ended) = peer.in_flight.remove(&number) else {
                continue;
            };
            self.heard.freed = true;
            if let Some(expectation) = ended.expectation
                && answered
            {
                expectation.answered();
            }
        }
    }

    /// What is in flight after all parts: what they have and nothing else.
    fn full(&mut self, peer: &mut Peer, seq: u64, (part, parts): (u32, u32), work: Work) {
        if part == 0 {
            peer.met_unknown = false;
            peer.full = Some(Parts {
                seq,
                next: 0,
                numbers: HashSet::new(),
            });
        }
        let goes_on = |full: &mut Parts| full.seq == seq && full.next == part;
        let Some(mut full) = peer.full.take_if(goes_on) else {
            peer.full = None;
            return;
        };
        full.next += 1;
        for placed in work.placed {
            if full.numbers.len() < ENTRIES_MAX {
                full.numbers.insert(placed.number);
            }
            self.place(peer, &work.endpoints, work.keys, placed);
        }
        if part + 1 < parts {
            peer.full = Some(full);
            return;
        }
        let before = peer.in_flight.len();
        peer.in_flight
            .retain(|number, _| full.numbers.contains(number));
        self.heard.freed |= peer.in_flight.len() < before;
        peer.next = seq.wrapping_add(1);
        peer.whole = true;
    }

    /// Books a request that is not booked yet, and its prefill's end.
    fn place(&mut self, peer: &mut Peer, names: &[String], keys: u32, placed: Placed) {
        let Placed {
            number,
            endpoint,
            prefill_tokens,
            requests,
            chain,
        } = placed;
        if !peer.in_flight.contains_key(&number) {
            if peer.in_flight.len() >= ENTRIES_MAX {
                return self.skip(Skipped::EntriesMax);
            }
            let name = names.get(endpoint as usize);
            let Some(endpoint) = name.and_then(|name| self.endpoints.get(name)) else {
                peer.met_unknown = true;
                return self.skip(Skipped::UnknownEndpoint);
            };
            let tokens = prefill_tokens.unwrap_or(0);
            let booking = Booking::new(endpoint.clone(), tokens, requests, self.now);
            let expectation = chain.and_then(|chain| self.expect(endpoint, keys, &chain));
            let in_flight = InFlight {
                booking,
                expectation,
            };
            peer.in_flight.insert(number, in_flight);
        }
        if prefill_tokens.is_none()
            && let Some(in_flight) = peer.in_flight.get_mut(&number)
        {
            // When, nobody says.
            in_flight.booking.prefilled();
            self.heard.freed = true;
        }
    }

    fn expect(&mut self, endpoint: &Endpoint, keys: u32, chain: &Chain) -> Option<Expectation> {
        if keys != keys_version() {
            self.skip(Skipped::OtherKeys);
            return None;
        }
        self.index.expect_chain(endpoint.id, chain)
    }

    fn first_token(&mut self, peer: &mut Peer, number: u64) {
        if let Some(in_flight) = peer.in_flight.get_mut(&number) {
            in_flight.booking.first_token(self.now);
            self.heard.freed = true;
        }
    }

    fn skip(&mut self, what: Skipped) {
        *self.heard.skipped.entry(what).or_default() += 1;
    }
}

#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::blocks::{BlockEvent, Chains, EngineHash, Identity, Stored, TokenId};
use crate::fleet::EndpointId;
use crate::fleet::report::Report;
use crate::replicas::own::Own;

const A: u64 = 1;
const B: u64 = 2;
const SECOND: Duration = Duration::from_secs(1);

fn fleet(count: u32) -> Fleet {
    let endpoint = |id: u32| {
        let address = SocketAddr::from(([127, 0, 0, 1], 8000 + id as u16));
        Arc::new(Endpoint::new(
            EndpointId(id),
            format!("pod-{id}"),
            address,
            None,
        ))
    };
    Fleet {
        endpoints: (0..count).map(endpoint).collect(),
        ..Fleet::default()
    }
}

/// Who hears, with endpoints of its own: another process has its own numbers for them.
struct Ear {
    fleet: Fleet,
    index: Arc<Index>,
    peers: Peers,
    now: Instant,
}

impl Ear {
    fn of(count: u32) -> Self {
        let (fleet, index) = (fleet(count), Arc::<Index>::default());
        let mut peers = Peers::new(index.clone());
        peers.know(&fleet);
        Self {
            fleet,
            index,
            peers,
            now: Instant::now(),
        }
    }

    /// Hears messages as they come over a wire.
    fn hear(&mut self, from: u64, messages: &[Message]) -> Vec<Heard> {
        let read = |message: &Message| Message::from_bytes(&message.to_bytes()).expect("ours");
        let hear = |message: &Message| self.peers.hear(from, read(message), self.now);
        messages.iter().map(hear).collect()
    }

    /// Requests and prefill tokens of each endpoint.
    fn load(&self) -> Vec<(u32, u64)> {
        let endpoints = self.fleet.endpoints.iter();
        let load = |of: &Arc<Endpoint>| (of.load.requests(), of.load.prefill_tokens());
        endpoints.map(load).collect()
    }
}

fn say(own: &mut Own) -> Vec<Message> {
    own.take(Instant::now(), true)
}

/// A full state, some seconds from now: no sooner than the one before allows.
fn full(own: &mut Own, after_s: u32) -> Vec<Message> {
    own.want_full();
    own.take(Instant::now() + after_s * SECOND, false)
}

#[test]
fn what_a_peer_placed_is_load_until_it_ends() {
    let (mut ear, mut own, theirs) = (Ear::of(2), Own::default(), fleet(2));
    let number = own
        .placed(&theirs.endpoints[1], 700, 2, None)
        .expect("room");
    ear.hear(A, &say(&mut own));
    assert_eq!(ear.load(), [(0, 0), (2, 700)]);
    own.prefilled(number);
    assert!(ear.hear(A, &say(&mut own))[0].freed);
    assert_eq!(ear.load(), [(0, 0), (2, 0)]);
    own.ended(number, true);
    assert!(ear.hear(A, &say(&mut own))[0].freed);
    assert_eq!(ear.load(), [(0, 0), (0, 0)]);
    assert_eq!(ear.peers.sizes(ear.now).in_flight, 0);
}

#[test]
fn a_gap_is_filled_by_a_full_state() {
    let (mut ear, mut own, theirs) = (Ear::of(1), Own::default(), fleet(1));
    let pod = &theirs.endpoints[0];
    let first = own.placed(pod, 10, 1, None).expect("room");
    own.placed(pod, 200, 1, None);
    assert!(ear.peers.asks(ear.now).is_empty());
    ear.hear(A, &say(&mut own));
    own.ended(first, true);
    own.placed(pod, 3_000, 1, None);
    let _lost = say(&mut own);

    let heard = ear.hear(A, &say(&mut own));
    assert!(heard[0].gap && heard[0].asks, "{heard:?}");
    assert_eq!(ear.load(), [(2, 210)], "what was known stays");
    assert_eq!(ear.peers.asks(ear.now), [A]);
    assert!(ear.peers.asks(ear.now).is_empty(), "once a second");
    assert_eq!(ear.peers.asks(ear.now + SECOND), [A]);

    let heard = ear.hear(A, &full(&mut own, 2));
    assert!(heard[0].freed && !heard[0].asks, "{heard:?}");
    assert_eq!(ear.load(), [(2, 3_200)]);
    assert!(ear.peers.asks(ear.now + 9 * SECOND).is_empty());
    assert!(!ear.hear(A, &say(&mut own))[0].gap);
}

#[test]
fn who_comes_late_asks_and_who_comes_first_need_not() {
    let (mut late, mut own, theirs) = (Ear::of(1), Own::default(), fleet(1));
    own.placed(&theirs.endpoints[0], 10, 1, None);
    let first = say(&mut own);
    assert!(!late.hear(A, &first)[0].asks);
    let mut late = Ear::of(1);
    assert!(late.hear(A, &say(&mut own))[0].asks);
    late.hear(A, &full(&mut own, 2));
    assert_eq!(late.load(), [(1, 10)]);
}

#[test]
fn a_silent_peers_load_returns_and_so_does_one_that_says_goodbye() {
    let (mut ear, theirs) = (Ear::of(1), fleet(1));
    let mut owns = [Own::default(), Own::default()];
    for (own, id) in owns.iter_mut().zip([A, B]) {
        own.placed(&theirs.endpoints[0], 100, 1, None);
        ear.hear(id, &say(own));
    }
    let last = SILENCE_MAX - Duration::from_millis(1);
    assert_eq!(ear.peers.forget_silent(ear.now + last), 0);
    assert_eq!(ear.peers.sizes(ear.now + last).oldest_word, last);
    ear.now += last;
    ear.hear(B, &say(&mut owns[1]));
    assert_eq!(ear.peers.forget_silent(ear.now + SECOND), 1);
    assert_eq!(ear.load(), [(1, 100)], "the other one is still heard");
    assert!(ear.hear(B, &[Message::Bye])[0].freed);
    assert_eq!(ear.load(), [(0, 0)]);
    assert_eq!(ear.peers.sizes(ear.now), PeerSizes::default());
}

#[test]
fn a_peers_requests_are_no_strangers_while_it_is_heard() {
    let (mut ear, mut own, theirs) = (Ear::of(1), Own::default(), fleet(1));
    own.placed(&theirs.endpoints[0], 100, 3, None);
    ear.hear(A, &say(&mut own));
    let outside = |ear: &Ear| {
        let load = &ear.fleet.endpoints[0].load;
        let report = Report {
            running: 4,
            ..Report::default()
        };
        load.told(report, load.ours(), ear.now, SECOND);
        load.outside(ear.now).requests
    };
    assert_eq!(outside(&ear), 1);
    ear.peers.forget_silent(ear.now + SILENCE_MAX);
    assert_eq!(outside(&ear), 4, "they still run");
}

#[test]
fn what_a_peer_dropped_is_told_by_its_full_state() {
    let (mut ear, mut own, theirs) = (Ear::of(1), Own::limited(100), fleet(1));
    for _ in 0..50 {
        own.placed(&theirs.endpoints[0], 1, 1, None);
    }
    ear.hear(A, &say(&mut own));
    assert_eq!(ear.load(), [(50, 50)]);
}

#[test]
fn a_full_state_comes_in_parts_and_a_lost_part_makes_none() {
    let (mut ear, mut own, theirs) = (Ear::of(1), Own::default(), fleet(1));
    for _ in 0..20_000 {
        own.placed(&theirs.endpoints[0], 1, 1, None);
    }
    let _lost = say(&mut own);
    let parts = full(&mut own, 2);
    assert!(parts.len() > 2);
    ear.hear(A, &say(&mut own));
    let without_one: Vec<_> = [&parts[..1], &parts[2..]].concat();
    assert!(ear.hear(A, &without_one).iter().all(|heard| heard.asks));
    let interrupted = [&parts[..1], &say(&mut own)[..], &parts[1..]].concat();
    assert!(ear.hear(A, &interrupted).iter().all(|heard| heard.asks));
    let whole = full(&mut own, 4);
    assert!(!ear.hear(A, &whole).last().expect("parts").asks);
    assert_eq!(ear.load(), [(20_000, 20_000)]);
}

#[test]
fn an_endpoint_that_is_not_ours_is_skipped_until_it_is() {
    let (mut ear, mut own, theirs) = (Ear::of(1), Own::default(), fleet(2));
    own.placed(&theirs.endpoints[1], 10, 1, None);
    let heard = ear.hear(A, &say(&mut own));
    assert_eq!(
        heard[0].skipped,
        BTreeMap::from([(Skipped::UnknownEndpoint, 1)])
    );
    assert_eq!(ear.load(), [(0, 0)]);
    ear.fleet = fleet(2);
    ear.peers.know(&ear.fleet);
    assert_eq!(ear.peers.asks(ear.now), [A]);
    ear.hear(A, &full(&mut own, 2));
    assert_eq!(ear.load(), [(0, 0), (1, 10)]);
    ear.peers.know(&fleet(3));
    assert!(ear.peers.asks(ear.now + SECOND).is_empty());
}

#[test]
fn strangers_fill_no_more_than_their_places() {
    let (mut ear, mut own, theirs) = (Ear::of(1), Own::default(), fleet(1));
    let beat = say(&mut own);
    for id in 0..PEERS_MAX as u64 {
        assert!(ear.hear(id, &beat)[0].skipped.is_empty());
    }
    own.placed(&theirs.endpoints[0], 10, 1, None);
    let heard = ear.hear(1_000, &say(&mut own));
    assert_eq!(heard[0].skipped, BTreeMap::from([(Skipped::PeersMax, 1)]));
    assert_eq!(ear.load(), [(0, 0)]);

    // Ten thousand requests a message, four messages.
    let placed = |number| Placed {
        number,
        endpoint: 0,
        prefill_tokens: Some(1),
        requests: 1,
        chain: None,
    };
    for seq in 1..=4 {
        let work = Work {
            endpoints: vec!["pod-0".into()],
            placed: (seq * 10_000..(seq + 1) * 10_000).map(placed).collect(),
            ..Work::default()
        };
        ear.hear(A, &[Message::Deltas { seq, work }]);
    }
    assert_eq!(ear.load()[0].0 as usize, ENTRIES_MAX);
    // A number past the end of all numbers is a gap like any other.
    let last = Message::Deltas {
        seq: u64::MAX,
        work: Work::default(),
    };
    assert!(ear.hear(A, &[last])[0].gap);
}

/// Blocks of two tokens at endpoint 0, so that it is known how it cuts.
fn store(index: &Index, tokens: &[TokenId]) {
    let hashes = tokens.chunks(2).map(|two| EngineHash(two[0].into()));
    let stored = Stored::plain(None, hashes.collect(), tokens.to_vec());
    index.apply(EndpointId(0), &[BlockEvent::Stored(stored)]);
}

#[test]
fn a_peers_prompt_counts_as_held_where_it_was_placed() {
    let (mut ear, mut own, theirs) = (Ear::of(2), Own::default(), fleet(2));
    store(&ear.index, &[9, 9]);
    let (tokens, identity) = ([1, 2, 3, 4, 5], Identity::default());
    let mut chains = Chains::new(&tokens, &identity);
    let chain = chains.of(2.into()).clone();
    let expected = |ear: &Ear| {
        ear.index
            .cached_at(EndpointId(0), &tokens, &identity)
            .expected
    };
    let place = |own: &mut Own, chain: &Chain| {
        own.placed(&theirs.endpoints[0], 5, 1, Some(chain))
            .expect("room")
    };
    let first = place(&mut own, &chain);
    ear.hear(A, &say(&mut own));
    assert_eq!(expected(&ear), 4);
    own.ended(first, false);
    ear.hear(A, &say(&mut own));
    assert_eq!(expected(&ear), 0, "nobody computed it");

    let second = place(&mut own, &chain);
    own.ended(second, true);
    ear.hear(A, &say(&mut own));
    assert_eq!(expected(&ear), 4, "its events are on their way");
    for _ in 0..2 {
        store(&ear.index, &[9, 9]);
    }
    assert_eq!(expected(&ear), 0);

    place(&mut own, &chain);
    let mut said = say(&mut own);
    let Message::Deltas { work, .. } = &mut said[0] else {
        panic!("{said:?}");
    };
    work.keys += 1;
    let heard = ear.hear(A, &said);
    assert_eq!(heard[0].skipped, BTreeMap::from([(Skipped::OtherKeys, 1)]));
    assert_eq!(
        (expected(&ear), ear.load()[0]),
        (0, (1, 5)),
        "its load counts"
    );

    let other_shape = Chain {
        shape: 4.into(),
        ..chain.clone()
    };
    place(&mut own, &other_shape);
    ear.hear(A, &say(&mut own));
    assert_eq!(expected(&ear), 0, "this endpoint cuts in twos");
}

/// What a replica does, and what becomes of its words.
#[derive(Debug, Clone)]
enum Act {
    Place {
        endpoint: usize,
        tokens: u64,
    },
    Prefilled(usize),
    End(usize, bool),
    Say {
        lost: bool,
        twice: bool,
    },
    /// As where the cluster was out of reach.
    Lose,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..3usize, 0..100u64).prop_map(|(endpoint, tokens)| Act::Place { endpoint, tokens }),
        2 => (0..20usize).prop_map(Act::Prefilled),
        3 => (0..20usize, any::<bool>()).prop_map(|(which, answered)| Act::End(which, answered)),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(lost, twice)| Act::Say { lost, twice }),
        1 => Just(Act::Lose),
    ];
    proptest::collection::vec(act, 0..60)
}

proptest! {
    /// Whatever was lost or came twice, after the next full state the peer's work is what its own
    /// ledger says; until then nothing is booked that it never placed.
    #[test]
    fn deltas_of_any_loss_end_equal_to_the_ledger(acts in acts(), room in 40..2_000usize) {
        let (mut ear, mut own, theirs) = (Ear::of(3), Own::limited(room), fleet(3));
        let mut numbers = Vec::new();
        for act in acts {
            let number = |which: usize| numbers.get(which % numbers.len().max(1)).copied();
            match act {
                Act::Place { endpoint, tokens } => {
                    numbers.extend(own.placed(&theirs.endpoints[endpoint], tokens, 1, None));
                }
                Act::Prefilled(which) => number(which).into_iter().for_each(|n| own.prefilled(n)),
                Act::End(which, answered) => {
                    number(which).into_iter().for_each(|n| own.ended(n, answered));
                }
                Act::Say { lost: true, .. } => drop(say(&mut own)),
                Act::Say { twice, .. } => {
                    let said = say(&mut own);
                    ear.hear(A, &said);
                    if twice {
                        ear.hear(A, &said);
                    }
                }
                Act::Lose => own.lose(),
            }
            prop_assert!(ear.peers.sizes(ear.now).in_flight <= numbers.len());
        }
        ear.hear(A, &full(&mut own, 2));
        let mut load = vec![(0, 0); 3];
        for (name, tokens, requests) in own.entries().into_values() {
            let endpoint: usize = name["pod-".len()..].parse().expect("a number");
            load[endpoint].0 += requests;
            load[endpoint].1 += tokens;
        }
        prop_assert_eq!(ear.load(), load);
        let told = ear.peers.peers[&A].in_flight.keys().copied();
        prop_assert!(told.collect::<HashSet<_>>() == own.entries().into_keys().collect());
        prop_assert_eq!(ear.peers.forget_silent(ear.now + SILENCE_MAX), 1);
        prop_assert_eq!(ear.load(), [(0, 0); 3]);
    }

    /// Hostile bytes change nothing and end.
    #[test]
    fn garbage_is_no_message(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let versioned = [&[1], &bytes[..]].concat();
        for bytes in [&bytes, &versioned] {
            if let Ok(message) = Message::from_bytes(bytes) {
                prop_assert!(Message::from_bytes(&message.to_bytes()) == Ok(message));
            }
        }
    }
}

//! Where a conversation stays whose prompt cannot be read: consistent hashing with bounded load.
//!
//! Rendezvous hashing: every endpoint has a weight for every conversation, and the heaviest is its
//! home. An endpoint that leaves moves its own conversations and no others; one that joins takes an
//! equal share from each. Weights are made of names, so every replica has the same. A home that has
//! clearly more to do than the others passes the request on to the next in weight (Mirrokni et al.,
//! "Consistent Hashing with Bounded Loads"), which is again the same one every time.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// An endpoint and what it has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat<'a> {
    /// What it is called on every replica.
    pub name: &'a str,
    /// Prefill work placed there and not done, in tokens.
    pub queued_tokens: u64,
    /// Requests placed there and not ended.
    pub requests: u32,
}

/// So many times the mean may be on one endpoint: a fourth more, as hashing proxies have it.
const BOUND: (u64, u64) = (5, 4);
/// So few requests are too little to move for, whatever the mean: they share a step at almost no cost.
const FEW_REQUESTS: u64 = 4;

/// The place of the endpoint that a conversation stays at; none where there is no endpoint, or each is
/// above one bound or the other.
#[must_use]
pub fn home(conversation: u64, prompt_tokens: u64, seats: &[Seat<'_>]) -> Option<usize> {
    let count = seats.len().max(1) as u64;
    let queued = seats.iter().map(|seat| seat.queued_tokens).sum::<u64>();
    let requests = seats
        .iter()
        .map(|seat| u64::from(seat.requests))
        .sum::<u64>();
    let bound = |total: u64| (total * BOUND.0).div_ceil(count * BOUND.1);
    // A wait as long as computing the whole prompt elsewhere costs nothing.
    let queued_max = bound(queued).max(prompt_tokens);
    let requests_max = bound(requests + 1).max(FEW_REQUESTS);
    let may = |seat: &Seat<'_>| {
        seat.queued_tokens <= queued_max && u64::from(seat.requests) < requests_max
    };
    let open = seats.iter().enumerate().filter(|(_, seat)| may(seat));
    let weight = |seat: &Seat<'_>| xxh3_64_with_seed(seat.name.as_bytes(), conversation);
    open.max_by_key(|(_, seat)| (weight(seat), seat.name))
        .map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONVERSATIONS: u64 = 10_000;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("pod-{number}")).collect()
    }

    fn idle(names: &[String]) -> Vec<Seat<'_>> {
        let seat = |name| Seat {
            name,
            queued_tokens: 0,
            requests: 0,
        };
        names.iter().map(|name| seat(name.as_str())).collect()
    }

    /// Where a conversation lives among idle endpoints.
    fn lives<'a>(conversation: u64, seats: &[Seat<'a>]) -> &'a str {
        seats[home(conversation, 0, seats).expect("one is idle")].name
    }

    #[test]
    fn one_that_leaves_moves_its_own_conversations_and_one_that_joins_takes_a_share() {
        let names = names(8);
        let (all, fewer) = (idle(&names), idle(&names[..7]));
        let mut moved = 0;
        for conversation in 0..CONVERSATIONS {
            let (before, after) = (lives(conversation, &all), lives(conversation, &fewer));
            if before == "pod-7" {
                moved += 1;
            } else {
                assert_eq!(before, after, "{conversation}");
            }
        }
        let share = CONVERSATIONS / 8;
        assert!(
            (share * 9 / 10..share * 11 / 10).contains(&moved),
            "{moved}"
        );
    }

    #[test]
    fn every_replica_agrees_in_whatever_order_it_knows_them() {
        let names = names(5);
        let mut seats = idle(&names);
        let first: Vec<_> = (0..100).map(|c| lives(c, &seats)).collect();
        seats.reverse();
        assert_eq!(
            first,
            (0..100).map(|c| lives(c, &seats)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn nobody_gets_much_more_than_the_mean() {
        let names = names(7);
        let mut seats = idle(&names);
        // All that one conversation asks at once, and then everybody's.
        for request in 0..2_000_u64 {
            let conversation = if request < 1_000 { 0 } else { request };
            let place =
                home(conversation, 100, &seats).expect("the least loaded is below the mean");
            seats[place].requests += 1;
            seats[place].queued_tokens += 100;
            let most = seats
                .iter()
                .map(|seat| u64::from(seat.requests))
                .max()
                .expect("seven");
            let bound = ((request + 1) * 5).div_ceil(7 * 4).max(FEW_REQUESTS);
            assert!(most <= bound, "{most} of {request}");
        }
    }

    #[test]
    fn a_busy_home_passes_on_to_the_next_and_gets_its_conversation_back() {
        let names = names(4);
        let mut seats = idle(&names);
        let first = home(7, 500, &seats).expect("idle");
        seats[first].queued_tokens = 500;
        assert_eq!(
            home(7, 500, &seats),
            Some(first),
            "no longer than computing it elsewhere"
        );
        seats[first].queued_tokens = 501;
        let second = home(7, 500, &seats).expect("three are idle");
        assert_ne!(second, first);
        assert_eq!(
            home(7, 500, &seats),
            Some(second),
            "the same one every time"
        );
        for seat in &mut seats {
            seat.queued_tokens = 501;
        }
        assert_eq!(home(7, 500, &seats), Some(first), "as busy as all are");
        seats[first].requests = FEW_REQUESTS as u32;
        assert_eq!(home(7, 500, &seats), Some(second), "too many at once");
    }

    #[test]
    fn nobody_there_is_no_home() {
        assert_eq!(home(7, 500, &[]), None);
    }
}

//! Who is here, and whose publisher: plain, so that it can be tried without a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::AbortHandle;

use crate::events::queue::Queue;
use crate::fleet::{Endpoint, EndpointId};

/// The endpoints that wait for their publishers, and the connections.
#[derive(Debug, Default)]
pub(super) struct Hall {
    seats: Vec<Seat>,
    /// By age, with the means to end it; those that sit are in no danger.
    guests: BTreeMap<u64, (AbortHandle, bool)>,
    next_id: u64,
    warned: BTreeSet<IpAddr>,
}

/// An endpoint, and its publisher's connection while there is one.
#[derive(Debug)]
struct Seat {
    endpoint: Arc<Endpoint>,
    /// What a topic may call it, rank or not: the pod's name, ip:port.
    names: [String; 2],
    /// The same by address alone, which pods of one host share.
    ip: String,
    queue: Arc<Queue>,
    guest: Option<u64>,
}

/// What there is for a publisher.
#[derive(Debug)]
pub(super) enum Found {
    /// Its endpoint.
    Free(Arc<Endpoint>, Arc<Queue>),
    /// Its endpoint, which has one.
    Taken(Arc<Endpoint>),
    /// Nothing.
    Nobody,
}

impl Hall {
    pub(super) fn add(&mut self, endpoint: &Arc<Endpoint>, queue: Arc<Queue>) {
        self.seats.push(Seat {
            names: [endpoint.pod.clone(), endpoint.address.to_string()],
            ip: endpoint.address.ip().to_string(),
            endpoint: endpoint.clone(),
            queue,
            guest: None,
        });
    }

    pub(super) fn remove(&mut self, endpoint: EndpointId) {
        self.seats.retain(|seat| seat.endpoint.id != endpoint);
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Lets a connection in; of more strangers than `strangers_max` the oldest is hung up on.
    pub(super) fn enter(&mut self, id: u64, task: AbortHandle, strangers_max: usize) {
        self.guests.insert(id, (task, false));
        let strangers = self.guests.iter().filter(|(_, (_, sits))| !sits);
        let mut strangers = strangers.map(|(id, _)| *id);
        let oldest = strangers.next();
        if strangers.count() >= strangers_max
            && let Some((task, _)) = oldest.and_then(|id| self.guests.remove(&id))
        {
            task.abort();
        }
    }

    pub(super) fn leave(&mut self, id: u64) {
        self.guests.remove(&id);
    }

    /// Whether to warn of a peer: once each, and of so many.
    pub(super) fn warns(&mut self, ip: IpAddr, warned_max: usize) -> bool {
        self.warned.len() < warned_max && self.warned.insert(ip)
    }

    /// Seats a publisher where its topic says, or else its address, if that is one endpoint's.
    pub(super) fn find(
        &mut self,
        guest: u64,
        rank: u32,
        topic: Option<&Bytes>,
        ip: IpAddr,
    ) -> Found {
        let at_home = || self.only(|seat| seat.is_of(rank) && seat.endpoint.address.ip() == ip);
        let Some(at) = self.place_of(rank, topic).or_else(at_home) else {
            return Found::Nobody;
        };
        let seat = &mut self.seats[at];
        if seat.guest.is_some() {
            return Found::Taken(seat.endpoint.clone());
        }
        seat.guest = Some(guest);
        if let Some((_, sits)) = self.guests.get_mut(&guest) {
            *sits = true;
        }
        Found::Free(seat.endpoint.clone(), seat.queue.clone())
    }

    /// Whom a topic names.
    pub(super) fn named(&self, rank: u32, topic: Option<&Bytes>) -> Option<EndpointId> {
        let at = self.place_of(rank, topic)?;
        Some(self.seats[at].endpoint.id)
    }

    /// An endpoint has no publisher any more.
    pub(super) fn free(&mut self, endpoint: EndpointId, guest: u64) {
        for seat in &mut self.seats {
            if seat.endpoint.id == endpoint && seat.guest == Some(guest) {
                seat.guest = None;
            }
        }
        if let Some((_, sits)) = self.guests.get_mut(&guest) {
            *sits = false;
        }
    }

    /// By a rank's own name, which says all; else by what its port says of the rank, and the most
    /// telling part of the topic.
    fn place_of(&self, rank: u32, topic: Option<&Bytes>) -> Option<usize> {
        let parts: BTreeSet<&[u8]> = topic?.split(|byte| *byte == b'@').collect();
        let says = |name: &String| parts.contains(name.as_bytes());
        self.only(|seat| seat.endpoint.rank.is_some() && says(&seat.endpoint.name))
            .or_else(|| self.only(|seat| seat.is_of(rank) && seat.names.iter().any(says)))
            .or_else(|| self.only(|seat| seat.is_of(rank) && says(&seat.ip)))
    }

    /// Where there is one, and no second.
    fn only(&self, wanted: impl Fn(&Seat) -> bool) -> Option<usize> {
        let mut found = (0..self.seats.len()).filter(|at| wanted(&self.seats[*at]));
        match (found.next(), found.next()) {
            (Some(at), None) => Some(at),
            _ => None,
        }
    }
}

impl Seat {
    fn is_of(&self, rank: u32) -> bool {
        self.endpoint.rank.unwrap_or(0) == rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hall(endpoints: &[(&str, &str, Option<u32>)]) -> Hall {
        let mut hall = Hall::default();
        for (id, (name, address, rank)) in (0..).zip(endpoints) {
            let address = address.parse().expect("an address");
            let endpoint = Endpoint::new(EndpointId(id), (*name).into(), address, None);
            let endpoint = match rank {
                Some(rank) => endpoint.of_rank(*rank),
                None => endpoint,
            };
            hall.add(&Arc::new(endpoint), Arc::new(Queue::new(1, 1)));
        }
        hall
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// The name of whose publisher that would be.
    fn whose(hall: &mut Hall, rank: u32, topic: &'static str, from: &str) -> String {
        match hall.find(
            1,
            rank,
            Some(&Bytes::from_static(topic.as_bytes())),
            ip(from),
        ) {
            Found::Free(endpoint, _) => {
                hall.free(endpoint.id, 1);
                endpoint.name.clone()
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_topic_says_whose_it_is_and_else_the_address() {
        let mut hall = hall(&[
            ("a", "10.0.0.1:80", None),
            ("b", "10.0.0.2:80", None),
            ("c", "10.0.0.2:81", None),
        ]);
        for (topic, from, owner) in [
            ("kv@b@model", "10.9.9.9", "b"),
            ("kv@10.0.0.1@model", "10.9.9.9", "a"),
            ("kv@10.0.0.2:81@model", "10.9.9.9", "c"),
            ("c", "10.0.0.1", "c"),
            ("", "10.0.0.1", "a"),
            ("kv@elsewhere@model", "10.0.0.1", "a"),
            // Two pods have that address, and two are named.
            ("kv@10.0.0.2@model", "10.9.9.9", "Nobody"),
            ("kv@b@c", "10.9.9.9", "Nobody"),
            ("", "10.0.0.2", "Nobody"),
            // A part of a name is not the name.
            ("kv@bb@model", "10.9.9.9", "Nobody"),
        ] {
            assert_eq!(
                whose(&mut hall, 0, topic, from),
                owner,
                "{topic} from {from}"
            );
        }
    }

    #[test]
    fn ranks_are_told_apart_by_their_ports_or_by_name() {
        let mut hall = hall(&[
            ("a", "10.0.0.1:80", Some(0)),
            ("a", "10.0.0.1:80", Some(1)),
            ("b", "10.0.0.2:80", None),
        ]);
        assert_eq!(whose(&mut hall, 0, "kv@a@model", "10.0.0.1"), "a/0");
        assert_eq!(whose(&mut hall, 1, "kv@a@model", "10.0.0.1"), "a/1");
        assert_eq!(whose(&mut hall, 1, "", "10.0.0.1"), "a/1");
        assert_eq!(whose(&mut hall, 0, "kv@a/1@model", "10.9.9.9"), "a/1");
        assert_eq!(whose(&mut hall, 1, "kv@b@model", "10.0.0.2"), "Nobody");
    }

    #[test]
    fn an_endpoint_has_one_publisher_at_a_time() {
        let mut hall = hall(&[("a", "10.0.0.1:80", None)]);
        let home = ip("10.0.0.1");
        assert!(matches!(hall.find(1, 0, None, home), Found::Free(..)));
        assert!(matches!(hall.find(2, 0, None, home), Found::Taken(_)));
        hall.free(EndpointId(0), 2);
        assert!(matches!(hall.find(2, 0, None, home), Found::Taken(_)));
        hall.free(EndpointId(0), 1);
        assert!(matches!(hall.find(2, 0, None, home), Found::Free(..)));
        hall.remove(EndpointId(0));
        assert!(matches!(hall.find(3, 0, None, home), Found::Nobody));
    }

    #[tokio::test]
    async fn the_oldest_stranger_makes_room_and_whoever_sits_stays() {
        let mut hall = hall(&[("a", "10.0.0.1:80", None)]);
        let tasks: Vec<_> = (1..=4)
            .map(|id| {
                let task = tokio::spawn(std::future::pending::<()>());
                hall.enter(id, task.abort_handle(), 2);
                if id == 1 {
                    assert!(matches!(
                        hall.find(1, 0, None, ip("10.0.0.1")),
                        Found::Free(..)
                    ));
                }
                task
            })
            .collect();
        let held: Vec<_> = hall.guests.keys().copied().collect();
        assert_eq!(held, [1, 3, 4]);
        for (task, ends) in tasks.into_iter().zip([false, true, false, false]) {
            let within = std::time::Duration::from_millis(if ends { 20_000 } else { 1 });
            let ended = tokio::time::timeout(within, task).await;
            assert_eq!(ended.is_ok(), ends);
        }
    }

    #[test]
    fn warnings_end() {
        let mut hall = Hall::default();
        let peer = |n: u8| IpAddr::from([10, 0, 0, n]);
        let warned = (0..9).filter(|n| hall.warns(peer(*n), 3)).count();
        assert_eq!(warned, 3);
        assert!(!hall.warns(peer(0), 3));
    }
}

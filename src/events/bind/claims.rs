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
pub(super) struct Claims {
    slots: Vec<Slot>,
    /// By age.
    peers: BTreeMap<u64, Peer>,
    next_id: u64,
    warned: BTreeSet<IpAddr>,
}

/// An endpoint, and its publisher's connection while there is one.
#[derive(Debug)]
struct Slot {
    endpoint: Arc<Endpoint>,
    /// What a topic may call it, rank or not: the pod's name, ip:port.
    names: [String; 2],
    /// The same by address alone, which pods of one host share.
    ip: String,
    queue: Arc<Queue>,
    peer: Option<u64>,
}

/// A connection.
#[derive(Debug, Default)]
struct Peer {
    /// Ends it.
    task: Option<AbortHandle>,
    /// It is an endpoint's publisher, and in no danger.
    claimed: bool,
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

impl Claims {
    pub(super) fn add(&mut self, endpoint: &Arc<Endpoint>, queue: Arc<Queue>) {
        self.slots.push(Slot {
            names: [endpoint.pod.clone(), endpoint.address.to_string()],
            ip: endpoint.address.ip().to_string(),
            endpoint: endpoint.clone(),
            queue,
            peer: None,
        });
    }

    pub(super) fn remove(&mut self, endpoint: EndpointId) {
        self.slots.retain(|slot| slot.endpoint.id != endpoint);
    }

    /// Lets a connection in; where there are `strangers_max` already, the oldest is hung up on.
    pub(super) fn enter(&mut self, strangers_max: usize) -> u64 {
        let strangers = self.peers.iter().filter(|(_, peer)| !peer.claimed);
        let strangers: Vec<u64> = strangers.map(|(id, _)| *id).collect();
        if strangers.len() >= strangers_max
            && let Some(oldest) = strangers.first().and_then(|id| self.peers.remove(id))
            && let Some(task) = oldest.task
        {
            task.abort();
        }
        self.next_id += 1;
        self.peers.insert(self.next_id, Peer::default());
        self.next_id
    }

    /// How a connection is ended; at once where it has left already.
    pub(super) fn served_by(&mut self, id: u64, task: AbortHandle) {
        match self.peers.get_mut(&id) {
            Some(peer) => peer.task = Some(task),
            None => task.abort(),
        }
    }

    pub(super) fn leave(&mut self, id: u64) {
        self.peers.remove(&id);
    }

    /// Whether to warn of a peer: once each, and of so many.
    pub(super) fn warns(&mut self, ip: IpAddr, warned_max: usize) -> bool {
        self.warned.len() < warned_max && self.warned.insert(ip)
    }

    /// Gives a publisher the endpoint that its topic names, or else the only one of its address.
    pub(super) fn find(
        &mut self,
        peer: u64,
        rank: u32,
        topic: Option<&Bytes>,
        ip: IpAddr,
    ) -> Found {
        let at_home = || self.only(|slot| slot.is_of(rank) && slot.endpoint.address.ip() == ip);
        let Some(at) = self.place_of(rank, topic).or_else(at_home) else {
            return Found::Nobody;
        };
        let slot = &mut self.slots[at];
        if slot.peer.is_some() {
            return Found::Taken(slot.endpoint.clone());
        }
        slot.peer = Some(peer);
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.claimed = true;
        }
        Found::Free(slot.endpoint.clone(), slot.queue.clone())
    }

    /// Whom a topic names.
    pub(super) fn named(&self, rank: u32, topic: Option<&Bytes>) -> Option<EndpointId> {
        let at = self.place_of(rank, topic)?;
        Some(self.slots[at].endpoint.id)
    }

    /// An endpoint has no publisher any more.
    pub(super) fn free(&mut self, endpoint: EndpointId, peer: u64) {
        for slot in &mut self.slots {
            if slot.endpoint.id == endpoint && slot.peer == Some(peer) {
                slot.peer = None;
            }
        }
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.claimed = false;
        }
    }

    /// By a rank's own name, which says all; else by what its port says of the rank, and the most
    /// telling part of the topic.
    fn place_of(&self, rank: u32, topic: Option<&Bytes>) -> Option<usize> {
        let parts: BTreeSet<&[u8]> = topic?.split(|byte| *byte == b'@').collect();
        let says = |name: &String| parts.contains(name.as_bytes());
        self.only(|slot| slot.endpoint.rank.is_some() && says(&slot.endpoint.name))
            .or_else(|| self.only(|slot| slot.is_of(rank) && slot.names.iter().any(says)))
            .or_else(|| self.only(|slot| slot.is_of(rank) && says(&slot.ip)))
    }

    /// Where there is one, and no second.
    fn only(&self, wanted: impl Fn(&Slot) -> bool) -> Option<usize> {
        let mut found = (0..self.slots.len()).filter(|at| wanted(&self.slots[*at]));
        match (found.next(), found.next()) {
            (Some(at), None) => Some(at),
            _ => None,
        }
    }
}

impl Slot {
    fn is_of(&self, rank: u32) -> bool {
        self.endpoint.rank.unwrap_or(0) == rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(endpoints: &[(&str, &str, Option<u32>)]) -> Claims {
        let mut claims = Claims::default();
        for (id, (name, address, rank)) in (0..).zip(endpoints) {
            let address = address.parse().expect("an address");
            let endpoint = Endpoint::new(EndpointId(id), (*name).into(), address, None);
            let endpoint = match rank {
                Some(rank) => endpoint.of_rank(*rank),
                None => endpoint,
            };
            claims.add(&Arc::new(endpoint), Arc::new(Queue::new(1, 1)));
        }
        claims
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// The name of whose publisher that would be.
    fn whose(claims: &mut Claims, rank: u32, topic: &'static str, from: &str) -> String {
        match claims.find(
            1,
            rank,
            Some(&Bytes::from_static(topic.as_bytes())),
            ip(from),
        ) {
            Found::Free(endpoint, _) => {
                claims.free(endpoint.id, 1);
                endpoint.name.clone()
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_topic_says_whose_it_is_and_else_the_address() {
        let mut claims = claims(&[
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
                whose(&mut claims, 0, topic, from),
                owner,
                "{topic} from {from}"
            );
        }
    }

    #[test]
    fn ranks_are_told_apart_by_their_ports_or_by_name() {
        let mut claims = claims(&[
            ("a", "10.0.0.1:80", Some(0)),
            ("a", "10.0.0.1:80", Some(1)),
            ("b", "10.0.0.2:80", None),
        ]);
        assert_eq!(whose(&mut claims, 0, "kv@a@model", "10.0.0.1"), "a/0");
        assert_eq!(whose(&mut claims, 1, "kv@a@model", "10.0.0.1"), "a/1");
        assert_eq!(whose(&mut claims, 1, "", "10.0.0.1"), "a/1");
        assert_eq!(whose(&mut claims, 0, "kv@a/1@model", "10.9.9.9"), "a/1");
        assert_eq!(whose(&mut claims, 1, "kv@b@model", "10.0.0.2"), "Nobody");
    }

    #[test]
    fn an_endpoint_has_one_publisher_at_a_time() {
        let mut claims = claims(&[("a", "10.0.0.1:80", None)]);
        let home = ip("10.0.0.1");
        assert!(matches!(claims.find(1, 0, None, home), Found::Free(..)));
        assert!(matches!(claims.find(2, 0, None, home), Found::Taken(_)));
        claims.free(EndpointId(0), 2);
        assert!(matches!(claims.find(2, 0, None, home), Found::Taken(_)));
        claims.free(EndpointId(0), 1);
        assert!(matches!(claims.find(2, 0, None, home), Found::Free(..)));
        claims.remove(EndpointId(0));
        assert!(matches!(claims.find(3, 0, None, home), Found::Nobody));
    }

    #[tokio::test]
    async fn the_oldest_stranger_makes_room_and_a_publisher_stays() {
        let mut claims = claims(&[("a", "10.0.0.1:80", None)]);
        let tasks: Vec<_> = (1..=4)
            .map(|id| {
                let task = tokio::spawn(std::future::pending::<()>());
                assert_eq!(claims.enter(2), id);
                claims.served_by(id, task.abort_handle());
                if id == 1 {
                    assert!(matches!(
                        claims.find(1, 0, None, ip("10.0.0.1")),
                        Found::Free(..)
                    ));
                }
                task
            })
            .collect();
        let held: Vec<_> = claims.peers.keys().copied().collect();
        assert_eq!(held, [1, 3, 4]);
        for (task, ends) in tasks.into_iter().zip([false, true, false, false]) {
            let within = std::time::Duration::from_millis(if ends { 20_000 } else { 1 });
            let ended = tokio::time::timeout(within, task).await;
            assert_eq!(ended.is_ok(), ends);
        }
    }

    #[test]
    fn warnings_end() {
        let mut claims = Claims::default();
        let peer = |n: u8| IpAddr::from([10, 0, 0, n]);
        let warned = (0..9).filter(|n| claims.warns(peer(*n), 3)).count();
        assert_eq!(warned, 3);
        assert!(!claims.warns(peer(0), 3));
    }
}

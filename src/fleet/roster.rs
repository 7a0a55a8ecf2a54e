//! Who of a changing fleet stays who it was.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Endpoint, EndpointId, EventAddress, Fleet};

/// An endpoint as a writer of the fleet knows it: a pod, or one rank of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its name, which its ranks share.
    pub pod: String,
    /// What tells it from another pod that had its name and address before; empty where nothing does.
    pub uid: String,
    /// Which of the engines behind its address; none where there is only one.
    pub rank: Option<u32>,
    /// What Envoy connects to.
    pub address: SocketAddr,
    /// Where its events come from.
    pub events: Option<EventAddress>,
}

impl Entry {
    /// The endpoint's name.
    #[must_use]
    pub fn name(&self) -> String {
        match self.rank {
            Some(rank) => format!("{}/{rank}", self.pod),
            None => self.pod.clone(),
        }
    }

    fn endpoint(&self, id: EndpointId) -> Endpoint {
        let endpoint = Endpoint::new(id, self.pod.clone(), self.address, self.events.clone());
        match self.rank {
            Some(rank) => endpoint.of_rank(rank),
            None => endpoint,
        }
    }
}

/// Gives entries their endpoints. Those that stay keep their number, load and trust. One of which
/// anything changed is another one: it must not inherit a picture.
#[derive(Debug, Default)]
pub struct Roster {
    next_id: u32,
    held: HashMap<Entry, Arc<Endpoint>>,
}

impl Roster {
    /// The fleet of those that serve, and those that rest.
    pub fn fleet(&mut self, serve: Vec<Entry>, rest: Vec<Entry>) -> Fleet {
        let mut before = std::mem::take(&mut self.held);
        let mut known = |entries: Vec<Entry>| {
            let mut endpoints = Vec::with_capacity(entries.len());
            for entry in entries {
                let same = before.remove(&entry);
                let endpoint = same.unwrap_or_else(|| {
                    let id = EndpointId(self.next_id);
                    self.next_id += 1;
                    Arc::new(entry.endpoint(id))
                });
                self.held.insert(entry, endpoint.clone());
                endpoints.push(endpoint);
            }
            endpoints.sort_by_key(|endpoint| endpoint.id);
            endpoints
        };
        Fleet {
            endpoints: known(serve),
            resting: known(rest),
            pools: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pod: &str, uid: &str) -> Entry {
        Entry {
            pod: pod.into(),
            uid: uid.into(),
            rank: None,
            address: "10.0.0.1:80".parse().expect("an address"),
            events: None,
        }
    }

    #[test]
    fn whoever_rests_and_serves_again_is_the_same_endpoint() {
        let mut roster = Roster::default();
        let first = roster
            .fleet(vec![entry("a", "1")], vec![])
            .endpoints
            .remove(0);
        let rests = roster.fleet(vec![], vec![entry("a", "1")]);
        assert!(rests.endpoints.is_empty() && Arc::ptr_eq(&rests.resting[0], &first));
        let back = roster.fleet(vec![entry("a", "1")], vec![]);
        assert!(Arc::ptr_eq(&back.endpoints[0], &first));
    }

    #[test]
    fn a_number_is_never_given_twice() {
        let mut roster = Roster::default();
        let mut id = |uid: &str| {
            roster.fleet(vec![entry("a", uid)], vec![]).endpoints[0]
                .id
                .0
        };
        assert_eq!((id("1"), id("2"), id("1")), (0, 1, 2));
    }
}

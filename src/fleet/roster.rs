//! Who of a changing fleet stays who it was.

use std::collections::{BTreeMap, HashMap};
use std::iter::repeat;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Endpoint, EndpointId, EventAddress, Fleet};
use crate::config::{Config, ReadsAs};

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
    /// How it reads prompts.
    pub reads_as: ReadsAs,
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
        let (pod, events) = (self.pod.clone(), self.events.clone());
        let endpoint = Endpoint::new(id, pod, self.address, events).reading_as(self.reads_as);
        match self.rank {
            Some(rank) => endpoint.of_rank(rank),
            None => endpoint,
        }
    }
}

/// What of the configuration decides how entries are read, whoever writes them.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Publishers may connect to us.
    pub binds: bool,
    /// Names of models, and the place of each in `models`.
    pub models: BTreeMap<String, usize>,
}

impl Settings {
    /// A configuration's.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let models = config.models.iter().enumerate();
        let models = models.flat_map(|(at, model)| model.names.iter().cloned().zip(repeat(at)));
        Self {
            binds: config.events.bind.is_some(),
            models: models.collect(),
        }
    }

    /// How an endpoint reads prompts that says this of it.
    #[must_use]
    pub fn reads_as(&self, model: Option<&str>) -> ReadsAs {
        let Some(model) = model else {
            return ReadsAs::Named;
        };
        let entry = self.models.get(model).copied();
        entry.map_or(ReadsAs::Unknown, ReadsAs::Entry)
    }

    /// The names that may be said, for an operator.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.models.keys().map(String::as_str).collect();
        names.join(", ")
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
    /// The number of the next endpoint that was never there.
    #[must_use]
    pub fn next_id(&self) -> EndpointId {
        EndpointId(self.next_id)
    }

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
            reads_as: ReadsAs::Named,
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
    fn whoever_reads_otherwise_is_another_endpoint() {
        let mut roster = Roster::default();
        let mut id = |reads_as| {
            let entry = Entry {
                reads_as,
                ..entry("a", "1")
            };
            let first = roster.fleet(vec![entry], vec![]).endpoints.remove(0);
            assert_eq!(first.reads_as, reads_as);
            first.id.0
        };
        let (named, entry) = (ReadsAs::Named, ReadsAs::Entry(1));
        assert_eq!([id(named), id(entry), id(entry), id(named)], [0, 1, 1, 2]);
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

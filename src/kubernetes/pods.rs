//! Pools and pods → endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::objects::{Created, Pod, Pool};
use crate::config::{Kubernetes, PodEvents};
use crate::fleet::roster::{Entry, Settings};
use crate::fleet::{EventAddress, Publisher};

/// Who has an address: whether it is ready, its age, its endpoints there, and of which pools they are.
type Seat<'a> = (bool, Created, Vec<Entry>, Vec<&'a str>);

/// The endpoints of the served pools' pods.
#[derive(Default)]
pub struct Seats {
    /// Those that serve.
    pub serve: Vec<Entry>,
    /// Those that rest.
    pub rest: Vec<Entry>,
    /// Whose the addresses are: a pool has some of its pods' ports.
    pub pools: BTreeMap<String, BTreeSet<SocketAddr>>,
}

/// Gives every endpoint its place.
///
/// A pod that ends has none. Of two pods with one address, as Kubernetes may tell for a moment after
/// one has gone, the ready one has it, else the younger one.
pub fn seats<'a>(
    (settings, common): (&Kubernetes, &Settings),
    pools: impl Iterator<Item = (&'a str, &'a Pool)> + Clone,
    pods: impl Iterator<Item = (&'a str, &'a Pod)>,
) -> Seats {
    let mut found = Seats::default();
    let mut seats: BTreeMap<SocketAddr, Seat<'_>> = BTreeMap::new();
    for (name, pod) in pods.filter(|(_, pod)| !pod.ends) {
        let Some(ip) = pod.ip else { continue };
        let ports = ports(pools.clone(), pod);
        for (place, (port, of)) in ports.iter().enumerate() {
            if !pod
                .active_ports
                .as_ref()
                .is_none_or(|active| active.contains(port))
            {
                continue;
            }
            let address = SocketAddr::new(ip, *port);
            // With one port the pod is the endpoint; else each has a name of its own.
            let name = match ports.len() {
                1 => name.to_owned(),
                _ => format!("{name}:{port}"),
            };
            let seat = |held: &Seat<'_>| (held.0, held.1) >= (pod.ready, pod.created);
            if !seats.get(&address).is_some_and(seat) {
                let all = ranks((settings, common), pod, &name, address, place);
                seats.insert(address, (pod.ready, pod.created, all, of.clone()));
            }
        }
    }
    for (address, (ready, _, entries, of)) in seats {
        for pool in of {
            found
                .pools
                .entry(pool.to_owned())
                .or_default()
                .insert(address);
        }
        match ready {
            true => found.serve.extend(entries),
            false => found.rest.extend(entries),
        }
    }
    found
}

/// Where a pod serves: the ports of all its pools, each with theirs.
fn ports<'a>(
    pools: impl Iterator<Item = (&'a str, &'a Pool)>,
    pod: &Pod,
) -> Vec<(u16, Vec<&'a str>)> {
    let mut ports: Vec<(u16, Vec<&str>)> = Vec::new();
    for (name, pool) in pools {
        let mut wanted = pool.selector.iter();
        if !wanted.all(|(key, value)| pod.labels.get(key) == Some(value)) {
            continue;
        }
        for port in &pool.ports {
            match ports.iter_mut().find(|(known, _)| known == port) {
                Some((_, of)) => of.push(name),
                None => ports.push((*port, vec![name])),
            }
        }
    }
    ports
}

/// The engines behind an address, which is the pod's `place`th.
fn ranks(
    (settings, common): (&Kubernetes, &Settings),
    pod: &Pod,
    name: &str,
    address: SocketAddr,
    place: usize,
) -> Vec<Entry> {
    let entry = |rank: u16| {
        // vLLM gives rank r the port + r, whether ranks share a port that serves or have one each.
        let offset = place * usize::from(pod.ranks) + usize::from(rank);
        let at = |port: u16| {
            let port = usize::from(port) + offset;
            let port = u16::try_from(port).ok()?;
            Some(format!("tcp://{}", SocketAddr::new(address.ip(), port)))
        };
        let publisher = match pod.events.unwrap_or(settings.events) {
            PodEvents::Port(port) => at(port).map(Publisher::At),
            PodEvents::Discover => Some(Publisher::Discovered),
            PodEvents::Off => common.binds.then_some(Publisher::Connects),
        };
        let replay = pod.replay_port.or(settings.replay_port).and_then(at);
        Entry {
            pod: name.to_owned(),
            uid: pod.uid.clone(),
            rank: (pod.ranks > 1).then_some(rank.into()),
            address,
            reads_as: common.reads_as(pod.model.as_deref()),
            events: publisher.map(|publisher| EventAddress {
                // It says so itself.
                replay: replay.filter(|_| publisher != Publisher::Discovered),
                publisher,
            }),
        }
    };
    (0..pod.ranks).map(entry).collect()
}

//! Pools and pods → endpoints.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::objects::{Created, Pod, Pool};
use crate::config::{Kubernetes, PodEvents};
use crate::fleet::roster::Entry;
use crate::fleet::{EventAddress, Publisher};

/// Who has an address: whether it is ready, its age, and its endpoints there.
type Seat = (bool, Created, Vec<Entry>);

/// The endpoints of the served pools' pods: those that serve, and those that rest.
///
/// A pod that ends is neither. Of two pods with one address, as Kubernetes may tell for a moment after
/// one has gone, the ready one has it, else the younger one.
pub fn entries<'a>(
    settings: &Kubernetes,
    binds: bool,
    pools: impl Iterator<Item = &'a Pool> + Clone,
    pods: impl Iterator<Item = (&'a str, &'a Pod)>,
) -> (Vec<Entry>, Vec<Entry>) {
    let mut seats: BTreeMap<SocketAddr, Seat> = BTreeMap::new();
    for (name, pod) in pods.filter(|(_, pod)| !pod.ends) {
        let Some(ip) = pod.ip else { continue };
        let ports = ports(pools.clone(), pod);
        for (place, port) in ports.iter().enumerate() {
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
            let seat = |held: &Seat| (held.0, held.1) >= (pod.ready, pod.created);
            if !seats.get(&address).is_some_and(seat) {
                let all = ranks(settings, binds, pod, &name, address, place);
                seats.insert(address, (pod.ready, pod.created, all));
            }
        }
    }
    let (mut serve, mut rest) = (Vec::new(), Vec::new());
    for (ready, _, entries) in seats.into_values() {
        if ready { &mut serve } else { &mut rest }.extend(entries);
    }
    (serve, rest)
}

/// Where a pod serves: the ports of all its pools.
fn ports<'a>(pools: impl Iterator<Item = &'a Pool>, pod: &Pod) -> Vec<u16> {
    let mut ports = Vec::new();
    for pool in pools {
        let mut wanted = pool.selector.iter();
        if wanted.all(|(key, value)| pod.labels.get(key) == Some(value)) {
            let new = pool.ports.iter().filter(|port| !ports.contains(*port));
            ports.extend(new.collect::<Vec<_>>());
        }
    }
    ports
}

/// The engines behind an address, which is the pod's `place`th.
fn ranks(
    settings: &Kubernetes,
    binds: bool,
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
            PodEvents::Off => binds.then_some(Publisher::Connects),
        };
        let replay = pod.replay_port.or(settings.replay_port).and_then(at);
        Entry {
            pod: name.to_owned(),
            uid: pod.uid.clone(),
            rank: (pod.ranks > 1).then_some(rank.into()),
            address,
            events: publisher.map(|publisher| EventAddress {
                // It says so itself.
                replay: replay.filter(|_| publisher != Publisher::Discovered),
                publisher,
            }),
        }
    };
    (0..pod.ranks).map(entry).collect()
}

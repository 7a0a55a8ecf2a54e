//! What listens to a fleet of one, and the picture that comes of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use kvscout::bridge::Bridge;
use kvscout::config::Nats;
use kvscout::events::listen::{Listeners, Way};
use kvscout::events::nats::Cluster;
use kvscout::events::zmq;
use kvscout::fleet::{Endpoint, EndpointId, EventAddress, Fleet};
use kvscout::index::Index;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Listens until it is dropped.
pub struct Ears {
    pub endpoint: Arc<Endpoint>,
    pub index: Arc<Index>,
    listening: JoinHandle<()>,
    _fleet: watch::Sender<Arc<Fleet>>,
}

/// A server by its name: where it answers, and where it publishes.
#[derive(Debug, Clone)]
pub struct Server {
    pub name: String,
    pub address: SocketAddr,
    pub events: Option<EventAddress>,
    pub rank: u32,
}

/// Straight from publishers.
pub fn direct() -> Way {
    let (topic, limits) = (String::new(), zmq::Limits::default());
    Way::Zmq {
        topic,
        limits,
        acceptor: None,
    }
}

impl Ears {
    /// Begins to listen.
    pub fn open(server: &Server, way: Way, bridge: Option<&Bridge>) -> Self {
        Self::open_as(server, way, |listeners| Listeners {
            tap: bridge.map(Bridge::tap),
            ..listeners
        })
    }

    /// The same with listeners as the test wants them.
    pub fn open_as(server: &Server, way: Way, change: impl FnOnce(Listeners) -> Listeners) -> Self {
        let Server {
            name,
            address,
            events,
            rank,
        } = server.clone();
        let endpoint = Endpoint::new(EndpointId(0), name, address, events);
        let endpoint = Arc::new(match rank {
            0 => endpoint,
            rank => endpoint.of_rank(rank),
        });
        let endpoints = vec![endpoint.clone()];
        let (sender, fleet) = watch::channel(Arc::new(Fleet::of(endpoints)));
        let index = Arc::new(Index::default());
        let listeners = change(Listeners::new(fleet, index.clone(), way));
        Self {
            endpoint,
            index,
            listening: tokio::spawn(listeners.run()),
            _fleet: sender,
        }
    }

    /// A bridge: its batches and snapshots go into the cluster.
    pub async fn bridge(server: &Server, settings: &Nats) -> Self {
        let cluster = Cluster::connect(settings).await.expect("an address");
        Self::open(server, direct(), Some(&Bridge::new(cluster)))
    }

    /// A picker that hears the server through the cluster.
    pub async fn picker(server: &Server, settings: &Nats) -> Self {
        let cluster = Cluster::connect(settings).await.expect("an address");
        Self::open(server, Way::Nats(Box::new(cluster)), None)
    }

    /// Physical copies by hash, as believed.
    pub fn copies(&self) -> BTreeMap<u64, usize> {
        copies(&self.index, self.endpoint.id)
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Physical copies by hash, as an index has them.
pub fn copies(index: &Index, endpoint: EndpointId) -> BTreeMap<u64, usize> {
    let picture = index.picture(endpoint);
    let caches = picture.into_iter().flat_map(|picture| picture.caches);
    let copies = caches.flat_map(|cache| cache.copies);
    copies
        .map(|(hash, _, count)| (hash, count as usize))
        .collect()
}

//! Publishers that connect to us: one listening SUB socket for a whole fleet.
//!
//! vLLM's PUB socket connects where its `endpoint` names a concrete host. Each connection is one
//! publisher; whose it is, its topic says (`kv@<name or ip>@<model>`), or else the address it comes
//! from. vLLM adds a data-parallel rank to the port that it connects to, as to one that it binds,
//! so that rank r arrives at a port of its own.
//!
//! Nobody is asked who he is, so strangers are bounded: in number, in what one message may hold,
//! and in warnings. An endpoint's connection may cost what one that we made may cost.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::Counter;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument;

use super::queue::Queue;
use super::zmq::{DepthGauge, Limits};
use super::{Delivery, EventSource};
use crate::fleet::{Endpoint, EndpointId};

mod claims;
mod peer;

use claims::Claims;
use peer::Peer;

/// Connections that belong to no endpoint, those that still shake hands among them. Past it the
/// longest-standing one is hung up on, so that a flood does not shut out a fleet.
const STRANGERS_MAX: usize = 256;
/// One message of a stranger: all of them together can make us hold 256 MiB. 1 MiB is a batch of
/// 200,000 tokens; a publisher whose topic is still to be heard comes back after a longer one.
const STRANGER_BYTES_MAX: usize = 1 << 20;
/// Without file descriptors nobody can be let in until somebody has left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("events.bind: cannot listen on tcp://{address}{of_rank}: {source}; is the port in use?")]
pub struct BindError {
    address: SocketAddr,
    of_rank: String,
    source: std::io::Error,
}

/// Lets publishers in. Dropping the last clone closes its ports.
#[derive(Debug, Clone)]
pub struct Acceptor {
    shared: Arc<Shared>,
    /// The ports: of each rank that the fleet has.
    ports: Arc<Mutex<(BTreeSet<u32>, JoinSet<()>)>>,
}

#[derive(Debug)]
struct Shared {
    /// Rank 0's.
    address: SocketAddr,
    /// 1, then the prefix, as in [`super::zmq`].
    subscription: Vec<u8>,
    limits: Limits,
    /// Batches of strangers.
    unclaimed: Counter,
    claims: Mutex<Claims>,
    /// Counts what may let a stranger find an endpoint: one came, or is free again.
    changes: AtomicU64,
}

impl Acceptor {
    /// Listens for publishers of topics that start with `topic_prefix` (empty: all); batches of
    /// those that belong to no endpoint are counted in `unclaimed`.
    ///
    /// # Errors
    /// The port cannot be had.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(
        address: SocketAddr,
        topic_prefix: &str,
        limits: Limits,
        unclaimed: Counter,
    ) -> Result<Self, BindError> {
        let listener = listen(address, 0)?;
        let shared = Arc::new(Shared {
            address: listener.local_addr().unwrap_or(address),
            subscription: [&[1], topic_prefix.as_bytes()].concat(),
            limits,
            unclaimed,
            claims: Mutex::default(),
            changes: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(shared.clone(), listener, 0));
        tracing::info!(address = %shared.address, "publishers may connect");
        Ok(Self {
            shared,
            ports: Arc::new(Mutex::new(([0].into(), tasks))),
        })
    }

    /// Where rank 0's publishers arrive, with the port that port 0 became.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What an endpoint's publisher says whenever it is connected.
    ///
    /// # Errors
    /// The port of its rank cannot be had.
    pub fn source(&self, endpoint: &Arc<Endpoint>) -> Result<BoundSource, BindError> {
        let rank = endpoint.rank.unwrap_or(0);
        let mut ports = self.ports.lock();
        if !ports.0.contains(&rank) {
            let listener = listen(self.shared.address, rank)?;
            ports.1.spawn(accept(self.shared.clone(), listener, rank));
            ports.0.insert(rank);
        }
        let limits = &self.shared.limits;
        let queue = Queue::new(limits.queue_messages_max, limits.queue_bytes_max);
        let queue = Arc::new(queue);
        self.shared.claims.lock().add(endpoint, queue.clone());
        self.shared.changed();
        Ok(BoundSource {
            acceptor: self.clone(),
            endpoint: endpoint.id,
            queue,
            patience: Some(Instant::now() + limits.connect_max),
        })
    }
}

/// One endpoint's events, from whichever connection is its publisher's.
#[derive(Debug)]
pub struct BoundSource {
    acceptor: Acceptor,
    endpoint: EndpointId,
    queue: Arc<Queue>,
    /// Until when it is no news that nobody has come.
    patience: Option<Instant>,
}

impl BoundSource {
    /// A reader of how much waits here, that may outlive the source.
    #[must_use]
    pub fn gauge(&self) -> DepthGauge {
        DepthGauge(self.queue.clone())
    }

    fn nobody(&self) -> Delivery {
        let address = self.acceptor.address();
        Delivery::Disconnected {
            reason: format!(
                "no publisher has come to events.bind (tcp://{address}) for it: does the endpoint of \
                 vLLM's --kv-events-config name this host, and its topic the pod, as kv@POD@MODEL?"
            ),
        }
    }
}

impl EventSource for BoundSource {
    async fn next(&mut self) -> Option<Delivery> {
        if let Some(until) = self.patience {
            let delivery = tokio::select! {
                biased;
                delivery = self.queue.pop() => delivery,
                () = sleep_until(until) => Some(self.nobody()),
            };
            self.patience = None;
            return delivery;
        }
        self.queue.pop().await
    }
}

impl Drop for BoundSource {
    fn drop(&mut self) {
        self.queue.close();
        self.acceptor.shared.claims.lock().remove(self.endpoint);
        self.acceptor.shared.changed();
    }
}

/// The standard library binds without waiting, so that a port is taken once.
fn listen(base: SocketAddr, rank: u32) -> Result<TcpListener, BindError> {
    let port = u16::try_from(rank).ok();
    let port = port.and_then(|rank| base.port().checked_add(rank));
    let address = SocketAddr::new(base.ip(), port.unwrap_or(0));
    let listener = match port {
        Some(_) => std::net::TcpListener::bind(address),
        None => Err(std::io::Error::other("there is no such port")),
    };
    let listener = listener.and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    listener.map_err(|source| BindError {
        address,
        of_rank: match rank {
            0 => String::new(),
            rank => format!(" for data-parallel rank {rank}"),
        },
        source,
    })
}

/// Lets in whoever comes to a rank's port.
async fn accept(shared: Arc<Shared>, listener: TcpListener, rank: u32) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => shared.admit(&mut connections, stream, peer, rank),
                Err(error) => {
                    tracing::warn!(%error, "a publisher cannot be let in");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

impl Shared {
    /// A stranger may find an endpoint now.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    fn stranger_bytes_max(&self) -> usize {
        STRANGER_BYTES_MAX.min(self.limits.message_bytes_max)
    }

    fn admit(
        self: &Arc<Self>,
        connections: &mut JoinSet<()>,
        stream: TcpStream,
        peer: SocketAddr,
        rank: u32,
    ) {
        // Not locked while it is spawned: it locks where it ends, and that may be at once.
        let id = self.claims.lock().enter(STRANGERS_MAX);
        let span = tracing::info_span!("publisher", %peer);
        let peer = Peer::new(self.clone(), id, peer.ip().to_canonical(), rank);
        let task = connections.spawn(peer.serve(stream).instrument(span));
        self.claims.lock().served_by(id, task);
    }
}

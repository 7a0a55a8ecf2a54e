//! Doors: how connections come in, so many at once and each within its time.
//!
//! One for each of our ports. Whoever connects gets a seat, shakes hands where the port is encrypted, and
//! then has a little time to say something: a peer that does neither costs a socket, and not for long. What goes
//! on inside a connection is for those who read it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::serve::Listener;
use futures::stream::{self, Stream};
use rustls::{Error as TlsFault, PeerMisbehaved};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::metrics::DoorMetrics;

mod connection;
pub mod tls;
mod usher;

pub use connection::{Connection, Patience};
pub use tls::{Certificates, TlsError};
pub use usher::{Entrance, Usher};

/// For a handshake, from the first byte to the last. A gateway in the same zone needs milliseconds.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// After `accept` failed, as it does while no file descriptor is left: without a pause it would be tried
/// again at once, for ever, by a whole core.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What is asked of an encrypted connection at a time: two TLS records. rustls by itself asks for 4 KiB
/// (0.23, `DeframerVecBuffer::prepare_read`), which is 128 system calls for a prompt of 100,000 tokens.
const READ_BYTES: usize = 32 << 10;

/// What a door allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorRules {
    /// Connections at once; who comes beyond them is hung up on.
    pub connections_max: usize,
    /// For a TLS handshake.
    pub handshake_max: Duration,
    /// How long one may be silent, and when.
    pub patience: Patience,
}

impl DoorRules {
    /// So many connections, with this patience.
    #[must_use]
    pub fn new(connections_max: usize, patience: Patience) -> Self {
        Self {
            connections_max,
            handshake_max: HANDSHAKE_MAX,
            patience,
        }
    }
}

/// A listening port.
pub struct Door {
    front: Front,
    hall: Hall,
}

/// Where sockets come in, and get a seat.
struct Front {
    listener: TcpListener,
    /// While it rests after a failure: until then.
    rests: Option<Instant>,
    seats: Seats,
    metrics: Arc<DoorMetrics>,
}

/// Where those who have a seat shake hands, each beside the others, on the runtime that they stay on.
struct Hall {
    rules: DoorRules,
    certificates: Option<Certificates>,
    metrics: Arc<DoorMetrics>,
    /// A gateway's mistake has been told of: it would be made again with each connection.
    told: Arc<AtomicBool>,
    entering: JoinSet<Option<Entered>>,
}

/// Who came, and is of no runtime yet.
struct Guest {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    seat: Seat,
}

/// Dropping it gives it back.
struct Seat {
    _one: OwnedSemaphorePermit,
    /// One of those of an entrance, where there are several.
    entrance: Option<Arc<()>>,
}

type Entered = (Connection, SocketAddr);

/// The connections that a door has.
#[derive(Debug, Clone)]
pub struct Seats {
    free: Arc<Semaphore>,
    max: usize,
}

impl Seats {
    /// How many there are.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.max - self.free.available_permits()
    }
}

impl Door {
    /// A door at this port: encrypted with these certificates, or plain.
    #[must_use]
    pub fn new(
        listener: TcpListener,
        rules: DoorRules,
        certificates: Option<Certificates>,
        metrics: DoorMetrics,
    ) -> Self {
        let (max, metrics) = (rules.connections_max, Arc::new(metrics));
        Self {
            front: Front {
                listener,
                rests: None,
                seats: Seats {
                    free: Arc::new(Semaphore::new(max)),
                    max,
                },
                metrics: metrics.clone(),
            },
            hall: Hall {
                rules,
                certificates,
                metrics,
                told: Arc::default(),
                entering: JoinSet::new(),
            },
        }
    }

    /// Its connections, for a scrape.
    #[must_use]
    pub fn seats(&self) -> Seats {
        self.front.seats.clone()
    }

    /// Those who came in, one after another; it has no end.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold(self, |mut door| async move {
            let (connection, _) = door.enter().await;
            Some((Ok(connection), door))
        })
    }

    /// The next who comes in.
    async fn enter(&mut self) -> Entered {
        loop {
            tokio::select! {
                guest = self.front.next() => self.hall.receive(guest),
                entered = self.hall.entered() => return entered,
            }
        }
    }
}

impl Front {
    /// The next who gets a seat. May be given up and asked again, also while it rests.
    async fn next(&mut self) -> Guest {
        loop {
            if let Some(rests) = self.rests {
                sleep_until(rests).await;
                self.rests = None;
            }
            match self.take().await {
                Ok(Some(guest)) => return guest,
                Ok(None) => self.metrics.refused("full"),
                Err(error) => {
                    not_accepted(&self.metrics, &error);
                    self.rests = Some(Instant::now() + ACCEPT_RETRY);
                }
            }
        }
    }

    /// Who comes next, unless there is no seat.
    async fn take(&self) -> io::Result<Option<Guest>> {
        let (stream, peer) = self.listener.accept().await?;
        let Ok(seat) = self.seats.free.clone().try_acquire_owned() else {
            return Ok(None);
        };
        // Small answers must not wait for more of them; where it fails the connection has gone already.
        let _ = stream.set_nodelay(true);
        Ok(Some(Guest {
            stream: stream.into_std()?,
            peer,
            seat: Seat {
                _one: seat,
                entrance: None,
            },
        }))
    }
}

impl Hall {
    /// One like it, in which nobody is.
    fn another(&self) -> Self {
        Self {
            rules: self.rules,
            certificates: self.certificates.clone(),
            metrics: self.metrics.clone(),
            told: self.told.clone(),
            entering: JoinSet::new(),
        }
    }

    /// Lets a handshake go on beside those of others.
    fn receive(&mut self, guest: Guest) {
        let acceptor = self.certificates.as_ref().map(Certificates::acceptor);
        let (rules, parts) = (self.rules, (self.metrics.clone(), self.told.clone()));
        self.entering.spawn(async move {
            let stream = TcpStream::from_std(guest.stream)
                .inspect_err(|error| not_accepted(&parts.0, error))
                .ok()?;
            let connection = shake(stream, acceptor, rules, guest.seat, parts).await?;
            Some((connection, guest.peer))
        });
    }

    /// The next who is done.
    async fn entered(&mut self) -> Entered {
        loop {
            match self.entering.join_next().await {
                Some(Ok(Some(entered))) => return entered,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// A connection could not be taken.
fn not_accepted(metrics: &DoorMetrics, error: &io::Error) {
    metrics.refused("accept");
    tracing::warn!(%error, port = metrics.port, "cannot take a connection; are there enough file descriptors (ulimit -n)?");
}

/// A handshake, where there is one.
async fn shake(
    stream: TcpStream,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    rules: DoorRules,
    seat: Seat,
    (metrics, told): (Arc<DoorMetrics>, Arc<AtomicBool>),
) -> Option<Connection> {
    let Some(acceptor) = acceptor else {
        return Some(Connection::plain(stream, rules.patience, seat, metrics));
    };
    let stream = BufReader::with_capacity(READ_BYTES, stream);
    match tokio::time::timeout(rules.handshake_max, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(Connection::encrypted(stream, rules.patience, seat, metrics)),
        Ok(Err(error)) => {
            metrics.refused("handshake_failed");
            tracing::debug!(%error, port = metrics.port, "a handshake failed");
            if names_no_host(&error) && !told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    port = metrics.port,
                    "who asks gives a name that no host can have, and is refused: is it Istio, whose DestinationRule for \
                     this Service lacks trafficPolicy.tls.sni?"
                );
            }
            None
        }
        Err(_) => {
            metrics.refused("handshake_late");
            None
        }
    }
}

/// Istio names its cluster (`outbound|9002||…`, Envoy's `auto_sni`), which rustls 0.23 takes from nobody, whatever the
/// certificate; 0.24 will let it be ignored ([rustls#2617](https://github.com/rustls/rustls/pull/2617)).
fn names_no_host(error: &io::Error) -> bool {
    let fault = error.get_ref().and_then(|fault| fault.downcast_ref());
    matches!(
        fault,
        Some(TlsFault::PeerMisbehaved(
            PeerMisbehaved::ServerNameMustContainOneHostName
        ))
    )
}

impl Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        self.enter().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.front.listener.local_addr()
    }
}

#[cfg(test)]
mod tests;

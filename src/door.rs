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

use crate::metrics::DoorMetrics;

mod connection;
pub mod tls;

pub use connection::{Connection, Patience};
pub use tls::{Certificates, TlsError};

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
    listener: TcpListener,
    rules: DoorRules,
    certificates: Option<Certificates>,
    seats: Seats,
    metrics: Arc<DoorMetrics>,
    /// A gateway's mistake has been told of: it would be made again with each connection.
    told: Arc<AtomicBool>,
    entering: JoinSet<Option<(Connection, SocketAddr)>>,
}

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
        let max = rules.connections_max;
        Self {
            listener,
            rules,
            certificates,
            seats: Seats {
                free: Arc::new(Semaphore::new(max)),
                max,
            },
            metrics: Arc::new(metrics),
            told: Arc::default(),
            entering: JoinSet::new(),
        }
    }

    /// Its connections, for a scrape.
    #[must_use]
    pub fn seats(&self) -> Seats {
        self.seats.clone()
    }

    /// Those who came in, one after another; it has no end.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold(self, |mut door| async move {
            let (connection, _) = door.enter().await;
            Some((Ok(connection), door))
        })
    }

    /// The next who comes in.
    async fn enter(&mut self) -> (Connection, SocketAddr) {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.seat(stream, peer),
                    Err(error) => {
                        self.metrics.refused("accept");
                        tracing::warn!(%error, port = self.metrics.port, "cannot take a connection; are there enough file descriptors (ulimit -n)?");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
                Some(entered) = self.entering.join_next() => if let Ok(Some(entered)) = entered {
                    return entered;
                }
            }
        }
    }

    /// Gives a seat to who came, and lets the handshake go on beside those of others.
    fn seat(&mut self, stream: TcpStream, peer: SocketAddr) {
        let Ok(seat) = self.seats.free.clone().try_acquire_owned() else {
            self.metrics.refused("full");
            return;
        };
        // Small answers must not wait for more of them; where it fails the connection has gone already.
        let _ = stream.set_nodelay(true);
        let (acceptor, rules) = (
            self.certificates.as_ref().map(Certificates::acceptor),
            self.rules,
        );
        let (metrics, told) = (self.metrics.clone(), self.told.clone());
        self.entering.spawn(async move {
            let connection = shake(stream, acceptor, rules, seat, (metrics, told)).await?;
            Some((connection, peer))
        });
    }
}

/// A handshake, where there is one.
async fn shake(
    stream: TcpStream,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    rules: DoorRules,
    seat: OwnedSemaphorePermit,
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
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests;

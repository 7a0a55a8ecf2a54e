//! One connection, its seat, and how long it may be silent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::Seat;
use crate::metrics::DoorMetrics;

/// How long a peer may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Until it has said [`PREFACE_BYTES`]: of HTTP/2, whose pings find out later who lives.
    First(Duration),
    /// At any time: of HTTP/1, which has no pings.
    Always(Duration),
}

/// What an HTTP/2 client begins with (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;

/// A connection that came in.
pub struct Connection {
    io: Io,
    heard_bytes: usize,
    patience: Patience,
    /// None where it may be silent for ever.
    silence: Option<Pin<Box<Sleep>>>,
    metrics: Arc<DoorMetrics>,
    _seat: Seat,
}

enum Io {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<BufReader<TcpStream>>>),
}

impl Connection {
    pub(super) fn plain(
        stream: TcpStream,
        patience: Patience,
        seat: Seat,
        metrics: Arc<DoorMetrics>,
    ) -> Self {
        Self::new(Io::Plain(stream), patience, seat, metrics)
    }

    pub(super) fn encrypted(
        stream: TlsStream<BufReader<TcpStream>>,
        patience: Patience,
        seat: Seat,
        metrics: Arc<DoorMetrics>,
    ) -> Self {
        Self::new(Io::Encrypted(Box::new(stream)), patience, seat, metrics)
    }

    fn new(io: Io, patience: Patience, seat: Seat, metrics: Arc<DoorMetrics>) -> Self {
        let (Patience::First(max) | Patience::Always(max)) = patience;
        Self {
            io,
            heard_bytes: 0,
            patience,
            silence: Some(Box::pin(sleep(max))),
            metrics,
            _seat: seat,
        }
    }

    /// It said so many bytes.
    fn heard(&mut self, bytes: usize) {
        self.heard_bytes = self.heard_bytes.saturating_add(bytes);
        match (self.patience, &mut self.silence) {
            (Patience::First(_), _) if self.heard_bytes >= PREFACE_BYTES => self.silence = None,
            (Patience::Always(max), Some(silence)) if bytes > 0 => {
                silence.as_mut().reset(Instant::now() + max);
            }
            _ => {}
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Encrypted(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        if let (Poll::Pending, Some(silence)) = (&read, &mut self.silence) {
            ready!(silence.as_mut().poll(context));
            self.metrics.refused("silent");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.heard(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Encrypted(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Io::Encrypted(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Encrypted(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Encrypted(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

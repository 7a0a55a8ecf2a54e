//! The certificate we show to gateways, and the handshake.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::TcpIncoming;

use crate::config::Tls;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}; check the mount and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{what} is not usable: {source}; is it PEM?")]
    Pem {
        /// `tls.cert` or `tls.key`.
        what: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// The certificate and its key do not fit.
    #[error("the certificate is not usable: {0}; are tls.cert and tls.key of one pair?")]
    Unfit(#[from] rustls::Error),
    /// The self-signed certificate could not be made.
    #[error("cannot make a self-signed certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Connections that shake hands at once; the others wait to be accepted. A gateway has one for each of its
/// threads.
const HANDSHAKES_MAX: usize = 1024;
/// Until a connection that says nothing makes room.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// For connections; `None` where it is off. A certificate made here bears `names`.
pub(super) async fn acceptor(tls: &Tls, names: &[String]) -> Result<Option<TlsAcceptor>, TlsError> {
    let (cert, key) = match tls {
        Tls::Off => return Ok(None),
        Tls::SelfSigned => self_signed(names)?,
        Tls::Files { cert, key } => (read(cert).await?, read(key).await?),
    };
    let bad = |what| move |source| TlsError::Pem { what, source };
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert).collect();
    let certs = certs.map_err(bad("tls.cert"))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(bad("tls.key"))?;
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certs, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// Connections after their handshake. One that fails it is the client's loss alone.
pub(super) fn accepted(
    incoming: TcpIncoming,
    tls: TlsAcceptor,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    let shaken = incoming.map(move |connection| {
        let tls = tls.clone();
        async move {
            let connection = match connection {
                Ok(connection) => connection,
                Err(error) => return Some(Err(error)),
            };
            match timeout(HANDSHAKE_MAX, tls.accept(connection)).await {
                Ok(Ok(connection)) => return Some(Ok(connection)),
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_late) => tracing::debug!("a TLS handshake took too long"),
            }
            None
        }
    });
    let shaken = shaken.buffer_unordered(HANDSHAKES_MAX);
    shaken.filter_map(std::future::ready)
}

fn self_signed(names: &[String]) -> Result<(Vec<u8>, Vec<u8>), TlsError> {
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = made.signing_key.serialize_pem();
    Ok((made.cert.pem().into_bytes(), key.into_bytes()))
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, TlsError> {
    let read = tokio::fs::read(path).await;
    read.map_err(|source| TlsError::Read {
        path: path.clone(),
        source,
    })
}

//! The certificate we show to gateways.

use std::path::PathBuf;

use thiserror::Error;
use tonic::transport::{Identity, ServerTlsConfig};

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
    /// The self-signed certificate could not be made.
    #[error("cannot make a self-signed certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// For the gRPC server; `None` where it is off. A certificate made here bears `names`.
pub(super) async fn config(
    tls: &Tls,
    names: &[String],
) -> Result<Option<ServerTlsConfig>, TlsError> {
    let identity = match tls {
        Tls::Off => return Ok(None),
        Tls::SelfSigned => self_signed(names)?,
        Tls::Files { cert, key } => Identity::from_pem(read(cert).await?, read(key).await?),
    };
    Ok(Some(ServerTlsConfig::new().identity(identity)))
}

fn self_signed(names: &[String]) -> Result<Identity, TlsError> {
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = made.signing_key.serialize_pem();
    Ok(Identity::from_pem(made.cert.pem(), key))
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, TlsError> {
    let read = tokio::fs::read(path).await;
    read.map_err(|source| TlsError::Read {
        path: path.clone(),
        source,
    })
}

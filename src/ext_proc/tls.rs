//! The certificate we show to gateways.

use std::path::PathBuf;

use thiserror::Error;
use tonic::transport::{Identity, ServerTlsConfig};

/// How the ext_proc port is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// With a certificate made at start, as gateways that verify nothing expect.
    SelfSigned {
        /// The Kubernetes namespace we run in, for the certificate's names.
        namespace: String,
    },
    /// With a certificate from files, in PEM.
    Files {
        /// The chain.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// Not at all.
    Off,
}

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

impl Tls {
    /// For the gRPC server; `None` where it is off.
    pub(super) async fn config(&self) -> Result<Option<ServerTlsConfig>, TlsError> {
        let identity = match self {
            Self::Off => return Ok(None),
            Self::SelfSigned { namespace } => self_signed(namespace)?,
            Self::Files { cert, key } => Identity::from_pem(read(cert).await?, read(key).await?),
        };
        Ok(Some(ServerTlsConfig::new().identity(identity)))
    }
}

fn self_signed(namespace: &str) -> Result<Identity, TlsError> {
    let names = [
        "kvscout".to_owned(),
        "localhost".to_owned(),
        format!("kvscout.{namespace}.svc"),
    ];
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

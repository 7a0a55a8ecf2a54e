//! The certificate that a port shows, and whom it lets in by theirs. Files are read again when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::config::Tls;
use crate::metrics::Metrics;

/// Between two looks at the files. A renewed certificate overlaps the old one by days.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// What gateways speak with us.
const ALPN_H2: &[u8] = b"h2";

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
    /// A file holds something else.
    #[error("{path} is not PEM with {what}: {problem}")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What is expected in it.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The self-signed certificate could not be made.
    #[error("cannot make a self-signed certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The parts do not fit together.
    #[error("the certificate cannot be used: {0}; do cert and key belong together?")]
    Unfit(#[from] rustls::Error),
    /// Nobody can be verified by these authorities.
    #[error("tls.client_ca cannot be used: {0}")]
    ClientCa(#[from] rustls::server::VerifierBuilderError),
}

/// The certificate that is shown from now on.
#[derive(Clone)]
pub struct Certificates(watch::Receiver<Arc<ServerConfig>>);

impl Certificates {
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.borrow().clone())
    }
}

/// Reads files again when they change.
pub struct Renewal {
    paths: Option<Paths>,
    /// The bytes in use.
    files: Option<Files>,
    shown: watch::Sender<Arc<ServerConfig>>,
    look_again: Duration,
}

#[derive(Clone)]
struct Paths {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// What they held.
#[derive(PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// What a port shows, and who keeps that current; `None` where it is plain. A certificate made here
/// bears `names`.
///
/// # Errors
/// [`TlsError`]: each names the file and what to mend.
pub async fn open(
    tls: &Tls,
    names: &[String],
) -> Result<Option<(Certificates, Renewal)>, TlsError> {
    let (config, paths, files) = match tls {
        Tls::Off => return Ok(None),
        Tls::SelfSigned => (self_signed(names)?, None, None),
        Tls::Files {
            cert,
            key,
            client_ca,
        } => {
            let (cert, key, client_ca) = (cert.clone(), key.clone(), client_ca.clone());
            let paths = Paths {
                cert,
                key,
                client_ca,
            };
            let files = paths.read().await?;
            (paths.config(&files)?, Some(paths), Some(files))
        }
    };
    let (shown, certificates) = watch::channel(Arc::new(config));
    let renewal = Renewal {
        paths,
        files,
        shown,
        look_again: LOOK_AGAIN,
    };
    Ok(Some((Certificates(certificates), renewal)))
}

impl Renewal {
    /// The same, which looks so often.
    #[must_use]
    pub fn every(self, look_again: Duration) -> Self {
        Self { look_again, ..self }
    }

    /// Looks again and again, for ever. What cannot be used is left, and the last good one shown on.
    pub async fn run(mut self, metrics: Arc<Metrics>) {
        let Some(paths) = self.paths.take() else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(self.look_again).await;
            match self.look(&paths).await {
                Ok(false) => {}
                Ok(true) => {
                    metrics.certificate_read("renewed");
                    tracing::info!(cert = %paths.cert.display(), "the certificate was renewed");
                }
                Err(error) => {
                    metrics.certificate_read("failed");
                    tracing::warn!(%error, "the old certificate is shown on");
                }
            }
        }
    }

    /// Whether there is another one, which is shown from now on.
    async fn look(&mut self, paths: &Paths) -> Result<bool, TlsError> {
        let files = paths.read().await?;
        if self.files.as_ref() == Some(&files) {
            return Ok(false);
        }
        let config = paths.config(&files)?;
        self.shown.send_replace(Arc::new(config));
        self.files = Some(files);
        Ok(true)
    }
}

impl Paths {
    async fn read(&self) -> Result<Files, TlsError> {
        Ok(Files {
            cert: read(&self.cert).await?,
            key: read(&self.key).await?,
            client_ca: match &self.client_ca {
                Some(path) => Some(read(path).await?),
                None => None,
            },
        })
    }

    fn config(&self, files: &Files) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&self.cert, &files.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&files.key)
            .map_err(|error| not_pem(&self.key, "a private key", &error))?;
        let clients = match (&self.client_ca, &files.client_ca) {
            (Some(path), Some(pem)) => certificates(path, pem)?,
            _ => Vec::new(),
        };
        config(chain, key, clients)
    }
}

/// TLS 1.2 and 1.3, by ring; with authorities, only clients whose certificate one of them signed.
fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Vec<CertificateDer<'static>>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = if clients.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        for authority in clients {
            roots.add(authority)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build()?)
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols.push(ALPN_H2.to_vec());
    Ok(config)
}

fn self_signed(names: &[String]) -> Result<ServerConfig, TlsError> {
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    config(vec![made.cert.der().clone()], key, Vec::new())
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = read.map_err(|error| not_pem(path, "certificates", &error))?;
    if found.is_empty() {
        return Err(not_pem(path, "certificates", &"there is none in it"));
    }
    Ok(found)
}

fn not_pem(path: &Path, what: &'static str, problem: &impl ToString) -> TlsError {
    TlsError::NotPem {
        path: path.to_owned(),
        what,
        problem: problem.to_string(),
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = tokio::fs::read(path).await;
    read.map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

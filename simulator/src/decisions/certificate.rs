//! kvscout's certificate, in files that the asker trusts, and that may be renewed.

use std::path::{Path, PathBuf};

use kvscout::config::Tls;
use tempfile::TempDir;
use tonic::transport::Identity;

/// A self-signed one, gone with its folder.
#[derive(Debug)]
pub struct Certificate {
    folder: TempDir,
}

impl Certificate {
    /// Made anew.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("kvscout-tls-").tempdir()?;
        let certificate = Self { folder };
        certificate.renew()?;
        Ok(certificate)
    }

    /// Another in its place.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn renew(&self) -> anyhow::Result<()> {
        let made = rcgen::generate_simple_self_signed(["kvscout".to_owned()])?;
        std::fs::write(self.key(), made.signing_key.serialize_pem())?;
        Ok(std::fs::write(self.path(), made.cert.pem())?)
    }

    /// Where it is, in PEM.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.file("tls.crt")
    }

    /// How kvscout shows it.
    #[must_use]
    pub fn tls(&self) -> Tls {
        Tls::Files {
            cert: self.path(),
            key: self.key(),
            client_ca: None,
        }
    }

    /// How a server of our own shows it.
    ///
    /// # Errors
    /// The disk does not give it.
    pub fn identity(&self) -> anyhow::Result<Identity> {
        let (cert, key) = (std::fs::read(self.path())?, std::fs::read(self.key())?);
        Ok(Identity::from_pem(cert, key))
    }

    fn key(&self) -> PathBuf {
        self.file("tls.key")
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::join(self.folder.path(), name)
    }
}

//! Addresses of our own, and how the one that Envoy asks at is secured.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::print;
use super::yaml::Section;

/// Addresses of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The External Processor, gRPC.
    pub ext_proc: SocketAddr,
    /// grpc.health.v1, plaintext.
    pub health: SocketAddr,
    /// `/metrics`, `/healthz`, `/readyz`, and pages for people.
    pub admin: SocketAddr,
    /// A file with the token that whoever is not on this host must show there.
    pub admin_token: Option<PathBuf>,
}

/// Transport security of the ext_proc port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tls {
    /// A certificate made at start: encrypted, not authenticated, as gateways expect.
    #[default]
    SelfSigned,
    /// PEM files.
    Files {
        /// The chain.
        cert: PathBuf,
        /// The private key.
        key: PathBuf,
        /// Authorities; only clients whose certificate one of them signed may connect.
        client_ca: Option<PathBuf>,
    },
    /// Plaintext.
    Off,
}

impl Default for Listen {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            ext_proc: any(9002),
            health: any(9003),
            // Metrics and pages tell who serves what to whom; a cluster's chart opens it.
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            admin_token: None,
        }
    }
}

pub(super) fn read(listen: &mut Section<'_>, folder: &Path) -> Listen {
    let defaults = Listen::default();
    let ext_proc = listen.get("ext_proc", defaults.ext_proc);
    let health = listen.get("health", defaults.health);
    let admin = listen.get("admin", defaults.admin);
    for (key, ours, other, theirs) in [
        ("health", health, "ext_proc", ext_proc),
        ("admin", admin, "ext_proc", ext_proc),
        ("admin", admin, "health", health),
    ] {
        if collide(ours, theirs) {
            listen.complain(key, format!("{ours} is the port of {other}, too"));
        }
    }
    Listen {
        ext_proc,
        health,
        admin,
        admin_token: listen
            .optional::<PathBuf>("admin_token")
            .map(|path| folder.join(path)),
    }
}

/// Whether two listeners want the same port; of port 0 the system gives each one of its own.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || everywhere)
}

pub(super) fn read_tls(tls: &mut Section<'_>, folder: &Path) -> Tls {
    let mode = tls.word("mode", print::TLS_MODES, print::TlsMode::SelfSigned);
    let files = (
        tls.optional::<PathBuf>("cert"),
        tls.optional::<PathBuf>("key"),
    );
    let client_ca = tls.optional::<PathBuf>("client_ca");
    if client_ca.is_some() && mode != print::TlsMode::Files {
        tls.complain("client_ca", "belongs to mode: files");
    }
    match (mode, files) {
        (print::TlsMode::Off, (None, None)) => Tls::Off,
        (print::TlsMode::SelfSigned, (None, None)) => Tls::SelfSigned,
        (print::TlsMode::Files, (Some(cert), Some(key))) => Tls::Files {
            cert: folder.join(cert),
            key: folder.join(key),
            client_ca: client_ca.map(|path| folder.join(path)),
        },
        (print::TlsMode::Files, _) => {
            tls.complain("mode", "files needs both cert and key: paths of PEM files");
            Tls::SelfSigned
        }
        (_, _) => {
            tls.complain("mode", "cert and key belong to mode: files");
            Tls::SelfSigned
        }
    }
}

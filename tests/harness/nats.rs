//! A real nats-server, and what runs beside it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kvscout::config::Nats;

use super::until;

/// A nats-server with JetStream on a port of its own; killed when dropped.
pub struct NatsServer {
    child: Option<Child>,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

/// Where `make setup` puts it; the environment's word wins, for other versions.
fn binary() -> PathBuf {
    std::env::var_os("KVSCOUT_NATS_SERVER").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/venv/bin/nats-server"),
        PathBuf::from,
    )
}

impl NatsServer {
    /// The same with a configuration beside the flags: who may come, and over TLS.
    pub async fn configured(config: &str) -> Self {
        let mut server = Self::new();
        std::fs::write(server.folder.path().join("nats.conf"), config).expect("written");
        server.restart().await;
        server
    }

    /// Starts, and waits until it answers.
    pub async fn start() -> Self {
        let mut server = Self::new();
        server.restart().await;
        server
    }

    fn new() -> Self {
        // Its port must outlive a restart, so it is not left to the server.
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound");
        drop(free);
        Self {
            child: None,
            address,
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Starts over what it kept on disk.
    pub async fn restart(&mut self) {
        self.kill();
        let port = self.address.port().to_string();
        let mut command = Command::new(binary());
        let config = self.folder.path().join("nats.conf");
        if config.is_file() {
            command.arg("-c").arg(config);
        }
        let child = command
            .args(["-js", "-a", "127.0.0.1", "-p", &port, "-sd"])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run make setup");
        self.child = Some(child);
        let address = self.address;
        until("nats-server answers", || {
            TcpStream::connect(address).is_ok()
        })
        .await;
    }

    /// Ends it at once, as a lost node does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that has ended cannot be killed, and need not be.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Forgets what it kept; it must not run.
    pub fn forget(&mut self) {
        assert!(self.child.is_none(), "kill it first");
        self.folder = tempfile::tempdir().expect("a folder");
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How to reach it.
    pub fn settings(&self) -> Nats {
        Nats {
            servers: vec![format!("nats://{}", self.address)],
            snapshot_batches: 50,
            snapshot_s: 1,
            ..Nats::default()
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

//! NATS JetStream: where bridges keep events, and where pickers read them.

use std::path::{Path, PathBuf};

use super::yaml::Section;

/// The stream, the account and how much is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nats {
    /// Servers of one cluster: `nats://host:port`, or `tls://host:port`.
    pub servers: Vec<String>,
    /// The first two words of every subject after `kv`: whose servers, and which of them.
    pub namespace: String,
    /// See `namespace`.
    pub pool: String,
    /// A `.creds` file: a user's JWT and its seed.
    pub credentials: Option<PathBuf>,
    /// A file with an nkey's seed.
    pub nkey: Option<PathBuf>,
    /// PEM certificates of an authority, beside the system's.
    pub ca: Option<PathBuf>,
    /// A client's certificate and key in PEM.
    pub cert: Option<PathBuf>,
    /// See `cert`.
    pub key: Option<PathBuf>,
    /// The stream, and the bucket of snapshots beside it.
    pub stream: Stream,
    /// Batches of one server between two snapshots of it.
    pub snapshot_batches: u64,
    /// Seconds between two, if anything came.
    pub snapshot_s: u64,
}

/// What `kvscout bridge --init` makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its name; the bucket's is the same and `_SNAPSHOTS`.
    pub name: String,
    /// Seconds that a batch is kept. Longer than [`Nats::snapshot_s`]: what came after a
    /// snapshot must still be there when it is used.
    pub max_age_s: u64,
    /// Bytes of batches; past it the oldest go.
    pub max_bytes: u64,
    /// Servers that keep it.
    pub replicas: usize,
    /// In memory instead of on disk.
    pub in_memory: bool,
    /// Tags that these servers must have.
    pub placement: Vec<String>,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            namespace: "default".to_owned(),
            pool: "default".to_owned(),
            credentials: None,
            nkey: None,
            ca: None,
            cert: None,
            key: None,
            stream: Stream {
                name: "KV_EVENTS".to_owned(),
                max_age_s: 3_600,
                max_bytes: 4 << 30,
                replicas: 1,
                in_memory: false,
                placement: Vec::new(),
            },
            snapshot_batches: 1_000,
            snapshot_s: 30,
        }
    }
}

pub(super) const STORAGES: &[(&str, bool)] = &[("file", false), ("memory", true)];

pub(super) fn read(nats: &mut Section<'_>, folder: &Path) -> Nats {
    let defaults = Nats::default();
    let mut path = |key| nats.optional::<PathBuf>(key).map(|path| folder.join(path));
    let (credentials, nkey) = (path("credentials"), path("nkey"));
    let (ca, cert, key) = (path("ca"), path("cert"), path("key"));
    if credentials.is_some() && nkey.is_some() {
        nats.complain("nkey", "credentials hold a key already: give one of both");
    }
    if cert.is_some() != key.is_some() {
        nats.complain("cert", "cert and key belong together: paths of PEM files");
    }
    let servers = match nats.has("servers") {
        true => nats.texts("servers"),
        false => defaults.servers,
    };
    if servers.is_empty() {
        nats.complain("servers", "is empty: give at least one, nats://host:port");
    }
    let namespace = word(nats, "namespace", defaults.namespace);
    let pool = word(nats, "pool", defaults.pool);
    let stream = nats.section("stream", |stream| Some(read_stream(stream)));
    let stream = stream.unwrap_or(defaults.stream);
    let snapshot_s = nats.within("snapshot_s", (1, 86_400), defaults.snapshot_s);
    if snapshot_s.saturating_mul(2) > stream.max_age_s {
        let problem = "is more than half of stream.max_age_s: batches would be gone before the snapshot that replaces them";
        nats.complain("snapshot_s", problem);
    }
    Nats {
        servers,
        namespace,
        pool,
        credentials,
        nkey,
        ca,
        cert,
        key,
        stream,
        snapshot_batches: nats.within(
            "snapshot_batches",
            (1, 1_000_000),
            defaults.snapshot_batches,
        ),
        snapshot_s,
    }
}

fn read_stream(stream: &mut Section<'_>) -> Stream {
    let defaults = Nats::default().stream;
    Stream {
        name: word(stream, "name", defaults.name),
        max_age_s: stream.within("max_age_s", (10, 31_536_000), defaults.max_age_s),
        max_bytes: stream.within("max_bytes", (1 << 20, 1 << 50), defaults.max_bytes),
        replicas: stream.within("replicas", (1, 5), defaults.replicas),
        in_memory: stream.word("storage", STORAGES, defaults.in_memory),
        placement: stream.texts("placement"),
    }
}

/// A word of a subject, or a stream's name.
fn word(section: &mut Section<'_>, key: &'static str, default: String) -> String {
    let word = section.get(key, default);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if word.is_empty() || !word.chars().all(plain) {
        section.complain(
            key,
            format!("{word:?} is not a word of letters, digits, - and _"),
        );
    }
    word
}

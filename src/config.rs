//! What an operator may decide; validated, every complaint at once.
//!
//! One YAML file, and flags over it. Unknown keys are refused. [`Config::to_yaml`] writes a
//! configuration with its documentation; what it writes for the defaults is
//! `deploy/kvscout.yaml`, and a test keeps them equal.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

mod admission;
mod decisions;
mod fleet;
mod inference;
mod leader;
mod load;
mod metrics;
mod model;
mod nats;
mod print;
mod render;
mod replicas;
mod tracing;
pub mod yaml;

pub use admission::Admission;
pub use decisions::{DecisionLog, Decisions, Pages};
pub use fleet::{EVENTS_PORT, FleetSource, Kubernetes, PodEvents};
pub use inference::{Criticality, InferenceModel, InferenceObjective, Target};
pub use leader::LeaderElection;
pub use load::{Load, Saturation};
pub use metrics::Metrics;
pub use model::{Engine, Model, ReadsAs, Repo, Source};
pub use nats::{Nats, Stream};
pub use render::{ContentFormat, Dialect, RenderSettings};
pub use replicas::Share;
pub use tracing::Tracing;
use yaml::{Complaints, Section};

/// Everything that `kvscout serve` can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// How Envoy reaches the ext_proc port.
    pub tls: Tls,
    /// Which endpoints there are.
    pub fleet: FleetSource,
    /// Served models whose prompts can be scored. Others are routed by load alone.
    pub models: Vec<Model>,
    /// Where the files of the hub's models are kept.
    pub models_cache: PathBuf,
    /// How important models are, and which others serve them.
    pub inference_models: Vec<InferenceModel>,
    /// Priorities that requests name.
    pub inference_objectives: Vec<InferenceObjective>,
    /// Where KV events come from.
    pub events: Events,
    /// Whether replicas tell each other what they have in flight.
    pub share: Share,
    /// What servers say of their own load.
    pub load: Load,
    /// How to choose.
    pub policy: Policy,
    /// Who waits and who is refused where all endpoints are saturated.
    pub admission: Admission,
    /// What bounds a request.
    pub limits: Limits,
    /// How Envoy is answered.
    pub replies: Replies,
    /// What is kept of decisions.
    pub decisions: Decisions,
    /// How metrics are named.
    pub metrics: Metrics,
    /// Where spans go.
    pub tracing: Tracing,
    /// How logs look.
    pub log: LogFormat,
}

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

/// Where KV events come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events {
    /// By which way.
    pub source: EventSourceKind,
    /// Where publishers connect to us; endpoints without an address of theirs are heard there.
    pub bind: Option<SocketAddr>,
    /// Where bridges keep them.
    pub nats: Nats,
    /// A file with what names of blocks are mixed with; the same for all who tell each other.
    pub keys_secret: Option<PathBuf>,
    /// Only topics that start so.
    pub topic: String,
    /// Bytes of undecoded events kept per endpoint before the newest are dropped.
    pub queue_bytes_max: usize,
}

/// A way for KV events to reach us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSourceKind {
    /// Straight from each endpoint's publisher.
    Zmq,
    /// From the stream that bridges fill.
    Nats,
    /// Not at all: every choice is by load.
    Off,
}

/// How to choose.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// By what.
    pub strategy: Strategy,
    /// Predicted cached tokens / prompt tokens that the best endpoint must exceed for overlap
    /// to count.
    pub matching_ratio_min: f64,
    /// What a cached token is worth, by where it is.
    pub media: Media,
    /// Request headers that name a conversation, in lower case; the first that is there counts.
    pub session_headers: Vec<String>,
    /// Whether a conversation whose prompt cannot be read stays on its endpoint.
    pub session_affinity: bool,
    /// Endpoints that a reply names beside the best, for gateways that read a list.
    pub fallbacks: usize,
}

/// Shares of a computed token's cost that a cached one spares, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Media {
    /// In the engine's own cache.
    pub gpu: f64,
    /// In host memory: at 25 GB/s and 56 KB a token (7B) it is there in a twentieth of the time.
    pub cpu: f64,
    /// On disk or remote storage: at 3 GB/s in two fifths.
    pub storage: f64,
}

/// The routing strategies of the InferencePool annotation
/// `inference.networking.x-k8s.io/routing-strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Exact overlap and load.
    PrefixCache,
    /// Load alone.
    Default,
}

impl Strategy {
    /// The word of the annotation.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        print::word(print::STRATEGIES, &self)
    }
}

impl std::str::FromStr for Strategy {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let known = print::STRATEGIES.iter().find(|(known, _)| *known == word);
        known.map(|(_, strategy)| *strategy).ok_or_else(|| {
            let all: Vec<_> = print::STRATEGIES.iter().map(|(known, _)| *known).collect();
            format!("{word:?} is not one of {}", all.join(", "))
        })
    }
}

/// What bounds a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request body that are held and scored; longer ones go by load.
    pub body_bytes_max: usize,
    /// Bytes of bodies that all requests together hold; past it they are not read.
    pub held_bytes_max: usize,
    /// Milliseconds from whole body to choice; then it goes by load.
    pub decision_ms_max: u64,
    /// Requests whose bodies are read at once; more go by load.
    pub exchanges_max: usize,
    /// Requests that are open at once, their answers included; more are refused.
    pub streams_max: usize,
    /// Connections of each port at once; more are refused.
    pub connections_max: usize,
    /// Milliseconds from headers to whole body; then it goes by load.
    pub body_ms_max: u64,
    /// Milliseconds in which nothing is said, either way; then the conversation is ended.
    pub silence_ms_max: u64,
    /// Milliseconds that everything has waited for a core lately; then new requests are refused.
    pub core_wait_ms_max: u64,
    /// Long texts that wait for the tokenizer; more go by load.
    pub tokenizer_queue_max: usize,
    /// Bytes that each model's segment cache may take; 0 turns it off.
    pub token_cache_bytes_max: u64,
    /// Milliseconds that one waits; then it goes by load.
    pub tokenizer_wait_ms_max: u64,
    /// Bytes that the index may take; past it the prompts that nobody extended for the longest are
    /// given up, and the endpoints that held them are `doubtful`.
    pub index_bytes_max: usize,
    /// Milliseconds from "not ready" to the first refusal after SIGTERM.
    pub drain_notice_ms: u64,
    /// Milliseconds that running exchanges then get to end.
    pub drain_ms_max: u64,
}

/// How Envoy is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replies {
    /// Add the response header `x-kvscout-decision`: who, why, predicted tokens.
    pub decision_header: bool,
    /// Obey the request header `test-epp-endpoint-selection`, and say in
    /// `x-conformance-test-served-endpoint` who served.
    pub conformance_tests: bool,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Each is a choice of its own, and Envoy tries few.
const FALLBACKS_MAX: usize = 8;

/// Thirty million tokens of text and their ids: the working set of some thousand conversations.
pub const TOKEN_CACHE_BYTES_MAX: u64 = 256 << 20;

/// Of a machine's cores, how many serve requests, and how many read long prompts. Each such thread has tables of
/// the tokenizer, up to 80 MB of them for each model, and eight read 4,000 prompts of 100,000 tokens a second.
pub const THREADS_MAX: usize = 8;

/// A thread for each core that this process may use, up to [`THREADS_MAX`].
#[must_use]
pub fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    cores.min(THREADS_MAX)
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            listen: Listen {
                ext_proc: any(9002),
                health: any(9003),
                // Metrics and pages tell who serves what to whom; a cluster's chart opens it.
                admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
                admin_token: None,
            },
            tls: Tls::SelfSigned,
            fleet: FleetSource::File("fleet.yaml".into()),
            models: Vec::new(),
            models_cache: "/var/cache/kvscout/models".into(),
            inference_models: Vec::new(),
            inference_objectives: Vec::new(),
            events: Events {
                source: EventSourceKind::Zmq,
                bind: None,
                nats: Nats::default(),
                keys_secret: None,
                topic: String::new(),
                queue_bytes_max: 64 << 20,
            },
            share: Share::default(),
            load: Load::default(),
            policy: Policy {
                strategy: Strategy::PrefixCache,
                matching_ratio_min: 0.5,
                media: Media {
                    gpu: 1.0,
                    cpu: 0.9,
                    storage: 0.6,
                },
                // llm-d's name. None of a user: behind one account may be everybody.
                session_headers: vec!["x-session-id".to_owned()],
                session_affinity: true,
                // Envoy AI Gateway and agentgateway answer 503 to a list.
                fallbacks: 0,
            },
            admission: Admission::default(),
            limits: Limits {
                body_bytes_max: 64 << 20,
                held_bytes_max: 1 << 30,
                decision_ms_max: 5_000,
                exchanges_max: 10_000,
                // Eight kilobytes each without their bodies: 240 MB.
                streams_max: 30_000,
                // Envoy has one a worker thread: a hundred machines of ten.
                connections_max: 1_024,
                body_ms_max: 10_000,
                silence_ms_max: 3_600_000,
                core_wait_ms_max: 500,
                tokenizer_queue_max: 256,
                token_cache_bytes_max: TOKEN_CACHE_BYTES_MAX,
                // A miss costs the prefill of a few thousand tokens, some 100 ms: a longer
                // wait would cost more than it can save.
                tokenizer_wait_ms_max: 50,
                // 512 endpoints of 150,000 blocks.
                index_bytes_max: 4 << 30,
                drain_notice_ms: 5_000,
                drain_ms_max: 30_000,
            },
            replies: Replies {
                decision_header: false,
                conformance_tests: false,
            },
            decisions: Decisions::default(),
            metrics: Metrics::default(),
            tracing: Tracing::default(),
            log: LogFormat::Text,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, Complaints> {
        let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
        Self::parse(file, &text)
    }

    /// Checks a file's text; relative paths in it start from the file's folder.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Complaints> {
        let folder = file.parent().unwrap_or(Path::new(""));
        yaml::read(file, text, |root| read_config(root, folder))
    }
}

/// The one complaint about a file that cannot be read at all.
pub fn unreadable(file: &Path, error: &std::io::Error) -> Complaints {
    let problem = format!("cannot be read: {error}");
    let complaint = yaml::Complaint {
        line: 0,
        field: String::new(),
        problem,
    };
    Complaints {
        file: file.display().to_string(),
        complaints: vec![complaint],
    }
}

fn read_config(root: &mut Section<'_>, folder: &Path) -> Config {
    let defaults = Config::default();
    let events = root
        .section("events", |events| Some(read_events(events, folder)))
        .unwrap_or(defaults.events);
    let metrics = root.section("metrics", |section| {
        Some(metrics::read(section, &events.nats.pool))
    });
    Config {
        listen: root
            .section("listen", |listen| Some(read_listen(listen, folder)))
            .unwrap_or(defaults.listen),
        tls: root.section("tls", |tls| read_tls(tls, folder)),
        fleet: fleet::read(root, folder, events.bind.is_some()),
        models: model::read_models(root, folder),
        models_cache: folder.join(
            root.optional::<PathBuf>("models_cache")
                .unwrap_or(defaults.models_cache),
        ),
        inference_models: inference::read_models(root),
        inference_objectives: inference::read_objectives(root),
        events,
        share: root.section("replicas", replicas::read),
        load: root
            .section("load", |load| Some(load::read(load)))
            .unwrap_or(defaults.load),
        policy: root
            .section("policy", |policy| Some(read_policy(policy)))
            .unwrap_or(defaults.policy),
        admission: root
            .section("admission", |admission| Some(admission::read(admission)))
            .unwrap_or(defaults.admission),
        limits: root
            .section("limits", |limits| Some(read_limits(limits)))
            .unwrap_or(defaults.limits),
        replies: root
            .section("replies", |replies| {
                Some(Replies {
                    decision_header: replies.get("decision_header", false),
                    conformance_tests: replies.get("conformance_tests", false),
                })
            })
            .unwrap_or(defaults.replies),
        decisions: root
            .section("decisions", |section| {
                Some(decisions::read(section, folder))
            })
            .unwrap_or(defaults.decisions),
        metrics: metrics.unwrap_or(defaults.metrics),
        tracing: root
            .section("tracing", |section| Some(tracing::read(section, folder)))
            .unwrap_or(defaults.tracing),
        log: root.word("log", print::LOG_FORMATS, defaults.log),
    }
}

fn read_listen(listen: &mut Section<'_>, folder: &Path) -> Listen {
    let defaults = Config::default().listen;
    Listen {
        ext_proc: listen.get("ext_proc", defaults.ext_proc),
        health: listen.get("health", defaults.health),
        admin: listen.get("admin", defaults.admin),
        admin_token: listen
            .optional::<PathBuf>("admin_token")
            .map(|path| folder.join(path)),
    }
}

fn read_tls(tls: &mut Section<'_>, folder: &Path) -> Tls {
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

fn read_events(events: &mut Section<'_>, folder: &Path) -> Events {
    let defaults = Config::default().events;
    Events {
        source: events.word("source", print::EVENT_SOURCES, defaults.source),
        bind: read_bind(events),
        nats: events
            .section("nats", |nats| Some(nats::read(nats, folder)))
            .unwrap_or(defaults.nats),
        keys_secret: events
            .optional::<PathBuf>("keys_secret")
            .map(|path| folder.join(path)),
        topic: events.get("topic", defaults.topic),
        queue_bytes_max: events.within(
            "queue_bytes_max",
            (1 << 20, 16 << 30),
            defaults.queue_bytes_max,
        ),
    }
}

/// As vLLM writes it: `tcp://ip:port`, or `tcp://*:port` for every address that we have.
fn read_bind(events: &mut Section<'_>) -> Option<SocketAddr> {
    let text = events.text("bind")?;
    let address = text.strip_prefix("tcp://").map(|address| {
        let any = address
            .strip_prefix("*:")
            .map(|port| format!("0.0.0.0:{port}"));
        any.unwrap_or_else(|| address.to_owned()).parse()
    });
    match address {
        Some(Ok(address)) => Some(address),
        _ => {
            let problem =
                format!("{text:?} is not tcp://ip:port of this host, as tcp://0.0.0.0:5557");
            events.complain("bind", problem);
            None
        }
    }
}

fn read_policy(policy: &mut Section<'_>) -> Policy {
    let defaults = Config::default().policy;
    Policy {
        strategy: policy.word("strategy", print::STRATEGIES, defaults.strategy),
        matching_ratio_min: policy.within(
            "matching_ratio_min",
            (0.0, 1.0),
            defaults.matching_ratio_min,
        ),
        media: policy
            .section("media", |media| Some(read_media(media)))
            .unwrap_or(defaults.media),
        session_headers: read_headers(policy).unwrap_or(defaults.session_headers),
        session_affinity: policy.get("session_affinity", defaults.session_affinity),
        fallbacks: policy.within("fallbacks", (0, FALLBACKS_MAX), defaults.fallbacks),
    }
}

/// Names of headers, as HTTP spells them: HTTP/2 has them in lower case, and so has Envoy.
fn read_headers(policy: &mut Section<'_>) -> Option<Vec<String>> {
    if !policy.has("session_headers") {
        return None;
    }
    let names = policy.texts("session_headers");
    let is_name = |name: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !name.is_empty() && name.chars().all(plain)
    };
    if let Some(wrong) = names.iter().find(|name| !is_name(name)) {
        policy.complain(
            "session_headers",
            format!("{wrong:?} is not a header's name"),
        );
    }
    Some(names.iter().map(|name| name.to_ascii_lowercase()).collect())
}

fn read_media(media: &mut Section<'_>) -> Media {
    let defaults = Config::default().policy.media;
    let mut share = |name, default| media.within(name, (0.0, 1.0), default);
    Media {
        gpu: share("gpu", defaults.gpu),
        cpu: share("cpu", defaults.cpu),
        storage: share("storage", defaults.storage),
    }
}

fn read_limits(limits: &mut Section<'_>) -> Limits {
    let defaults = Config::default().limits;
    Limits {
        body_bytes_max: limits.within(
            "body_bytes_max",
            (1 << 10, 1 << 30),
            defaults.body_bytes_max,
        ),
        held_bytes_max: limits.within(
            "held_bytes_max",
            (1 << 20, 1 << 40),
            defaults.held_bytes_max,
        ),
        decision_ms_max: limits.within("decision_ms_max", (1, 600_000), defaults.decision_ms_max),
        exchanges_max: limits.within("exchanges_max", (1, 1_000_000), defaults.exchanges_max),
        streams_max: limits.within("streams_max", (1, 1_000_000), defaults.streams_max),
        connections_max: limits.within("connections_max", (1, 100_000), defaults.connections_max),
        body_ms_max: limits.within("body_ms_max", (1, 3_600_000), defaults.body_ms_max),
        silence_ms_max: limits.within(
            "silence_ms_max",
            (1_000, 86_400_000),
            defaults.silence_ms_max,
        ),
        core_wait_ms_max: limits.within(
            "core_wait_ms_max",
            (20, 600_000),
            defaults.core_wait_ms_max,
        ),
        tokenizer_queue_max: limits.within(
            "tokenizer_queue_max",
            (0, 100_000),
            defaults.tokenizer_queue_max,
        ),
        index_bytes_max: limits.within(
            "index_bytes_max",
            (16 << 20, 1 << 40),
            defaults.index_bytes_max,
        ),
        token_cache_bytes_max: limits.within(
            "token_cache_bytes_max",
            (0, 1 << 40),
            defaults.token_cache_bytes_max,
        ),
        tokenizer_wait_ms_max: limits.within(
            "tokenizer_wait_ms_max",
            (0, 600_000),
            defaults.tokenizer_wait_ms_max,
        ),
        drain_notice_ms: limits.within("drain_notice_ms", (0, 600_000), defaults.drain_notice_ms),
        drain_ms_max: limits.within("drain_ms_max", (0, 3_600_000), defaults.drain_ms_max),
    }
}

#[cfg(test)]
mod tests;

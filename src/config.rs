//! What an operator may decide; validated, every complaint at once.
//!
//! One YAML file, and flags over it. Unknown keys are refused. [`Config::to_yaml`] writes a
//! configuration with its documentation; what it writes for the defaults is
//! `deploy/kvscout.yaml`, and a test keeps them equal.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

mod admission;
mod decisions;
mod events;
mod fleet;
mod inference;
mod leader;
mod limits;
mod listen;
mod load;
mod metrics;
mod model;
mod nats;
mod policy;
mod print;
mod render;
mod replicas;
mod tracing;
pub mod yaml;

pub use admission::Admission;
pub use decisions::{DecisionLog, Decisions, Pages};
pub use events::{EventSourceKind, Events};
pub use fleet::{EVENTS_PORT, FleetSource, Kubernetes, PodEvents};
pub use inference::{Criticality, InferenceModel, InferenceObjective, Target};
pub use leader::LeaderElection;
pub use limits::{Limits, TOKEN_CACHE_BYTES_MAX};
pub use listen::{Listen, Tls};
pub use load::{Load, Saturation};
pub use metrics::Metrics;
pub use model::{Engine, Model, ReadsAs, Repo, Source};
pub use nats::{Nats, Stream};
pub use policy::{Media, Policy, Strategy};
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

/// How Envoy is answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
        Self {
            listen: Listen::default(),
            tls: Tls::SelfSigned,
            fleet: FleetSource::File("fleet.yaml".into()),
            models: Vec::new(),
            models_cache: "/var/cache/kvscout/models".into(),
            inference_models: Vec::new(),
            inference_objectives: Vec::new(),
            events: Events::default(),
            share: Share::default(),
            load: Load::default(),
            policy: Policy::default(),
            admission: Admission::default(),
            limits: Limits::default(),
            replies: Replies::default(),
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
        .section("events", |events| Some(events::read(events, folder)))
        .unwrap_or(defaults.events);
    let metrics = root.section("metrics", |section| {
        Some(metrics::read(section, &events.nats.pool))
    });
    Config {
        listen: root
            .section("listen", |listen| Some(listen::read(listen, folder)))
            .unwrap_or(defaults.listen),
        tls: root.section("tls", |tls| listen::read_tls(tls, folder)),
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
            .section("policy", |policy| Some(policy::read(policy)))
            .unwrap_or(defaults.policy),
        admission: root
            .section("admission", |admission| Some(admission::read(admission)))
            .unwrap_or(defaults.admission),
        limits: root
            .section("limits", |limits| Some(limits::read(limits)))
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

#[cfg(test)]
mod tests;

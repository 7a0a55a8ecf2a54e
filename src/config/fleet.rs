//! Where the fleet comes from.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::leader::{self, LeaderElection};
use super::print;
use super::yaml::Section;

/// Who says which endpoints there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetSource {
    /// A file, reread when it changes.
    File(PathBuf),
    /// The pods of InferencePools.
    Kubernetes(Kubernetes),
}

/// Which pools of a cluster, and what their pods have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// The Service that leads to this picker: pools that refer to it are served.
    pub service: Option<String>,
    /// Further pools that are served, by name.
    pub pools: Vec<String>,
    /// Where they are; none for the namespace that the credentials are of.
    pub namespace: Option<String>,
    /// How the cluster is reached; none for what the environment says.
    pub kubeconfig: Option<PathBuf>,
    /// Where pods publish.
    pub events: PodEvents,
    /// Where pods replay, if they do.
    pub replay_port: Option<u16>,
    /// Milliseconds until a kind of resource that is not installed is looked for again.
    pub absent_retry_ms: u64,
    /// By which one replica leads, and the others are not ready; none where all serve.
    pub leader_election: Option<LeaderElection>,
}

/// Where a pod publishes its KV events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodEvents {
    /// At this port, and its rank r at the port + r.
    Port(u16),
    /// Its server says where.
    Discover,
    /// Nowhere, or it connects to us, at `events.bind`.
    Off,
}

/// vLLM's own default (`KVEventsConfig.endpoint`).
pub const EVENTS_PORT: u16 = 5557;

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            service: None,
            pools: Vec::new(),
            namespace: None,
            kubeconfig: None,
            events: PodEvents::Port(EVENTS_PORT),
            replay_port: None,
            absent_retry_ms: 30_000,
            leader_election: None,
        }
    }
}

impl std::str::FromStr for PodEvents {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match (word, word.parse()) {
            ("discover", _) => Ok(Self::Discover),
            ("off", _) => Ok(Self::Off),
            (_, Ok(port)) if port > 0 => Ok(Self::Port(port)),
            _ => Err("is not a port, discover, or off".to_owned()),
        }
    }
}

impl std::fmt::Display for PodEvents {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(port) => write!(to, "{port}"),
            Self::Discover => to.write_str("discover"),
            Self::Off => to.write_str("off"),
        }
    }
}

/// The section `fleet`. Where publishers connect to us (`binds`), pods have none by default.
pub(super) fn read(root: &mut Section<'_>, folder: &Path, binds: bool) -> FleetSource {
    let source = root.section("fleet", |fleet| {
        let file = fleet.optional::<PathBuf>("file");
        let in_cluster = fleet.has("kubernetes");
        let kubernetes = fleet.section("kubernetes", |kubernetes| {
            Some(read_kubernetes(kubernetes, folder, binds))
        });
        if in_cluster && file.is_some() {
            fleet.complain("file", "is of no use beside kubernetes: leave one out");
        }
        match kubernetes {
            Some(kubernetes) => Some(FleetSource::Kubernetes(kubernetes)),
            None => file.map(|file| FleetSource::File(folder.join(file))),
        }
    });
    source.unwrap_or_else(|| FleetSource::File(folder.join("fleet.yaml")))
}

fn read_kubernetes(kubernetes: &mut Section<'_>, folder: &Path, binds: bool) -> Kubernetes {
    let defaults = Kubernetes::default();
    let service = kubernetes.optional("service");
    let pools = kubernetes.texts("pools");
    if service.is_none() && pools.is_empty() {
        let problem = "is missing: the Service that leads to this picker, as the pools that it \
                       serves refer to it; or name them in pools";
        kubernetes.complain("service", problem);
    }
    let events = match binds {
        true => PodEvents::Off,
        false => defaults.events,
    };
    let events = kubernetes.get("events", events);
    let replay_port = kubernetes.optional("replay_port");
    match (events, replay_port) {
        (_, Some(0)) => kubernetes.complain("replay_port", "0 is no port: leave it out for none"),
        (PodEvents::Discover, Some(_)) => {
            kubernetes.complain("replay_port", "is discovered with events: leave it out");
        }
        (PodEvents::Off, Some(_)) if !binds => {
            let problem = "is of no use without events: their port, or events.bind";
            kubernetes.complain("replay_port", problem);
        }
        (PodEvents::Port(events), Some(replay)) if events == replay => {
            kubernetes.complain("replay_port", "is the port of events, too");
        }
        _ => {}
    }
    Kubernetes {
        service,
        pools,
        namespace: kubernetes.optional("namespace"),
        kubeconfig: kubernetes
            .optional::<PathBuf>("kubeconfig")
            .map(|path| folder.join(path)),
        events,
        replay_port,
        absent_retry_ms: kubernetes.within(
            "absent_retry_ms",
            (100, 3_600_000),
            defaults.absent_retry_ms,
        ),
        leader_election: match kubernetes.has("leader_election") {
            true => kubernetes.section("leader_election", leader::read),
            false => None,
        },
    }
}

pub(super) fn write(source: &FleetSource) -> String {
    let kubernetes = match source {
        FleetSource::File(file) => return format!("  file: {}\n", print::quote(file.display())),
        FleetSource::Kubernetes(kubernetes) => kubernetes,
    };
    let mut to = String::from("  kubernetes:\n");
    let path = kubernetes.kubeconfig.as_ref();
    for (key, value) in [
        ("service", kubernetes.service.as_ref().map(print::quote)),
        (
            "pools",
            Some(serde_json::json!(kubernetes.pools).to_string()),
        ),
        ("namespace", kubernetes.namespace.as_ref().map(print::quote)),
        ("kubeconfig", path.map(|path| print::quote(path.display()))),
        ("events", Some(kubernetes.events.to_string())),
        (
            "replay_port",
            kubernetes.replay_port.map(|port| port.to_string()),
        ),
        (
            "absent_retry_ms",
            Some(kubernetes.absent_retry_ms.to_string()),
        ),
        (
            "leader_election",
            kubernetes.leader_election.as_ref().map(leader::write),
        ),
    ] {
        let value = value.unwrap_or_else(|| "null".to_owned());
        writeln!(to, "    {key}: {value}").expect("writing to a String does not fail");
    }
    to
}

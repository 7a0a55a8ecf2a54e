//! A resource's fields that we use, out of whatever else it has.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kube::api::DynamicObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::resources::{Resource, What};
use crate::config::{Criticality, PodEvents, Strategy, Target};
use crate::fleet::RANKS_MAX;

/// How requests for the pool's pods are placed.
pub const STRATEGY: &str = "inference.networking.x-k8s.io/routing-strategy";
/// Which of the pool's ports serve, "8000,8001"; its name in llm-d's router, and the one before.
pub const ACTIVE_PORTS: [&str; 2] = [
    "llm-d.ai/active-ports",
    "inference.networking.k8s.io/active-ports",
];
/// Where the pod publishes: a port, `discover` or `off`.
pub const EVENTS: &str = "kvscout.io/events";
/// Where it replays.
pub const REPLAY_PORT: &str = "kvscout.io/replay-port";
/// How many engines it has behind each port.
pub const RANKS: &str = "kvscout.io/data-parallel-size";

/// Which of the configured models it reads prompts as: a name of an entry of `models`.
pub const MODEL: &str = "kvscout.io/model";

/// Anything that is watched.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A server.
    Pod(Pod),
    /// Which pods are endpoints.
    Pool(Pool),
    /// How important a model is, and what serves it.
    Model(Model),
    /// A priority by its name.
    Objective(Objective),
    /// What serves models.
    Rewrite(Rewrite),
}

/// When it was created, in seconds, as far as that is said: of two that contradict, the older wins.
pub type Created = Option<i64>;

/// A pod, which may be an endpoint, or several.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pod {
    /// Tells it from another one of its name.
    pub uid: String,
    pub created: Created,
    pub labels: BTreeMap<String, String>,
    /// None until it has one.
    pub ip: Option<IpAddr>,
    /// Kubernetes says that it may get requests.
    pub ready: bool,
    /// It ends or has ended: it never will again.
    pub ends: bool,
    /// Which of the pool's ports serve; none for all.
    pub active_ports: Option<Vec<u16>>,
    pub events: Option<PodEvents>,
    pub replay_port: Option<u16>,
    /// Engines behind each port.
    pub ranks: u16,
    pub model: Option<String>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pool {
    pub namespace: String,
    /// Labels that its pods have.
    pub selector: BTreeMap<String, String>,
    /// Where each of them serves.
    pub ports: Vec<u16>,
    /// The Service of its endpoint picker.
    pub picker: String,
    pub strategy: Option<Strategy>,
}

/// What an InferenceModel says.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub pool: String,
    pub created: Created,
    /// What clients ask for.
    pub name: String,
    pub criticality: Criticality,
    pub targets: Vec<Target>,
}

/// What an InferenceObjective says.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    pub pool: String,
    pub priority: i32,
}

/// What an InferenceModelRewrite says.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewrite {
    pub pool: String,
    pub created: Created,
    /// Models, none for all, and what serves them.
    pub rules: Vec<(Vec<String>, Vec<Target>)>,
}

/// Reads what we use of a resource.
///
/// # Errors
/// Why it cannot be used.
pub fn read(resource: &Resource, object: DynamicObject) -> Result<Object, String> {
    Ok(match resource.what {
        What::Pod => Object::Pod(read_pod(object)?),
        What::Pool => Object::Pool(read_pool(object)?),
        What::Model => Object::Model(read_model(object)?),
        What::Objective => {
            let spec: raw::Objective = parse(&object.data, "/spec")?;
            Object::Objective(Objective {
                pool: spec.pool_ref.name,
                priority: spec.priority.unwrap_or(0),
            })
        }
        What::Rewrite => Object::Rewrite(read_rewrite(object)?),
    })
}

fn parse<T: DeserializeOwned>(data: &serde_json::Value, at: &str) -> Result<T, String> {
    let field = &at[1..];
    let value = data.pointer(at).ok_or_else(|| format!("has no {field}"))?;
    T::deserialize(value).map_err(|error| format!("{field}: {error}"))
}

fn created(object: &DynamicObject) -> Created {
    let time = object.metadata.creation_timestamp.as_ref();
    time.map(|time| time.0.as_second())
}

fn read_pod(object: DynamicObject) -> Result<Pod, String> {
    let created = created(&object);
    let status = match object.data.get("status") {
        Some(_) => parse::<raw::PodStatus>(&object.data, "/status")?,
        None => raw::PodStatus::default(),
    };
    let is_ready = |one: &raw::Condition| one.kind == "Ready" && one.status == "True";
    let meta = object.metadata;
    let notes = Notes {
        pod: meta.name.unwrap_or_default(),
        annotations: meta.annotations.unwrap_or_default(),
    };
    let ended = matches!(status.phase.as_str(), "Succeeded" | "Failed");
    Ok(Pod {
        uid: meta.uid.unwrap_or_default(),
        created,
        labels: meta.labels.unwrap_or_default(),
        ip: status.pod_ip.parse().ok(),
        ready: status.conditions.iter().any(is_ready),
        ends: ended || meta.deletion_timestamp.is_some(),
        active_ports: notes.active_ports(),
        events: notes.get(EVENTS, |_: &PodEvents| true),
        replay_port: notes.get(REPLAY_PORT, |port| *port > 0),
        ranks: notes
            .get(RANKS, |ranks| (1..=RANKS_MAX).contains(ranks))
            .unwrap_or(1),
        model: notes.get(MODEL, |_| true),
    })
}

/// A pod's annotations. What cannot be read is told of, and is as if it were not there.
struct Notes {
    pod: String,
    annotations: BTreeMap<String, String>,
}

impl Notes {
    fn get<T: std::str::FromStr>(&self, key: &str, fits: impl Fn(&T) -> bool) -> Option<T> {
        let text = self.annotations.get(key)?.trim();
        let value = text.parse().ok().filter(fits);
        if value.is_none() {
            tracing::warn!(
                pod = self.pod,
                "annotation {key}: {text:?} is not understood and not used"
            );
        }
        value
    }

    /// As llm-d's router reads them: what is no port is passed over.
    fn active_ports(&self) -> Option<Vec<u16>> {
        let mut keys = ACTIVE_PORTS.iter();
        let text = keys.find_map(|key| self.annotations.get(*key))?;
        let ports = text.split(',').filter_map(|port| port.trim().parse().ok());
        Some(ports.collect())
    }
}

/// Both APIs' pools: `selector` is a map, or has one; a port, or a list of them.
fn read_pool(object: DynamicObject) -> Result<Pool, String> {
    let spec: raw::Pool = parse(&object.data, "/spec")?;
    let (selector, ports) = match (spec.target_ports, spec.target_port_number) {
        (Some(ports), _) => {
            let labels: raw::Selector = parse(&object.data, "/spec/selector")?;
            (
                labels.match_labels,
                ports.iter().map(|port| port.number).collect(),
            )
        }
        (None, Some(port)) => (parse(&object.data, "/spec/selector")?, vec![port]),
        (None, None) => return Err("spec has no targetPorts".to_owned()),
    };
    if selector.is_empty() {
        return Err("spec.selector is empty, and so selects no pod".to_owned());
    }
    let picker = spec.endpoint_picker_ref.or(spec.extension_ref);
    let annotations = object.metadata.annotations.unwrap_or_default();
    let strategy = match annotations.get(STRATEGY).map(String::as_str) {
        None => None,
        Some("PREFIX_CACHE") => Some(Strategy::PrefixCache),
        Some("DEFAULT") => Some(Strategy::Default),
        Some(other) => {
            tracing::warn!(
                pool = object.metadata.name,
                "annotation {STRATEGY}: {other:?} is not PREFIX_CACHE or DEFAULT and not used"
            );
            None
        }
    };
    Ok(Pool {
        namespace: object.metadata.namespace.unwrap_or_default(),
        selector,
        ports,
        picker: picker.map(|picker| picker.name).unwrap_or_default(),
        strategy,
    })
}

fn read_model(object: DynamicObject) -> Result<Model, String> {
    let spec: raw::Model = parse(&object.data, "/spec")?;
    let criticality = match spec.criticality.as_deref() {
        Some("Critical") => Criticality::Critical,
        Some("Sheddable") => Criticality::Sheddable,
        _ => Criticality::Standard,
    };
    Ok(Model {
        pool: spec.pool_ref.name,
        created: created(&object),
        name: spec.model_name,
        criticality,
        targets: targets(spec.target_models),
    })
}

fn read_rewrite(object: DynamicObject) -> Result<Rewrite, String> {
    let spec: raw::Rewrite = parse(&object.data, "/spec")?;
    let rule = |rule: raw::Rule| {
        let models = rule.matches.into_iter().map(|one| one.model.value);
        (models.collect(), targets(rule.targets))
    };
    Ok(Rewrite {
        pool: spec.pool_ref.name,
        created: created(&object),
        rules: spec.rules.into_iter().map(rule).collect(),
    })
}

/// Where no weight is said, all have the same.
fn targets(targets: Vec<raw::Target>) -> Vec<Target> {
    let target = |target: raw::Target| Target {
        model: target.name,
        weight: target.weight.unwrap_or(1),
    };
    targets.into_iter().map(target).collect()
}

/// As JSON has it.
mod raw {
    use super::{BTreeMap, Deserialize};

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    pub struct PodStatus {
        pub phase: String,
        #[serde(rename = "podIP")]
        pub pod_ip: String,
        pub conditions: Vec<Condition>,
    }

    #[derive(Deserialize, Default)]
    #[serde(default)]
    pub struct Condition {
        #[serde(rename = "type")]
        pub kind: String,
        pub status: String,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Pool {
        pub target_ports: Option<Vec<Port>>,
        pub target_port_number: Option<u16>,
        pub endpoint_picker_ref: Option<Named>,
        pub extension_ref: Option<Named>,
    }

    #[derive(Deserialize)]
    pub struct Port {
        pub number: u16,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Selector {
        pub match_labels: BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    pub struct Named {
        pub name: String,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Model {
        pub model_name: String,
        pub pool_ref: Named,
        pub criticality: Option<String>,
        #[serde(default)]
        pub target_models: Vec<Target>,
    }

    #[derive(Deserialize)]
    pub struct Target {
        #[serde(alias = "modelRewrite")]
        pub name: String,
        pub weight: Option<u32>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Objective {
        pub priority: Option<i32>,
        pub pool_ref: Named,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Rewrite {
        pub pool_ref: Named,
        pub rules: Vec<Rule>,
    }

    #[derive(Deserialize)]
    pub struct Rule {
        #[serde(default)]
        pub matches: Vec<Match>,
        // Its name in 1.2 of the extension.
        #[serde(default, alias = "split")]
        pub targets: Vec<Target>,
    }

    #[derive(Deserialize)]
    pub struct Match {
        pub model: ModelMatch,
    }

    #[derive(Deserialize)]
    pub struct ModelMatch {
        pub value: String,
    }
}

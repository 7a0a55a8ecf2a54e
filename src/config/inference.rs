//! What Gateway API's InferenceModel and InferenceObjective say, as configuration.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::print;
use super::yaml::Section;

/// A model by the name that clients send: how important it is, and which models serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferenceModel {
    /// `model` of a request.
    pub name: String,
    /// How important its requests are.
    pub criticality: Criticality,
    /// Among those that wait, higher goes first.
    pub priority: i32,
    /// Models that serve it, by weight; none where it is served under its own name.
    pub targets: Vec<Target>,
}

/// A model or adapter as its servers know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The name that servers get.
    pub model: String,
    /// Its share is weight / sum of weights.
    pub weight: u32,
}

/// How important a request is where every endpoint is saturated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Criticality {
    /// Goes at once.
    Critical,
    /// Waits. What v1alpha2 of InferenceModel lets an unset field mean.
    #[default]
    Standard,
    /// Is refused.
    Sheddable,
}

impl Criticality {
    /// The word of the API, and for labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "Critical",
            Self::Standard => "Standard",
            Self::Sheddable => "Sheddable",
        }
    }
}

/// A priority by the name that requests give in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferenceObjective {
    /// What `x-gateway-inference-objective` says.
    pub name: String,
    /// Below 0 Sheddable, 0 Standard, above 0 Critical.
    pub priority: i32,
}

/// The API's limits (`InferenceModelSpec`, v1alpha2).
const NAME_BYTES_MAX: usize = 256;
const TARGETS_MAX: usize = 10;
const WEIGHT_MAX: u32 = 1_000_000;

pub(super) const CRITICALITIES: &[(&str, Criticality)] = &[
    ("Critical", Criticality::Critical),
    ("Standard", Criticality::Standard),
    ("Sheddable", Criticality::Sheddable),
];

pub(super) fn read_models(root: &mut Section<'_>) -> Vec<InferenceModel> {
    let mut seen = BTreeSet::new();
    root.sections("inference_models", |model| {
        let criticality = model.word("criticality", CRITICALITIES, Criticality::default());
        let priority = model.get("priority", 0);
        let targets = read_targets(model);
        let name = read_name(model, "name", "the model that requests ask for")?;
        if !seen.insert(name.clone()) {
            model.complain(
                "name",
                format!("{name:?} is given twice; a name has one rule"),
            );
        }
        Some(InferenceModel {
            name,
            criticality,
            priority,
            targets,
        })
    })
}

fn read_targets(model: &mut Section<'_>) -> Vec<Target> {
    let mut weighted = BTreeSet::new();
    let targets = model.sections("targets", |target| {
        weighted.insert(target.has("weight"));
        let weight = target.within("weight", (0, WEIGHT_MAX), 1);
        let model = read_name(target, "model", "a model's name as its servers know it")?;
        Some(Target { model, weight })
    });
    if weighted.len() > 1 {
        model.complain("targets", "need a weight each, or none of them");
    }
    if targets.len() > TARGETS_MAX {
        model.complain("targets", format!("are more than {TARGETS_MAX}"));
    }
    if !targets.is_empty() && targets.iter().all(|target| target.weight == 0) {
        model.complain(
            "targets",
            "have no weight above 0: nobody would serve the model",
        );
    }
    targets
}

pub(super) fn read_objectives(root: &mut Section<'_>) -> Vec<InferenceObjective> {
    let mut seen = BTreeSet::new();
    root.sections("inference_objectives", |objective| {
        let priority = objective.get("priority", 0);
        let what = "what requests say in x-gateway-inference-objective";
        let name = read_name(objective, "name", what)?;
        if !seen.insert(name.clone()) {
            let problem = format!("{name:?} is given twice; a name has one priority");
            objective.complain("name", problem);
        }
        Some(InferenceObjective { name, priority })
    })
}

fn read_name(section: &mut Section<'_>, key: &'static str, what: &str) -> Option<String> {
    let name = section.required::<String>(key, what)?;
    if name.len() > NAME_BYTES_MAX {
        section.complain(key, format!("has more than {NAME_BYTES_MAX} bytes"));
    }
    Some(name)
}

pub(super) fn write_models(models: &[InferenceModel]) -> String {
    let mut to = String::new();
    for model in models {
        let targets = model.targets.iter().map(|Target { model, weight }| {
            format!("{{model: {}, weight: {weight}}}", print::quote(model))
        });
        let targets = targets.collect::<Vec<_>>().join(", ");
        let InferenceModel { name, priority, .. } = model;
        let criticality = model.criticality.as_str();
        let name = print::quote(name);
        write!(
            to,
            "\n  - name: {name}\n    criticality: {criticality}\n    priority: {priority}\n    targets: [{targets}]"
        )
        .expect("writing to a String does not fail");
    }
    if to.is_empty() { " []".into() } else { to }
}

pub(super) fn write_objectives(objectives: &[InferenceObjective]) -> String {
    let mut to = String::new();
    for InferenceObjective { name, priority } in objectives {
        let name = print::quote(name);
        write!(to, "\n  - {{name: {name}, priority: {priority}}}")
            .expect("writing to a String does not fail");
    }
    if to.is_empty() { " []".into() } else { to }
}

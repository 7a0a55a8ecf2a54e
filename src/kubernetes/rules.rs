//! InferenceModels, InferenceObjectives and InferenceModelRewrites → rules.

use std::collections::{BTreeMap, HashMap};

use super::objects::{Created, Model, Objective, Rewrite};
use crate::config::{Criticality, InferenceModel, InferenceObjective, Target};
use crate::routes::Rules;

/// What is said of a pool, or of all that are served, in the order that it is believed.
#[derive(Default)]
pub struct Said<'a> {
    /// InferenceModels.
    pub models: Vec<&'a Model>,
    /// InferenceObjectives, by name.
    pub objectives: Vec<(&'a str, &'a Objective)>,
    /// InferenceModelRewrites.
    pub rewrites: Vec<&'a Rewrite>,
}

/// The rules; the configuration's own come before the cluster's.
///
/// Of two objects that speak of one model the older wins, as upstream; a rule for a model by name wins over
/// one for all. Where a model has both kinds, its InferenceModel says how important it is, and the
/// rewrite what serves it.
pub fn rules(own: (&[InferenceModel], &[InferenceObjective]), mut said: Said<'_>) -> Rules {
    said.models.sort_by_key(|model| age(model.created));
    said.rewrites.sort_by_key(|rewrite| age(rewrite.created));
    let mut models: BTreeMap<&str, InferenceModel> = BTreeMap::new();
    for model in said.models {
        models.entry(&model.name).or_insert_with(|| InferenceModel {
            criticality: model.criticality,
            ..plain(&model.name, &model.targets)
        });
    }
    let (mut exact, mut others) = (HashMap::new(), None);
    for rewrite in &said.rewrites {
        for (names, targets) in &rewrite.rules {
            if names.is_empty() {
                others.get_or_insert(targets);
            }
            for name in names {
                exact.entry(name.as_str()).or_insert(targets);
            }
        }
    }
    for (name, targets) in exact {
        let model = models.entry(name).or_insert_with(|| plain(name, &[]));
        // A rule without targets keeps the model's name, and from rules for all.
        model.targets = match targets.is_empty() {
            true => vec![Target {
                model: name.to_owned(),
                weight: 1,
            }],
            false => targets.clone(),
        };
    }
    let objectives = said.objectives.iter();
    let objectives = objectives.map(|(name, objective)| InferenceObjective {
        name: (*name).to_owned(),
        priority: objective.priority,
    });
    let models: Vec<_> = own.0.iter().cloned().chain(models.into_values()).collect();
    let objectives: Vec<_> = own.1.iter().cloned().chain(objectives).collect();
    Rules::of(&models, &objectives).with_others(others.map_or(&[], Vec::as_slice))
}

/// Those of which nobody says how old they are, last.
fn age(created: Created) -> (bool, Created) {
    (created.is_none(), created)
}

fn plain(name: &str, targets: &[Target]) -> InferenceModel {
    InferenceModel {
        name: name.to_owned(),
        criticality: Criticality::default(),
        priority: 0,
        targets: targets.to_vec(),
    }
}

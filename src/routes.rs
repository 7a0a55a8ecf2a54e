//! Which model serves a request, and how important it is: the rules of InferenceModel and
//! InferenceObjective.
//!
//! [`Routes`] is a snapshot in a watch, as the fleet is. The configuration fills it, and Kubernetes. Every pool
//! has [`Rules`] of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::config::{Criticality, InferenceModel, InferenceObjective, Strategy, Target};

/// What rules say of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Class {
    /// What happens to it where every endpoint is saturated.
    pub criticality: Criticality,
    /// Among those that wait, higher goes first.
    pub priority: i32,
}

/// The rules as of now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routes {
    /// For a request of which nobody knows the pool: what all of them say.
    common: Rules,
    pools: BTreeMap<Arc<str>, Rules>,
}

impl Routes {
    /// Of these rules, whatever the pool; of two for one name, the first.
    #[must_use]
    pub fn of(models: &[InferenceModel], objectives: &[InferenceObjective]) -> Self {
        Rules::of(models, objectives).into()
    }

    /// The same where pools have their own.
    #[must_use]
    pub fn with_pools(self, pools: BTreeMap<Arc<str>, Rules>) -> Self {
        Self { pools, ..self }
    }

    /// Those of a pool; without one, what all of them say.
    #[must_use]
    pub fn rules(&self, pool: Option<&Arc<str>>) -> &Rules {
        let own = pool.and_then(|pool| self.pools.get(pool));
        own.unwrap_or(&self.common)
    }

    /// Whether any rule is about models, so that a request's must be known.
    #[must_use]
    pub fn name_models(&self) -> bool {
        let mut all = self.pools.values().chain([&self.common]);
        all.any(|rules| !rules.models.is_empty() || !rules.others.is_empty())
    }
}

impl From<Rules> for Routes {
    fn from(common: Rules) -> Self {
        Self {
            common,
            pools: BTreeMap::new(),
        }
    }
}

/// The rules of one pool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    models: HashMap<String, Model>,
    /// What serves models that have no targets of their own.
    others: Line,
    objectives: HashMap<String, i32>,
    strategy: Option<Strategy>,
}

#[derive(Debug, Clone, PartialEq)]
struct Model {
    class: Class,
    targets: Line,
}

/// Targets by the sums of weights up to and with each.
type Line = Vec<(u64, Arc<str>)>;

impl Rules {
    /// Of two for one name, the first.
    #[must_use]
    pub fn of(models: &[InferenceModel], objectives: &[InferenceObjective]) -> Self {
        let mut rules = Self::default();
        for model in models {
            let rule = || Model {
                class: Class {
                    criticality: model.criticality,
                    priority: model.priority,
                },
                targets: line(&model.targets),
            };
            rules.models.entry(model.name.clone()).or_insert_with(rule);
        }
        for objective in objectives {
            let named = rules.objectives.entry(objective.name.clone());
            named.or_insert(objective.priority);
        }
        rules
    }

    /// The same with targets for every model that has none of its own.
    #[must_use]
    pub fn with_others(self, targets: &[Target]) -> Self {
        Self {
            others: line(targets),
            ..self
        }
    }

    /// The same where the pool says how to choose.
    #[must_use]
    pub fn with_strategy(self, strategy: Option<Strategy>) -> Self {
        Self { strategy, ..self }
    }

    /// What the pool says in place of `policy.strategy`.
    #[must_use]
    pub fn strategy(&self) -> Option<Strategy> {
        self.strategy
    }

    /// Whether a rule has this model by name.
    #[must_use]
    pub fn has_model(&self, name: &str) -> bool {
        self.models.contains_key(name)
    }

    /// Whether it is declared.
    #[must_use]
    pub fn has_objective(&self, name: &str) -> bool {
        self.objectives.contains_key(name)
    }

    /// A name that a client gives, as a word of which there are few: `*` where no rule has it.
    #[must_use]
    pub fn known(&self, name: &str) -> Arc<str> {
        Arc::from(if self.models.contains_key(name) {
            name
        } else {
            "*"
        })
    }

    /// The model that serves a conversation which asks for `name`; none where that one itself does.
    /// The same on every replica, and a change of weights moves only the share that it is about.
    #[must_use]
    pub fn target(&self, name: &str, conversation: u64) -> Option<&Arc<str>> {
        let own = self.models.get(name).map(|model| &model.targets);
        let targets = own.filter(|own| !own.is_empty()).unwrap_or(&self.others);
        let (total, _) = targets.last()?;
        // A place on the line of weights. The name as a seed, so that two splits are independent.
        let seed = xxh3_64_with_seed(name.as_bytes(), 0);
        let hash = xxh3_64_with_seed(&conversation.to_le_bytes(), seed);
        let place = (u128::from(hash) * u128::from(*total)) >> 64;
        let found = targets.iter().find(|(end, _)| place < u128::from(*end));
        found.map(|(_, target)| target)
    }

    /// How important a request is: its objective says, else the model that it asks for.
    ///
    /// # Errors
    /// The class of a request whose objective nobody declared: Standard.
    pub fn class(&self, name: Option<&str>, objective: Option<&str>) -> Result<Class, Class> {
        if let Some(objective) = objective {
            let priority = self.objectives.get(objective).copied();
            return priority.map(of_objective).ok_or_else(Class::default);
        }
        let model = name.and_then(|name| self.models.get(name));
        Ok(model.map(|model| model.class).unwrap_or_default())
    }
}

fn of_objective(priority: i32) -> Class {
    let criticality = match priority {
        ..0 => Criticality::Sheddable,
        0 => Criticality::Standard,
        1.. => Criticality::Critical,
    };
    Class {
        criticality,
        priority,
    }
}

fn line(targets: &[Target]) -> Line {
    let mut end = 0;
    let weighted = targets.iter().filter(|target| target.weight > 0);
    let places = weighted.map(|target| {
        end += u64::from(target.weight);
        (end, Arc::from(target.model.as_str()))
    });
    places.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(weights: &[(&str, u32)]) -> Rules {
        let targets = weights.iter().map(|(model, weight)| Target {
            model: (*model).into(),
            weight: *weight,
        });
        let model = InferenceModel {
            name: "chat".into(),
            criticality: Criticality::Critical,
            priority: 3,
            targets: targets.collect(),
        };
        Rules::of(&[model], &[])
    }

    fn shares(routes: &Rules, name: &str) -> u32 {
        let first = |conversation: &u64| {
            routes
                .target("chat", *conversation)
                .is_some_and(|t| **t == *name)
        };
        (0..10_000).filter(first).count() as u32
    }

    #[test]
    fn conversations_are_split_by_weight() {
        let routes = split(&[("v1", 75), ("v2", 25), ("v3", 0)]);
        let counts = ["v1", "v2", "v3"].map(|name| shares(&routes, name));
        assert!((7_300..7_700).contains(&counts[0]), "{counts:?}");
        assert_eq!((counts[0] + counts[1], counts[2]), (10_000, 0));
        assert_eq!(routes.target("other", 1), None);
        assert_eq!(
            split(&[]).target("chat", 1),
            None,
            "served under its own name"
        );
    }

    #[test]
    fn a_target_for_all_serves_models_without_one() {
        let all = [Target {
            model: "all".into(),
            weight: 1,
        }];
        let target = |routes: Rules, name| routes.target(name, 1).map(|t| t.to_string());
        let (with, without) = (split(&[("v1", 1)]), split(&[]));
        assert_eq!(target(with.with_others(&all), "chat"), Some("v1".into()));
        assert_eq!(
            target(without.with_others(&all), "chat"),
            Some("all".into())
        );
        let routes = Rules::default().with_others(&all);
        assert!(Routes::from(routes.clone()).name_models());
        assert_eq!(target(routes, "other"), Some("all".into()));
    }

    #[test]
    fn a_change_of_weights_moves_the_share_that_it_is_about() {
        let (before, after) = (
            split(&[("v1", 75), ("v2", 25)]),
            split(&[("v1", 80), ("v2", 20)]),
        );
        let moved = |c: &u64| before.target("chat", *c) != after.target("chat", *c);
        let moved = (0..10_000).filter(moved).count();
        assert!((400..600).contains(&moved), "{moved} of 10,000, for 5 %");
    }

    #[test]
    fn an_objective_wins_over_the_models_criticality() {
        let objectives =
            [("batch", -1), ("plain", 0), ("paid", 7)].map(|(name, priority)| InferenceObjective {
                name: name.into(),
                priority,
            });
        let routes = Rules {
            objectives: Rules::of(&[], &objectives).objectives,
            ..split(&[])
        };
        let class = |name, objective| {
            routes
                .class(name, objective)
                .map(|c| (c.criticality, c.priority))
        };
        let chat = Some("chat");
        assert_eq!(class(chat, None), Ok((Criticality::Critical, 3)));
        assert_eq!(class(chat, Some("batch")), Ok((Criticality::Sheddable, -1)));
        assert_eq!(class(chat, Some("plain")), Ok((Criticality::Standard, 0)));
        assert_eq!(class(None, Some("paid")), Ok((Criticality::Critical, 7)));
        assert_eq!(class(Some("other"), None), Ok((Criticality::Standard, 0)));
        assert_eq!(class(chat, Some("typo")), Err(Class::default()));
    }
}

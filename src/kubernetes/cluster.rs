//! What the cluster's resources add up to: a plain value, changed by what is heard of them.

use std::collections::BTreeMap;

use kube::api::DynamicObject;

use super::objects::{Object, Pod, Pool, read};
use super::pods;
use super::resources::{Resource, WATCHED, What};
use super::rules::{self, Said};
use crate::config::{Config, InferenceModel, InferenceObjective, Kubernetes, Strategy};
use crate::fleet::Fleet;
use crate::fleet::roster::Roster;
use crate::routes::Routes;

/// What was heard of a kind of resource, which is a place in [`WATCHED`].
#[derive(Debug)]
pub enum Change {
    /// All that there are.
    Listed(usize, Vec<DynamicObject>),
    /// One is new, or another.
    Applied(usize, Box<DynamicObject>),
    /// One is gone.
    Deleted(usize, String),
    /// The kind is not installed, or, of rules, cannot be read. What is known stays: objects go before
    /// their kind does, and are told of.
    Unanswered(usize),
}

/// The resources as last heard.
#[derive(Debug)]
pub struct Cluster {
    settings: Kubernetes,
    /// Whether publishers may connect to us.
    binds: bool,
    /// What the configuration itself says.
    own: (Vec<InferenceModel>, Vec<InferenceObjective>),
    tables: [Table; WATCHED.len()],
    roster: Roster,
}

#[derive(Debug, Default)]
struct Table {
    answered: bool,
    objects: BTreeMap<String, Object>,
}

impl Cluster {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(settings: Kubernetes, config: &Config) -> Self {
        let own = (&config.inference_models, &config.inference_objectives);
        Self {
            settings,
            binds: config.events.bind.is_some(),
            own: (own.0.clone(), own.1.clone()),
            tables: Default::default(),
            roster: Roster::default(),
        }
    }

    /// Takes note of a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Listed(kind, objects) => {
                let mut before = std::mem::take(&mut self.tables[kind].objects);
                for object in objects {
                    let known = object.metadata.name.as_ref();
                    let known = known.and_then(|name| before.remove_entry(name));
                    self.tables[kind].objects.extend(known);
                    self.put(kind, object);
                }
                self.tables[kind].answered = true;
            }
            Change::Applied(kind, object) => self.put(kind, *object),
            Change::Deleted(kind, name) => drop(self.tables[kind].objects.remove(&name)),
            Change::Unanswered(kind) => self.tables[kind].answered = true,
        }
    }

    /// One that cannot be read stays as it was, if it was.
    fn put(&mut self, kind: usize, object: DynamicObject) {
        let Some(name) = object.metadata.name.clone() else {
            return;
        };
        match read(&WATCHED[kind], object) {
            Ok(object) => drop(self.tables[kind].objects.insert(name, object)),
            Err(problem) => {
                let kind = WATCHED[kind].name();
                tracing::warn!(kind, name, "is not understood, and not used: {problem}");
            }
        }
    }

    /// Whether every kind has been heard of: before, a fleet would lack some.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.tables.iter().all(|table| table.answered)
    }

    /// What an operator should know of the pools that are served.
    #[must_use]
    pub fn remark(&self) -> Option<&'static str> {
        let (none, several) = (self.served().next().is_none(), self.strategies().nth(1));
        match (none, several) {
            (true, _) => Some(
                "no InferencePool of the namespace is served: does its endpointPickerRef name \
                 fleet.kubernetes.service, or is it in fleet.kubernetes.pools?",
            ),
            (_, Some(_)) if self.strategy().is_none() => {
                Some("their routing strategies differ: policy.strategy counts")
            }
            _ => None,
        }
    }

    /// The endpoints as of now.
    pub fn fleet(&mut self) -> Fleet {
        let pods = self
            .of(What::Pod)
            .filter_map(|(_, name, object)| match object {
                Object::Pod(pod) => Some((name, pod)),
                _ => None::<(&str, &Pod)>,
            });
        let pools = self.served().map(|(_, pool)| pool);
        let (serve, rest) = pods::entries(&self.settings, self.binds, pools, pods);
        self.roster.fleet(serve, rest)
    }

    /// The rules as of now.
    #[must_use]
    pub fn routes(&self) -> Routes {
        let mut said = Said {
            models: Vec::new(),
            objectives: Vec::new(),
            rewrites: Vec::new(),
        };
        for (_, name, object) in self.all() {
            match object {
                Object::Model(one) if self.serves(&one.pool) => said.models.push(one),
                Object::Objective(one) if self.serves(&one.pool) => {
                    said.objectives.push((name, one));
                }
                Object::Rewrite(one) if self.serves(&one.pool) => said.rewrites.push(one),
                _ => {}
            }
        }
        rules::routes((&self.own.0, &self.own.1), said).with_strategy(self.strategy())
    }

    /// What the pools say; nothing where they disagree.
    fn strategy(&self) -> Option<Strategy> {
        let first = self.strategies().next()?;
        self.strategies()
            .all(|other| other == first)
            .then_some(first)
    }

    fn strategies(&self) -> impl Iterator<Item = Strategy> {
        self.served().filter_map(|(_, pool)| pool.strategy)
    }

    fn serves(&self, pool: &str) -> bool {
        self.served().any(|(name, _)| name == pool)
    }

    fn served(&self) -> impl Iterator<Item = (&str, &Pool)> + Clone {
        let settings = &self.settings;
        self.of(What::Pool).filter_map(move |(_, name, object)| {
            let Object::Pool(pool) = object else {
                return None;
            };
            let is_ours = settings.service.as_ref() == Some(&pool.picker);
            let is_named = settings.pools.iter().any(|named| named == name);
            (is_ours || is_named).then_some((name, pool))
        })
    }

    fn of(&self, what: What) -> impl Iterator<Item = (&Resource, &str, &Object)> + Clone {
        self.all()
            .filter(move |(resource, ..)| resource.what == what)
    }

    fn all(&self) -> impl Iterator<Item = (&Resource, &str, &Object)> + Clone {
        WATCHED
            .iter()
            .zip(&self.tables)
            .flat_map(|(resource, table)| {
                let objects = table.objects.iter();
                objects.map(move |(name, object)| (resource, name.as_str(), object))
            })
    }
}

#[cfg(test)]
mod tests;

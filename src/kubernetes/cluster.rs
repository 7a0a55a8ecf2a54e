//! What the cluster's resources add up to: a plain value, changed by what is heard of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use kube::api::DynamicObject;

use super::objects::{self, Object, Pod, Pool, read};
use super::pods;
use super::resources::{Resource, WATCHED, What};
use super::rules::{self, Said};
use crate::config::{Config, InferenceModel, InferenceObjective, Kubernetes, ReadsAs};
use crate::fleet::roster::{self, Roster};
use crate::fleet::{self, Endpoint, EndpointId, Fleet};
use crate::routes::{Routes, Rules};

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
    common: roster::Settings,
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
            common: roster::Settings::of(config),
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
        if self.served().next().is_none() {
            return Some(
                "no InferencePool of the namespace is served: does its endpointPickerRef name \
                 fleet.kubernetes.service, or is it in fleet.kubernetes.pools?",
            );
        }
        let mut asked_at: BTreeMap<&str, &str> = BTreeMap::new();
        let shares = self.served().any(|(name, pool)| {
            let first = asked_at.entry(&pool.picker).or_insert(name);
            *first != name
        });
        shares.then_some(
            "some of them are asked for at one Service, so a request's pool is known by its model alone: \
             give each pool a Service of its own (poolServices in the chart)",
        )
    }

    /// The endpoints as of now.
    pub fn fleet(&mut self) -> Fleet {
        let settings = (&self.settings, &self.common);
        let seats = pods::seats(settings, self.served(), self.pods());
        let first_new = self.roster.next_id();
        let fleet = self.roster.fleet(seats.serve, seats.rest);
        for (pod, said) in self.misnamed(&fleet, first_new) {
            let (key, names) = (objects::MODEL, self.common.names());
            tracing::warn!(
                pod,
                "annotation {key}: {said:?} is no name of an entry of models, so what this pod has cached counts \
                 for nothing: name one of {names}, or take the annotation away"
            );
        }
        let pools = self.pools(&fleet, &seats.pools);
        fleet.with_pools(pools)
    }

    /// Pods of endpoints with this number or a later one that name no model, and what they say. Where none is
    /// configured, as for a bridge, nobody asks.
    fn misnamed(&self, fleet: &Fleet, from: EndpointId) -> BTreeMap<&str, &str> {
        let is_wrong = |one: &&Arc<Endpoint>| one.id >= from && one.reads_as == ReadsAs::Unknown;
        let wrong = fleet.heard().filter(is_wrong);
        // With several ports an endpoint is `pod:port`.
        let wrong = wrong.filter_map(|one| one.pod.split(':').next());
        let wrong: BTreeSet<&str> = wrong.collect();
        let said = self.pods().filter(|(name, _)| wrong.contains(name));
        let said = said.filter_map(|(name, pod)| Some((name, pod.model.as_deref()?)));
        said.filter(|_| !self.common.models.is_empty()).collect()
    }

    fn pods(&self) -> impl Iterator<Item = (&str, &Pod)> {
        self.of(What::Pod)
            .filter_map(|(_, name, object)| match object {
                Object::Pod(pod) => Some((name, pod)),
                _ => None,
            })
    }

    /// The served pools by name; two of one name, of both APIs, are one. `seats`: which addresses are whose.
    fn pools(
        &self,
        fleet: &Fleet,
        seats: &BTreeMap<String, BTreeSet<SocketAddr>>,
    ) -> Vec<fleet::Pool> {
        let named: BTreeMap<&str, &Pool> = self.served().collect();
        let pools = named.into_iter().map(|(name, pool)| {
            let own = |all: &[Arc<fleet::Endpoint>]| {
                let seats = seats.get(name);
                let has = |one: &&Arc<fleet::Endpoint>| {
                    seats.is_some_and(|seats| seats.contains(&one.address))
                };
                all.iter().filter(has).cloned().collect()
            };
            let same = self.served().filter(|(other, _)| *other == name);
            fleet::Pool {
                name: name.into(),
                namespace: pool.namespace.as_str().into(),
                services: same.map(|(_, pool)| pool.picker.clone()).collect(),
                fleet: Arc::new(Fleet {
                    endpoints: own(&fleet.endpoints),
                    resting: own(&fleet.resting),
                    pools: Vec::new(),
                }),
            }
        });
        pools.collect()
    }

    /// The rules as of now: each pool's own, and what all of them say together.
    #[must_use]
    pub fn routes(&self) -> Routes {
        let names: BTreeSet<&str> = self.served().map(|(name, _)| name).collect();
        let common = self.rules(|pool| names.contains(pool));
        let own = names
            .iter()
            .map(|name| (Arc::from(*name), self.rules(|pool| pool == *name)));
        Routes::from(common).with_pools(own.collect())
    }

    /// What is said of these pools.
    fn rules(&self, of: impl Fn(&str) -> bool) -> Rules {
        let mut said = Said::default();
        for (_, name, object) in self.all() {
            match object {
                Object::Model(one) if of(&one.pool) => said.models.push(one),
                Object::Objective(one) if of(&one.pool) => said.objectives.push((name, one)),
                Object::Rewrite(one) if of(&one.pool) => said.rewrites.push(one),
                _ => {}
            }
        }
        let pools = self.served().filter(|(name, _)| of(name));
        let mut strategies = pools.filter_map(|(_, pool)| pool.strategy);
        // Where they disagree, none of them counts.
        let first = strategies.next();
        let strategy = first.filter(|first| strategies.all(|other| other == *first));
        rules::rules((&self.own.0, &self.own.1), said).with_strategy(strategy)
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

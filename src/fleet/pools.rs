//! Which endpoints are of which pool, and whom a request may have.

use std::sync::Arc;

use super::{Endpoint, Fleet};

/// Endpoints that serve the same models, and that a gateway routes to as one thing: an InferencePool.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its name, which in a fleet no other one has.
    pub name: Arc<str>,
    /// Where it is; empty where that is not said.
    pub namespace: Arc<str>,
    /// The Services at which gateways ask for its endpoints.
    pub services: Vec<String>,
    /// They themselves, in the order of the fleet; its own pools are none.
    pub fleet: Arc<Fleet>,
}

impl Pool {
    /// Whether an endpoint is of it, and may be chosen.
    #[must_use]
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        let endpoints = &self.fleet.endpoints;
        endpoints
            .binary_search_by_key(&endpoint.id, |one| one.id)
            .is_ok()
    }
}

/// Which pools a request may be for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Pools {
    /// There are none to tell apart: the fleet is a file's.
    #[default]
    Any,
    /// It is known.
    One(Arc<str>),
    /// One of these, and nobody says which.
    Among(Arc<[Arc<str>]>),
}

impl Pools {
    /// The only one.
    #[must_use]
    pub fn one(&self) -> Option<&Arc<str>> {
        match self {
            Self::One(name) => Some(name),
            Self::Any | Self::Among(_) => None,
        }
    }
}

/// Whom a request may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The endpoints of these pools.
    pub pools: Pools,
    /// And of them these alone, as `ip:port` or `ip`, every rank behind it; all where there is no hint.
    pub subset: Option<Vec<String>>,
}

impl Fleet {
    /// The same with its pools.
    #[must_use]
    pub fn with_pools(self, pools: Vec<Pool>) -> Self {
        Self { pools, ..self }
    }

    /// A pool by its name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| *pool.name == *name)
    }

    /// The names of an endpoint's pools.
    pub fn pools_of<'a>(&'a self, endpoint: &'a Endpoint) -> impl Iterator<Item = &'a str> {
        let own = self.pools.iter().filter(|pool| pool.has(endpoint));
        own.map(|pool| &*pool.name)
    }

    /// The endpoints that a request may have.
    pub fn allowed<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        let endpoints: &[_] = match &scope.pools {
            Pools::One(name) => self.pool(name).map_or(&[], |pool| &pool.fleet.endpoints),
            Pools::Any | Pools::Among(_) => &self.endpoints,
        };
        let names: &[Arc<str>] = match &scope.pools {
            // All of them are everybody.
            Pools::Among(names) if names.len() < self.pools.len() => names,
            _ => &[],
        };
        let of_a_pool = move |endpoint: &&Arc<Endpoint>| {
            let mut pools = names.iter().filter_map(|name| self.pool(name));
            names.is_empty() || pools.any(|pool| pool.has(endpoint))
        };
        let is_allowed = move |endpoint: &&Arc<Endpoint>| {
            let any = |names: &Vec<String>| names.iter().any(|name| endpoint.is_named(name));
            scope.subset.as_ref().is_none_or(any)
        };
        endpoints.iter().filter(of_a_pool).filter(is_allowed)
    }

    /// The same as a fleet; shared where that is possible, since this is asked for every request.
    #[must_use]
    pub fn within(self: &Arc<Self>, scope: &Scope) -> Arc<Self> {
        match (&scope.pools, &scope.subset) {
            (Pools::Any, None) => self.clone(),
            (Pools::Among(names), None) if names.len() >= self.pools.len() => self.clone(),
            (Pools::One(name), None) => {
                let pool = self.pool(name).map(|pool| pool.fleet.clone());
                pool.unwrap_or_default()
            }
            _ => Arc::new(Self::of(self.allowed(scope).cloned().collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::EndpointId;

    /// Endpoints 0 to 3 at ports 8000 and up; `a` has 0 and 1, `b` has 1, 2, and `c` nobody.
    fn fleet() -> Arc<Fleet> {
        let endpoint = |id: u16| {
            let address = ([127, 0, 0, 1], 8000 + id).into();
            let id = EndpointId(id.into());
            Arc::new(Endpoint::new(id, format!("pod-{}", id.0), address, None))
        };
        let all: Vec<_> = (0..4).map(endpoint).collect();
        let pool = |name: &str, of: &[usize]| Pool {
            name: name.into(),
            namespace: "llm".into(),
            services: vec![format!("epp-{name}")],
            fleet: Arc::new(Fleet::of(of.iter().map(|n| all[*n].clone()).collect())),
        };
        let pools = vec![pool("a", &[0, 1]), pool("b", &[1, 2]), pool("c", &[])];
        Arc::new(Fleet::of(all).with_pools(pools))
    }

    fn ports(pools: Pools, subset: Option<&[&str]>) -> Vec<u16> {
        let subset = subset.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let scope = Scope { pools, subset };
        let fleet = fleet();
        let allowed: Vec<_> = fleet
            .allowed(&scope)
            .map(|one| one.address.port())
            .collect();
        let within = fleet.within(&scope);
        let same = within.endpoints.iter().map(|one| one.address.port());
        assert_eq!(same.collect::<Vec<_>>(), allowed, "{scope:?}");
        allowed
    }

    fn among(names: &[&str]) -> Pools {
        Pools::Among(names.iter().map(|name| (*name).into()).collect())
    }

    #[test]
    fn a_request_has_the_endpoints_of_its_pools_alone() {
        assert_eq!(ports(Pools::Any, None), [8000, 8001, 8002, 8003]);
        assert_eq!(ports(Pools::One("a".into()), None), [8000, 8001]);
        assert_eq!(ports(among(&["a", "b"]), None), [8000, 8001, 8002]);
        assert_eq!(
            ports(among(&["a", "b", "c"]), None),
            [8000, 8001, 8002, 8003]
        );
        for empty in ["c", "gone"] {
            assert!(ports(Pools::One(empty.into()), None).is_empty(), "{empty}");
        }
    }

    #[test]
    fn a_hint_counts_within_the_pool() {
        let hint = ["127.0.0.1:8001", "127.0.0.1:8003"];
        assert_eq!(ports(Pools::One("a".into()), Some(&hint)), [8001]);
        assert_eq!(ports(among(&["b", "c"]), Some(&hint)), [8001]);
        assert_eq!(ports(Pools::Any, Some(&hint)), [8001, 8003]);
    }
}

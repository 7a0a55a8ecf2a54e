//! Which pool a request is for.
//!
//! Signs are asked in order, from what a gateway insists on to what the request lets guess:
//!
//! 1. the endpoints that the gateway allows;
//! 2. the pool that the stream's metadata names (`x-kvscout-pool`);
//! 3. the Service that the stream asks at, where a pool refers to it;
//! 4. the objective, then the model that it names: pools that have a rule for it, then pools whose servers say that
//!    they serve it (vLLM's metrics say the first of a server's names).
//!
//! Each narrows what those before it left, and one that fits none of these says nothing. Where several pools
//! are left, the request may have the endpoints of all of them: some could serve it.

use std::sync::Arc;

use super::{PoolHint, Scheduler};
use crate::fleet::{Pool, Pools, Scope};
use crate::routes::Routes;

impl Scheduler {
    /// As far as the gateway says it.
    pub(super) fn scope(&self, hint: &PoolHint, subset: Option<Vec<String>>) -> Scope {
        let fleet = self.parts.fleet.borrow();
        let anywhere = Scope {
            pools: Pools::Any,
            subset,
        };
        let mut pools: Vec<&Pool> = fleet.pools.iter().collect();
        if pools.len() > 1 && anywhere.subset.is_some() {
            let allowed: Vec<_> = fleet.allowed(&anywhere).collect();
            narrow(&mut pools, |pool| allowed.iter().any(|one| pool.has(one)));
        }
        if let Some(named) = &hint.pool {
            narrow(&mut pools, |pool| is_named(pool, named));
        }
        if let Some(authority) = &hint.authority {
            narrow(&mut pools, |pool| is_asked_at(pool, authority));
        }
        Scope {
            pools: of(&pools),
            ..anywhere
        }
    }

    /// Further, by what the request itself names.
    pub(super) fn narrowed(
        &self,
        scope: Scope,
        routes: &Routes,
        (model, objective): (Option<&str>, Option<&str>),
    ) -> Scope {
        let Pools::Among(names) = &scope.pools else {
            return scope;
        };
        let mut names: Vec<&Arc<str>> = names.iter().collect();
        if let Some(objective) = objective {
            narrow(&mut names, |pool| {
                routes.rules(Some(pool)).has_objective(objective)
            });
        }
        if let Some(model) = model {
            narrow(&mut names, |pool| routes.rules(Some(pool)).has_model(model));
            let fleet = self.parts.fleet.borrow();
            narrow(&mut names, |pool| {
                let pool = fleet.pool(pool);
                pool.is_some_and(|pool| pool.fleet.heard().any(|one| one.load.serves(model)))
            });
        }
        Scope {
            pools: among(names.into_iter()),
            ..scope
        }
    }

    /// The word for labels: none where there are no pools.
    pub(super) fn pool_label(scope: &Scope) -> Option<&str> {
        match &scope.pools {
            Pools::Any => None,
            Pools::One(name) => Some(name),
            Pools::Among(_) => Some(UNKNOWN),
        }
    }
}

/// The label of a request whose pool nobody knows.
const UNKNOWN: &str = "unknown";

/// Leaves those for which it is so, if there are any.
fn narrow<T>(left: &mut Vec<T>, is: impl Fn(&T) -> bool) {
    if left.len() > 1 && left.iter().any(&is) {
        left.retain(is);
    }
}

fn of(pools: &[&Pool]) -> Pools {
    among(pools.iter().map(|pool| &pool.name))
}

fn among<'a>(mut names: impl ExactSizeIterator<Item = &'a Arc<str>>) -> Pools {
    match (names.len(), names.next()) {
        (_, None) => Pools::Any,
        (1, Some(one)) => Pools::One(one.clone()),
        (_, Some(first)) => Pools::Among([first].into_iter().chain(names).cloned().collect()),
    }
}

/// `name`, or `namespace/name`.
fn is_named(pool: &Pool, named: &str) -> bool {
    let (namespace, name) = named.split_once('/').unwrap_or(("", named));
    *pool.name == *name && is_in(pool, namespace)
}

/// What gateways have as `:authority`: `kvscout.llm.svc:9002` (Envoy AI Gateway), `kvscout.llm:9002` (Envoy
/// Gateway), `kvscout.llm.svc.cluster.local:9002` (agentgateway), `outbound|9002||kvscout.llm.svc.cluster.local`
/// (Istio, whose `|` comes as `+`: see `ext_proc/authority.rs`), or any name that an operator gave to a cluster
/// of Envoy's.
fn is_asked_at(pool: &Pool, authority: &str) -> bool {
    let host = authority.rsplit('+').next().unwrap_or(authority);
    let host = host.split(':').next().unwrap_or(host);
    let mut words = host.split('.');
    let (service, namespace) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    pool.services.iter().any(|one| one == service) && is_in(pool, namespace)
}

/// Where either does not say where it is, it may be anywhere.
fn is_in(pool: &Pool, namespace: &str) -> bool {
    namespace.is_empty() || pool.namespace.is_empty() || *pool.namespace == *namespace
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Fleet;

    fn pool(name: &str, service: &str) -> Pool {
        Pool {
            name: name.into(),
            namespace: "llm".into(),
            services: vec![service.into()],
            fleet: Arc::new(Fleet::default()),
        }
    }

    #[test]
    fn every_gateways_way_to_name_a_service_is_understood() {
        let (one, other) = (pool("llama", "epp-llama"), pool("qwen", "epp-qwen"));
        for authority in [
            "epp-llama.llm.svc:9002",
            "epp-llama.llm:9002",
            "epp-llama.llm.svc.cluster.local:9002",
            "outbound+9002++epp-llama.llm.svc.cluster.local",
            "epp-llama",
        ] {
            assert!(is_asked_at(&one, authority), "{authority}");
            assert!(!is_asked_at(&other, authority), "{authority}");
        }
        for authority in ["epp-llama.elsewhere.svc:9002", "kvscout", ""] {
            assert!(!is_asked_at(&one, authority), "{authority}");
        }
    }

    #[test]
    fn a_pool_is_named_with_its_namespace_or_without() {
        let one = pool("llama", "epp");
        assert!(is_named(&one, "llama") && is_named(&one, "llm/llama"));
        assert!(!is_named(&one, "other/llama") && !is_named(&one, "llm/qwen"));
    }

    #[test]
    fn a_sign_that_fits_nobody_says_nothing() {
        let mut left = vec![1, 2, 3];
        narrow(&mut left, |n| *n > 5);
        assert_eq!(left, [1, 2, 3]);
        narrow(&mut left, |n| *n > 1);
        narrow(&mut left, |n| *n == 3);
        assert_eq!(left, [3]);
    }
}

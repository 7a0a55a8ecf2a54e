//! Where a request may go next, if its endpoint does not take it.

use std::net::SocketAddr;

use super::Scheduler;
use crate::choice::{Candidate, Case};
use crate::fleet::{Endpoint, Fleet};

impl Scheduler {
    /// The next best endpoints in order, `policy.fallbacks` at most. A rank's are of the same number: the
    /// header that names it goes with the request.
    pub(super) fn fallbacks(
        &self,
        case: &Case,
        allowed: &Fleet,
        chosen: &Endpoint,
    ) -> Vec<SocketAddr> {
        let mut named = vec![chosen.address];
        while named.len() <= self.parts.policy.fallbacks {
            let others = allowed.endpoints.iter().zip(&case.candidates);
            let others = others.filter(|(endpoint, _)| {
                endpoint.rank == chosen.rank && !named.contains(&endpoint.address)
            });
            let (endpoints, candidates): (Vec<_>, Vec<Candidate>) = others.unzip();
            let Some(next) = case.among(&candidates) else {
                break;
            };
            let next = endpoints.iter().find(|one| one.id == next.endpoint);
            named.extend(next.map(|endpoint| endpoint.address));
        }
        named.split_off(1)
    }
}

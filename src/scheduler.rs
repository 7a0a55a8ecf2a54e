//! The request sentence: prompt → tokens → blocks → overlap → choice.
//!
//! Read [`Scheduler::place`] aloud. Whatever fails on the way lowers the basis of the choice and
//! never the request: only an empty fleet, or a subset hint that names none of it, is refused, and
//! what the rules let be shed where every endpoint is saturated.

use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::TraceId;
use tokio::sync::watch;

use crate::admission::{Admission, Shed};
use crate::audit::Audit;
use crate::choice::{Candidate, Case, Choice, Weights};
use crate::config::{self, Policy, Saturation, Strategy};
use crate::decisions::{Decisions, Took};
use crate::fleet::{Endpoint, Fleet, Scope};
use crate::index::{Cached, Index};
use crate::metrics::Metrics;
use crate::parity::Parity;
use crate::replicas::Replicas;
use crate::routes::Routes;

mod ask;
mod explain;
mod fallbacks;
mod home;
mod intent;
mod placement;
mod pool;
mod reader;
mod reading;
mod readings;
mod seen;
mod settle;

pub use ask::{Ask, ByLoad, PoolHint, Refusal};
pub use explain::{Explanation, Unexplained};
use intent::Intent;
pub use placement::{Outcome, Placement};
pub use reader::Reader;
use reading::Reading;
use readings::{Held, Readings};

/// Chooses endpoints.
pub struct Scheduler {
    parts: Parts,
    admission: Arc<Admission>,
}

/// What a scheduler works with.
pub struct Parts {
    /// Who serves.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// Who holds what.
    pub index: Arc<Index>,
    /// Who tells other replicas, and is told by them; none where there are none.
    pub replicas: Option<Arc<Replicas>>,
    /// Who holds predictions against reports.
    pub audit: Arc<Audit>,
    /// Who keeps what was decided.
    pub decisions: Arc<Decisions>,
    /// Who watches that prompts are read as servers do.
    pub parity: Arc<Parity>,
    /// Which models serve requests, and how important these are.
    pub routes: watch::Receiver<Arc<Routes>>,
    /// Who reads prompts.
    pub reader: Reader,
    /// How to choose.
    pub policy: Policy,
    /// When a server has too much to do.
    pub saturation: Saturation,
    /// Who waits and who is refused.
    pub admission: config::Admission,
    /// From whole body to choice; then load decides.
    pub decision_max: Duration,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

impl Scheduler {
    /// Puts one together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let (fleet, metrics) = (parts.fleet.clone(), parts.metrics.clone());
        Self {
            admission: Arc::new(Admission::new(
                parts.admission,
                parts.saturation,
                fleet,
                metrics,
            )),
            parts,
        }
    }

    /// Places a request, by overlap if its prompt can be read in time.
    pub async fn place(&self, ask: Ask) -> Result<Placement, Refusal> {
        let (mut took, mut since) = (Took::default(), Instant::now());
        let intent = self.intent(&ask);
        let scope = &intent.scope;
        let allowed = self.allowed(scope)?;
        self.count(&intent);
        // Who is refused is not read before.
        self.admitted(scope, self.admission.at_once(intent.class, scope))?;
        let strategy = self.strategy(scope);
        let mut readings = self.readings(&ask, &intent, strategy, &allowed).await;
        took.read = lap(&mut since);
        (took.render, took.tokenize) = readings.took();
        let fairness = ask.fairness.as_deref();
        let turn = self.admission.admit(intent.class, fairness, scope).await;
        let turn = self.admitted(scope, turn)?;
        took.wait = lap(&mut since);
        // As of now, and until the turn ends without another wait: the load is booked in it.
        let allowed = self.allowed(scope)?;
        readings.joined_by(&allowed);
        let readings = self.doubted(readings, &allowed);
        let told = (ask.session.as_deref(), &ask.body[..]);
        let readings = self.in_conversation(readings, strategy, told);
        let mut prompts = readings.chains();
        let held = self.overlaps(&readings, &mut prompts, &allowed);
        took.overlap = lap(&mut since);
        let case = self.case(&ask.request_id, &readings, &allowed, held);
        let begun = Begun {
            trace: ask.trace,
            body_bytes: ask.body.len(),
            took,
            since,
        };
        let placement = self.settle(case, (&readings, &prompts), allowed, intent, begun)?;
        drop(turn);
        let Took {
            read,
            overlap,
            choose,
            ..
        } = placement.decision.took;
        let stages = [("read", read), ("overlap", overlap), ("choose", choose)];
        self.parts.metrics.decided(&stages);
        self.tell(&placement);
        Ok(placement)
    }

    /// Places a request whose body is not read.
    pub fn place_by_load(&self, ask: &ByLoad) -> Result<Placement, Refusal> {
        let since = Instant::now();
        let (routes, objective) = (self.parts.routes.borrow().clone(), ask.objective.as_deref());
        let scope = self.scope(&ask.pool, ask.subset.clone());
        let scope = self.narrowed(scope, &routes, (None, objective));
        let allowed = self.allowed(&scope)?;
        // Without a body there is nothing to compute, and nothing to spare by a refusal.
        if ask.reason != "no_body" {
            let rules = routes.rules(scope.pools.one());
            let (class, known) = intent::known(rules.class(None, objective));
            self.count_class(known);
            self.admitted(&scope, self.admission.at_once(class, &scope))?;
        }
        let readings = Readings::alike(Reading::load_only(ask.reason, ask.body_bytes));
        let told = (ask.session.as_deref(), &[][..]);
        let readings = self.in_conversation(readings, self.strategy(&scope), told);
        let case = self.case(&ask.request_id, &readings, &allowed, Held::nothing());
        let intent = Intent {
            scope,
            ..Intent::default()
        };
        let begun = Begun {
            trace: ask.trace,
            body_bytes: ask.body_bytes,
            took: Took::default(),
            since,
        };
        let prompts = readings.chains();
        let placement = self.settle(case, (&readings, &prompts), allowed, intent, begun)?;
        self.tell(&placement);
        Ok(placement)
    }

    /// The prompt, as far as the strategy asks for it.
    async fn readings(
        &self,
        ask: &Ask,
        intent: &Intent,
        strategy: Strategy,
        allowed: &Fleet,
    ) -> Readings {
        match strategy {
            Strategy::Default => Readings::alike(Reading::load_only("strategy", ask.body.len())),
            Strategy::PrefixCache => self.read(ask, intent, allowed).await,
        }
    }

    /// How to choose for a pool, as of now.
    fn strategy(&self, scope: &Scope) -> Strategy {
        let routes = self.parts.routes.borrow();
        let said = routes.rules(scope.pools.one()).strategy();
        said.unwrap_or(self.parts.policy.strategy)
    }

    /// Whether an endpoint has so much to do that nothing should be added.
    #[must_use]
    pub fn saturated(&self, endpoint: &Endpoint) -> bool {
        self.admission.is_saturated(endpoint)
    }

    /// Somebody else's work at an endpoint became less, or it said how much it has to do: whoever waits
    /// may go on.
    pub fn freed(&self) {
        self.admission.freed();
    }

    /// Requests that wait for an endpoint with room.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.admission.waiting()
    }

    fn admitted<T>(&self, scope: &Scope, admitted: Result<T, Shed>) -> Result<T, Refusal> {
        admitted.map_err(|why| {
            let pool = Self::pool_label(scope);
            self.parts.metrics.answered(pool, ("", "", why.as_str()));
            Refusal::Shed {
                why,
                retry_after_s: self.admission.retry_after_s(),
            }
        })
    }

    /// Endpoints that may be chosen.
    fn allowed(&self, scope: &Scope) -> Result<Arc<Fleet>, Refusal> {
        self.find_allowed(scope).inspect_err(|refusal| {
            let pool = Self::pool_label(scope);
            self.parts
                .metrics
                .answered(pool, ("", "", refusal.as_str()));
        })
    }

    /// The same, uncounted.
    fn find_allowed(&self, scope: &Scope) -> Result<Arc<Fleet>, Refusal> {
        let fleet = self.parts.fleet.borrow().clone();
        let allowed = fleet.within(scope);
        match (allowed.endpoints.is_empty(), &scope.subset) {
            (false, _) => Ok(allowed),
            (true, Some(_)) if !fleet.endpoints.is_empty() => Err(Refusal::NoneInSubset),
            (true, _) => Err(Refusal::NoEndpoint),
        }
    }

    /// All that a choice rests on, as of now.
    fn case(&self, request_id: &str, readings: &Readings, allowed: &Fleet, mut held: Held) -> Case {
        let (now, saturation) = (Instant::now(), &self.parts.saturation);
        let candidate = |endpoint: &Arc<Endpoint>| {
            let place = readings.place(endpoint);
            let cached = self.found(endpoint, held.next(place));
            candidate(endpoint, (place, cached), saturation, now)
        };
        let candidates: Vec<Candidate> = allowed.endpoints.iter().map(candidate).collect();
        Case {
            request_id: request_id.to_owned(),
            prompts: self.prompts(readings),
            weights: Weights {
                matching_ratio_min: self.parts.policy.matching_ratio_min,
                media: self.parts.policy.media,
            },
            home: self.home(readings, allowed, &candidates),
            candidates,
        }
    }

    /// What an endpoint finds of what it holds.
    fn found(&self, endpoint: &Endpoint, held: Cached) -> Cached {
        if !endpoint.recomputes() {
            return held;
        }
        let shape = self.parts.index.shape(endpoint.id);
        shape.map_or(held, |shape| held.but_for_a_block(shape.block_size.into()))
    }

    /// The log line that the ACK gateway's users look for, and the whole decision at DEBUG.
    fn tell(&self, placement: &Placement) {
        let choice = placement.choice();
        let Choice {
            prompt_tokens,
            predicted_cached_tokens,
            basis,
            ..
        } = *choice;
        let ratio = choice.matching_ratio();
        let min = self.parts.policy.matching_ratio_min;
        let trace_id = placement.decision.trace.map(tracing::field::display);
        // A JSON text, so that a hostile id cannot forge a line.
        let request = serde_json::Value::from(placement.request_id());
        if choice.prefix_aware {
            tracing::info!(
                trace_id,
                "Do prefix-aware routing! {{\"request\": {request}, \"matching ratio\": \" {ratio:.2} > {min:.2}\"}}"
            );
        } else {
            tracing::debug!(
                trace_id,
                "Load decides. {{\"request\": {request}, \"matching ratio\": \" {ratio:.2} <= {min:.2}\"}}"
            );
        }
        let (endpoint, trust) = (placement.endpoint().name.as_str(), choice.trust.as_str());
        let (basis, reason) = (basis.as_str(), basis.reason());
        let load = &placement.endpoint().load;
        tracing::debug!(
            trace_id, %request, endpoint, basis, reason, trust, prompt_tokens, predicted_cached_tokens,
            saturated = load.saturated(Instant::now(), &self.parts.saturation),
            queued_tokens = choice.cost.prefill_tokens, "placed"
        );
    }
}

/// A request that is being placed.
struct Begun {
    trace: Option<TraceId>,
    body_bytes: usize,
    /// How long it took so far, and as of when.
    took: Took,
    since: Instant,
}

/// The time since then, and now in its place.
fn lap(since: &mut Instant) -> Duration {
    let now = Instant::now();
    now - std::mem::replace(since, now)
}

/// What an endpoint offers, and all that it has to do: ours and others'.
fn candidate(
    endpoint: &Endpoint,
    (place, cached): (usize, Cached),
    saturation: &Saturation,
    now: Instant,
) -> Candidate {
    let outside = endpoint.load.outside(now);
    Candidate {
        endpoint: endpoint.id,
        // One for each entry of the configuration at most, and two more.
        prompt: place as u16,
        cached,
        trust: endpoint.trust(),
        avoided: endpoint.avoided(now),
        full: endpoint.load.full(now, saturation),
        queued_tokens: endpoint.load.queued_tokens(now) + outside.prefill_tokens,
        requests: endpoint.load.requests().saturating_add(outside.requests),
        recent_tokens: endpoint.load.recent_tokens(now),
        pace: endpoint.load.pace(),
    }
}

#[cfg(test)]
mod tests;

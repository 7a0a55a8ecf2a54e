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
use crate::audit::{Audit, cause::SALT_REASON};
use crate::blocks::Chains;
use crate::choice::{Basis, Candidate, Case, Choice, Weights};
use crate::config::{self, Policy, Saturation, Strategy};
use crate::decisions::{Decisions, Took};
use crate::fleet::{Endpoint, EndpointId, Fleet, Scope};
use crate::index::{Cached, Index};
use crate::metrics::Metrics;
use crate::parity::{self, Parity};
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
mod settle;

pub use ask::{Ask, ByLoad, PoolHint, Refusal};
pub use explain::{Explanation, Unexplained};
use intent::Intent;
pub use placement::{Outcome, Placement};
pub use reader::Reader;
use reading::Reading;

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
        self.allowed(scope)?;
        self.count(&intent);
        // Who is refused is not read before.
        self.admitted(scope, self.admission.at_once(intent.class, scope))?;
        let strategy = self.strategy(scope);
        let reading = self.reading(&ask, &intent, strategy).await;
        took.read = lap(&mut since);
        (took.render, took.tokenize) = (reading.rendered_in, reading.tokenized_in);
        let fairness = ask.fairness.as_deref();
        let turn = self.admission.admit(intent.class, fairness, scope).await;
        let turn = self.admitted(scope, turn)?;
        took.wait = lap(&mut since);
        // As of now, and until the turn ends without another wait: the load is booked in it.
        let allowed = self.allowed(scope)?;
        let reading = self.doubted(reading, &allowed);
        let told = (ask.session.as_deref(), &ask.body[..]);
        let reading = self.in_conversation(reading, strategy, told);
        let mut prompt = Chains::new(&reading.tokens, &reading.identity);
        let cached = self.overlaps(&reading, &mut prompt, &allowed);
        took.overlap = lap(&mut since);
        let case = self.case(&ask.request_id, &reading, &allowed, &cached);
        let begun = Begun {
            trace: ask.trace,
            body_bytes: ask.body.len(),
            took,
            since,
        };
        let placement = self.settle(case, &reading, &prompt, allowed, intent, begun)?;
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
        let reading = Reading::load_only(ask.reason, ask.body_bytes);
        let told = (ask.session.as_deref(), &[][..]);
        let reading = self.in_conversation(reading, self.strategy(&scope), told);
        let cached = vec![Cached::default(); allowed.endpoints.len()];
        let prompt = Chains::new(&reading.tokens, &reading.identity);
        let case = self.case(&ask.request_id, &reading, &allowed, &cached);
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
        let placement = self.settle(case, &reading, &prompt, allowed, intent, begun)?;
        self.tell(&placement);
        Ok(placement)
    }

    /// The prompt, as far as the strategy asks for it.
    async fn reading(&self, ask: &Ask, intent: &Intent, strategy: Strategy) -> Reading {
        match strategy {
            Strategy::Default => Reading::load_only("strategy", ask.body.len()),
            Strategy::PrefixCache => self.read(ask, intent).await,
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

    async fn read(&self, ask: &Ask, intent: &Intent) -> Reading {
        let deadline = Instant::now() + self.parts.decision_max;
        let read = self.parts.reader.read(ask, intent.target.clone(), deadline);
        let reading = tokio::time::timeout_at(deadline.into(), read).await;
        reading.unwrap_or_else(|_| Reading::load_only("deadline", ask.body.len()))
    }

    /// Before vLLM 0.17.1 events do not show salts: what a salted request would find is unknown.
    /// Nor is it where the servers have often computed other tokens than we did.
    fn doubted(&self, reading: Reading, allowed: &Fleet) -> Reading {
        let hides =
            |endpoint: &Arc<Endpoint>| self.parts.index.shows_salt(endpoint.id) == Some(false);
        match reading.basis {
            Basis::Overlap
                if reading.identity.cache_salt.is_some() && allowed.endpoints.iter().any(hides) =>
            {
                Reading {
                    basis: Basis::Partial(SALT_REASON),
                    ..reading
                }
            }
            _ if reading.is_exact() && self.is_doubtful(&reading) => Reading {
                basis: Basis::Partial(parity::REASON),
                ..reading
            },
            _ => reading,
        }
    }

    fn is_doubtful(&self, reading: &Reading) -> bool {
        let model = reading.model.as_deref();
        model.is_some_and(|model| self.parts.parity.is_doubtful(model))
    }

    /// What each endpoint holds of the prompt, in the fleet's order.
    fn overlaps(&self, reading: &Reading, prompt: &mut Chains<'_>, allowed: &Fleet) -> Vec<Cached> {
        if !reading.reads_cache {
            return vec![Cached::default(); allowed.endpoints.len()];
        }
        let endpoints: Vec<EndpointId> = allowed.endpoints.iter().map(|e| e.id).collect();
        self.parts.index.cached(&endpoints, prompt)
    }

    /// All that a choice rests on, as of now.
    fn case(
        &self,
        request_id: &str,
        reading: &Reading,
        allowed: &Fleet,
        cached: &[Cached],
    ) -> Case {
        let (now, saturation) = (Instant::now(), &self.parts.saturation);
        let endpoints = allowed.endpoints.iter().zip(cached);
        let candidates: Vec<Candidate> = endpoints
            .map(|(endpoint, cached)| candidate(endpoint, *cached, saturation, now))
            .collect();
        Case {
            request_id: request_id.to_owned(),
            prompt_tokens: reading.prompt_tokens,
            basis: reading.basis,
            prompt_doubtful: self.is_doubtful(reading),
            weights: Weights {
                matching_ratio_min: self.parts.policy.matching_ratio_min,
                media: self.parts.policy.media,
            },
            home: self.home(reading, allowed, &candidates),
            candidates,
        }
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
    cached: Cached,
    saturation: &Saturation,
    now: Instant,
) -> Candidate {
    let outside = endpoint.load.outside(now);
    Candidate {
        endpoint: endpoint.id,
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

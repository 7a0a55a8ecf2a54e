//! The request sentence: prompt → tokens → blocks → overlap → choice.
//!
//! Read [`Scheduler::place`] aloud. Whatever fails on the way lowers the basis of the choice and
//! never the request: only an empty fleet, or a subset hint that names none of it, is refused, and
//! what the rules let be shed where every endpoint is saturated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::admission::{Admission, Frees, Shed};
use crate::blocks::{Chain, Chains, Identity, TokenId};
use crate::choice::{Basis, Candidate, Choice, Problem, choose};
use crate::config::{self, Policy, Saturation, Strategy};
use crate::fleet::load::ENGINE_REQUESTS_MAX;
use crate::fleet::{Booking, Endpoint, EndpointId, Fleet, Trust};
use crate::index::{Cached, Index};
use crate::metrics::{EndpointMetrics, Metrics};
use crate::parity::{self, Parity, Placed, Watch};
use crate::replicas::{Replicas, Told};
use crate::routes::Routes;

mod fallbacks;
mod home;
mod intent;
mod placement;
mod reader;

use intent::Intent;
pub use placement::{Outcome, Placement};
pub use reader::Reader;

/// Chooses endpoints.
pub struct Scheduler {
    parts: Parts,
    admission: Arc<Admission>,
    counted: RwLock<HashMap<EndpointId, Arc<EndpointMetrics>>>,
}

/// A request that wants an endpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ask {
    /// `x-request-id`.
    pub request_id: String,
    /// `:path`, its query included.
    pub path: String,
    /// `content-type`.
    pub content_type: Option<String>,
    /// The whole body as the client sent it.
    pub body: Bytes,
    /// The only endpoints allowed, as `ip:port` or `ip`, every rank behind it; none where the
    /// gateway gave no hint.
    pub subset: Option<Vec<String>>,
    /// The objective that its header names.
    pub objective: Option<String>,
    /// Whom it is for, as its header says: those who wait take turns by it.
    pub fairness: Option<String>,
    /// The model that is to serve it, as its header says, where no rule says another.
    pub target: Option<String>,
    /// The session that a header of `policy.session_headers` names.
    pub session: Option<String>,
}

/// A request whose body is not read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByLoad {
    /// `x-request-id`.
    pub request_id: String,
    /// As in [`Ask`].
    pub subset: Option<Vec<String>>,
    /// As in [`Ask`].
    pub objective: Option<String>,
    /// As in [`Ask`].
    pub session: Option<String>,
    /// What is known of the body's size.
    pub body_bytes: usize,
    /// A short word for labels.
    pub reason: &'static str,
}

/// Why a request gets no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The fleet is empty.
    #[error("no endpoint is ready: is the fleet empty?")]
    NoEndpoint,
    /// No endpoint is in the subset that the gateway allows.
    #[error("none of the endpoints that the gateway allows is in the fleet")]
    NoneInSubset,
    /// All are saturated, and it may be shed.
    #[error("every endpoint is saturated: try again in {retry_after_s} s")]
    Shed {
        /// What it ran into.
        why: Shed,
        /// When it is worth another try.
        retry_after_s: u64,
    },
}

impl Refusal {
    /// The word for labels and for the drop-reason header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::NoneInSubset => "none_in_subset",
            Self::Shed { why, .. } => why.as_str(),
        }
    }
}

/// What a scheduler works with.
pub struct Parts {
    /// Who serves.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// Who holds what.
    pub index: Arc<Index>,
    /// Who tells other replicas, and is told by them; none where there are none.
    pub replicas: Option<Arc<Replicas>>,
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

/// A prompt as far as it could be read.
#[derive(Debug)]
struct Reading {
    /// The configured name that its tokens go by; none where they are not known.
    model: Option<Arc<str>>,
    basis: Basis,
    tokens: Vec<TokenId>,
    /// Of all prompts of a batch, or an estimate.
    prompt_tokens: u64,
    identity: Identity,
    /// The engine may serve it from its cache.
    reads_cache: bool,
    /// Prompts, of which `tokens` are the first one's.
    prompts: usize,
    /// Answers wanted to each prompt.
    answers: u32,
    /// The engine will report its cached blocks again (`kv_cache_report_mode=full`).
    wants_report: bool,
    /// The conversation that it belongs to, where nothing else tells where its cache is.
    conversation: Option<u64>,
}

impl Reading {
    /// Nothing is known but the body's size: about four bytes a token.
    fn load_only(reason: &'static str, body_bytes: usize) -> Self {
        Self {
            model: None,
            basis: Basis::LoadOnly(reason),
            tokens: Vec::new(),
            prompt_tokens: body_bytes as u64 / 4,
            identity: Identity::default(),
            reads_cache: false,
            prompts: 1,
            answers: 1,
            wants_report: false,
            conversation: None,
        }
    }

    /// What the engine makes of the request: a request for each answer to each prompt.
    fn engine_requests(&self) -> u32 {
        let prompts = u32::try_from(self.prompts).unwrap_or(u32::MAX);
        let all = prompts.saturating_mul(self.answers.max(1));
        all.min(ENGINE_REQUESTS_MAX)
    }

    /// Every token of the first prompt is known.
    fn is_exact(&self) -> bool {
        matches!(
            self.basis,
            Basis::Overlap | Basis::Partial("answers" | "batch" | parity::REASON)
        )
    }
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
            counted: RwLock::default(),
        }
    }

    /// Places a request, by overlap if its prompt can be read in time.
    pub async fn place(&self, ask: Ask) -> Result<Placement, Refusal> {
        let (subset, began) = (ask.subset.as_deref(), Instant::now());
        self.allowed(subset)?;
        let intent = self.intent(&ask);
        // Who is refused is not read before.
        self.admitted(self.admission.at_once(intent.class, subset))?;
        let reading = match self.strategy() {
            Strategy::Default => Reading::load_only("strategy", ask.body.len()),
            Strategy::PrefixCache => self.read(&ask, &intent).await,
        };
        let waits = Instant::now();
        let fairness = ask.fairness.as_deref();
        let turn = self.admission.admit(intent.class, fairness, subset).await;
        let turn = self.admitted(turn)?;
        let waited = waits.elapsed();
        // As of now, and until the turn ends without another wait: the load is booked in it.
        let allowed = self.allowed(subset)?;
        let reading = self.doubted(reading, &allowed);
        let reading = self.in_conversation(reading, ask.session.as_deref(), &ask.body);
        let mut prompt = Chains::new(&reading.tokens, &reading.identity);
        let cached = self.overlaps(&reading, &mut prompt, &allowed);
        let placement = self.settle(&ask.request_id, &reading, &prompt, allowed, &cached)?;
        let placement = placement.served_by_target(intent);
        drop(turn);
        self.parts.metrics.decided(began.elapsed() - waited);
        self.tell(&ask.request_id, &placement);
        Ok(placement)
    }

    /// Places a request whose body is not read.
    pub fn place_by_load(&self, ask: &ByLoad) -> Result<Placement, Refusal> {
        let subset = ask.subset.as_deref();
        let allowed = self.allowed(subset)?;
        // Without a body there is nothing to compute, and nothing to spare by a refusal.
        if ask.reason != "no_body" {
            let class = self.class(None, ask.objective.as_deref());
            self.admitted(self.admission.at_once(class, subset))?;
        }
        let reading = Reading::load_only(ask.reason, ask.body_bytes);
        let reading = self.in_conversation(reading, ask.session.as_deref(), b"");
        let cached = vec![Cached::default(); allowed.endpoints.len()];
        let prompt = Chains::new(&reading.tokens, &reading.identity);
        let placement = self.settle(&ask.request_id, &reading, &prompt, allowed, &cached)?;
        self.tell(&ask.request_id, &placement);
        Ok(placement)
    }

    /// How to choose, as of now.
    fn strategy(&self) -> Strategy {
        let pool = self.parts.routes.borrow().strategy();
        pool.unwrap_or(self.parts.policy.strategy)
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

    fn admitted<T>(&self, admitted: Result<T, Shed>) -> Result<T, Refusal> {
        admitted.map_err(|why| {
            self.parts.metrics.answered("", "", why.as_str());
            Refusal::Shed {
                why,
                retry_after_s: self.admission.retry_after_s(),
            }
        })
    }

    /// Endpoints that may be chosen.
    fn allowed(&self, subset: Option<&[String]>) -> Result<Arc<Fleet>, Refusal> {
        let fleet = self.parts.fleet.borrow().clone();
        let refuse = |refusal: Refusal| {
            self.parts.metrics.answered("", "", refusal.as_str());
            refusal
        };
        if fleet.endpoints.is_empty() {
            return Err(refuse(Refusal::NoEndpoint));
        }
        if subset.is_none() {
            return Ok(fleet);
        }
        let endpoints: Vec<_> = fleet.allowed(subset).cloned().collect();
        if endpoints.is_empty() {
            return Err(refuse(Refusal::NoneInSubset));
        }
        Ok(Arc::new(Fleet::of(endpoints)))
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
                    basis: Basis::Partial("salt_not_in_events"),
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

    /// Chooses and books.
    fn settle(
        &self,
        request_id: &str,
        reading: &Reading,
        prompt: &Chains<'_>,
        allowed: Arc<Fleet>,
        cached: &[Cached],
    ) -> Result<Placement, Refusal> {
        let now = Instant::now();
        let candidates: Vec<Candidate> = allowed
            .endpoints
            .iter()
            .zip(cached)
            .map(|(endpoint, cached)| candidate(endpoint, *cached, &self.parts.saturation, now))
            .collect();
        let problem = Problem {
            prompt_tokens: reading.prompt_tokens,
            basis: reading.basis,
            prompt_doubtful: self.is_doubtful(reading),
            matching_ratio_min: self.parts.policy.matching_ratio_min,
            media: self.parts.policy.media,
            request: request_id,
        };
        let home = self.home(reading, &allowed, &candidates);
        let among = home.map_or(&candidates[..], std::slice::from_ref);
        let choice = choose(&problem, among).ok_or(Refusal::NoEndpoint)?;
        let chosen = allowed
            .endpoints
            .iter()
            .find(|endpoint| endpoint.id == choice.endpoint);
        let endpoint = chosen.ok_or(Refusal::NoEndpoint)?.clone();
        self.announce_report(reading, &choice);
        let watch = self.watch(request_id, reading, &endpoint, &choice);
        let counted = self.counted(&endpoint);
        counted.prompt_tokens.increment(choice.prompt_tokens);
        counted.predicted.increment(choice.predicted_cached_tokens);
        self.parts
            .metrics
            .answered(choice.basis.as_str(), choice.basis.reason(), "placed");
        let work = choice
            .prompt_tokens
            .saturating_sub(choice.predicted_cached_tokens);
        let requests = reading.engine_requests();
        let expectation = self.parts.index.expect(choice.endpoint, prompt);
        let fallbacks = self.fallbacks(&problem, &allowed, &candidates, &endpoint);
        Ok(Placement {
            request_id: request_id.to_owned(),
            told: self.told(&endpoint, (work, requests), expectation.is_some(), prompt),
            booking: Booking::new(endpoint, work, requests, now),
            frees: Frees(self.admission.clone()),
            metrics: self.parts.metrics.clone(),
            counted,
            watch,
            expectation,
            choice,
            allowed,
            candidates,
            fallbacks,
            target: None,
            rewrite: None,
        })
    }

    /// Other replicas hear of it, and of its prompt where it is expected here.
    fn told(
        &self,
        endpoint: &Arc<Endpoint>,
        (prefill_tokens, requests): (u64, u32),
        expected: bool,
        prompt: &Chains<'_>,
    ) -> Option<Told> {
        let replicas = self.parts.replicas.as_ref()?;
        let shape = self.parts.index.shape(endpoint.id).filter(|_| expected);
        let chain = shape.and_then(|shape| prompt.made(shape));
        replicas.tell(endpoint, prefill_tokens, requests, chain)
    }

    fn announce_report(&self, reading: &Reading, choice: &Choice) {
        if !reading.wants_report || !reading.reads_cache {
            return;
        }
        if let Some(shape) = self.parts.index.shape(choice.endpoint) {
            let chain = Chain::of_prompt(&reading.tokens, shape, &reading.identity);
            let blocks = choice.predicted_cached_tokens / u64::from(shape.block_size.max(1));
            self.parts.index.expect_reports(
                choice.endpoint,
                &chain,
                blocks as u32,
                reading.answers,
            );
        }
    }

    /// Waits for the events that should follow, where they can tell anything.
    fn watch(
        &self,
        request: &str,
        reading: &Reading,
        endpoint: &Endpoint,
        choice: &Choice,
    ) -> Option<Watch> {
        let model = reading.model.as_ref().filter(|_| reading.is_exact())?;
        if choice.trust != Trust::Live {
            return None;
        }
        let (parity, index) = (&self.parts.parity, &self.parts.index);
        let placed = Placed {
            request,
            model,
            tokens: &reading.tokens,
            identity: &reading.identity,
            cached_tokens: choice.predicted_cached_tokens,
        };
        parity.open(index, endpoint.id, &placed, || endpoint.trust())
    }

    fn counted(&self, endpoint: &Endpoint) -> Arc<EndpointMetrics> {
        if let Some(counted) = self.counted.read().get(&endpoint.id) {
            return counted.clone();
        }
        let counted = Arc::new(self.parts.metrics.endpoint(&endpoint.name));
        let mut all = self.counted.write();
        let fleet = self.parts.fleet.borrow().clone();
        all.retain(|id, _| fleet.endpoints.iter().any(|endpoint| endpoint.id == *id));
        all.insert(endpoint.id, counted.clone());
        counted
    }

    /// The log line that the ACK gateway's users look for, and the whole decision at DEBUG.
    fn tell(&self, request_id: &str, placement: &Placement) {
        let Choice {
            prompt_tokens,
            predicted_cached_tokens,
            basis,
            ..
        } = placement.choice;
        let ratio = placement.choice.matching_ratio();
        let min = self.parts.policy.matching_ratio_min;
        // A JSON text, so that a hostile id cannot forge a line.
        let request = serde_json::Value::from(request_id);
        if placement.choice.prefix_aware {
            tracing::info!(
                "Do prefix-aware routing! {{\"request\": {request}, \"matching ratio\": \" {ratio:.2} > {min:.2}\"}}"
            );
        } else {
            tracing::debug!(
                "Load decides. {{\"request\": {request}, \"matching ratio\": \" {ratio:.2} <= {min:.2}\"}}"
            );
        }
        let (endpoint, trust) = (
            placement.endpoint().name.as_str(),
            placement.choice.trust.as_str(),
        );
        let (basis, reason) = (basis.as_str(), basis.reason());
        let load = &placement.endpoint().load;
        tracing::debug!(
            %request, endpoint, basis, reason, trust, prompt_tokens, predicted_cached_tokens,
            saturated = load.saturated(Instant::now(), &self.parts.saturation),
            queued_tokens = placement.choice.cost.prefill_tokens, "placed"
        );
    }
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
        queued_tokens: endpoint.load.prefill_tokens() + outside.prefill_tokens,
        requests: endpoint.load.requests().saturating_add(outside.requests),
        recent_tokens: endpoint.load.recent_tokens(now),
        pace: endpoint.load.pace(),
    }
}

#[cfg(test)]
mod tests;

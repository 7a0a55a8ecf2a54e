//! From a case to a placement: the choice is made, booked and told.

use std::sync::Arc;
use std::time::Instant;

use super::intent::Intent;
use super::reading::Reading;
use super::{Begun, Placement, Readings, Refusal, Scheduler, lap, placement};
use crate::admission::Frees;
use crate::blocks::{Chain, Chains};
use crate::choice::{Basis, Case, Choice};
use crate::decisions::Made;
use crate::fleet::{Booking, Endpoint, Fleet, Scope, Trust};
use crate::metrics::EndpointMetrics;
use crate::parity::{Placed, Watch};
use crate::replicas::Told;

impl Scheduler {
    /// Chooses and books.
    pub(super) fn settle(
        &self,
        case: Case,
        (readings, prompts): (&Readings, &[Chains<'_>]),
        allowed: Arc<Fleet>,
        intent: Intent,
        mut begun: Begun,
    ) -> Result<Placement, Refusal> {
        let choice = case.choose().ok_or(Refusal::NoEndpoint)?;
        let reading = readings.at(choice.prompt);
        let prompt = &prompts[usize::from(choice.prompt)];
        let mut endpoints = allowed.endpoints.iter();
        let chosen = endpoints.find(|endpoint| endpoint.id == choice.endpoint);
        let endpoint = chosen.ok_or(Refusal::NoEndpoint)?.clone();
        self.announce_report(reading, &choice);
        let watch = self.watch(&case.request_id, (reading, prompt), &endpoint, &choice);
        let work = choice
            .prompt_tokens
            .saturating_sub(choice.predicted_cached_tokens);
        let requests = reading.engine_requests();
        let expectation = self.parts.index.expect(choice.endpoint, prompt);
        let fallbacks = self.fallbacks(&case, &allowed, &endpoint);
        let told = self.told(&endpoint, (work, requests), expectation.is_some(), prompt);
        let heard = endpoint.heard.so_far();
        let counted = self.parts.audit.counted(&endpoint);
        let booking = Booking::new(endpoint, work, requests, Instant::now());
        begun.took.choose = lap(&mut begun.since);
        self.measure(&intent.scope, &case, (&choice, &counted.metrics));
        let metrics = self.parts.metrics.clone();
        let named = intent.named.as_ref().or(reading.asked_for.as_ref());
        let running = metrics.placed_for(named, intent.target.as_ref(), begun.body_bytes);
        let made = Made {
            trace: begun.trace,
            model: reading.model.clone(),
            target: intent.target.clone(),
            pool: intent.scope.pools.one().cloned(),
            case,
            fleet: allowed,
            choice,
            took: begun.took,
        };
        Ok(Placement {
            told,
            booking,
            frees: Frees(self.admission.clone()),
            decision: self.parts.decisions.keep(made),
            placed: begun.since,
            first_output: None,
            parts: placement::Parts {
                index: self.parts.index.clone(),
                audit: self.parts.audit.clone(),
                metrics,
            },
            heard,
            counted,
            running,
            watch,
            expectation,
            fallbacks,
            rewrite: intent.rewrite,
        })
    }

    /// Counts a choice.
    fn measure(&self, scope: &Scope, case: &Case, (choice, of): (&Choice, &EndpointMetrics)) {
        of.placed.increment(1);
        of.prompt_tokens.increment(choice.prompt_tokens);
        of.predicted.increment(choice.predicted_cached_tokens);
        let cached = case
            .candidates
            .iter()
            .map(|candidate| candidate.cached.tokens());
        of.blind
            .increment(cached.sum::<u64>() / case.candidates.len().max(1) as u64);
        let metrics = &self.parts.metrics;
        let answer = (choice.basis.as_str(), choice.basis.reason(), "placed");
        metrics.answered(Self::pool_label(scope), answer);
        if !matches!(choice.basis, Basis::LoadOnly(_)) {
            metrics.matched(choice.matching_ratio());
        }
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
        (reading, prompt): (&Reading, &Chains<'_>),
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
            chain: index
                .shape(endpoint.id)
                .and_then(|shape| prompt.made(shape)),
            cached_tokens: choice.predicted_cached_tokens,
        };
        parity.open(index, endpoint.id, &placed, || endpoint.trust())
    }
}

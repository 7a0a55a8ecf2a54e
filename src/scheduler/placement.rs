//! A placed request, until its response has ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::intent::Intent;
use crate::admission::Frees;
use crate::audit::{self, Prediction, Usage, Verdict};
use crate::choice::{Basis, Candidate, Choice};
use crate::fleet::{Booking, Endpoint, Fleet};
use crate::index::Expectation;
use crate::metrics::{EndpointMetrics, Metrics};
use crate::parity::{Watch, epoch_s};
use crate::prompt::json::outline::Replacement;
use crate::replicas::Told;

/// One placed request, from choice to the end of its response. Dropping it releases its load.
pub struct Placement {
    pub(super) request_id: String,
    pub(super) booking: Booking,
    /// Dropped after the booking: what that held is free.
    pub(super) frees: Frees,
    pub(super) choice: Choice,
    pub(super) metrics: Arc<Metrics>,
    pub(super) counted: Arc<EndpointMetrics>,
    /// Counts its prompt as held there.
    pub(super) expectation: Option<Expectation>,
    /// Other replicas know of it.
    pub(super) told: Option<Told>,
    /// Waits for the events of its prompt.
    pub(super) watch: Option<Watch>,
    /// Who could have got it, and the same as candidates, in the same order.
    pub(super) allowed: Arc<Fleet>,
    pub(super) candidates: Vec<Candidate>,
    /// Where it may go next.
    pub(super) fallbacks: Vec<SocketAddr>,
    /// Which model serves it in place of the one that it names, and the change of its body.
    pub(super) target: Option<Arc<str>>,
    pub(super) rewrite: Option<Replacement>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// The response's status.
    pub status: Option<u16>,
    /// What the response said of its tokens.
    pub usage: Option<Usage>,
    /// Who served it, where the gateway says so: a retry may have gone elsewhere.
    pub served: Option<SocketAddr>,
    /// The response was seen to its end.
    pub whole: bool,
}

impl Outcome {
    /// The whole prompt was computed: at least one token of an answer came of it.
    fn is_answer(&self) -> bool {
        let answered = |usage: Usage| usage.completion_tokens > 0;
        self.status == Some(200) && self.usage.map_or(self.whole, answered)
    }
}

impl Placement {
    /// Who gets the request.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        self.booking.endpoint()
    }

    /// Where that is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.endpoint().address
    }

    /// Where Envoy may try next; asked for once.
    pub fn take_fallbacks(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.fallbacks)
    }

    /// With what the rules say of its model.
    pub(super) fn served_by_target(self, intent: Intent) -> Self {
        Self {
            target: intent.target,
            rewrite: intent.rewrite,
            ..self
        }
    }

    /// The change that its body needs on the way to the server; asked for once.
    pub fn take_rewrite(&mut self) -> Option<Replacement> {
        self.rewrite.take()
    }

    /// Which of those that could have got it served it. Ranks share an address: the picked
    /// endpoint's is the pick, and a retry carries its rank's header along.
    fn served_by(&self, address: SocketAddr) -> Option<usize> {
        let rank = self.endpoint().rank;
        let mut endpoints = self.allowed.endpoints.iter();
        endpoints.position(|endpoint| {
            endpoint.address == address && (endpoint.rank.is_none() || endpoint.rank == rank)
        })
    }

    /// It could not be reached, and neither can the ranks behind the same address.
    fn unreached(&self) {
        let now = Instant::now();
        for endpoint in &self.allowed.endpoints {
            if endpoint.address == self.address() {
                endpoint.failed(now);
            }
        }
    }

    /// Why.
    #[must_use]
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// One line for a header: who, why, and what was predicted.
    #[must_use]
    pub fn summary(&self) -> String {
        let Choice {
            basis,
            predicted_cached_tokens,
            prompt_tokens,
            prefix_aware,
            ..
        } = self.choice;
        let name = plain(&self.endpoint().name);
        let decided = if prefix_aware { "prefix" } else { "load" };
        let mut line = format!("endpoint={name}; by={decided}; basis={}", basis.as_str());
        if !basis.reason().is_empty() {
            line.push_str(&format!("; reason={}", basis.reason()));
        }
        line.push_str(&format!(
            "; trust={}; predicted_cached_tokens={predicted_cached_tokens}; prompt_tokens={prompt_tokens}",
            self.choice.trust.as_str()
        ));
        if let Some(target) = &self.target {
            line.push_str(&format!("; model={}", plain(target)));
        }
        line
    }

    /// The first output came: the prefill is done. Of an answer that `streams` it is the first
    /// token; any other comes whole, and its time is mostly the decode's.
    pub fn first_output(&mut self, streams: bool) {
        match streams {
            true => self.booking.first_token(Instant::now()),
            false => self.booking.prefilled(),
        }
        // Of one that comes whole, the end follows at once.
        if let Some(told) = self.told.as_mut().filter(|_| streams) {
            told.prefilled();
        }
        self.frees.0.freed();
    }

    /// The response ended: its load is released, and the prediction is held against it.
    pub fn finish(mut self, outcome: Outcome) {
        let (watch, expectation) = (self.watch.take(), self.expectation.take());
        let told = self.told.take();
        let picked = self.endpoint();
        let served = outcome.served.unwrap_or(picked.address);
        if served == picked.address && outcome.is_answer() {
            if let Some(watch) = watch {
                watch.ended(epoch_s(SystemTime::now()));
            }
            if let Some(expectation) = expectation {
                expectation.answered();
            }
            if let Some(told) = told {
                told.answered();
            }
            let ours = self.choice.prompt_tokens;
            let counted = |usage: Usage| (usage.prompt_tokens, usage.cached_tokens.unwrap_or(0));
            let (prompt, cached) = outcome.usage.map_or((ours, 0), counted);
            picked.computed(prompt.saturating_sub(cached));
        }
        match outcome.status {
            // Somebody else served it: ours could not be reached.
            _ if served != picked.address => self.unreached(),
            Some(500..) => picked.failed(Instant::now()),
            Some(_) => picked.succeeded(),
            None => {}
        }
        let Some(usage) = outcome.usage else { return };
        // A retry may have gone where we never looked.
        if let Some(served) = self.served_by(served) {
            self.audit(
                &self.allowed.endpoints[served],
                &self.candidates[served],
                &usage,
            );
        }
    }

    fn audit(&self, served: &Endpoint, candidate: &Candidate, usage: &Usage) {
        let Choice {
            basis,
            prompt_tokens: ours,
            ..
        } = self.choice;
        let (request, endpoint) = (&self.request_id, served.name.as_str());
        if basis == Basis::Overlap && usage.prompt_tokens != ours {
            let theirs = usage.prompt_tokens;
            if served.first_difference() {
                let told = "the server counts other prompt tokens: is its model folder ours?";
                tracing::warn!(request, endpoint, ours, theirs, "{told}");
            } else {
                tracing::debug!(request, endpoint, ours, theirs, "other prompt tokens");
            }
        }
        let reported = match usage.unasked {
            true => usage.cached_tokens,
            false => served.cached_tokens(usage.cached_tokens),
        };
        let Some(reported) = reported else { return };
        let counted = if served.id == self.choice.endpoint {
            self.counted.clone()
        } else {
            Arc::new(self.metrics.endpoint(endpoint))
        };
        let Candidate { trust, cached, .. } = *candidate;
        let predicted = cached.tokens();
        let prediction = Prediction {
            basis,
            trust,
            cached_tokens: predicted,
        };
        if let Some(Verdict::Over | Verdict::Under) =
            audit::compare(&prediction, reported, &counted)
        {
            tracing::debug!(
                request,
                endpoint,
                predicted,
                reported,
                "the prediction differs from the report"
            );
        }
    }
}

/// A name as a header may say it.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_graphic).collect()
}

//! A placed request, until its response has ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::admission::Frees;
use crate::audit::{self, Audit, Audited, Counted, Evidence, Usage};
use crate::choice::{Basis, Candidate, Choice, Prompt};
use crate::decisions::{Decision, Ended, Open};
use crate::fleet::heard::SoFar;
use crate::fleet::{Booking, Endpoint};
use crate::index::{Expectation, Index};
use crate::metrics::{Ending, Metrics, Running, Tokens};
use crate::parity::{Watch, epoch_s};
use crate::prompt::json::outline::Replacement;
use crate::replicas;

/// One placed request, from choice to the end of its response. Dropping it releases its load.
pub struct Placement {
    pub(super) booking: Booking,
    /// Dropped after the booking: what that held is free.
    pub(super) frees: Frees,
    /// Who could have got it, and why it went where it did.
    pub(super) decision: Open,
    /// When it was chosen, and how long after it the first output came.
    pub(super) placed: Instant,
    pub(super) first_output: Option<Duration>,
    /// What its end is told to.
    pub(super) parts: Parts,
    /// What the chosen server had told of its cache by then.
    pub(super) heard: SoFar,
    pub(super) counted: Arc<Counted>,
    /// By the inference extension's names, where those are wanted.
    pub(super) running: Option<Running>,
    /// Counts its prompt as held there.
    pub(super) expectation: Option<Expectation>,
    /// Other replicas know of it.
    pub(super) told: Option<replicas::Told>,
    /// Waits for the events of its prompt.
    pub(super) watch: Option<Watch>,
    /// Where it may go next.
    pub(super) fallbacks: Vec<SocketAddr>,
    /// The change of its body that its target needs.
    pub(super) rewrite: Option<Replacement>,
}

/// What a placement takes along of its scheduler.
pub(super) struct Parts {
    pub index: Arc<Index>,
    pub audit: Arc<Audit>,
    pub metrics: Arc<Metrics>,
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
    /// Bytes of its body that were seen.
    pub body_bytes: u64,
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

    /// The request's id.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.decision.case.request_id
    }

    /// The model that serves it in place of the one that it names.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        self.decision.target.as_deref()
    }

    /// The change that its body needs on the way to the server; asked for once.
    pub fn take_rewrite(&mut self) -> Option<Replacement> {
        self.rewrite.take()
    }

    /// Which of those that could have got it served it. Ranks share an address: the picked
    /// endpoint's is the pick, and a retry carries its rank's header along.
    fn served_by(&self, address: SocketAddr) -> Option<usize> {
        let rank = self.endpoint().rank;
        let mut endpoints = self.decision.fleet.endpoints.iter();
        endpoints.position(|endpoint| {
            endpoint.address == address && (endpoint.rank.is_none() || endpoint.rank == rank)
        })
    }

    /// It could not be reached, and neither can the ranks behind the same address.
    fn unreached(&self) {
        let now = Instant::now();
        for endpoint in &self.decision.fleet.endpoints {
            if endpoint.address == self.address() {
                endpoint.failed(now);
            }
        }
    }

    /// All that was decided, to be kept for longer than the placement.
    #[must_use]
    pub fn decision(&self) -> Arc<Decision> {
        self.decision.decision()
    }

    /// Why.
    #[must_use]
    pub fn choice(&self) -> &Choice {
        &self.decision.choice
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
        } = self.decision.choice;
        let name = plain(&self.endpoint().name);
        let decided = if prefix_aware { "prefix" } else { "load" };
        let mut line = format!("endpoint={name}; by={decided}; basis={}", basis.as_str());
        if !basis.reason().is_empty() {
            line.push_str(&format!("; reason={}", basis.reason()));
        }
        line.push_str(&format!(
            "; trust={}; predicted_cached_tokens={predicted_cached_tokens}; prompt_tokens={prompt_tokens}",
            self.choice().trust.as_str()
        ));
        if let Some(margin) = self.choice().margin() {
            line.push_str(&format!("; lead={}:{}", margin.field, margin.by));
        }
        if let Some(target) = self.target() {
            line.push_str(&format!("; model={}", plain(target)));
        }
        line
    }

    /// The first output came: the prefill is done. Of an answer that `streams` it is the first
    /// token; any other comes whole, and its time is mostly the decode's.
    pub fn first_output(&mut self, streams: bool) {
        let now = Instant::now();
        let after = now.saturating_duration_since(self.placed);
        self.first_output.get_or_insert(after);
        match streams {
            true => {
                let decided_by = self.decision.decided_by();
                self.parts.metrics.first_output(decided_by, after);
                if let Some(running) = &self.running {
                    running.first_token(after);
                }
                self.booking.first_token(now);
            }
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
            let ours = self.choice().prompt_tokens;
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
        // A retry may have gone where we never looked.
        let served = self.served_by(served);
        let audited = match (served, outcome.usage) {
            (Some(served), Some(usage)) => self.audit(served, &usage),
            _ => None,
        };
        self.end(&outcome, served, audited);
    }

    /// Tells whoever keeps the decision how it ended.
    fn end(&self, outcome: &Outcome, served: Option<usize>, audited: Option<Told>) {
        let known = served.and_then(|served| self.decision.candidate(served));
        let took = self.placed.elapsed();
        self.decision.end(Ended {
            status: outcome.status,
            served: known.map(|(endpoint, _)| endpoint.id),
            first_output: self.first_output,
            took,
            prompt_tokens: outcome.usage.map(|usage| usage.prompt_tokens),
            completion_tokens: outcome.usage.map(|usage| usage.completion_tokens),
            cached_tokens: audited.map(|told| told.reported),
            predicted: known.map(|(_, candidate)| candidate.cached.tokens()),
            audited: audited.and_then(|told| told.audited),
        });
        if let Some(running) = &self.running {
            let tokens = outcome.usage.map(|usage| Tokens {
                input: usage.prompt_tokens,
                cached: audited.map(|told| told.reported),
                output: usage.completion_tokens,
            });
            let bytes = outcome.whole.then_some(outcome.body_bytes);
            let ending = Ending {
                status: outcome.status,
                took,
                tokens,
                bytes,
            };
            self.parts.metrics.ended_for(running, &ending);
        }
        if outcome.status != Some(200) {
            return;
        }
        if let Some((endpoint, candidate)) = known {
            let predicted = candidate.cached.tokens();
            let saved = audited.map_or(predicted, |told| told.reported);
            self.counted(endpoint).metrics.saved.increment(saved);
        }
    }

    fn counted(&self, endpoint: &Endpoint) -> Arc<Counted> {
        if endpoint.id == self.choice().endpoint {
            return self.counted.clone();
        }
        self.parts.audit.counted(endpoint)
    }

    /// Holds what was predicted for whoever served it against what the response says.
    fn audit(&self, served: usize, usage: &Usage) -> Option<Told> {
        let (served, candidate) = self.decision.candidate(served)?;
        let Prompt {
            basis,
            tokens: ours,
            ..
        } = *self.decision.case.prompt(candidate);
        let (request, endpoint) = (self.request_id(), served.name.as_str());
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
        }?;
        let evidence = self.evidence(served, candidate, usage, reported);
        let counted = self.counted(served);
        let audited = audit::compare(served, &evidence, &counted, Instant::now());
        if let Some(cause) = audited.and_then(|audited| audited.cause) {
            let (predicted, cause) = (candidate.cached.tokens(), cause.as_str());
            let told = "the prediction differs from the report";
            tracing::debug!(request, endpoint, predicted, reported, cause, "{told}");
        }
        Some(Told { reported, audited })
    }

    fn evidence(
        &self,
        served: &Endpoint,
        candidate: &Candidate,
        usage: &Usage,
        reported: u64,
    ) -> Evidence {
        let now = served.heard.so_far();
        let shape = self.parts.index.shape(served.id);
        let prompt = self.decision.case.prompt(candidate);
        Evidence {
            basis: prompt.basis,
            trust: candidate.trust,
            predicted: candidate.cached,
            reported,
            prompt_tokens: prompt.tokens,
            reported_prompt_tokens: usage.prompt_tokens,
            block_size: shape.map(|shape| shape.block_size),
            // Of one that we did not choose it was not noted what it had told.
            since: match served.id == self.choice().endpoint {
                true => now.since(self.heard),
                false => now.anything(),
            },
        }
    }
}

/// What a response says of its cached tokens, and what came of the prediction.
#[derive(Debug, Clone, Copy)]
struct Told {
    reported: u64,
    audited: Option<Audited>,
}

/// A name as a header may say it.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_graphic).collect()
}

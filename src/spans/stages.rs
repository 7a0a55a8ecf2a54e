//! A request that has ended → its spans. Pure but for their ids.
//!
//! Names of attributes are OpenTelemetry's where its conventions (gen_ai, http, server) have one, and `kvscout.*`
//! otherwise.

use std::borrow::Cow;
use std::time::Duration;

use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use super::Request;
use crate::decisions::{Decision, Ended};
use crate::prompt::Api;

/// `gen_ai.operation.name`, by the path of a request.
pub(super) fn operation(path: &str) -> Option<&'static str> {
    match Api::of_path(path).ok()? {
        Api::Chat | Api::ChatBatch | Api::Responses | Api::Messages => Some("chat"),
        Api::Completions => Some("text_completion"),
        Api::Embeddings => Some("embeddings"),
        Api::Classify | Api::Pooling | Api::Generate => None,
    }
}

/// From when to when, since the request began.
type Span = (Duration, Duration);

/// All of a request's.
pub(super) fn spans(request: &Request) -> Vec<SpanData> {
    let family = Family::of(request);
    let mut whole = family.span("request", (Duration::ZERO, request.ended), &family.root);
    whole.span_kind = SpanKind::Server;
    whole.parent_span_id = match &request.caller {
        Some(caller) => caller.span_id(),
        None => SpanId::INVALID,
    };
    whole.parent_span_is_remote = request.caller.is_some();
    whole.span_context = family.root.clone();
    whole.attributes = attributes(request);
    whole.status = status(request);
    let mut spans = vec![whole];
    if let Some(received) = request.received {
        let receive = (Duration::ZERO, received);
        spans.push(family.span("receive_body", receive, &family.root));
    }
    if let Some((at, decision)) = &request.decided {
        decided(&family, *at, decision, &mut spans);
        let mut response = family.span("response", (*at, request.ended), &family.root);
        let first_output = decision.ended().and_then(|ended| ended.first_output);
        response.events.events.extend(first_output.map(|after| {
            let when = request.began + *at + after;
            Event::new("first_output", when, Vec::new(), 0)
        }));
        spans.push(response);
    }
    spans
}

/// The stages of a decision lie end to end before it.
fn decided(family: &Family<'_>, at: Duration, decision: &Decision, to: &mut Vec<SpanData>) {
    let took = decision.took;
    let stages = [
        ("choose", took.choose),
        ("lookup", took.overlap),
        ("queue_wait", took.wait),
        ("read", took.read),
    ];
    let mut end = at;
    for (name, took) in stages.into_iter().filter(|(_, took)| !took.is_zero()) {
        let span = (end.saturating_sub(took), end);
        to.push(family.span(name, span, &family.root));
        end = span.0;
    }
    if took.tokenize.is_zero() {
        return;
    }
    // What is left of the reading before them is the wait for a core.
    let (Some(read), end) = (to.last().cloned(), end + took.read) else {
        return;
    };
    let rendered = end.saturating_sub(took.tokenize);
    let parts = [
        ("render", (rendered.saturating_sub(took.render), rendered)),
        ("tokenize", (rendered, end)),
    ];
    to.extend(parts.map(|(name, span)| family.span(name, span, &read.span_context)));
}

/// What the spans of one request have in common.
struct Family<'a> {
    request: &'a Request,
    root: SpanContext,
}

impl<'a> Family<'a> {
    fn of(request: &'a Request) -> Self {
        let state = request.caller.as_ref().map(SpanContext::trace_state);
        let root = context(request, state.cloned().unwrap_or_default());
        Self { request, root }
    }

    fn span(&self, name: &'static str, (from, to): Span, parent: &SpanContext) -> SpanData {
        SpanData {
            span_context: context(self.request, self.root.trace_state().clone()),
            parent_span_id: parent.span_id(),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: Cow::Borrowed(name),
            start_time: self.request.began + from,
            end_time: self.request.began + to,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("kvscout").build(),
        }
    }
}

fn context(request: &Request, state: TraceState) -> SpanContext {
    let id = RandomIdGenerator::default().new_span_id();
    SpanContext::new(request.trace, id, TraceFlags::SAMPLED, false, state)
}

/// As OpenTelemetry wants it of a server: an error is ours or our servers', not a client's.
fn status(request: &Request) -> Status {
    let ended = request.decided.as_ref().and_then(|(_, made)| made.ended());
    let status = ended.and_then(|ended| ended.status);
    match (request.refused, status) {
        (Some(why), _) => Status::error(why),
        (None, Some(status @ 500..)) => Status::error(status.to_string()),
        _ => Status::Unset,
    }
}

fn attributes(request: &Request) -> Vec<KeyValue> {
    let mut all = Attributes(Vec::with_capacity(32));
    let own = request.decided.as_ref();
    let own = own.and_then(|(_, decision)| decision.pool.clone());
    all.add(
        "kvscout.pool",
        Some(own.unwrap_or_else(|| request.pool.clone())),
    );
    all.add("gen_ai.operation.name", request.operation);
    all.add("error.type", request.refused);
    if let Some((at, decision)) = &request.decided {
        all.made(decision);
        if let Some(ended) = decision.ended() {
            all.ended(ended, *at, decision);
        }
    }
    all.0
}

struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        self.0.extend(value.map(|value| KeyValue::new(key, value)));
    }

    fn count(&mut self, key: &'static str, count: Option<u64>) {
        let within = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.add(key, count.map(within));
    }

    fn made(&mut self, made: &Decision) {
        let (case, choice) = (&made.case, &made.choice);
        self.add("kvscout.request_id", Some(case.request_id.clone()));
        self.add("gen_ai.request.model", made.model.clone());
        self.add("gen_ai.response.model", made.target.clone());
        self.add("kvscout.basis", Some(choice.basis.as_str()));
        let reason = Some(choice.basis.reason()).filter(|reason| !reason.is_empty());
        self.add("kvscout.reason", reason);
        self.add("kvscout.decided_by", Some(made.decided_by()));
        self.count("kvscout.prompt_tokens", Some(choice.prompt_tokens));
        let predicted = Some(choice.predicted_cached_tokens);
        self.count("kvscout.predicted_cached_tokens", predicted);
        let mut endpoints = made.fleet.endpoints.iter();
        if let Some(endpoint) = endpoints.find(|one| one.id == choice.endpoint) {
            self.add("kvscout.endpoint", Some(endpoint.name.clone()));
            self.add("server.address", Some(endpoint.address.ip().to_string()));
            let port = endpoint.address.port();
            self.add("server.port", Some(i64::from(port)));
        }
        self.add("kvscout.trust", Some(choice.trust.as_str()));
        let candidates = case.candidates.len() as u64;
        self.count("kvscout.candidates", Some(candidates));
        let margin = choice.margin();
        self.add("kvscout.margin.field", margin.map(|margin| margin.field));
        self.count("kvscout.margin.by", margin.map(|margin| margin.by));
        let cost = &choice.cost;
        self.count("kvscout.cost.prefill_tokens", Some(cost.prefill_tokens));
        self.count("kvscout.cost.recent_tokens", Some(cost.recent_tokens));
        self.count("kvscout.cost.requests", Some(cost.requests.into()));
        self.add("kvscout.cost.full", cost.full.then_some(true));
        self.add("kvscout.cost.avoided", cost.avoided.then_some(true));
    }

    /// `at`: of the choice.
    fn ended(&mut self, ended: &Ended, at: Duration, made: &Decision) {
        let status = ended.status.map(i64::from);
        self.add("http.response.status_code", status);
        let failed = ended.status.filter(|status| *status >= 500);
        self.add("error.type", failed.map(|status| status.to_string()));
        let elsewhere = ended.served.filter(|one| *one != made.choice.endpoint);
        let mut endpoints = made.fleet.endpoints.iter();
        let served = elsewhere.and_then(|served| endpoints.find(|one| one.id == served));
        self.add("kvscout.served_by", served.map(|one| one.name.clone()));
        let first = ended.first_output.map(|after| (at + after).as_secs_f64());
        self.add("gen_ai.response.time_to_first_chunk", first);
        self.count("gen_ai.usage.input_tokens", ended.prompt_tokens);
        let cached = ended.cached_tokens;
        self.count("gen_ai.usage.cache_read.input_tokens", cached);
        self.count("gen_ai.usage.output_tokens", ended.completion_tokens);
        let verdict = ended.audited.map(|audited| audited.verdict.as_str());
        self.add("kvscout.prediction", verdict);
    }
}

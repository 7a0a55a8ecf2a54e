//! What a request went through, as OpenTelemetry spans: one of all of it, and one of each stage.
//!
//! Nothing is measured for them, since a decision knows what its stages took. A request that is traced hands over
//! what it has when it has ended; its spans are made ([`stages`]) by the task that sends them ([`export`]). Nobody
//! waits for a collector: the queue is bounded, and a request that finds it full is dropped and counted.
//!
//! Nothing is sent on from here. Envoy's span is the parent of ours and of the server's: what a gateway says in
//! `traceparent` goes by untouched.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::TraceId;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanKind, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, ShouldSample,
};
use tokio::sync::mpsc;

use crate::decisions::Decision;
use crate::metrics::Metrics;

pub mod export;
mod stages;

/// Traced requests that have ended and wait for the collector: at 1,000 a second it may be away for 4 s.
/// Each is shared with the ring of recent decisions, or some kilobytes.
pub const QUEUE_MAX: usize = 4_096;

/// Which requests are traced, and where they go.
pub struct Spans {
    sampler: Sampler,
    pool: Arc<str>,
    queue: mpsc::Sender<Box<Request>>,
    metrics: Arc<Metrics>,
}

impl Spans {
    /// Of so many of the requests whose caller leaves it to us, into this queue.
    #[must_use]
    pub fn new(
        sampling: f64,
        pool: &str,
        queue: mpsc::Sender<Box<Request>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            sampler: Sampler::TraceIdRatioBased(sampling),
            pool: pool.into(),
            queue,
            metrics,
        }
    }

    /// As the caller decided, if there is one.
    fn samples(&self, caller: Option<&SpanContext>, id: TraceId) -> bool {
        if let Some(caller) = caller {
            return caller.is_sampled();
        }
        let root = self
            .sampler
            .should_sample(None, id, "", &SpanKind::Server, &[], &[]);
        root.decision == SamplingDecision::RecordAndSample
    }
}

/// One request's place in a trace, from its headers to its end. Dropped, it has ended.
#[derive(Default)]
pub struct Trace {
    id: Option<TraceId>,
    traced: Option<Traced>,
}

struct Traced {
    began: Instant,
    request: Box<Request>,
    to: Arc<Spans>,
}

/// What is known of a traced request.
#[derive(Debug)]
pub struct Request {
    trace: TraceId,
    caller: Option<SpanContext>,
    pool: Arc<str>,
    began: SystemTime,
    /// What follows is since then.
    received: Option<Duration>,
    operation: Option<&'static str>,
    decided: Option<(Duration, Arc<Decision>)>,
    refused: Option<&'static str>,
    ended: Duration,
}

impl Trace {
    /// Begins, below whoever calls.
    #[must_use]
    pub fn of(caller: Option<SpanContext>, spans: Option<&Arc<Spans>>) -> Self {
        let id = caller.as_ref().map(SpanContext::trace_id);
        let Some(spans) = spans else {
            return Self { id, traced: None };
        };
        let trace = id.unwrap_or_else(|| RandomIdGenerator::default().new_trace_id());
        if !spans.samples(caller.as_ref(), trace) {
            return Self { id, traced: None };
        }
        let request = Box::new(Request {
            trace,
            caller,
            pool: spans.pool.clone(),
            began: SystemTime::now(),
            received: None,
            operation: None,
            decided: None,
            refused: None,
            ended: Duration::ZERO,
        });
        Self {
            id: Some(trace),
            traced: Some(Traced {
                began: Instant::now(),
                request,
                to: spans.clone(),
            }),
        }
    }

    /// The trace that it belongs to, also where it is not traced here.
    #[must_use]
    pub fn id(&self) -> Option<TraceId> {
        self.id
    }

    /// Its body is there, as far as it is read.
    pub fn received(&mut self, path: &str) {
        self.at(|request, now| {
            request.received = Some(now);
            request.operation = stages::operation(path);
        });
    }

    /// It was placed a moment ago; `decision` is asked for where it is traced.
    pub fn placed(&mut self, decision: impl FnOnce() -> Arc<Decision>) {
        self.at(|request, now| request.decided = Some((now, decision())));
    }

    /// It gets no endpoint, by that word.
    pub fn refused(&mut self, why: &'static str) {
        self.at(|request, _| request.refused = Some(why));
    }

    fn at(&mut self, note: impl FnOnce(&mut Request, Duration)) {
        if let Some(traced) = &mut self.traced {
            note(&mut traced.request, traced.began.elapsed());
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let Some(mut traced) = self.traced.take() else {
            return;
        };
        traced.request.ended = traced.began.elapsed();
        if traced.to.queue.try_send(traced.request).is_err() {
            traced.to.metrics.traces("dropped", 1);
        }
    }
}

/// Who calls, by W3C's `traceparent` and `tracestate`: `header` finds their values. None where there is no
/// valid one.
pub fn caller(header: impl Fn(&str) -> Option<String>) -> Option<SpanContext> {
    let parent = header("traceparent")?;
    let headers = Headers {
        parent,
        state: header("tracestate"),
    };
    let context = TraceContextPropagator::new().extract(&headers);
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

struct Headers {
    parent: String,
    state: Option<String>,
}

impl Extractor for Headers {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(&self.parent),
            "tracestate" => self.state.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

#[cfg(test)]
mod tests;

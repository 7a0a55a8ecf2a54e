//! Does the waiting for one exchange: hears Envoy, asks the scheduler, speaks.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use opentelemetry::trace::SpanContext;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::exchange::{Exchange, OutOfOrder, Placed, Rules, Step};
use super::read;
use super::reply::{CHUNK_BYTES_MAX, Pick};
use crate::proto::ext_proc::processing_request::Request;
use crate::proto::ext_proc::{HttpHeaders, ProcessingRequest, ProcessingResponse};
use crate::scheduler::{Placement, PoolHint, Refusal, Scheduler};
use crate::spans::{self, Spans, Trace};

/// Replies that may wait beside a whole released body before we stop listening to Envoy.
const QUEUE_SLACK: usize = 64;

type Place = Result<Placement, Refusal>;
/// A scheduler at work; dropping it gives the work up.
type Placing = Pin<Box<dyn Future<Output = Place> + Send>>;

/// Where replies go.
pub type Replies = mpsc::Sender<Result<ProcessingResponse, Status>>;

/// One exchange and what it waits for.
pub struct Drive {
    exchange: Exchange,
    scheduler: Arc<Scheduler>,
    queue: VecDeque<ProcessingResponse>,
    queue_max: usize,
    placing: Option<Placing>,
    placement: Option<Placement>,
    held: Held,
    tracing: Tracing,
    /// The right to hold and read a body; given back when the request is placed.
    reading: Option<OwnedSemaphorePermit>,
}

/// One exchange's trace. It begins with the request's headers: they say who calls, unless the stream did.
pub struct Tracing {
    caller: Option<SpanContext>,
    spans: Option<Arc<Spans>>,
    trace: Trace,
}

impl Tracing {
    /// Of a stream with that metadata: Envoy's span, where it traces, and else the client's is the parent of ours.
    pub fn of(metadata: &MetadataMap, spans: Option<Arc<Spans>>) -> Self {
        let text = |name: &str| Some(metadata.get(name)?.to_str().ok()?.to_owned());
        Self {
            caller: spans::caller(text),
            spans,
            trace: Trace::default(),
        }
    }

    fn begin(&mut self, headers: &HttpHeaders) {
        let client = || spans::caller(|name| read::header(headers, name));
        let caller = self.caller.take().or_else(client);
        self.trace = Trace::of(caller, self.spans.as_ref());
    }
}

/// Bytes of bodies that all exchanges hold, and how many they may.
#[derive(Debug)]
pub struct Memory {
    held: AtomicUsize,
    max: usize,
}

impl Memory {
    /// Nothing held, of so many bytes.
    pub fn new(max: usize) -> Self {
        Self {
            held: AtomicUsize::new(0),
            max,
        }
    }
}

/// One exchange's share; dropping it gives it back.
#[derive(Debug)]
struct Held {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Held {
    /// Books `bytes` in place of what was booked; `false` where all together is too much.
    fn book(&mut self, bytes: usize) -> bool {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let held = &self.memory.held;
        if bytes < before {
            held.fetch_sub(before - bytes, Ordering::Relaxed);
            return true;
        }
        let more = bytes - before;
        held.fetch_add(more, Ordering::Relaxed) + more <= self.memory.max
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.book(0);
    }
}

impl Drive {
    /// An exchange of which nothing was heard; what it holds is booked with `memory`, and without
    /// the right to read it holds nothing.
    pub fn new(
        (rules, id, pool): (Rules, String, PoolHint),
        scheduler: Arc<Scheduler>,
        memory: Arc<Memory>,
        reading: Option<OwnedSemaphorePermit>,
        tracing: Tracing,
    ) -> Self {
        let queue_max = rules.body_bytes_max / CHUNK_BYTES_MAX + QUEUE_SLACK;
        Self {
            exchange: Exchange::new(rules, id).for_pool(pool),
            scheduler,
            queue: VecDeque::new(),
            queue_max,
            placing: None,
            placement: None,
            held: Held { memory, bytes: 0 },
            reading,
            tracing,
        }
    }

    /// Runs until either side has ended. Envoy's hanging up ends it at once, whatever it waits
    /// for, and with it the placement and its load.
    pub async fn run(mut self, mut inbound: Streaming<ProcessingRequest>, replies: Replies) {
        loop {
            tokio::select! {
                message = inbound.message(), if self.queue.len() < self.queue_max => match message {
                    Ok(Some(message)) => if let Err(error) = self.hear(message) {
                        let trace_id = self.tracing.trace.id().map(tracing::field::display);
                        tracing::warn!(trace_id, %error, "an exchange broke off");
                        // Where nobody listens any more, nobody needs the reason.
                        let _ = replies.send(Err(Status::invalid_argument(error.to_string()))).await;
                        return;
                    },
                    Ok(None) => break,
                    Err(_) => return,
                },
                permit = replies.reserve(), if !self.queue.is_empty() => {
                    let Ok(permit) = permit else { return };
                    if let Some(reply) = self.queue.pop_front() {
                        permit.send(Ok(reply));
                    }
                }
                place = wait(&mut self.placing) => {
                    self.placing = None;
                    let steps = self.settle(place);
                    self.take(steps);
                }
            }
        }
        self.close(replies).await;
    }

    /// Envoy will say no more: account for the response, and let it have what it still may read.
    async fn close(mut self, replies: Replies) {
        if let (Some(placement), Some(outcome)) = (self.placement.take(), self.exchange.outcome()) {
            placement.finish(outcome);
        }
        self.placing = None;
        self.placement = None;
        // Before the stream's end is seen: nobody waits for what comes after that.
        drop(self.tracing);
        for reply in self.queue {
            if replies.send(Ok(reply)).await.is_err() {
                return;
            }
        }
    }

    fn hear(&mut self, message: ProcessingRequest) -> Result<(), OutOfOrder> {
        if let Some(Request::RequestHeaders(headers)) = &message.request {
            self.tracing.begin(headers);
        }
        let steps = self.exchange.on(message)?;
        self.take(steps);
        // Replies that wait share the body's memory: it is given back when they are gone.
        let held = self.exchange.held_bytes();
        let room = !(self.queue.is_empty() || held > self.held.bytes) || self.held.book(held);
        let refused = match (&self.reading, room) {
            (None, _) => Some("exchanges"),
            (_, false) => Some("memory"),
            _ => None,
        };
        if let Some(reason) = refused {
            let steps = self.exchange.stop_holding(reason);
            self.take(steps);
        }
        Ok(())
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Send(reply) => self.queue.push_back(*reply),
                Step::Place(mut ask) => {
                    ask.trace = self.tracing.trace.id();
                    self.tracing.trace.received(&ask.path);
                    let scheduler = self.scheduler.clone();
                    self.placing = Some(Box::pin(async move { scheduler.place(*ask).await }));
                }
                Step::PlaceByLoad(mut ask) => {
                    ask.trace = self.tracing.trace.id();
                    self.tracing.trace.received("");
                    let place = self.scheduler.place_by_load(&ask);
                    let steps = self.settle(place);
                    self.take(steps);
                }
                Step::FirstOutput { streams } => {
                    if let Some(placement) = &mut self.placement {
                        placement.first_output(streams);
                    }
                }
                Step::Finish(outcome) => {
                    self.placing = None;
                    if let Some(placement) = self.placement.take() {
                        placement.finish(outcome);
                    }
                }
            }
        }
    }

    fn settle(&mut self, place: Place) -> Vec<Step> {
        self.reading = None;
        let answer = match place {
            Ok(mut placement) => {
                self.tracing.trace.placed(|| placement.decision());
                let pick = Pick {
                    address: placement.address(),
                    fallbacks: placement.take_fallbacks(),
                    rank: placement.endpoint().rank,
                };
                let placed = Placed {
                    pick,
                    summary: self.exchange.tells_why().then(|| placement.summary()),
                    rewrite: placement.take_rewrite(),
                };
                self.placement = Some(placement);
                Ok(placed)
            }
            Err(refusal) => {
                self.tracing.trace.refused(refusal.as_str());
                Err(refusal)
            }
        };
        self.exchange.placed(answer)
    }
}

/// The scheduler's answer, or never where it was not asked.
async fn wait(placing: &mut Option<Placing>) -> Place {
    match placing {
        Some(placing) => placing.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_and_given_back() {
        let memory = Arc::new(Memory::new(100));
        let mut one = Held {
            memory: memory.clone(),
            bytes: 0,
        };
        let mut two = Held {
            memory: memory.clone(),
            bytes: 0,
        };
        assert!(one.book(60));
        assert!(!two.book(50), "110 of 100");
        assert!(two.book(0));
        drop(one);
        assert!(two.book(100));
        drop(two);
        assert_eq!(memory.held.load(Ordering::Relaxed), 0);
    }
}

//! Does the waiting for one exchange: hears Envoy, asks the scheduler, speaks; and gives up what has
//! waited for too long.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;

use futures::SinkExt as _;
use futures::channel::mpsc;
use opentelemetry::trace::SpanContext;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::HeaderMap;
use tonic::{Status, Streaming};

use super::ExtProcSettings;
use super::capacity::Place as Room;
use super::exchange::{Exchange, OutOfOrder, Placed, Step};
use super::read;
use super::reply::{self, CHUNK_BYTES_MAX, Pick};
use crate::proto::ext_proc::processing_request::Request;
use crate::proto::ext_proc::{HttpHeaders, ProcessingRequest, ProcessingResponse};
use crate::scheduler::{Placement, PoolHint, Refusal, Scheduler};
use crate::spans::{self, Spans, Trace};

/// Replies that may wait beside a whole released body before we stop listening to Envoy; and without it
/// where there is no memory for more.
const QUEUE_SLACK: usize = 64;

type Place = Result<Placement, Refusal>;
/// A scheduler at work; dropping it gives the work up.
type Placing = Pin<Box<dyn Future<Output = Place> + Send>>;

/// A word to Envoy, in a box: they are large, and each is moved through the channel.
pub type Reply = Result<Box<ProcessingResponse>, Status>;

/// Where replies go. Of futures' channel, whose links are made when something is sent: tokio's takes 1 kB while nothing
/// is, which is what most exchanges have to say most of the time.
pub type Replies = mpsc::Sender<Reply>;

/// One exchange and what it waits for.
pub struct Drive {
    exchange: Exchange,
    scheduler: Arc<Scheduler>,
    queue: VecDeque<Box<ProcessingResponse>>,
    /// Of bodies in the queue.
    queued_bytes: usize,
    placing: Option<Placing>,
    /// In a box: nobody has one while a body is held.
    placement: Option<Box<Placement>>,
    tracing: Tracing,
    room: Room,
    /// All exchanges together hold too much.
    is_full: bool,
    settings: Arc<ExtProcSettings>,
    began: Instant,
    /// When something was last said, either way.
    moved: Instant,
}

/// One exchange's trace. It begins with the request's headers: they say who calls, unless the stream did.
pub struct Tracing {
    /// In a box, since there is seldom one.
    caller: Option<Box<SpanContext>>,
    spans: Option<Arc<Spans>>,
    trace: Trace,
}

impl Tracing {
    /// Of a stream with these headers: Envoy's span, where it traces, and else the client's is the parent of ours.
    pub fn of(headers: &HeaderMap, spans: Option<Arc<Spans>>) -> Self {
        let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Self {
            caller: spans::caller(text).map(Box::new),
            spans,
            trace: Trace::default(),
        }
    }

    fn begin(&mut self, headers: &HttpHeaders) {
        let client = || spans::caller(|name| read::header(headers, name));
        let caller = self.caller.take().map(|caller| *caller).or_else(client);
        self.trace = Trace::of(caller, self.spans.as_ref());
    }
}

/// How an exchange came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As it should, or by Envoy's hanging up.
    ByEnvoy,
    /// By a message that cannot come where it came.
    OutOfOrder,
    /// Nothing was ever said.
    NeverBegan,
    /// Nothing moved for too long.
    Silent,
    /// We end.
    GraceOver,
}

impl Ended {
    /// The word for labels, where it was us who ended it.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::ByEnvoy => None,
            Self::OutOfOrder => Some("out_of_order"),
            Self::NeverBegan => Some("never_began"),
            Self::Silent => Some("silent"),
            Self::GraceOver => Some("grace_over"),
        }
    }

    /// What Envoy hears of it.
    fn status(self) -> Status {
        match self {
            Self::GraceOver => Status::unavailable("kvscout ends"),
            _ => Status::deadline_exceeded("nothing was said for too long"),
        }
    }
}

impl Drive {
    /// An exchange of which nothing was heard, with its place; without the right to read it holds nothing.
    pub fn new(
        settings: Arc<ExtProcSettings>,
        (number, pool): (u64, PoolHint),
        scheduler: Arc<Scheduler>,
        room: Room,
        tracing: Tracing,
    ) -> Self {
        let now = Instant::now();
        Self {
            exchange: Exchange::new(settings.rules.clone(), number).for_pool(pool),
            scheduler,
            queue: VecDeque::new(),
            queued_bytes: 0,
            placing: None,
            placement: None,
            room,
            is_full: false,
            settings,
            began: now,
            moved: now,
            tracing,
        }
    }

    /// Runs until either side has ended. Envoy's hanging up ends it at once, whatever it waits
    /// for, and with it the placement and its load.
    ///
    /// In a box, and what it hears by reference: a future has room twice for what it is given by value.
    pub async fn run(
        mut self: Box<Self>,
        inbound: &mut Streaming<ProcessingRequest>,
        mut replies: Replies,
        over: &CancellationToken,
    ) -> Ended {
        match self.converse(inbound, &mut replies, over).await {
            Some(ended) => ended,
            None => self.close(replies).await,
        }
    }

    /// Hears and speaks until Envoy has said all; or how it ended before.
    async fn converse(
        &mut self,
        inbound: &mut Streaming<ProcessingRequest>,
        replies: &mut Replies,
        over: &CancellationToken,
    ) -> Option<Ended> {
        let mut over = pin!(over.cancelled());
        let mut alarm = pin!(sleep_until(self.deadline()));
        loop {
            let listens = self.listens();
            tokio::select! {
                message = inbound.message(), if listens => match message {
                    Ok(Some(message)) => {
                        if let Err(error) = self.hear(message) {
                            let trace_id = self.tracing.trace.id().map(tracing::field::display);
                            tracing::warn!(trace_id, %error, "an exchange broke off");
                            // Where nobody listens any more, nobody needs the reason.
                            let _ = replies.try_send(Err(Status::invalid_argument(error.to_string())));
                            return Some(Ended::OutOfOrder);
                        }
                        let due = self.deadline();
                        if due < alarm.deadline() {
                            alarm.as_mut().reset(due);
                        }
                    }
                    Ok(None) => return None,
                    Err(_) => return Some(Ended::ByEnvoy),
                },
                room = poll_fn(|context| replies.poll_ready(context)), if !self.queue.is_empty() => {
                    let reply = self.next_reply();
                    let sent = room.and_then(|()| reply.map_or(Ok(()), |reply| replies.start_send(Ok(reply))));
                    if sent.is_err() {
                        return Some(Ended::ByEnvoy);
                    }
                }
                place = wait(&mut self.placing) => {
                    self.placing = None;
                    self.moved = Instant::now();
                    let steps = self.settle(place);
                    self.take(steps);
                }
                () = &mut alarm => {
                    if let Some(ended) = self.out_of_patience() {
                        let _ = replies.try_send(Err(ended.status()));
                        return Some(ended);
                    }
                    alarm.as_mut().reset(self.deadline());
                }
                () = &mut over => {
                    let _ = replies.try_send(Err(Ended::GraceOver.status()));
                    return Some(Ended::GraceOver);
                }
            }
        }
    }

    /// Whether it hears what Envoy says next: not before Envoy has taken enough of what waits for it.
    fn listens(&self) -> bool {
        let body_bytes = match self.is_full {
            true => 0,
            false => self.settings.rules.body_bytes_max,
        };
        self.queue.len() < body_bytes / CHUNK_BYTES_MAX + QUEUE_SLACK
    }

    /// When to look whether it has waited for too long: no later than it has.
    fn deadline(&self) -> Instant {
        if self.exchange.is_fresh() {
            return self.began + self.settings.patience.first;
        }
        if self.placing.is_some() {
            // A scheduler at work has deadlines of its own.
            return Instant::now() + self.settings.patience.silence;
        }
        let silence = self.moved + self.settings.patience.silence;
        match self.exchange.is_holding() {
            true => silence.min(self.began + self.settings.patience.body),
            false => silence,
        }
    }

    /// Goes on without what it has waited for, or says how it ends.
    fn out_of_patience(&mut self) -> Option<Ended> {
        let now = Instant::now();
        if now < self.deadline() {
            // Something was said meanwhile.
            return None;
        }
        if self.exchange.is_fresh() {
            return Some(Ended::NeverBegan);
        }
        if self.exchange.is_holding() {
            let steps = self.exchange.stop_holding("body_slow");
            self.take(steps);
            return None;
        }
        Some(Ended::Silent)
    }

    /// Envoy will say no more: account for the response, and let it have what it still may read.
    async fn close(mut self: Box<Self>, mut replies: Replies) -> Ended {
        if let (Some(placement), Some(outcome)) = (self.placement.take(), self.exchange.outcome()) {
            placement.finish(outcome);
        }
        self.placing = None;
        self.placement = None;
        // Before the stream's end is seen: nobody waits for what comes after that.
        self.tracing.trace = Trace::default();
        while let Some(reply) = self.next_reply() {
            match timeout(self.settings.patience.silence, replies.feed(Ok(reply))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ended::ByEnvoy,
                Err(_) => return Ended::Silent,
            }
        }
        Ended::ByEnvoy
    }

    /// What is to be said next; its memory is given back.
    fn next_reply(&mut self) -> Option<Box<ProcessingResponse>> {
        let reply = self.queue.pop_front()?;
        self.queued_bytes -= reply::body_len(&reply);
        self.moved = Instant::now();
        self.book();
        Some(reply)
    }

    fn hear(&mut self, message: ProcessingRequest) -> Result<(), OutOfOrder> {
        if let Some(Request::RequestHeaders(headers)) = &message.request {
            self.tracing.begin(headers);
        }
        self.moved = Instant::now();
        let steps = self.exchange.on(message)?;
        self.take(steps);
        self.book();
        let refused = match (&self.room.reading, self.is_full) {
            (Err(reason), _) => Some(*reason),
            (Ok(_), true) => Some("memory"),
            (Ok(_), false) => None,
        };
        if let Some(reason) = refused {
            let steps = self.exchange.stop_holding(reason);
            self.take(steps);
        }
        Ok(())
    }

    /// Books what is held now.
    fn book(&mut self) {
        let held = self.exchange.held_bytes() + self.queued_bytes;
        self.is_full = !self.room.held.book(held);
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Send(reply) => {
                    self.queued_bytes += reply::body_len(&reply);
                    self.queue.push_back(reply);
                }
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
        // It is read, and needs no right to it any more.
        self.room.reading = Err("placed");
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
                self.placement = Some(Box::new(placement));
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
    use super::Drive;

    /// Thousands hold bodies at once, most of them short ones.
    #[test]
    fn an_exchange_takes_less_than_a_short_body() {
        assert!(size_of::<Drive>() <= 512, "{}", size_of::<Drive>());
    }
}

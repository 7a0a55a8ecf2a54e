//! Does the waiting for one exchange: hears Envoy, asks the scheduler, speaks.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::exchange::{Exchange, OutOfOrder, Rules, Step};
use super::reply::CHUNK_BYTES_MAX;
use crate::proto::ext_proc::{ProcessingRequest, ProcessingResponse};
use crate::scheduler::{Ask, Placement, Refusal, Scheduler};

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
    deadline: Duration,
    queue: VecDeque<ProcessingResponse>,
    queue_max: usize,
    placing: Option<Placing>,
    placement: Option<Placement>,
}

impl Drive {
    /// An exchange of which nothing was heard; the scheduler gets `deadline` for its choice.
    pub fn new(rules: Rules, id: String, scheduler: Arc<Scheduler>, deadline: Duration) -> Self {
        Self {
            exchange: Exchange::new(rules, id),
            scheduler,
            deadline,
            queue: VecDeque::new(),
            queue_max: rules.body_bytes_max / CHUNK_BYTES_MAX + QUEUE_SLACK,
            placing: None,
            placement: None,
        }
    }

    /// Runs until either side has ended. Envoy's hanging up ends it at once, whatever it waits
    /// for, and with it the placement and its load.
    pub async fn run(mut self, mut inbound: Streaming<ProcessingRequest>, replies: Replies) {
        loop {
            tokio::select! {
                message = inbound.message(), if self.queue.len() < self.queue_max => match message {
                    Ok(Some(message)) => if let Err(error) = self.hear(message) {
                        tracing::warn!(%error, "an exchange broke off");
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
        for reply in self.queue {
            if replies.send(Ok(reply)).await.is_err() {
                return;
            }
        }
    }

    fn hear(&mut self, message: ProcessingRequest) -> Result<(), OutOfOrder> {
        let steps = self.exchange.on(message)?;
        self.take(steps);
        Ok(())
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Send(reply) => self.queue.push_back(*reply),
                Step::Place(ask) => self.placing = Some(self.place(*ask)),
                Step::PlaceHeadersOnly(subset) => {
                    let place = self.scheduler.place_headers_only(subset.as_deref());
                    let steps = self.settle(place);
                    self.take(steps);
                }
                Step::FirstOutput => {
                    if let Some(placement) = &mut self.placement {
                        placement.first_output();
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

    /// Asks the scheduler; where it takes too long, load decides.
    fn place(&self, ask: Ask) -> Placing {
        let (scheduler, deadline) = (self.scheduler.clone(), self.deadline);
        Box::pin(async move {
            let subset = ask.subset.clone();
            match tokio::time::timeout(deadline, scheduler.place(ask)).await {
                Ok(place) => place,
                Err(_) => {
                    tracing::warn!(?deadline, "no choice in time: placed by load");
                    scheduler.place_headers_only(subset.as_deref())
                }
            }
        })
    }

    fn settle(&mut self, place: Place) -> Vec<Step> {
        let answer = match place {
            Ok(placement) => {
                let answer = (placement.address(), placement.summary());
                self.placement = Some(placement);
                Ok(answer)
            }
            Err(refusal) => Err(refusal),
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

//! One request's conversation with Envoy, as a machine: a message in, steps out. No clock, no
//! socket; whoever drives it does the waiting.
//!
//! # Protocol
//!
//! What Envoy sends, and what it must get, depends on the body mode of its filter, which it
//! states in the first message:
//!
//! * **Full duplex**: Envoy keeps nothing. The header reply is held until the body has ended
//!   (by its last chunk, or by trailers); then come the header reply with the pick, the original
//!   body in chunks, and the trailers' reply, in that order.
//! * **Buffered**: Envoy keeps the body, and sends it only after the header reply. So headers
//!   pass at once, and the pick is in the body's reply, which may still change headers.
//! * **Streamed or none**: the headers must be answered before the body is known, so the pick
//!   rests on load. So do an upgrade's (a WebSocket, CONNECT), whose body has no end.
//!
//! On the way back nothing is ever held: headers pass, and every chunk is echoed as it comes, with
//! the model's name that the client knows where another model serves it.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use self::request::{Head, Request};
use self::response::Response;
use super::read::{self, Mode};
use super::reply::{self, Pick, Side};
use crate::prompt::json::outline::Replacement;
use crate::proto::ext_proc::processing_request::Request as Message;
use crate::proto::ext_proc::{HttpBody, ProcessingRequest, ProcessingResponse};
use crate::scheduler::{Ask, ByLoad, Outcome, PoolHint, Refusal};

mod held;
mod request;
mod response;

/// What the operator decides about exchanges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The longest body, in bytes, that is held and read. A longer one is passed on, placed by
    /// load.
    pub body_bytes_max: usize,
    /// Answer each response with the header `x-kvscout-decision`.
    pub decision_header: bool,
    /// Obey the request header `test-epp-endpoint-selection` and answer
    /// `x-conformance-test-served-endpoint`, as upstream's conformance suite asks. Lets any
    /// client choose its endpoint: for tests alone.
    pub conformance: bool,
    /// Request headers that name a conversation, in lower case; the first that is there counts.
    pub session_headers: Arc<[String]>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            body_bytes_max: 64 * 1024 * 1024,
            decision_header: false,
            conformance: false,
            session_headers: Arc::default(),
        }
    }
}

/// What to do next, in this order.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Tell Envoy.
    Send(Box<ProcessingResponse>),
    /// Ask the scheduler, then call [`Exchange::placed`].
    Place(Box<Ask>),
    /// The same where the body is not to be read.
    PlaceByLoad(ByLoad),
    /// The endpoint began to answer.
    FirstOutput {
        /// Token by token: the rest follows as it is made.
        streams: bool,
    },
    /// The response ended.
    Finish(Outcome),
}

/// Where a request goes.
#[derive(Debug)]
pub struct Placed {
    /// To whom.
    pub pick: Pick,
    /// Why, where [`Exchange::tells_why`].
    pub summary: Option<String>,
    /// The change of the body that it needs.
    pub rewrite: Option<Replacement>,
}

/// A message that cannot come where it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Envoy sent {0} where the protocol has no place for it")]
pub struct OutOfOrder(&'static str);

/// One request's conversation.
#[derive(Debug)]
pub struct Exchange {
    rules: Arc<Rules>,
    number: u64,
    request: Request,
    response_mode: Mode,
    /// Of use from the pick on: thousands hold a body and have none.
    response: Option<Box<Response>>,
}

impl Exchange {
    /// A conversation of which nothing was said; a request without an `x-request-id` is called `kvscout-` and this
    /// number.
    #[must_use]
    pub fn new(rules: impl Into<Arc<Rules>>, number: u64) -> Self {
        Self {
            rules: rules.into(),
            number,
            request: Request::default(),
            response_mode: Mode::default(),
            response: None,
        }
    }

    /// The same on a stream that says which pool it is for.
    #[must_use]
    pub fn for_pool(self, pool: PoolHint) -> Self {
        let request = Request::for_pool(pool);
        Self { request, ..self }
    }

    /// Hears a message.
    ///
    /// # Errors
    /// Where the message cannot be answered without breaking the protocol.
    pub fn on(&mut self, message: ProcessingRequest) -> Result<Vec<Step>, OutOfOrder> {
        let metadata = message.metadata_context;
        let Some(request) = message.request else {
            return Ok(Vec::new());
        };
        match request {
            Message::RequestHeaders(headers) => {
                let (mode, response_mode) = read::modes(message.protocol_config);
                let head = Head::of(&headers, metadata.as_ref(), &self.rules, self.number);
                let steps = self.request.headers(&headers, mode, head)?;
                (self.response_mode, self.response) = (response_mode, None);
                Ok(steps)
            }
            Message::RequestBody(body) => self.request.body(body, self.rules.body_bytes_max),
            Message::RequestTrailers(_) => self.request.trailers(),
            Message::ResponseHeaders(headers) => {
                let tells_served = self.rules.conformance;
                let response = self.response();
                Ok(response.headers(&headers, metadata.as_ref(), tells_served))
            }
            Message::ResponseBody(body) => Ok(self.response().body(body, metadata.as_ref())),
            Message::ResponseTrailers(_) => Ok(self.response().trailers(metadata.as_ref())),
        }
    }

    fn response(&mut self) -> &mut Response {
        let mode = self.response_mode;
        let new = || Box::new(Response::new(mode));
        self.response.get_or_insert_with(new)
    }

    /// Whether the response says why the request went where it did.
    #[must_use]
    pub fn tells_why(&self) -> bool {
        self.rules.decision_header
    }

    /// Hears where the request goes, as [`Step::Place`] or [`Step::PlaceByLoad`] asked.
    pub fn placed(&mut self, place: Result<Placed, Refusal>) -> Vec<Step> {
        let Some(owed) = self.request.owed() else {
            return Vec::new();
        };
        let Placed {
            pick,
            summary,
            rewrite,
        } = match place {
            Ok(placed) => placed,
            Err(refusal) => {
                self.request.refused();
                return vec![send(reply::refused(refusal))];
            }
        };
        if summary.is_some() {
            self.response().tells(summary);
        }
        // The body for another model, whose answer is to bear the name that this one asks for.
        let new = rewrite.zip(owed.body()).map(|(rewrite, body)| {
            self.response().restores(rewrite.before(body));
            rewrite.apply(body)
        });
        self.request.paid(owed, &pick, new)
    }

    /// Bytes of the body that are held back from Envoy.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.request.held_bytes()
    }

    /// Envoy has said nothing yet.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.request.is_fresh()
    }

    /// A body is held until it ends.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.request.is_holding()
    }

    /// Holds no more of a body that has not ended: places the request by load, and lets the
    /// body pass. One that is still to come in one message will not be read.
    pub fn stop_holding(&mut self, reason: &'static str) -> Vec<Step> {
        self.request.stop_holding(reason)
    }

    /// What is known where Envoy ends the conversation before the response ended for us, as it
    /// does where it does not show us the body. `None` where no response began: the client hung
    /// up.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        let response = self.response.as_ref();
        let begun = response.filter(|response| response.has_begun());
        begun.map(|response| response.outcome())
    }
}

/// A body's bytes on their way, or `new` ones in their place, as the mode wants them answered.
fn pass(mode: Mode, side: Side, body: HttpBody, new: Option<Bytes>) -> impl Iterator<Item = Step> {
    let (chunks, kept) = match mode {
        Mode::FullDuplex => {
            let bytes = new.unwrap_or(body.body);
            let chunks = reply::body_chunks(side, bytes, body.end_of_stream);
            (Some(chunks), None)
        }
        Mode::Buffered | Mode::Streamed | Mode::Unseen => (None, Some(reply::body_kept(side, new))),
    };
    chunks.into_iter().flatten().chain(kept).map(send)
}

fn send(message: ProcessingResponse) -> Step {
    Step::Send(Box::new(message))
}

#[cfg(test)]
mod tests;

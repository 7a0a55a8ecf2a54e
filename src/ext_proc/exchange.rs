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

use self::held::Held;
use self::response::Response;
use super::read::{self, Mode};
use super::reply::{self, Other, Pick, Side};
use crate::prompt::json::outline::Replacement;
use crate::proto::core::Metadata;
use crate::proto::ext_proc::processing_request::Request as Message;
use crate::proto::ext_proc::{
    HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
};
use crate::scheduler::{Ask, ByLoad, Outcome, PoolHint, Refusal};

mod held;
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
    rules: Rules,
    fallback_id: String,
    pool: PoolHint,
    request: Request,
    request_mode: Mode,
    /// What has ended the request's body. Envoy 1.35 and later may say the last chunk of a long body
    /// again (envoyproxy/envoy#46237); what follows the end is not heard, save an end after trailers.
    request_end: End,
    /// How long the body is, where the client says it.
    announced: Option<usize>,
    response: Response,
    summary: Option<String>,
}

/// How far the request is.
#[derive(Debug)]
enum Request {
    /// Nothing came yet.
    Fresh,
    /// The header reply waits for the end of the body. Full duplex.
    Holding(Head, Held),
    /// The headers passed; the body will come in one message, and is read unless something stands in
    /// the way. Buffered.
    Awaiting(Head, Option<&'static str>),
    /// The scheduler has it; then this is owed to Envoy.
    Placing(Owed),
    /// Placed; whatever follows passes.
    Placed,
    /// Refused.
    Over,
}

/// What the headers said.
#[derive(Debug)]
struct Head {
    request_id: String,
    path: String,
    content_type: Option<String>,
    subset: Option<Vec<String>>,
    objective: Option<String>,
    fairness: Option<String>,
    target: Option<String>,
    session: Option<String>,
}

/// The replies that wait for a pick.
#[derive(Debug)]
enum Owed {
    Headers,
    HeadersAndBody(Bytes, End),
    /// Envoy keeps it, too; it is kept here for a rewrite.
    Body(Bytes),
}

/// What ended a request's body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum End {
    LastChunk,
    Trailers,
    /// agentgateway before 1.3 says a chunk that ends the body after its trailers, and waits for ours.
    TrailersAndChunk,
    #[default]
    NotYet,
}

impl Exchange {
    /// A conversation of which nothing was said; `fallback_id` names a request without an
    /// `x-request-id`.
    #[must_use]
    pub fn new(rules: Rules, fallback_id: String) -> Self {
        Self {
            rules,
            fallback_id,
            pool: PoolHint::default(),
            request: Request::Fresh,
            request_mode: Mode::default(),
            request_end: End::NotYet,
            announced: None,
            response: Response::default(),
            summary: None,
        }
    }

    /// The same on a stream that says which pool it is for.
    #[must_use]
    pub fn for_pool(self, pool: PoolHint) -> Self {
        Self { pool, ..self }
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
                self.request_headers(&headers, message.protocol_config, metadata.as_ref())
            }
            Message::RequestBody(body) => self.request_body(body),
            Message::RequestTrailers(_) => self.request_trailers(),
            Message::ResponseHeaders(headers) => {
                let tell = response::Tell {
                    summary: self.summary.take(),
                    served: self.rules.conformance,
                };
                Ok(self.response.headers(&headers, metadata.as_ref(), tell))
            }
            Message::ResponseBody(body) => Ok(self.response.body(body, metadata.as_ref())),
            Message::ResponseTrailers(_) => Ok(self.response.trailers(metadata.as_ref())),
        }
    }

    /// Whether the response says why the request went where it did.
    #[must_use]
    pub fn tells_why(&self) -> bool {
        self.rules.decision_header
    }

    /// Hears where the request goes, as [`Step::Place`] or [`Step::PlaceByLoad`] asked.
    pub fn placed(&mut self, place: Result<Placed, Refusal>) -> Vec<Step> {
        let owed = match std::mem::replace(&mut self.request, Request::Placed) {
            Request::Placing(owed) => owed,
            other => {
                self.request = other;
                return Vec::new();
            }
        };
        let Placed {
            pick,
            summary,
            rewrite,
        } = match place {
            Ok(placed) => placed,
            Err(refusal) => {
                self.request = Request::Over;
                return vec![send(reply::refused(refusal))];
            }
        };
        self.summary = summary;
        match owed {
            Owed::Headers => vec![send(reply::headers_with_pick(&pick, None))],
            Owed::Body(body) => {
                let new = self.rewritten(rewrite, &body);
                let other = self.other(new.as_ref());
                vec![send(reply::body_with_pick(&pick, new, other))]
            }
            Owed::HeadersAndBody(body, end) => {
                let new = self.rewritten(rewrite, &body);
                let other = self.other(new.as_ref());
                let body = new.unwrap_or(body);
                let mut steps = vec![send(reply::headers_with_pick(&pick, other))];
                let ended = end == End::LastChunk;
                steps.extend(reply::body_chunks(Side::Request, body, ended).map(send));
                if matches!(end, End::Trailers | End::TrailersAndChunk) {
                    steps.push(send(reply::trailers(Side::Request)));
                }
                if end == End::TrailersAndChunk {
                    steps.extend(last_chunk());
                }
                steps
            }
        }
    }

    /// The body for another model, whose answer is to bear the name that this one asks for.
    fn rewritten(&mut self, rewrite: Option<Replacement>, body: &Bytes) -> Option<Bytes> {
        let rewrite = rewrite?;
        self.response.restores(rewrite.before(body));
        Some(rewrite.apply(body))
    }

    fn other(&self, new: Option<&Bytes>) -> Option<Other> {
        new.map(|new| Other {
            length: self.announced.map(|_| new.len()),
        })
    }

    /// What is known where Envoy ends the conversation before the response ended for us, as it
    /// does where it does not show us the body. `None` where no response began: the client hung
    /// up.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.response.has_begun().then(|| self.response.outcome())
    }

    /// Bytes of the body that are held back from Envoy.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        match &self.request {
            Request::Holding(_, held) => held.len(),
            Request::Placing(Owed::HeadersAndBody(body, _) | Owed::Body(body)) => body.len(),
            _ => 0,
        }
    }

    /// Envoy has said nothing yet.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        matches!(self.request, Request::Fresh)
    }

    /// A body is held until it ends.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        matches!(self.request, Request::Holding(..))
    }

    /// Holds no more of a body that has not ended: places the request by load, and lets the
    /// body pass. One that is still to come in one message will not be read.
    pub fn stop_holding(&mut self, reason: &'static str) -> Vec<Step> {
        match std::mem::replace(&mut self.request, Request::Over) {
            Request::Holding(head, held) => {
                let owed = Owed::HeadersAndBody(held.whole(), End::NotYet);
                self.place_by_load(head, reason, owed)
            }
            Request::Awaiting(head, known) => {
                self.request = Request::Awaiting(head, known.or(Some(reason)));
                Vec::new()
            }
            other => {
                self.request = other;
                Vec::new()
            }
        }
    }

    fn request_headers(
        &mut self,
        headers: &HttpHeaders,
        config: Option<ProtocolConfiguration>,
        metadata: Option<&Metadata>,
    ) -> Result<Vec<Step>, OutOfOrder> {
        if !matches!(self.request, Request::Fresh) {
            return Err(OutOfOrder("request headers"));
        }
        let (request_mode, response_mode) = read::modes(config);
        self.request_mode = request_mode;
        self.response = Response::new(response_mode);
        let head = self.head(headers, metadata);
        let length = read::header(headers, "content-length");
        self.announced = length.map(|length| length.parse().unwrap_or(0));
        if headers.end_of_stream {
            self.request_end = End::LastChunk;
            return Ok(self.place_by_load(head, "no_body", Owed::Headers));
        }
        if read::upgrades(headers) {
            return Ok(self.place_by_load(head, "upgrade", Owed::Headers));
        }
        Ok(match self.request_mode {
            Mode::FullDuplex => {
                let held = Held::announced(self.announced.unwrap_or(0));
                self.request = Request::Holding(head, held);
                Vec::new()
            }
            Mode::Buffered => {
                self.request = Request::Awaiting(head, None);
                vec![send(reply::headers(Side::Request, &[], &[]))]
            }
            Mode::Streamed | Mode::Unseen => self.place_by_load(head, "body_unseen", Owed::Headers),
        })
    }

    fn request_body(&mut self, body: HttpBody) -> Result<Vec<Step>, OutOfOrder> {
        if self.request_end != End::NotYet {
            return Ok(self.after_the_end(&body));
        }
        if body.end_of_stream {
            self.request_end = End::LastChunk;
        }
        match std::mem::replace(&mut self.request, Request::Over) {
            Request::Holding(head, held) => Ok(self.hold(head, held, body)),
            Request::Awaiting(head, unread) => {
                let too_long = body.body.len() > self.rules.body_bytes_max;
                if let Some(reason) = unread.or(too_long.then_some("body_too_long")) {
                    let owed = Owed::Body(Bytes::new());
                    return Ok(self.place_by_load(head, reason, owed));
                }
                Ok(self.place(head, body.body.clone(), Owed::Body(body.body)))
            }
            Request::Placed => {
                self.request = Request::Placed;
                Ok(pass(self.request_mode, Side::Request, body, None).collect())
            }
            Request::Over => Ok(Vec::new()),
            Request::Fresh | Request::Placing(_) => Err(OutOfOrder("a request body")),
        }
    }

    /// What follows a body's end.
    fn after_the_end(&mut self, body: &HttpBody) -> Vec<Step> {
        if self.request_end != End::Trailers || !body.end_of_stream {
            return Vec::new();
        }
        self.request_end = End::TrailersAndChunk;
        match &mut self.request {
            Request::Placing(Owed::HeadersAndBody(_, end)) => *end = End::TrailersAndChunk,
            Request::Placed if self.request_mode == Mode::FullDuplex => {
                return last_chunk().collect();
            }
            _ => {}
        }
        Vec::new()
    }

    /// Holds one more chunk; places the request where the body has ended or grew too long.
    fn hold(&mut self, head: Head, mut held: Held, body: HttpBody) -> Vec<Step> {
        held.push(body.body);
        let too_long = held.len() > self.rules.body_bytes_max;
        let end = if body.end_of_stream {
            End::LastChunk
        } else {
            End::NotYet
        };
        if too_long {
            let owed = Owed::HeadersAndBody(held.whole(), end);
            return self.place_by_load(head, "body_too_long", owed);
        }
        if end == End::NotYet {
            self.request = Request::Holding(head, held);
            return Vec::new();
        }
        let body = held.whole();
        self.place(head, body.clone(), Owed::HeadersAndBody(body, end))
    }

    fn request_trailers(&mut self) -> Result<Vec<Step>, OutOfOrder> {
        self.request_end = End::Trailers;
        match std::mem::replace(&mut self.request, Request::Over) {
            Request::Holding(head, held) => {
                let body = held.whole();
                let owed = Owed::HeadersAndBody(body.clone(), End::Trailers);
                Ok(self.place(head, body, owed))
            }
            // The headers have passed, and a reply to trailers cannot change them.
            Request::Awaiting(..) => Ok(vec![send(reply::body_missing())]),
            Request::Placed => {
                self.request = Request::Placed;
                Ok(vec![send(reply::trailers(Side::Request))])
            }
            Request::Over => Ok(Vec::new()),
            Request::Fresh | Request::Placing(_) => Err(OutOfOrder("request trailers")),
        }
    }

    fn place(&mut self, head: Head, body: Bytes, owed: Owed) -> Vec<Step> {
        self.request = Request::Placing(owed);
        vec![Step::Place(Box::new(Ask {
            request_id: head.request_id,
            path: head.path,
            content_type: head.content_type,
            body,
            subset: head.subset,
            pool: std::mem::take(&mut self.pool),
            objective: head.objective,
            fairness: head.fairness,
            target: head.target,
            session: head.session,
            trace: None,
        }))]
    }

    fn place_by_load(&mut self, head: Head, reason: &'static str, owed: Owed) -> Vec<Step> {
        let body_bytes = match &owed {
            Owed::HeadersAndBody(body, _) => body.len(),
            Owed::Headers | Owed::Body(_) => 0,
        };
        self.request = Request::Placing(owed);
        vec![Step::PlaceByLoad(ByLoad {
            request_id: head.request_id,
            subset: head.subset,
            pool: std::mem::take(&mut self.pool),
            objective: head.objective,
            session: head.session,
            trace: None,
            body_bytes,
            reason,
        })]
    }

    fn head(&self, headers: &HttpHeaders, metadata: Option<&Metadata>) -> Head {
        let chosen = read::header(headers, read::CONFORMANCE_SELECTION)
            .filter(|_| self.rules.conformance)
            .map(|list| read::addresses(&list));
        Head {
            request_id: read::header(headers, "x-request-id")
                .unwrap_or_else(|| self.fallback_id.clone()),
            path: read::header(headers, ":path").unwrap_or_default(),
            content_type: read::header(headers, "content-type"),
            subset: chosen.or_else(|| read::subset(metadata)),
            objective: read::first(headers, &read::OBJECTIVE),
            fairness: read::first(headers, &read::FAIRNESS),
            target: read::first(headers, &read::TARGET),
            session: read::first(headers, &self.rules.session_headers),
        }
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

/// The end of a request's body whose bytes have gone back.
fn last_chunk() -> impl Iterator<Item = Step> {
    reply::body_chunks(Side::Request, Bytes::new(), true).map(send)
}

fn send(message: ProcessingResponse) -> Step {
    Step::Send(Box::new(message))
}

#[cfg(test)]
mod tests;

//! The way there: what of a request is held, and what is owed to Envoy until it is placed.

use bytes::Bytes;

use super::held::Held;
use super::{OutOfOrder, Rules, Step, pass, send};
use crate::ext_proc::read::{self, Mode};
use crate::ext_proc::reply::{self, Other, Pick, Side};
use crate::proto::core::Metadata;
use crate::proto::ext_proc::{HttpBody, HttpHeaders};
use crate::scheduler::{Ask, ByLoad, PoolHint};

/// How far the request is.
#[derive(Debug, Default)]
pub(super) struct Request {
    pool: PoolHint,
    state: State,
    mode: Mode,
    /// What has ended its body. Envoy 1.35 and later may say the last chunk of a long body
    /// again (envoyproxy/envoy#46237); what follows the end is not heard, save an end after trailers.
    end: End,
    /// How long the body is, where the client says it.
    announced: Option<usize>,
}

/// What is waited for.
#[derive(Debug, Default)]
enum State {
    /// Nothing came yet.
    #[default]
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
pub(super) struct Head {
    request_id: String,
    path: String,
    content_type: Option<String>,
    /// In a box, since most headers say nothing of the kind.
    hints: Option<Box<Hints>>,
}

/// What a gateway or a client may say of who is to serve, and how.
#[derive(Debug, Default, PartialEq)]
struct Hints {
    subset: Option<Vec<String>>,
    objective: Option<String>,
    fairness: Option<String>,
    target: Option<String>,
    session: Option<String>,
}

/// The replies that wait for a pick.
#[derive(Debug)]
pub(super) enum Owed {
    Headers,
    HeadersAndBody(Bytes),
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

impl Head {
    /// Of a request that is called by this number where it has no `x-request-id`.
    pub fn of(
        headers: &HttpHeaders,
        metadata: Option<&Metadata>,
        rules: &Rules,
        number: u64,
    ) -> Self {
        let chosen = read::header(headers, read::CONFORMANCE_SELECTION)
            .filter(|_| rules.conformance)
            .map(|list| read::addresses(&list));
        let hints = Hints {
            subset: chosen.or_else(|| read::subset(metadata)),
            objective: read::first(headers, &read::OBJECTIVE),
            fairness: read::first(headers, &read::FAIRNESS),
            target: read::first(headers, &read::TARGET),
            session: read::first(headers, &rules.session_headers),
        };
        Self {
            request_id: read::header(headers, "x-request-id")
                .unwrap_or_else(|| format!("kvscout-{number}")),
            path: read::header(headers, ":path").unwrap_or_default(),
            content_type: read::header(headers, "content-type"),
            hints: (hints != Hints::default()).then(|| Box::new(hints)),
        }
    }

    fn take_hints(&mut self) -> Hints {
        self.hints.take().map(|hints| *hints).unwrap_or_default()
    }
}

impl Owed {
    /// The request's own body.
    pub fn body(&self) -> Option<&Bytes> {
        match self {
            Self::Headers => None,
            Self::HeadersAndBody(body) | Self::Body(body) => Some(body),
        }
    }
}

impl Request {
    /// One for a pool of which nothing was said.
    pub fn for_pool(pool: PoolHint) -> Self {
        Self {
            pool,
            ..Self::default()
        }
    }

    /// Bytes of the body that are held back from Envoy.
    pub fn held_bytes(&self) -> usize {
        match &self.state {
            State::Holding(_, held) => held.len(),
            State::Placing(owed) => owed.body().map_or(0, Bytes::len),
            _ => 0,
        }
    }

    /// Envoy has said nothing yet.
    pub fn is_fresh(&self) -> bool {
        matches!(self.state, State::Fresh)
    }

    /// A body is held until it ends.
    pub fn is_holding(&self) -> bool {
        matches!(self.state, State::Holding(..))
    }

    /// Its headers came.
    pub fn headers(
        &mut self,
        headers: &HttpHeaders,
        mode: Mode,
        head: Head,
    ) -> Result<Vec<Step>, OutOfOrder> {
        if !matches!(self.state, State::Fresh) {
            return Err(OutOfOrder("request headers"));
        }
        self.mode = mode;
        let length = read::header(headers, "content-length");
        self.announced = length.map(|length| length.parse().unwrap_or(0));
        if headers.end_of_stream {
            self.end = End::LastChunk;
            return Ok(self.place_by_load(head, "no_body", Owed::Headers));
        }
        if read::upgrades(headers) {
            return Ok(self.place_by_load(head, "upgrade", Owed::Headers));
        }
        Ok(match mode {
            Mode::FullDuplex => {
                let held = Held::announced(self.announced.unwrap_or(0));
                self.state = State::Holding(head, held);
                Vec::new()
            }
            Mode::Buffered => {
                self.state = State::Awaiting(head, None);
                vec![send(reply::headers(Side::Request, &[], &[]))]
            }
            Mode::Streamed | Mode::Unseen => self.place_by_load(head, "body_unseen", Owed::Headers),
        })
    }

    /// A part of its body came, of which so many bytes are held at most.
    pub fn body(&mut self, body: HttpBody, bytes_max: usize) -> Result<Vec<Step>, OutOfOrder> {
        if self.end != End::NotYet {
            return Ok(self.after_the_end(&body));
        }
        if body.end_of_stream {
            self.end = End::LastChunk;
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Holding(head, held) => Ok(self.hold(head, held, body, bytes_max)),
            State::Awaiting(head, unread) => {
                let too_long = body.body.len() > bytes_max;
                if let Some(reason) = unread.or(too_long.then_some("body_too_long")) {
                    let owed = Owed::Body(Bytes::new());
                    return Ok(self.place_by_load(head, reason, owed));
                }
                Ok(self.place(head, body.body.clone(), Owed::Body(body.body)))
            }
            State::Placed => {
                self.state = State::Placed;
                Ok(pass(self.mode, Side::Request, body, None).collect())
            }
            State::Over => Ok(Vec::new()),
            State::Fresh | State::Placing(_) => Err(OutOfOrder("a request body")),
        }
    }

    /// What follows a body's end.
    fn after_the_end(&mut self, body: &HttpBody) -> Vec<Step> {
        if self.end != End::Trailers || !body.end_of_stream {
            return Vec::new();
        }
        self.end = End::TrailersAndChunk;
        match self.state {
            State::Placed if self.mode == Mode::FullDuplex => last_chunk().collect(),
            _ => Vec::new(),
        }
    }

    /// Holds one more chunk; places the request where the body has ended or grew too long.
    fn hold(&mut self, head: Head, mut held: Held, body: HttpBody, bytes_max: usize) -> Vec<Step> {
        held.push(body.body);
        let too_long = held.len() > bytes_max;
        if too_long {
            let owed = Owed::HeadersAndBody(held.whole());
            return self.place_by_load(head, "body_too_long", owed);
        }
        if self.end == End::NotYet {
            self.state = State::Holding(head, held);
            return Vec::new();
        }
        let body = held.whole();
        self.place(head, body.clone(), Owed::HeadersAndBody(body))
    }

    /// Its trailers came.
    pub fn trailers(&mut self) -> Result<Vec<Step>, OutOfOrder> {
        self.end = End::Trailers;
        match std::mem::replace(&mut self.state, State::Over) {
            State::Holding(head, held) => {
                let body = held.whole();
                let owed = Owed::HeadersAndBody(body.clone());
                Ok(self.place(head, body, owed))
            }
            // The headers have passed, and a reply to trailers cannot change them.
            State::Awaiting(..) => Ok(vec![send(reply::body_missing())]),
            State::Placed => {
                self.state = State::Placed;
                Ok(vec![send(reply::trailers(Side::Request))])
            }
            State::Over => Ok(Vec::new()),
            State::Fresh | State::Placing(_) => Err(OutOfOrder("request trailers")),
        }
    }

    /// Holds no more of a body that has not ended: places the request by load, and lets the
    /// body pass. One that is still to come in one message will not be read.
    pub fn stop_holding(&mut self, reason: &'static str) -> Vec<Step> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Holding(head, held) => {
                let owed = Owed::HeadersAndBody(held.whole());
                self.place_by_load(head, reason, owed)
            }
            State::Awaiting(head, known) => {
                self.state = State::Awaiting(head, known.or(Some(reason)));
                Vec::new()
            }
            other => {
                self.state = other;
                Vec::new()
            }
        }
    }

    /// Where it goes is known: what is owed to Envoy until then, or nothing.
    pub fn owed(&mut self) -> Option<Owed> {
        match std::mem::replace(&mut self.state, State::Placed) {
            State::Placing(owed) => Some(owed),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// It goes nowhere.
    pub fn refused(&mut self) {
        self.state = State::Over;
    }

    /// Gives what was owed, with the pick, and a new body in the place of its own.
    pub fn paid(&self, owed: Owed, pick: &Pick, new: Option<Bytes>) -> Vec<Step> {
        let other = new.as_ref().map(|new| Other {
            length: self.announced.map(|_| new.len()),
        });
        match owed {
            Owed::Headers => vec![send(reply::headers_with_pick(pick, None))],
            Owed::Body(_) => vec![send(reply::body_with_pick(pick, new, other))],
            Owed::HeadersAndBody(body) => {
                let body = new.unwrap_or(body);
                let mut steps = vec![send(reply::headers_with_pick(pick, other))];
                let ended = self.end == End::LastChunk;
                steps.extend(reply::body_chunks(Side::Request, body, ended).map(send));
                if matches!(self.end, End::Trailers | End::TrailersAndChunk) {
                    steps.push(send(reply::trailers(Side::Request)));
                }
                if self.end == End::TrailersAndChunk {
                    steps.extend(last_chunk());
                }
                steps
            }
        }
    }

    fn place(&mut self, mut head: Head, body: Bytes, owed: Owed) -> Vec<Step> {
        let hints = head.take_hints();
        self.state = State::Placing(owed);
        vec![Step::Place(Box::new(Ask {
            request_id: head.request_id,
            path: head.path,
            content_type: head.content_type,
            body,
            subset: hints.subset,
            pool: std::mem::take(&mut self.pool),
            objective: hints.objective,
            fairness: hints.fairness,
            target: hints.target,
            session: hints.session,
            trace: None,
        }))]
    }

    fn place_by_load(&mut self, mut head: Head, reason: &'static str, owed: Owed) -> Vec<Step> {
        let hints = head.take_hints();
        let body_bytes = owed.body().map_or(0, Bytes::len);
        self.state = State::Placing(owed);
        vec![Step::PlaceByLoad(ByLoad {
            request_id: head.request_id,
            subset: hints.subset,
            pool: std::mem::take(&mut self.pool),
            objective: hints.objective,
            session: hints.session,
            trace: None,
            body_bytes,
            reason,
        })]
    }
}

/// The end of a request's body whose bytes have gone back.
fn last_chunk() -> impl Iterator<Item = Step> {
    reply::body_chunks(Side::Request, Bytes::new(), true).map(send)
}

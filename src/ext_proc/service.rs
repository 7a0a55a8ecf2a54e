//! The gRPC services of the port: exchanges, and beside them health.
//!
//! Put together of tonic's parts, since what it generates for a service keeps room for a request twice and for its answer
//! until there is one, 2 kB a stream: for as long as a body is held, which is shorter than that twice over.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use futures::channel::mpsc;
use futures::future::{Either, Map};
use futures::stream::{self, StreamFuture};
use futures::{FutureExt as _, StreamExt as _};
use tonic::body::Body;
use tonic::codec::{Codec as _, EncodeBody};
use tonic::codegen::Service as GrpcService;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::{Status, Streaming};

use super::arriving::Arriving;
use super::authority::pool_hint;
use super::drive::{Drive, Reply, Tracing};
use super::{Common, reply};
use crate::proto::codec::Codec;
use crate::proto::ext_proc::{ProcessingRequest, ProcessingResponse};
use crate::scheduler::Refusal;

/// How messages travel.
type Wire = Codec<ProcessingResponse, ProcessingRequest>;
/// The method that Envoy calls.
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// Replies between a driver and its gRPC stream. Eight chunks of 62 kB keep a connection busy.
const REPLIES_MAX: usize = 8;
/// What a message may have beyond a body: headers and framing.
const MESSAGE_SLACK_BYTES: usize = 1024 * 1024;
/// The largest message at least. In buffered mode a whole body is one message, and one beyond the
/// limit for reading must still be heard to be passed on.
const MESSAGE_BYTES_MIN: usize = 64 * 1024 * 1024;

/// What is served on one lane.
#[derive(Clone)]
pub struct Service<H> {
    common: Arc<Common>,
    lane: usize,
    /// Answers what is no exchange, also what nobody knows.
    health: H,
}

impl<H> Service<H> {
    pub(super) fn new(common: Arc<Common>, lane: usize, health: H) -> Self {
        Self {
            common,
            lane,
            health,
        }
    }

    /// Begins an exchange; where its replies will be.
    fn begin(&self, request: Request<Body>) -> mpsc::Receiver<Reply> {
        let (common, (head, body)) = (&self.common, request.into_parts());
        let (parts, settings) = (&common.parts, &common.settings);
        if is_compressed(&head.headers) {
            return only(Err(Status::unimplemented(
                "messages must not be compressed",
            )));
        }
        let Some(place) = parts.capacity.enter(self.lane) else {
            // Before it has said anything, so that it costs next to nothing.
            let refusal = Refusal::Overloaded;
            parts.metrics.answered(None, ("", "", refusal.as_str()));
            return only(Ok(Box::new(reply::refused(refusal))));
        };
        let body = Arriving::new(body, parts.capacity.arriving(), parts.metrics.clone());
        let message_bytes_max =
            settings.rules.body_bytes_max.max(MESSAGE_BYTES_MIN) + MESSAGE_SLACK_BYTES;
        let decoder = Wire::default().decoder();
        let mut said = Streaming::new_request(decoder, body, None, Some(message_bytes_max));
        // And one more, which the channel keeps for its only sender.
        let (replies, heard) = mpsc::channel(REPLIES_MAX - 1);
        let number = common.number.fetch_add(1, Ordering::Relaxed);
        let drive = Box::new(Drive::new(
            settings.clone(),
            (number, pool_hint(&head)),
            parts.scheduler.clone(),
            place,
            Tracing::of(&head.headers, common.spans.clone()),
        ));
        let (metrics, over) = (parts.metrics.clone(), common.over.clone());
        common.exchanges.spawn(async move {
            let ended = drive.run(&mut said, replies, &over).await;
            if let Some(reason) = ended.reason() {
                metrics.exchange_given_up(reason);
            }
        });
        heard
    }
}

impl<H> GrpcService<Request<Body>> for Service<H>
where
    H: GrpcService<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer<H::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.health.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.uri().path() {
            PROCESS => Either::Left(self.begin(request).into_future().map(answer)),
            _ => Either::Right(self.health.call(request)),
        }
    }
}

/// Of an exchange, with its first reply and those that follow; or of another service.
type Answer<F> = Either<Map<StreamFuture<mpsc::Receiver<Reply>>, fn(Heard) -> Answered>, F>;
type Heard = (Option<Reply>, mpsc::Receiver<Reply>);
type Answered = Result<Response<Body>, Infallible>;

/// Answers a call with its first reply, and not before: until then Envoy can ask another picker where this one dies
/// (`retry_policy`), and no longer once it has seen response headers.
fn answer((first, rest): Heard) -> Answered {
    let first = match first.transpose() {
        Ok(first) => first.map(Ok),
        Err(status) => return Ok(status.into_http()),
    };
    // Unpacked at the last moment.
    let all = stream::iter(first).chain(rest);
    let all = all.map(|reply: Reply| reply.map(|reply| *reply));
    let (encoder, whole) = (Wire::default().encoder(), Default::default());
    let body = Body::new(EncodeBody::new_server(encoder, all, None, whole, None));
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    Ok(response)
}

/// An answer that is this alone.
fn only(reply: Reply) -> mpsc::Receiver<Reply> {
    let (mut replies, heard) = mpsc::channel(0);
    replies.try_send(reply).expect("it has room for one");
    heard
}

/// Whether messages come compressed (gRPC over HTTP/2, Message-Encoding).
fn is_compressed(headers: &HeaderMap) -> bool {
    let encoding = headers.get("grpc-encoding");
    encoding.is_some_and(|encoding| encoding != "identity")
}

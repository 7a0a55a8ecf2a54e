//! Messages that are not all there yet: counted as they arrive, before anybody has decoded them.
//!
//! In full duplex a message is what Envoy has read at once. Buffered, it is a whole body, and gRPC's decoder keeps
//! what has come of it until the last byte is there: a gateway that stops before that must not take more memory than
//! all bodies together may.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::capacity::{Capacity, Held};
use crate::metrics::Metrics;

/// Before each message: whether it is compressed, and its length in four bytes (gRPC over HTTP/2, Length-Prefixed-Message).
const PREFIX_BYTES: usize = 5;

/// Counts what a gRPC service's streams have of messages under way.
#[derive(Clone)]
pub struct Counted<S> {
    pub service: S,
    pub capacity: Arc<Capacity>,
    pub metrics: Arc<Metrics>,
}

impl<S, B> Service<http::Request<B>> for Counted<S>
where
    S: Service<http::Request<Arriving<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (held, metrics) = (self.capacity.arriving(), self.metrics.clone());
        self.service.call(request.map(|body| Arriving {
            body,
            message: Message::default(),
            held,
            metrics,
        }))
    }
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

/// A stream's bytes.
pub struct Arriving<B> {
    body: B,
    message: Message,
    held: Held,
    metrics: Arc<Metrics>,
}

impl<B> Body for Arriving<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
            return Poll::Ready(None);
        };
        let frame = frame.map_err(Into::into)?;
        if let Some(bytes) = frame.data_ref() {
            self.message.feed(bytes);
            let waiting = self.message.waiting();
            // Most messages come whole.
            if waiting != self.held.bytes() && !self.held.book(waiting) {
                // Its exchange ends, and a gateway that has the body still goes on without a choice.
                self.held.book(0);
                self.metrics.exchange_given_up("memory");
                let full = "messages that are not all there yet take too much memory together";
                return Poll::Ready(Some(Err(Status::resource_exhausted(full).into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where in its message a stream is.
#[derive(Debug, Default)]
struct Message {
    prefix: [u8; PREFIX_BYTES],
    /// Of the message, prefix and all.
    come: usize,
}

impl Message {
    /// What there is of one that is not all there.
    fn waiting(&self) -> usize {
        self.come
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let take = match self.come.checked_sub(PREFIX_BYTES) {
                None => {
                    let take = bytes.len().min(PREFIX_BYTES - self.come);
                    self.prefix[self.come..self.come + take].copy_from_slice(&bytes[..take]);
                    take
                }
                Some(come) => bytes.len().min(self.length() - come),
            };
            self.come += take;
            bytes = &bytes[take..];
            if self.come >= PREFIX_BYTES && self.come - PREFIX_BYTES == self.length() {
                self.come = 0;
            }
        }
    }

    fn length(&self) -> usize {
        let [_, length @ ..] = self.prefix;
        u32::from_be_bytes(length) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// However a stream is cut, what waits is what has come of its last message.
        #[test]
        fn a_message_waits_until_its_last_byte(
            lengths in proptest::collection::vec(0_usize..600, 1..8), cut in 1_usize..64, more in 1_usize..600,
        ) {
            let message = |length: usize| [&[0][..], &(length as u32).to_be_bytes(), &vec![7; length]].concat();
            let mut all: Vec<u8> = lengths.into_iter().flat_map(message).collect();
            let whole = all.len();
            all.extend_from_slice(&message(more)[..PREFIX_BYTES + more - 1]);
            let mut read = Message::default();
            for piece in all[..whole].chunks(cut) {
                read.feed(piece);
            }
            proptest::prop_assert_eq!(read.waiting(), 0);
            for piece in all[whole..].chunks(cut) {
                read.feed(piece);
            }
            proptest::prop_assert_eq!(read.waiting(), PREFIX_BYTES + more - 1);
        }
    }
}

//! Messages that are not all there yet: counted as they arrive, before anybody has decoded them, and handed on so
//! that each is read into memory of its own length.
//!
//! In full duplex a message is what Envoy has read at once. Buffered, it is a whole body, and gRPC's decoder keeps
//! what has come of it until the last byte is there: a gateway that stops before that must not take more memory than
//! all bodies together may.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use tonic::Status;

use super::capacity::Held;
use crate::metrics::Metrics;

/// Before each message: whether it is compressed, and its length in four bytes (gRPC over HTTP/2, Length-Prefixed-Message).
const PREFIX_BYTES: usize = 5;

/// A stream's bytes.
pub struct Arriving<B> {
    body: B,
    /// What is left of the last frame.
    frame: Bytes,
    message: Message,
    held: Held,
    metrics: Arc<Metrics>,
}

impl<B> Arriving<B> {
    /// Of this stream, counted in this place.
    pub fn new(body: B, held: Held, metrics: Arc<Metrics>) -> Self {
        Self {
            body,
            frame: Bytes::new(),
            message: Message::default(),
            held,
            metrics,
        }
    }
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
        if self.frame.is_empty() {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
                return Poll::Ready(None);
            };
            match frame.map_err(Into::into)?.into_data() {
                Ok(bytes) => self.frame = bytes,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let Self { frame, message, .. } = &mut *self;
        let piece = message.next(frame);
        let waiting = self.message.waiting();
        // Most messages come whole.
        if self.frame.is_empty() && waiting != self.held.bytes() && !self.held.book(waiting) {
            // Its exchange ends, and a gateway that has the body still goes on without a choice.
            self.held.book(0);
            self.metrics.exchange_given_up("memory");
            let full = "messages that are not all there yet take too much memory together";
            return Poll::Ready(Some(Err(Status::resource_exhausted(full).into())));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.frame.is_empty() && self.body.is_end_stream()
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

    /// The next piece of a frame: a prefix, or what follows it of a message. Tonic asks for a message's length of memory
    /// when it has read the prefix, beside what it has of the message by then (0.14, `decode_chunk`): it should have nothing.
    fn next(&mut self, frame: &mut Bytes) -> Bytes {
        let piece = match self.come.checked_sub(PREFIX_BYTES) {
            None => {
                let piece = frame.split_to(frame.len().min(PREFIX_BYTES - self.come));
                self.prefix[self.come..self.come + piece.len()].copy_from_slice(&piece);
                piece
            }
            Some(come) => frame.split_to(frame.len().min(self.length() - come)),
        };
        self.come += piece.len();
        if self.come >= PREFIX_BYTES && self.come - PREFIX_BYTES == self.length() {
            self.come = 0;
        }
        piece
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
        fn a_message_waits_until_its_last_byte_and_its_prefix_comes_alone(
            lengths in proptest::collection::vec(0_usize..600, 1..8), cut in 1_usize..64, more in 1_usize..600,
        ) {
            let message = |length: usize| [&[0][..], &(length as u32).to_be_bytes(), &vec![7; length]].concat();
            let mut all: Vec<u8> = lengths.into_iter().flat_map(message).collect();
            let whole = all.len();
            all.extend_from_slice(&message(more)[..PREFIX_BYTES + more - 1]);
            let mut read = Message::default();
            let mut feed = |bytes: &[u8]| {
                let mut pieces = Vec::new();
                for frame in bytes.chunks(cut) {
                    let mut frame = Bytes::copy_from_slice(frame);
                    while !frame.is_empty() {
                        let begins = read.waiting() < PREFIX_BYTES;
                        let piece = read.next(&mut frame);
                        proptest::prop_assert!(!piece.is_empty() && (!begins || piece.len() <= PREFIX_BYTES));
                        pieces.extend_from_slice(&piece);
                    }
                }
                proptest::prop_assert_eq!(&pieces, bytes);
                Ok(read.waiting())
            };
            proptest::prop_assert_eq!(feed(&all[..whole])?, 0);
            proptest::prop_assert_eq!(feed(&all[whole..])?, PREFIX_BYTES + more - 1);
        }
    }
}

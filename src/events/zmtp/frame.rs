//! Bytes ↔ messages and commands: plain, so that hostile bytes can be tried without a socket.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::LinkError;

/// Bytes asked of the kernel at a time. Frames below this size are copied out, so that a small
/// message waiting in a queue never keeps a whole read buffer alive.
pub(super) const READ_BYTES: usize = 64 * 1024;
/// Most frames of one message: vLLM sends 3, or 4 in a replay; more is another protocol.
const FRAMES_MAX: usize = 16;
/// Longest context of a heartbeat (RFC 37).
const PING_CONTEXT_BYTES_MAX: usize = 16;

pub(super) const MORE: u8 = 1;
const LONG: u8 = 2;
pub(super) const COMMAND: u8 = 4;

/// What a peer sends once the handshake is done.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// All frames of a message.
    Message(Vec<Bytes>),
    /// A heartbeat that wants its context back, by [`Connection::pong`].
    Ping(Bytes),
    /// Any other command; there is nothing to do about it.
    Command(Bytes),
}

/// Bytes → messages and commands.
#[derive(Debug)]
pub struct Decoder {
    message_bytes_max: usize,
    frames: Vec<Bytes>,
    bytes: usize,
}

impl Decoder {
    /// Refuses messages above `message_bytes_max`.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            frames: Vec::new(),
            bytes: 0,
        }
    }

    /// Refuses messages above this from now on.
    pub fn set_message_bytes_max(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = message_bytes_max;
    }

    /// Takes one message or command off the front, or nothing until more bytes are there.
    ///
    /// # Errors
    /// A length is judged by the header alone: nothing is ever allocated for a message that
    /// is too large.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Incoming>, LinkError> {
        while let Some((flags, header_bytes, body_bytes)) = read_header(buffer)? {
            let bytes = body_bytes.saturating_add(self.bytes as u64);
            let body_bytes = match usize::try_from(body_bytes) {
                Ok(body_bytes) if bytes <= self.message_bytes_max as u64 => body_bytes,
                _ => {
                    return Err(LinkError::TooLarge {
                        bytes,
                        limit_bytes: self.message_bytes_max,
                    });
                }
            };
            if buffer.len() < header_bytes + body_bytes {
                return Ok(None);
            }
            buffer.advance(header_bytes);
            let body = take_body(buffer, body_bytes);
            if flags & COMMAND != 0 {
                return read_command(flags, body).map(Some);
            }
            self.bytes += body_bytes;
            self.frames.push(body);
            if flags & MORE == 0 {
                self.bytes = 0;
                return Ok(Some(Incoming::Message(std::mem::take(&mut self.frames))));
            }
            if self.frames.len() >= FRAMES_MAX {
                return Err(LinkError::Malformed("a message of too many frames"));
            }
        }
        Ok(None)
    }
}

/// Flags, length of the header, length of the body, where the whole header is there.
fn read_header(buffer: &[u8]) -> Result<Option<(u8, usize, u64)>, LinkError> {
    let Some((&flags, rest)) = buffer.split_first() else {
        return Ok(None);
    };
    if flags & !(MORE | LONG | COMMAND) != 0 {
        return Err(LinkError::Malformed("unknown flags before a frame"));
    }
    Ok(if flags & LONG == 0 {
        rest.first().map(|&length| (flags, 2, length.into()))
    } else {
        let length = rest.first_chunk();
        length.map(|length| (flags, 9, u64::from_be_bytes(*length)))
    })
}

fn take_body(buffer: &mut BytesMut, bytes: usize) -> Bytes {
    if bytes < READ_BYTES {
        let body = Bytes::copy_from_slice(&buffer[..bytes]);
        buffer.advance(bytes);
        body
    } else {
        buffer.split_to(bytes).freeze()
    }
}

fn read_command(flags: u8, body: Bytes) -> Result<Incoming, LinkError> {
    if flags & MORE != 0 {
        return Err(LinkError::Malformed("a command of several frames"));
    }
    // 4 "PING", time to live of 2 bytes, context.
    match body.strip_prefix(b"\x04PING") {
        Some([_, _, context @ ..]) if context.len() <= PING_CONTEXT_BYTES_MAX => {
            Ok(Incoming::Ping(Bytes::copy_from_slice(context)))
        }
        Some(_) => Err(LinkError::Malformed("a heartbeat of the wrong length")),
        None => Ok(Incoming::Command(body)),
    }
}

/// Appends a frame.
pub(super) fn put_frame(bytes: &mut BytesMut, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(length) => bytes.put_slice(&[flags, length]),
        Err(_) => {
            bytes.put_u8(flags | LONG);
            bytes.put_u64(body.len() as u64);
        }
    }
    bytes.put_slice(body);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(decoder: &mut Decoder, buffer: &mut BytesMut) -> Vec<Incoming> {
        let next = || decoder.decode(buffer).expect("valid bytes");
        std::iter::from_fn(next).collect()
    }

    fn encoded(message: &[Vec<u8>]) -> BytesMut {
        let mut bytes = BytesMut::new();
        for (index, frame) in message.iter().enumerate() {
            let more = if index + 1 < message.len() { MORE } else { 0 };
            put_frame(&mut bytes, more, frame);
        }
        bytes
    }

    proptest! {
        /// Wherever the network cuts the bytes, the same messages come out.
        #[test]
        fn cuts_change_nothing(
            messages in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5), 1..6),
            cut in 1..700usize,
        ) {
            let bytes: BytesMut = messages.iter().flat_map(|m| encoded(m)).collect();
            let (mut decoder, mut buffer, mut found) =
                (Decoder::new(5_000), BytesMut::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                buffer.extend_from_slice(piece);
                found.extend(drain(&mut decoder, &mut buffer));
            }
            let wanted: Vec<_> = messages.into_iter()
                .map(|m| Incoming::Message(m.into_iter().map(Bytes::from).collect()))
                .collect();
            prop_assert_eq!(found, wanted);
        }

        /// No bytes make the decoder panic or hold more than it was given.
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let (mut decoder, mut buffer) = (Decoder::new(256), BytesMut::from(&bytes[..]));
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
            prop_assert!(decoder.bytes <= 256 && decoder.frames.len() <= FRAMES_MAX);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_by_its_header() {
        let mut header = BytesMut::from(&[LONG][..]);
        header.put_u64(1 << 60);
        let refused = Decoder::new(1 << 20).decode(&mut header);
        assert!(matches!(refused, Err(LinkError::TooLarge { .. })));
        // Nor does it help to cut it up.
        let mut frames = encoded(&vec![vec![0; 400]; 3]);
        let refused = Decoder::new(1_000).decode(&mut frames);
        assert!(matches!(refused, Err(LinkError::TooLarge { .. })));
    }
}

//! Bytes of HTTP/2 connections on their way in, with authorities that the library takes.
//!
//! A header block is looked through where it lies, and nothing changes its length: a `|` becomes a `+`, which has as
//! many bits in HPACK's Huffman code. What a block refers to (its encoder's table) need not be known for
//! that: an authority comes once in full, and what the library remembers of it is what we made of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use super::huffman;

/// `PRI * HTTP/2.0…`, which every connection begins with.
const PREFACE_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 9;
/// The largest frame that our side lets a client send, HTTP/2's default. A larger one breaks its connection anyway.
const FRAME_BYTES_MAX: usize = 16 * 1024;

const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;
/// The character, and what becomes of it; then both in Huffman's code, with its bits.
const PIPE: (u8, u8) = (b'|', b'+');
const PIPE_CODES: (u32, u32, u32) = (11, 0x7fc, 0x7fb);

/// A connection whose incoming bytes are mended.
#[derive(Debug)]
pub struct Mended<IO> {
    io: IO,
    frames: Frames,
    /// A header frame that has not come whole.
    held: BytesMut,
    /// What goes on before anything else is read.
    ready: BytesMut,
}

impl<IO> Mended<IO> {
    /// One of which nothing was read.
    pub fn new(io: IO) -> Self {
        Self {
            io,
            frames: Frames {
                passing: PREFACE_BYTES,
            },
            held: BytesMut::new(),
            ready: BytesMut::new(),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Mended<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.ready.is_empty() {
                let count = this.ready.len().min(to.remaining());
                to.put_slice(&this.ready[..count]);
                this.ready.advance(count);
                return Poll::Ready(Ok(()));
            }
            let before = to.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(context, to))?;
            let new = &mut to.filled_mut()[before..];
            if new.is_empty() {
                // The end, or no room. What was held back was cut off: the library is to see that.
                if to.remaining() > 0 && !this.held.is_empty() {
                    this.ready = std::mem::take(&mut this.held);
                    continue;
                }
                return Poll::Ready(Ok(()));
            }
            if this.held.is_empty() {
                let passed = this.frames.mend(new);
                this.held.extend_from_slice(&new[passed..]);
                to.set_filled(before + passed);
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                this.held.extend_from_slice(new);
                to.set_filled(before);
                let passed = this.frames.mend(&mut this.held);
                this.ready = this.held.split_to(passed);
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Mended<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Who is calling, nobody asks.
impl<IO> Connected for Mended<IO> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Where in its frames a connection is.
#[derive(Debug)]
struct Frames {
    /// Bytes that follow and are no header block's.
    passing: usize,
}

impl Frames {
    /// Mends what is whole, and says how many bytes may go on; the rest is to be given again, with more.
    fn mend(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        loop {
            let passed = self.passing.min(bytes.len() - at);
            (at, self.passing) = (at + passed, self.passing - passed);
            let Some(header) = bytes.get(at..at + FRAME_HEADER_BYTES) else {
                return at;
            };
            let length =
                usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            let (kind, flags) = (header[3], header[4]);
            // A block in several frames has more than Envoy ever says of a gRPC call.
            let is_block = kind == HEADERS && flags & END_HEADERS != 0 && length <= FRAME_BYTES_MAX;
            let whole = FRAME_HEADER_BYTES + length;
            if !is_block {
                self.passing = whole;
                continue;
            }
            let Some(frame) = bytes.get_mut(at..at + whole) else {
                return at;
            };
            if let Some(block) = block(&mut frame[FRAME_HEADER_BYTES..], flags) {
                mend_block(block);
            }
            at += whole;
        }
    }
}

/// The header block of a frame; none where it contradicts itself.
fn block(payload: &mut [u8], flags: u8) -> Option<&mut [u8]> {
    let (mut from, mut to) = (0, payload.len());
    if flags & PADDED != 0 {
        to = to.checked_sub(usize::from(*payload.first()?))?;
        from += 1;
    }
    if flags & PRIORITY != 0 {
        from += 5;
    }
    payload.get_mut(from..to)
}

/// Mends an authority; leaves off where a block is not as RFC 7541 says.
fn mend_block(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        // Whether a name's number is followed by a value: a literal, with its prefix's bits.
        let (bits, is_literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let name = number(block, &mut at, bits)?;
        if !is_literal {
            continue;
        }
        if name == 0 {
            string(block, &mut at)?;
        }
        let (value, is_huffman) = string(block, &mut at)?;
        match (name, is_huffman) {
            (AUTHORITY, true) => huffman::replace(value, &[PIPE_CODES]),
            (AUTHORITY, false) => {
                let pipes = value.iter_mut().filter(|byte| **byte == PIPE.0);
                pipes.for_each(|byte| *byte = PIPE.1);
            }
            _ => {}
        }
    }
    Some(())
}

/// An integer whose first byte has so many bits of it (RFC 7541, 5.1).
fn number(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1 << bits) - 1;
    let mut number = usize::from(*block.get(*at)? & most as u8);
    *at += 1;
    // No length of a block needs a fourth byte.
    for place in 0..4 {
        if place == 0 && number < most {
            return Some(number);
        }
        let byte = *block.get(*at)?;
        *at += 1;
        number += usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// A text, and whether it is in Huffman's code.
fn string<'a>(block: &'a mut [u8], at: &mut usize) -> Option<(&'a mut [u8], bool)> {
    let is_huffman = *block.get(*at)? & 0x80 != 0;
    let length = number(block, at, 7)?;
    let from = *at;
    *at = from.checked_add(length)?;
    Some((block.get_mut(from..*at)?, is_huffman))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let header = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        [&header[..], payload].concat()
    }

    /// A connection: the preface, settings, a call, a body that looks like one, and another call with padding and
    /// priority.
    fn connection(authority: &str) -> Vec<u8> {
        let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        // POST, https, a literal path, the authority, and one whose name is literal.
        let block = [
            vec![0x83, 0x87, 0x44],
            text("/a|b"),
            vec![0x41],
            text(authority),
            vec![0x40],
            text("x-note"),
            text("c|d"),
        ]
        .concat();
        let padded = [&[3, 0, 0, 0, 0, 16][..], &block, &[0; 3]].concat();
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, &[0; 6]),
            frame(HEADERS, END_HEADERS, &block),
            frame(0, 0, &frame(HEADERS, END_HEADERS, &block)),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
        ]
        .concat()
    }

    /// What comes out where so many bytes come in at once.
    async fn read(sent: &[u8], at_once: usize) -> Vec<u8> {
        let (mut gateway, ours) = tokio::io::duplex(at_once);
        let (mut reader, mut got) = (Mended::new(ours), Vec::new());
        let write = async {
            gateway.write_all(sent).await.expect("written");
            drop(gateway);
        };
        let (read, ()) = tokio::join!(reader.read_to_end(&mut got), write);
        read.expect("read");
        got
    }

    #[tokio::test]
    async fn an_authority_is_mended_and_nothing_else_however_its_bytes_come() {
        let (sent, wanted) = (connection("a|b||c.svc"), connection("a+b++c.svc"));
        // In the body and in other headers it stays.
        let body = sent.len() - 9 - 6 - 3;
        assert!(body > 0);
        for at_once in [1, 2, 7, 24, 33, 64, sent.len()] {
            let got = read(&sent, at_once).await;
            assert_eq!(got.len(), sent.len());
            let differ = got
                .iter()
                .zip(&sent)
                .filter(|(got, sent)| got != sent)
                .count();
            // Three characters in each of two calls.
            assert_eq!(differ, 6, "{at_once} at once");
            assert_eq!(
                got.iter()
                    .zip(&wanted)
                    .filter(|(got, wanted)| got != wanted)
                    .count(),
                3,
                "the body's stay"
            );
        }
    }

    #[test]
    fn huffmans_code_is_mended_too() {
        // `a|b`: 00011, 11111111100, 100011, and padding.
        let mut block = [0x01, 0x83, 0b0001_1111, 0b1111_1100, 0b1000_1111];
        assert_eq!(mend_block(&mut block), Some(()));
        assert_eq!(block, [0x01, 0x83, 0b0001_1111, 0b1111_1011, 0b1000_1111]);
    }

    #[test]
    fn blocks_that_lie_are_left_alone() {
        for lies in [
            &[0x41][..],
            &[0x41, 0x05, b'|'],
            &[0x7f, 0xff, 0xff, 0xff, 0xff],
            &[0x40, 0xff],
        ] {
            let mut block = lies.to_vec();
            assert_eq!(mend_block(&mut block), None, "{lies:?}");
            assert_eq!(block, lies);
        }
        assert_eq!(
            block(&mut [9, 1, 2], PADDED),
            None,
            "more padding than there is"
        );
    }

    #[tokio::test]
    async fn a_frame_that_was_cut_off_is_seen_cut_off() {
        let sent = connection("a|b");
        let cut = &sent[..sent.len() - 4];
        assert_eq!(read(cut, 16).await.len(), cut.len());
    }
}

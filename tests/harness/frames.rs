//! A gateway that speaks HTTP/2 by the frame, so that it can say what a well-made client never would.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Types and flags of frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection.
pub struct Frames(TcpStream);

/// What it hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// That a stream is over.
    Reset,
    /// That its ping arrived, and all before it.
    Pong,
    /// That the connection is over.
    GoAway,
}

impl Frames {
    pub async fn connect(to: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(to).await.expect("connected");
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        stream.write_all(preface).await.expect("written");
        let mut frames = Self(stream);
        frames.say(SETTINGS, 0, 0, &[]).await;
        frames
    }

    /// A call of ext_proc.
    pub async fn call(&mut self, stream: u32) {
        let path = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
        // POST and http by their indexes, then names by index or as text (RFC 7541, appendix A and section 6.2.2).
        let block = [
            &[0x83, 0x86, 0x04][..],
            &text(path),
            &[0x0f, 0x10],
            &text("application/grpc"),
            &[0],
            &text("te"),
            &text("trailers"),
        ]
        .concat();
        self.say(HEADERS, END_HEADERS, stream, &block).await;
    }

    pub async fn data(&mut self, stream: u32, data: &[u8]) {
        self.say(DATA, 0, stream, data).await;
    }

    pub async fn reset(&mut self, stream: u32) {
        self.say(RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await;
    }

    pub async fn ping(&mut self) {
        self.say(PING, 0, 0, &[0; 8]).await;
    }

    /// The next word that matters.
    pub async fn hear(&mut self) -> Heard {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.expect("a frame");
            let [a, b, c, kind, flags, ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload).await.expect("all of it");
            match kind {
                RST_STREAM => return Heard::Reset,
                PING if flags & ACK != 0 => return Heard::Pong,
                GOAWAY => return Heard::GoAway,
                SETTINGS if flags & ACK == 0 => self.say(SETTINGS, ACK, 0, &[]).await,
                PING => self.say(PING, ACK, 0, &payload).await,
                _ => {}
            }
        }
    }

    async fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.0.write_all(&frame).await.expect("written");
    }
}

/// A short string as HPACK has it without Huffman's code.
fn text(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("short");
    [&[length][..], text.as_bytes()].concat()
}

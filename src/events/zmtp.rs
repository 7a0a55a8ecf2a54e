//! One ZeroMQ connection as vLLM's libzmq speaks it: ZMTP 3 with the NULL mechanism
//! (RFC 23 and 37), the connecting side only, as a SUB or a DEALER.
//!
//! Ours and not a crate's, because a limit on what a peer can make us allocate, and a heartbeat
//! that notices a dead one, belong into the codec. ARCHITECTURE.md has the comparison.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

/// Bytes asked of the kernel at a time. Frames below this size are copied out, so that a small
/// message waiting in a queue never keeps a whole read buffer alive.
const READ_BYTES: usize = 64 * 1024;
/// Most frames of one message: vLLM sends 3, or 4 in a replay; more is another protocol.
const FRAMES_MAX: usize = 16;
/// Longest context of a heartbeat (RFC 37).
const PING_CONTEXT_BYTES_MAX: usize = 16;
/// Opens every connection: signature, version 3.1, mechanism, as-server, filler.
const GREETING_BYTES: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Why a peer could not be talked to, or no longer can be.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The operating system's word.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// No connection and handshake in time.
    #[error("no answer within {0:?}: is the port right, and is it reachable from here?")]
    NoAnswer(Duration),
    /// The connection stands and nothing comes, not even an answer to our heartbeat.
    #[error("not even a heartbeat within {0:?}")]
    Silent(Duration),
    /// Its first bytes are not ZeroMQ's.
    #[error("not a ZeroMQ socket: it greets with {0:?}")]
    NotZmq(String),
    /// ZeroMQ of a kind that we do not speak.
    #[error("ZMTP {major}.{minor} with mechanism {mechanism:?}; only 3.x with NULL is spoken here")]
    Unsupported {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
        /// `NULL`, `PLAIN` or `CURVE`.
        mechanism: String,
    },
    /// A working ZeroMQ socket of the wrong type.
    #[error("a {found} socket instead of a {wanted}: are event and replay address swapped?")]
    WrongSocket {
        /// What it calls itself.
        found: String,
        /// What we need.
        wanted: &'static str,
    },
    /// It refused us by an ERROR command.
    #[error("refused by the peer: {0}")]
    Refused(String),
    /// A message longer than we are ready to hold.
    #[error("a message of at least {bytes} bytes; the limit is {limit_bytes}")]
    TooLarge {
        /// Announced so far.
        bytes: u64,
        /// What we take.
        limit_bytes: usize,
    },
    /// Bytes that are not ZMTP.
    #[error("not ZMTP: {0}")]
    Malformed(&'static str),
}

/// An address that nothing can be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is no address to connect to: {reason}")]
pub struct AddressError {
    /// As given.
    pub address: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Where a ZeroMQ socket is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `tcp://host:port`. A name is resolved anew for each connection, so that it may move.
    Tcp {
        /// A name, an IPv4 or an IPv6 address (without brackets).
        host: String,
        /// Its port.
        port: u16,
    },
    /// `ipc://path`: a Unix socket.
    Ipc(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, AddressError> {
        parse(address).map_err(|reason| AddressError {
            address: address.into(),
            reason,
        })
    }
}

fn parse(address: &str) -> Result<Address, &'static str> {
    if let Some(path) = address.strip_prefix("ipc://") {
        return Ok(Address::Ipc(path.into()));
    }
    let rest = address
        .strip_prefix("tcp://")
        .ok_or("write tcp://host:port or ipc://path")?;
    let (host, port) = rest.rsplit_once(':').ok_or("the port is missing")?;
    let port = match port.parse() {
        Ok(0) | Err(_) => return Err("the port must be a number from 1 to 65535"),
        Ok(port) => port,
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = match bracketed {
        Some(host) => host,
        None if host.contains(':') => return Err("put an IPv6 address into brackets"),
        None => host,
    };
    match host {
        "" => Err("the host is missing"),
        "*" | "0.0.0.0" | "::" => {
            Err("that is where a server binds; name the host that it runs on")
        }
        host => Ok(Address::Tcp {
            host: host.into(),
            port,
        }),
    }
}

/// What we are to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Hears a publisher.
    Sub,
    /// Asks a ROUTER.
    Dealer,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Sub => "SUB",
            Self::Dealer => "DEALER",
        }
    }

    /// The types of peer that make sense, the one to name in a complaint first.
    fn peers(self) -> [&'static str; 2] {
        match self {
            Self::Sub => ["PUB", "XPUB"],
            Self::Dealer => ["ROUTER", "REP"],
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for T {}

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

/// A connection past its handshake. Dropping it closes it.
pub struct Connection {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    decoder: Decoder,
    write_max: Duration,
    heard: Instant,
    minor: u8,
}

impl Connection {
    /// Connects and shakes hands within `connect_max`; messages above `message_bytes_max`
    /// will end the connection.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn open(
        address: &Address,
        role: Role,
        connect_max: Duration,
        message_bytes_max: usize,
    ) -> Result<Self, LinkError> {
        let open = async {
            let mut connection = Self {
                stream: dial(address).await?,
                buffer: BytesMut::new(),
                decoder: Decoder::new(message_bytes_max),
                write_max: connect_max,
                heard: Instant::now(),
                minor: 0,
            };
            connection.greet().await?;
            connection.introduce(role).await?;
            Ok(connection)
        };
        timeout(connect_max, open)
            .await
            .unwrap_or(Err(LinkError::NoAnswer(connect_max)))
    }

    /// What the peer sends next. Cancel-safe.
    ///
    /// # Errors
    /// See [`LinkError`]; the connection is of no use afterwards.
    pub async fn next(&mut self) -> Result<Incoming, LinkError> {
        loop {
            if let Some(incoming) = self.decoder.decode(&mut self.buffer)? {
                return Ok(incoming);
            }
            self.fill().await?;
        }
    }

    /// Sends a message of these frames.
    ///
    /// # Errors
    /// [`LinkError::Io`], or [`LinkError::NoAnswer`] where the peer takes nothing any more.
    pub async fn send(&mut self, frames: &[&[u8]]) -> Result<(), LinkError> {
        let mut bytes = BytesMut::new();
        for (index, frame) in frames.iter().enumerate() {
            let more = if index + 1 < frames.len() { MORE } else { 0 };
            put_frame(&mut bytes, more, frame);
        }
        self.write(&bytes).await
    }

    /// Asks for a sign of life; the answer counts in [`Connection::heard`].
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub async fn ping(&mut self) -> Result<(), LinkError> {
        // No time to live: whether we are alive is not the publisher's concern.
        self.command(b"PING", &[0, 0]).await
    }

    /// Answers the peer's heartbeat.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub async fn pong(&mut self, context: &[u8]) -> Result<(), LinkError> {
        self.command(b"PONG", context).await
    }

    /// Whether the peer answers heartbeats: those that speak ZMTP 3.1 do (libzmq since 4.2);
    /// the crate `zeromq` 0.7 speaks 3.0 and hangs up at the sight of one.
    #[must_use]
    pub fn has_heartbeat(&self) -> bool {
        self.minor >= 1
    }

    /// When the last byte came.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.heard
    }

    async fn greet(&mut self) -> Result<(), LinkError> {
        let mut ours = [0; GREETING_BYTES];
        ours[0] = 0xff;
        ours[9] = 0x7f;
        ours[10..12].copy_from_slice(&[3, 1]);
        ours[12..16].copy_from_slice(b"NULL");
        self.write(&ours).await?;
        // A stranger is known by its first ten bytes and may never send 64.
        while self.buffer.len() < GREETING_BYTES {
            check_signature(&self.buffer)?;
            self.fill().await?;
        }
        check_signature(&self.buffer)?;
        let theirs = self.buffer.split_to(GREETING_BYTES);
        let mechanism = theirs[12..32].split(|byte| *byte == 0).next();
        let mechanism = mechanism.unwrap_or_default();
        self.minor = theirs[11];
        if theirs[10] < 3 || mechanism != b"NULL" {
            return Err(LinkError::Unsupported {
                major: theirs[10],
                minor: theirs[11],
                mechanism: String::from_utf8_lossy(mechanism).into(),
            });
        }
        Ok(())
    }

    async fn introduce(&mut self, role: Role) -> Result<(), LinkError> {
        let mut properties = BytesMut::new();
        for (name, value) in [("Socket-Type", role.name()), ("Identity", "")] {
            put_short(&mut properties, name.as_bytes());
            properties.put_u32(u32::try_from(value.len()).expect("one of the names above"));
            properties.put_slice(value.as_bytes());
        }
        self.command(b"READY", &properties).await?;
        let Incoming::Command(mut body) = self.next().await? else {
            return Err(LinkError::Malformed("no READY after the greeting"));
        };
        match take_short(&mut body)?.as_ref() {
            b"READY" => check_peer(role, body),
            b"ERROR" => {
                let reason = take_short(&mut body)?;
                Err(LinkError::Refused(String::from_utf8_lossy(&reason).into()))
            }
            _ => Err(LinkError::Malformed("neither READY nor ERROR")),
        }
    }

    async fn command(&mut self, name: &[u8], rest: &[u8]) -> Result<(), LinkError> {
        let mut body = BytesMut::new();
        put_short(&mut body, name);
        body.put_slice(rest);
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, COMMAND, &body);
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        timeout(self.write_max, self.stream.write_all(bytes))
            .await
            .map_err(|_| LinkError::NoAnswer(self.write_max))?
            .map_err(LinkError::Io)
    }

    async fn fill(&mut self) -> Result<(), LinkError> {
        self.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(LinkError::Closed),
            _ => {
                self.heard = Instant::now();
                Ok(())
            }
        }
    }
}

async fn dial(address: &Address) -> Result<Box<dyn Stream>, LinkError> {
    match address {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Address::Ipc(path) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}

/// Ten bytes: ff, eight that libzmq uses to fool ZMTP 1, 7f. As far as they have come.
fn check_signature(greeting: &[u8]) -> Result<(), LinkError> {
    let wrong = |at: usize, byte: u8| greeting.get(at).is_some_and(|found| *found != byte);
    if wrong(0, 0xff) || wrong(9, 0x7f) {
        let start = &greeting[..greeting.len().min(GREETING_BYTES)];
        return Err(LinkError::NotZmq(String::from_utf8_lossy(start).into()));
    }
    Ok(())
}

fn check_peer(role: Role, mut properties: Bytes) -> Result<(), LinkError> {
    while properties.has_remaining() {
        let name = take_short(&mut properties)?;
        let bytes = properties
            .try_get_u32()
            .map_err(|_| LinkError::Malformed("a property without a value"))?;
        let bytes = bytes as usize;
        if properties.len() < bytes {
            return Err(LinkError::Malformed("a property longer than its command"));
        }
        let value = properties.split_to(bytes);
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            let found = String::from_utf8_lossy(&value);
            return match role.peers() {
                peers if peers.contains(&&*found) => Ok(()),
                [wanted, _] => Err(LinkError::WrongSocket {
                    found: found.into(),
                    wanted,
                }),
            };
        }
    }
    Err(LinkError::Malformed("READY without a Socket-Type"))
}

fn put_short(bytes: &mut BytesMut, text: &[u8]) {
    bytes.put_u8(u8::try_from(text.len()).expect("a name of ours, below 256 bytes"));
    bytes.put_slice(text);
}

fn take_short(bytes: &mut Bytes) -> Result<Bytes, LinkError> {
    match bytes.try_get_u8() {
        Ok(length) if bytes.len() >= usize::from(length) => Ok(bytes.split_to(usize::from(length))),
        _ => Err(LinkError::Malformed("a name longer than its command")),
    }
}

fn put_frame(bytes: &mut BytesMut, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(length) => bytes.put_slice(&[flags, length]),
        Err(_) => {
            bytes.put_u8(flags | LONG);
            bytes.put_u64(body.len() as u64);
        }
    }
    bytes.put_slice(body);
}

/// Bytes → messages and commands; plain, so that hostile bytes can be tried without a socket.
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

    #[test]
    fn addresses_are_read_or_explained() {
        let tcp = |host: &str, port| Address::Tcp {
            host: host.into(),
            port,
        };
        assert_eq!("tcp://pod-1:5557".parse(), Ok(tcp("pod-1", 5557)));
        assert_eq!("tcp://[::1]:5557".parse(), Ok(tcp("::1", 5557)));
        assert_eq!("ipc:///run/kv".parse(), Ok(Address::Ipc("/run/kv".into())));
        for wrong in [
            "tcp://*:5557",
            "tcp://::1:5557",
            "pod:5557",
            "tcp://pod",
            "tcp://pod:0",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}

//! One ZeroMQ connection as vLLM's libzmq speaks it: ZMTP 3 with the NULL mechanism
//! (RFC 23 and 37), as a SUB or a DEALER, on connections that we make or that come to us.
//!
//! Ours and not a crate's, because a limit on what a peer can make us allocate, and a heartbeat
//! that notices a dead one, belong into the codec. ARCHITECTURE.md has the comparison.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use frame::{COMMAND, Decoder, MORE, READ_BYTES, put_frame};

pub use address::{Address, AddressError};
pub use frame::Incoming;

mod address;
pub mod frame;

/// Opens every connection: signature, version 3.1, mechanism, as-server, filler.
const GREETING_BYTES: usize = 64;

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
    /// One connection is one publisher, which has one topic.
    #[error(
        "topics of two endpoints came over one connection: let each publisher connect by itself"
    )]
    TwoTopics,
    /// Bytes that are not ZMTP.
    #[error("not ZMTP: {0}")]
    Malformed(&'static str),
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
            let stream = dial(address).await?;
            Self::shake_hands(stream, role, connect_max, message_bytes_max).await
        };
        timeout(connect_max, open)
            .await
            .unwrap_or(Err(LinkError::NoAnswer(connect_max)))
    }

    /// The same for a peer that connected to us: with NULL both sides say the same.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn accept(
        stream: TcpStream,
        role: Role,
        connect_max: Duration,
        message_bytes_max: usize,
    ) -> Result<Self, LinkError> {
        stream.set_nodelay(true)?;
        let stream = Box::new(stream);
        let accept = Self::shake_hands(stream, role, connect_max, message_bytes_max);
        timeout(connect_max, accept)
            .await
            .unwrap_or(Err(LinkError::NoAnswer(connect_max)))
    }

    async fn shake_hands(
        stream: Box<dyn Stream>,
        role: Role,
        write_max: Duration,
        message_bytes_max: usize,
    ) -> Result<Self, LinkError> {
        let mut connection = Self {
            stream,
            buffer: BytesMut::new(),
            decoder: Decoder::new(message_bytes_max),
            write_max,
            heard: Instant::now(),
            minor: 0,
        };
        connection.greet().await?;
        connection.introduce(role).await?;
        Ok(connection)
    }

    /// Messages above this will end the connection from now on.
    pub fn set_message_bytes_max(&mut self, message_bytes_max: usize) {
        self.decoder.set_message_bytes_max(message_bytes_max);
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

fn take_short(bytes: &mut Bytes) -> Result<Bytes, LinkError> {
    match bytes.try_get_u8() {
        Ok(length) if bytes.len() >= usize::from(length) => Ok(bytes.split_to(usize::from(length))),
        _ => Err(LinkError::Malformed("a name longer than its command")),
    }
}

fn put_short(bytes: &mut BytesMut, text: &[u8]) {
    bytes.put_u8(u8::try_from(text.len()).expect("a name of ours, below 256 bytes"));
    bytes.put_slice(text);
}

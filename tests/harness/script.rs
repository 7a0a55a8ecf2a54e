//! A pod that says bytes: what no HTTP library would say, and what it heard to the byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::HeaderMap;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// An HTTP/1.1 answer: status line, header lines, chunks, trailers.
pub type Says = (String, Vec<String>, Vec<String>, BTreeMap<String, String>);

/// A request as it came, with its trailers among the headers.
#[derive(Debug)]
pub struct Seen {
    pub headers: HeaderMap,
    pub body: String,
}

/// Answers every request with what it is told to say; ended when dropped.
pub struct Script {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    says: Option<Says>,
    seen: Option<Seen>,
}

impl Script {
    /// Starts on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let state = shared.clone();
                // Envoy hangs up when it likes.
                tokio::spawn(async move { serve(stream, &state).await.ok() });
            }
        });
        Self {
            address,
            state,
            server,
        }
    }

    /// What it says from now on.
    pub fn says(&self, says: Option<Says>) {
        self.state.lock().says = says;
    }

    /// The request that it got last; asked for once.
    pub fn seen(&self) -> Option<Seen> {
        self.state.lock().seen.take()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let head = lines(&mut stream).await?;
        if head.is_empty() {
            return Ok(());
        }
        let mut headers = named(&head[1..]);
        let number = |name: &str| headers.get(name)?.to_str().ok()?.parse().ok();
        let body = if let Some(length) = number("content-length") {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            body
        } else if headers.contains_key("transfer-encoding") {
            let body = chunks(&mut stream).await?;
            headers.extend(named(&lines(&mut stream).await?));
            body
        } else {
            Vec::new()
        };
        let body = String::from_utf8(body).expect("text");
        let says = {
            let mut state = state.lock();
            state.seen = Some(Seen { headers, body });
            state.says.clone()
        };
        let Some(says) = says else { return Ok(()) };
        stream.write_all(answer(&says).as_bytes()).await?;
    }
}

fn answer((status, headers, chunks, trailers): &Says) -> String {
    let mut text = format!("HTTP/1.1 {status}\r\n");
    for line in headers {
        text.push_str(&format!("{line}\r\n"));
    }
    let sized = headers
        .iter()
        .any(|line| line.starts_with("content-length"));
    // What follows an upgrade is no body.
    if sized || status.starts_with("101") {
        text.push_str("\r\n");
        text.push_str(&chunks.concat());
        return text;
    }
    text.push_str("transfer-encoding: chunked\r\n\r\n");
    for chunk in chunks {
        text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    text.push_str("0\r\n");
    for (name, value) in trailers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text
}

/// The lines up to an empty one.
async fn lines(stream: &mut BufReader<TcpStream>) -> std::io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line.to_owned());
    }
}

fn named(lines: &[String]) -> HeaderMap {
    let pair = |line: &String| {
        let (name, value) = line.split_once(':').expect("a header");
        let name: hyper::header::HeaderName = name.parse().expect("a name");
        (name, value.trim().parse().expect("a value"))
    };
    lines.iter().map(pair).collect()
}

async fn chunks(stream: &mut BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let length = usize::from_str_radix(line.trim_end(), 16).expect("a length");
        if length == 0 {
            return Ok(body);
        }
        let mut chunk = vec![0; length + 2];
        stream.read_exact(&mut chunk).await?;
        body.extend_from_slice(&chunk[..length]);
    }
}

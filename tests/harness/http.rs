//! A client that can do what the tests need: chunks, trailers, hanging up.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::soon;

/// A request's body.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
    pub trailers: hyper::HeaderMap,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// A header's text, empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("text"))
    }
}

/// A body in one piece.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// A request with a body, to a model server's path.
pub fn post(path: &str) -> hyper::http::request::Builder {
    Request::post(path)
        .header("host", "model")
        .header("content-type", "application/json")
}

/// The answer to a plain GET.
pub async fn get(to: SocketAddr, path: &str) -> Answer {
    try_get(to, path).await.expect("an answer")
}

/// The same where nobody may be listening.
pub async fn try_get(to: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    // An admin port's pages are for who asks by an address.
    let request = Request::get(path)
        .header("host", to.to_string())
        .body(full(""))?;
    let (response, connection) = open(to, request).await?;
    let answer = whole(response).await;
    connection.abort();
    answer
}

/// The answer to a request, over HTTP/1.
pub async fn send(to: SocketAddr, request: Request<Body>) -> Answer {
    let exchange = async {
        let (response, connection) = open(to, request).await?;
        let answer = whole(response).await;
        connection.abort();
        answer
    };
    soon("an answer", exchange).await.expect("an answer")
}

/// The same over HTTP/2, which can carry request trailers.
pub async fn send_h2(to: SocketAddr, request: Request<Body>) -> Answer {
    let exchange = async {
        let stream = TokioIo::new(TcpStream::connect(to).await?);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        let connection = tokio::spawn(connection);
        let answer = whole(sender.send_request(request).await?).await;
        connection.abort();
        answer
    };
    soon("an answer", exchange).await.expect("an answer")
}

/// A response whose body is yet to be read, and its connection: aborting that hangs up.
pub async fn open(
    to: SocketAddr,
    request: Request<Body>,
) -> anyhow::Result<(Response<Incoming>, JoinHandle<()>)> {
    let stream = TokioIo::new(TcpStream::connect(to).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let connection = tokio::spawn(async move {
        // Its failure is the request's, which is seen there.
        let _ = connection.await;
    });
    Ok((sender.send_request(request).await?, connection))
}

/// A response with its whole body.
pub async fn whole(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await?;
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        trailers: body.trailers().cloned().unwrap_or_default(),
        body: body.to_bytes(),
    })
}

/// The next bytes of a body.
pub async fn next(body: &mut Incoming) -> Bytes {
    loop {
        let frame = soon("the next frame", body.frame())
            .await
            .expect("not the end");
        if let Ok(data) = frame.expect("a whole frame").into_data() {
            return data;
        }
    }
}

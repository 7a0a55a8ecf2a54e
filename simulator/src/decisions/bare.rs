//! A picker that reads nothing and knows nothing: every request goes to the next pod. What it adds to one is what gRPC,
//! TLS and this machine add, whoever picks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Ready, ready};
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use kvscout::ext_proc::reply::{self, Pick, Side};
use kvscout::proto::codec::Codec;
use kvscout::proto::ext_proc::processing_request::Request as Said;
use kvscout::proto::ext_proc::{HttpBody, ProcessingRequest, ProcessingResponse};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::Grpc;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::certificate::Certificate;
use crate::stack::elsewhere::Elsewhere;

/// One that runs, on threads of its own, until it is dropped.
#[derive(Debug)]
pub struct Bare {
    /// Where it is asked.
    pub address: SocketAddr,
    _threads: Elsewhere,
}

impl Bare {
    /// Starts one.
    ///
    /// # Errors
    /// No port, or a certificate that cannot be read.
    pub async fn start(certificate: &Certificate, pods: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let tls = ServerTlsConfig::new().identity(certificate.identity()?);
        // Room for a body of any size, as kvscout has it: none waits for a window.
        let server = Server::builder()
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(16 << 20)
            .tls_config(tls)?;
        let next = Next {
            pods: pods.into(),
            picked: Arc::default(),
        };
        let threads = Elsewhere::new(false)?;
        let begin = async move {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            tokio::spawn(serve(server, next, listener));
            Ok(address)
        };
        Ok(Self {
            address: threads.run(begin).await?,
            _threads: threads,
        })
    }
}

async fn serve(server: Server, next: Next, listener: TcpListener) {
    let (connections, never) = (TcpListenerStream::new(listener), std::future::pending());
    let served = server.serve_with_incoming_shutdown(next, connections, never);
    if let Err(error) = served.await {
        tracing::warn!(%error, "the picker that reads nothing has ended");
    }
}

/// Picks the next pod.
#[derive(Debug, Clone)]
struct Next {
    pods: Arc<[SocketAddr]>,
    picked: Arc<AtomicUsize>,
}

impl Next {
    fn pick(&self) -> Pick {
        let at = self.picked.fetch_add(1, Ordering::Relaxed);
        Pick {
            address: self.pods[at % self.pods.len()],
            fallbacks: Vec::new(),
            rank: None,
        }
    }
}

/// As HTTP asks.
impl Service<http::Request<Body>> for Next {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let next = self.clone();
        async move {
            let codec = Codec::<ProcessingResponse, ProcessingRequest>::default();
            Ok(Grpc::new(codec).streaming(next, request).await)
        }
        .boxed()
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

/// As gRPC asks.
impl Service<Request<Streaming<ProcessingRequest>>> for Next {
    type Response = Response<Replies>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let (pick, mut held) = (self.pick(), Vec::new());
        let replies = request.into_inner().flat_map(move |said| {
            let replies = said.map(|said| replies(&pick, &mut held, said));
            match replies {
                Ok(replies) => stream::iter(replies).map(Ok).left_stream(),
                Err(status) => stream::iter([Err(status)]).right_stream(),
            }
        });
        ready(Ok(Response::new(replies.boxed())))
    }
}

/// A request's body is held until its end, as by a picker that reads it, and then passes after the pick.
fn replies(
    pick: &Pick,
    held: &mut Vec<HttpBody>,
    said: ProcessingRequest,
) -> Vec<ProcessingResponse> {
    let passed = |side, chunk: HttpBody| reply::body_chunks(side, chunk.body, chunk.end_of_stream);
    match said.request {
        Some(Said::RequestBody(chunk)) => {
            let ends = chunk.end_of_stream;
            held.push(chunk);
            if !ends {
                return Vec::new();
            }
            let chunks = std::mem::take(held).into_iter();
            let chunks = chunks.flat_map(|chunk| passed(Side::Request, chunk));
            std::iter::once(reply::headers_with_pick(pick, None))
                .chain(chunks)
                .collect()
        }
        Some(Said::ResponseHeaders(_)) => vec![reply::headers(Side::Response, &[], &[])],
        Some(Said::ResponseBody(chunk)) => passed(Side::Response, chunk).collect(),
        _ => Vec::new(),
    }
}

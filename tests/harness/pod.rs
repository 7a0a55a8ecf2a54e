//! Model servers that do what the test says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::StreamExt;
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A server that says who it is; ended when dropped.
pub struct Pod {
    pub address: SocketAddr,
    /// A request arrived at `/stream` or `/hold`.
    pub arrived: Arc<Notify>,
    /// Lets `/stream` say its second chunk.
    pub release: Arc<Notify>,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    name: String,
    arrived: Arc<Notify>,
    release: Arc<Notify>,
}

/// The chunks that `/stream` says. The usage is cut between the two.
pub const STREAM: [&str; 2] = [
    "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"usage\":{\"prompt_tok",
    "ens\":70,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":64}}}\n\n",
];

impl Pod {
    /// Starts on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Shared {
            name: address.to_string(),
            arrived: Arc::default(),
            release: Arc::default(),
        };
        let (arrived, release) = (shared.arrived.clone(), shared.release.clone());
        let app = Router::new()
            .route("/stream", post(stream))
            .route("/hold", post(hold))
            .fallback(echo)
            .with_state(shared);
        let server = tokio::spawn(async move {
            axum::serve(listener, app).await.expect("it serves");
        });
        Self {
            address,
            arrived,
            release,
            server,
        }
    }

    /// Several, and their addresses.
    pub async fn several(count: usize) -> (Vec<Self>, Vec<SocketAddr>) {
        let mut pods = Vec::new();
        for _ in 0..count {
            pods.push(Self::start().await);
        }
        let addresses = pods.iter().map(|pod| pod.address).collect();
        (pods, addresses)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The request's body, from whom, and the trace that it came with.
async fn echo(State(shared): State<Shared>, request: Request) -> Response {
    let parent = request.headers().get("traceparent").cloned();
    let parent = parent.map(|parent| [("x-traceparent", parent)]);
    let body = request.into_body().collect().await;
    let bytes: Bytes = body.expect("a whole body").to_bytes();
    ([("x-pod", shared.name)], parent, bytes).into_response()
}

async fn stream(State(shared): State<Shared>, request: Request) -> Response {
    let body = request.into_body().collect().await;
    body.expect("a whole body");
    shared.arrived.notify_one();
    let chunks = futures::stream::iter(STREAM)
        .enumerate()
        .then(move |(i, chunk)| {
            let release = shared.release.clone();
            async move {
                if i > 0 {
                    release.notified().await;
                }
                Ok::<_, Infallible>(chunk)
            }
        });
    (
        [("content-type", "text/event-stream")],
        Body::from_stream(chunks),
    )
        .into_response()
}

/// Never answers.
async fn hold(State(shared): State<Shared>) -> Response {
    shared.arrived.notify_one();
    std::future::pending().await
}

//! At which name a stream was asked for: its `:authority`, and the pool that its metadata names.
//!
//! Envoy says the name of its cluster there unless it is told otherwise, and Istio's names have characters that
//! no authority may have (`outbound|9002||kvscout.llm.svc.cluster.local`). The HTTP/2 library refuses such a
//! stream before anybody hears of it, so the bytes are mended on their way in ([`mend`], [`huffman`]).

use std::task::{Context, Poll};

use tonic::Request;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use crate::scheduler::PoolHint;

mod huffman;
pub mod mend;

/// The metadata by which an operator of Envoy says which pool a stream is for: `name` or `namespace/name`.
pub const POOL: &str = "x-kvscout-pool";

/// Lets a gRPC service know the authority, which tonic does not show.
#[derive(Debug, Clone)]
pub struct Shown<S>(pub S);

#[derive(Debug, Clone)]
struct Authority(String);

impl<S, B> Service<http::Request<B>> for Shown<S>
where
    S: Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let authority = request
            .uri()
            .authority()
            .map(|name| Authority(name.as_str().to_owned()));
        if let Some(authority) = authority {
            request.extensions_mut().insert(authority);
        }
        self.0.call(request)
    }
}

impl<S: NamedService> NamedService for Shown<S> {
    const NAME: &'static str = S::NAME;
}

/// What a stream says of the pool that it is for.
pub fn pool_hint<T>(request: &Request<T>) -> PoolHint {
    let named = request.metadata().get(POOL);
    let named = named.and_then(|name| name.to_str().ok());
    let authority = request.extensions().get::<Authority>();
    PoolHint {
        pool: named.map(|name| name.trim().to_owned()),
        authority: authority.map(|Authority(name)| name.clone()),
    }
}

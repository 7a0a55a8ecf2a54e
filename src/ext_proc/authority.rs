//! At which name a stream was asked for: its `:authority`, and the pool that its metadata names.
//!
//! Envoy says the name of its cluster there unless it is told otherwise, and Istio's names have characters that
//! no authority may have (`outbound|9002||kvscout.llm.svc.cluster.local`). The HTTP/2 library refuses such a
//! stream before anybody hears of it, so the bytes are mended on their way in ([`mend`], [`huffman`]).

use tonic::codegen::http::request::Parts;

use crate::scheduler::PoolHint;

mod huffman;
pub mod mend;

/// The metadata by which an operator of Envoy says which pool a stream is for: `name` or `namespace/name`.
pub const POOL: &str = "x-kvscout-pool";

/// What a stream says of the pool that it is for.
pub fn pool_hint(head: &Parts) -> PoolHint {
    let named = head.headers.get(POOL);
    let named = named.and_then(|name| name.to_str().ok());
    PoolHint {
        pool: named.map(|name| name.trim().to_owned()),
        authority: head.uri.authority().map(|name| name.as_str().to_owned()),
    }
}

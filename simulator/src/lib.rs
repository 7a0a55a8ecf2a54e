//! vLLM made of numbers: an engine whose cache follows vLLM's rules block by block, behind
//! vLLM's HTTP surface and event sockets. No model, no GPU; time is three rates.

pub mod engine;
pub mod timing;

//! vLLM made of numbers: an engine whose cache follows vLLM's rules block by block, behind
//! vLLM's HTTP surface and event sockets. No model, no GPU; time is three rates.
//!
//! ```text
//! body → tokens → engine ⇄ step, step, step → words
//!                   └→ block events → PUB, replay
//! ```
//!
//! Around it, what shows kvscout at work: a [`load`] of conversations for any OpenAI endpoint,
//! the [`stack`] of servers, kvscout and Envoy, and the [`demo`] that sends the one through the
//! other. And [`compare`], which needs none of these: policies beside each other in virtual time.
//!
//! Modules stand in the order that data flows, and use only what is declared above them.

pub mod dice;
pub mod text;
pub mod engine;
pub mod timing;
pub mod events;
pub mod runner;
pub mod process;
mod http;
pub mod server;
mod table;
mod plot;
pub mod outgoing;
pub mod load;
pub mod stack;
pub mod qa;
pub mod demo;
pub mod decisions;
pub mod soak;
pub mod compare;
pub mod cli;

pub use server::{Addresses, Bound, Config, Server};

//! kvscout picks the model server that should get a request, from what every server's
//! KV cache holds right now. Two sentences are the whole program:
//!
//! ```text
//! request → prompt → tokens → blocks → overlap → choice → reply
//! event   → decoded → ordered → index
//! ```
//!
//! Modules stand in the order that data flows, and use only what is declared above them
//! (`tests/tidy.rs` checks it). `ARCHITECTURE.md` is the tour.
//!
//! # Vocabulary
//!
//! | word | meaning |
//! |---|---|
//! | target | a model that serves another one's requests, or a share of them |
//! | class | how important a request is: its criticality and priority |
//! | endpoint | an ip:port that serves the model; a data-parallel rank is one |
//! | fleet | the endpoints as of now, an immutable snapshot |
//! | prompt | what a request asks the model to read, before tokenization |
//! | block | `block_size` consecutive tokens whose KV a server keeps or drops as one |
//! | chain, key | the blocks of a prompt in order; a key names a block *and all before it* |
//! | holder | an endpoint that holds a block |
//! | overlap | how many leading blocks of a chain an endpoint holds |
//! | replica | one of several pickers of the same fleet; to one of them the others are peers |
//! | watch | waits for the event that shows whether a placed prompt was read as its server reads it |
//! | basis | how much of a choice rests on knowledge: `Overlap`, `Partial`, `LoadOnly` |
//! | trust | how complete our picture of an endpoint is: `Live`, `Learning`, `Doubtful`, `Silent` |
//! | exchange | one request's conversation with Envoy |
//!
//! # Invariants
//!
//! * Predicted cached tokens equal the `cached_tokens` that vLLM reports, to the token, for
//!   every endpoint that claims `Live`.
//! * No request is refused that some endpoint could serve, but what rules let be shed.
//! * Everything has a limit; every limit is in [`config`].

pub mod config;
pub mod log;
pub mod metrics;
pub mod readiness;
pub mod gather;
pub mod door;
pub mod proto;
pub mod prompt;
pub mod tokens;
pub mod models;
pub mod ask;
pub mod blocks;
pub mod fleet;
pub mod routes;
pub mod index;
pub mod parity;
pub mod choice;
pub mod events;
pub mod kubernetes;
pub mod discovery;
pub mod bridge;
pub mod audit;
pub mod decisions;
pub mod spans;
pub mod replicas;
pub mod admission;
pub mod scheduler;
pub mod ext_proc;
pub mod admin;
pub mod app;
pub mod tools;
pub mod cli;

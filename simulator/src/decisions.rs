//! `kvscout-sim bench-decision`: what a decision costs, and what it adds to a request.
//!
//! ```text
//! conversation → body → ext_proc stream, as Envoy's → pick, body again → CPU, latency, memory
//!                     → the same at a picker that reads nothing ────────→ latency
//!                     → Envoy plain, Envoy routed ──────────────────────→ latency added
//! ```

pub mod ask;
mod bare;
pub mod bodies;
pub mod certificate;
pub mod command;
mod measure;
mod overload;
mod perf;
pub mod process;
mod stream;

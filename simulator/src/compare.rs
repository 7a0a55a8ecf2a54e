//! `kvscout-sim compare`: routing policies beside each other, in virtual time.
//!
//! ```text
//! workload → plan → world: router (policy, index) → pods (the engine, step by step) → record
//!                              ▲ events, late or lost ──────┘
//! record → summary → table, JSON, page, picture
//! ```
//!
//! Index and choice are the production ones, and the engine is the one that `serve` serves. There
//! is no clock and no task: the same seed gives the same bytes.

pub mod clock;
pub mod plan;
pub mod workloads;
pub mod churn;
pub mod setting;
pub mod pods;
pub mod policies;
pub mod router;
pub mod record;
pub mod world;
pub mod summary;
pub mod scenario;
mod text;
mod page;
mod picture;
mod suite;
pub mod command;

#[cfg(test)]
mod tests;

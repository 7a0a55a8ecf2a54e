//! production-stack's multi-round QA benchmark: its workload, flags, table and summary lines,
//! against any OpenAI endpoint.
//!
//! ```text
//! clock → schedule → session's prompt → request → row → summary, CSV
//!                        ↑────── answer ─────┘
//! ```
//!
//! [`mission`] sends it through both of Envoy's listeners, and holds the means beside those that
//! production-stack published.

mod clock;
pub mod schedule;
mod sharegpt;
pub mod prompt;
pub mod rows;
mod csv;
pub mod summary;
mod progress;
pub mod run;
pub mod command;
pub mod mission;

//! production-stack's multi-round QA benchmark: its workload, flags, table and summary lines,
//! against any OpenAI endpoint.
//!
//! ```text
//! clock → schedule → session's prompt → request → row → summary, CSV
//!                        ↑────── answer ─────┘
//! ```

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

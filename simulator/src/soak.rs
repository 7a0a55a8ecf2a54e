//! `kvscout-sim soak`: one picker for an hour at 70 % of what it can do, while pods, adapters, vocabularies
//! and certificates come and go. What it takes must stay what it took.
//!
//! ```text
//! conversations → ext_proc streams, as Envoy's → pick → pod → audit
//! churn ───────→ fleet file, pods, certificate, vocabulary
//! every ten seconds: memory, descriptors, latency, events' lag, predictions → verdict, picture
//! ```

mod asking;
mod audited;
mod churn;
pub mod command;
mod picture;
mod run;
mod sample;
mod verdict;

pub use audited::Restart;
pub use run::{Report, Soak};

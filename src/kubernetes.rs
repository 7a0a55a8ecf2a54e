//! The fleet and its rules as Kubernetes has them: InferencePools, their pods, and what
//! InferenceModels, InferenceObjectives and InferenceModelRewrites say.
//!
//! [`watch`] hears of changes, [`cluster`] is what they add up to, a plain value: which endpoints there
//! are ([`pods`]) and which rules ([`rules`]). Nothing is written to the cluster but, where replicas are
//! to have a leader, its Lease ([`lead`], by the rules of [`election`]).

pub mod resources;
mod objects;
mod pods;
mod rules;
pub mod cluster;
mod election;
mod lead;
pub mod watch;

pub use lead::Candidate;
pub use watch::{KubernetesError, Watcher};

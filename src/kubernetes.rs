//! The fleet and its rules as Kubernetes has them: InferencePools, their pods, and what
//! InferenceModels, InferenceObjectives and InferenceModelRewrites say.
//!
//! [`watch`] hears of changes, [`cluster`] is what they add up to, a plain value: which endpoints there
//! are ([`pods`]) and which rules ([`rules`]). Nothing is written to the cluster.

pub mod resources;
mod objects;
mod pods;
mod rules;
pub mod cluster;
pub mod watch;

pub use watch::{KubernetesError, Watcher};

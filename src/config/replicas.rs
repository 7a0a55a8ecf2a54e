//! What replicas of this picker tell each other, as far as an operator decides it.

use super::yaml::Section;
use super::{Config, EventSourceKind};

/// Whether replicas tell each other what they have in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Share {
    /// Through the cluster that events come from, if they come from one.
    #[default]
    Auto,
    /// Through that of `events.nats`, wherever events come from.
    On,
    /// Not at all.
    Off,
}

pub(super) const SHARES: &[(&str, Share)] = &[
    ("auto", Share::Auto),
    ("on", Share::On),
    ("off", Share::Off),
];

pub(super) fn read(replicas: &mut Section<'_>) -> Share {
    replicas.word("share", SHARES, Share::default())
}

impl Config {
    /// Whether this replica talks to others, through `events.nats`.
    #[must_use]
    pub fn shares(&self) -> bool {
        match self.share {
            Share::Auto => self.events.source == EventSourceKind::Nats,
            Share::On => true,
            Share::Off => false,
        }
    }
}

//! Stores whose parent we never saw, until it appears.

use std::collections::HashMap;

use crate::blocks::{EngineHash, Stored};

/// Tokens that wait per endpoint: 4 MiB. After a gap a server builds on what it stored in it, and
/// stores that again only once it was evicted.
const TOKENS_MAX: usize = 1 << 20;

/// By the parent that they wait for.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    waiting: HashMap<EngineHash, Vec<Stored>>,
    tokens: usize,
}

impl Orphans {
    /// Lets one wait. Where there is no room those before are given up: they stay counted, and
    /// nobody claims them.
    pub(super) fn push(&mut self, parent: EngineHash, stored: Stored) {
        if stored.tokens.len() > TOKENS_MAX {
            return;
        }
        if self.tokens + stored.tokens.len() > TOKENS_MAX {
            self.clear();
        }
        self.tokens += stored.tokens.len();
        self.waiting.entry(parent).or_default().push(stored);
    }

    /// Those that waited for a block.
    pub(super) fn take(&mut self, parent: EngineHash) -> Vec<Stored> {
        let taken = self.waiting.remove(&parent).unwrap_or_default();
        self.tokens -= taken
            .iter()
            .map(|stored| stored.tokens.len())
            .sum::<usize>();
        taken
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.tokens = 0;
    }
}

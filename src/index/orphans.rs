//! Stores whose parent we never saw, until it appears.

use std::collections::HashMap;

use crate::blocks::{EngineHash, ExtraKey, Shape, Stored};

/// Bytes that wait per endpoint. After a gap a server builds on what it stored in it, and stores that
/// again only once it was evicted.
const BYTES_MAX: usize = 8 << 20;

/// What one takes beside its lists.
const EACH_BYTES: usize = 400;

/// By the parent that they wait for, and how they are cut: a hash has another name for each.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    waiting: HashMap<(Shape, EngineHash), Vec<Stored>>,
    bytes: usize,
}

impl Orphans {
    /// Lets one wait. Where there is no room those before are given up: they stay counted, and
    /// nobody claims them.
    pub(super) fn push(&mut self, shape: Shape, parent: EngineHash, stored: Stored) {
        let bytes = bytes_of(&stored);
        if bytes > BYTES_MAX {
            return;
        }
        if self.bytes + bytes > BYTES_MAX {
            self.clear();
        }
        self.bytes += bytes;
        self.waiting
            .entry((shape, parent))
            .or_default()
            .push(stored);
    }

    /// Those that waited for a block.
    pub(super) fn take(&mut self, shape: Shape, parent: EngineHash) -> Vec<Stored> {
        let taken = self.waiting.remove(&(shape, parent)).unwrap_or_default();
        self.bytes -= taken.iter().map(bytes_of).sum::<usize>();
        taken
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }
}

fn bytes_of(stored: &Stored) -> usize {
    let extra = |extra: &ExtraKey| {
        size_of::<ExtraKey>()
            + match extra {
                ExtraKey::Text(text) | ExtraKey::At(text, _) => text.len(),
                ExtraKey::Digest(bytes) => bytes.len(),
            }
    };
    let of_block = |extras: &Vec<ExtraKey>| 24 + extras.iter().map(extra).sum::<usize>();
    let extras = stored.extra_keys.iter().flatten().map(of_block);
    let ahead = stored.lookahead.iter().map(|ids| 24 + 4 * ids.len());
    EACH_BYTES
        + 4 * stored.tokens.len()
        + 8 * stored.hashes.len()
        + stored.adapter.as_ref().map_or(0, String::len)
        + extras.sum::<usize>()
        + ahead.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_an_orphan_carries_counts() {
        let mut orphans = Orphans::default();
        let long = ExtraKey::Text("x".repeat(1 << 20));
        for parent in 0..40 {
            let stored = Stored {
                extra_keys: Some(vec![vec![long.clone()]]),
                ..Stored::plain(Some(EngineHash(parent)), vec![EngineHash(1)], vec![1])
            };
            orphans.push(1.into(), EngineHash(parent), stored);
        }
        assert!(orphans.waiting.len() < 8, "{}", orphans.waiting.len());
        let last = orphans.take(1.into(), EngineHash(39));
        assert_eq!(
            (last.len(), orphans.take(2.into(), EngineHash(38)).len()),
            (1, 0)
        );
        orphans.clear();
        assert_eq!(orphans.bytes, 0);
    }
}

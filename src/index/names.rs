//! Engine hashes → our names, by parent and tokens.

use crate::blocks::{BlockKey, EngineHash, Shape, Stored};
use crate::index::book::{Book, Change};

impl Book {
    /// Tells a block's name to every copy of it that has none, and to the orphans that waited for it.
    pub(super) fn name(
        &mut self,
        at: usize,
        hash: EngineHash,
        key: BlockKey,
        change: &mut dyn FnMut(Change<'_>),
    ) {
        let mut named = vec![(hash, key)];
        while let Some((hash, key)) = named.pop() {
            for other in 0..self.caches.len() {
                if !self.caches[other].names_as(&self.caches[at]) {
                    continue;
                }
                let copies = self.caches[other].copies.get_mut(&hash);
                if let Some(copies) = copies.filter(|copies| copies.key.is_none()) {
                    copies.key = Some(key);
                    self.unnamed -= 1;
                    change(Change::Holds(other as u8, key));
                    if copies.unsure {
                        change(Change::Doubts(other as u8, key));
                    }
                }
            }
            let orphans = match self.caches[at].shape {
                Some(shape) => self.orphans.take(shape, hash),
                None => Vec::new(),
            };
            for orphan in orphans {
                let keys = keys_of(Some(key), &orphan);
                let children = orphan.hashes.iter().zip(keys);
                named.extend(children.filter_map(|(hash, key)| Some((*hash, key?))));
            }
        }
    }

    /// Our name for the block before an event's first; none where it was never seen.
    pub(super) fn parent_of(&self, stored: &Stored, at: usize) -> Option<BlockKey> {
        match stored.parent {
            // A placeholder names no parent either.
            None if stored.tokens.is_empty() => None,
            None => Some(self.root(stored)),
            Some(hash) => self.name_of(hash, at),
        }
    }

    pub(super) fn name_of(&self, hash: EngineHash, at: usize) -> Option<BlockKey> {
        let own = &self.caches[at];
        own.name_of(hash).or_else(|| {
            let alike = self.caches.iter().filter(|cache| cache.names_as(own));
            alike.filter_map(|cache| cache.name_of(hash)).next()
        })
    }

    fn root(&self, stored: &Stored) -> BlockKey {
        match (&stored.adapter, stored.adapter_id) {
            (Some(name), _) => BlockKey::root(Some(name)),
            (None, None) => BlockKey::root(None),
            (None, Some(id)) => {
                let nth = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
                match nth.and_then(|nth| self.adapters.get(nth)) {
                    Some(name) => BlockKey::root(Some(name)),
                    None => BlockKey::root(Some(&format!("lora_id:{id}"))),
                }
            }
        }
    }
}

/// None for a placeholder, and where no block is stored: a recurrent state that stays within one.
pub(super) fn shape_of(stored: &Stored) -> Option<Shape> {
    let lookahead = stored.lookahead.first().map_or(0, Vec::len) as u32;
    (stored.block_size > 0 && !stored.hashes.is_empty()).then_some(Shape {
        block_size: stored.block_size,
        lookahead,
    })
}

/// Whether every block between its first and its last token is stored.
pub(super) fn is_complete(stored: &Stored) -> bool {
    !stored.tokens.is_empty()
        && stored.tokens.len() == stored.hashes.len() * stored.block_size as usize
}

/// Our names for the blocks of an event; none where the parent is unknown, or which of the blocks
/// are stored.
pub(super) fn keys_of(mut parent: Option<BlockKey>, stored: &Stored) -> Vec<Option<BlockKey>> {
    if !is_complete(stored) {
        return vec![None; stored.hashes.len()];
    }
    let extras = stored.extra_keys.as_deref().unwrap_or_default();
    let child = |(position, tokens): (usize, &[_])| {
        let extras = extras.get(position).map_or(&[][..], Vec::as_slice);
        let name = |parent: BlockKey| match stored.lookahead.get(position) {
            Some(ahead) if !ahead.is_empty() => parent.child(&[tokens, ahead].concat(), extras),
            _ => parent.child(tokens, extras),
        };
        parent = parent.map(name);
        parent
    };
    let blocks = stored.tokens.chunks_exact(stored.block_size as usize);
    blocks.enumerate().map(child).collect()
}

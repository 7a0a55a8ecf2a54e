//! How much of a prompt's start each endpoint holds.

use std::cell::OnceCell;

use parking_lot::RwLockReadGuard;

use crate::blocks::{Chain, Chains, Identity, Medium, Shape, TokenId};
use crate::fleet::EndpointId;
use crate::index::Index;
use crate::index::hit::{Held, agreed};
use crate::index::seats::{CacheView, View};
use crate::index::tree::{BlockId, Depths, Holder, Tree};

/// Leading tokens of a prompt that an endpoint holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cached {
    /// In the engine's own cache.
    pub own: u64,
    /// How many of these may be gone: they were last heard of before a gap.
    pub unsure: u64,
    /// After them, what it was given before and computes first.
    pub expected: u64,
    /// After the engine's own, in host memory.
    pub cpu: u64,
    /// After the engine's own, on disk or remote storage; the two may take turns.
    pub storage: u64,
}

impl Cached {
    /// All of them: what the engine need not compute.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.own + self.expected + self.cpu + self.storage
    }

    /// The same where the engine computes the last block of its own hit again, of so many tokens. What follows
    /// from lower media brings that block, too.
    #[must_use]
    pub fn but_for_a_block(self, tokens: u64) -> Self {
        if self.cpu + self.storage > 0 {
            return self;
        }
        let expected = self.expected.saturating_sub(tokens);
        let own = self.own.saturating_sub(tokens - (self.expected - expected));
        Self {
            own,
            unsure: self.unsure.saturating_sub(self.own - own),
            expected,
            ..self
        }
    }
}

impl Index {
    /// How these endpoints cut prompts, each way once.
    #[must_use]
    pub fn shapes_of(&self, endpoints: impl Iterator<Item = EndpointId>) -> Vec<Shape> {
        self.shared.seats.read().shapes_of(endpoints)
    }

    /// How much of a prompt's start each of these endpoints holds, in their order.
    #[must_use]
    pub fn cached(&self, endpoints: &[EndpointId], prompt: &mut Chains<'_>) -> Vec<Cached> {
        // A long prompt is hashed before anything is locked.
        let shapes = self.shapes_of(endpoints.iter().copied());
        for shape in &shapes {
            prompt.of(*shape);
        }
        let seats = self.shared.seats.read();
        let forest = &self.shared.forest;
        let chains = || shapes.iter().filter_map(|shape| prompt.made(*shape));
        let first_keys = chains().filter_map(|chain| chain.keys.first());
        let mut trees: Vec<usize> = first_keys.map(|first| forest.tree_of(*first)).collect();
        trees.sort_unstable();
        trees.dedup();
        let locked = |tree: usize| (tree, self.shared.forest.read(tree));
        let trees: Vec<_> = trees.into_iter().map(locked).collect();
        let mut prefixes = Vec::with_capacity(shapes.len());
        for chain in chains() {
            let of = chain.keys.first().map(|first| forest.tree_of(*first));
            let tree = trees.iter().find(|(number, _)| Some(*number) == of);
            let Some((_, tree)) = tree else { continue };
            let mut depths = Depths::default();
            tree.depths(&chain.keys, &mut depths);
            prefixes.push(Prefix {
                chain,
                tree,
                depths,
                path: OnceCell::new(),
            });
        }
        let found = Found {
            tokens: prompt.tokens(),
            prefixes,
        };
        let of_endpoint = |endpoint: &EndpointId| match seats.by_endpoint.get(endpoint) {
            Some(seat) => found.of(&seat.view),
            None => Cached::default(),
        };
        endpoints.iter().map(of_endpoint).collect()
    }

    /// The same of one endpoint.
    #[must_use]
    pub fn cached_at(
        &self,
        endpoint: EndpointId,
        tokens: &[TokenId],
        identity: &Identity,
    ) -> Cached {
        let mut prompt = Chains::new(tokens, identity);
        let cached = self.cached(&[endpoint], &mut prompt);
        cached.first().copied().unwrap_or_default()
    }

    /// How many leading blocks of a chain each holder has: what [`Self::cached`] is made of, without a
    /// look at who the holders are.
    pub fn depths(&self, chain: &Chain, depths: &mut Depths) {
        depths.clear();
        if let Some(first) = chain.keys.first() {
            let forest = &self.shared.forest;
            let tree = forest.read(forest.tree_of(*first));
            tree.depths(&chain.keys, depths);
        }
    }

    /// Who an endpoint's own cache of full attention is in [`Depths`], until it is cleared; none before
    /// its first store.
    #[must_use]
    pub fn holder(&self, endpoint: EndpointId) -> Option<Holder> {
        self.view(endpoint, |view| view.caches.get(view.main?)?.any)?
    }
}

/// A prompt, cut one way, and the tree that it is in.
struct Prefix<'a> {
    chain: &'a Chain,
    tree: &'a RwLockReadGuard<'a, Tree>,
    /// Of every holder. One that is cut otherwise, or was before, may have some too: they are another
    /// prompt's names.
    depths: Depths,
    /// Its blocks, once somebody asks for single ones.
    path: OnceCell<Vec<BlockId>>,
}

/// What the trees say of a prompt.
struct Found<'a> {
    tokens: u64,
    prefixes: Vec<Prefix<'a>>,
}

impl Prefix<'_> {
    /// Whether a holder has a block, loose or not.
    fn has(&self, holder: Holder, at: u64) -> bool {
        if at < u64::from(self.depths.of(holder)) {
            return true;
        }
        if !self.tree.has_loose(holder) {
            return false;
        }
        let path = self.path.get_or_init(|| self.tree.path(&self.chain.keys));
        let block = path.get(at as usize);
        block.is_some_and(|block| self.tree.is_loose(holder, *block))
    }
}

impl Found<'_> {
    fn of(&self, view: &View) -> Cached {
        if view.shape().is_none() {
            return Cached::default();
        }
        if !view.is_plain() {
            return self.compound(view);
        }
        let CacheView {
            any, sure, shape, ..
        } = view.caches[0];
        let prefix = shape.and_then(|shape| self.prefix(shape));
        let (Some(any), Some(prefix)) = (any, prefix) else {
            return Cached::default();
        };
        let blocks = prefix.depths.of(any);
        let sure = sure.map_or(blocks, |sure| prefix.depths.of(sure));
        let expected = view.expected.map_or(0, |of| prefix.depths.of(of));
        let size = u64::from(prefix.chain.shape.block_size);
        let tokens = |blocks: u32| u64::from(blocks) * size;
        Cached {
            own: tokens(blocks),
            unsure: tokens(blocks - sure.min(blocks)),
            expected: tokens(expected.saturating_sub(blocks)),
            ..Cached::default()
        }
    }

    fn prefix(&self, shape: Shape) -> Option<&Prefix<'_>> {
        self.prefixes
            .iter()
            .find(|prefix| prefix.chain.shape == shape)
    }

    /// The same of an endpoint with several caches.
    fn compound(&self, view: &View) -> Cached {
        let own = self.own(view, false);
        let sure = match view.is_unsure() {
            true => self.own(view, true).min(own),
            false => own,
        };
        let mut cached = Cached {
            own,
            unsure: own - sure,
            ..Cached::default()
        };
        self.below(view, &mut cached);
        cached
    }

    /// Tokens that all groups of the engine's own cache agree on.
    fn own(&self, view: &View, sure: bool) -> u64 {
        let own = view.caches.iter().filter(|cache| cache.counts_for_hits());
        let held = own.map(|cache| {
            let shape = cache.shape?;
            let prefix = self.prefix(shape)?;
            let holder = cache.holder(sure)?;
            Some(Held {
                rule: cache.rule,
                block_size: u64::from(shape.block_size),
                depth: prefix.depths.of(holder).into(),
                has: move |at: u64| prefix.has(holder, at),
            })
        });
        // A group that has not stored any block yet agrees to nothing.
        let held: Option<Vec<_>> = held.collect();
        let tokens_max = self.tokens.saturating_sub(1);
        held.map_or(0, |mut groups| agreed(&mut groups, tokens_max))
    }

    /// What follows in lower media, block by block: an offload connector goes on from where the
    /// engine's own cache ends (`get_num_new_matched_tokens`). Of hybrid models the group of full
    /// attention decides here.
    fn below(&self, view: &View, cached: &mut Cached) {
        let Some(shape) = view.shape() else { return };
        let Some(prefix) = self.prefix(shape) else {
            return;
        };
        let size = u64::from(shape.block_size.max(1));
        let of = |medium: Medium| {
            let of = view
                .caches
                .iter()
                .filter(|cache| cache.place.medium == medium);
            // What may be gone there is not waited for.
            let holders = of.filter_map(|cache| cache.holder(true));
            holders.collect::<Vec<Holder>>()
        };
        let (cpu, storage) = (of(Medium::Cpu), of(Medium::Storage));
        for at in cached.own / size..prefix.chain.keys.len() as u64 {
            let holds = |caches: &[Holder]| {
                let mut caches = caches.iter();
                caches.any(|holder| prefix.has(*holder, at))
            };
            if holds(&cpu) {
                cached.cpu += size;
            } else if holds(&storage) {
                cached.storage += size;
            } else {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_of_a_hit_is_the_one_that_is_computed_again() {
        let cached = |own, unsure, expected, cpu| Cached {
            own,
            unsure,
            expected,
            cpu,
            storage: 0,
        };
        for (held, found) in [
            (cached(64, 0, 0, 0), cached(48, 0, 0, 0)),
            (cached(64, 32, 0, 0), cached(48, 16, 0, 0)),
            (cached(64, 0, 32, 0), cached(64, 0, 16, 0)),
            (cached(0, 0, 16, 0), cached(0, 0, 0, 0)),
            (cached(0, 0, 0, 0), cached(0, 0, 0, 0)),
            (cached(64, 0, 0, 16), cached(64, 0, 0, 16)),
        ] {
            assert_eq!(held.but_for_a_block(16), found);
        }
    }
}

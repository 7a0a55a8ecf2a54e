//! How much of a prompt's start each endpoint holds.

use crate::blocks::{BlockKey, Chain, Chains, Medium, Shape};
use crate::fleet::EndpointId;
use crate::index::book::Book;
use crate::index::hit::{Held, agreed};
use crate::index::{Holder, State};

/// Leading tokens of a prompt that an endpoint holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cached {
    /// In the engine's own cache.
    pub own: u64,
    /// How many of these may be gone: they were last heard of before a gap.
    pub unsure: u64,
    /// After them, in host memory.
    pub cpu: u64,
    /// After the first, on disk or remote storage; the two may take turns.
    pub storage: u64,
}

impl Cached {
    /// All of them: what the engine need not compute.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.own + self.cpu + self.storage
    }
}

/// How many leading blocks an endpoint holds, and of these for sure.
#[derive(Debug, Clone, Copy)]
struct Depth {
    blocks: u32,
    sure: u32,
}

impl Depth {
    fn cached(self, shape: Shape) -> Cached {
        let tokens = |blocks: u32| u64::from(blocks) * u64::from(shape.block_size);
        Cached {
            own: tokens(self.blocks),
            unsure: tokens(self.blocks - self.sure),
            ..Cached::default()
        }
    }
}

impl State {
    /// How these endpoints cut prompts.
    pub(super) fn shapes(&self, endpoints: &[EndpointId]) -> Vec<Shape> {
        let mut shapes = Vec::new();
        for book in endpoints.iter().filter_map(|id| self.books.get(id)) {
            for shape in book.caches.iter().filter_map(|cache| cache.shape) {
                if !shapes.contains(&shape) {
                    shapes.push(shape);
                }
            }
        }
        shapes
    }

    /// What each of these endpoints holds of a prompt's start, in their order.
    pub(super) fn cached(&self, endpoints: &[EndpointId], prompt: &mut Chains<'_>) -> Vec<Cached> {
        // Of endpoints with one cache, a walk along the chain tells all that are cut alike.
        let mut walked: Vec<(Shape, Vec<(EndpointId, Depth)>)> = Vec::new();
        let of_endpoint = |endpoint: &EndpointId| {
            let Some(book) = self.books.get(endpoint) else {
                return Cached::default();
            };
            let Some(shape) = book.shape() else {
                return Cached::default();
            };
            if !book.is_plain() {
                return self.compound(*endpoint, book, prompt);
            }
            let at = walked.iter().position(|(of, _)| *of == shape);
            let at = at.unwrap_or_else(|| {
                walked.push((shape, self.walk(prompt.of(shape))));
                walked.len() - 1
            });
            let depths = &walked[at].1;
            let found = depths.binary_search_by_key(endpoint, |(of, _)| *of);
            found.map_or(Cached::default(), |found| depths[found].1.cached(shape))
        };
        endpoints.iter().map(of_endpoint).collect()
    }

    fn holders_of(&self, key: &BlockKey) -> &[Holder] {
        self.holders.get(key).map_or(&[], Vec::as_slice)
    }

    /// How deep every endpoint of one cache holds a chain, by endpoint; those that hold none are left
    /// out.
    fn walk(&self, chain: &Chain) -> Vec<(EndpointId, Depth)> {
        let Some(first) = chain.keys.first() else {
            return Vec::new();
        };
        // Sorted, as holders are.
        let holders = self.holders_of(first).iter();
        let mut alive: Vec<(EndpointId, Option<u32>)> =
            holders.map(|holder| (holder.endpoint, None)).collect();
        let mut ended = Vec::with_capacity(alive.len());
        let mut end = |endpoint: EndpointId, sure: Option<u32>, blocks: u32| {
            let sure = sure.unwrap_or(blocks);
            ended.push((endpoint, Depth { blocks, sure }));
        };
        for (depth, key) in (0u32..).zip(&chain.keys) {
            let mut holders = self.holders_of(key).iter().peekable();
            alive.retain_mut(|(endpoint, sure)| {
                let before = |holder: &&Holder| holder.endpoint < *endpoint;
                while holders.next_if(before).is_some() {}
                match holders.peek().filter(|holder| holder.endpoint == *endpoint) {
                    Some(holder) => {
                        if !holder.is_sure() {
                            sure.get_or_insert(depth);
                        }
                        true
                    }
                    None => {
                        end(*endpoint, *sure, depth);
                        false
                    }
                }
            });
            if alive.is_empty() {
                break;
            }
        }
        for (endpoint, sure) in alive {
            end(endpoint, sure, chain.keys.len() as u32);
        }
        ended.sort_unstable_by_key(|(endpoint, _)| *endpoint);
        ended
    }

    /// The same of one endpoint with several caches.
    fn compound(&self, endpoint: EndpointId, book: &Book, prompt: &mut Chains<'_>) -> Cached {
        let own = self.own(endpoint, book, prompt, false);
        let sure = match book.is_unsure() {
            true => self.own(endpoint, book, prompt, true).min(own),
            false => own,
        };
        let mut cached = Cached {
            own,
            unsure: own - sure,
            ..Cached::default()
        };
        self.below(endpoint, book, prompt, &mut cached);
        cached
    }

    /// Tokens that all groups of the engine's own cache agree on.
    fn own(&self, endpoint: EndpointId, book: &Book, prompt: &mut Chains<'_>, sure: bool) -> u64 {
        let tokens_max = prompt.tokens().saturating_sub(1);
        let own = (0u8..).zip(&book.caches);
        let own = own.filter(|(_, cache)| cache.counts_for_hits());
        let shaped: Option<Vec<_>> = own
            .map(|(at, cache)| Some((at, cache.rule, cache.shape?)))
            .collect();
        // A group that has not stored any block yet agrees to nothing.
        let Some(shaped) = shaped else { return 0 };
        for (_, _, shape) in &shaped {
            prompt.of(*shape);
        }
        let prompt = &*prompt;
        let mut groups: Vec<_> = shaped
            .into_iter()
            .map(|(at, rule, shape)| Held {
                rule,
                block_size: u64::from(shape.block_size),
                has: move |block: u64| {
                    let key = prompt
                        .made(shape)
                        .and_then(|chain| chain.keys.get(block as usize));
                    key.is_some_and(|key| self.has(endpoint, at, key, sure))
                },
            })
            .collect();
        agreed(&mut groups, tokens_max)
    }

    /// What follows in lower media, block by block: an offload connector goes on from where the
    /// engine's own cache ends (`get_num_new_matched_tokens`). Of hybrid models the group of full
    /// attention decides here.
    fn below(
        &self,
        endpoint: EndpointId,
        book: &Book,
        prompt: &mut Chains<'_>,
        cached: &mut Cached,
    ) {
        let Some(shape) = book.shape() else { return };
        let size = u64::from(shape.block_size.max(1));
        let of = |medium: Medium| {
            let caches = (0u8..).zip(&book.caches);
            let of = caches.filter(move |(_, cache)| cache.place.medium == medium);
            of.map(|(at, _)| at).collect::<Vec<u8>>()
        };
        let (cpu, storage) = (of(Medium::Cpu), of(Medium::Storage));
        let keys = &prompt.of(shape).keys;
        for key in keys.iter().skip((cached.own / size) as usize) {
            // What may be gone there is not waited for.
            let holds = |caches: &[u8]| caches.iter().any(|at| self.has(endpoint, *at, key, true));
            if holds(&cpu) {
                cached.cpu += size;
            } else if holds(&storage) {
                cached.storage += size;
            } else {
                return;
            }
        }
    }

    fn has(&self, endpoint: EndpointId, cache: u8, key: &BlockKey, sure: bool) -> bool {
        let holders = self.holders_of(key);
        let at = holders.binary_search_by_key(&(endpoint, cache), Holder::place);
        at.is_ok_and(|at| !sure || holders[at].is_sure())
    }
}

//! How much of a prompt's start each endpoint holds.

use std::collections::HashMap;

use crate::blocks::{BlockKey, Chain, Chains, Medium, Rule, Shape};
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
    /// What each of these endpoints holds of a prompt's start.
    pub(super) fn cached(
        &self,
        endpoints: impl IntoIterator<Item = EndpointId>,
        prompt: &mut Chains<'_>,
    ) -> HashMap<EndpointId, Cached> {
        // Of endpoints with one cache, a walk along the chain tells all that are cut alike.
        let mut walked: Vec<(Shape, HashMap<EndpointId, Depth>)> = Vec::new();
        let mut cached = HashMap::new();
        for endpoint in endpoints {
            let Some(book) = self.books.get(&endpoint) else {
                continue;
            };
            let Some(shape) = book.shape() else { continue };
            let found = if book.is_plain() {
                if !walked.iter().any(|(of, _)| *of == shape) {
                    walked.push((shape, self.walk(prompt.of(shape))));
                }
                let depths = walked.iter().find(|(of, _)| *of == shape);
                let depth = depths.and_then(|(_, depths)| depths.get(&endpoint));
                depth.map_or(Cached::default(), |depth| depth.cached(shape))
            } else {
                self.compound(endpoint, book, prompt)
            };
            cached.insert(endpoint, found);
        }
        cached
    }

    fn holders_of(&self, key: &BlockKey) -> &[Holder] {
        self.holders.get(key).map_or(&[], Vec::as_slice)
    }

    /// How deep every endpoint of one cache holds a chain; those that hold none are left out.
    fn walk(&self, chain: &Chain) -> HashMap<EndpointId, Depth> {
        let mut ended = HashMap::new();
        let mut alive: Vec<(EndpointId, Option<u32>)> = match chain.keys.first() {
            Some(first) => self
                .holders_of(first)
                .iter()
                .map(|holder| (holder.endpoint, None))
                .collect(),
            None => return ended,
        };
        for (depth, key) in (0u32..).zip(&chain.keys) {
            let mut holders = self.holders_of(key).iter().peekable();
            alive.retain_mut(|(endpoint, sure)| {
                while holders
                    .next_if(|holder| holder.endpoint < *endpoint)
                    .is_some()
                {}
                match holders.peek().filter(|holder| holder.endpoint == *endpoint) {
                    Some(holder) => {
                        if !holder.is_sure() {
                            sure.get_or_insert(depth);
                        }
                        true
                    }
                    None => {
                        let sure = sure.unwrap_or(depth);
                        let blocks = depth;
                        ended.insert(*endpoint, Depth { blocks, sure });
                        false
                    }
                }
            });
            if alive.is_empty() {
                break;
            }
        }
        let blocks = chain.keys.len() as u32;
        ended.extend(alive.into_iter().map(|(endpoint, sure)| {
            let sure = sure.unwrap_or(blocks);
            (endpoint, Depth { blocks, sure })
        }));
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
        // Of a group that is not modelled nothing is known, and the endpoint is not trusted.
        let own = own
            .filter(|(_, cache)| cache.place.medium == Medium::Gpu && cache.rule != Rule::Unknown);
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

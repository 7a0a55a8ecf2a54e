//! The segment cache: a text is cut where its tokens cannot reach across, and each segment's ids
//! are looked up by its content. Of a conversation whose last turn alone is new, that turn alone
//! is tokenized; of a growing text, what has been added.
//!
//! Long texts are looked up by the page first: whole lines of [`PAGE_BYTES`], made of segments when
//! they are first seen.
//!
//! Exact by construction: [`cuts`] cuts only where the tokenizer itself would begin anew, and a
//! segment found by its hash is compared byte for byte with the one that was tokenized. A cache
//! belongs to one loaded tokenizer and dies with it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{CacheBudget, CacheSizes, TokenId, TokenizeError, Tokenizer};
use cuts::{Cuts, PAGE_BYTES, Span};

pub mod cuts;

/// What an entry takes beside its text and ids: two boxes, the shared pointer's counts, moka's
/// node, its place in the queue and in the table.
const ENTRY_BYTES: usize = 256;

/// Segments of up to so many bytes are not looked up again where one follows the same.
const SHORT_BYTES_MAX: usize = 32;

/// An engine behind a segment cache.
pub struct Segmented<E> {
    engine: E,
    cuts: Cuts,
    /// By keyed hash of the text.
    cache: Cache<u64, Arc<Segment>, Unhashed>,
    /// Random for each loaded tokenizer, so that nobody can prepare texts that collide. Mixed with a tenant's salt, so that
    /// nobody can tell by the time that another tenant has asked for the same text.
    seed: u64,
    /// Ids that the post-processor puts in front, such as BOS, and behind.
    frame: (Vec<TokenId>, Vec<TokenId>),
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Segment {
    text: Box<str>,
    ids: Box<[TokenId]>,
}

/// What caches of one model did.
#[derive(Debug, Default)]
pub struct Counts {
    hits: AtomicU64,
    hit_bytes: AtomicU64,
    misses: AtomicU64,
    missed_bytes: AtomicU64,
    evictions: AtomicU64,
}

impl<E: Tokenizer> Segmented<E> {
    /// Puts a cache before an engine that tokenizes as `cuts` says.
    pub fn new(engine: E, cuts: Cuts, budget: &CacheBudget) -> Result<Self, TokenizeError> {
        let counts = Arc::clone(&budget.counts);
        let evicted = Arc::clone(&counts);
        let cache = Cache::builder()
            .max_capacity(budget.bytes_max)
            .weigher(|_hash, segment: &Arc<Segment>| segment.bytes())
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_hash, _segment, cause| {
                evicted
                    .evictions
                    .fetch_add(u64::from(cause.was_evicted()), Ordering::Relaxed);
            })
            .build_with_hasher(Unhashed);
        Ok(Self {
            frame: frame(&engine)?,
            engine,
            cuts,
            cache,
            seed: RandomState::new().hash_one(0),
            counts,
        })
    }

    /// Appends a text's ids: those that are known under this seed, or what `tokenize` appends, and keeps them.
    fn append(
        &self,
        (text, seed): (&str, u64),
        ids: &mut Vec<TokenId>,
        tokenize: impl FnOnce(&mut Vec<TokenId>) -> Result<(), TokenizeError>,
    ) -> Result<(), TokenizeError> {
        let hash = xxh3_64_with_seed(text.as_bytes(), seed);
        // A collision finds another text: it is tokenized, and takes the place.
        if let Some(known) = self.cache.get(&hash).filter(|known| *known.text == *text) {
            let bytes = text.len() as u64;
            self.counts.hits.fetch_add(1, Ordering::Relaxed);
            self.counts.hit_bytes.fetch_add(bytes, Ordering::Relaxed);
            ids.extend_from_slice(&known.ids);
            return Ok(());
        }
        let start = ids.len();
        tokenize(ids)?;
        let segment = Segment {
            text: text.into(),
            ids: ids[start..].into(),
        };
        self.cache.insert(hash, Arc::new(segment));
        Ok(())
    }

    /// Appends the ids of a text, segment by segment.
    fn append_segments(
        &self,
        (text, seed): (&str, u64),
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TokenizeError> {
        // What a template prints between messages is the same between all of them.
        let mut short: Option<(&str, Range<usize>)> = None;
        for span in self.cuts.spans(text) {
            match (span, &short) {
                (Span::Added(id), _) => ids.push(id),
                (Span::Text(text), Some((known, at))) if *known == text => {
                    ids.extend_from_within(at.clone());
                }
                (Span::Text(text), _) => {
                    self.cuts.check(text)?;
                    let start = ids.len();
                    self.append((text, seed), ids, |ids| {
                        let bytes = text.len() as u64;
                        self.counts.misses.fetch_add(1, Ordering::Relaxed);
                        self.counts.missed_bytes.fetch_add(bytes, Ordering::Relaxed);
                        ids.extend(self.engine.encode(text, false)?);
                        Ok(())
                    })?;
                    if text.len() <= SHORT_BYTES_MAX {
                        short = Some((text, start..ids.len()));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Segment {
    fn bytes(&self) -> u32 {
        let bytes = ENTRY_BYTES + self.text.len() + size_of_val(&*self.ids);
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

impl<E: Tokenizer> Tokenizer for Segmented<E> {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizeError> {
        self.encode_salted(text, add_special_tokens, None)
    }

    fn encode_salted(
        &self,
        text: &str,
        add_special_tokens: bool,
        salt: Option<&str>,
    ) -> Result<Vec<TokenId>, TokenizeError> {
        let seed = salt.map_or(self.seed, |salt| {
            xxh3_64_with_seed(salt.as_bytes(), self.seed)
        });
        // English has about four bytes a token, code and Chinese three and more.
        let mut ids = Vec::with_capacity(text.len() / 3 + 16);
        let (front, back) = &self.frame;
        if add_special_tokens {
            ids.extend_from_slice(front);
        }
        let mut rest = text;
        while let Some(page) = self.cuts.page(rest, PAGE_BYTES) {
            let page = (page, seed);
            self.append(page, &mut ids, |ids| self.append_segments(page, ids))?;
            rest = &rest[page.0.len()..];
        }
        self.append_segments((rest, seed), &mut ids)?;
        if add_special_tokens {
            ids.extend_from_slice(back);
        }
        Ok(ids)
    }

    fn settled_bytes(&self, text: &str) -> usize {
        self.cuts.settled_bytes(text)
    }

    fn remembers(&self) -> bool {
        true
    }

    fn cache_sizes(&self) -> CacheSizes {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheSizes {
            entries: self.cache.entry_count(),
            bytes: self.cache.weighted_size(),
            hits: read(&self.counts.hits),
            hit_bytes: read(&self.counts.hit_bytes),
            misses: read(&self.counts.misses),
            missed_bytes: read(&self.counts.missed_bytes),
            evictions: read(&self.counts.evictions),
        }
    }
}

/// An engine without a cache.
pub struct Whole<E> {
    /// The engine.
    pub engine: E,
    /// How it would be cut.
    pub cuts: Cuts,
}

impl<E: Tokenizer> Tokenizer for Whole<E> {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizeError> {
        for span in self.cuts.spans(text) {
            if let Span::Text(text) = span {
                self.cuts.check(text)?;
            }
        }
        self.engine.encode(text, add_special_tokens)
    }

    fn settled_bytes(&self, text: &str) -> usize {
        self.cuts.settled_bytes(text)
    }
}

/// What the post-processor adds to every text, found by encoding one with and without.
fn frame(engine: &impl Tokenizer) -> Result<(Vec<TokenId>, Vec<TokenId>), TokenizeError> {
    let (bare, framed) = (engine.encode("a", false)?, engine.encode("a", true)?);
    let at = framed
        .windows(bare.len().max(1))
        .position(|part| part == bare)
        .ok_or(TokenizeError::Refused { text_bytes: 1 })?;
    let back = framed[at + bare.len()..].to_vec();
    Ok((framed[..at].to_vec(), back))
}

/// Keys that are hashes already.
#[derive(Clone, Copy, Default)]
pub(super) struct Unhashed;

impl BuildHasher for Unhashed {
    type Hasher = Unmixed;

    fn build_hasher(&self) -> Unmixed {
        Unmixed(0)
    }
}

pub(super) struct Unmixed(u64);

impl std::hash::Hasher for Unmixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Our keys are u64 alone; anything else is mixed as it comes.
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests;

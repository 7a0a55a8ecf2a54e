//! One request inside the engine: its tokens, its blocks, and how far it is computed.

use kvscout::blocks::{EngineHash, ExtraKey, Group, Identity, Medium, Stored, TokenId};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use super::blocks::BlockId;

/// The engine's name for a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What a client asks of the engine.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The prompt; at least one token.
    pub prompt: Vec<TokenId>,
    /// What the model will say, in order: a simulated model knows its answer in advance. At
    /// least one token.
    pub output: Vec<TokenId>,
    /// Adapter and salt, which separate blocks of equal tokens.
    pub identity: Identity,
    /// The adapter's `lora_id`, from 1.
    pub adapter_id: Option<i64>,
    /// `prompt_logprobs` need every prompt token computed anew (vLLM's
    /// `skip_reading_prefix_cache`).
    pub skip_cache_read: bool,
    /// vLLM 0.26 and later, `kv_cache_report_mode: full`: blocks that a hit reuses are
    /// announced again.
    pub report_reused: bool,
}

/// A request that waits or runs.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// The prompt and what was generated so far.
    pub(super) tokens: Vec<TokenId>,
    /// One per full block of `tokens`.
    hashes: Vec<EngineHash>,
    pub(super) blocks: Vec<BlockId>,
    /// Leading blocks that the cache knows.
    pub(super) cached_blocks: usize,
    /// Leading tokens whose KV is computed.
    pub(super) computed: usize,
    /// Tokens in the step under way.
    pub(super) scheduled: usize,
    /// Tokens that the first schedule found in the cache; a later one does not count.
    pub(super) hit_tokens: Option<usize>,
}

impl Sequence {
    pub(super) fn new(id: RequestId, request: Request) -> Self {
        Self {
            id,
            tokens: request.prompt.clone(),
            request,
            hashes: Vec::new(),
            blocks: Vec::new(),
            cached_blocks: 0,
            computed: 0,
            scheduled: 0,
            hit_tokens: None,
        }
    }

    /// Tokens generated so far.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// Whether the coming step computes a generated token rather than the prompt.
    pub(super) fn decodes(&self) -> bool {
        self.generated() > 0 && self.tokens.len() == self.computed + 1
    }

    /// The hashes of the first `blocks` full blocks.
    pub(super) fn hashes(&mut self, blocks: usize, hasher: &BlockHasher) -> &[EngineHash] {
        let size = hasher.block_size;
        while self.hashes.len() < blocks && (self.hashes.len() + 1) * size <= self.tokens.len() {
            let position = self.hashes.len();
            let block = &self.tokens[position * size..(position + 1) * size];
            let hash = hasher.hash(self.hashes.last().copied(), block, &self.request.identity);
            self.hashes.push(hash);
        }
        &self.hashes[..blocks.min(self.hashes.len())]
    }

    /// The event for blocks `from..to`, which must be hashed already.
    pub(super) fn stored(&self, from: usize, to: usize, block_size: usize) -> Stored {
        let salt = self.request.identity.cache_salt.as_ref();
        let extras = |block: usize| match salt {
            Some(salt) if block == 0 => vec![ExtraKey::Text(salt.clone())],
            _ => Vec::new(),
        };
        Stored {
            hashes: self.hashes[from..to].to_vec(),
            parent: from.checked_sub(1).map(|parent| self.hashes[parent]),
            tokens: self.tokens[from * block_size..to * block_size].to_vec(),
            block_size: block_size as u32,
            adapter: self.request.identity.adapter.clone(),
            adapter_id: self.request.adapter_id,
            medium: Medium::Gpu,
            group: Group::default(),
            extra_keys: Some((from..to).map(extras).collect()),
            lookahead: Vec::new(),
        }
    }
}

/// Names blocks as one engine process does: a chain of 64-bit hashes from a seed of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockHasher {
    pub(super) seed: u64,
    pub(super) block_size: usize,
}

/// Tokens of a block of the largest size in common use.
const SHORT_TOKENS: usize = 64;

impl BlockHasher {
    /// The salt counts in a prompt's first block only, the adapter in each
    /// (`kv_cache_utils.generate_block_hash_extra_keys`).
    fn hash(
        &self,
        parent: Option<EngineHash>,
        tokens: &[TokenId],
        identity: &Identity,
    ) -> EngineHash {
        // In one go where nothing but tokens counts, on the stack: a fleet's hour hashes hundreds of
        // millions of blocks, and the streamed hash takes five times as long. The two agree.
        if tokens.len() <= SHORT_TOKENS && *identity == Identity::default() {
            let mut bytes = [0u8; 8 + 4 * SHORT_TOKENS];
            let parent = parent.map_or(self.seed, |hash| hash.0);
            bytes[..8].copy_from_slice(&parent.to_le_bytes());
            for (slot, token) in bytes[8..].chunks_exact_mut(4).zip(tokens) {
                slot.copy_from_slice(&token.to_le_bytes());
            }
            let end = 8 + 4 * tokens.len();
            return EngineHash(xxh3_64_with_seed(&bytes[..end], self.seed));
        }
        let mut hasher = Xxh3::with_seed(self.seed);
        hasher.update(&parent.map_or(self.seed, |hash| hash.0).to_le_bytes());
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        let salt = identity.cache_salt.as_ref().filter(|_| parent.is_none());
        for (tag, name) in [(1u8, identity.adapter.as_ref()), (2, salt)] {
            if let Some(name) = name {
                hasher.update(&[tag]);
                hasher.update(name.as_bytes());
            }
        }
        EngineHash(hasher.digest())
    }
}

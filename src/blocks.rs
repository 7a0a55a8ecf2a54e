//! Token ids → chain of [`BlockKey`]: the names under which prompts and events meet.
//!
//! A key covers what vLLM's own block hash covers (`kv_cache_utils.hash_block_tokens`): every
//! token up to the block's end, the LoRA adapter, and the extra keys of each block on the way
//! (`cache_salt`, multimodal identifiers, prompt-embedding digests). Engine hashes are opaque:
//! their seed may differ per process, so they are never compared across servers.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

pub use crate::prompt::TokenId;

/// Names a block and everything before it. Equal keys mean equal KV contents: 64 bits of
/// XXH3, so two of 50 million different blocks collide with probability below 1e-4. Who knows how keys are
/// made finds two blocks with one key in minutes, by search; who does not know the secret that they are
/// mixed with ([`mix_with`]) cannot even tell that he has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockKey(u64);

/// Changes whenever [`BlockKey`]s of the same blocks do, or how pictures are kept: those kept before
/// are then of no use.
pub const KEYS_VERSION: u32 = 3;

/// What every key of this process is mixed with: 0 where nobody gave a secret. Set once, before the first
/// key is made, as the process's only secret that all of its rooms need; read without a lock.
static SEED: AtomicU64 = AtomicU64::new(0);
/// What tells that others mix with another one, and nothing about it.
static MARK: AtomicU32 = AtomicU32::new(0);

/// Mixes keys with a secret from now on. Keys made before are then of no use.
pub fn mix_with(secret: &[u8]) {
    let digest = digest(&SHA256, secret);
    let (seed, rest) = digest
        .as_ref()
        .split_first_chunk()
        .expect("it has 32 bytes");
    let mark = rest.first_chunk().expect("it has 24 bytes more");
    SEED.store(u64::from_le_bytes(*seed), Ordering::Relaxed);
    MARK.store(u32::from_le_bytes(*mark), Ordering::Relaxed);
}

/// [`KEYS_VERSION`], and which secret: keys of processes that say the same are the same.
#[must_use]
pub fn keys_version() -> u32 {
    KEYS_VERSION ^ MARK.load(Ordering::Relaxed)
}

fn seed() -> u64 {
    SEED.load(Ordering::Relaxed)
}

impl fmt::LowerHex for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl BlockKey {
    /// The parent of every first block: the base model, or one of its LoRA adapters.
    #[must_use]
    pub fn root(adapter: Option<&str>) -> Self {
        match adapter {
            None => Self(0x6b76_7363_6f75_7401),
            Some(name) => Self(xxh3_64_with_seed(name.as_bytes(), 0x6c6f_7261 ^ seed())),
        }
    }

    /// The key of the block that follows `self` and holds `tokens`.
    #[must_use]
    pub fn child(self, tokens: &[TokenId], extras: &[ExtraKey]) -> Self {
        // On the stack for every block size in common use; longer blocks go in pieces. The
        // one-shot hash and the streamed one agree on equal bytes.
        if let (Ok(tokens), []) = (<&[TokenId; USUAL_TOKENS]>::try_from(tokens), extras) {
            return Self(xxh3_64_with_seed(&usual_block(self.0, tokens), seed()));
        }
        let mut bytes = [0u8; 8 + 4 * PIECE_TOKENS];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        if tokens.len() <= PIECE_TOKENS && extras.is_empty() {
            let end = 8 + write_tokens(&mut bytes[8..], tokens);
            return Self(xxh3_64_with_seed(&bytes[..end], seed()));
        }
        let mut hasher = Xxh3::with_seed(seed());
        hasher.update(&bytes[..8]);
        for piece in tokens.chunks(PIECE_TOKENS) {
            let end = write_tokens(&mut bytes, piece);
            hasher.update(&bytes[..end]);
        }
        for extra in extras {
            extra.feed(&mut hasher);
        }
        Self(hasher.digest())
    }
}

/// Tokens of a block of the usual size (vLLM's default).
const USUAL_TOKENS: usize = 16;

/// The bytes of such a block. Its length is known to the compiler, which writes them in pieces that hold whole words as the
/// hash reads them: `memcpy` writes larger ones, and a read of what a store has not finished waits, 8 of 12 ns a key.
fn usual_block(parent: u64, tokens: &[TokenId; USUAL_TOKENS]) -> [u8; 8 + 4 * USUAL_TOKENS] {
    let mut bytes = [0; 8 + 4 * USUAL_TOKENS];
    bytes[..8].copy_from_slice(&parent.to_le_bytes());
    write_tokens(&mut bytes[8..], tokens);
    bytes
}

/// Tokens hashed at a time: 256 bytes.
const PIECE_TOKENS: usize = 64;

#[inline]
fn write_tokens(bytes: &mut [u8], tokens: &[TokenId]) -> usize {
    for (slot, token) in bytes.chunks_exact_mut(4).zip(tokens) {
        slot.copy_from_slice(&token.to_le_bytes());
    }
    4 * tokens.len()
}

/// Something besides tokens that makes a block differ, as vLLM puts it into `extra_keys`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ExtraKey {
    /// A cache salt, or a multimodal identifier (0.17.1 and before).
    Text(String),
    /// A multimodal identifier with its offset from the block's start (0.19.1 and later).
    At(String, i64),
    /// A digest of prompt embeddings.
    Digest(Vec<u8>),
}

impl ExtraKey {
    /// Each kind has its own tag and every text its length, so that no two lists read alike.
    fn feed(&self, hasher: &mut Xxh3) {
        let (tag, bytes): (u8, &[u8]) = match self {
            Self::Text(text) => (1, text.as_bytes()),
            Self::At(text, _) => (2, text.as_bytes()),
            Self::Digest(bytes) => (3, bytes),
        };
        hasher.update(&[tag]);
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
        if let Self::At(_, offset) = self {
            hasher.update(&offset.to_le_bytes());
        }
    }
}

/// What decides, besides its tokens, which blocks a prompt may share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The LoRA adapter that the request names as its model.
    pub adapter: Option<String>,
    /// The request's `cache_salt`: an extra key of the first block only.
    pub cache_salt: Option<String>,
}

/// How an engine cuts a prompt into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Tokens in each block.
    pub block_size: u32,
    /// Tokens after each block that its hash covers too: vLLM 0.33 with speculative decoding, so
    /// that a block is shared only where its drafts are.
    pub lookahead: u32,
}

impl From<u32> for Shape {
    fn from(block_size: u32) -> Self {
        let lookahead = 0;
        Self {
            block_size,
            lookahead,
        }
    }
}

/// The keys of a prompt's leading full blocks that a server may serve from its cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// How it was cut.
    pub shape: Shape,
    /// One key per block, in prompt order.
    pub keys: Vec<BlockKey>,
}

impl Chain {
    /// The chain of a prompt: at most `floor((n - 1) / block_size)` blocks, since the engine
    /// always computes the last token itself (measured on vLLM 0.9 to 0.33).
    #[must_use]
    pub fn of_prompt(tokens: &[TokenId], shape: impl Into<Shape>, identity: &Identity) -> Self {
        let shape = shape.into();
        let kept = usize::from(shape.lookahead == 0);
        let hittable = tokens.len().saturating_sub(kept);
        Self::of_full_blocks(&tokens[..hittable], shape, identity)
    }

    /// The chain of all full blocks of these tokens: what a server stores of a prompt once it
    /// has computed it.
    #[must_use]
    pub fn of_full_blocks(
        tokens: &[TokenId],
        shape: impl Into<Shape>,
        identity: &Identity,
    ) -> Self {
        let shape = shape.into();
        let none = Self {
            shape,
            keys: Vec::new(),
        };
        none.to_full_blocks(tokens, identity)
    }

    /// The chain of all full blocks of these tokens, of which this one has the first.
    #[must_use]
    pub fn to_full_blocks(&self, tokens: &[TokenId], identity: &Identity) -> Self {
        let Self { shape, keys: begun } = self;
        let (size, covered) = (shape.block_size.max(1) as usize, shape.lookahead as usize);
        let salt: Vec<ExtraKey> = identity
            .cache_salt
            .iter()
            .cloned()
            .map(ExtraKey::Text)
            .collect();
        let blocks = tokens.len().saturating_sub(covered) / size;
        let mut keys = Vec::with_capacity(blocks);
        keys.extend(begun.iter().take(blocks));
        let root = || BlockKey::root(identity.adapter.as_deref());
        let mut parent = keys.last().copied().unwrap_or_else(root);
        // `windows` of the size and what is covered beyond it, one for each block.
        for at in keys.len()..blocks {
            let block = &tokens[at * size..(at + 1) * size + covered];
            parent = parent.child(block, if at == 0 { &salt } else { &[] });
            keys.push(parent);
        }
        Self {
            shape: *shape,
            keys,
        }
    }
}

/// A prompt's chains, one for each shape that is asked for.
#[derive(Debug)]
pub struct Chains<'p> {
    tokens: &'p [TokenId],
    identity: &'p Identity,
    /// Made before.
    given: &'p [Chain],
    made: Vec<Chain>,
}

impl<'p> Chains<'p> {
    /// Of a prompt.
    #[must_use]
    pub fn new(tokens: &'p [TokenId], identity: &'p Identity) -> Self {
        Self {
            tokens,
            identity,
            given: &[],
            made: Vec::new(),
        }
    }

    /// Some of them are made already.
    #[must_use]
    pub fn with(self, given: &'p [Chain]) -> Self {
        Self { given, ..self }
    }

    /// The prompt's tokens.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens.len() as u64
    }

    /// The chain of a shape, made when it is first asked for.
    pub fn of(&mut self, shape: Shape) -> &Chain {
        if self.made(shape).is_none() {
            let chain = Chain::of_prompt(self.tokens, shape, self.identity);
            self.made.push(chain);
        }
        self.made(shape).expect("just made")
    }

    /// All that were asked for, or given.
    pub fn all_made(&self) -> impl Iterator<Item = &Chain> {
        self.given.iter().chain(&self.made)
    }

    /// The same, where it was asked for before.
    #[must_use]
    pub fn made(&self, shape: Shape) -> Option<&Chain> {
        self.all_made().find(|chain| chain.shape == shape)
    }
}

/// What a server calls a block: the low 64 bits of its hash, meaningful to that server alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineHash(pub u64);

/// Where a server keeps a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Medium {
    /// The engine's own KV cache (vLLM says "GPU" on every platform, CPU included).
    Gpu,
    /// Host memory, by an offload connector.
    Cpu,
    /// Disk or remote storage, by an offload connector.
    Storage,
    /// A medium that this version does not know.
    Other,
}

/// Which of a group's blocks a prefix needs, by `kv_cache_spec_kind` (vLLM 0.22 and later).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Rule {
    /// All of them: full attention, MLA.
    #[default]
    All,
    /// Those that the last so many tokens reach: a sliding window.
    Window(u32),
    /// The last one: a recurrent state, such as Mamba's.
    Last,
    /// Not modelled.
    Unknown,
}

/// A KV cache group of a hybrid model; plain models have one, with index 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Group {
    /// `group_idx`; 0 where the engine does not say.
    pub index: u32,
    /// What makes a hit. Removals do not say it.
    pub rule: Rule,
}

/// One KV cache event of one server, free of any wire format.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockEvent {
    /// Physical copies of blocks came to be.
    Stored(Stored),
    /// Physical copies went away; the same hash may have others.
    Removed {
        /// One entry per copy.
        hashes: Vec<EngineHash>,
        /// Where they were.
        medium: Medium,
        /// Whose they were.
        group: Group,
    },
    /// Everything went away.
    Cleared,
}

/// Consecutive blocks that a server now holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// One per block, in prompt order.
    pub hashes: Vec<EngineHash>,
    /// The block before the first one; none where that starts a prompt.
    pub parent: Option<EngineHash>,
    /// `hashes.len() * block_size` ids; more where a group keeps only some of the blocks (a sliding
    /// window, a recurrent state), and none in placeholder events of offload connectors.
    pub tokens: Vec<TokenId>,
    /// Tokens in each block.
    pub block_size: u32,
    /// `lora_name`; vLLM before 0.14.1 gives only the id.
    pub adapter: Option<String>,
    /// `lora_id`: the order of loading, from 1.
    pub adapter_id: Option<i64>,
    /// Where they are.
    pub medium: Medium,
    /// Whose they are.
    pub group: Group,
    /// Per block, the adapter's name left out; `None` where this vLLM (before 0.17.1) has no
    /// such field, so that salted blocks look like plain ones.
    pub extra_keys: Option<Vec<Vec<ExtraKey>>>,
    /// Per block, the tokens after it that its hash covers too; empty where there are none.
    pub lookahead: Vec<Vec<TokenId>>,
}

impl Stored {
    /// In the own cache of an engine with one group, which shows extra keys and has none to show: these
    /// tokens, cut evenly.
    #[must_use]
    pub fn plain(
        parent: Option<EngineHash>,
        hashes: Vec<EngineHash>,
        tokens: Vec<TokenId>,
    ) -> Self {
        let block_size = tokens.len().checked_div(hashes.len()).unwrap_or(0) as u32;
        Self {
            hashes,
            parent,
            tokens,
            block_size,
            adapter: None,
            adapter_id: None,
            medium: Medium::Gpu,
            group: Group::default(),
            extra_keys: Some(Vec::new()),
            lookahead: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(tokens: &[TokenId], identity: &Identity) -> Vec<BlockKey> {
        Chain::of_prompt(tokens, 4, identity).keys
    }

    #[test]
    fn the_last_token_is_always_recomputed() {
        let tokens: Vec<TokenId> = (0..9).collect();
        let blocks = |n: usize| chain(&tokens[..n], &Identity::default()).len();
        assert_eq!(
            (blocks(0), blocks(4), blocks(5), blocks(8), blocks(9)),
            (0, 0, 1, 1, 2)
        );
    }

    #[test]
    fn a_chain_that_is_given_is_not_made_again() {
        let (tokens, identity): (Vec<TokenId>, _) = ((0..20).collect(), Identity::default());
        let given = [Chain::of_prompt(&tokens, 4, &identity)];
        let mut chains = Chains::new(&tokens, &identity).with(&given);
        assert!(std::ptr::eq(chains.of(4.into()), &raw const given[0]));
        assert_eq!(
            *chains.of(8.into()),
            Chain::of_prompt(&tokens, 8, &identity)
        );
        assert_eq!(chains.all_made().count(), 2);
    }

    #[test]
    fn a_key_covers_everything_before_its_block() {
        let plain = Identity::default();
        let one = chain(&[7, 7, 7, 7, 7, 7, 7, 7, 1], &plain);
        let two = chain(&[8, 7, 7, 7, 7, 7, 7, 7, 1], &plain);
        assert_ne!(
            one[0], one[1],
            "equal tokens at another depth are another block"
        );
        assert_ne!(one[1], two[1]);
    }

    #[test]
    fn salt_and_adapter_separate_tenants() {
        let tokens: Vec<TokenId> = (0..9).collect();
        let keys = |adapter: Option<&str>, salt: Option<&str>| {
            chain(
                &tokens,
                &Identity {
                    adapter: adapter.map(str::to_owned),
                    cache_salt: salt.map(str::to_owned),
                },
            )[1]
        };
        let all = [
            keys(None, None),
            keys(Some("a"), None),
            keys(None, Some("a")),
            keys(Some("a"), Some("a")),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[..i].contains(one), "identity {i} is not its own");
        }
    }

    #[test]
    fn a_chain_that_goes_on_is_the_one_made_at_once() {
        let tokens: Vec<TokenId> = (0..40).collect();
        let salted = Identity {
            cache_salt: Some("salt".into()),
            ..Identity::default()
        };
        let shape = Shape {
            block_size: 4,
            lookahead: 1,
        };
        let whole = Chain::of_full_blocks(&tokens, shape, &salted);
        for begun in [0, 7, 40] {
            let begun = Chain::of_full_blocks(&tokens[..begun], shape, &salted);
            assert_eq!(begun.to_full_blocks(&tokens, &salted), whole);
            assert_eq!(
                whole.to_full_blocks(&tokens[..9], &salted).keys,
                whole.keys[..2]
            );
        }
    }

    #[test]
    fn streamed_and_one_shot_hashes_agree() {
        let tokens: Vec<TokenId> = (0..130).collect();
        let mut bytes = BlockKey::root(None).0.to_le_bytes().to_vec();
        bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        assert_eq!(
            BlockKey::root(None).child(&tokens, &[]).0,
            xxh3_64_with_seed(&bytes, 0)
        );
        let end = 8 + 4 * 16;
        assert_eq!(
            BlockKey::root(None).child(&tokens[..16], &[]).0,
            xxh3_64_with_seed(&bytes[..end], 0)
        );
    }

    #[test]
    fn long_blocks_hash_all_their_tokens() {
        let mut tokens: Vec<TokenId> = (0..2096).collect();
        let root = BlockKey::root(None);
        let before = root.child(&tokens, &[]);
        tokens[2095] += 1;
        assert_ne!(before, root.child(&tokens, &[]));
    }
}

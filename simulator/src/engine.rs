//! The engine: requests in, tokens and block events out, one step at a time. It has no clock
//! and no socket; whoever drives it decides how long a step takes ([`crate::timing`]).
//!
//! ```text
//! submit → waiting → begin_step: cache lookup, blocks, budget → running
//!                    finish_step: a token each, blocks freed at the end, events
//! ```

mod free_list;
pub mod blocks;
mod sequence;
mod scheduler;

pub use blocks::FreeOrder;
pub use scheduler::Engine;
pub use sequence::{Request, RequestId};

use kvscout::blocks::{BlockEvent, TokenId};

/// What decides how an engine schedules.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Tokens in each block.
    pub block_size: usize,
    /// Blocks in the pool, the null block among them: requests can have one less.
    pub num_gpu_blocks: u32,
    /// The token budget of a step; longer prompts are computed in chunks.
    pub max_num_batched_tokens: usize,
    /// Requests that run at a time.
    pub max_num_seqs: usize,
    /// Seeds the hashes of blocks; real engines before 0.29 draw it at random.
    pub hash_seed: u64,
    /// Where blocks without a hash go when they are freed.
    pub free_order: FreeOrder,
}

impl EngineConfig {
    /// So many blocks, and a step that takes in the longest prompt whole: it is not the engine that is measured.
    #[must_use]
    pub fn roomy(num_gpu_blocks: u32) -> Self {
        Self {
            num_gpu_blocks,
            max_num_batched_tokens: 131_072,
            ..Self::default()
        }
    }

    /// The longest prompt with its answer that the blocks can hold, in tokens.
    #[must_use]
    pub fn capacity_tokens(&self) -> usize {
        self.block_size * (self.num_gpu_blocks as usize).saturating_sub(1)
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_gpu_blocks: 4096,
            max_num_batched_tokens: 2048,
            max_num_seqs: 256,
            hash_seed: 0,
            free_order: FreeOrder::default(),
        }
    }
}

/// What a step computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepWork {
    /// Prompt tokens, and tokens computed again after a preemption.
    pub prefill_tokens: usize,
    /// Requests that get one more token of an answer begun.
    pub decode_tokens: usize,
}

/// What a step brought about.
#[derive(Debug, Clone, Default)]
pub struct StepOutcome {
    /// At most one token per request, in order of scheduling.
    pub emissions: Vec<Emission>,
    /// The step's batch of events; vLLM publishes none if this is empty.
    pub events: Vec<BlockEvent>,
}

/// A token for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emission {
    /// Whose it is.
    pub request: RequestId,
    /// The token.
    pub token: TokenId,
    /// Prompt tokens that came from the cache.
    pub cached_tokens: usize,
    /// Further tokens in full blocks when the first token came: what vLLM reports as
    /// `created_cache_tokens`.
    pub created_tokens: usize,
    /// Whether it is the last.
    pub last: bool,
}

/// How busy an engine is, in the numbers that cost nothing to read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Gauges {
    /// Requests in the running batch.
    pub running: usize,
    /// Requests that wait for room.
    pub waiting: usize,
    /// The share of blocks in use by requests, 0 to 1.
    pub usage: f64,
}

/// How busy an engine is, and what it has done since it started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Requests in the running batch.
    pub running: usize,
    /// Requests that wait for room.
    pub waiting: usize,
    /// The share of blocks in use by requests, 0 to 1.
    pub usage: f64,
    /// Prompt tokens looked up in the cache.
    pub query_tokens: u64,
    /// Prompt tokens found in the cache.
    pub hit_tokens: u64,
    /// Prompt tokens of requests that have a first token of an answer.
    pub prompt_tokens: u64,
    /// Those of them that were found in the cache.
    pub cached_prompt_tokens: u64,
    /// How many such requests there were.
    pub first_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Requests pushed back from the running batch for want of blocks.
    pub preemptions: u64,
    /// Requests that got all their tokens.
    pub finished: u64,
    /// Adapters of running requests.
    pub running_adapters: Vec<String>,
    /// Adapters of waiting requests.
    pub waiting_adapters: Vec<String>,
}

//! Which requests a step computes, and with which blocks.
//!
//! The rules are those of vLLM's `v1/core/sched/scheduler.py` and `kv_cache_manager.py` (read
//! in 0.32.0), for full attention, first come first served, without speculative decoding.
//! Blocks enter the cache when they are scheduled, before they are computed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvscout::blocks::BlockEvent;

use super::blocks::{BlockId, Pool};
use super::sequence::{BlockHasher, Request, RequestId, Sequence};
use super::{Emission, EngineConfig, Gauges, Stats, StepOutcome, StepWork};

/// A simulated vLLM engine.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    hasher: BlockHasher,
    pool: Pool,
    waiting: VecDeque<Sequence>,
    /// Oldest first; the last is preempted first.
    running: Vec<Sequence>,
    next_id: u64,
    /// Totals only; what depends on the moment is filled in by [`Engine::stats`].
    totals: Stats,
}

impl Engine {
    /// An engine with an empty cache.
    #[must_use]
    pub fn new(config: EngineConfig) -> Self {
        Self {
            hasher: BlockHasher {
                seed: config.hash_seed,
                block_size: config.block_size,
            },
            pool: Pool::new(config.num_gpu_blocks, config.free_order),
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            totals: Stats::default(),
        }
    }

    /// Queues a request. `None` if it asks for nothing, or could never fit.
    pub fn submit(&mut self, request: Request) -> Option<RequestId> {
        let tokens = request.prompt.len() + request.output.len();
        let empty = request.prompt.is_empty() || request.output.is_empty();
        if empty || tokens > self.config.capacity_tokens() {
            return None;
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Sequence::new(id, request));
        Some(id)
    }

    /// Drops a request, wherever it is; its blocks stay cached until they are evicted.
    pub fn abort(&mut self, id: RequestId) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(position) = self.running.iter().position(|sequence| sequence.id == id) {
            let sequence = self.running.remove(position);
            self.pool.release(&sequence.blocks);
        }
    }

    /// Empties the cache; false while requests run. The event goes out with the next step.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.pool.clear()
    }

    /// Whether a step would find something to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !(self.running.is_empty() && self.waiting.is_empty())
    }

    /// Schedules a step. `None` if there is nothing to do.
    pub fn begin_step(&mut self) -> Option<StepWork> {
        if !self.has_work() {
            return None;
        }
        let mut budget = self.config.max_num_batched_tokens;
        let preempted = self.continue_running(&mut budget);
        if !preempted {
            self.admit_waiting(&mut budget);
        }
        let mut work = StepWork::default();
        for sequence in &self.running {
            if sequence.decodes() {
                work.decode_tokens += sequence.scheduled;
            } else {
                work.prefill_tokens += sequence.scheduled;
            }
        }
        Some(work)
    }

    /// Ends the step: every request that is computed up to its last token gets another.
    pub fn finish_step(&mut self) -> StepOutcome {
        let mut emissions = Vec::new();
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|sequence| {
            let emission = self.advance(sequence);
            emissions.extend(emission);
            let ended = emission.is_some_and(|emission| emission.last);
            if ended {
                self.pool.release(&sequence.blocks);
                self.totals.finished += 1;
            }
            !ended
        });
        self.running = running;
        let events: Vec<BlockEvent> = self.pool.take_events();
        StepOutcome { emissions, events }
    }

    /// What the cache can offer: physical copies by hash.
    #[must_use]
    pub fn copies(&self) -> BTreeMap<u64, usize> {
        self.pool.copies()
    }

    /// The events of the step under way, which then end with it no more: blocks can be found from
    /// when they are scheduled, and are told of when they are computed.
    pub fn take_events(&mut self) -> Vec<BlockEvent> {
        self.pool.take_events()
    }

    /// What a scrape of the three gauges that schedulers look at would show.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            running: self.running.len(),
            waiting: self.waiting.len(),
            usage: self.pool.usage(),
        }
    }

    /// Requests pushed back for want of blocks, so far.
    #[must_use]
    pub fn preemptions(&self) -> u64 {
        self.totals.preemptions
    }

    /// How busy the engine is now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let adapter = |sequence: &Sequence| sequence.request.identity.adapter.clone();
        let names = |found: BTreeSet<String>| found.into_iter().collect();
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            usage: self.pool.usage(),
            running_adapters: names(self.running.iter().filter_map(adapter).collect()),
            waiting_adapters: names(self.waiting.iter().filter_map(adapter).collect()),
            ..self.totals.clone()
        }
    }

    fn advance(&mut self, sequence: &mut Sequence) -> Option<Emission> {
        let scheduled = std::mem::take(&mut sequence.scheduled);
        sequence.computed += scheduled;
        if scheduled == 0 || sequence.computed < sequence.tokens.len() {
            return None;
        }
        let position = sequence.generated();
        if position == 0 {
            self.count_first_token(sequence);
        }
        let token = sequence.request.output[position];
        sequence.tokens.push(token);
        self.totals.generation_tokens += 1;
        let cached_tokens = sequence.hit_tokens.unwrap_or(0);
        let known = sequence.cached_blocks * self.config.block_size;
        Some(Emission {
            request: sequence.id,
            token,
            cached_tokens,
            created_tokens: known.saturating_sub(cached_tokens),
            last: position + 1 == sequence.request.output.len(),
        })
    }

    /// Running requests go first, oldest first; where blocks run out, the newest gives way.
    fn continue_running(&mut self, budget: &mut usize) -> bool {
        let mut preempted = false;
        let mut next = 0;
        while next < self.running.len() && *budget > 0 {
            // Out of its place, not out of the list: hundreds of requests would move up, each step.
            let mut sequence = std::mem::take(&mut self.running[next]);
            let wanted = (sequence.tokens.len() - sequence.computed).min(*budget);
            let mut fits = self.allocate(&mut sequence, wanted, &[]);
            while !fits && self.running.len() > next + 1 {
                let newest = self.running.pop().expect("there is one behind `next`");
                self.preempt(newest);
                preempted = true;
                fits = self.allocate(&mut sequence, wanted, &[]);
            }
            if !fits {
                self.running.truncate(next);
                self.preempt(sequence);
                return true;
            }
            sequence.scheduled = wanted;
            *budget -= wanted;
            self.running[next] = sequence;
            next += 1;
        }
        preempted
    }

    /// A preempted request loses its blocks and is first in the queue; what the cache still
    /// has of them it finds again.
    fn preempt(&mut self, mut sequence: Sequence) {
        self.pool.release(&sequence.blocks);
        sequence.blocks.clear();
        sequence.cached_blocks = 0;
        sequence.computed = 0;
        self.totals.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Waiting requests follow in order, each only if its whole prompt would fit
    /// (`scheduler_reserve_full_isl`, on by default).
    fn admit_waiting(&mut self, budget: &mut usize) {
        while *budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(mut sequence) = self.waiting.pop_front() else {
                return;
            };
            let hits = self.lookup(&mut sequence);
            sequence.computed = hits.len() * self.config.block_size;
            let missing = sequence.tokens.len() - sequence.computed;
            let wanted = missing.min(*budget);
            let whole = self.blocks_for(sequence.tokens.len()) - hits.len();
            let fits = whole + self.pool.free_among(&hits) <= self.pool.free_blocks();
            if !fits || !self.allocate(&mut sequence, wanted, &hits) {
                sequence.computed = 0;
                self.waiting.push_front(sequence);
                return;
            }
            self.count_first_schedule(&mut sequence);
            sequence.scheduled = wanted;
            *budget -= wanted;
            self.running.push(sequence);
        }
    }

    /// The longest run of leading blocks that the cache has. The last token is never among
    /// them: computing it is what yields the first logits.
    fn lookup(&mut self, sequence: &mut Sequence) -> Vec<BlockId> {
        if sequence.request.skip_cache_read {
            return Vec::new();
        }
        let most = (sequence.tokens.len() - 1) / self.config.block_size;
        let hashes = sequence.hashes(most, &self.hasher);
        let hits: Vec<BlockId> = hashes
            .iter()
            .map_while(|&hash| self.pool.find(hash))
            .collect();
        if sequence.request.report_reused && !hits.is_empty() {
            let reused = sequence.stored(0, hits.len(), self.config.block_size);
            self.pool.announce(reused);
        }
        hits
    }

    /// Tokens count as hits or misses when a request is scheduled first, not when it resumes.
    fn count_first_schedule(&mut self, sequence: &mut Sequence) {
        if sequence.hit_tokens.is_some() {
            return;
        }
        sequence.hit_tokens = Some(sequence.computed);
        if !sequence.request.skip_cache_read {
            self.totals.query_tokens += sequence.tokens.len() as u64;
            self.totals.hit_tokens += sequence.computed as u64;
        }
    }

    /// And to the prompts that are done, by what was found of them, when the first token comes.
    fn count_first_token(&mut self, sequence: &Sequence) {
        self.totals.first_tokens += 1;
        self.totals.prompt_tokens += sequence.tokens.len() as u64;
        self.totals.cached_prompt_tokens += sequence.hit_tokens.unwrap_or(0) as u64;
    }

    /// Gives `sequence` the blocks for its next `wanted` tokens, on top of cached ones in
    /// `hits`, and lets the cache know those that become full. False if there are too few.
    fn allocate(&mut self, sequence: &mut Sequence, wanted: usize, hits: &[BlockId]) -> bool {
        let end = sequence.computed + wanted;
        let missing = self
            .blocks_for(end)
            .saturating_sub(sequence.blocks.len() + hits.len());
        if missing + self.pool.free_among(hits) > self.pool.free_blocks() {
            return false;
        }
        self.pool.touch(hits);
        sequence.blocks.extend_from_slice(hits);
        sequence.cached_blocks += hits.len();
        sequence.blocks.extend(self.pool.allocate(missing));
        self.cache_full_blocks(sequence, end / self.config.block_size);
        true
    }

    fn cache_full_blocks(&mut self, sequence: &mut Sequence, full: usize) {
        let known = sequence.cached_blocks;
        if known >= full {
            return;
        }
        let hashes = sequence.hashes(full, &self.hasher)[known..].to_vec();
        for (&block, hash) in sequence.blocks[known..].iter().zip(hashes) {
            self.pool.insert(block, hash);
        }
        self.pool
            .announce(sequence.stored(known, full, self.config.block_size));
        sequence.cached_blocks = full;
    }

    fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.config.block_size)
    }
}

#[cfg(test)]
mod tests;

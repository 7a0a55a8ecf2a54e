//! Who gets a request: the policies side by side.

use kvscout::blocks::{BlockKey, Chain, Chains};
use kvscout::fleet::{EndpointId, Trust};
use kvscout::index::{Cached, Index};

use crate::dice::Dice;
use crate::engine::Gauges;

mod approximate;
mod blind;
mod dynamo;
mod llmd;
mod ours;
mod recent;

/// A pod, as one router sees it.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Which.
    pub endpoint: EndpointId,
    /// What this router has placed there.
    pub load: Load,
    /// The last scrape.
    pub gauges: Gauges,
    /// How sure its cache is known.
    pub trust: Trust,
    /// Prompt tokens that it computes in a second, as measured.
    pub pace: Option<f64>,
    /// Those of `load` that it should have computed by now.
    pub underway_tokens: u64,
    /// Prompt tokens that it should compute of what was placed there lately.
    pub recent_tokens: u64,
}

/// What one router has placed at a pod and not seen ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests.
    pub requests: u32,
    /// Prompt tokens that should be computed, of requests without a first token.
    pub prefill_tokens: u64,
    /// Prompt tokens of all requests.
    pub prompt_tokens: u64,
}

/// A request to be placed.
pub struct Ask<'a, 'p> {
    /// A number of its own, as `x-request-id`.
    pub request: &'a str,
    /// What clients send as a session.
    pub session: u64,
    /// The prompt.
    pub prompt: &'a mut Chains<'p>,
    /// Tokens in each block.
    pub block_size: u32,
    /// Who knows the caches, if anybody does.
    pub index: Option<&'a Index>,
    /// The pods that may get it, in the order of their numbers; at least one.
    pub pods: &'a [Seen],
}

/// Who gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// The pod's place among those that could.
    pub place: usize,
    /// Tokens believed to be cached there.
    pub cached_tokens: u64,
}

/// One router's way to choose, with what it remembers.
pub trait Choose: Send {
    /// Places a request.
    fn pick(&mut self, ask: &mut Ask<'_, '_>) -> Pick;

    /// A pod has gone, or begun anew.
    fn forget(&mut self, _endpoint: EndpointId) {}
}

impl Ask<'_, '_> {
    /// The prompt's block keys.
    fn chain(&mut self) -> &Chain {
        self.prompt.of(self.block_size.into())
    }

    /// What each pod holds, as far as it is known.
    fn cached(&mut self) -> Vec<Cached> {
        let endpoints: Vec<EndpointId> = self.pods.iter().map(|pod| pod.endpoint).collect();
        match self.index {
            Some(index) => index.cached(&endpoints, self.prompt),
            None => vec![Cached::default(); endpoints.len()],
        }
    }
}

/// The policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Policy {
    /// Each pod in turn
    RoundRobin,
    /// The pod with the fewest requests
    LeastRequest,
    /// Sessions on a ring of pods, none above 1.25 times the mean load
    ConsistentHash,
    /// GIE and llm-d by default: what was sent there before, queue and KV usage, 3:2:2
    Approximate,
    /// llm-d's optimized baseline: pods believed to hold 80 %, then the fewest tokens in flight
    LlmdAffinity,
    /// NVIDIA Dynamo's cost over exact events: prefill blocks and active blocks
    Dynamo,
    /// kvscout's index and choice
    Kvscout,
    /// kvscout's choice with instant knowledge of every cache, in one router
    Oracle,
}

impl Policy {
    /// All, in the order of tables.
    pub const ALL: [Self; 8] = [
        Self::RoundRobin,
        Self::LeastRequest,
        Self::ConsistentHash,
        Self::Approximate,
        Self::LlmdAffinity,
        Self::Dynamo,
        Self::Kvscout,
        Self::Oracle,
    ];

    /// As in tables, and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastRequest => "least-request",
            Self::ConsistentHash => "consistent-hash",
            Self::Approximate => "approximate",
            Self::LlmdAffinity => "llmd-affinity",
            Self::Dynamo => "dynamo",
            Self::Kvscout => "kvscout",
            Self::Oracle => "oracle",
        }
    }

    /// Whether the choice is kvscout's.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Kvscout | Self::Oracle)
    }

    /// What it knows of caches.
    #[must_use]
    pub fn knowledge(self) -> Knowledge {
        match self {
            Self::Dynamo | Self::Kvscout => Knowledge::Events,
            Self::Oracle => Knowledge::Instant,
            _ => Knowledge::None,
        }
    }

    /// One router's.
    #[must_use]
    pub fn router(self, seed: u64, num_gpu_blocks: u32) -> Box<dyn Choose> {
        let dice = Dice::new(seed);
        match self {
            Self::RoundRobin => Box::new(blind::RoundRobin::new(dice)),
            Self::LeastRequest => Box::new(blind::LeastRequest::new(dice)),
            Self::ConsistentHash => Box::new(blind::ConsistentHash::default()),
            Self::Approximate => Box::new(approximate::Approximate::new(num_gpu_blocks, dice)),
            Self::LlmdAffinity => Box::new(llmd::Affinity::new(num_gpu_blocks, dice)),
            Self::Dynamo => Box::new(dynamo::Dynamo::new(dice)),
            Self::Kvscout | Self::Oracle => Box::new(ours::Ours::default()),
        }
    }
}

/// What a policy is told of caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knowledge {
    /// Nothing.
    None,
    /// Events, when they arrive, if they do.
    Events,
    /// What the engine schedules, at once.
    Instant,
}

/// The lowest cost; of several, one by the dice.
fn least(dice: &mut Dice, costs: impl Iterator<Item = f64>) -> usize {
    let (mut best, mut lowest, mut ties) = (0, f64::INFINITY, 0);
    for (place, cost) in costs.enumerate() {
        if cost < lowest {
            (best, lowest, ties) = (place, cost, 1);
        } else if cost == lowest {
            ties += 1;
            if dice.below(ties) == 0 {
                best = place;
            }
        }
    }
    best
}

/// A block's key as a number, for tables of our own.
fn keys(chain: &Chain) -> &[BlockKey] {
    &chain.keys
}

#[cfg(test)]
mod tests;

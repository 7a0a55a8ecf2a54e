//! Routers: replicas that each know what they placed themselves, and share what events tell.

use kvscout::blocks::{Chains, Identity, TokenId};
use kvscout::fleet::{EndpointId, Trust};
use kvscout::index::Index;

use super::policies::{Ask, Choose, Load, Pick, Policy, Seen};
use crate::engine::Gauges;

/// A router replica.
pub struct Router {
    choose: Box<dyn Choose>,
    loads: Vec<Load>,
}

/// What a router has booked for a request, to be released.
#[derive(Debug, Clone, Copy, Default)]
pub struct Booking {
    /// Which router.
    pub router: usize,
    /// Which pod.
    pub pod: usize,
    /// Prompt tokens that should be computed; none any more once the first token came.
    pub prefill_tokens: u64,
    prompt_tokens: u64,
}

/// What all routers see alike.
pub struct Facts<'a> {
    /// Who may get requests, by number.
    pub open: &'a [usize],
    /// The last scrapes, by pod.
    pub gauges: &'a [Gauges],
    /// How sure each pod's cache is known.
    pub trust: &'a [Trust],
    /// Who knows the caches.
    pub index: Option<&'a Index>,
    /// Tokens in each block.
    pub block_size: u32,
}

impl Router {
    /// One that has placed nothing yet.
    #[must_use]
    pub fn new(policy: Policy, seed: u64, num_gpu_blocks: u32) -> Self {
        let choose = policy.router(seed, num_gpu_blocks);
        let loads = Vec::new();
        Self { choose, loads }
    }

    /// Chooses for a request, and books it.
    pub fn place(
        &mut self,
        router: usize,
        (number, session): (usize, u64),
        tokens: &[TokenId],
        facts: &Facts<'_>,
    ) -> Booking {
        self.loads.resize(facts.trust.len(), Load::default());
        let see = |&pod: &usize| Seen {
            endpoint: EndpointId(pod as u32),
            load: self.loads[pod],
            gauges: facts.gauges[pod],
            trust: facts.trust[pod],
        };
        let pods: Vec<Seen> = facts.open.iter().map(see).collect();
        let identity = Identity::default();
        let mut prompt = Chains::new(tokens, &identity);
        let Pick {
            place,
            cached_tokens,
        } = self.choose.pick(&mut Ask {
            request: &format!("request-{number}"),
            session,
            prompt: &mut prompt,
            block_size: facts.block_size,
            index: facts.index,
            pods: &pods,
        });
        let prompt_tokens = tokens.len() as u64;
        let booking = Booking {
            router,
            pod: facts.open[place],
            prefill_tokens: prompt_tokens.saturating_sub(cached_tokens),
            prompt_tokens,
        };
        let load = &mut self.loads[booking.pod];
        load.requests += 1;
        load.prefill_tokens += booking.prefill_tokens;
        load.prompt_tokens += booking.prompt_tokens;
        booking
    }

    /// The first token came: the prompt is computed.
    pub fn prefilled(&mut self, booking: &mut Booking) {
        let done = std::mem::take(&mut booking.prefill_tokens);
        self.loads[booking.pod].prefill_tokens -= done;
    }

    /// It ended, one way or another.
    pub fn ended(&mut self, mut booking: Booking) {
        self.prefilled(&mut booking);
        let load = &mut self.loads[booking.pod];
        load.requests -= 1;
        load.prompt_tokens -= booking.prompt_tokens;
    }

    /// A pod has gone, or begun anew.
    pub fn forget(&mut self, pod: usize) {
        self.choose.forget(EndpointId(pod as u32));
    }
}

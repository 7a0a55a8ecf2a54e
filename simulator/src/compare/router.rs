//! Routers: replicas that each know what they placed themselves, and share what events tell.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvscout::blocks::{BlockEvent, Chains, Identity, TokenId};
use kvscout::fleet::load::{Pace, Recent};
use kvscout::fleet::{EndpointId, Trust};
use kvscout::index::{Expectation, Index};

use super::clock::Time;
use super::policies::{Ask, Choose, Knowledge, Load, Pick, Policy, Seen};
use crate::engine::Gauges;

/// A router replica.
pub struct Router {
    choose: Box<dyn Choose>,
    /// Who knows the caches, if anybody does.
    index: Option<Arc<Index>>,
    loads: Vec<Load>,
    recents: Vec<Recent>,
    paces: Vec<Pace>,
    /// What time 0 is.
    began: Instant,
    /// Counts what was placed as held.
    speculates: bool,
    expected: HashMap<usize, Expectation>,
}

/// What a router has booked for a request, to be released.
#[derive(Debug, Clone, Copy, Default)]
pub struct Booking {
    /// Which request.
    pub number: usize,
    /// Which router.
    pub router: usize,
    /// Which pod.
    pub pod: usize,
    /// Prompt tokens that should be computed; none any more once the first token came.
    pub prefill_tokens: Option<u64>,
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
    /// Tokens in each block.
    pub block_size: u32,
    /// When.
    pub now: Time,
}

impl Router {
    /// One that has placed nothing yet.
    #[must_use]
    pub fn new(policy: Policy, seed: u64, num_gpu_blocks: u32) -> Self {
        let knows = policy.knowledge() != Knowledge::None;
        Self {
            choose: policy.router(seed, num_gpu_blocks),
            index: knows.then(Arc::default),
            loads: Vec::new(),
            recents: Vec::new(),
            paces: Vec::new(),
            began: Instant::now(),
            speculates: policy.is_ours(),
            expected: HashMap::new(),
        }
    }

    /// Chooses for a request, and books it.
    pub fn place(
        &mut self,
        router: usize,
        (number, session): (usize, u64),
        tokens: &[TokenId],
        facts: &Facts<'_>,
    ) -> Booking {
        self.make_room(facts.trust.len());
        let now = self.instant(facts.now);
        let see = |&pod: &usize| Seen {
            endpoint: EndpointId(pod as u32),
            load: self.loads[pod],
            gauges: facts.gauges[pod],
            trust: facts.trust[pod],
            pace: self.paces[pod].get(),
            underway_tokens: self.paces[pod].underway(self.loads[pod].prefill_tokens, now),
            recent_tokens: self.recents[pod].tokens(now),
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
            index: self.index.as_deref(),
            pods: &pods,
        });
        let prompt_tokens = tokens.len() as u64;
        let booking = Booking {
            number,
            router,
            pod: facts.open[place],
            prefill_tokens: Some(prompt_tokens.saturating_sub(cached_tokens)),
            prompt_tokens,
        };
        self.book(&booking, &prompt, facts.now);
        booking
    }

    /// Another router has placed a request.
    pub fn heard_placed(
        &mut self,
        booking: Booking,
        tokens: &[TokenId],
        block_size: u32,
        now: Time,
    ) {
        self.make_room(booking.pod + 1);
        let identity = Identity::default();
        let mut prompt = Chains::new(tokens, &identity);
        prompt.of(block_size.into());
        self.book(&booking, &prompt, now);
    }

    fn make_room(&mut self, pods: usize) {
        if self.loads.len() < pods {
            self.loads.resize(pods, Load::default());
            self.recents.resize_with(pods, Recent::default);
            self.paces.resize_with(pods, Pace::default);
        }
    }

    fn book(&mut self, booking: &Booking, prompt: &Chains<'_>, now: Time) {
        let now = self.instant(now);
        self.paces[booking.pod].placed(now);
        let load = &mut self.loads[booking.pod];
        load.requests += 1;
        let uncached = booking.prefill_tokens.unwrap_or(0);
        load.prefill_tokens += uncached;
        load.prompt_tokens += booking.prompt_tokens;
        self.recents[booking.pod].placed(uncached, now);
        if let Some(index) = self.index.as_ref().filter(|_| self.speculates) {
            let expectation = index.expect(EndpointId(booking.pod as u32), prompt);
            self.expected
                .extend(expectation.map(|expectation| (booking.number, expectation)));
        }
    }

    /// What a pod has put into its cache and taken out of it, as far as it was heard.
    pub fn take(&self, pod: usize, events: &[BlockEvent]) {
        if let Some(index) = &self.index {
            index.apply(EndpointId(pod as u32), events);
        }
    }

    /// Something of a pod was not heard.
    pub fn doubt(&self, pod: usize) {
        if let Some(index) = &self.index {
            index.doubt(EndpointId(pod as u32));
        }
    }

    /// The first token came: the prompt is computed.
    pub fn first_token(&mut self, booking: &mut Booking, now: Time) {
        let now = self.instant(now);
        self.prefilled(booking, Some(now));
    }

    fn prefilled(&mut self, booking: &mut Booking, first_token: Option<Instant>) {
        if let Some(tokens) = booking.prefill_tokens.take() {
            self.loads[booking.pod].prefill_tokens -= tokens;
            self.paces[booking.pod].computed(tokens, first_token);
        }
    }

    /// Virtual time as the product knows time.
    fn instant(&self, now: Time) -> Instant {
        self.began + Duration::from_nanos(now)
    }

    /// It ended, one way or another.
    pub fn ended(&mut self, mut booking: Booking) {
        self.prefilled(&mut booking, None);
        let load = &mut self.loads[booking.pod];
        load.requests -= 1;
        load.prompt_tokens -= booking.prompt_tokens;
        if let Some(expectation) = self.expected.remove(&booking.number) {
            expectation.answered();
        }
    }

    /// A pod has gone, or begun anew.
    pub fn forget(&mut self, pod: usize) {
        let endpoint = EndpointId(pod as u32);
        self.choose.forget(endpoint);
        if let Some(index) = &self.index {
            index.forget(endpoint);
        }
    }
}

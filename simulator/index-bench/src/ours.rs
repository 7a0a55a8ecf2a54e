//! kvscout's index: all that this benchmark knows of it.

use std::sync::Arc;

use kvscout::blocks::{BlockEvent, Chain, Chains, EngineHash, Group, Identity, Medium, Stored};
use kvscout::fleet::EndpointId;
use kvscout::index::{Cached, Depths, Feed, Index as Picture};

use crate::index::{Caller, Direct, Index};
use crate::workload::{Change, Event, Query, tokens};

/// The two halves of a block's content stand for its tokens. Hashing them into a key is inside a
/// store's clock; of sixteen tokens it takes some nanoseconds more.
const BLOCK_SIZE: u32 = 2;

static NOBODY: Identity = Identity {
    adapter: None,
    cache_salt: None,
};

/// What an endpoint publishes at once.
pub enum Told {
    Event([BlockEvent; 1]),
    Step(Vec<BlockEvent>),
}

fn told(event: &Event) -> BlockEvent {
    let (medium, group) = (Medium::Gpu, Group::default());
    match &event.change {
        Change::Stored { parent, blocks } => {
            let hashes = blocks.iter().map(|block| EngineHash(block.engine));
            let tokens = tokens(blocks.iter().map(|block| block.content));
            let parent = parent.map(EngineHash);
            BlockEvent::Stored(Stored::plain(parent, hashes.collect(), tokens))
        }
        Change::Removed(engine) => BlockEvent::Removed {
            hashes: vec![EngineHash(*engine)],
            medium,
            group,
        },
    }
}

/// The index, asked for depths.
pub struct Ours {
    picture: Picture,
    endpoints: Vec<EndpointId>,
}

impl Direct for Ours {
    /// Where each endpoint's events go.
    type Lane = Vec<Feed>;
    type Event = (EndpointId, Told);

    fn begin(&self) -> Vec<Feed> {
        let endpoints = self.endpoints.iter();
        endpoints
            .map(|endpoint| self.picture.feed(*endpoint))
            .collect()
    }

    fn event(&self, event: &Event) -> Self::Event {
        (EndpointId(event.endpoint), Told::Event([told(event)]))
    }

    fn step(&self, events: &[Event], into: &mut Vec<Self::Event>) {
        if let Some(first) = events.first() {
            let events = events.iter().map(told).collect();
            into.push((EndpointId(first.endpoint), Told::Step(events)));
        }
    }

    fn apply(&self, feeds: &mut Vec<Feed>, (endpoint, told): &Self::Event) {
        let events = match told {
            Told::Event(event) => &event[..],
            Told::Step(events) => events,
        };
        self.picture.take(&mut feeds[endpoint.0 as usize], events);
    }

    fn forget(&self, _: &mut Vec<Feed>, endpoint: u32) {
        self.picture.forget(EndpointId(endpoint));
    }
}

impl Index for Ours {
    const NAME: &'static str = "kvscout";
    type Lane = Caller<Self>;
    type Ask<'q> = Chain;
    type Room = Depths;

    fn new(endpoints: u32) -> Self {
        Self {
            picture: Picture::default(),
            endpoints: (0..endpoints).map(EndpointId).collect(),
        }
    }

    fn lane(this: &Arc<Self>) -> Caller<Self> {
        Caller::new(this)
    }

    fn ask(&self, query: &Query) -> Chain {
        Chain::of_prompt(&query.tokens, BLOCK_SIZE, &NOBODY)
    }

    fn room(&self) -> Depths {
        Depths::default()
    }

    fn find(&self, chain: &mut Chain, depths: &mut Depths) {
        self.picture.depths(chain, depths);
    }

    fn found(&self, depths: &Depths, tell: &mut dyn FnMut(u32, u32)) {
        for endpoint in &self.endpoints {
            if let Some(holder) = self.picture.holder(*endpoint) {
                tell(endpoint.0, depths.of(holder));
            }
        }
    }
}

/// The same index, asked as the scheduler asks it: `cached()`, for the whole fleet, in its order,
/// with what lies in lower media and what is in doubt.
pub struct Product(Ours);

impl Direct for Product {
    type Lane = Vec<Feed>;
    type Event = <Ours as Direct>::Event;

    fn begin(&self) -> Vec<Feed> {
        self.0.begin()
    }

    fn event(&self, event: &Event) -> Self::Event {
        self.0.event(event)
    }

    fn apply(&self, lane: &mut Vec<Feed>, event: &Self::Event) {
        self.0.apply(lane, event);
    }

    fn forget(&self, lane: &mut Vec<Feed>, endpoint: u32) {
        self.0.forget(lane, endpoint);
    }
}

impl Index for Product {
    const NAME: &'static str = "kvscout, cached()";
    type Lane = Caller<Self>;
    type Ask<'q> = Chains<'q>;
    type Room = Vec<Cached>;

    fn new(endpoints: u32) -> Self {
        Self(Ours::new(endpoints))
    }

    fn lane(this: &Arc<Self>) -> Caller<Self> {
        Caller::new(this)
    }

    fn ask<'q>(&self, query: &'q Query) -> Chains<'q> {
        let mut chains = Chains::new(&query.tokens, &NOBODY);
        chains.of(BLOCK_SIZE.into());
        chains
    }

    fn room(&self) -> Vec<Cached> {
        Vec::new()
    }

    fn find(&self, ask: &mut Chains<'_>, room: &mut Vec<Cached>) {
        *room = self.0.picture.cached(&self.0.endpoints, ask);
    }

    fn found(&self, room: &Vec<Cached>, tell: &mut dyn FnMut(u32, u32)) {
        for (endpoint, cached) in self.0.endpoints.iter().zip(room) {
            tell(endpoint.0, cached.own as u32 / BLOCK_SIZE);
        }
    }
}

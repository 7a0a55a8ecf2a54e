//! kv-index's `ChainIndex` behind an exact count of copies: what it needs to be right where an engine
//! stores a block again and removes its copies one by one, as vLLM does.

use std::sync::Arc;

use kv_index::{ChainBlockMap, ContentHash};
use rustc_hash::FxHashMap;

use crate::index::{Caller, Direct, Index};
use crate::peers::Chain;
use crate::peers::chain::ChainEvent;
use crate::workload::{Event, Query};

/// The index, told only of first copies and of last ones.
pub struct Counted(Chain);

/// Engine hash → physical copies, of one endpoint.
type Copies = FxHashMap<u64, u32>;

impl Direct for Counted {
    type Lane = (Vec<ChainBlockMap>, Vec<Copies>);
    type Event = ChainEvent;

    fn begin(&self) -> Self::Lane {
        let maps = self.0.begin();
        let counts = maps.iter().map(|_| Copies::default()).collect();
        (maps, counts)
    }

    fn event(&self, event: &Event) -> ChainEvent {
        self.0.event(event)
    }

    fn apply(&self, (maps, counts): &mut Self::Lane, event: &ChainEvent) {
        match event {
            ChainEvent::Stored(endpoint, parent, blocks) => {
                let counts = &mut counts[*endpoint as usize];
                // A row of first copies is one store, behind the block before it.
                let (mut parent, mut begun) = (*parent, 0);
                for (at, block) in blocks.iter().enumerate() {
                    let copies = counts.entry(block.seq_hash.0).or_default();
                    *copies += 1;
                    if *copies > 1 {
                        self.0.store(maps, *endpoint, parent, &blocks[begun..at]);
                        (parent, begun) = (Some(block.seq_hash), at + 1);
                    }
                }
                self.0.store(maps, *endpoint, parent, &blocks[begun..]);
            }
            ChainEvent::Removed(endpoint, [hash]) => {
                let counts = &mut counts[*endpoint as usize];
                match counts.get_mut(&hash.0) {
                    Some(copies) if *copies > 1 => *copies -= 1,
                    Some(_) => {
                        counts.remove(&hash.0);
                        self.0.apply(maps, event);
                    }
                    None => {}
                }
            }
            ChainEvent::RemovedMany(..) => unreachable!("its steps are told event by event"),
        }
    }

    fn forget(&self, (maps, counts): &mut Self::Lane, endpoint: u32) {
        counts[endpoint as usize] = Copies::default();
        self.0.forget(maps, endpoint);
    }
}

impl Index for Counted {
    const NAME: &'static str = "kv-index, counted";
    type Lane = Caller<Self>;
    type Ask<'q> = Vec<ContentHash>;
    type Room = Vec<u32>;

    fn new(endpoints: u32) -> Self {
        Self(Chain::new(endpoints))
    }

    fn lane(this: &Arc<Self>) -> Caller<Self> {
        Caller::new(this)
    }

    fn ask(&self, query: &Query) -> Vec<ContentHash> {
        self.0.ask(query)
    }

    fn room(&self) -> Vec<u32> {
        self.0.room()
    }

    fn find(&self, ask: &mut Vec<ContentHash>, room: &mut Vec<u32>) {
        self.0.find(ask, room);
    }

    fn found(&self, room: &Vec<u32>, tell: &mut dyn FnMut(u32, u32)) {
        self.0.found(room, tell);
    }
}

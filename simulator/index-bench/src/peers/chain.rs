//! kv-index's `ChainIndex`, read through `score_into`: dense scores, without a map of results.

use std::sync::Arc;

use kv_index::{ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock};

use crate::index::{Caller, Direct, Index};
use crate::workload::{Change, Event, Query};

/// The index. It gives its workers the numbers from 0 in the order of their names' coming, which
/// are our endpoints'.
pub struct Chain {
    index: ChainIndex,
    endpoints: u32,
}

pub enum ChainEvent {
    Stored(u32, Option<SequenceHash>, Vec<StoredBlock>),
    Removed(u32, [SequenceHash; 1]),
    /// Those of a step in one call.
    RemovedMany(u32, Vec<SequenceHash>),
}

impl Chain {
    pub(super) fn store(
        &self,
        lane: &mut [ChainBlockMap],
        endpoint: u32,
        parent: Option<SequenceHash>,
        blocks: &[StoredBlock],
    ) {
        if !blocks.is_empty() {
            let map = &mut lane[endpoint as usize];
            let stored = self.index.apply_stored(endpoint, blocks, parent, map);
            stored.expect("every parent is held");
        }
    }

    fn remove(&self, lane: &mut [ChainBlockMap], endpoint: u32, hashes: &[SequenceHash]) {
        let map = &mut lane[endpoint as usize];
        self.index.apply_removed(endpoint, hashes, map);
    }
}

impl Direct for Chain {
    type Lane = Vec<ChainBlockMap>;
    type Event = ChainEvent;

    fn begin(&self) -> Vec<ChainBlockMap> {
        let maps = (0..self.endpoints).map(|_| ChainBlockMap::default());
        maps.collect()
    }

    fn event(&self, event: &Event) -> ChainEvent {
        match &event.change {
            Change::Stored { parent, blocks } => {
                let blocks = blocks.iter().map(|block| StoredBlock {
                    seq_hash: SequenceHash(block.engine),
                    content_hash: ContentHash(block.content),
                });
                ChainEvent::Stored(event.endpoint, parent.map(SequenceHash), blocks.collect())
            }
            Change::Removed(engine) => ChainEvent::Removed(event.endpoint, [SequenceHash(*engine)]),
        }
    }

    fn step(&self, events: &[Event], into: &mut Vec<ChainEvent>) {
        let mut removed = Vec::new();
        for event in events {
            match event.change {
                Change::Removed(engine) => removed.push(SequenceHash(engine)),
                Change::Stored { .. } if removed.is_empty() => into.push(self.event(event)),
                Change::Stored { .. } => {
                    let removed = std::mem::take(&mut removed);
                    into.push(ChainEvent::RemovedMany(event.endpoint, removed));
                    into.push(self.event(event));
                }
            }
        }
        if let Some(last) = events.last().filter(|_| !removed.is_empty()) {
            into.push(ChainEvent::RemovedMany(last.endpoint, removed));
        }
    }

    fn apply(&self, lane: &mut Vec<ChainBlockMap>, event: &ChainEvent) {
        match event {
            ChainEvent::Stored(endpoint, parent, blocks) => {
                self.store(lane, *endpoint, *parent, blocks);
            }
            ChainEvent::Removed(endpoint, hash) => self.remove(lane, *endpoint, hash),
            ChainEvent::RemovedMany(endpoint, hashes) => self.remove(lane, *endpoint, hashes),
        }
    }

    fn forget(&self, lane: &mut Vec<ChainBlockMap>, endpoint: u32) {
        let map = std::mem::take(&mut lane[endpoint as usize]);
        self.index.remove_worker(endpoint, map);
    }
}

impl Index for Chain {
    const NAME: &'static str = "kv-index ChainIndex";
    type Lane = Caller<Self>;
    type Ask<'q> = Vec<ContentHash>;
    type Room = Vec<u32>;

    fn new(endpoints: u32) -> Self {
        let index = ChainIndex::with_max_workers(endpoints.max(64) as usize);
        for endpoint in 0..endpoints {
            let worker = index.intern_worker(&endpoint.to_string());
            assert_eq!(worker, Ok(endpoint), "workers are numbered from 0");
        }
        Self { index, endpoints }
    }

    fn lane(this: &Arc<Self>) -> Caller<Self> {
        Caller::new(this)
    }

    fn ask(&self, query: &Query) -> Vec<ContentHash> {
        query.contents.iter().copied().map(ContentHash).collect()
    }

    fn room(&self) -> Vec<u32> {
        vec![0; self.endpoints as usize]
    }

    fn find(&self, ask: &mut Vec<ContentHash>, room: &mut Vec<u32>) {
        room.fill(0);
        let tell = |worker: u32, score| room[worker as usize] = score;
        self.index.score_into(ask, |content| content.0, false, tell);
    }

    fn found(&self, room: &Vec<u32>, tell: &mut dyn FnMut(u32, u32)) {
        for (endpoint, score) in (0..).zip(room) {
            tell(endpoint, *score);
        }
    }
}

//! The plainest exact index: a map from engine hash to the set of endpoints, a bit each. One lock,
//! one probe per block, nothing of copies or of what engines hide.

use std::sync::{Arc, PoisonError, RwLock};

use rustc_hash::FxHashMap;

use crate::index::{Caller, Direct, Index};
use crate::workload::{self, Change, Event, Query};

/// The index.
pub struct Flat {
    endpoints: u32,
    sets: RwLock<Sets>,
}

#[derive(Default)]
struct Sets {
    /// Where the set of a block begins, in sets.
    of_block: FxHashMap<u64, u32>,
    bits: Vec<u64>,
    /// Sets that no block has.
    free: Vec<u32>,
}

impl Flat {
    fn words(&self) -> usize {
        self.endpoints.div_ceil(64) as usize
    }
}

impl Direct for Flat {
    type Lane = ();
    type Event = Event;

    fn begin(&self) {}

    fn event(&self, event: &Event) -> Event {
        event.clone()
    }

    fn apply(&self, (): &mut (), event: &Event) {
        let words = self.words();
        let mut sets = self.sets.write().unwrap_or_else(PoisonError::into_inner);
        let Sets {
            of_block,
            bits,
            free,
        } = &mut *sets;
        let (word, bit) = (event.endpoint as usize / 64, 1 << (event.endpoint % 64));
        match &event.change {
            Change::Stored { blocks, .. } => {
                for block in blocks {
                    let set = of_block.entry(block.engine).or_insert_with(|| {
                        free.pop().unwrap_or_else(|| {
                            bits.resize(bits.len() + words, 0);
                            (bits.len() / words - 1) as u32
                        })
                    });
                    bits[*set as usize * words + word] |= bit;
                }
            }
            Change::Removed(engine) => {
                let set = of_block[engine];
                let holders = &mut bits[set as usize * words..][..words];
                holders[word] &= !bit;
                if holders.iter().all(|word| *word == 0) {
                    of_block.remove(engine);
                    free.push(set);
                }
            }
        }
    }

    fn forget(&self, (): &mut (), _: u32) {
        unreachable!("only measured at scale, where this one is not");
    }
}

/// Scores, and who is still held by every block so far.
#[derive(Default)]
pub struct FlatRoom {
    scores: Vec<u32>,
    alive: Vec<u64>,
}

impl FlatRoom {
    fn end(&mut self, word: usize, mut gone: u64, score: u32) {
        while gone != 0 {
            self.scores[word * 64 + gone.trailing_zeros() as usize] = score;
            gone &= gone - 1;
        }
    }
}

impl Index for Flat {
    const NAME: &'static str = "flat hash and bits";
    type Lane = Caller<Self>;
    type Ask<'q> = Vec<u64>;
    type Room = FlatRoom;

    fn new(endpoints: u32) -> Self {
        Self {
            endpoints,
            sets: RwLock::default(),
        }
    }

    fn lane(this: &Arc<Self>) -> Caller<Self> {
        Caller::new(this)
    }

    fn ask(&self, query: &Query) -> Vec<u64> {
        let blocks = workload::chain(&query.contents);
        blocks.iter().map(|block| block.engine).collect()
    }

    fn room(&self) -> FlatRoom {
        FlatRoom {
            scores: vec![0; self.words() * 64],
            alive: vec![0; self.words()],
        }
    }

    fn find(&self, ask: &mut Vec<u64>, room: &mut FlatRoom) {
        let words = self.words();
        room.scores.fill(0);
        room.alive.fill(u64::MAX);
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        for (score, engine) in (0..).zip(ask.iter()) {
            let set = sets.of_block.get(engine);
            let holders = set.map(|set| &sets.bits[*set as usize * words..][..words]);
            let mut any = 0;
            for word in 0..words {
                let before = room.alive[word];
                let after = before & holders.map_or(0, |holders| holders[word]);
                if score > 0 {
                    room.end(word, before & !after, score);
                }
                room.alive[word] = after;
                any |= after;
            }
            if any == 0 {
                return;
            }
        }
        for word in 0..words {
            room.end(word, room.alive[word], ask.len() as u32);
        }
    }

    fn found(&self, room: &FlatRoom, tell: &mut dyn FnMut(u32, u32)) {
        for (endpoint, score) in (0..self.endpoints).zip(&room.scores) {
            tell(endpoint, *score);
        }
    }
}

//! Any index, behind one face: those of one round run in turn, whatever their types.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use anyhow::ensure;

use crate::heap;
use crate::index::{Index, Lane};
use crate::measure::{Took, nanoseconds};
use crate::workload::{Event, Query, Truth, steps};

/// Requests put into an index's own types at a time: few enough to be in a cache when they are
/// asked, as a prompt just hashed is.
const ASKS: usize = 1000;

/// An index with its lanes.
pub trait Contender {
    /// Applies events, each lane those of its endpoints.
    fn apply(&mut self, events: &[Event]) -> Took;
    /// The same through the first lane, each step's at once where the index takes them so.
    fn apply_steps(&mut self, events: &[Event]) -> Took;
    /// The same, event by event: each one's nanoseconds of CPU time, which no other
    /// tenant of the machine makes longer.
    fn apply_each(&mut self, events: &[Event]) -> Vec<u32>;
    /// The heap bytes that the events leave behind; taken back ones are negative.
    fn weigh(&mut self, events: &[Event]) -> i64;
    /// The heap bytes that what it leaves for later leaves.
    fn weigh_sweep(&mut self) -> i64;
    /// Each request's nanoseconds.
    fn find_each(&self, queries: &[Query]) -> Vec<u32>;
    /// The nanoseconds of requests while the first lane applies events.
    fn find_beside(&mut self, events: &[Event], queries: &[Query]) -> Vec<u32>;
    /// Fails unless every answer is the truth.
    fn is_right(&self, name: &str, queries: &[Query]) -> anyhow::Result<()>;
}

/// Each request's best nanoseconds with each contender, of rounds in which they take turns.
pub fn best_times(
    contenders: &[Box<dyn Contender>],
    queries: &[Query],
    rounds: usize,
) -> Vec<Vec<u32>> {
    let mut all = vec![vec![u32::MAX; queries.len()]; contenders.len()];
    for _ in 0..rounds {
        for (best, contender) in all.iter_mut().zip(contenders) {
            for (best, time) in best.iter_mut().zip(contender.find_each(queries)) {
                *best = time.min(*best);
            }
        }
    }
    all
}

/// How a contender enters.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What tables call it.
    pub name: &'static str,
    /// An empty one for so many endpoints, with so many lanes.
    pub enter: fn(u32, usize) -> Box<dyn Contender>,
}

impl Entry {
    /// Of an index.
    pub const fn of<I: Index>() -> Self {
        Self {
            name: I::NAME,
            enter: |endpoints, lanes| Box::new(Entered::<I>::new(endpoints, lanes)),
        }
    }
}

struct Entered<I: Index> {
    // Before the index: a lane's thread may hold it.
    lanes: Vec<I::Lane>,
    index: Arc<I>,
}

impl<I: Index> Entered<I> {
    fn new(endpoints: u32, lanes: usize) -> Self {
        let index = Arc::new(I::new(endpoints));
        Self {
            lanes: (0..lanes).map(|_| I::lane(&index)).collect(),
            index,
        }
    }
}

impl<I: Index> Contender for Entered<I> {
    fn apply(&mut self, events: &[Event]) -> Took {
        let count = self.lanes.len();
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            let own = |event: &&Event| event.endpoint as usize % count == number;
            lane.queue(&mut events.iter().filter(own));
        }
        let ready = Barrier::new(count);
        let run = |lane: &mut I::Lane| {
            ready.wait();
            lane.run()
        };
        let took = std::thread::scope(|scope| {
            let lanes = self.lanes.iter_mut();
            let lanes: Vec<_> = lanes.map(|lane| scope.spawn(|| run(lane))).collect();
            let took = lanes.into_iter().map(|lane| lane.join().expect("no panic"));
            took.reduce(Took::beside)
        });
        took.expect("a lane")
    }

    fn apply_steps(&mut self, events: &[Event]) -> Took {
        let lane = &mut self.lanes[0];
        lane.queue_steps(&mut steps(events));
        lane.run()
    }

    fn apply_each(&mut self, events: &[Event]) -> Vec<u32> {
        let lane = &mut self.lanes[0];
        lane.queue(&mut events.iter());
        lane.run_each()
    }

    fn weigh(&mut self, events: &[Event]) -> i64 {
        let (lane, before) = (&mut self.lanes[0], heap::live());
        lane.queue(&mut events.iter());
        lane.run();
        heap::live() - before
    }

    fn weigh_sweep(&mut self) -> i64 {
        let before = heap::live();
        self.lanes[0].sweep();
        heap::live() - before
    }

    fn find_each(&self, queries: &[Query]) -> Vec<u32> {
        find_each(&*self.index, queries)
    }

    fn find_beside(&mut self, events: &[Event], queries: &[Query]) -> Vec<u32> {
        let (lane, index) = (&mut self.lanes[0], &self.index);
        lane.queue(&mut events.iter());
        let mut asks: Vec<_> = queries.iter().map(|query| index.ask(query)).collect();
        let (mut room, mut times) = (index.room(), Vec::new());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| lane.run());
            for at in (0..asks.len()).cycle() {
                let begun = Instant::now();
                index.find(&mut asks[at], &mut room);
                black_box(&room);
                times.push(nanoseconds(begun.elapsed()));
                if writer.is_finished() {
                    break;
                }
            }
        });
        times
    }

    fn is_right(&self, name: &str, queries: &[Query]) -> anyhow::Result<()> {
        let wrong = wrong(&*self.index, queries);
        ensure!(
            wrong == 0,
            "{name}: {wrong} of {} answers are wrong",
            queries.len()
        );
        Ok(())
    }
}

/// Each request's nanoseconds.
pub fn find_each<I: Index>(index: &I, queries: &[Query]) -> Vec<u32> {
    let mut room = index.room();
    let mut times = Vec::with_capacity(queries.len());
    for some in queries.chunks(ASKS) {
        let mut asks: Vec<_> = some.iter().map(|query| index.ask(query)).collect();
        for ask in &mut asks {
            let begun = Instant::now();
            index.find(ask, &mut room);
            black_box(&room);
            times.push(nanoseconds(begun.elapsed()));
        }
    }
    times
}

/// How many answers are not the truth.
pub fn wrong<I: Index>(index: &I, queries: &[Query]) -> usize {
    let mut room = index.room();
    let wrong = queries.iter().filter(|query| {
        let mut found = Truth::default();
        index.find(&mut index.ask(query), &mut room);
        index.found(&room, &mut |endpoint, blocks| found.tell(endpoint, blocks));
        found != query.truth
    });
    wrong.count()
}

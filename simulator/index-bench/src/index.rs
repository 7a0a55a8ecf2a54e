//! What is asked of every index alike.

use std::sync::Arc;

use crate::measure::{Moment, Took, between, thread_cpu};
use crate::workload::{Event, Query};

/// An index that can be measured.
///
/// Events and requests are put into its own types outside the clock; what is inside is what it
/// does with them.
pub trait Index: Send + Sync + Sized + 'static {
    /// What tables call it.
    const NAME: &'static str;
    /// The state of one thread that writes.
    type Lane: Lane;
    /// A request in its own types.
    type Ask<'q>: Send;
    /// Where answers go; one for each thread that reads, used again and again.
    type Room;

    /// An empty one for endpoints 0 to `endpoints`, the last left out.
    fn new(endpoints: u32) -> Self;
    /// A thread's way to write. An endpoint's events all go through one.
    fn lane(this: &Arc<Self>) -> Self::Lane;
    /// A request.
    fn ask<'q>(&self, query: &'q Query) -> Self::Ask<'q>;
    /// Room for answers.
    fn room(&self) -> Self::Room;
    /// How many leading blocks each endpoint holds: this alone is timed.
    fn find(&self, ask: &mut Self::Ask<'_>, room: &mut Self::Room);
    /// Tells what was found, endpoint by endpoint.
    fn found(&self, room: &Self::Room, tell: &mut dyn FnMut(u32, u32));
}

/// A thread that writes.
pub trait Lane: Send {
    /// Makes events ready, outside the clock.
    fn queue(&mut self, events: &mut dyn Iterator<Item = &Event>);
    /// The same, each step's in whatever way the index takes several at once.
    fn queue_steps(&mut self, steps: &mut dyn Iterator<Item = &[Event]>) {
        self.queue(&mut steps.flatten());
    }
    /// Applies what is queued.
    fn run(&mut self) -> Took;
    /// The same: each event's nanoseconds of CPU time.
    fn run_each(&mut self) -> Vec<u32>;
    /// Does what the index leaves for later.
    fn sweep(&mut self) {}
}

/// An index that is written by plain calls.
pub trait Direct: Send + Sync + 'static {
    /// What a thread that writes keeps.
    type Lane: Send;
    /// An event in its own types.
    type Event: Send;

    /// For a thread that begins to write.
    fn begin(&self) -> Self::Lane;
    /// An event.
    fn event(&self, event: &Event) -> Self::Event;
    /// A step's events; fewer where the index takes several at once.
    fn step(&self, events: &[Event], into: &mut Vec<Self::Event>) {
        into.extend(events.iter().map(|event| self.event(event)));
    }
    /// Applies one.
    fn apply(&self, lane: &mut Self::Lane, event: &Self::Event);
    /// Drops an endpoint with all its blocks.
    fn forget(&self, lane: &mut Self::Lane, endpoint: u32);
}

/// A thread that calls.
pub struct Caller<I: Direct> {
    index: Arc<I>,
    lane: I::Lane,
    queued: Vec<I::Event>,
}

impl<I: Direct> Caller<I> {
    /// Of an index.
    pub fn new(index: &Arc<I>) -> Self {
        Self {
            lane: index.begin(),
            index: index.clone(),
            queued: Vec::new(),
        }
    }

    /// Drops an endpoint with all its blocks.
    pub fn forget(&mut self, endpoint: u32) {
        self.index.forget(&mut self.lane, endpoint);
    }
}

impl<I: Direct> Lane for Caller<I> {
    fn queue(&mut self, events: &mut dyn Iterator<Item = &Event>) {
        self.queued
            .extend(events.map(|event| self.index.event(event)));
    }

    fn queue_steps(&mut self, steps: &mut dyn Iterator<Item = &[Event]>) {
        for events in steps {
            self.index.step(events, &mut self.queued);
        }
    }

    fn run(&mut self) -> Took {
        let queued = std::mem::take(&mut self.queued);
        let begun = Moment::now();
        for event in &queued {
            self.index.apply(&mut self.lane, event);
        }
        begun.until(Moment::now())
    }

    fn run_each(&mut self) -> Vec<u32> {
        let queued = std::mem::take(&mut self.queued);
        let mut readings = Vec::with_capacity(queued.len() + 1);
        readings.push(thread_cpu());
        for event in &queued {
            self.index.apply(&mut self.lane, event);
            readings.push(thread_cpu());
        }
        between(&readings)
    }
}

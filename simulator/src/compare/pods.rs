//! Pods: the simulated engine, step by step, in virtual time.

use std::collections::HashMap;

use kvscout::blocks::BlockEvent;

use super::clock::Time;
use crate::engine::{Emission, Engine, EngineConfig, Gauges, Request, RequestId};
use crate::timing::Timing;

/// A pod.
#[derive(Debug)]
pub struct Pod {
    engine: Engine,
    config: EngineConfig,
    timing: Timing,
    /// Whose an engine's request is.
    whose: HashMap<RequestId, usize>,
    /// Events of the step under way.
    scheduled: Vec<BlockEvent>,
    /// A step is under way.
    busy: bool,
    /// Counts processes: what was due of one that is gone is not due any more.
    pub life: u32,
    /// Prompt tokens computed.
    pub computed: u64,
}

/// What a step brought about.
#[derive(Debug, Default)]
pub struct Ended {
    /// Tokens, and whose they are.
    pub emissions: Vec<(usize, Emission)>,
    /// The batch of events; none are published if it is empty.
    pub events: Vec<BlockEvent>,
}

impl Pod {
    /// An idle one with an empty cache.
    #[must_use]
    pub fn new(config: EngineConfig, timing: Timing) -> Self {
        Self {
            engine: Engine::new(config.clone()),
            config,
            timing,
            whose: HashMap::new(),
            scheduled: Vec::new(),
            busy: false,
            life: 0,
            computed: 0,
        }
    }

    /// Queues a request; false if it could never fit.
    pub fn submit(&mut self, number: usize, request: Request) -> bool {
        let id = self.engine.submit(request);
        self.whose.extend(id.map(|id| (id, number)));
        id.is_some()
    }

    /// Begins a step if none is under way and there is something to do: how long it takes.
    pub fn begin(&mut self) -> Option<Time> {
        if self.busy {
            return None;
        }
        let work = self.engine.begin_step()?;
        self.busy = true;
        self.computed += work.prefill_tokens as u64;
        self.scheduled = self.engine.take_events();
        // A step that finds no room for anybody would be over at once, and the next one as well.
        Some((self.timing.step(work).as_nanos() as Time).max(1))
    }

    /// What the step under way has put into the cache and taken out of it.
    #[must_use]
    pub fn scheduled(&self) -> &[BlockEvent] {
        &self.scheduled
    }

    /// Ends the step under way.
    pub fn end(&mut self) -> Ended {
        self.busy = false;
        let outcome = self.engine.finish_step();
        let mut events = std::mem::take(&mut self.scheduled);
        events.extend(outcome.events);
        let mut emissions = Vec::with_capacity(outcome.emissions.len());
        for emission in outcome.emissions {
            let whose = match emission.last {
                true => self.whose.remove(&emission.request),
                false => self.whose.get(&emission.request).copied(),
            };
            emissions.extend(whose.map(|whose| (whose, emission)));
        }
        Ended { emissions, events }
    }

    /// Another process, with nothing cached and other names for its blocks: the requests that the
    /// old one takes along, in the order in which they came.
    pub fn restart(&mut self) -> Vec<usize> {
        let mut lost: Vec<usize> = self.whose.drain().map(|(_, whose)| whose).collect();
        lost.sort_unstable();
        self.config.hash_seed = self.config.hash_seed.wrapping_add(1 << 32);
        self.engine = Engine::new(self.config.clone());
        self.scheduled.clear();
        self.busy = false;
        self.life += 1;
        lost
    }

    /// Changes how fast it is.
    pub fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// What a scrape would show.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        self.engine.gauges()
    }

    /// Requests that it has been given and that have not ended.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.whose.len()
    }

    /// Preemptions so far.
    #[must_use]
    pub fn preemptions(&self) -> u64 {
        self.engine.preemptions()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tokens: std::ops::Range<u32>) -> Request {
        Request {
            prompt: tokens.collect(),
            output: vec![1, 2],
            ..Request::default()
        }
    }

    #[test]
    fn a_step_is_told_of_before_it_ends_and_published_once() {
        let mut pod = Pod::new(EngineConfig::default(), Timing::default());
        assert_eq!(pod.begin(), None);
        assert!(pod.submit(7, request(0..100)));
        let took = pod.begin().expect("there is a prompt");
        assert_eq!(
            took,
            8_000_000 + 5_000_000,
            "a step and 100 tokens at 20,000/s"
        );
        assert_eq!((pod.begin(), pod.scheduled().len()), (None, 1));
        let ended = pod.end();
        assert_eq!((ended.events.len(), ended.emissions[0].0), (1, 7));
        assert!(pod.begin().is_some());
        assert!(pod.end().emissions[0].1.last);
        assert_eq!((pod.requests(), pod.begin()), (0, None));
    }

    #[test]
    fn a_restart_hands_back_what_it_had() {
        let mut pod = Pod::new(EngineConfig::default(), Timing::default());
        for number in [3, 1] {
            assert!(pod.submit(number, request(0..100)));
        }
        pod.begin();
        assert_eq!(pod.restart(), [1, 3]);
        assert_eq!((pod.begin(), pod.requests(), pod.life), (None, 0, 1));
    }
}

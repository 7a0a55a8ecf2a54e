//! What happened, and what it amounts to.

use std::time::Duration;

use super::clock::{SECOND, Time};
use crate::load::Spread;

/// A run.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// One for each of the plan.
    pub requests: Vec<Told>,
    /// Load over time.
    pub samples: Vec<Sample>,
    /// Prompt tokens that each pod computed, those of outside traffic and preemptions included.
    pub computed: Vec<u64>,
    /// Requests pushed back for want of blocks.
    pub preemptions: u64,
    /// When the last answer ended.
    pub ended_at: Time,
}

/// A request's fate.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told {
    /// Who served it.
    pub pod: usize,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Of which the engine had cached.
    pub cached_tokens: u64,
    /// When it was asked.
    pub asked_at: Time,
    /// From there to its first token; none before.
    pub ttft: Option<Time>,
    /// When its answer ended.
    pub ended_at: Time,
}

/// Requests at pods, at one time.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When.
    pub at: Time,
    /// At the pod that has most.
    pub most: f64,
    /// Of all pods.
    pub mean: f64,
}

impl Record {
    /// Of so many requests.
    #[must_use]
    pub fn new(requests: usize) -> Self {
        let requests = vec![Told::default(); requests];
        Self {
            requests,
            ..Self::default()
        }
    }

    /// With what happened in another run, as if it had been one.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.requests.extend(other.requests);
        self.samples.extend(other.samples);
        self.samples.sort_by_key(|sample| sample.at);
        self.computed.extend(other.computed);
        self.preemptions += other.preemptions;
        self.ended_at = self.ended_at.max(other.ended_at);
        self
    }

    /// A request went to a pod.
    pub fn placed(&mut self, number: usize, pod: usize, prompt_tokens: usize) {
        let told = &mut self.requests[number];
        (told.pod, told.prompt_tokens) = (pod, prompt_tokens as u64);
    }

    /// Its engine said a token; only the first one matters.
    pub fn first_token(&mut self, number: usize, asked_at: Time, now: Time, cached: usize) {
        let told = &mut self.requests[number];
        if told.ttft.is_none() {
            told.asked_at = asked_at;
            told.ttft = Some(now - asked_at);
            told.cached_tokens = cached as u64;
        }
    }

    /// Its answer ended.
    pub fn ended(&mut self, number: usize, now: Time) {
        self.requests[number].ended_at = now;
    }

    /// Those that were answered.
    pub fn answered(&self) -> impl Iterator<Item = &Told> {
        self.requests.iter().filter(|told| told.ttft.is_some())
    }

    /// How times to first token are spread.
    #[must_use]
    pub fn ttft(&self) -> Spread {
        let times = self.answered().filter_map(|told| told.ttft);
        Spread::of(times.map(Duration::from_nanos).collect())
    }

    /// Cached tokens / prompt tokens, 0 to 1.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        share(self.answered())
    }

    /// The busiest pod's requests / the mean, over the run, busy times counting for more.
    #[must_use]
    pub fn imbalance(&self) -> f64 {
        let most: f64 = self.samples.iter().map(|sample| sample.most).sum();
        let mean: f64 = self.samples.iter().map(|sample| sample.mean).sum();
        if mean > 0.0 { most / mean } else { 1.0 }
    }

    /// The hit rate of what was asked in each of so many equal stretches, by their ends in seconds.
    #[must_use]
    pub fn hit_rates(&self, stretches: usize) -> Vec<(f64, f64)> {
        let last = self.answered().map(|told| told.asked_at).max().unwrap_or(0);
        let width = (last / stretches.max(1) as u64).max(1);
        let mut sums = vec![(0, 0); stretches + 1];
        for told in self.answered() {
            let sum = &mut sums[(told.asked_at / width) as usize % (stretches + 1)];
            *sum = (sum.0 + told.cached_tokens, sum.1 + told.prompt_tokens);
        }
        let end = |at: usize| ((at + 1) as u64 * width) as f64 / SECOND as f64;
        let rates = sums
            .iter()
            .enumerate()
            .filter(|(_, (_, prompt))| *prompt > 0);
        rates
            .map(|(at, (cached, prompt))| (end(at), *cached as f64 / *prompt as f64))
            .collect()
    }
}

fn share<'a>(requests: impl Iterator<Item = &'a Told>) -> f64 {
    let add =
        |(cached, prompt), told: &Told| (cached + told.cached_tokens, prompt + told.prompt_tokens);
    let (cached, prompt) = requests.fold((0u64, 0u64), add);
    cached as f64 / prompt.max(1) as f64
}

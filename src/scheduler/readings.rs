//! A prompt as each of the endpoints reads it that may get it.
//!
//! Nearly always all of them read it alike, and it is read once. Where an endpoint says which entry of `models` it
//! reads as ([`ReadsAs`]), it is read once for each entry among them, and each on its own: what goes wrong with one is
//! nothing to the others.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec;

use smallvec::{SmallVec, smallvec};

use super::intent::Intent;
use super::reading::Reading;
use super::{Ask, Scheduler};
use crate::audit::cause::SALT_REASON;
use crate::blocks::Chains;
use crate::choice::{Basis, Prompt};
use crate::config::ReadsAs;
use crate::fleet::{Endpoint, EndpointId, Fleet};
use crate::index::Cached;
use crate::parity;

/// One for each entry, the first of those who do not say theirs.
pub(super) struct Readings {
    all: SmallVec<[Reading; 1]>,
    /// Which of them is an endpoint's; empty where all have the same.
    places: SmallVec<[(ReadsAs, usize); 1]>,
    /// The conversation that it belongs to, where nothing else tells where its cache is.
    pub conversation: Option<u64>,
}

impl Readings {
    /// The same for everybody.
    pub fn alike(reading: Reading) -> Self {
        Self {
            all: smallvec![reading],
            places: SmallVec::new(),
            conversation: None,
        }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Reading> {
        self.all.iter()
    }

    /// One of them.
    pub fn at(&self, place: u16) -> &Reading {
        &self.all[usize::from(place)]
    }

    /// The place of an endpoint's.
    pub fn place(&self, endpoint: &Endpoint) -> usize {
        let mut places = self.places.iter();
        let own = places.find(|(reads_as, _)| *reads_as == endpoint.reads_as);
        own.map_or(0, |(_, place)| *place)
    }

    /// Nothing but load can decide.
    pub fn is_by_load(&self) -> bool {
        let is_by_load = |reading: &Reading| matches!(reading.basis, Basis::LoadOnly(_));
        self.all.iter().all(is_by_load)
    }

    /// What rendering and tokenizing took.
    pub fn took(&self) -> (Duration, Duration) {
        let rendered = self.all.iter().map(|reading| reading.rendered_in);
        let tokenized = self.all.iter().map(|reading| reading.tokenized_in);
        (rendered.sum(), tokenized.sum())
    }

    /// The blocks of each.
    pub fn chains(&self) -> SmallVec<[Chains<'_>; 1]> {
        let all = self.all.iter();
        all.map(|reading| Chains::new(&reading.tokens, &reading.identity).with(&reading.chains))
            .collect()
    }

    /// How endpoints of these read that have no reading yet.
    fn missing(&self, fleet: &Fleet) -> SmallVec<[ReadsAs; 1]> {
        let mut missing = SmallVec::new();
        for Endpoint { reads_as, .. } in fleet.endpoints.iter().map(|one| &**one) {
            let known = self.places.iter().any(|(known, _)| known == reads_as);
            if !known && !missing.contains(reads_as) {
                missing.push(*reads_as);
            }
        }
        missing.sort_unstable();
        missing
    }

    /// Whether what is read already is as these read: the request's own model may be their entry.
    fn has(&mut self, reads_as: ReadsAs) -> bool {
        let ReadsAs::Entry(entry) = reads_as else {
            return false;
        };
        let mut all = self.all.iter();
        let place = all.position(|reading| reading.entry == Some(entry));
        self.places.extend(place.map(|place| (reads_as, place)));
        place.is_some()
    }

    fn add(&mut self, reads_as: ReadsAs, reading: Reading) {
        self.places.push((reads_as, self.all.len()));
        self.all.push(reading);
    }

    /// Who cannot read it has about as many tokens to compute as one that can: better than a guess by bytes.
    fn estimate(&mut self) {
        let is_known = |reading: &&Reading| !matches!(reading.basis, Basis::LoadOnly(_));
        let known = self.all.iter().find(is_known);
        let Some(tokens) = known.map(|reading| reading.prompt_tokens) else {
            return;
        };
        for reading in &mut self.all {
            if matches!(reading.basis, Basis::LoadOnly(_)) {
                reading.prompt_tokens = tokens;
            }
        }
    }

    /// Who has come since the prompt was read, and reads as nobody then did, gets it by load.
    pub fn joined_by(&mut self, fleet: &Fleet) {
        if self.places.is_empty() {
            return;
        }
        for reads_as in self.missing(fleet) {
            if !self.has(reads_as) {
                let tokens = self.all[0].prompt_tokens;
                let unread = Reading::load_only("not_read", 0);
                let unread = Reading {
                    prompt_tokens: tokens,
                    ..unread
                };
                self.add(reads_as, unread);
            }
        }
    }
}

/// What endpoints hold, each of its own reading, in the fleet's order.
pub(super) struct Held(SmallVec<[vec::IntoIter<Cached>; 1]>);

impl Held {
    /// Nobody holds anything.
    pub fn nothing() -> Self {
        Self(SmallVec::new())
    }

    /// What the next endpoint holds that has its reading at this place.
    pub fn next(&mut self, place: usize) -> Cached {
        let cached = self.0.get_mut(place).and_then(Iterator::next);
        cached.unwrap_or_default()
    }
}

impl Scheduler {
    /// Reads a prompt as far as that is possible in time.
    pub(super) async fn read(&self, ask: &Ask, intent: &Intent, allowed: &Fleet) -> Readings {
        let deadline = Instant::now() + self.parts.decision_max;
        let mut readings = Readings {
            all: SmallVec::new(),
            places: SmallVec::new(),
            conversation: None,
        };
        let endpoints = allowed.endpoints.iter().map(|endpoint| endpoint.id);
        let shapes = self.parts.index.shapes_of(endpoints);
        for reads_as in readings.missing(allowed) {
            if !readings.has(reads_as) {
                let (target, shapes) = (intent.target.clone(), shapes.clone());
                let read = (self.parts.reader).read(ask, target, (reads_as, shapes), deadline);
                let read = tokio::time::timeout_at(deadline.into(), read).await;
                let late = |_| Reading::load_only("deadline", ask.body.len());
                readings.add(reads_as, read.unwrap_or_else(late));
            }
        }
        readings.estimate();
        readings
    }

    /// Before vLLM 0.17.1 events do not show salts: what a salted request would find is unknown.
    /// Nor is it where the servers have often computed other tokens than we did.
    pub(super) fn doubted(&self, mut readings: Readings, allowed: &Fleet) -> Readings {
        for place in 0..readings.all.len() {
            let hides = || {
                let mut own = allowed.endpoints.iter();
                own.any(|one| {
                    readings.place(one) == place
                        && self.parts.index.shows_salt(one.id) == Some(false)
                })
            };
            let reading = &readings.all[place];
            let salted = reading.identity.cache_salt.is_some();
            let reason = match reading.basis {
                Basis::Overlap if salted && hides() => SALT_REASON,
                _ if reading.is_exact() && self.is_doubtful(reading) => parity::REASON,
                _ => continue,
            };
            readings.all[place].basis = Basis::Partial(reason);
        }
        readings
    }

    fn is_doubtful(&self, reading: &Reading) -> bool {
        let model = reading.model.as_deref();
        model.is_some_and(|model| self.parts.parity.is_doubtful(model))
    }

    /// What each endpoint holds of the prompt as it reads it.
    pub(super) fn overlaps(
        &self,
        readings: &Readings,
        prompts: &mut [Chains<'_>],
        allowed: &Fleet,
    ) -> Held {
        let all = readings.iter().zip(prompts).enumerate();
        let held = all.map(|(place, (reading, prompt))| {
            if !reading.reads_cache {
                return Vec::new().into_iter();
            }
            // Nearly always it is everybody.
            let mut own: Vec<EndpointId> = Vec::with_capacity(allowed.endpoints.len());
            let all = allowed.endpoints.iter();
            let is_own = |endpoint: &&Arc<Endpoint>| readings.place(endpoint) == place;
            own.extend(all.filter(is_own).map(|endpoint| endpoint.id));
            self.parts.index.cached(&own, prompt).into_iter()
        });
        Held(held.collect())
    }

    /// What of them a choice asks for.
    pub(super) fn prompts(&self, readings: &Readings) -> SmallVec<[Prompt; 1]> {
        let prompt = |reading: &Reading| Prompt {
            tokens: reading.prompt_tokens,
            basis: reading.basis,
            doubtful: self.is_doubtful(reading),
        };
        readings.iter().map(prompt).collect()
    }
}

#[cfg(test)]
mod tests;

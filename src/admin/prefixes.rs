//! `GET /prefixes`: what prompts share, and who holds it. Names of blocks and counts; no token, no text.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use tokio::sync::Mutex;

use super::{Admin, json};
use crate::fleet::{EndpointId, Fleet};
use crate::index::Index;

/// Prefixes in one answer: as many as a person looks through. Among 500 endpoints some 400 kB.
pub const LIMIT: usize = 96;

/// How old an answer may be, however many ask: looking through a large index takes a core for a while.
const AGE_MAX: Duration = Duration::from_secs(2);

/// The largest prefixes that endpoints or prompts share, each behind the one that it goes on from.
#[derive(Debug, Serialize)]
pub struct Prefixes {
    /// The names of those that are meant by number.
    pub endpoints: Vec<String>,
    /// See [`Prefix`].
    pub prefixes: Vec<Prefix>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub struct Prefix {
    /// The key of its last block, in hexadecimal.
    pub key: String,
    /// Which of the list it goes on from; null at a prompt's start.
    pub parent: Option<usize>,
    /// Blocks of a prompt before it.
    pub before: u32,
    /// Its own.
    pub blocks: u32,
    /// Tokens of a block, at the first of its holders.
    pub block_size: u32,
    /// Different ends of prompts at or behind it.
    pub ends: u32,
    /// Its blocks and all behind it, counted once for each endpoint that holds them.
    pub pairs: u64,
    /// Pairs: an endpoint's number, and how many of its blocks it holds, from the first on.
    pub holders: Vec<(usize, u32)>,
}

/// Makes the page, for all who ask within [`AGE_MAX`] once.
pub struct PrefixesPage {
    made: Mutex<Option<(Instant, Arc<Prefixes>)>>,
    make: Arc<dyn Fn() -> Prefixes + Send + Sync>,
}

impl PrefixesPage {
    /// Of what `make` finds.
    #[must_use]
    pub fn new(make: impl Fn() -> Prefixes + Send + Sync + 'static) -> Self {
        Self {
            made: Mutex::default(),
            make: Arc::new(make),
        }
    }

    async fn get(&self) -> Arc<Prefixes> {
        let mut made = self.made.lock().await;
        if let Some((at, page)) = made.as_ref()
            && at.elapsed() < AGE_MAX
        {
            return page.clone();
        }
        let make = self.make.clone();
        // It takes a core for as long as it takes; requests go on meanwhile.
        let page = tokio::task::spawn_blocking(move || Arc::new(make())).await;
        let page = page.expect("looking does not panic");
        *made = Some((Instant::now(), page.clone()));
        page
    }
}

impl Prefixes {
    /// As of about now.
    #[must_use]
    pub fn of(index: &Index, fleet: &Fleet) -> Self {
        let endpoints = || fleet.endpoints.iter();
        let numbers = endpoints().enumerate();
        let numbers: HashMap<EndpointId, usize> = numbers
            .map(|(number, endpoint)| (endpoint.id, number))
            .collect();
        let prefixes = index.prefixes(LIMIT).into_iter().map(|prefix| {
            let mut shapes = prefix.holders.iter();
            let shape = shapes.find_map(|(endpoint, _)| index.shape(*endpoint));
            let holders = prefix.holders.iter();
            // Who left the fleet a moment ago has no number any more.
            let holders =
                holders.filter_map(|(endpoint, len)| Some((*numbers.get(endpoint)?, *len)));
            Prefix {
                key: format!("{:016x}", prefix.key),
                parent: prefix.parent,
                before: prefix.before,
                blocks: prefix.blocks,
                block_size: shape.map_or(0, |shape| shape.block_size),
                ends: prefix.ends,
                pairs: prefix.pairs,
                holders: holders.collect(),
            }
        });
        Self {
            prefixes: prefixes.collect(),
            endpoints: endpoints().map(|endpoint| endpoint.name.clone()).collect(),
        }
    }
}

/// See [`Prefixes`].
pub async fn prefixes(State(admin): State<Admin>) -> Response {
    json(&*admin.prefixes.get().await)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn however_many_ask_at_once_it_is_made_once() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        let page = PrefixesPage::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Prefixes {
                endpoints: Vec::new(),
                prefixes: Vec::new(),
            }
        });
        tokio::join!(page.get(), page.get(), page.get());
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }
}

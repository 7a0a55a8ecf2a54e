//! `GET /endpoints`: what is known of each.

use std::time::Instant;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{Admin, json, query};
use crate::config::{ReadsAs, Saturation};
use crate::fleet::{Endpoint, Fleet};
use crate::index::Index;
use crate::models::Models;

/// What is known of one endpoint.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointState {
    /// The pod's name.
    pub name: String,
    /// The InferencePools that it is of; none where a file says who serves.
    pub pools: Vec<String>,
    /// What Envoy connects to.
    pub address: String,
    /// The entry of `models` that it says it reads prompts as, by its first name; null where it says none, or none
    /// that there is.
    pub model: Option<String>,
    /// How complete the picture of its cache is, why, and for how many seconds.
    pub trust: &'static str,
    /// See `trust`.
    pub reason: String,
    /// See `trust`.
    pub since_s: f64,
    /// Engine hashes in the picture.
    pub blocks: usize,
    /// Physical copies in the engine's own cache.
    pub own_copies: u64,
    /// Copies that it has room for, as it says; null where it does not.
    pub cache_blocks: Option<u64>,
    /// Requests placed and not ended, replicas' included.
    pub requests: u32,
    /// Prefill tokens placed and not done, replicas' included.
    pub queued_tokens: u64,
    /// Prompt tokens that it computes in a second, as measured; null before that.
    pub pace: Option<f64>,
    /// It failed a moment ago, and comes last.
    pub avoided: bool,
    /// What it says of its load itself; null where it does not.
    pub says: Option<Says>,
    /// All that it holds, to compare with what another replica knows.
    #[serde(flatten)]
    pub digest: Option<Digest>,
}

/// What an endpoint last said of its load.
#[derive(Debug, Clone, Serialize)]
pub struct Says {
    /// How many seconds ago.
    pub age_s: f64,
    /// Requests waiting there.
    pub waiting: u32,
    /// Requests running there.
    pub running: u32,
    /// The share of its KV cache that requests use, 0 to 1.
    pub kv_usage: Option<f64>,
    /// It is past `load.queue_max` or `load.kv_usage_max`.
    pub saturated: bool,
}

/// What a picture comes to. Takes a millisecond for each 100,000 blocks, in which that endpoint's events wait.
#[derive(Debug, Clone, Serialize)]
pub struct Digest {
    /// Physical copies in all caches, but for those that may be gone.
    pub copies: u64,
    /// Equal where two replicas know the same, in hexadecimal.
    pub digest: String,
}

impl EndpointState {
    /// As of now.
    #[must_use]
    pub fn of(
        (endpoint, fleet): (&Endpoint, &Fleet),
        models: &Models,
        index: &Index,
        saturation: &Saturation,
        digests: bool,
    ) -> Self {
        let (trust, load, now) = (endpoint.trust_since(), &endpoint.load, Instant::now());
        let report = load.report(now);
        let cache_blocks = report.as_ref().and_then(|(report, _)| report.cache_blocks);
        Self {
            name: endpoint.name.clone(),
            pools: fleet.pools_of(endpoint).map(str::to_owned).collect(),
            address: endpoint.address.to_string(),
            model: match endpoint.reads_as {
                ReadsAs::Entry(entry) => models.label(entry).map(str::to_owned),
                ReadsAs::Named | ReadsAs::Unknown => None,
            },
            trust: trust.trust.as_str(),
            reason: trust.reason,
            since_s: trust.since.elapsed().as_secs_f64(),
            blocks: index.blocks_of(endpoint.id),
            own_copies: index.physical(endpoint.id),
            cache_blocks,
            requests: load.requests(),
            queued_tokens: load.prefill_tokens(),
            pace: load.pace(),
            avoided: endpoint.avoided(now),
            says: report.map(|(report, age)| Says {
                age_s: age.as_secs_f64(),
                waiting: report.waiting,
                running: report.running,
                kv_usage: report.kv_usage,
                saturated: load.saturated(now, saturation),
            }),
            digest: digests.then(|| {
                let (copies, digest) = index.digest(endpoint.id);
                let digest = format!("{digest:016x}");
                Digest { copies, digest }
            }),
        }
    }
}

/// `?digests=off` leaves out `copies` and `digest`, which take the longest.
pub async fn endpoints(State(admin): State<Admin>, RawQuery(asked): RawQuery) -> Response {
    let mut digests = true;
    for (key, value) in query::pairs(asked.as_deref()) {
        let refused = match (&*key, &*value) {
            ("digests", "on" | "off") => {
                digests = value == "on";
                continue;
            }
            ("digests", _) => format!("digests: {value:?} is not one of on, off\n"),
            _ => query::unknown(&key, &["digests"]),
        };
        return (StatusCode::BAD_REQUEST, refused).into_response();
    }
    json(&(admin.endpoints)(digests))
}

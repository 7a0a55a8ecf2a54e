//! The endpoints that serve, as an immutable snapshot, and what we know of each right now.
//!
//! Discovery is a value: a `watch::Receiver<Arc<Fleet>>` with one writer: [`fixed`], or Kubernetes.
//! An [`Endpoint`] is shared between snapshots, so that its load and trust outlive a change
//! elsewhere in the fleet. [`load`] is what it has to do, [`scrape`] asks its server for the rest of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::ReadsAs;

pub mod report;
pub mod heard;
pub mod load;
pub mod pools;
pub mod roster;
pub mod fixed;
pub mod scrape;

pub use load::{Booking, Load, Outside};
pub use pools::{Pool, Pools, Scope};

/// vLLM's largest deployments have some hundred ranks behind one address.
pub const RANKS_MAX: u16 = 1_024;

/// A dense number for an endpoint, never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

/// Where an endpoint publishes its KV events.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventAddress {
    /// The PUB socket.
    pub publisher: Publisher,
    /// The ROUTER socket that replays, where the server has one.
    pub replay: Option<String>,
}

/// How a publisher and we meet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Publisher {
    /// We connect to it: `tcp://host:port`.
    At(String),
    /// It connects to us, at `events.bind`.
    Connects,
    /// Its server says where, and where it replays.
    Discovered,
}

/// A server of the model: an ip:port, or one data-parallel rank behind it.
#[derive(Debug)]
pub struct Endpoint {
    /// Its number in the index.
    pub id: EndpointId,
    /// A name for people: the pod's, and the rank where there are several.
    pub name: String,
    /// The pod's name, which its ranks share.
    pub pod: String,
    /// Which of the engines behind its address; none where there is only one.
    pub rank: Option<u32>,
    /// What Envoy connects to.
    pub address: SocketAddr,
    /// Where its events come from; none makes it `Silent`.
    pub events: Option<EventAddress>,
    /// How it reads prompts.
    pub reads_as: ReadsAs,
    /// What it has to do: ours, and what its server says of the rest.
    pub load: Load,
    /// How much it has told of its cache.
    pub heard: heard::Heard,
    trust: Mutex<TrustSince>,
    failures: Mutex<Failures>,
    /// It has been told of that this endpoint counts other prompt tokens.
    differs_told: AtomicBool,
    /// It has once said how many tokens of a prompt were cached.
    reports: AtomicBool,
    /// It has computed a prompt since somebody asked.
    computed: AtomicBool,
    /// Its predictions keep missing.
    mistrusted: AtomicBool,
    /// It computes the last block of each hit again.
    recomputes: AtomicBool,
}

impl Endpoint {
    /// A server that we know nothing of yet.
    #[must_use]
    pub fn new(
        id: EndpointId,
        name: String,
        address: SocketAddr,
        events: Option<EventAddress>,
    ) -> Self {
        let reason = if events.is_some() {
            "no event seen yet"
        } else {
            "no event address"
        };
        let trust = TrustSince {
            trust: Trust::Silent,
            reason: reason.into(),
            since: Instant::now(),
        };
        Self {
            id,
            pod: name.clone(),
            name,
            rank: None,
            address,
            events,
            reads_as: ReadsAs::Named,
            load: Load::default(),
            heard: heard::Heard::default(),
            trust: Mutex::new(trust),
            failures: Mutex::default(),
            differs_told: AtomicBool::new(false),
            reports: AtomicBool::new(false),
            computed: AtomicBool::new(false),
            mistrusted: AtomicBool::new(false),
            recomputes: AtomicBool::new(false),
        }
    }

    /// The same where several engines share the address: its name becomes `pod/rank`.
    #[must_use]
    pub fn of_rank(self, rank: u32) -> Self {
        Self {
            name: format!("{}/{rank}", self.pod),
            rank: Some(rank),
            ..self
        }
    }

    /// The same that says how it reads prompts.
    #[must_use]
    pub fn reading_as(self, reads_as: ReadsAs) -> Self {
        Self { reads_as, ..self }
    }

    /// Whether a subset hint means it: by `ip:port` or `ip`, every rank behind it.
    fn is_named(&self, name: &str) -> bool {
        name == self.address.to_string() || name == self.address.ip().to_string()
    }

    /// How complete our picture of its cache is.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.trust.lock().trust
    }

    /// The same with its reason, for people.
    #[must_use]
    pub fn trust_since(&self) -> TrustSince {
        self.trust.lock().clone()
    }

    /// Whether it failed a moment ago, so that others come first.
    #[must_use]
    pub fn avoided(&self, now: Instant) -> bool {
        self.failures.lock().until.is_some_and(|until| now < until)
    }

    /// A request failed there, or its publisher was lost: it is avoided for [`AVOIDED_FIRST`],
    /// and twice as long with each failure that follows, up to [`AVOIDED_MAX`].
    pub fn failed(&self, now: Instant) {
        let mut failures = self.failures.lock();
        let avoided = AVOIDED_FIRST * 2u32.saturating_pow(failures.in_a_row);
        failures.in_a_row = (failures.in_a_row + 1).min(FAILURES_MAX);
        failures.until = Some(now + avoided.min(AVOIDED_MAX));
    }

    /// A request went well there.
    pub fn succeeded(&self) {
        *self.failures.lock() = Failures::default();
    }

    /// It has computed so many tokens of a prompt. Where that fills any server's block, it must
    /// have stored one and said so.
    pub fn computed(&self, tokens: u64) {
        if tokens >= BLOCK_TOKENS_MAX {
            self.computed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it has computed a prompt of some length since the last time this was asked.
    pub fn take_computed(&self) -> bool {
        self.computed.swap(false, Ordering::Relaxed)
    }

    /// What its picture predicts keeps missing: whoever hears it is to learn it again.
    pub fn mistrust(&self) {
        self.mistrusted.store(true, Ordering::Relaxed);
    }

    /// Whether that is so, since the last time this was asked.
    pub fn take_mistrusted(&self) -> bool {
        self.mistrusted.swap(false, Ordering::Relaxed)
    }

    /// Whether it computes the last block of each hit again, as its reports have told.
    #[must_use]
    pub fn recomputes(&self) -> bool {
        self.recomputes.load(Ordering::Relaxed)
    }

    /// How it is from now on.
    pub fn set_recomputes(&self, recomputes: bool) {
        self.recomputes.store(recomputes, Ordering::Relaxed);
    }

    /// Cached tokens of a response, given what it says. vLLM 0.20.2 says nothing on a miss and a
    /// number on a hit, so silence means 0 where a number has come before.
    pub fn cached_tokens(&self, said: Option<u64>) -> Option<u64> {
        if said.is_some() {
            self.reports.store(true, Ordering::Relaxed);
        }
        said.or_else(|| self.reports.load(Ordering::Relaxed).then_some(0))
    }

    /// `true` the first time: one warning an endpoint, not one a request.
    pub fn first_difference(&self) -> bool {
        !self.differs_told.swap(true, Ordering::Relaxed)
    }

    /// Records a change of trust; `true` where it is one.
    pub fn set_trust(&self, trust: Trust, reason: &str, now: Instant) -> bool {
        let mut held = self.trust.lock();
        let changed = held.trust != trust;
        if changed || held.reason != reason {
            *held = TrustSince {
                trust,
                reason: reason.to_owned(),
                since: now,
            };
        }
        changed
    }
}

/// Long enough that a fleet is not probed by one request in ten, short enough that one bad answer
/// does not empty a pod.
const AVOIDED_FIRST: Duration = Duration::from_millis(500);
/// About as long as a gateway or Kubernetes takes to notice by itself.
const AVOIDED_MAX: Duration = Duration::from_secs(30);
/// 500 ms, doubled so often, is past the maximum.
const FAILURES_MAX: u32 = 8;

/// Blocks have 16 tokens on a GPU by default, 128 on a CPU, and up to a thousand in hybrid models,
/// whose blocks of attention are made as large as a recurrent state.
const BLOCK_TOKENS_MAX: u64 = 1_100;

#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    until: Option<Instant>,
}

/// How complete our picture of an endpoint's cache is. Later is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trust {
    /// Free of gaps since a known point.
    Live,
    /// Being rebuilt, from replay or a snapshot.
    Learning,
    /// A gap that could not be filled: what we hold may be gone, what we lack may be there.
    Doubtful,
    /// No events configured, or none ever seen.
    Silent,
}

impl Trust {
    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Learning => "learning",
            Self::Doubtful => "doubtful",
            Self::Silent => "silent",
        }
    }
}

/// A trust, why, and since when.
#[derive(Debug, Clone)]
pub struct TrustSince {
    /// How complete.
    pub trust: Trust,
    /// What made it so, for an operator.
    pub reason: String,
    /// When it became so.
    pub since: Instant,
}

/// Who serves, as of now.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// Those that may be chosen, in the order of their numbers.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Those that may not, for now, and are heard all the same: pods that are not ready (yet, or for
    /// a moment). What they hold is known when they are.
    pub resting: Vec<Arc<Endpoint>>,
    /// The pools that they are of, by name; none where a file says who serves.
    pub pools: Vec<Pool>,
}

impl Fleet {
    /// A fleet of which nobody rests.
    #[must_use]
    pub fn of(endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self {
            endpoints,
            resting: Vec::new(),
            pools: Vec::new(),
        }
    }

    /// The endpoints whose events count.
    pub fn heard(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.iter().chain(&self.resting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Arc<Endpoint> {
        let address = "127.0.0.1:8000".parse().expect("an address");
        Arc::new(Endpoint::new(EndpointId(0), "pod-1".into(), address, None))
    }

    #[test]
    fn a_rank_has_a_name_of_its_own_and_its_pods() {
        let address = "127.0.0.1:8000".parse().expect("an address");
        let rank = Endpoint::new(EndpointId(0), "pod-1".into(), address, None).of_rank(3);
        let names = (rank.name.as_str(), rank.pod.as_str(), rank.rank);
        assert_eq!(names, ("pod-1/3", "pod-1", Some(3)));
    }

    #[test]
    fn failures_are_avoided_longer_and_longer_and_one_success_ends_it() {
        let endpoint = endpoint();
        let now = Instant::now();
        let avoided_for = |ms| endpoint.avoided(now + Duration::from_millis(ms));
        assert!(!avoided_for(0));
        endpoint.failed(now);
        assert!(avoided_for(499) && !avoided_for(500));
        endpoint.failed(now);
        assert!(avoided_for(999) && !avoided_for(1000));
        (0..100).for_each(|_| endpoint.failed(now));
        assert!(avoided_for(29_999) && !avoided_for(30_000));
        endpoint.succeeded();
        assert!(!avoided_for(0));
    }

    #[test]
    fn trust_keeps_the_time_of_its_last_change() {
        let endpoint = endpoint();
        assert_eq!(endpoint.trust(), Trust::Silent);
        let now = Instant::now();
        assert!(endpoint.set_trust(Trust::Live, "complete from sequence 0", now));
        assert!(!endpoint.set_trust(Trust::Live, "complete from sequence 0", Instant::now()));
        assert_eq!(endpoint.trust_since().since, now);
    }
}

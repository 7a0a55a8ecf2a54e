//! Who goes on to an endpoint, who waits, and who is refused, where all endpoints are saturated.
//!
//! | criticality | where every endpoint that it may have is saturated |
//! |---|---|
//! | Critical | goes at once |
//! | Standard | waits in line, by priority, in turns ([`line`]) and by arrival, until one has room; after `wait_ms_max` it goes all the same; where the line is full the last in it, or the new one, is refused |
//! | Sheddable | is refused |
//!
//! A place in the line is given back when it is dropped, so that a client that hangs up leaves at
//! once. Whoever is called keeps its [`Turn`] until its load is booked, and the next is called only
//! then: what one request frees does not let everybody through.
//!
//! Each pool has a line of its own, of `queue_max` places, so that none stands in another one's way; whoever may
//! have several pools' endpoints waits in one more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{oneshot, watch};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{self, Criticality, Saturation};
use crate::fleet::{Endpoint, Fleet, Pools, Scope};
use crate::metrics::Metrics;
use crate::routes::Class;

mod line;

use line::{Line, Rank};

/// Admits requests to a fleet.
pub struct Admission {
    settings: config::Admission,
    saturation: Saturation,
    fleet: watch::Receiver<Arc<Fleet>>,
    /// An empty line stays, some 200 bytes for each pool that ever was full: ranks are its own.
    lines: Mutex<HashMap<Name, State>>,
    metrics: Arc<Metrics>,
}

/// Why a request is refused that some endpoint could have served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// It is Sheddable, and every endpoint is saturated.
    Saturated,
    /// Too many wait that are as important.
    QueueFull,
}

impl Shed {
    /// The word for labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Saturated => "saturated",
            Self::QueueFull => "queue_full",
        }
    }
}

/// The right to be placed now; the next in line gets it when this is dropped.
#[must_use]
pub struct Turn<'a> {
    /// None where nobody waited.
    _place: Option<Place<'a>>,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// It goes on.
    AtOnce,
    /// It waits in line, or is refused where that is full of more important ones.
    Waits,
    /// It is refused.
    Refused,
}

impl Outlook {
    /// The word for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtOnce => "at_once",
            Self::Waits => "waits",
            Self::Refused => "refused",
        }
    }
}

/// Tells that an endpoint may have room again, when it is dropped.
pub struct Frees(pub Arc<Admission>);

impl Drop for Frees {
    fn drop(&mut self) {
        self.0.freed();
    }
}

/// The pool whose line it is; none of those who may have several.
type Name = Option<Arc<str>>;

#[derive(Default)]
struct State {
    line: Line<Waiting>,
    /// Who was called and has not booked its load.
    called: Option<Rank>,
}

struct Waiting {
    scope: Scope,
    call: oneshot::Sender<Called>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Called {
    Go,
    PutOut,
}

impl Admission {
    /// Over these endpoints.
    #[must_use]
    pub fn new(
        settings: config::Admission,
        saturation: Saturation,
        fleet: watch::Receiver<Arc<Fleet>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            settings,
            saturation,
            fleet,
            lines: Mutex::default(),
            metrics,
        }
    }

    /// Whether an endpoint has so much to do that nothing should be added: by what this process and its
    /// replicas placed there, or by what it said of itself a moment ago.
    #[must_use]
    pub fn is_saturated(&self, endpoint: &Endpoint) -> bool {
        let (load, max) = (&endpoint.load, self.settings.queued_tokens_max);
        let placed = max > 0 && load.prefill_tokens() > max;
        placed || load.saturated(Instant::now(), &self.saturation)
    }

    /// Seconds after which those who wait now will have gone: when to come back after a refusal.
    #[must_use]
    pub fn retry_after_s(&self) -> u64 {
        self.settings.wait_ms_max.div_ceil(1000).max(1)
    }

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let lines = self.lines.lock();
        lines.values().map(|state| state.line.len()).sum()
    }

    /// Whether nobody waits in the line of a request.
    fn is_first(&self, scope: &Scope) -> bool {
        let lines = self.lines.lock();
        let line = lines.get(&name(scope));
        line.is_none_or(|state| state.line.is_empty())
    }

    /// Admits a request that cannot wait, such as one whose body is on its way.
    ///
    /// # Errors
    /// [`Shed`] where it is Sheddable and nobody has room.
    pub fn at_once(&self, class: Class, scope: &Scope) -> Result<(), Shed> {
        if class.criticality == Criticality::Sheddable && !self.has_room(scope) {
            return Err(self.shed(Shed::Saturated, class));
        }
        Ok(())
    }

    /// What would become of a request by now. Changes nothing.
    #[must_use]
    pub fn outlook(&self, class: Class, scope: &Scope) -> Outlook {
        let has_room = self.has_room(scope);
        match class.criticality {
            Criticality::Sheddable if !has_room => Outlook::Refused,
            Criticality::Standard if self.settings.queue_max > 0 => {
                match has_room && self.is_first(scope) {
                    true => Outlook::AtOnce,
                    false => Outlook::Waits,
                }
            }
            _ => Outlook::AtOnce,
        }
    }

    /// Waits for its turn, if it must. Those of one `fairness` id have turns one after another, and
    /// every id in each round; without one, all together. Dropping the future gives up the place.
    ///
    /// # Errors
    /// [`Shed`], as the table above says.
    pub async fn admit(
        &self,
        class: Class,
        fairness: Option<&str>,
        scope: &Scope,
    ) -> Result<Turn<'_>, Shed> {
        self.at_once(class, scope)?;
        let waits = class.criticality == Criticality::Standard && self.settings.queue_max > 0;
        // With room, only those who came before stand in the way.
        if !waits || (self.has_room(scope) && self.is_first(scope)) {
            return Ok(Turn { _place: None });
        }
        let (mut place, called) = self.enter(class, fairness, scope)?;
        // Room may have come meanwhile, or be there for this one and for none before it.
        self.freed();
        let wait = Duration::from_millis(self.settings.wait_ms_max);
        place.outcome = match tokio::time::timeout(wait, self.heard(called)).await {
            Ok(Ok(Called::Go)) => "called",
            Err(_) => "deadline",
            Ok(Ok(Called::PutOut) | Err(_)) => "put_out",
        };
        if place.outcome == "put_out" {
            return Err(self.shed(Shed::QueueFull, class));
        }
        Ok(Turn {
            _place: Some(place),
        })
    }

    /// What it was called for. Endpoints may join meanwhile, and have room.
    async fn heard(&self, mut called: oneshot::Receiver<Called>) -> Result<Called, RecvError> {
        let mut fleet = self.fleet.clone();
        loop {
            tokio::select! {
                heard = &mut called => return heard,
                Ok(()) = fleet.changed() => self.freed(),
            }
        }
    }

    /// An endpoint may have room again: something ended there, or it said so. Calls the first in
    /// line that finds room; it calls the next.
    pub fn freed(&self) {
        let mut lines = self.lines.lock();
        for state in lines.values_mut() {
            self.call(state);
        }
    }

    fn call(&self, state: &mut State) {
        if state.called.is_some() || state.line.is_empty() {
            return;
        }
        // Nearly all of a line may have the same endpoints, and are asked for together.
        let mut anywhere: Option<(Pools, bool)> = None;
        let first = state.line.take_first(|waiting| {
            let pools = &waiting.scope.pools;
            match &anywhere {
                Some((known, has_room)) if waiting.scope.subset.is_none() && known == pools => {
                    *has_room
                }
                _ => {
                    let has_room = self.has_room(&waiting.scope);
                    if waiting.scope.subset.is_none() {
                        anywhere = Some((pools.clone(), has_room));
                    }
                    has_room
                }
            }
        });
        if let Some((rank, waiting)) = first {
            state.called = Some(rank);
            // Who has just gone tells when its place is dropped.
            let _ = waiting.call.send(Called::Go);
        }
    }

    /// Somebody that it may have could take more. Nobody at all has room, too: for a refusal.
    fn has_room(&self, scope: &Scope) -> bool {
        let fleet = self.fleet.borrow();
        let mut allowed = fleet.allowed(scope).peekable();
        allowed.peek().is_none() || allowed.any(|endpoint| !self.is_saturated(endpoint))
    }

    /// Takes a place in line; where that is full, from somebody less important.
    fn enter(
        &self,
        class: Class,
        fairness: Option<&str>,
        scope: &Scope,
    ) -> Result<(Place<'_>, oneshot::Receiver<Called>), Shed> {
        let (call, called) = oneshot::channel();
        let waiting = Waiting {
            scope: scope.clone(),
            call,
        };
        let flow = fairness.map_or(0, |id| xxh3_64(id.as_bytes()));
        let max = self.settings.queue_max;
        let name = name(scope);
        let mut lines = self.lines.lock();
        let state = lines.entry(name.clone()).or_default();
        let entered = state.line.enter(class.priority, flow, max, waiting);
        drop(lines);
        let Ok((rank, last)) = entered else {
            return Err(self.shed(Shed::QueueFull, class));
        };
        if let Some(last) = last {
            // Whoever hung up at this moment needs no word.
            let _ = last.call.send(Called::PutOut);
        }
        let place = Place {
            admission: self,
            name,
            rank,
            began: Instant::now(),
            outcome: "hung_up",
        };
        Ok((place, called))
    }

    fn shed(&self, why: Shed, class: Class) -> Shed {
        self.metrics.shed(why.as_str(), class.criticality.as_str());
        why
    }
}

fn name(scope: &Scope) -> Name {
    scope.pools.one().cloned()
}

/// A place in line, given back when dropped.
struct Place<'a> {
    admission: &'a Admission,
    name: Name,
    rank: Rank,
    began: Instant,
    outcome: &'static str,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut lines = self.admission.lines.lock();
        if let Some(state) = lines.get_mut(&self.name) {
            state.line.leave(self.rank);
            state.called = state.called.filter(|called| *called != self.rank);
        }
        drop(lines);
        let waited = self.began.elapsed();
        self.admission.metrics.waited(self.outcome, waited);
        self.admission.freed();
    }
}

#[cfg(test)]
mod tests;

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

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{oneshot, watch};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{self, Criticality, Saturation};
use crate::fleet::{Endpoint, Fleet};
use crate::metrics::Metrics;
use crate::routes::Class;

mod line;

use line::{Line, Rank};

/// Admits requests to a fleet.
pub struct Admission {
    settings: config::Admission,
    saturation: Saturation,
    fleet: watch::Receiver<Arc<Fleet>>,
    state: Mutex<State>,
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

#[derive(Default)]
struct State {
    line: Line<Waiting>,
    /// Who was called and has not booked its load.
    called: Option<Rank>,
}

struct Waiting {
    subset: Option<Vec<String>>,
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
            state: Mutex::default(),
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
        self.state.lock().line.len()
    }

    /// Admits a request that cannot wait, such as one whose body is on its way.
    ///
    /// # Errors
    /// [`Shed`] where it is Sheddable and nobody has room.
    pub fn at_once(&self, class: Class, subset: Option<&[String]>) -> Result<(), Shed> {
        if class.criticality == Criticality::Sheddable && !self.has_room(subset) {
            return Err(self.shed(Shed::Saturated, class));
        }
        Ok(())
    }

    /// What would become of a request by now. Changes nothing.
    #[must_use]
    pub fn outlook(&self, class: Class, subset: Option<&[String]>) -> Outlook {
        let has_room = self.has_room(subset);
        match class.criticality {
            Criticality::Sheddable if !has_room => Outlook::Refused,
            Criticality::Standard if self.settings.queue_max > 0 => {
                match has_room && self.waiting() == 0 {
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
        subset: Option<&[String]>,
    ) -> Result<Turn<'_>, Shed> {
        self.at_once(class, subset)?;
        let waits = class.criticality == Criticality::Standard && self.settings.queue_max > 0;
        // With room, only those who came before stand in the way.
        if !waits || (self.has_room(subset) && self.waiting() == 0) {
            return Ok(Turn { _place: None });
        }
        let (mut place, called) = self.enter(class, fairness, subset)?;
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
        let mut state = self.state.lock();
        if state.called.is_some() || state.line.is_empty() {
            return;
        }
        // Nearly all may have any endpoint, and are asked for together.
        let mut anywhere = None;
        let first = state.line.take_first(|waiting| match &waiting.subset {
            None => *anywhere.get_or_insert_with(|| self.has_room(None)),
            subset => self.has_room(subset.as_deref()),
        });
        if let Some((rank, waiting)) = first {
            state.called = Some(rank);
            // Who has just gone tells when its place is dropped.
            let _ = waiting.call.send(Called::Go);
        }
    }

    /// Somebody that it may have could take more. Nobody at all has room, too: for a refusal.
    fn has_room(&self, subset: Option<&[String]>) -> bool {
        let fleet = self.fleet.borrow();
        let mut allowed = fleet.allowed(subset).peekable();
        allowed.peek().is_none() || allowed.any(|endpoint| !self.is_saturated(endpoint))
    }

    /// Takes a place in line; where that is full, from somebody less important.
    fn enter(
        &self,
        class: Class,
        fairness: Option<&str>,
        subset: Option<&[String]>,
    ) -> Result<(Place<'_>, oneshot::Receiver<Called>), Shed> {
        let (call, called) = oneshot::channel();
        let waiting = Waiting {
            subset: subset.map(<[String]>::to_vec),
            call,
        };
        let flow = fairness.map_or(0, |id| xxh3_64(id.as_bytes()));
        let max = self.settings.queue_max;
        let mut state = self.state.lock();
        let entered = state.line.enter(class.priority, flow, max, waiting);
        drop(state);
        let Ok((rank, last)) = entered else {
            return Err(self.shed(Shed::QueueFull, class));
        };
        if let Some(last) = last {
            // Whoever hung up at this moment needs no word.
            let _ = last.call.send(Called::PutOut);
        }
        let place = Place {
            admission: self,
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

/// A place in line, given back when dropped.
struct Place<'a> {
    admission: &'a Admission,
    rank: Rank,
    began: Instant,
    outcome: &'static str,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.state.lock();
        state.line.leave(self.rank);
        state.called = state.called.filter(|called| *called != self.rank);
        drop(state);
        let waited = self.began.elapsed();
        self.admission.metrics.waited(self.outcome, waited);
        self.admission.freed();
    }
}

#[cfg(test)]
mod tests;

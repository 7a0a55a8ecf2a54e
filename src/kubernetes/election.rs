//! Who leads, as a Lease says it and client-go reads it: plain values, and time as a parameter.
//!
//! Clocks of different machines are never compared: a lease of somebody else's counts for its duration
//! from when *we* last saw it change.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use crate::config::LeaderElection;

/// What one candidate knows of the lease.
#[derive(Debug)]
pub struct Election {
    identity: String,
    settings: LeaderElection,
    /// What the lease said last, and when we first saw it say so.
    seen: Option<(LeaseSpec, Instant)>,
    /// When we last wrote it, as of before the attempt.
    renewed: Option<Instant>,
}

impl Election {
    /// Nothing is known; `identity` is nobody else's.
    #[must_use]
    pub fn new(identity: String, settings: LeaderElection) -> Self {
        Self {
            identity,
            settings,
            seen: None,
            renewed: None,
        }
    }

    /// What the lease is to say, if it may be written: it is ours, nobody's, or of somebody who has not
    /// renewed it in its time.
    pub fn claim(
        &mut self,
        held: Option<&Lease>,
        clock: MicroTime,
        now: Instant,
    ) -> Option<LeaseSpec> {
        let spec = held
            .and_then(|lease| lease.spec.clone())
            .unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == spec => *since,
            _ => now,
        };
        self.seen = Some((spec.clone(), since));
        let holder = spec.holder_identity.as_deref().unwrap_or("");
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        let is_ours = holder == self.identity;
        let is_held = !holder.is_empty() && now < since + Duration::from_secs(seconds);
        if !is_ours && is_held {
            return None;
        }
        let transitions = spec.lease_transitions.unwrap_or(0);
        let (acquired, transitions) = match (is_ours, held.is_some()) {
            (true, _) => (spec.acquire_time, transitions),
            (false, true) => (Some(clock.clone()), transitions.saturating_add(1)),
            (false, false) => (Some(clock.clone()), 0),
        };
        let seconds = self.settings.lease_duration_ms.div_ceil(1_000);
        Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(seconds).ok(),
            acquire_time: acquired,
            renew_time: Some(clock),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        })
    }

    /// A claim that was begun at `at` was written, or somebody else holds the lease.
    pub fn settled(&mut self, at: Option<Instant>) {
        self.renewed = at;
    }

    /// How much longer we lead without another word; none where we do not.
    #[must_use]
    pub fn leads_for(&self, now: Instant) -> Option<Duration> {
        let until = self.renewed? + Duration::from_millis(self.settings.renew_deadline_ms);
        let rest = until.saturating_duration_since(now);
        (rest > Duration::ZERO).then_some(rest)
    }

    /// Whether we hold it, as it says.
    #[must_use]
    pub fn is_ours(&self, spec: &LeaseSpec) -> bool {
        spec.holder_identity.as_ref() == Some(&self.identity)
    }

    /// What the lease is to say when we lead no more: nobody's, and soon anybody's.
    #[must_use]
    pub fn released(&self, clock: MicroTime) -> LeaseSpec {
        let seen = self.seen.as_ref().map(|(spec, _)| spec.clone());
        LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(clock.clone()),
            renew_time: Some(clock),
            ..seen.unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn clock(second: i64) -> MicroTime {
        MicroTime(Timestamp::from_second(second).expect("a time"))
    }

    fn election(identity: &str) -> Election {
        Election::new(identity.into(), LeaderElection::by("kvscout".into()))
    }

    fn lease(spec: LeaseSpec) -> Lease {
        Lease {
            spec: Some(spec),
            ..Lease::default()
        }
    }

    #[test]
    fn a_lease_of_somebody_elses_counts_until_it_stood_still_for_its_time() {
        let (mut one, mut other) = (election("one"), election("other"));
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let first = one.claim(None, clock(0), begin).expect("nobody's");
        assert_eq!(first.lease_transitions, Some(0));
        let held = lease(first);
        // Whatever the other's clock says: what counts is how long it has watched.
        assert_eq!(other.claim(Some(&held), clock(9_999), after(100)), None);
        assert_eq!(other.claim(Some(&held), clock(9_999), after(114)), None);
        let renewed = one
            .claim(Some(&held), clock(114), after(114))
            .expect("ours");
        assert_eq!(
            renewed.acquire_time,
            held.spec.and_then(|spec| spec.acquire_time)
        );
        let held = lease(renewed);
        assert_eq!(other.claim(Some(&held), clock(0), after(115)), None);
        assert_eq!(other.claim(Some(&held), clock(0), after(129)), None);
        let taken = other
            .claim(Some(&held), clock(7), after(130))
            .expect("it stood still");
        assert_eq!(
            (taken.lease_transitions, taken.acquire_time.clone()),
            (Some(1), Some(clock(7)))
        );
        assert_eq!(one.claim(Some(&lease(taken)), clock(131), after(131)), None);
    }

    #[test]
    fn who_cannot_renew_leads_until_the_deadline_and_no_longer() {
        let mut one = election("one");
        let begin = Instant::now();
        assert_eq!(one.leads_for(begin), None);
        one.settled(Some(begin));
        let almost = begin + Duration::from_millis(9_999);
        assert_eq!(one.leads_for(almost), Some(Duration::from_millis(1)));
        assert_eq!(one.leads_for(begin + Duration::from_secs(10)), None);
        one.settled(None);
        assert_eq!(one.leads_for(begin), None);
    }

    #[test]
    fn what_was_released_is_anybodys() {
        let (mut one, mut other) = (election("one"), election("other"));
        let now = Instant::now();
        let first = one.claim(None, clock(0), now).expect("nobody's");
        one.claim(Some(&lease(first)), clock(1), now);
        let free = lease(one.released(clock(2)));
        let taken = other.claim(Some(&free), clock(3), now).expect("free");
        assert_eq!(taken.lease_transitions, Some(1));
    }
}

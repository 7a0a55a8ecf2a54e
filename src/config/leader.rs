//! Which of several replicas leads, as far as an operator decides it.

use super::yaml::Section;

/// By which Lease (coordination.k8s.io/v1) one replica leads; times are client-go's by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderElection {
    /// Its name.
    pub lease: String,
    /// Milliseconds for which others leave a lease alone that is not renewed.
    pub lease_duration_ms: u64,
    /// Milliseconds after which a leader that could not renew it leads no more.
    pub renew_deadline_ms: u64,
    /// Milliseconds between two attempts.
    pub retry_period_ms: u64,
}

impl LeaderElection {
    /// By a lease of this name.
    #[must_use]
    pub fn by(lease: String) -> Self {
        Self {
            lease,
            lease_duration_ms: 15_000,
            renew_deadline_ms: 10_000,
            retry_period_ms: 2_000,
        }
    }
}

pub(super) fn read(election: &mut Section<'_>) -> Option<LeaderElection> {
    let Some(lease) = election.optional::<String>("lease") else {
        election.complain(
            "lease",
            "is missing: the name of a Lease in the picker's namespace",
        );
        return None;
    };
    let defaults = LeaderElection::by(lease);
    let mut time = |name, default| election.within(name, (100, 3_600_000), default);
    let read = LeaderElection {
        lease_duration_ms: time("lease_duration_ms", defaults.lease_duration_ms),
        renew_deadline_ms: time("renew_deadline_ms", defaults.renew_deadline_ms),
        retry_period_ms: time("retry_period_ms", defaults.retry_period_ms),
        lease: defaults.lease,
    };
    // Or two could lead at once, or a leader give up before its second attempt.
    if read.renew_deadline_ms >= read.lease_duration_ms {
        election.complain("renew_deadline_ms", "must be less than lease_duration_ms");
    }
    if read.retry_period_ms >= read.renew_deadline_ms {
        election.complain("retry_period_ms", "must be less than renew_deadline_ms");
    }
    Some(read)
}

pub(super) fn write(election: &LeaderElection) -> String {
    let LeaderElection {
        lease,
        lease_duration_ms,
        renew_deadline_ms,
        retry_period_ms,
    } = election;
    let lease = super::print::quote(lease);
    format!(
        "{{lease: {lease}, lease_duration_ms: {lease_duration_ms}, \
         renew_deadline_ms: {renew_deadline_ms}, retry_period_ms: {retry_period_ms}}}"
    )
}

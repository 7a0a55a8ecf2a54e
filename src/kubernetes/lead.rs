//! Holds the lease by which one replica leads, or waits for it.
//!
//! Who does not lead is not ready, and that is all: its gateway asks somebody else, and everything it
//! knows stays as warm as the leader's.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::time::{sleep, timeout};

use super::election::Election;
use crate::config::LeaderElection;
use crate::readiness::{Readiness, Ticket};

/// For a lease to be given back; the rest of the process ends meanwhile.
const RELEASE_MAX: Duration = Duration::from_secs(2);

/// A renewal that was on its way when the end came may be written between a look and a word: then another look.
const RELEASES_MAX: usize = 3;

/// A replica that leads, or would.
pub struct Candidate {
    leases: Api<Lease>,
    settings: LeaderElection,
    election: Election,
    readiness: Readiness,
    /// While another one leads.
    follows: Option<Ticket>,
}

impl Candidate {
    /// Does not lead yet, and so is not ready.
    pub(super) fn new(leases: Api<Lease>, settings: LeaderElection, readiness: Readiness) -> Self {
        let follows = Some(readiness.ticket("leadership"));
        let election = Election::new(identity(), settings.clone());
        Self {
            leases,
            settings,
            election,
            readiness,
            follows,
        }
    }

    /// Leads where it may, until `ending`; then gives the lease back.
    pub async fn run(mut self, ending: impl Future<Output = ()>) {
        tokio::select! {
            () = self.campaign() => {}
            () = ending => {}
        }
        // Also where a late renewal has cost the lead: the lease may still be ours. Who cannot be told finds out by
        // time.
        let _late = timeout(RELEASE_MAX, self.release()).await;
    }

    async fn campaign(&mut self) {
        let retry = Duration::from_millis(self.settings.retry_period_ms);
        loop {
            let began = Instant::now();
            let leads_for = self.election.leads_for(began);
            let patience = Duration::from_millis(self.settings.renew_deadline_ms);
            let attempt = timeout(leads_for.unwrap_or(patience), self.attempt(began)).await;
            let failed = match attempt {
                Ok(Ok(wrote)) => {
                    self.election.settled(wrote.then_some(began));
                    None
                }
                Ok(Err(error)) => Some(error.to_string()),
                Err(_late) => Some("no answer in time".to_owned()),
            };
            self.say(failed);
            // A leader that cannot renew is none any more when its time is over, not later.
            let rest = self.election.leads_for(Instant::now());
            sleep(rest.map_or(retry, |rest| rest.min(retry))).await;
            self.stand();
        }
    }

    /// Whether the lease is ours by now.
    async fn attempt(&mut self, now: Instant) -> kube::Result<bool> {
        let held = self.leases.get_opt(&self.settings.lease).await?;
        let Some(spec) = self.election.claim(held.as_ref(), clock(), now) else {
            return Ok(false);
        };
        self.write(held, spec).await
    }

    /// Whether it was written: not where somebody else was quicker.
    async fn write(&self, held: Option<Lease>, spec: LeaseSpec) -> kube::Result<bool> {
        let spec = Some(spec);
        let plain = PostParams::default();
        let written = match held {
            // With the version that was read, so that two cannot both write.
            Some(held) => {
                let lease = Lease { spec, ..held };
                self.leases
                    .replace(&self.settings.lease, &plain, &lease)
                    .await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.settings.lease.clone()),
                    ..ObjectMeta::default()
                };
                self.leases.create(&plain, &Lease { metadata, spec }).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn release(&mut self) -> kube::Result<()> {
        for _ in 0..RELEASES_MAX {
            let held = self.leases.get_opt(&self.settings.lease).await?;
            let spec = held.as_ref().and_then(|lease| lease.spec.as_ref());
            if !spec.is_some_and(|spec| self.election.is_ours(spec)) {
                return Ok(());
            }
            if self.write(held, self.election.released(clock())).await? {
                tracing::info!(
                    lease = self.settings.lease,
                    "leads no more: the lease is released"
                );
                return Ok(());
            }
        }
        Ok(())
    }

    fn say(&mut self, failed: Option<String>) {
        let remark = failed.map(|error| {
            format!("cannot be read or written: {error}; does a Role give get, create and update on leases?")
        });
        if let Some(remark) = &remark {
            tracing::warn!(lease = self.settings.lease, "{remark}");
        }
        self.readiness
            .remark(&format!("lease {}", self.settings.lease), remark);
        self.stand();
    }

    /// Ready where it leads, and only there.
    fn stand(&mut self) {
        let lease = &self.settings.lease;
        match (self.election.leads_for(Instant::now()), &self.follows) {
            (Some(_), Some(_)) => {
                tracing::info!(lease, "leads");
                self.follows = None;
            }
            (None, None) => {
                tracing::warn!(lease, "leads no more");
                self.follows = Some(self.readiness.ticket("leadership"));
            }
            _ => {}
        }
    }
}

fn clock() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// The pod's name, and what no other process has.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "kvscout".to_owned());
    format!("{host}_{:016x}", RandomState::new().hash_one(()))
}

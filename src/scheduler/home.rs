//! Where a conversation stays whose prompt cannot be read.

use std::sync::Arc;

use super::{Readings, Scheduler};
use crate::choice::Candidate;
use crate::choice::affinity::{self, Seat};
use crate::config::Strategy;
use crate::fleet::{Endpoint, Fleet};
use crate::prompt::conversation;
use crate::prompt::json::outline::Outline;

impl Scheduler {
    /// With its conversation, where load alone would decide and may decide otherwise.
    pub(super) fn in_conversation(
        &self,
        mut readings: Readings,
        strategy: Strategy,
        (session, body): (Option<&str>, &[u8]),
    ) -> Readings {
        let policy = &self.parts.policy;
        if !readings.is_by_load() || !policy.session_affinity || strategy == Strategy::Default {
            return readings;
        }
        readings.conversation = conversation::key(session, Outline::of(body).as_ref());
        readings
    }

    /// The place of the candidate that a conversation stays at, if it is known and one is fit for it.
    pub(super) fn home(
        &self,
        readings: &Readings,
        allowed: &Fleet,
        candidates: &[Candidate],
    ) -> Option<usize> {
        let conversation = readings.conversation?;
        let fit = |(_, (endpoint, candidate)): &(usize, (&Arc<Endpoint>, &Candidate))| {
            !candidate.avoided && !self.saturated(endpoint)
        };
        let all = allowed.endpoints.iter().zip(candidates).enumerate();
        let (seats, places): (Vec<Seat<'_>>, Vec<usize>) = all
            .filter(fit)
            .map(|(place, (endpoint, candidate))| {
                let seat = Seat {
                    name: &endpoint.name,
                    queued_tokens: candidate.queued_tokens,
                    requests: candidate.requests,
                };
                (seat, place)
            })
            .unzip();
        let home = affinity::home(conversation, readings.at(0).prompt_tokens, &seats)?;
        places.get(home).copied()
    }
}

//! What a listener counts, and says to an operator.

use std::time::{Instant, SystemTime};

use super::listener::Listener;
use crate::events::follow::Followed;
use crate::fleet::Trust;
use crate::parity::{self, Heard, Judgement, epoch_s};
/// For an operator: what happened, what it costs, what to look at.
const MODEL_DOUBTFUL: &str = "servers store other token ids than we compute for this model's \
    prompts, so its cache hits count less: is models.folder the servers' own model? Does \
    models.server say --chat-template, --chat-template-content-format and \
    --default-chat-template-kwargs as the servers were started? Are adapters named in order? \
    (docs/runbook.md#token-parity)";

impl Listener {
    /// Judges the watches that this delivery decides.
    pub(super) fn judge(&self, followed: &Followed, trust: Trust) {
        let lost = followed.forgotten || followed.missed > 0;
        let heard = Heard {
            timestamp: followed.timestamp,
            now_s: epoch_s(SystemTime::now()),
            unbroken: trust == Trust::Live && !lost,
        };
        for judgement in self.parity.heard(self.endpoint.id, heard) {
            self.tell(&judgement);
        }
    }

    fn tell(&self, judgement: &Judgement) {
        let Judgement {
            request,
            model,
            verdict,
            doubtful,
        } = judgement;
        let (endpoint, model) = (self.endpoint.name.as_str(), model.as_ref());
        if let parity::Verdict::Differ(fork) = verdict {
            let (position, why) = (fork.position(), fork.as_str());
            tracing::debug!(
                ?request,
                endpoint,
                model,
                position,
                why,
                "the server did not store the tokens that we computed"
            );
        }
        match doubtful {
            Some(true) => tracing::warn!(model, endpoint, "{MODEL_DOUBTFUL}"),
            Some(false) => tracing::info!(model, endpoint, "token ids agree with the events again"),
            None => {}
        }
    }

    pub(super) fn trust(&self, trust: Trust, reason: &str) {
        let advised = match (&self.advice, trust) {
            (Some(advice), Trust::Silent) => format!("{reason}; {advice}"),
            _ => String::new(),
        };
        let reason = if advised.is_empty() { reason } else { &advised };
        if self.endpoint.set_trust(trust, reason, Instant::now()) {
            let (endpoint, trust) = (self.endpoint.name.as_str(), trust.as_str());
            // Quoted and escaped: some of the reason is the peer's own word.
            tracing::info!(endpoint, trust, ?reason, "trust changed");
        }
    }

    pub(super) fn count(&self, followed: &Followed) {
        let Followed { applied, .. } = followed;
        let metrics = &self.metrics;
        metrics.gaps.increment(u64::from(followed.missed > 0));
        metrics.missed.increment(followed.missed);
        metrics.forgotten.increment(u64::from(followed.forgotten));
        metrics.doubted.increment(u64::from(followed.doubted));
        metrics
            .undecodable
            .increment(u64::from(followed.undecodable));
        metrics.malformed.increment(u64::from(followed.malformed));
        metrics.unknown.increment(u64::from(followed.unknown));
        metrics.stored.increment(u64::from(applied.stored));
        metrics.removed.increment(u64::from(applied.removed));
        metrics.orphans.increment(u64::from(applied.orphans));
        metrics.strangers.increment(u64::from(applied.unknown));
        metrics.elsewhere.increment(u64::from(applied.elsewhere));
        metrics.unmodelled.increment(u64::from(applied.unmodelled));
        let lag = |timestamp: f64| (epoch_s(SystemTime::now()) - timestamp).max(0.0);
        let lag = followed.timestamp.map(lag);
        if let Some(lag) = lag {
            metrics.lag.record(lag);
        }
        let broken = followed.missed > 0 || followed.forgotten || followed.doubted;
        let heard = &self.endpoint.heard;
        heard.add(applied.stored, applied.removed, broken, lag);
    }
}

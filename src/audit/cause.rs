//! Why a prediction missed, as far as can be told. Pure.
//!
//! What a cause is told by is what was known when the request was placed, what the response says, and what
//! its server told of its cache in between. Causes are asked for in the order of [`Cause`]: the surest first.

use crate::choice::Basis;
use crate::fleet::Trust;
use crate::fleet::heard::SoFar;
use crate::index::Cached;
use crate::metrics::CAUSES;

/// The reason of a basis whose salt the events do not show (vLLM before 0.17.1).
pub const SALT_REASON: &str = "salt_not_in_events";

/// A stream this far behind is an excuse: batches come some milliseconds after their step, and clocks under
/// NTP differ by less than 0.1 s.
pub const LAGGING_S: f32 = 0.5;

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The server counts another number of prompt tokens: it read another prompt.
    TokensDiffer,
    /// The request has a salt, which this server's events do not show.
    Salt,
    /// Events were lost, before or since, or the picture was being learnt.
    Gap,
    /// What was placed there before and counted as cached was not, or not yet.
    Expected,
    /// One block less than is held, and nothing was removed: the engine computed one more block than the
    /// last one, as it does with speculative decoding before vLLM 0.33.
    LastBlock,
    /// Blocks were removed between choice and schedule.
    EvictionRace,
    /// The engine knew more than it had told, or was behind with telling.
    EventLag,
    /// Nothing that is known explains it.
    Unknown,
}

impl Cause {
    /// The word for labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        CAUSES[self as usize]
    }

    /// Whether it would be as it is with a picture that is right. A picture that lacks blocks shows
    /// otherwise, in events that name a parent which it does not know; one that has too many does not.
    #[must_use]
    pub fn excuses_the_picture(self) -> bool {
        !matches!(self, Self::EvictionRace | Self::Unknown)
    }
}

/// What is known of a prediction that was made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    /// What it rested on.
    pub basis: Basis,
    /// How complete the picture was.
    pub trust: Trust,
    /// Tokens that should have been cached.
    pub predicted: Cached,
    /// Tokens that were.
    pub reported: u64,
    /// Tokens of the prompt, as we read it.
    pub prompt_tokens: u64,
    /// The same as the server reads it.
    pub reported_prompt_tokens: u64,
    /// Tokens of a block there; none before its first event.
    pub block_size: Option<u32>,
    /// What the server told of its cache between the choice and the end of the answer.
    pub since: SoFar,
}

impl Evidence {
    /// Whether the server read the prompt that we read, as far as its length tells.
    pub(super) fn is_of_one_prompt(&self) -> bool {
        self.prompt_tokens == self.reported_prompt_tokens
    }

    /// Whether nothing was missing of what the server has told of its cache.
    pub(super) fn has_whole_picture(&self) -> bool {
        self.trust == Trust::Live && self.since.broken == 0
    }
}

/// Of a prediction that missed.
#[must_use]
pub fn of(evidence: &Evidence) -> Cause {
    let Evidence {
        basis,
        predicted,
        reported,
        since,
        ..
    } = *evidence;
    let over = predicted.tokens().saturating_sub(reported);
    let block = evidence.block_size.map(u64::from);
    match over {
        _ if !evidence.is_of_one_prompt() => Cause::TokensDiffer,
        _ if basis == Basis::Partial(SALT_REASON) => Cause::Salt,
        _ if !evidence.has_whole_picture() => Cause::Gap,
        1.. if over <= predicted.expected => Cause::Expected,
        1.. if Some(over) == block && since.removed == 0 => Cause::LastBlock,
        _ if since.lag_s > LAGGING_S => Cause::EventLag,
        1.. if since.removed > 0 => Cause::EvictionRace,
        0 if since.stored > 0 => Cause::EventLag,
        _ => Cause::Unknown,
    }
}

#[cfg(test)]
impl Evidence {
    /// Tokens predicted and reported of a prompt of 200 in blocks of 16; nothing happened since.
    pub(super) fn of(predicted: u64, reported: u64) -> Self {
        Self {
            basis: Basis::Overlap,
            trust: Trust::Live,
            predicted: Cached {
                own: predicted,
                ..Cached::default()
            },
            reported,
            prompt_tokens: 200,
            reported_prompt_tokens: 200,
            block_size: Some(16),
            since: SoFar::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(reported: u64) -> Evidence {
        Evidence::of(128, reported)
    }

    #[test]
    fn each_cause_is_told_by_its_own_sign() {
        let since = |stored, removed| SoFar {
            stored,
            removed,
            ..SoFar::default()
        };
        let expected = Cached {
            own: 64,
            expected: 64,
            ..Cached::default()
        };
        let cases = [
            (Cause::Unknown, evidence(0)),
            (Cause::Unknown, evidence(160)),
            (Cause::LastBlock, evidence(112)),
            (
                Cause::EvictionRace,
                Evidence {
                    since: since(0, 3),
                    ..evidence(112)
                },
            ),
            (
                Cause::EventLag,
                Evidence {
                    since: since(3, 0),
                    ..evidence(160)
                },
            ),
            (
                Cause::EventLag,
                Evidence {
                    since: SoFar {
                        lag_s: 2.0,
                        ..since(0, 3)
                    },
                    ..evidence(0)
                },
            ),
            (
                Cause::Expected,
                Evidence {
                    predicted: expected,
                    since: since(0, 3),
                    ..evidence(64)
                },
            ),
            (
                Cause::Gap,
                Evidence {
                    trust: Trust::Doubtful,
                    ..evidence(0)
                },
            ),
            (
                Cause::Gap,
                Evidence {
                    since: SoFar {
                        broken: 1,
                        ..since(0, 3)
                    },
                    ..evidence(0)
                },
            ),
            (
                Cause::Salt,
                Evidence {
                    basis: Basis::Partial(SALT_REASON),
                    trust: Trust::Doubtful,
                    ..evidence(0)
                },
            ),
            (
                Cause::TokensDiffer,
                Evidence {
                    reported_prompt_tokens: 201,
                    trust: Trust::Doubtful,
                    ..evidence(0)
                },
            ),
        ];
        for (cause, evidence) in cases {
            assert_eq!(of(&evidence), cause, "{evidence:?}");
        }
    }

    #[test]
    fn causes_have_their_own_words() {
        assert_eq!(Cause::TokensDiffer.as_str(), "tokens_differ");
        assert_eq!(Cause::Expected.as_str(), "expected");
        assert_eq!(Cause::Unknown.as_str(), "unknown");
    }
}

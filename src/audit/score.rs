//! How one endpoint's predictions have come out, and when that is too often wrong. Pure: time is a parameter.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Audited, Cause, Verdict};

/// Predictions that are looked at together. Of a picture that lacks its events, or has too many, nearly all are
/// wrong; races between choice and schedule take milliseconds, and hit few.
const WINDOW: u32 = 16;
/// So many of them wrong without an excuse is too many.
const WRONG_MAX: u32 = 8;
/// Between two times that one endpoint is mistrusted, doubled with each: where learning it again does
/// not help, it need not be tried again and again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// One endpoint's.
#[derive(Debug, Default)]
pub struct Score(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tally: Tally,
    /// The last ones, a bit each, the newest lowest: 1 where wrong without an excuse.
    window: u32,
    mistrusted: Option<(Instant, Duration)>,
}

/// How predictions have come out since the endpoint joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Predictions that were compared with a report.
    pub compared: u64,
    /// To the token.
    pub exact: u64,
    /// More was predicted than reported.
    pub over: u64,
    /// Less was predicted than reported.
    pub under: u64,
    /// Tokens that were predicted to be cached, of those compared.
    pub predicted_tokens: u64,
    /// Tokens that were reported as cached, of those compared.
    pub reported_tokens: u64,
    /// The sum of all differences, over and under.
    pub error_tokens: u64,
    /// Those that missed, by cause.
    pub causes: Causes,
    /// Of the last 16 that tell anything, those that were wrong without an excuse; at 8 the picture is
    /// doubted and learnt again.
    pub lately_wrong: u32,
    /// Times that that was so.
    pub mistrusted: u64,
}

/// Predictions that missed, by cause; see [`Cause`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is a cause, described there")]
pub struct Causes {
    pub tokens_differ: u64,
    pub salt: u64,
    pub gap: u64,
    pub expected: u64,
    pub last_block: u64,
    pub eviction_race: u64,
    pub event_lag: u64,
    pub unknown: u64,
}

impl Causes {
    /// In the order of [`crate::metrics::CAUSES`].
    #[must_use]
    pub fn counts(self) -> [u64; 8] {
        [
            self.tokens_differ,
            self.salt,
            self.gap,
            self.expected,
            self.last_block,
            self.eviction_race,
            self.event_lag,
            self.unknown,
        ]
    }

    fn all_mut(&mut self) -> [&mut u64; 8] {
        [
            &mut self.tokens_differ,
            &mut self.salt,
            &mut self.gap,
            &mut self.expected,
            &mut self.last_block,
            &mut self.eviction_race,
            &mut self.event_lag,
            &mut self.unknown,
        ]
    }
}

impl Tally {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        for (own, more) in [
            (&mut self.compared, other.compared),
            (&mut self.exact, other.exact),
            (&mut self.over, other.over),
            (&mut self.under, other.under),
            (&mut self.predicted_tokens, other.predicted_tokens),
            (&mut self.reported_tokens, other.reported_tokens),
            (&mut self.error_tokens, other.error_tokens),
            (&mut self.mistrusted, other.mistrusted),
        ] {
            *own += more;
        }
        self.lately_wrong = self.lately_wrong.max(other.lately_wrong);
        let causes = self.causes.all_mut().into_iter().zip(other.causes.counts());
        causes.for_each(|(own, more)| *own += more);
    }
}

impl Score {
    /// Notes one more prediction; `true` where the endpoint is to be mistrusted from now on.
    pub fn note(&self, predicted: u64, reported: u64, audited: Audited, now: Instant) -> bool {
        let mut state = self.0.lock();
        let tally = &mut state.tally;
        tally.compared += 1;
        *match audited.verdict {
            Verdict::Exact => &mut tally.exact,
            Verdict::Over => &mut tally.over,
            Verdict::Under => &mut tally.under,
        } += 1;
        tally.predicted_tokens += predicted;
        tally.reported_tokens += reported;
        tally.error_tokens += predicted.abs_diff(reported);
        if let Some(cause) = audited.cause {
            *tally.causes.all_mut()[cause as usize] += 1;
        }
        let excused = audited.cause.is_some_and(Cause::excuses_the_picture);
        // That a new prompt is nowhere, any picture knows.
        if excused || predicted + reported == 0 {
            return false;
        }
        state.look(audited.verdict != Verdict::Exact, now)
    }

    /// As of now.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.0.lock().tally
    }
}

impl State {
    fn look(&mut self, wrong: bool, now: Instant) -> bool {
        self.window = (self.window << 1 | u32::from(wrong)) & ((1 << WINDOW) - 1);
        self.tally.lately_wrong = self.window.count_ones();
        let rests = self
            .mistrusted
            .is_some_and(|(at, pause)| now.saturating_duration_since(at) < pause);
        if self.tally.lately_wrong < WRONG_MAX || rests {
            return false;
        }
        let pause = self.mistrusted.map_or(PAUSE.0, |(_, pause)| pause * 2);
        self.mistrusted = Some((now, pause.min(PAUSE.1)));
        self.tally.mistrusted += 1;
        // The picture that follows is another one.
        (self.window, self.tally.lately_wrong) = (0, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: Audited = Audited {
        verdict: Verdict::Over,
        cause: Some(Cause::Unknown),
    };
    const RIGHT: Audited = Audited {
        verdict: Verdict::Exact,
        cause: None,
    };

    /// Notes so many; the number of times that the endpoint became mistrusted.
    fn note(score: &Score, count: u32, audited: Audited, now: Instant) -> u32 {
        let reported = if audited.verdict == Verdict::Exact {
            64
        } else {
            0
        };
        (0..count)
            .map(|_| u32::from(score.note(64, reported, audited, now)))
            .sum()
    }

    #[test]
    fn an_endpoint_that_is_wrong_half_the_time_is_mistrusted_once() {
        let (score, now) = (Score::default(), Instant::now());
        for _ in 0..7 {
            assert_eq!(note(&score, 1, RIGHT, now) + note(&score, 1, WRONG, now), 0);
        }
        assert_eq!(note(&score, 1, WRONG, now), 1);
        assert_eq!(note(&score, 100, WRONG, now), 0, "it is being learnt again");
        let tally = score.tally();
        assert_eq!((tally.mistrusted, tally.compared, tally.exact), (1, 115, 7));
        assert_eq!((tally.causes.unknown, tally.error_tokens), (108, 108 * 64));
    }

    #[test]
    fn what_does_not_help_is_tried_less_and_less_often() {
        let (score, start) = (Score::default(), Instant::now());
        let minutes = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let times = (0..240).map(|minute| note(&score, 16, WRONG, minutes(minute)));
        // At 0, 1, 3, 7, 15, 31, 63 and then every hour.
        assert_eq!(times.sum::<u32>(), 9);
    }

    #[test]
    fn few_errors_and_excused_ones_are_no_reason() {
        let (score, now) = (Score::default(), Instant::now());
        let excused = Audited {
            cause: Some(Cause::LastBlock),
            ..WRONG
        };
        assert_eq!(note(&score, 100, excused, now), 0);
        for _ in 0..100 {
            assert_eq!(note(&score, 7, WRONG, now) + note(&score, 9, RIGHT, now), 0);
        }
    }
}

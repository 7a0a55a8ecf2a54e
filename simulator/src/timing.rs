//! How long a step takes.

use std::time::Duration;

use crate::engine::StepWork;

/// A server's speed, in three numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// What a step costs however little it does.
    pub step_overhead: Duration,
    /// Prompt tokens computed per second.
    pub prefill_rate: f64,
    /// Answer tokens computed per second, over all requests of the batch.
    pub decode_rate: f64,
}

impl Timing {
    /// No step takes any time: for tests that care about order alone.
    pub const INSTANT: Self = Self {
        step_overhead: Duration::ZERO,
        prefill_rate: f64::INFINITY,
        decode_rate: f64::INFINITY,
    };

    /// The duration of a step that does `work`.
    #[must_use]
    pub fn step(&self, work: StepWork) -> Duration {
        let seconds = work.prefill_tokens as f64 / self.prefill_rate
            + work.decode_tokens as f64 / self.decode_rate;
        self.step_overhead + Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
    }
}

impl Default for Timing {
    /// About an 8-billion-parameter model on one large GPU.
    fn default() -> Self {
        Self {
            step_overhead: Duration::from_millis(8),
            prefill_rate: 20_000.0,
            decode_rate: 5_000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_costs_its_overhead_and_its_tokens() {
        let timing = Timing {
            step_overhead: Duration::from_millis(10),
            prefill_rate: 1000.0,
            decode_rate: 100.0,
        };
        let work = StepWork {
            prefill_tokens: 50,
            decode_tokens: 2,
        };
        assert_eq!(timing.step(work), Duration::from_millis(80));
        assert_eq!(Timing::INSTANT.step(work), Duration::ZERO);
    }
}

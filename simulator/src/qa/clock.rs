//! The workload's time, which may run faster than the machine's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Seconds since 1970, as of the start; from there on, `speed` times as fast.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    epoch: f64,
    began: Instant,
    speed: f64,
}

impl Clock {
    /// Begins now.
    #[must_use]
    pub fn start(speed: f64) -> Self {
        let epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            epoch: epoch.as_secs_f64(),
            began: Instant::now(),
            speed,
        }
    }

    /// The workload's time.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.epoch + self.elapsed()
    }

    /// The workload's seconds since the start.
    #[must_use]
    pub fn elapsed(&self) -> f64 {
        self.seconds(self.began.elapsed())
    }

    /// What a stretch of the machine's time is in the workload's.
    #[must_use]
    pub fn seconds(&self, real: Duration) -> f64 {
        real.as_secs_f64() * self.speed
    }

    /// The machine's time that these seconds of the workload's take.
    #[must_use]
    pub fn real(&self, seconds: f64) -> Duration {
        Duration::try_from_secs_f64(seconds / self.speed).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_compressed_clock_runs_so_many_times_as_fast() {
        let clock = Clock::start(20.0);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!((clock.elapsed() - 60.0).abs() < 1e-6);
        assert_eq!(clock.real(0.1), Duration::from_millis(5));
    }
}

//! Clocks and what is made of their readings.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A point in time, by both clocks of a thread.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at: Instant,
    cpu: Duration,
}

impl Moment {
    /// Now, on this thread.
    pub fn now() -> Self {
        Self {
            at: Instant::now(),
            cpu: thread_cpu(),
        }
    }

    /// What passed until a later moment of the same thread.
    pub fn until(self, end: Self) -> Took {
        Took {
            begun: self.at,
            ended: end.at,
            cpu: end.cpu - self.cpu,
        }
    }
}

/// CPU time that this thread has used.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How long work took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    begun: Instant,
    ended: Instant,
    /// Of the busiest thread: what other tenants of the machine take is not in it.
    pub cpu: Duration,
}

impl Took {
    /// By the clock on the wall.
    pub fn wall(self) -> Duration {
        self.ended - self.begun
    }

    /// Of two threads that worked side by side.
    pub fn beside(self, other: Self) -> Self {
        Self {
            begun: self.begun.min(other.begun),
            ended: self.ended.max(other.ended),
            cpu: self.cpu.max(other.cpu),
        }
    }
}

/// A time of a single call.
pub fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

/// The times between readings.
pub fn between(readings: &[Duration]) -> Vec<u32> {
    let pairs = readings.windows(2);
    pairs.map(|pair| nanoseconds(pair[1] - pair[0])).collect()
}

/// Times of single calls, in order of size.
#[derive(Debug)]
pub struct Spread(Vec<u32>);

impl Spread {
    /// Of nanoseconds in any order.
    pub fn of(mut nanoseconds: Vec<u32>) -> Self {
        nanoseconds.sort_unstable();
        Self(nanoseconds)
    }

    /// The percentile by nearest rank, in microseconds.
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (self.0.len() as f64 * percent / 100.0).ceil() as usize;
        let at = rank.clamp(1, self.0.len().max(1)) - 1;
        self.0
            .get(at)
            .map_or(f64::NAN, |time| f64::from(*time) / 1e3)
    }
}

/// The middle one; the upper of two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a pair of clock readings costs, in nanoseconds: it is in every time of a single call.
pub fn clock_cost() -> f64 {
    let begun = Instant::now();
    for _ in 0..1000 {
        std::hint::black_box(Instant::now().elapsed());
    }
    begun.elapsed().as_nanos() as f64 / 1e3
}

//! How much a server has told of its cache, so that a prediction that missed can be explained by what came
//! in between.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Counts that only grow, written by whoever applies its events.
#[derive(Debug, Default)]
pub struct Heard {
    stored: AtomicU64,
    removed: AtomicU64,
    broken: AtomicU64,
    /// Bits of an `f32`.
    lag_s: AtomicU32,
}

/// They, as of a moment, or between two.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SoFar {
    /// Blocks that it stored.
    pub stored: u64,
    /// Blocks that it removed.
    pub removed: u64,
    /// Times that events were lost, or the picture was thrown away.
    pub broken: u64,
    /// How far its stream was behind at last, in seconds.
    pub lag_s: f32,
}

impl Heard {
    /// It told so much more; its stream is this far behind, where that is known.
    pub fn add(&self, stored: u32, removed: u32, broken: bool, lag_s: Option<f64>) {
        for (count, more) in [
            (&self.stored, stored.into()),
            (&self.removed, removed.into()),
            (&self.broken, broken.into()),
        ] {
            if more > 0 {
                count.fetch_add(more, Ordering::Relaxed);
            }
        }
        if let Some(lag_s) = lag_s {
            self.lag_s
                .store((lag_s as f32).to_bits(), Ordering::Relaxed);
        }
    }

    /// Until now.
    #[must_use]
    pub fn so_far(&self) -> SoFar {
        SoFar {
            stored: self.stored.load(Ordering::Relaxed),
            removed: self.removed.load(Ordering::Relaxed),
            broken: self.broken.load(Ordering::Relaxed),
            lag_s: f32::from_bits(self.lag_s.load(Ordering::Relaxed)),
        }
    }
}

impl SoFar {
    /// What was told between then and now.
    #[must_use]
    pub fn since(self, then: Self) -> Self {
        Self {
            stored: self.stored - then.stored,
            removed: self.removed - then.removed,
            broken: self.broken - then.broken,
            ..self
        }
    }

    /// Where it is not known how much was told by then: it may have stored and removed.
    #[must_use]
    pub fn anything(self) -> Self {
        Self {
            stored: 1,
            removed: 1,
            broken: 0,
            ..self
        }
    }
}

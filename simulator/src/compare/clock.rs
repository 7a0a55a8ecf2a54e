//! Virtual time: what is due next.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Nanoseconds since the start.
pub type Time = u64;

/// A second.
pub const SECOND: Time = 1_000_000_000;

/// A duration in seconds as virtual time; negative ones are none.
#[must_use]
pub fn seconds(seconds: f64) -> Time {
    (seconds.max(0.0) * SECOND as f64).round() as Time
}

/// What is due, soonest first; what is due at the same time, in the order in which it was put in.
#[derive(Debug)]
pub struct Queue<T> {
    heap: BinaryHeap<Entry<T>>,
    next: u64,
    now: Time,
}

#[derive(Debug)]
struct Entry<T> {
    at: Time,
    number: u64,
    what: T,
}

impl<T> Queue<T> {
    /// An empty one, at time 0.
    #[must_use]
    pub fn new() -> Self {
        let heap = BinaryHeap::new();
        let (next, now) = (0, 0);
        Self { heap, next, now }
    }

    /// The time of what was taken out last.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// Puts something in; what should have been before now is due now.
    pub fn put(&mut self, at: Time, what: T) {
        let (at, number) = (at.max(self.now), self.next);
        self.next += 1;
        self.heap.push(Entry { at, number, what });
    }

    /// Takes out what is due next; time moves on to it.
    pub fn take(&mut self) -> Option<T> {
        let entry = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.what)
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

// The heap gives the greatest first: what is due sooner is greater.
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_first_comes_first_and_ties_keep_their_order() {
        let mut queue = Queue::new();
        for (at, what) in [(5, 'c'), (2, 'a'), (5, 'd'), (2, 'b')] {
            queue.put(at, what);
        }
        assert_eq!(queue.take(), Some('a'));
        queue.put(0, 'x');
        let rest: String = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!((rest.as_str(), queue.now()), ("bxcd", 5));
    }
}

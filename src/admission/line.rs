//! A waiting line: by priority, then by arrival.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A place in line; the least is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    priority: Reverse<i32>,
    arrival: u64,
}

/// There is no room, and nobody less important.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Those who wait.
pub(super) struct Line<W> {
    waiting: BTreeMap<Rank, W>,
    arrivals: u64,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            arrivals: 0,
        }
    }
}

impl<W> Line<W> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody does.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Lets somebody in, and the last one out where so many wait already; not for its equal.
    pub fn enter(&mut self, priority: i32, max: usize, who: W) -> Result<(Rank, Option<W>), Full> {
        let rank = Rank {
            priority: Reverse(priority),
            arrival: self.arrivals,
        };
        let mut out = None;
        if self.len() >= max {
            let last = self.waiting.last_entry().ok_or(Full)?;
            if *last.key() < rank {
                return Err(Full);
            }
            out = Some(last.remove());
        }
        self.arrivals += 1;
        self.waiting.insert(rank, who);
        Ok((rank, out))
    }

    /// Takes out the first that may go.
    pub fn take_first(&mut self, mut may_go: impl FnMut(&W) -> bool) -> Option<(Rank, W)> {
        let found = self.waiting.iter().find(|(_, who)| may_go(who));
        let rank = *found?.0;
        self.waiting.remove_entry(&rank)
    }

    /// Gives up a place, if it is still taken.
    pub fn leave(&mut self, rank: Rank) {
        self.waiting.remove(&rank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_important_goes_first_and_then_whoever_came_first() {
        let mut line = Line::default();
        for (priority, who) in [(0, "a"), (5, "b"), (0, "c"), (-1, "d"), (5, "e")] {
            line.enter(priority, 9, who).expect("room");
        }
        let order: Vec<_> = std::iter::from_fn(|| line.take_first(|_| true))
            .map(|(_, who)| who)
            .collect();
        assert_eq!(order, ["b", "e", "a", "c", "d"]);
    }

    #[test]
    fn who_cannot_go_keeps_its_place_and_stops_nobody() {
        let mut line = Line::default();
        for who in ["a", "b", "c"] {
            line.enter(0, 9, who).expect("room");
        }
        let taken = line.take_first(|who| *who != "a").map(|(_, who)| who);
        assert_eq!((taken, line.len()), (Some("b"), 2));
        assert_eq!(line.take_first(|_| false), None);
        assert_eq!(line.take_first(|_| true).map(|(_, who)| who), Some("a"));
    }

    #[test]
    fn a_full_line_lets_the_last_out_for_somebody_more_important() {
        let mut line = Line::default();
        let first = line.enter(0, 2, "a").expect("room").0;
        line.enter(0, 2, "b").expect("room");
        assert_eq!(line.enter(0, 2, "c"), Err(Full), "not for an equal");
        assert_eq!(line.enter(-1, 2, "d"), Err(Full));
        assert_eq!(line.enter(1, 2, "e").map(|(_, out)| out), Ok(Some("b")));
        line.leave(first);
        line.leave(first);
        assert_eq!(line.enter(0, 2, "f").map(|(_, out)| out), Ok(None));
        assert_eq!(Line::default().enter(0, 0, "g"), Err(Full));
    }
}

//! A waiting line: by priority, then in turns, then by arrival.
//!
//! Those who are of one *flow* (a tenant, say) have turns one after another, and each flow has one in
//! every round: whoever has many waiting stands in his own way, and not in others'. Who is in no flow is
//! of the same one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// A place in line; the least is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    priority: Reverse<i32>,
    round: u64,
    arrival: u64,
}

/// There is no room, and nobody less important.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Those who wait.
pub(super) struct Line<W> {
    waiting: BTreeMap<Rank, (Flow, W)>,
    /// Of every flow that has somebody waiting: how many, and the round of the last.
    flows: HashMap<Flow, (usize, u64)>,
    arrivals: u64,
}

/// One of a priority.
type Flow = (Reverse<i32>, u64);

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            flows: HashMap::new(),
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
    pub fn enter(
        &mut self,
        priority: i32,
        flow: u64,
        max: usize,
        who: W,
    ) -> Result<(Rank, Option<W>), Full> {
        let flow = (Reverse(priority), flow);
        let rank = Rank {
            priority: flow.0,
            round: self.round(flow),
            arrival: self.arrivals,
        };
        let mut out = None;
        if self.len() >= max {
            let last = *self.waiting.last_key_value().ok_or(Full)?.0;
            if last < rank {
                return Err(Full);
            }
            out = self.remove(last);
        }
        self.arrivals += 1;
        self.waiting.insert(rank, (flow, who));
        let of_flow = self.flows.entry(flow).or_default();
        *of_flow = (of_flow.0 + 1, rank.round);
        Ok((rank, out))
    }

    /// Takes out the first that may go.
    pub fn take_first(&mut self, mut may_go: impl FnMut(&W) -> bool) -> Option<(Rank, W)> {
        let found = self.waiting.iter().find(|(_, (_, who))| may_go(who));
        let rank = *found?.0;
        self.remove(rank).map(|who| (rank, who))
    }

    /// Gives up a place, if it is still taken.
    pub fn leave(&mut self, rank: Rank) {
        self.remove(rank);
    }

    /// The round that the next of a flow is in: the one after its last's, or the one that is on.
    fn round(&self, flow: Flow) -> u64 {
        let first = Rank {
            priority: flow.0,
            round: 0,
            arrival: 0,
        };
        let next = self.waiting.range(first..).next();
        let on = next.filter(|(rank, _)| rank.priority == flow.0);
        let on = on.map_or(0, |(rank, _)| rank.round);
        self.flows.get(&flow).map_or(on, |(_, last)| last + 1)
    }

    fn remove(&mut self, rank: Rank) -> Option<W> {
        let (flow, who) = self.waiting.remove(&rank)?;
        if let Some((count, last)) = self.flows.get_mut(&flow) {
            *count -= 1;
            // The place of its last, put out or given up, is the next one's.
            *last -= u64::from(*last == rank.round && *count > 0);
            if *count == 0 {
                self.flows.remove(&flow);
            }
        }
        Some(who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut line: Line<&'static str>) -> Vec<&'static str> {
        let next = || line.take_first(|_| true).map(|(_, who)| who);
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn the_more_important_goes_first_and_then_whoever_came_first() {
        let mut line = Line::default();
        for (priority, who) in [(0, "a"), (5, "b"), (0, "c"), (-1, "d"), (5, "e")] {
            line.enter(priority, 0, 9, who).expect("room");
        }
        assert_eq!(all(line), ["b", "e", "a", "c", "d"]);
    }

    #[test]
    fn flows_take_turns_and_importance_comes_before_them() {
        let mut line = Line::default();
        for (priority, flow, who) in [
            (0, 1, "hog 1"),
            (0, 1, "hog 2"),
            (0, 1, "hog 3"),
            (0, 2, "guest 1"),
            (0, 2, "guest 2"),
            (1, 1, "first"),
        ] {
            line.enter(priority, flow, 9, who).expect("room");
        }
        assert_eq!(line.take_first(|_| true).map(|(_, who)| who), Some("first"));
        assert_eq!(line.take_first(|_| true).map(|(_, who)| who), Some("hog 1"));
        // Who comes later joins the round that is on, and makes up for no earlier one.
        line.enter(0, 3, 9, "late").expect("room");
        assert_eq!(all(line), ["guest 1", "late", "hog 2", "guest 2", "hog 3"]);
    }

    #[test]
    fn who_cannot_go_keeps_its_place_and_stops_nobody() {
        let mut line = Line::default();
        for who in ["a", "b", "c"] {
            line.enter(0, 0, 9, who).expect("room");
        }
        let taken = line.take_first(|who| *who != "a").map(|(_, who)| who);
        assert_eq!((taken, line.len()), (Some("b"), 2));
        assert_eq!(line.take_first(|_| false), None);
        assert_eq!(line.take_first(|_| true).map(|(_, who)| who), Some("a"));
    }

    #[test]
    fn a_full_line_lets_the_last_out_for_somebody_more_important() {
        let mut line = Line::default();
        let first = line.enter(0, 0, 2, "a").expect("room").0;
        line.enter(0, 0, 2, "b").expect("room");
        assert_eq!(line.enter(0, 0, 2, "c"), Err(Full), "not for an equal");
        assert_eq!(line.enter(-1, 0, 2, "d"), Err(Full));
        assert_eq!(line.enter(1, 0, 2, "e").map(|(_, out)| out), Ok(Some("b")));
        line.leave(first);
        line.leave(first);
        assert_eq!(line.enter(0, 0, 2, "f").map(|(_, out)| out), Ok(None));
        assert_eq!(Line::default().enter(0, 0, 0, "g"), Err(Full));
    }

    #[test]
    fn and_the_last_of_many_for_the_first_of_another_flow() {
        let mut line = Line::default();
        for who in ["a", "b", "c"] {
            line.enter(0, 1, 3, who).expect("room");
        }
        assert_eq!(line.enter(0, 2, 3, "d").map(|(_, out)| out), Ok(Some("c")));
        assert_eq!(line.enter(0, 1, 3, "e"), Err(Full), "its own came first");
        assert_eq!(all(line), ["a", "d", "b"]);
    }

    #[test]
    fn nothing_is_kept_of_those_who_went() {
        let mut line = Line::default();
        for flow in 0..100 {
            let rank = line.enter(0, flow, 100, "x").expect("room").0;
            if flow % 2 == 0 {
                line.leave(rank);
            }
        }
        while line.take_first(|_| true).is_some() {}
        assert!(line.flows.is_empty() && line.is_empty());
    }
}

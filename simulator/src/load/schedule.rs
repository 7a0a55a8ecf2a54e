//! When which request is sent: a fixed gap between any two, users taking turns.

use std::time::Duration;

/// How many conversations of how many rounds, and how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Conversations at once.
    pub users: usize,
    /// Requests of each conversation.
    pub rounds: usize,
    /// Requests per second, over all users.
    pub rate: f64,
}

impl Schedule {
    /// When a user's round begins, from the start of the load. Where the answer before it has
    /// not come yet by then, the round waits for that.
    #[must_use]
    pub fn at(&self, user: usize, round: usize) -> Duration {
        let turn = round * self.users + user;
        Duration::try_from_secs_f64(turn as f64 / self.rate).unwrap_or(Duration::MAX)
    }

    /// Requests in all.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.users * self.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_take_turns_at_a_fixed_gap() {
        let schedule = Schedule {
            users: 3,
            rounds: 2,
            rate: 2.0,
        };
        let turns = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)];
        let millis = turns.map(|(user, round)| schedule.at(user, round).as_millis());
        assert_eq!(millis, [0, 500, 1000, 1500, 2000, 2500]);
        assert_eq!(schedule.requests(), turns.len());
    }
}

//! What came of each request, in the order that production-stack's table has.

use std::collections::{BTreeMap, BTreeSet};

/// A request that was answered. Times are in seconds; the last two are the workload's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// As the server counts.
    pub prompt_tokens: u64,
    /// As the server counts.
    pub generation_tokens: u64,
    /// From sending to the first text.
    pub ttft: f64,
    /// From the first text to the end.
    pub generation_time: f64,
    /// Whose.
    pub user_id: u64,
    /// Which of the user's rows, from 1.
    pub question_id: u64,
    /// When it was sent.
    pub launch_time: f64,
    /// When it ended.
    pub finish_time: f64,
    /// Prompt tokens that came from the server's cache, where it says so; not in the CSV.
    pub cached_tokens: Option<u64>,
}

/// A request without a time to first token.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftOut {
    /// When it ended.
    pub finish_time: f64,
    /// Why it failed; none where the stream ended well without a word.
    pub error: Option<String>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    of_users: BTreeMap<u64, Vec<Row>>,
    /// Users whose sessions have ended, in that order; the table begins with them.
    ended: Vec<u64>,
    answered: usize,
    /// Seconds, over all rows.
    ttfts: f64,
    /// Requests that are in no mean.
    pub left_out: Vec<LeftOut>,
}

impl Rows {
    /// Adds a row, and numbers it.
    pub fn add(&mut self, mut row: Row) {
        self.answered += 1;
        self.ttfts += row.ttft;
        let rows = self.of_users.entry(row.user_id).or_default();
        row.question_id = rows.len() as u64 + 1;
        rows.push(row);
    }

    /// A user's session has ended.
    pub fn ended(&mut self, user: u64) {
        self.ended.push(user);
    }

    /// Ended sessions in order of their end, then the others in order of their coming.
    #[must_use]
    pub fn table(&self) -> Vec<Row> {
        let ended: BTreeSet<u64> = self.ended.iter().copied().collect();
        let others = self.of_users.keys().filter(|user| !ended.contains(user));
        let users = self.ended.iter().chain(others);
        users
            .filter_map(|user| self.of_users.get(user))
            .flatten()
            .copied()
            .collect()
    }

    /// Requests that have ended.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.answered + self.left_out.len()
    }

    /// How far it is, in a line.
    #[must_use]
    pub fn so_far(&self, under_way: usize) -> String {
        let mean = self.ttfts / self.answered.max(1) as f64;
        let (answered, left_out) = (self.answered, self.left_out.len());
        format!("{answered} answered, {under_way} under way, {left_out} left out, TTFT {mean:.3} s")
    }

    /// Requests that failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.left_out
            .iter()
            .filter(|one| one.error.is_some())
            .count()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn row(user_id: u64, launch_time: f64, ttft: f64) -> Row {
        Row {
            prompt_tokens: 1000,
            generation_tokens: 50,
            ttft,
            generation_time: 2.0,
            user_id,
            question_id: 0,
            launch_time,
            finish_time: launch_time + ttft + 2.0,
            cached_tokens: Some(800),
        }
    }

    #[test]
    fn questions_are_numbered_from_1_in_each_session_and_ended_sessions_come_first() {
        let mut rows = Rows::default();
        for (user, at) in [(2, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)] {
            rows.add(row(user, at, 0.5));
        }
        rows.ended(3);
        let table = rows.table();
        let ids: Vec<_> = table
            .iter()
            .map(|row| (row.user_id, row.question_id))
            .collect();
        assert_eq!(ids, [(3, 1), (1, 1), (2, 1), (2, 2)]);
    }
}

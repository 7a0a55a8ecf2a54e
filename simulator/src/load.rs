//! A load of conversations: users who share a system prompt, each with a history of their own
//! into which the answers go.
//!
//! ```text
//! schedule → prompt so far → request → words, timed → history
//!                                         └→ statistics
//! ```

mod sse;
mod decision;
mod client;
mod schedule;
mod prose;
mod statistics;
mod progress;
pub mod command;

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep_until};

pub use client::{Answer, Client, Message, Reply, Usage};
pub use decision::Decision;
pub use progress::{Bar, Progress};
pub use prose::prose;
pub use schedule::Schedule;
pub use statistics::{Predictions, Spread, Summary};

/// A load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// When which request is sent.
    pub schedule: Schedule,
    /// Words of the system prompt that all users share.
    pub system_words: usize,
    /// Words of context that each user brings along.
    pub user_words: usize,
    /// Tokens of every answer.
    pub answer_tokens: u32,
    /// Other texts from another seed.
    pub seed: u64,
}

/// One request of a load.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Whose, from 0.
    pub user: usize,
    /// Which of the user's, from 0.
    pub round: usize,
    /// It was sent later than scheduled, since the answer before it had not come.
    pub late: bool,
    /// The answer, or why there is none.
    pub result: Result<Answer, String>,
}

/// A wait this short is the timer's, not the server's.
const PUNCTUAL: Duration = Duration::from_millis(20);

impl Load {
    /// Runs all conversations; `done` hears of every request as it ends.
    pub async fn run(&self, client: &Client, done: impl Fn(&Sample)) -> Vec<Sample> {
        let start = Instant::now();
        let users = 0..self.schedule.users;
        let conversations = users.map(|user| self.converse(client, user, start, &done));
        join_all(conversations).await.concat()
    }

    /// One user's rounds. A question that got no answer is forgotten, and the next one asked.
    async fn converse(
        &self,
        client: &Client,
        user: usize,
        start: Instant,
        done: &impl Fn(&Sample),
    ) -> Vec<Sample> {
        let mut history = self.opening(user);
        let mut samples = Vec::with_capacity(self.schedule.rounds);
        for round in 0..self.schedule.rounds {
            let due = start + self.schedule.at(user, round);
            let late = Instant::now() > due + PUNCTUAL;
            sleep_until(due).await;
            history.push(question(round));
            let answer = client.chat(&history, self.answer_tokens).await;
            match &answer {
                Ok(answer) => history.push(Message::assistant(&answer.text)),
                Err(_) => drop(history.pop()),
            }
            let result = answer.map_err(|error| format!("{error:#}"));
            let sample = Sample {
                user,
                round,
                late,
                result,
            };
            done(&sample);
            samples.push(sample);
        }
        samples
    }

    fn opening(&self, user: usize) -> Vec<Message> {
        let system = prose(self.seed, self.system_words);
        let context = prose(self.seed + 1 + user as u64, self.user_words);
        vec![
            Message {
                role: "system",
                content: system,
            },
            Message::user(format!(
                "I am user {user}. What you should know of me: {context}."
            )),
            Message::assistant("Thank you. What would you like to know?"),
        ]
    }
}

fn question(round: usize) -> Message {
    let number = round + 1;
    Message::user(format!(
        "Question {number}: please tell me a new story with a happy ending."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_share_the_system_prompt_and_nothing_else() {
        let load = Load {
            schedule: Schedule {
                users: 2,
                rounds: 1,
                rate: 1.0,
            },
            system_words: 50,
            user_words: 50,
            answer_tokens: 1,
            seed: 0,
        };
        let (one, two) = (load.opening(0), load.opening(1));
        assert_eq!(one[0], two[0]);
        assert_ne!(one[1], two[1]);
        let other = Load { seed: 1000, ..load };
        assert_ne!(one[0], other.opening(0)[0]);
    }
}

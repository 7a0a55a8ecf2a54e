//! `ShareGPT.json` as production-stack's preprocessing leaves it: real questions, and how long
//! each answer was.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// The conversations that are long enough.
#[derive(Debug, Clone)]
pub struct ShareGpt(Vec<Conversation>);

#[derive(Debug, Clone, Deserialize)]
struct Conversation {
    num_round: u64,
    conversations: Vec<Said>,
}

#[derive(Debug, Clone, Deserialize)]
struct Said {
    value: String,
    num_tokens: Option<u32>,
}

/// A question and the length of its answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn<'a> {
    /// What is asked.
    pub prompt: &'a str,
    /// Tokens of the answer in the data; at least 1, which is what servers accept.
    pub answer_tokens: u32,
}

impl ShareGpt {
    /// Reads a file, and keeps what has more than twice as many turns as there are rounds.
    ///
    /// # Errors
    /// It is not there, or not of this form.
    pub fn read(path: &Path, rounds: u64) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            let path = path.display();
            format!("--sharegpt reads {path}, which production-stack's data_preprocessing.py makes")
        })?;
        Self::parse(&text, rounds).with_context(|| path.display().to_string())
    }

    fn parse(text: &str, rounds: u64) -> anyhow::Result<Self> {
        let mut all: Vec<Conversation> = serde_json::from_str(text)?;
        all.retain(|one| one.num_round > 2 * rounds);
        Ok(Self(all))
    }

    /// A user's question of this number, from 1. An odd number of turns begins with an answer,
    /// which is passed over.
    #[must_use]
    pub fn turn(&self, user: u64, question: u64) -> Option<Turn<'_>> {
        let one = self.0.get(usize::try_from(user).ok()?)?;
        let at = usize::try_from(2 * question.checked_sub(1)? + one.num_round % 2).ok()?;
        let (prompt, answer) = (one.conversations.get(at)?, one.conversations.get(at + 1)?);
        Some(Turn {
            prompt: &prompt.value,
            answer_tokens: answer.num_tokens.unwrap_or(u32::MAX).max(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_indices_into_what_is_long_enough() {
        let said = |from: usize, turns: usize| {
            let turns = (0..turns).map(|turn| {
                let value = format!("{from}.{turn}");
                serde_json::json!({"value": value, "num_tokens": turn + 10})
            });
            turns.collect::<Vec<_>>()
        };
        let text = serde_json::json!([
            {"num_round": 6, "conversations": said(0, 6)},
            {"num_round": 4, "conversations": said(1, 4)},
            {"num_round": 7, "conversations": said(2, 7)},
        ]);
        let data = ShareGpt::parse(&text.to_string(), 2).expect("well-formed");
        let turn = |user, question| {
            data.turn(user, question)
                .map(|t| (t.prompt, t.answer_tokens))
        };
        // The second conversation's four turns are not more than four.
        assert_eq!(turn(0, 1), Some(("0.0", 11)));
        assert_eq!(turn(0, 3), Some(("0.4", 15)));
        assert_eq!(turn(1, 1), Some(("2.1", 12)));
        assert_eq!(turn(1, 2), Some(("2.3", 14)));
        assert_eq!(turn(0, 4), None);
        assert_eq!(turn(2, 1), None);
    }
}

//! Groups that share a long system prompt: llm-d's published set-up.

use super::super::plan::{Asked, Piece, Plan};
use super::poisson;
use crate::dice::Dice;

/// Tenants with a prefix each, and users who each come back with a question of their own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Groups {
    /// Groups.
    pub groups: usize,
    /// Users of each.
    pub users: usize,
    /// Tokens that a group shares.
    pub prefix_tokens: usize,
    /// Tokens of each user's question.
    pub question_tokens: usize,
    /// Tokens of each answer.
    pub answer_tokens: usize,
    /// Questions per second, Poisson.
    pub rate: f64,
    /// Seconds in which questions are asked.
    pub seconds: f64,
    /// Who asks when.
    pub seed: u64,
}

impl Groups {
    /// The requests.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let mut dice = Dice::new(self.seed ^ 0x67);
        let arrivals = poisson(&mut dice, self.rate, self.seconds);
        let ask = |(number, at)| {
            let group = dice.below(self.groups.max(1)) as u64;
            let user = dice.below(self.users.max(1)) as u64;
            Asked {
                at,
                after: Vec::new(),
                prompt: vec![
                    Piece::of([3, 0, group], self.prefix_tokens),
                    Piece::of([3, 1 + user, group], self.question_tokens),
                ],
                answer: Piece::of([4, 0, number as u64], self.answer_tokens),
                session: group,
            }
        };
        Plan {
            name: "groups".into(),
            requests: arrivals.into_iter().enumerate().map(ask).collect(),
        }
    }
}

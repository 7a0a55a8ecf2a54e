//! multi-round-qa: users who ask on and on, as production-stack's benchmark has them.

use super::super::clock::{Time, seconds};
use super::super::plan::{After, Asked, Piece, Plan};

/// Its parameters, named as there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounds {
    /// Users at a time.
    pub users: usize,
    /// Questions of each.
    pub rounds: usize,
    /// Tokens that all share.
    pub system_tokens: usize,
    /// Tokens of each user's own.
    pub history_tokens: usize,
    /// Tokens of each answer.
    pub answer_tokens: usize,
    /// Questions per second, of all users.
    pub rate: f64,
    /// Seconds in which questions are asked.
    pub seconds: f64,
}

/// `Here's question #{k}: can you tell me a new long story with a happy ending?`, and what a chat
/// template puts around it.
const QUESTION_TOKENS: usize = 25;

impl Rounds {
    /// The requests. The original looks at its users every 0.1 s; here they ask on time.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let gap = self.users as f64 / self.rate;
        let (rounds, users) = (self.rounds.max(1), self.users);
        // One question is over at once; then users follow each other at the rate.
        let between_users = (rounds - 1).max(1) as f64 / self.rate;
        let alive = gap * (rounds - 1) as f64;
        let mut plan = Plan {
            name: "multi-round-qa".into(),
            ..Plan::default()
        };
        // Those that are there at the start: each begins in the middle, with all its context.
        for user in 0..users {
            let offset = alive - user as f64 * between_users;
            let asked = (offset / gap) as usize + 1;
            let first = -offset + asked as f64 * gap;
            self.talk(&mut plan, user as u64, asked, first.max(0.0), gap);
        }
        // One more joins at once, and later ones whenever a user's time is over.
        let joins = (0..).map(|nth| f64::from(nth) * between_users);
        for (nth, at) in joins.take_while(|at| *at < self.seconds).enumerate() {
            self.talk(&mut plan, (users + nth) as u64, 0, at, gap);
        }
        plan
    }

    fn talk(&self, plan: &mut Plan, user: u64, asked: usize, first: f64, gap: f64) {
        let mut prompt = vec![
            Piece::of([1, 0, 0], self.system_tokens),
            Piece::of([1, 1, user], self.history_tokens),
        ];
        let mut before: Option<usize> = None;
        for round in asked..self.rounds {
            let at = first + (round - asked) as f64 * gap;
            if at >= self.seconds {
                return;
            }
            let coordinates = |kind| [2, user << 8 | kind, round as u64];
            prompt.push(Piece::of(coordinates(0), QUESTION_TOKENS));
            let answer = Piece::of(coordinates(1), self.answer_tokens);
            let wait = |request| After {
                request,
                gap: seconds(gap),
                think: 0,
            };
            plan.requests.push(Asked {
                at: seconds(at) as Time,
                after: before.map(wait).into_iter().collect(),
                prompt: prompt.clone(),
                answer,
                session: user,
            });
            before = Some(plan.requests.len() - 1);
            prompt.push(answer);
        }
    }
}

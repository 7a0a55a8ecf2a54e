//! Agents that branch: a task, steps that add what tools said, subtasks that share what came before.

use super::super::clock::{Time, seconds};
use super::super::plan::{After, Asked, Piece, Plan};
use super::poisson;
use crate::dice::Dice;

/// Trees of requests. Every agent takes some steps in a row, each with the one before as its prefix;
/// after them it hands on to subtasks that begin with all it knows, as many levels deep as said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agents {
    /// Tokens of instructions and tools that all share.
    pub system_tokens: usize,
    /// Tokens of each task.
    pub task_tokens: usize,
    /// Steps of each agent in a row.
    pub steps: usize,
    /// Tokens that a tool says after each step.
    pub tool_tokens: usize,
    /// Subtasks of each agent.
    pub branches: usize,
    /// Levels of subtasks below a task.
    pub levels: usize,
    /// Tokens of each answer.
    pub answer_tokens: usize,
    /// Seconds that a tool takes.
    pub tool_seconds: f64,
    /// Requests per second, over all trees.
    pub rate: f64,
    /// Seconds in which tasks begin.
    pub seconds: f64,
    /// When tasks begin.
    pub seed: u64,
}

/// A tree that grows.
struct Growing<'a> {
    agents: &'a Agents,
    plan: &'a mut Plan,
    tree: u64,
    /// Requests of this tree so far.
    grown: u64,
    at: Time,
}

impl Agents {
    /// Requests of one tree.
    #[must_use]
    pub fn requests_of_a_tree(&self) -> usize {
        let levels = self.levels as u32;
        let agents: usize = (0..=levels).map(|level| self.branches.pow(level)).sum();
        agents * self.steps
    }

    /// The requests.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let mut dice = Dice::new(self.seed ^ 0xa6);
        let trees = self.rate / self.requests_of_a_tree().max(1) as f64;
        let mut plan = Plan {
            name: "agents".into(),
            ..Plan::default()
        };
        for (tree, at) in poisson(&mut dice, trees, self.seconds)
            .into_iter()
            .enumerate()
        {
            let prompt = vec![Piece::of([7, 0, 0], self.system_tokens)];
            let tree = tree as u64;
            let mut growing = Growing {
                agents: self,
                plan: &mut plan,
                tree,
                grown: 0,
                at,
            };
            growing.agent(prompt, None, self.levels);
        }
        plan
    }
}

impl Growing<'_> {
    fn agent(&mut self, mut prompt: Vec<Piece>, mut before: Option<usize>, levels: usize) {
        let agents = self.agents;
        prompt.push(Piece::of([8, self.tree, self.grown], agents.task_tokens));
        for _ in 0..agents.steps {
            let number = self.grown;
            self.grown += 1;
            let answer = Piece::of([9, self.tree, number], agents.answer_tokens);
            let think = seconds(agents.tool_seconds);
            let wait = |request| After {
                request,
                gap: 0,
                think,
            };
            self.plan.requests.push(Asked {
                at: self.at,
                after: before.map(wait).into_iter().collect(),
                prompt: prompt.clone(),
                answer,
                session: self.tree,
            });
            before = Some(self.plan.requests.len() - 1);
            prompt.push(answer);
            prompt.push(Piece::of([10, self.tree, number], agents.tool_tokens));
        }
        if levels > 0 {
            for _ in 0..agents.branches {
                self.agent(prompt.clone(), before, levels - 1);
            }
        }
    }
}

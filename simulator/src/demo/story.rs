//! The user's own story: a chat of two rounds through the routed listener. The second round
//! belongs on the server that holds the first, and kvscout knows to the token what is there.

use anyhow::Context;

use crate::load::{Answer, Decision, Message};
use crate::stack::Stack;

/// A few hundred words that a first round says and a second one repeats.
const INSTRUCTIONS: &str = include_str!("instructions.txt");
/// Tokens of each answer.
const ANSWER_TOKENS: u32 = 64;

/// What happened in one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// The answer.
    pub answer: Answer,
    /// Who got the request, and why.
    pub decision: Decision,
}

impl Round {
    /// What kvscout predicted is what the server reported.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.answer.cached_tokens() == Some(self.decision.predicted_cached_tokens)
    }
}

/// Both rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    /// The first and the second.
    pub rounds: [Round; 2],
    /// What kvscout logged when it placed the second.
    pub log_line: String,
}

impl Story {
    /// Both predictions were exact, and the second round went to the first one's server.
    #[must_use]
    pub fn came_true(&self) -> bool {
        let [first, second] = &self.rounds;
        let together = first.decision.endpoint == second.decision.endpoint;
        together && self.rounds.iter().all(Round::is_exact)
    }
}

/// Tells it. Every cache must be empty.
///
/// # Errors
/// A request fails, or kvscout does not say what it decided.
pub async fn tell(stack: &mut Stack) -> anyhow::Result<Story> {
    let mut messages = vec![Message::user(INSTRUCTIONS)];
    let first = round(stack, &messages).await.context("the first round")?;
    // What is held is told by events, and they take a moment. The last token that was said
    // has not been computed.
    let usage = first.answer.usage;
    let computed = (usage.prompt_tokens + usage.completion_tokens).saturating_sub(1);
    stack.holds(&first.decision.endpoint, computed).await?;

    messages.push(Message::assistant(&first.answer.text));
    messages.push(Message::user(
        "Is there anyone left who would remember its sound?",
    ));
    messages.push(Message::assistant(
        "There is the baker's aunt, who lived on the bank as a child.",
    ));
    messages.push(Message::user(
        "Then please write down what she would tell us about the river.",
    ));
    let mark = stack.log_mark();
    let second = round(stack, &messages).await.context("the second round")?;
    let log_line = stack.logged(mark, "Do prefix-aware routing!").await?;
    Ok(Story {
        rounds: [first, second],
        log_line,
    })
}

async fn round(stack: &Stack, messages: &[Message]) -> anyhow::Result<Round> {
    let answer = stack
        .client(stack.routed)?
        .chat(messages, ANSWER_TOKENS)
        .await?;
    let decision = answer.decision.clone();
    let decision = decision.context("the answer has no header x-kvscout-decision")?;
    Ok(Round { answer, decision })
}

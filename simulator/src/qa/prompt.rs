//! What a session says, word for word as in multi-round-qa.py: every message is a user's, and
//! the history holds what was really answered.

use anyhow::Context as _;

use super::sharegpt::ShareGpt;
use crate::load::Message;

/// How long texts are.
#[derive(Debug, Clone)]
pub struct Texts {
    /// Words that all users share.
    pub system_words: usize,
    /// Words of each user's own.
    pub user_words: usize,
    /// Tokens of an answer at most.
    pub answer_tokens: u32,
    /// Where questions and lengths come from; without it, one question and one length.
    pub sharegpt: Option<ShareGpt>,
}

/// One user's conversation.
#[derive(Debug)]
pub struct Session {
    user: u64,
    history: Vec<Message>,
}

impl Session {
    /// Of a user who has said nothing.
    #[must_use]
    pub fn new(user: u64) -> Self {
        let history = Vec::new();
        Self { user, history }
    }

    /// The messages of the next request, and how long its answer may be. A session's first
    /// carries the whole context, whichever question it begins with.
    ///
    /// # Errors
    /// ShareGPT has no such conversation or turn.
    pub fn ask(&mut self, question: u64, texts: &Texts) -> anyhow::Result<(Vec<Message>, u32)> {
        let (mut said, tokens) = match &texts.sharegpt {
            None => (plain_question(question), texts.answer_tokens),
            Some(sharegpt) => {
                let turn = sharegpt.turn(self.user, question);
                let turn = turn.with_context(|| {
                    format!(
                        "ShareGPT.json has no question {question} for user {}",
                        self.user
                    )
                })?;
                (
                    turn.prompt.to_owned(),
                    turn.answer_tokens.min(texts.answer_tokens),
                )
            }
        };
        if self.history.is_empty() {
            said = context(self.user, texts) + &said;
        }
        self.history.push(Message::user(said));
        Ok((self.history.clone(), tokens))
    }

    /// What was answered; an empty answer is one, too.
    pub fn answered(&mut self, text: &str) {
        self.history.push(Message::assistant(text));
    }

    /// The request failed: its question is as if it had not been asked.
    pub fn failed(&mut self) {
        self.history.pop();
    }
}

fn context(user: u64, texts: &Texts) -> String {
    let (system, own) = (his(texts.system_words), his(texts.user_words));
    format!(
        "Hi, here's some system prompt: {system}.For user {user}, \
         here are some other context: {own}."
    )
}

fn his(words: usize) -> String {
    vec!["hi"; words].join(" ")
}

fn plain_question(number: u64) -> String {
    format!("Here's question #{number}: can you tell me a new long story with a happy ending?")
}

/// Concurrent chats before the run, which nobody counts.
pub const WARM_UPS: usize = 10;
/// Tokens of each one's answer at most.
pub const WARM_UP_TOKENS: u32 = 100;

/// One of them.
#[must_use]
pub fn warm_up(number: usize) -> Message {
    let his = "hi ".repeat(100);
    Message::user(format!(
        "WARMUP: Hi, I'm user {number}. Here are some text: {his}."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Texts {
        Texts {
            system_words: 2,
            user_words: 3,
            answer_tokens: 7,
            sharegpt: None,
        }
    }

    #[test]
    fn the_first_prompt_carries_the_context_and_later_ones_the_question_alone() {
        let mut session = Session::new(5);
        let (messages, tokens) = session.ask(4, &texts()).expect("no file is needed");
        assert_eq!(tokens, 7);
        assert_eq!(
            messages,
            [Message::user(
                "Hi, here's some system prompt: hi hi.For user 5, here are some other context: \
                 hi hi hi.Here's question #4: can you tell me a new long story with a happy ending?"
            )]
        );
        session.answered("Once upon a time");
        let (messages, _) = session.ask(5, &texts()).expect("no file is needed");
        assert_eq!(messages[1], Message::assistant("Once upon a time"));
        assert_eq!(
            messages[2].content,
            "Here's question #5: can you tell me a new long story with a happy ending?"
        );
        session.failed();
        let (messages, _) = session.ask(6, &texts()).expect("no file is needed");
        assert_eq!(messages.len(), 3);
    }

    #[test]
    fn a_warm_up_has_a_hundred_words_and_a_space() {
        let said = warm_up(3).content;
        assert!(said.starts_with("WARMUP: Hi, I'm user 3. Here are some text: hi hi "));
        assert!(said.ends_with("hi hi ."));
        assert_eq!(said.matches("hi ").count(), 100);
    }
}

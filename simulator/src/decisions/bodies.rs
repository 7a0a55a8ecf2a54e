//! Chats whose last question is always new, and everything before it is not.

use bytes::Bytes;
use serde_json::json;

use crate::load::prose;

/// Words of a message that belongs to a conversation's past.
const TURN_WORDS: usize = 800;
/// Words of the question that is new in every request.
const QUESTION_WORDS: usize = 60;

/// A conversation, whose next question is to be asked again and again.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// The body up to the question's text.
    past: String,
}

impl Conversation {
    /// One of about so many tokens, which shares nothing with those of other seeds.
    #[must_use]
    pub fn new(seed: u64, tokens: usize, model: &str) -> Self {
        // A word is a token, and every twelfth one's full stop is another.
        let mut words = (tokens * 12 / 13).saturating_sub(QUESTION_WORDS);
        let mut messages = vec![json!({"role": "system", "content": prose(seed, words.min(200))})];
        words = words.saturating_sub(200);
        for turn in 0.. {
            if words == 0 {
                break;
            }
            let role = ["user", "assistant"][turn % 2];
            let text = prose((seed << 20) | (1 + turn as u64), words.min(TURN_WORDS));
            messages.push(json!({"role": role, "content": text}));
            words = words.saturating_sub(TURN_WORDS);
        }
        messages.push(json!({"role": "user", "content": ""}));
        let body = json!({
            "model": model, "max_tokens": 1, "temperature": 0, "messages": messages,
        });
        let body = body.to_string();
        let past = body.strip_suffix("\"}]}").unwrap_or(&body);
        Self { past: past.into() }
    }

    /// The request that asks this question.
    #[must_use]
    pub fn body(&self, question: u64) -> Bytes {
        let text = prose(u64::MAX - question, QUESTION_WORDS);
        format!("{}{text}\"}}]}}", self.past).into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn questions_are_new_and_all_before_them_is_not() {
        let conversation = Conversation::new(1, 3_000, "qwen");
        let (one, two) = (conversation.body(1), conversation.body(2));
        let read = |body: &[u8]| serde_json::from_slice::<Value>(body).expect("JSON");
        let (one, two) = (read(&one), read(&two));
        let messages = |of: &Value| of["messages"].as_array().expect("messages").clone();
        let (mut one, mut two) = (messages(&one), messages(&two));
        assert_ne!(one.pop(), two.pop());
        assert_eq!(one, two);
        let words: usize = one
            .iter()
            .map(|m| m["content"].to_string().split(' ').count())
            .sum();
        assert!((2_600..2_800).contains(&words), "{words}");
        assert_ne!(Conversation::new(2, 3_000, "qwen").past, conversation.past);
    }
}

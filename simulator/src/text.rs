//! Text on both sides of the engine: prompts become token ids, and answers are words whose
//! token ids are known before they are spoken, so that an answer quoted in the next prompt
//! yields the very tokens that were generated.

mod builtin;
mod words;

use kvscout::blocks::TokenId;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use words::WORDS;

/// What a server understands and says.
#[derive(Debug)]
pub struct Text {
    /// Say nothing but these: each is one token, alone and behind any other.
    openers: Vec<Word>,
    followers: Vec<Word>,
}

/// A word that is exactly one token.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    token: TokenId,
    text: String,
}

/// Why a prompt cannot be read; worded for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

impl Text {
    /// A toy tokenizer that needs no files: a word is a token, its id a hash. Only the
    /// simulator itself knows these ids.
    #[must_use]
    pub fn builtin() -> Self {
        Self::speaking(|text| builtin::encode(text))
    }

    /// Keeps of the word list what `encode` makes one token of, wherever it stands.
    fn speaking(encode: impl Fn(&str) -> Vec<TokenId>) -> Self {
        let single = |text: String| match encode(&text)[..] {
            [token] => Some(Word { token, text }),
            _ => None,
        };
        Self {
            openers: WORDS
                .iter()
                .filter_map(|word| single((*word).to_owned()))
                .collect(),
            followers: WORDS
                .iter()
                .filter_map(|word| single(format!(" {word}")))
                .collect(),
        }
    }

    /// The tokens of a chat request's messages under the chat template.
    pub fn read_chat(&self, body: &Value) -> Result<Vec<TokenId>, Unreadable> {
        builtin::encode_chat(body)
    }

    /// The tokens of a text.
    pub fn read(&self, text: &str) -> Vec<TokenId> {
        builtin::encode(text)
    }

    /// An answer of `tokens` tokens: always the same for the same prompt and choice.
    #[must_use]
    pub fn answer(&self, prompt: &[TokenId], choice: usize, tokens: usize) -> Vec<TokenId> {
        let bytes: Vec<u8> = prompt
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect();
        let seed = xxh3_64_with_seed(&bytes, choice as u64);
        let pick = |position: usize| {
            let words = if position == 0 {
                &self.openers
            } else {
                &self.followers
            };
            let draw = xxh3_64_with_seed(&(position as u64).to_le_bytes(), seed);
            words[(draw % words.len() as u64) as usize].token
        };
        (0..tokens).map(pick).collect()
    }

    /// The text of a token of an answer.
    #[must_use]
    pub fn word(&self, token: TokenId) -> &str {
        let mut words = self.followers.iter().chain(&self.openers);
        words
            .find(|word| word.token == token)
            .map_or("", |word| &word.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(text: &Text, answer: &[TokenId]) -> String {
        answer.iter().map(|&token| text.word(token)).collect()
    }

    #[test]
    fn an_answer_reads_back_as_the_tokens_it_was_made_of() {
        let text = Text::builtin();
        let answer = text.answer(&[1, 2, 3], 0, 200);
        assert_eq!(text.read(&say(&text, &answer)), answer);
    }

    #[test]
    fn equal_prompts_get_equal_answers_and_choices_differ() {
        let text = Text::builtin();
        assert_eq!(text.answer(&[1, 2], 0, 20), text.answer(&[1, 2], 0, 20));
        assert_ne!(text.answer(&[1, 2], 0, 20), text.answer(&[1, 2], 1, 20));
        assert_ne!(text.answer(&[1, 2], 0, 20), text.answer(&[1, 3], 0, 20));
        let (short, long) = (text.answer(&[1], 0, 5), text.answer(&[1], 0, 9));
        assert_eq!(
            short,
            long[..5],
            "max_tokens cuts an answer and does not change it"
        );
    }
}

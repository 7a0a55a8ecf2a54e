//! Text on both sides of the engine. Prompts are rendered and tokenized by kvscout's own rooms,
//! which are vLLM's rules; answers are words whose token ids are known before they are
//! spoken, so that an answer quoted in the next prompt yields the very tokens generated.

mod builtin;
mod words;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use kvscout::blocks::TokenId;
use kvscout::config::TOKEN_CACHE_BYTES_MAX;
use kvscout::prompt::json::Object;
use kvscout::prompt::template::{RenderSettings, Renderer};
use kvscout::prompt::{PromptError, Request};
use kvscout::tokens::{self, CacheBudget, Engine, Tokenizer};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(crate) use words::WORDS;

/// What a server understands and says.
pub struct Text {
    tokenizer: Arc<dyn Tokenizer>,
    renderer: Renderer,
    /// Tokens that an answer may begin with, and go on with: each is one word wherever it stands.
    openers: Vec<TokenId>,
    followers: Vec<TokenId>,
    words: HashMap<TokenId, String>,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = self.words.len();
        f.debug_struct("Text")
            .field("words", &words)
            .finish_non_exhaustive()
    }
}

/// A request's prompts, and what its body says about the prefix cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// One for a chat, one or more for a completion.
    pub prompts: Vec<Vec<TokenId>>,
    /// `cache_salt`.
    pub cache_salt: Option<String>,
    /// False where the engine must compute every token (`prompt_logprobs`).
    pub reads_cache: bool,
}

/// Why a prompt cannot be read; worded for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The body is not what its path promises.
    #[error("{0}")]
    Prompt(#[from] PromptError),
    /// The text has no tokens.
    #[error("{0}")]
    Tokens(#[from] tokens::TokenizeError),
}

impl Text {
    /// A toy tokenizer and template that need no files ([`builtin`]): only the simulator itself
    /// knows these ids.
    #[must_use]
    pub fn builtin(max_model_len: usize) -> Self {
        let template = vec![("default".to_owned(), builtin::TEMPLATE.to_owned())];
        let settings = settings(max_model_len);
        let renderer = Renderer::new(template, Object::default(), settings, SystemTime::now);
        let renderer = renderer.expect("the template is ours and compiles");
        Self::speaking(Arc::new(builtin::Words), renderer)
    }

    /// The tokenizer and the chat template of a model's folder; takes a second or two.
    pub fn load(folder: &Path, max_model_len: usize) -> anyhow::Result<Self> {
        let cache = CacheBudget::of_bytes(TOKEN_CACHE_BYTES_MAX);
        let tokenizer = tokens::load(folder, Engine::Fast, &cache)?;
        let renderer = Renderer::load(folder, settings(max_model_len), SystemTime::now)?;
        let text = Self::speaking(tokenizer, renderer);
        let speaks = !text.openers.is_empty() && !text.followers.is_empty();
        speaks
            .then_some(text)
            .context("no common English word is one token of this tokenizer")
    }

    /// Keeps of the word list what is one token both alone and among others.
    fn speaking(tokenizer: Arc<dyn Tokenizer>, renderer: Renderer) -> Self {
        let encode = |text: &str| tokenizer.encode(text, false).unwrap_or_default();
        let single = |text: &str| match encode(text)[..] {
            [token] => Some(token),
            _ => None,
        };
        let mut words = HashMap::new();
        let (mut openers, mut followers) = (Vec::new(), Vec::new());
        for word in WORDS.split_whitespace() {
            let follower = format!(" {word}");
            if let Some(token) = single(&follower)
                && let [.., before, after] = encode(&format!("{word}{follower}{follower}"))[..]
                && (before, after) == (token, token)
            {
                followers.push(token);
                words.insert(token, follower.clone());
            }
            if let Some(token) = single(word)
                && encode(&format!("{word}{follower}")).first() == Some(&token)
            {
                openers.push(token);
                words.insert(token, word.to_owned());
            }
        }
        Self {
            tokenizer,
            renderer,
            openers,
            followers,
            words,
        }
    }

    /// The tokens of a request to `/v1/chat/completions` or `/v1/completions`.
    pub fn read(&self, path: &str, body: &[u8]) -> Result<Reading, Unreadable> {
        let prompt = Request::parse(path, body)?.render(&self.renderer)?;
        Ok(Reading {
            prompts: tokens::tokens_of(&prompt, self.tokenizer.as_ref())?,
            cache_salt: prompt.cache_salt,
            reads_cache: prompt.reads_cache,
        })
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
            words[(draw % words.len() as u64) as usize]
        };
        (0..tokens).map(pick).collect()
    }

    /// The text of a token of an answer.
    #[must_use]
    pub fn word(&self, token: TokenId) -> &str {
        self.words.get(&token).map_or("", String::as_str)
    }
}

fn settings(max_model_len: usize) -> RenderSettings {
    RenderSettings {
        max_model_len: Some(max_model_len),
        ..RenderSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    fn read(text: &Text, path: &str, body: &Value) -> Vec<TokenId> {
        let reading = text.read(path, body.to_string().as_bytes());
        reading.expect("a readable body").prompts.remove(0)
    }

    fn say(text: &Text, answer: &[TokenId]) -> String {
        answer.iter().map(|&token| text.word(token)).collect()
    }

    /// A conversation's second prompt must begin with its first and the answer to it.
    fn answers_read_back_as_the_tokens_they_were_made_of(text: &Text) {
        let question = json!({"role": "user", "content": "How are you, hi hi?"});
        let first = read(text, CHAT, &json!({"messages": [question]}));
        let answer = text.answer(&first, 0, 300);
        let second = read(
            text,
            CHAT,
            &json!({"messages": [
                question,
                {"role": "assistant", "content": say(text, &answer)},
                {"role": "user", "content": "And now?"},
            ]}),
        );
        assert_eq!(second[..first.len()], first);
        assert_eq!(second[first.len()..first.len() + answer.len()], answer);
    }

    #[test]
    fn with_the_toy_tokenizer_answers_read_back_as_generated() {
        answers_read_back_as_the_tokens_they_were_made_of(&Text::builtin(4096));
    }

    /// `make setup` fetches the tokenizer.
    #[test]
    fn with_a_real_tokenizer_answers_read_back_as_generated() {
        let folder = std::env::var_os("KVSCOUT_TOKENIZER_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/tokenizer-qwen3"),
            Into::into,
        );
        let text = Text::load(&folder, 4096).expect("a tokenizer: run make setup");
        assert!(text.followers.len() > 250, "{} words", text.followers.len());
        answers_read_back_as_the_tokens_they_were_made_of(&text);
    }

    #[test]
    fn equal_prompts_get_equal_answers_and_choices_differ() {
        let text = Text::builtin(4096);
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

    #[test]
    fn what_vllm_refuses_is_unreadable() {
        let text = Text::builtin(4096);
        for body in [
            "{}",
            "[]",
            "{\"prompt\": \"\"}",
            "{\"prompt\": []}",
            "{\"prompt\": [[]",
        ] {
            assert!(
                text.read("/v1/completions", body.as_bytes()).is_err(),
                "{body}"
            );
        }
    }
}

//! A chat as a client sees it: streamed, and timed by the first word.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::outgoing;

use super::decision::{self, Decision};
use super::sse::Events;

/// One request must not take longer; a server that hangs is an error of that request.
const REQUEST_MAX: Duration = Duration::from_secs(120);
/// What OpenAI's own client waits.
const OPENAI_REQUEST_MAX: Duration = Duration::from_secs(600);
/// Bytes of a refusal's body that are quoted.
const QUOTED_MAX: usize = 300;

/// Talks to one OpenAI-compatible endpoint.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    /// Of chat completions.
    url: String,
    model: String,
    api_key: Option<String>,
}

/// An answer as far as it came: a stream may end well without a word or a count.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Its text.
    pub text: String,
    /// From sending to the first chunk with text, reasoning included; none where no text came.
    pub ttft: Option<Duration>,
    /// From sending to the end.
    pub total: Duration,
    /// The server's own count of tokens, where it tells.
    pub usage: Option<Usage>,
    /// Why kvscout chose the server, where it says so.
    pub decision: Option<Decision>,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What.
    pub content: String,
}

impl Message {
    /// The user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user",
            content: content.into(),
        }
    }

    /// The model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self {
            role: "assistant",
            content: content.into(),
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// From sending to the first chunk with text; a chunk that only names the role is none.
    pub ttft: Duration,
    /// From sending to the end.
    pub total: Duration,
    /// The server's own count of tokens.
    pub usage: Usage,
    /// Why kvscout chose the server, where it says so.
    pub decision: Option<Decision>,
}

impl Answer {
    /// Tokens that the server found in its cache; none where it does not say.
    #[must_use]
    pub fn cached_tokens(&self) -> Option<u64> {
        self.usage.cached_tokens()
    }
}

/// `usage` of a response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Where the prompt's tokens came from.
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

impl Usage {
    /// Tokens that the server found in its cache; none where it does not say.
    #[must_use]
    pub fn cached_tokens(&self) -> Option<u64> {
        self.prompt_tokens_details?.cached_tokens
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

/// What has been read of an answer.
#[derive(Debug, Default)]
struct Reading {
    text: String,
    ttft: Option<Duration>,
    usage: Option<Usage>,
    done: bool,
}

impl Client {
    /// A client of `url` (`http://127.0.0.1:8081`), asking for `model`.
    ///
    /// # Errors
    /// The system gives no randomness or the like.
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> anyhow::Result<Self> {
        let url = url.into().trim_end_matches('/').to_owned();
        Ok(Self {
            http: outgoing::client().timeout(REQUEST_MAX).build()?,
            url: format!("{url}/v1/chat/completions"),
            model: model.into(),
            api_key: None,
        })
    }

    /// A client as OpenAI's own makes one: of a base that includes `/v1`, with a bearer token and
    /// with its patience.
    ///
    /// # Errors
    /// `base` is no URL.
    pub fn of_base(base: &str, model: &str, api_key: &str) -> anyhow::Result<Self> {
        let parsed = reqwest::Url::parse(base).with_context(|| format!("{base} is no URL"))?;
        // Nobody serves chats at the root, so a base without a path means the usual one.
        let path = if parsed.path() == "/" { "/v1" } else { "" };
        let base = base.trim_end_matches('/');
        Ok(Self {
            http: outgoing::client().timeout(OPENAI_REQUEST_MAX).build()?,
            url: format!("{base}{path}/chat/completions"),
            model: model.to_owned(),
            api_key: Some(api_key.to_owned()),
        })
    }

    /// Sends a conversation and reads the answer to its end.
    ///
    /// # Errors
    /// No connection, a status other than 200, a stream that breaks, an error told within it,
    /// an answer without text or without usage.
    pub async fn chat(&self, messages: &[Message], max_tokens: u32) -> anyhow::Result<Answer> {
        self.ask(messages, max_tokens, None).await?.answer()
    }

    /// As [`Self::chat`], for a user who is named in `x-user-id`; text and usage may lack.
    ///
    /// # Errors
    /// No connection, a status other than 200, a stream that breaks, an error told within it.
    pub async fn ask(
        &self,
        messages: &[Message],
        max_tokens: u32,
        user: Option<u64>,
    ) -> anyhow::Result<Reply> {
        let body = json!({
            "model": self.model, "messages": messages, "max_tokens": max_tokens,
            "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
        });
        let mut request = self.http.post(&self.url).json(&body);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        if let Some(user) = user {
            request = request.header("x-user-id", user);
        }
        let began = Instant::now();
        let mut response = request.send().await.context("no answer")?;
        let status = response.status();
        if !status.is_success() {
            let body = response.text().await.unwrap_or_default();
            bail!(
                "{status}: {}",
                body.chars().take(QUOTED_MAX).collect::<String>()
            );
        }
        let header = response.headers().get(decision::HEADER);
        let decision = header.and_then(|header| Decision::parse(header.to_str().ok()?));
        let (mut events, mut reading) = (Events::default(), Reading::default());
        while let Some(bytes) = response.chunk().await.context("the stream broke")? {
            for data in events.push(&bytes)? {
                reading.take(&data, began.elapsed())?;
            }
        }
        reading.reply(began.elapsed(), decision)
    }
}

impl Reading {
    fn take(&mut self, data: &str, now: Duration) -> anyhow::Result<()> {
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(data).context("a chunk that is no JSON")?;
        if let Some(error) = chunk.get("error") {
            bail!("the stream says: {error}");
        }
        let delta = &chunk["choices"][0]["delta"];
        // vLLM calls it `reasoning` since 0.12, and some servers write both names.
        let reasoning = delta["reasoning_content"]
            .as_str()
            .or_else(|| delta["reasoning"].as_str());
        for text in [reasoning, delta["content"].as_str()] {
            let text = text.unwrap_or_default();
            if !text.is_empty() {
                self.ttft.get_or_insert(now);
                self.text.push_str(text);
            }
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| !usage.is_null()) {
            self.usage = Some(Usage::deserialize(usage).context("a usage that is none")?);
        }
        Ok(())
    }

    fn reply(self, total: Duration, decision: Option<Decision>) -> anyhow::Result<Reply> {
        if !self.done {
            bail!("the stream ended before its [DONE]");
        }
        Ok(Reply {
            text: self.text,
            ttft: self.ttft,
            total,
            usage: self.usage,
            decision,
        })
    }
}

impl Reply {
    /// The whole answer.
    ///
    /// # Errors
    /// It is without text or without usage.
    pub fn answer(self) -> anyhow::Result<Answer> {
        Ok(Answer {
            ttft: self.ttft.context("an answer without text")?,
            usage: self.usage.context("an answer without usage")?,
            text: self.text,
            total: self.total,
            decision: self.decision,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = r#"{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}"#;
    const WORD: &str = r#"{"choices":[{"delta":{"content":"Once"}}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,
        "total_tokens":10,"prompt_tokens_details":{"cached_tokens":5}}}"#;

    fn read(chunks: &[&str]) -> anyhow::Result<Answer> {
        let mut reading = Reading::default();
        for (second, chunk) in chunks.iter().enumerate() {
            reading.take(chunk, Duration::from_secs(second as u64))?;
        }
        reading.reply(Duration::from_secs(99), None)?.answer()
    }

    #[test]
    fn the_first_word_counts_and_not_the_role() {
        let answer = read(&[ROLE, WORD, WORD, USAGE, "[DONE]"]).expect("a whole answer");
        assert_eq!(
            (answer.ttft, answer.text.as_str()),
            (Duration::from_secs(1), "OnceOnce")
        );
        assert_eq!(
            (answer.usage.prompt_tokens, answer.cached_tokens()),
            (9, Some(5))
        );
    }

    #[test]
    fn reasoning_is_text_under_both_its_names() {
        let old = r#"{"choices":[{"delta":{"reasoning_content":"Hm"}}]}"#;
        let new = r#"{"choices":[{"delta":{"reasoning":"Hm"}}]}"#;
        let both = r#"{"choices":[{"delta":{"reasoning_content":"Hm","reasoning":"Hm"}}]}"#;
        for thought in [old, new, both] {
            let answer = read(&[ROLE, thought, WORD, USAGE, "[DONE]"]).expect("a whole answer");
            assert_eq!(
                (answer.ttft, answer.text.as_str()),
                (Duration::from_secs(1), "HmOnce")
            );
        }
    }

    #[test]
    fn a_base_is_taken_as_openais_client_takes_it() {
        let url = |base: &str| Client::of_base(base, "m", "EMPTY").map(|client| client.url);
        for (base, expected) in [
            ("http://a:1/v1", "http://a:1/v1/chat/completions"),
            ("http://a:1/v1/", "http://a:1/v1/chat/completions"),
            ("http://a:1/x/v2", "http://a:1/x/v2/chat/completions"),
            ("http://a:1", "http://a:1/v1/chat/completions"),
            ("http://a:1/", "http://a:1/v1/chat/completions"),
        ] {
            assert_eq!(url(base).expect("a URL"), expected);
        }
        assert!(url("localhost").is_err());
    }

    #[test]
    fn an_answer_that_is_not_whole_is_an_error() {
        let why = |chunks: &[&str]| read(chunks).expect_err("not whole").to_string();
        assert!(why(&[ROLE, WORD, USAGE]).contains("[DONE]"));
        assert!(why(&[ROLE, USAGE, "[DONE]"]).contains("without text"));
        assert!(why(&[ROLE, WORD, "[DONE]"]).contains("without usage"));
        assert!(why(&[ROLE, r#"{"error":{"message":"no room"}}"#]).contains("no room"));
    }
}

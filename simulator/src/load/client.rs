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
/// Bytes of a refusal's body that are quoted.
const QUOTED_MAX: usize = 300;

/// Talks to one OpenAI-compatible endpoint.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    model: String,
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
        self.usage.prompt_tokens_details?.cached_tokens
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
        let http = outgoing::client().timeout(REQUEST_MAX).build()?;
        let url = url.into().trim_end_matches('/').to_owned();
        Ok(Self {
            http,
            url,
            model: model.into(),
        })
    }

    /// Sends a conversation and reads the answer to its end.
    ///
    /// # Errors
    /// No connection, a status other than 200, a stream that breaks, an error told within it,
    /// an answer without text or without usage.
    pub async fn chat(&self, messages: &[Message], max_tokens: u32) -> anyhow::Result<Answer> {
        let body = json!({
            "model": self.model, "messages": messages, "max_tokens": max_tokens,
            "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
        });
        let url = format!("{}/v1/chat/completions", self.url);
        let began = Instant::now();
        let mut response = self
            .http
            .post(&url)
            .json(&body)
            .send()
            .await
            .context("no answer")?;
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
        reading.answer(began.elapsed(), decision)
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
        for text in ["reasoning_content", "content"].map(|field| delta[field].as_str()) {
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

    fn answer(self, total: Duration, decision: Option<Decision>) -> anyhow::Result<Answer> {
        if !self.done {
            bail!("the stream ended before its [DONE]");
        }
        Ok(Answer {
            ttft: self.ttft.context("an answer without text")?,
            usage: self.usage.context("an answer without usage")?,
            text: self.text,
            total,
            decision,
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
        reading.answer(Duration::from_secs(99), None)
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
    fn an_answer_that_is_not_whole_is_an_error() {
        let why = |chunks: &[&str]| read(chunks).expect_err("not whole").to_string();
        assert!(why(&[ROLE, WORD, USAGE]).contains("[DONE]"));
        assert!(why(&[ROLE, USAGE, "[DONE]"]).contains("without text"));
        assert!(why(&[ROLE, WORD, "[DONE]"]).contains("without usage"));
        assert!(why(&[ROLE, r#"{"error":{"message":"no room"}}"#]).contains("no room"));
    }
}

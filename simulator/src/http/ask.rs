//! A request's body → what to ask of the engine.

use kvscout::blocks::{Identity, TokenId};
use serde_json::Value;

use super::App;
use super::error::Refusal;
use crate::engine::Request;
use crate::text::Reading;

/// Which API a request came by; it decides the shape of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    Chat,
    Completion,
}

impl Api {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
        }
    }
}

/// vLLM's limit on `n`.
const CHOICES_MAX: u64 = 64;
/// OpenAI's default length of a completion; a chat has none.
const COMPLETION_TOKENS: u64 = 16;

/// A request understood.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) api: Api,
    /// As the client called it: the model or an adapter.
    pub(super) model: String,
    pub(super) prompts: Vec<Vec<TokenId>>,
    /// One per choice; choice `i` belongs to prompt `i / n`.
    pub(super) requests: Vec<Request>,
    pub(super) n: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) return_token_ids: bool,
    /// Whether answers end because all is said, not because they are cut.
    pub(super) ends_by_itself: bool,
}

impl Ask {
    pub(super) fn parse(app: &App, api: Api, raw: &[u8]) -> Result<Self, Refusal> {
        let body: Value = serde_json::from_slice(raw)
            .map_err(|error| Refusal::bad_request(format!("JSON decode error: {error}"), None))?;
        let (model, adapter) = model(app, &body)?;
        let reading = read(app, api, raw)?;
        let n = whole(&body, "n")?.unwrap_or(1);
        if !(1..=CHOICES_MAX).contains(&n) {
            let message = format!("n must be between 1 and {CHOICES_MAX}, got {n}.");
            return Err(Refusal::bad_request(message, Some("n")));
        }
        let limit = answer_limit(api, &body)?;
        let mut requests = Vec::new();
        for prompt in &reading.prompts {
            let tokens = answer_tokens(app, prompt.len(), limit)?;
            for choice in 0..n as usize {
                let output = app.text.answer(prompt, choice, tokens);
                requests.push(request(app, &body, adapter, &reading, prompt, output));
            }
        }
        Ok(Self {
            api,
            model,
            prompts: reading.prompts,
            requests,
            n: n as usize,
            stream: flag(&body["stream"]),
            include_usage: flag(&body["stream_options"]["include_usage"]),
            return_token_ids: flag(&body["return_token_ids"]),
            ends_by_itself: limit.is_none(),
        })
    }
}

fn request(
    app: &App,
    body: &Value,
    adapter: Option<usize>,
    reading: &Reading,
    prompt: &[TokenId],
    output: Vec<TokenId>,
) -> Request {
    Request {
        prompt: prompt.to_vec(),
        output,
        identity: Identity {
            adapter: adapter.map(|position| app.adapters[position].clone()),
            cache_salt: reading.cache_salt.clone(),
        },
        adapter_id: adapter.map(|position| position as i64 + 1),
        skip_cache_read: !reading.reads_cache,
        report_reused: body["vllm_xargs"]["kv_cache_report_mode"] == "full",
    }
}

/// The served name, and which adapter it is. A request may leave it out.
fn model(app: &App, body: &Value) -> Result<(String, Option<usize>), Refusal> {
    let name = body["model"].as_str().unwrap_or(&app.model);
    let adapter = app.adapters.iter().position(|adapter| adapter == name);
    if name != app.model && adapter.is_none() {
        let known = std::iter::once(&app.model).chain(&app.adapters);
        let known: Vec<&str> = known.map(String::as_str).collect();
        return Err(Refusal::unknown_model(name, &known));
    }
    Ok((name.to_owned(), adapter))
}

/// The prompts of a request, as tokens.
pub(super) fn read(app: &App, api: Api, body: &[u8]) -> Result<Reading, Refusal> {
    let reading = app.text.read(api.path(), body);
    reading.map_err(|error| Refusal::bad_request(error.to_string(), None))
}

/// The client's limit on an answer, if it set one.
fn answer_limit(api: Api, body: &Value) -> Result<Option<u64>, Refusal> {
    let limit = match api {
        Api::Chat => match whole(body, "max_completion_tokens")? {
            None => whole(body, "max_tokens")?,
            some => some,
        },
        Api::Completion => Some(whole(body, "max_tokens")?.unwrap_or(COMPLETION_TOKENS)),
    };
    if limit == Some(0) {
        let message = "max_tokens must be at least 1, got 0.";
        return Err(Refusal::bad_request(message, Some("max_tokens")));
    }
    Ok(limit)
}

/// An answer is cut to what the context has left (`get_max_tokens`), a prompt is not.
fn answer_tokens(app: &App, prompt_tokens: usize, limit: Option<u64>) -> Result<usize, Refusal> {
    let most = app.max_model_len;
    if prompt_tokens >= most {
        let message = format!(
            "This model's maximum context length is {most} tokens. However, your prompt \
             contains {prompt_tokens} input tokens, which exceeds this limit even without any \
             output tokens. Please reduce the length of the input prompt."
        );
        return Err(Refusal::bad_request(message, Some("input_tokens")));
    }
    let wanted = limit.map_or(app.answer_tokens, |limit| limit as usize);
    Ok(wanted.min(most - prompt_tokens))
}

fn whole(body: &Value, field: &'static str) -> Result<Option<u64>, Refusal> {
    match &body[field] {
        Value::Null => Ok(None),
        value => value.as_u64().map(Some).ok_or_else(|| {
            let message = format!("{field} must be a non-negative integer, got {value}.");
            Refusal::bad_request(message, Some(field))
        }),
    }
}

fn flag(value: &Value) -> bool {
    value.as_bool().unwrap_or(false)
}

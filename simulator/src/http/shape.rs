//! The JSON of answers, whole and in chunks, field by field as vLLM 0.32.0 orders them.

use kvscout::blocks::TokenId;
use serde_json::{Value, json};

use super::App;
use super::ask::{Api, Ask};
use crate::engine::Emission;

/// What all parts of an answer have in common.
#[derive(Debug)]
pub(super) struct Shape {
    api: Api,
    id: String,
    created: u64,
    model: String,
    prompts: Vec<Vec<TokenId>>,
    n: usize,
    return_token_ids: bool,
    finish_reason: &'static str,
    details: bool,
}

/// What was counted while answering.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    completion_tokens: usize,
    first: Option<Emission>,
}

impl Tally {
    pub(super) fn count(&mut self, emission: &Emission) {
        self.completion_tokens += 1;
        self.first.get_or_insert(*emission);
    }
}

impl Shape {
    pub(super) fn new(app: &App, ask: &Ask, id: &str) -> Self {
        let prefix = match ask.api {
            Api::Chat => "chatcmpl",
            Api::Completion => "cmpl",
        };
        Self {
            api: ask.api,
            id: format!("{prefix}-{id}"),
            created: super::now(),
            model: ask.model.clone(),
            prompts: ask.prompts.clone(),
            n: ask.n,
            return_token_ids: ask.return_token_ids,
            finish_reason: if ask.ends_by_itself { "stop" } else { "length" },
            details: app.prompt_tokens_details,
        }
    }

    /// The chunks that come before the first word: in a chat, one per choice with the role.
    pub(super) fn opening(&self) -> Vec<Value> {
        if self.api == Api::Completion {
            return Vec::new();
        }
        let ids = self.return_token_ids.then(|| &self.prompts[0]);
        let role = |index: usize| {
            let delta = json!({"role": "assistant", "content": ""});
            let choice = json!({
                "index": index, "delta": delta, "logprobs": null, "finish_reason": null,
            });
            let mut chunk = self.chunk(vec![choice]);
            chunk["prompt_token_ids"] = json!(ids);
            chunk
        };
        (0..self.n).map(role).collect()
    }

    /// The chunk of one token.
    pub(super) fn token(
        &self,
        index: usize,
        emission: &Emission,
        text: &str,
        first: bool,
    ) -> Value {
        let finish_reason = emission.last.then_some(self.finish_reason);
        let token_ids = self.return_token_ids.then_some([emission.token]);
        let mut choice = match self.api {
            Api::Chat => json!({"index": index, "delta": {"content": text}}),
            Api::Completion => json!({"index": index, "text": text}),
        };
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = json!(finish_reason);
        if self.api == Api::Completion || emission.last {
            choice["stop_reason"] = Value::Null;
        }
        if self.api == Api::Completion {
            let prompt = &self.prompts[index / self.n];
            choice["prompt_token_ids"] = json!((self.return_token_ids && first).then_some(prompt));
        }
        choice["token_ids"] = json!(token_ids);
        self.chunk(vec![choice])
    }

    /// The chunk after the last word, for clients that asked for usage.
    pub(super) fn usage_chunk(&self, tally: &Tally) -> Value {
        let mut chunk = self.chunk(Vec::new());
        chunk["usage"] = self.usage(tally);
        chunk
    }

    /// An answer in one piece.
    pub(super) fn whole(&self, answers: &[(Vec<TokenId>, String)], tally: &Tally) -> Value {
        let choices = answers.iter().enumerate();
        let choices = choices.map(|(index, (tokens, text))| self.choice(index, tokens, text));
        let object = match self.api {
            Api::Chat => "chat.completion",
            Api::Completion => "text_completion",
        };
        let mut whole = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices.collect::<Vec<_>>(),
            "service_tier": null, "system_fingerprint": null,
            "usage": self.usage(tally),
        });
        if self.api == Api::Chat {
            let ids = self.return_token_ids.then(|| &self.prompts[0]);
            whole["prompt_logprobs"] = Value::Null;
            whole["prompt_token_ids"] = json!(ids);
        }
        whole["kv_transfer_params"] = Value::Null;
        whole
    }

    fn choice(&self, index: usize, tokens: &[TokenId], text: &str) -> Value {
        let token_ids = self.return_token_ids.then_some(tokens);
        let mut choice = match self.api {
            Api::Chat => json!({"index": index, "message": {
                "role": "assistant", "content": text, "refusal": null, "annotations": null,
                "audio": null, "function_call": null, "reasoning": null,
            }}),
            Api::Completion => json!({"index": index, "text": text}),
        };
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = json!(self.finish_reason);
        choice["stop_reason"] = Value::Null;
        choice["token_ids"] = json!(token_ids);
        if self.api == Api::Completion {
            let prompt = &self.prompts[index / self.n];
            choice["prompt_logprobs"] = Value::Null;
            choice["prompt_token_ids"] = json!(self.return_token_ids.then_some(prompt));
        }
        choice
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let object = match self.api {
            Api::Chat => "chat.completion.chunk",
            Api::Completion => "text_completion",
        };
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    /// `created_cache_tokens` is counted for chats only (measured on 0.32.0).
    fn usage(&self, tally: &Tally) -> Value {
        let prompt_tokens: usize = self.prompts.iter().map(Vec::len).sum();
        let created = |first: Emission| (self.api == Api::Chat).then_some(first.created_tokens);
        let details = tally.first.filter(|_| self.details).map(|first| {
            json!({
                "cached_tokens": first.cached_tokens,
                "created_cache_tokens": created(first),
                "multimodal_tokens": null,
            })
        });
        json!({
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + tally.completion_tokens,
            "completion_tokens": tally.completion_tokens,
            "prompt_tokens_details": details,
            "completion_tokens_details": null,
        })
    }
}

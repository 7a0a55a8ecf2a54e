//! `/v1/chat/completions`: messages, tools and arguments as vLLM gives them to the template
//! (`renderers/online_renderer.py`, `renderers/hf.py`, `ChatCompletionRequest`; vLLM 0.33).

use std::sync::Arc;

use super::fields::{flag, lax_bool, optional_str};
use super::json::{Json, Object};
use super::template::{Chat, Chosen, Renderer};
use super::{PromptError, PromptText, TokenId};

mod content;
mod messages;
mod tools;

/// Arguments of transformers' `apply_chat_template` that no template sees.
const NOT_IN_TEMPLATES: [&str; 10] = [
    "chat_template",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "continue_final_message",
];

/// The one prompt of a chat, and whether the engine would truncate it.
pub fn texts(body: &Object, renderer: &Renderer) -> Result<(Vec<PromptText>, bool), PromptError> {
    if body
        .get_some("mm_processor_kwargs")
        .is_some_and(Json::is_truthy)
    {
        return Err(PromptError::bad(
            "mm_processor_kwargs",
            "needs --trust-request-mm-kwargs",
        ));
    }
    let settings = renderer.settings();
    let tools = tools::of_request(body, settings)?;
    let mut kwargs = kwargs(body, renderer, tools)?;
    let own = own_template(body, &kwargs, settings.trust_request_chat_template)?;
    let chosen = renderer.choose(own, kwargs.get_some("tools").is_some())?;
    let messages = messages::normalize(body, chosen.format)?;
    if let Some(ids) = forwarded_ids(body)? {
        return Ok((vec![PromptText::Ids(ids)], false));
    }
    let continue_final_message = kwargs.get("continue_final_message") == Some(&Json::Bool(true));
    let adds_prompt = kwargs.get("add_generation_prompt") == Some(&Json::Bool(true));
    if continue_final_message && adds_prompt {
        let reason = "needs add_generation_prompt to be false";
        return Err(PromptError::bad("continue_final_message", reason));
    }
    if messages.is_empty() {
        return Err(PromptError::bad("messages", "is empty"));
    }
    for name in NOT_IN_TEMPLATES {
        kwargs.remove(name);
    }
    for name in ["tools", "documents"] {
        if kwargs.get(name).is_none() {
            kwargs.set(name, Json::Null);
        }
    }
    let messages = with_known_developers(messages, &chosen);
    let chat = Chat {
        messages,
        context: kwargs,
        continue_final_message,
    };
    let text = renderer.run(&chosen, chat)?;
    let add_special_tokens = flag(body, "add_special_tokens", false)?;
    Ok((
        vec![PromptText::Text {
            text,
            add_special_tokens,
            whole: true,
        }],
        true,
    ))
}

fn with_known_developers(messages: Vec<Object>, chosen: &Chosen) -> Vec<Object> {
    match chosen.knows_developers() {
        true => messages,
        false => messages::developers_as_system(messages),
    }
}

/// The template's arguments: the server's, then the tools, then the request's, then its top-level
/// fields; `null` and "auto" override nothing (`merge_kwargs`).
fn kwargs(body: &Object, renderer: &Renderer, tools: Option<Json>) -> Result<Object, PromptError> {
    let own = match body.get_some("chat_template_kwargs") {
        None => &Object::default(),
        Some(Json::Object(own)) => own,
        Some(_) => return Err(PromptError::bad("chat_template_kwargs", "is not an object")),
    };
    if own.get("messages").is_some() || own.get("conversation").is_some() {
        return Err(PromptError::bad(
            "chat_template_kwargs",
            "holds the messages",
        ));
    }
    let mut top = Object::from([
        (
            "add_generation_prompt",
            Json::Bool(flag(body, "add_generation_prompt", true)?),
        ),
        (
            "continue_final_message",
            Json::Bool(flag(body, "continue_final_message", false)?),
        ),
        ("documents", documents(body)?),
    ]);
    if let Some(effort) = optional_str(body, "reasoning_effort")? {
        let known = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
        if !known.contains(&effort) {
            return Err(PromptError::bad(
                "reasoning_effort",
                "is not an effort that vLLM knows",
            ));
        }
        top.set("reasoning_effort", effort.into());
        if own.get("enable_thinking").is_none() {
            top.set("enable_thinking", Json::Bool(effort != "none"));
        }
    }
    let tools = tools.map(|tools| (Arc::from("tools"), tools));
    let overrides = tools.into_iter().chain(own.clone()).chain(top);
    let overrides =
        overrides.filter(|(_, value)| *value != Json::Null && value.as_str() != Some("auto"));
    Ok(renderer.default_kwargs().clone().merged(overrides))
}

fn documents(body: &Object) -> Result<Json, PromptError> {
    let Some(value) = body.get_some("documents") else {
        return Ok(Json::Null);
    };
    let of_texts = |document: &Json| {
        document
            .as_object()
            .is_some_and(|object| object.iter().all(|(_, v)| v.as_str().is_some()))
    };
    match value.as_list() {
        Some(documents) if documents.iter().all(of_texts) => Ok(value.clone()),
        _ => Err(PromptError::bad(
            "documents",
            "is not a list of objects of strings",
        )),
    }
}

/// The request's own template, which vLLM refuses unless told to trust it.
fn own_template<'a>(
    body: &'a Object,
    kwargs: &'a Object,
    trusted: bool,
) -> Result<Option<&'a str>, PromptError> {
    let own = optional_str(body, "chat_template")?;
    // An empty template yields to the server's (`chat_template or default_template`), but it is
    // one for the check.
    let own = match (own, optional_str(kwargs, "chat_template")?) {
        (None, given) | (Some(""), given) => given.or(own),
        (own, _) => own,
    };
    match own {
        Some(_) if !trusted => Err(PromptError::bad(
            "chat_template",
            "needs --trust-request-chat-template",
        )),
        own => Ok(own.filter(|template| !template.is_empty())),
    }
}

/// Tokens that the prefill stage of a disaggregated pair hands on; they replace the rendering
/// (`_reused_prompt_token_ids`).
fn forwarded_ids(body: &Object) -> Result<Option<Vec<TokenId>>, PromptError> {
    let ids = body
        .get_some("kv_transfer_params")
        .and_then(|params| params.as_object()?.get_some("prompt_token_ids"));
    let Some(ids) = ids else { return Ok(None) };
    if flag(body, "echo", false)? {
        return Ok(None);
    }
    let id = |item: &Json| match item {
        Json::Int(number) => TokenId::try_from(*number).ok(),
        _ => None,
    };
    ids.as_list()
        .filter(|items| !items.is_empty())
        .and_then(|items| items.iter().map(id).collect())
        .map(Some)
        .ok_or_else(|| {
            PromptError::bad(
                "kv_transfer_params.prompt_token_ids",
                "is not a list of token ids",
            )
        })
}

/// A field that pydantic takes as a boolean or nothing.
fn optional_flag(object: &Object, name: &str) -> Option<Option<bool>> {
    match object.get_some(name) {
        None => Some(None),
        Some(value) => lax_bool(value).map(Some),
    }
}

/// Text shared with the body.
fn shared(value: &Json) -> Option<Arc<str>> {
    match value {
        Json::Str(text) => Some(Arc::clone(text)),
        _ => None,
    }
}

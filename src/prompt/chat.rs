//! `/v1/chat/completions`, and what every way that ends in a chat shares: messages, tools and arguments as vLLM gives them to the template
//! (`renderers/online_renderer.py`, `renderers/hf.py`, `ChatCompletionRequest`; vLLM 0.33).

use std::sync::Arc;

use super::fields::{flag, lax_bool, optional_str};
use super::json::{Json, Object};
use super::template::{Chat, Chosen, Renderer};
use super::{PromptError, PromptText, TokenId};

mod content;
mod media;
mod messages;
mod tools;

pub use tools::rebuild as rebuild_tool;

/// What `reasoning_effort` may be.
pub const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// The field that [`forwarded_ids`] reads.
const FORWARDED: &str = "kv_transfer_params.prompt_token_ids";

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

/// A conversation on its way to the template, from whichever API it came.
pub struct Conversation<'a> {
    /// The fields, named as in `ChatCompletionRequest`.
    pub body: &'a Object,
    /// The tools as the template gets them.
    pub tools: Option<Json>,
    /// Whether the messages must be of OpenAI's types, as in a chat, or are made by the server.
    pub checked: bool,
    /// Whether `--default-chat-template-kwargs` counts.
    pub server_kwargs: bool,
    /// `add_generation_prompt` where the body does not say.
    pub add_generation_prompt: bool,
    /// `add_special_tokens` where the body does not say.
    pub add_special_tokens: bool,
}

impl<'a> Conversation<'a> {
    /// With the defaults of `/v1/chat/completions`.
    pub fn new(body: &'a Object, tools: Option<Json>) -> Self {
        Self {
            body,
            tools,
            checked: true,
            server_kwargs: true,
            add_generation_prompt: true,
            add_special_tokens: false,
        }
    }
}

/// The prompts of a request, and whether the engine would truncate them.
pub type Texts = Result<(Vec<PromptText>, bool), PromptError>;

/// The one prompt of a chat.
pub fn texts(body: &Object, renderer: &Renderer) -> Texts {
    let tools = tools::of_request(body, renderer.settings())?;
    render(Conversation::new(body, tools), renderer)
}

/// `/v1/chat/completions/batch`: a conversation each, none with tools (`batch_serving.py`).
pub fn batch(body: &Object, renderer: &Renderer) -> Texts {
    let conversations = body.get("messages").and_then(Json::as_list);
    let conversations = conversations
        .filter(|all| !all.is_empty())
        .ok_or_else(|| PromptError::bad("messages", "is not a list of conversations"))?;
    if forwarded(body).is_some() {
        let reason = "cannot serve several conversations";
        return Err(PromptError::bad(FORWARDED, reason));
    }
    let mut texts = Vec::with_capacity(conversations.len());
    for messages in conversations {
        let mut body = body.clone();
        body.set("messages", messages.clone());
        tools::of_request(&body, renderer.settings())?;
        texts.extend(render(Conversation::new(&body, None), renderer)?.0);
    }
    Ok((texts, true))
}

/// The one prompt of a conversation (`OnlineRenderer.preprocess_chat`).
pub fn render(conversation: Conversation<'_>, renderer: &Renderer) -> Texts {
    let body = conversation.body;
    trusted_media_only(body)?;
    let add_special_tokens = flag(body, "add_special_tokens", conversation.add_special_tokens)?;
    let checked = conversation.checked;
    let mut kwargs = kwargs(conversation, renderer)?;
    let trusted = renderer.settings().trust_request_chat_template;
    let own = own_template(body, &kwargs, trusted)?;
    let chosen = renderer.choose(own, kwargs.get_some("tools").is_some())?;
    let (messages, media) = messages::normalize(body, chosen.format, checked)?;
    if !media.any()
        && let Some(ids) = forwarded_ids(body)?
    {
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
    let run = |messages, context| {
        let chat = Chat {
            messages: with_known_developers(messages, &chosen),
            context,
            continue_final_message,
        };
        renderer.run(&chosen, chat)
    };
    let whole = !media.any();
    let text = match whole {
        true => run(messages, kwargs)?,
        false => media.before(messages, |messages| run(messages, kwargs.clone()))?,
    };
    Ok((
        vec![PromptText::Text {
            text,
            add_special_tokens,
            whole,
        }],
        whole,
    ))
}

/// Refuses what only `--trust-request-mm-kwargs` allows (`validate_request_mm_kwargs`).
fn trusted_media_only(body: &Object) -> Result<(), PromptError> {
    for name in ["mm_processor_kwargs", "media_io_kwargs"] {
        if body.get_some(name).is_some_and(Json::is_truthy) {
            return Err(PromptError::bad(name, "needs --trust-request-mm-kwargs"));
        }
    }
    Ok(())
}

fn with_known_developers(messages: Vec<Object>, chosen: &Chosen) -> Vec<Object> {
    match chosen.knows_developers() {
        true => messages,
        false => messages::developers_as_system(messages),
    }
}

/// The template's arguments: the server's, then the tools, then the request's, then its top-level
/// fields; `null` and "auto" override nothing (`merge_kwargs`).
fn kwargs(conversation: Conversation<'_>, renderer: &Renderer) -> Result<Object, PromptError> {
    let body = conversation.body;
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
    let adds_prompt = flag(
        body,
        "add_generation_prompt",
        conversation.add_generation_prompt,
    )?;
    let continues = flag(body, "continue_final_message", false)?;
    let mut top = Object::from([
        ("add_generation_prompt", Json::Bool(adds_prompt)),
        ("continue_final_message", Json::Bool(continues)),
        ("documents", documents(body)?),
    ]);
    if let Some(effort) = optional_str(body, "reasoning_effort")? {
        if !EFFORTS.contains(&effort) {
            return Err(PromptError::bad(
                "reasoning_effort",
                "is not an effort that vLLM knows",
            ));
        }
        let mapped = renderer.settings().reasoning_effort_map.get(effort);
        let effort = mapped.map_or(effort, String::as_str);
        top.set("reasoning_effort", effort.into());
        if own.get("enable_thinking").is_none() {
            top.set("enable_thinking", Json::Bool(effort != "none"));
        }
    }
    let tools = conversation
        .tools
        .map(|tools| (Arc::from("tools"), tools))
        .into_iter();
    let overrides = tools.chain(own.clone()).chain(top);
    let overrides =
        overrides.filter(|(_, value)| *value != Json::Null && value.as_str() != Some("auto"));
    let defaults = match conversation.server_kwargs {
        true => renderer.default_kwargs().clone(),
        false => Object::default(),
    };
    Ok(defaults.merged(overrides))
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

/// `kv_transfer_params.prompt_token_ids`.
fn forwarded(body: &Object) -> Option<&Json> {
    let params = body.get_some("kv_transfer_params")?;
    params.as_object()?.get_some("prompt_token_ids")
}

/// Tokens that the prefill stage of a disaggregated pair hands on; they replace the rendering of
/// a chat that is only text (`_reused_prompt_token_ids`).
fn forwarded_ids(body: &Object) -> Result<Option<Vec<TokenId>>, PromptError> {
    let Some(ids) = forwarded(body) else {
        return Ok(None);
    };
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
        .ok_or_else(|| PromptError::bad(FORWARDED, "is not a list of token ids"))
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

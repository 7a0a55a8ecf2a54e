//! Requests as vLLM's Rust frontend reads them (`rust/src/server/src/routes/openai`,
//! `rust/src/chat/src/renderer/hf`; vLLM 0.33).
//!
//! Every field has one type, and what has no field never reaches the template. Against the Python
//! frontend: parts are joined without a line between them, developers stay developers and bring
//! their tools, no line of a system message is dropped, arguments are any JSON, the request's
//! `chat_template_kwargs` win over everything, and what is absent is undefined rather than null.

use std::sync::Arc;

use super::fields::optional_str;
use super::json::{Json, Object};
use super::template::{Chat, ContentFormat, RenderSettings, Renderer};
use super::{Api, PromptError, PromptText, Side, TokenId, Truncation};

mod tools;

/// Types of parts that are not text.
const MEDIA: [&str; 4] = ["image_url", "video_url", "audio_url", "input_audio"];

/// The prompt of a request, the only one: this frontend takes neither several nor `n` answers.
pub fn text(body: &Object, api: Api, renderer: &Renderer) -> Result<PromptText, PromptError> {
    match body.get_some("n") {
        None | Some(Json::Int(..=1)) => {}
        Some(_) => return Err(PromptError::bad("n", "is not 1")),
    }
    match api {
        Api::Chat => chat(body, renderer),
        Api::Completions => completion(body),
        _ => Err(PromptError::Unsupported {
            field: "path".to_owned(),
            what: "other requests than chats and completions to the Rust frontend",
        }),
    }
}

fn completion(body: &Object) -> Result<PromptText, PromptError> {
    for name in ["suffix", "prompt_embeds"] {
        if body.get_some(name).is_some() {
            return Err(PromptError::bad(name, "is not supported"));
        }
    }
    let id = |item: &Json| match item {
        Json::Int(id) => TokenId::try_from(*id).ok(),
        _ => None,
    };
    let add_special_tokens = boolean(body, "add_special_tokens", true)?;
    let prompt = match body.get("prompt") {
        Some(Json::Str(text)) if !text.is_empty() => Some(PromptText::Text {
            text: text.to_string(),
            add_special_tokens,
            whole: true,
        }),
        Some(Json::List(items)) if !items.is_empty() => {
            let ids: Option<Vec<_>> = items.iter().map(id).collect();
            ids.map(PromptText::Ids)
        }
        _ => None,
    };
    prompt.ok_or_else(|| PromptError::bad("prompt", "is neither a text nor a list of ids"))
}

/// `truncate_prompt_tokens` and `truncation_side`. -1 leaves one token of the context.
pub fn truncation(
    body: &Object,
    settings: &RenderSettings,
) -> Result<Option<Truncation>, PromptError> {
    let bad = |reason| Err(PromptError::bad("truncate_prompt_tokens", reason));
    let side = match optional_str(body, "truncation_side")? {
        None | Some("left") => Side::Left,
        Some("right") => Side::Right,
        Some(_) => return Err(PromptError::bad("truncation_side", "is not a side")),
    };
    let keep = match body.get_some("truncate_prompt_tokens") {
        None => return Ok(None),
        Some(Json::Int(-1)) => settings.max_model_len.map(|len| len.saturating_sub(1)),
        Some(Json::Int(keep)) => match usize::try_from(*keep) {
            Ok(0) => return bad("leaves nothing to read"),
            Ok(keep) if settings.max_model_len.is_some_and(|len| keep >= len) => {
                return bad("leaves no room in the model's context");
            }
            Ok(keep) => Some(keep),
            Err(_) => return bad("is less than -1"),
        },
        Some(_) => return bad("is not an integer"),
    };
    match body.get("echo") == Some(&Json::Bool(true)) {
        true => bad("excludes echo"),
        false => Ok(keep.map(|keep_tokens| Truncation { keep_tokens, side })),
    }
}

fn chat(body: &Object, renderer: &Renderer) -> Result<PromptText, PromptError> {
    for name in ["mm_processor_kwargs", "media_io_kwargs"] {
        if body.get_some(name).is_some() {
            return Err(PromptError::bad(name, "is not supported"));
        }
    }
    let settings = renderer.settings();
    let own = optional_str(body, "chat_template")?;
    if own.is_some() && !settings.trust_request_chat_template {
        let reason = "needs --trust-request-chat-template";
        return Err(PromptError::bad("chat_template", reason));
    }
    let chosen = renderer.choose(own, false)?;
    let messages = messages(body, chosen.format)?;
    let tools = tools::of_request(body, &messages, settings)?;
    let continue_final_message = boolean(body, "continue_final_message", false)?;
    let context = context(body, &messages, continue_final_message)?
        .merged(tools.map(|tools| (Arc::from("tools"), Json::List(tools))))
        .merged(kwargs(body, renderer)?);
    let chat = Chat {
        messages,
        context,
        continue_final_message,
    };
    let text = renderer.run(&chosen, chat)?;
    if text.is_empty() {
        return Err(PromptError::bad("messages", "make an empty prompt"));
    }
    Ok(PromptText::Text {
        text,
        add_special_tokens: boolean(body, "add_special_tokens", false)?,
        whole: true,
    })
}

fn boolean(body: &Object, name: &str, default: bool) -> Result<bool, PromptError> {
    let value = flag(body.get(name)).ok_or_else(|| PromptError::bad(name, "is not a boolean"))?;
    Ok(value.unwrap_or(default))
}

/// A boolean or nothing; none for all else.
fn flag(value: Option<&Json>) -> Option<Option<bool>> {
    match value {
        None => Some(None),
        Some(Json::Bool(yes)) => Some(Some(*yes)),
        Some(_) => None,
    }
}

/// What the request's fields say to the template.
fn context(body: &Object, messages: &[Object], continues: bool) -> Result<Object, PromptError> {
    let refuse = |reason| Err(PromptError::bad("continue_final_message", reason));
    let adds = flag(body.get_some("add_generation_prompt"))
        .ok_or_else(|| PromptError::bad("add_generation_prompt", "is not a boolean"))?;
    let last = messages.last().and_then(|message| message.get("role"));
    match (continues, adds) {
        (true, Some(true)) => return refuse("excludes add_generation_prompt"),
        (true, _) if last.and_then(Json::as_str) != Some("assistant") => {
            return refuse("needs a last message of the assistant");
        }
        _ => {}
    }
    let mut context = Object::from([
        (
            "add_generation_prompt",
            Json::Bool(adds.unwrap_or(!continues)),
        ),
        ("continue_final_message", Json::Bool(continues)),
    ]);
    match body.get_some("documents") {
        None => {}
        Some(documents @ Json::List(_)) => context.set("documents", documents.clone()),
        Some(_) => return Err(PromptError::bad("documents", "is not a list")),
    }
    Ok(context)
}

/// The server's arguments, then the request's, then its effort. Here `null` overrides, too.
fn kwargs(body: &Object, renderer: &Renderer) -> Result<Object, PromptError> {
    let own = match body.get_some("chat_template_kwargs") {
        None => Object::default(),
        Some(Json::Object(own)) => own.clone(),
        Some(_) => return Err(PromptError::bad("chat_template_kwargs", "is not an object")),
    };
    let thinks = own.get("enable_thinking").cloned();
    let mut kwargs = renderer.default_kwargs().clone().merged(own);
    if let Some(effort) = optional_str(body, "reasoning_effort")? {
        let known = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
        if !known.contains(&effort) {
            let reason = "is not an effort that vLLM knows";
            return Err(PromptError::bad("reasoning_effort", reason));
        }
        kwargs.set("reasoning_effort", effort.into());
        let thinks = thinks.unwrap_or(Json::Bool(effort != "none"));
        kwargs.set("enable_thinking", thinks);
    }
    Ok(kwargs)
}

fn messages(body: &Object, format: ContentFormat) -> Result<Vec<Object>, PromptError> {
    let Some(Json::List(messages)) = body.get("messages") else {
        return Err(PromptError::bad("messages", "is not a list"));
    };
    if messages.is_empty() {
        return Err(PromptError::bad("messages", "is empty"));
    }
    let messages = messages.iter().enumerate();
    messages
        .map(|(at, message)| one(at, message, format))
        .collect()
}

fn one(at: usize, message: &Json, format: ContentFormat) -> Result<Object, PromptError> {
    let bad = |field: &str, reason| PromptError::bad(format!("messages[{at}]{field}"), reason);
    let message = message
        .as_object()
        .ok_or_else(|| bad("", "is not an object"))?;
    let role = message.get("role").and_then(shared);
    let role = role.ok_or_else(|| bad(".role", "is not a string"))?;
    let content = message.get("content");
    let mut out = Object::from([("role", Json::Str(Arc::clone(&role)))]);
    match &*role {
        "assistant" => assistant(at, message, format, &mut out)?,
        "function" => return Err(bad("", "is a function's, which is not supported")),
        "user" if content.is_some_and(|content| !content.is_truthy()) => {
            return Err(bad(".content", "is empty"));
        }
        _ => out.set("content", shaped(parts(at, content)?, format)),
    }
    match &*role {
        "developer" => {
            let tools = tools::read(message.get_some("tools"), &format!("messages[{at}].tools"))?;
            if !tools.is_empty() {
                out.set("tools", Json::List(tools));
            }
        }
        "tool" => {
            let id = message.get("tool_call_id").and_then(shared);
            let id = id.ok_or_else(|| bad(".tool_call_id", "is not a string"))?;
            out.set("tool_call_id", Json::Str(id));
        }
        _ => {}
    }
    Ok(out)
}

/// The texts of a content.
fn parts(at: usize, content: Option<&Json>) -> Result<Vec<Arc<str>>, PromptError> {
    let bad = |reason| PromptError::bad(format!("messages[{at}].content"), reason);
    let parts = match content {
        Some(Json::Str(text)) => return Ok(vec![Arc::clone(text)]),
        Some(Json::List(parts)) => parts,
        _ => return Err(bad("is neither a string nor a list")),
    };
    let text = |part: &Json| {
        let part = part.as_object()?;
        let kind = part.get("type")?.as_str()?;
        if MEDIA.contains(&kind) {
            return Some(Err(PromptError::Unsupported {
                field: format!("messages[{at}].content"),
                what: "images, audio and video",
            }));
        }
        Some(Ok(shared(part.get("text").filter(|_| kind == "text")?)?))
    };
    let texts = parts.iter().map(text);
    texts
        .map(|text| text.unwrap_or_else(|| Err(bad("has a part that is not a text"))))
        .collect()
}

fn shaped(mut texts: Vec<Arc<str>>, format: ContentFormat) -> Json {
    let dict = |text| {
        Json::Object(Object::from([
            ("type", "text".into()),
            ("text", Json::Str(text)),
        ]))
    };
    match format {
        ContentFormat::Openai => Json::List(texts.into_iter().map(dict).collect()),
        _ if texts.len() == 1 => Json::Str(texts.remove(0)),
        _ => texts.concat().as_str().into(),
    }
}

/// What the assistant said as one text, what it thought, and what it called.
fn assistant(
    at: usize,
    message: &Object,
    format: ContentFormat,
    out: &mut Object,
) -> Result<(), PromptError> {
    let bad = |field: &str, reason| PromptError::bad(format!("messages[{at}]{field}"), reason);
    let texts = match message.get_some("content") {
        None => Vec::new(),
        content => parts(at, content)?,
    };
    let calls = match message.get_some("tool_calls") {
        None => Vec::new(),
        Some(Json::List(calls)) => calls
            .iter()
            .map(tool_call)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                bad(
                    ".tool_calls",
                    "has a call that is none, or arguments not JSON",
                )
            })?,
        Some(_) => return Err(bad(".tool_calls", "is not a list")),
    };
    // Three names of one field, of which serde takes one.
    let names = ["reasoning", "reasoning_content", "thinking"];
    let mut given = names.iter().filter_map(|name| message.get(name));
    let reasoning = match (given.next(), given.next()) {
        (None | Some(Json::Null), None) => None,
        (Some(Json::Str(text)), None) => Some(text).filter(|text| !text.is_empty()),
        _ => return Err(bad(".reasoning", "is no string, or given twice")),
    };
    if texts.is_empty() && calls.is_empty() && reasoning.is_none() {
        return Err(bad("", "has neither text, reasoning nor calls"));
    }
    let whole = match texts.len() {
        1 => texts,
        _ => vec![texts.concat().into()],
    };
    out.set("content", shaped(whole, format));
    if let Some(reasoning) = reasoning {
        out.set("reasoning", Json::Str(Arc::clone(reasoning)));
        out.set("reasoning_content", Json::Str(Arc::clone(reasoning)));
    }
    if !calls.is_empty() {
        out.set("tool_calls", Json::List(calls));
    }
    Ok(())
}

/// A call with its arguments read: any JSON, `{}` where there are none.
fn tool_call(call: &Json) -> Option<Json> {
    let call = call.as_object()?;
    let given = call.get("function")?.as_object()?;
    if call.get("type")?.as_str() != Some("function") {
        return None;
    }
    let arguments = match given.get_some("arguments") {
        None => Json::Object(Object::default()),
        Some(arguments) => match arguments.as_str()? {
            "" => Json::Object(Object::default()),
            text => Json::loads_strict(text.as_bytes()).ok()?,
        },
    };
    let function = Object::from([
        ("name", Json::Str(shared(given.get("name")?)?)),
        ("arguments", arguments),
    ]);
    Some(Json::Object(Object::from([
        ("id", Json::Str(shared(call.get("id")?)?)),
        ("type", "function".into()),
        ("function", Json::Object(function)),
    ])))
}

/// Text shared with the body.
fn shared(value: &Json) -> Option<Arc<str>> {
    match value {
        Json::Str(text) => Some(Arc::clone(text)),
        _ => None,
    }
}

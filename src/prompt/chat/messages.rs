//! The messages of a chat as the template sees them (`renderers/chat_utils.py`, vLLM 0.32).

use std::sync::Arc;

use super::super::PromptError;
use super::super::json::{Fault, Json, Object};
use super::super::template::ContentFormat;
use super::shared;

/// The line that Claude Code puts first, different each time; vLLM drops it.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// Types and keys of parts that are not text.
const MEDIA: [&str; 11] = [
    "image_url",
    "input_image",
    "image_pil",
    "image_embeds",
    "input_audio",
    "audio_url",
    "audio_embeds",
    "video_url",
    "video_embeds",
    "prompt_embeds",
    "file",
];

/// Fields of parts that vLLM knows; only others reach a template with the text.
const PART_FIELDS: [&str; 17] = [
    "type",
    "text",
    "thinking",
    "closed",
    "refusal",
    "name",
    "uuid",
    "data",
    "image_url",
    "image_pil",
    "image_embeds",
    "input_audio",
    "audio_url",
    "audio_embeds",
    "video_url",
    "video_embeds",
    "file",
];

type Part = Result<Option<Json>, PromptError>;

/// Every message of a request, with contents in one format.
pub fn normalize(body: &Object, format: ContentFormat) -> Result<Vec<Object>, PromptError> {
    let messages = match body.get("messages") {
        Some(Json::List(messages)) => messages,
        Some(_) => return Err(PromptError::bad("messages", "is not a list")),
        None => return Err(PromptError::bad("messages", "is missing")),
    };
    messages
        .iter()
        .enumerate()
        .map(|(at, message)| one(at, message, format))
        .collect()
}

fn one(at: usize, message: &Json, format: ContentFormat) -> Result<Object, PromptError> {
    let bad = |field: &str, reason| PromptError::bad(format!("messages[{at}]{field}"), reason);
    let message = message
        .as_object()
        .ok_or_else(|| bad("", "is not an object"))?;
    let role = message
        .get("role")
        .and_then(shared)
        .ok_or_else(|| bad(".role", "is not a string"))?;
    let name = message.get("name");
    if name.is_some_and(|name| name.as_str().is_none()) && &*role != "tool" {
        return Err(bad(".name", "is not a string"));
    }
    let content = content(at, &role, message, format)?;
    let mut out = Object::from([("role", Json::Str(Arc::clone(&role))), ("content", content)]);
    match &*role {
        "assistant" => assistant(at, message, &mut out)?,
        "tool" => {
            if let Some(id) = message.get("tool_call_id") {
                if !matches!(id, Json::Str(_) | Json::Null) {
                    return Err(bad(".tool_call_id", "is not a string"));
                }
                out.set("tool_call_id", id.clone());
            }
        }
        _ => {}
    }
    for field in ["name", "task"] {
        if let Some(text @ Json::Str(_)) = message.get(field) {
            out.set(field, text.clone());
        }
    }
    if &*role == "developer" {
        out.set("tools", message.get("tools").cloned().unwrap_or(Json::Null));
    }
    Ok(out)
}

/// Reasoning under its new and its old name, and tool calls with arguments as objects.
fn assistant(at: usize, message: &Object, out: &mut Object) -> Result<(), PromptError> {
    let calls = match message.get_some("tool_calls") {
        None => &[][..],
        Some(Json::List(calls)) => calls,
        Some(empty) if !empty.is_truthy() && matches!(empty, Json::Str(_) | Json::Object(_)) => &[],
        Some(_) => {
            return Err(PromptError::bad(
                format!("messages[{at}].tool_calls"),
                "is not a list",
            ));
        }
    };
    let mut kept = Vec::with_capacity(calls.len());
    for (position, call) in calls.iter().enumerate() {
        let field = || format!("messages[{at}].tool_calls[{position}]");
        let refuse = || {
            PromptError::bad(
                field(),
                "is not a function call with its arguments in a string",
            )
        };
        kept.push(tool_call(call).ok_or_else(refuse)?.map_err(|()| {
            PromptError::bad(
                field() + ".function.arguments",
                "is JSON that cannot be written again",
            )
        })?);
    }
    if !kept.is_empty() {
        out.set("tool_calls", Json::List(kept));
    }
    let reasoning = message
        .get_some("reasoning")
        .or_else(|| message.get_some("reasoning_content"));
    if let Some(reasoning) = reasoning {
        out.set("reasoning", reasoning.clone());
        out.set("reasoning_content", reasoning.clone());
    }
    Ok(())
}

/// A tool call in the order of OpenAI's typed dict; none where pydantic refuses it.
fn tool_call(call: &Json) -> Option<Result<Json, ()>> {
    let call = call.as_object()?;
    let given = call.get("function")?.as_object()?;
    if call.get("type")?.as_str() != Some("function") {
        return None;
    }
    let name = shared(given.get("name")?)?;
    let id = shared(call.get("id")?)?;
    let arguments = match arguments(given.get("arguments")?.as_str()?) {
        Ok(arguments) => arguments,
        Err(()) => return Some(Err(())),
    };
    let mut function = Object::from([("arguments", arguments), ("name", Json::Str(name))]);
    add_missing(&mut function, given);
    let mut out = Object::from([
        ("id", Json::Str(id)),
        ("function", Json::Object(function)),
        ("type", "function".into()),
    ]);
    add_missing(&mut out, call);
    Some(Ok(Json::Object(out)))
}

fn add_missing(out: &mut Object, from: &Object) {
    for (key, value) in from.iter() {
        if out.get(key).is_none() {
            out.set(key, value.clone());
        }
    }
}

/// Arguments as an object: what is not JSON, or no object, is `{}`, so that one bad call does
/// not end the conversation. JSON that Python reads but cannot write is an error.
fn arguments(text: &str) -> Result<Json, ()> {
    match Json::loads(text) {
        Ok(object @ Json::Object(_)) => Ok(object),
        Ok(_) => Ok(Json::Object(Object::default())),
        Err(error) if error.fault == Fault::Syntax => Ok(Json::Object(Object::default())),
        Err(_) => Err(()),
    }
}

/// A message's content in the template's format.
fn content(
    at: usize,
    role: &str,
    message: &Object,
    format: ContentFormat,
) -> Result<Json, PromptError> {
    let bad = |reason| PromptError::bad(format!("messages[{at}].content"), reason);
    let nullable = role == "assistant" || (role == "function" && message.get("name").is_some());
    let text_part = |text: &Arc<str>| {
        Json::Object(Object::from([
            ("type", "text".into()),
            ("text", Json::Str(Arc::clone(text))),
        ]))
    };
    let lone;
    let parts: &[Json] = match message.get("content") {
        None => &[],
        Some(Json::Null) if nullable => &[],
        Some(Json::Null) => return Err(bad("is null")),
        Some(Json::Str(text)) => {
            lone = [text_part(text)];
            &lone
        }
        Some(Json::LoneSurrogate) => return Err(bad("has a lone surrogate")),
        Some(Json::List(parts)) => {
            check_parts(at, role, message, parts)?;
            parts
        }
        Some(_) => return Err(bad("is neither a string nor a list")),
    };
    let as_dicts = format == ContentFormat::Openai && role != "tool";
    let mut kept = Vec::with_capacity(parts.len());
    for (position, part) in parts.iter().enumerate() {
        let field = || format!("messages[{at}].content[{position}]");
        let part = match role {
            "system" => without_billing_header(part),
            _ => Some(part.clone()),
        };
        kept.extend(
            part.map(|part| read_part(&field, &part, as_dicts))
                .transpose()?
                .flatten(),
        );
    }
    if as_dicts {
        return Ok(Json::List(kept));
    }
    // Templates that want lists still get a tool's answer as text, empty parts and all.
    let keeps_empty = format == ContentFormat::Openai;
    let texts: Vec<&str> = kept.iter().filter_map(Json::as_str).collect();
    match texts.as_slice() {
        [_] => Ok(kept.remove(0)),
        _ => {
            let texts = texts
                .into_iter()
                .filter(|text| keeps_empty || !text.is_empty());
            Ok(Json::from(texts.collect::<Vec<_>>().join("\n").as_str()))
        }
    }
}

/// A system text without its first line, if that is the billing header; none if nothing is left.
fn without_billing_header(part: &Json) -> Option<Json> {
    let text = match part {
        Json::Object(object) => match object.get("type").and_then(Json::as_str) {
            Some("text") => object.get("text").and_then(Json::as_str),
            _ => None,
        },
        part => part.as_str(),
    };
    let Some(text) = text.filter(|text| text.starts_with(BILLING_HEADER)) else {
        return Some(part.clone());
    };
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    if rest.is_empty() {
        return None;
    }
    Some(match part {
        Json::Object(object) => {
            let mut object = object.clone();
            object.set("text", rest.into());
            Json::Object(object)
        }
        _ => rest.into(),
    })
}

/// Whether pydantic takes a list of parts. OpenAI's own message types read lists lazily and know
/// few parts; vLLM's type for any role knows more, and is preferred only where it recognises more
/// fields. So `[input_text]` from a user is refused, and `[input_text, text]` is not.
fn check_parts(at: usize, role: &str, message: &Object, parts: &[Json]) -> Result<(), PromptError> {
    let field = |position| format!("messages[{at}].content[{position}]");
    for (position, part) in parts.iter().enumerate() {
        let Json::Object(object) = part else {
            match part {
                Json::Str(_) => continue,
                _ => {
                    return Err(PromptError::bad(
                        field(position),
                        "is neither text nor an object",
                    ));
                }
            }
        };
        let kind = object.get("type").and_then(Json::as_str);
        if MEDIA
            .iter()
            .any(|media| kind == Some(media) || object.get_some(media).is_some())
        {
            let field = field(position);
            return Err(PromptError::Unsupported {
                field,
                what: "images, audio, video and embeddings",
            });
        }
    }
    let has = |part: &Json, key: &str| {
        part.as_object()
            .and_then(|part| part.get(key)?.as_str())
            .is_some()
    };
    let is_a = |part: &Json, kind: &str| {
        part.as_object().and_then(|part| part.get("type")?.as_str()) == Some(kind)
    };
    let is_text = |part: &Json, kind: &str, key: &str| is_a(part, kind) && has(part, key);
    let lazily = |part: &Json| {
        is_text(part, "text", "text")
            || (role == "assistant" && is_text(part, "refusal", "refusal"))
    };
    let recognised = |part: &Json| {
        is_text(part, "text", "text")
            || is_text(part, "refusal", "refusal")
            || is_text(part, "thinking", "thinking")
            || is_a(part, "tool_reference")
    };
    let roles = [
        "system",
        "user",
        "assistant",
        "tool",
        "developer",
        "function",
    ];
    let custom = !roles.contains(&role)
        || parts.iter().any(recognised)
        || (role == "tool" && message.get("tool_call_id").is_none())
        || ["reasoning", "reasoning_content", "task"]
            .iter()
            .any(|name| message.get(name).is_some());
    match custom || parts.iter().all(lazily) {
        true => Ok(()),
        false => {
            let reason = "has no part that an OpenAI message may have";
            Err(PromptError::bad(format!("messages[{at}].content"), reason))
        }
    }
}

/// The text of a part, as a string or as a dict; none where it is skipped.
fn read_part(field: &dyn Fn() -> String, part: &Json, as_dict: bool) -> Part {
    let bad = |reason| Err(PromptError::bad(field(), reason));
    let dict = |text: Json| Object::from([("type", "text".into()), ("text", text)]);
    let object = match part {
        Json::Str(_) if as_dict => return Ok(Some(Json::Object(dict(part.clone())))),
        Json::Str(_) => return Ok(Some(part.clone())),
        Json::Object(object) => object,
        _ => return bad("is neither text nor an object"),
    };
    let key = match object.get("type").and_then(Json::as_str) {
        Some("text" | "input_text" | "output_text") => "text",
        Some("thinking") => "thinking",
        Some("refusal") => "refusal",
        Some("tool_reference") => "name",
        _ => return bad("is of a type that vLLM does not know"),
    };
    let skips_null = matches!(
        object.get("type").and_then(Json::as_str),
        Some("text" | "refusal")
    );
    let text = match object.get_some(key) {
        Some(text @ Json::Str(_)) => text.clone(),
        None if skips_null => return Ok(None),
        _ => return bad("has no text"),
    };
    if !as_dict {
        return Ok(Some(text));
    }
    if key == "name" {
        let reference = Object::from([("type", "tool_reference".into()), ("name", text)]);
        return Ok(Some(Json::Object(reference)));
    }
    let mut out = dict(text);
    for (name, value) in object
        .iter()
        .filter(|(name, _)| !PART_FIELDS.contains(&&***name))
    {
        out.set(name, value.clone());
    }
    Ok(Some(Json::Object(out)))
}

/// For a template that does not know developers: they speak as the system, and all that the
/// system says becomes one message at the front.
pub fn developers_as_system(mut messages: Vec<Object>) -> Vec<Object> {
    let is =
        |message: &Object, role: &str| message.get("role").and_then(Json::as_str) == Some(role);
    if !messages.iter().any(|message| is(message, "developer")) {
        return messages;
    }
    for message in messages
        .iter_mut()
        .filter(|message| is(message, "developer"))
    {
        message.set("role", "system".into());
        message.remove("tools");
    }
    let late = messages.iter().skip(1).any(|message| is(message, "system"));
    if !late {
        return messages;
    }
    let (system, others): (Vec<_>, Vec<_>) = messages.into_iter().partition(|m| is(m, "system"));
    let texts: Vec<String> = system
        .iter()
        .map(content_text)
        .filter(|text| !text.is_empty())
        .collect();
    let merged = Object::from([
        ("role", "system".into()),
        ("content", Json::from(texts.join("\n\n").as_str())),
    ]);
    std::iter::once(merged).chain(others).collect()
}

fn content_text(message: &Object) -> String {
    match message.get("content") {
        Some(Json::Str(text)) => text.to_string(),
        Some(Json::List(parts)) => {
            let texts = parts
                .iter()
                .filter_map(|part| part.as_object()?.get("text")?.as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

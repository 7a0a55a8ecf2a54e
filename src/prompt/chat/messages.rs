//! The messages of a chat as the template sees them (`renderers/chat_utils.py`, vLLM 0.32).

use std::sync::Arc;

use super::super::PromptError;
use super::super::json::{Fault, Json, Object};
use super::super::template::ContentFormat;
use super::media::Media;
use super::{content, shared};

/// Every message of a request, with contents in one format, and where media are.
pub fn normalize(
    body: &Object,
    format: ContentFormat,
    checked: bool,
) -> Result<(Vec<Object>, Media), PromptError> {
    let messages = match body.get("messages") {
        Some(Json::List(messages)) => messages,
        Some(_) => return Err(PromptError::bad("messages", "is not a list")),
        None => return Err(PromptError::bad("messages", "is missing")),
    };
    let mut media = Media::default();
    let messages = messages
        .iter()
        .enumerate()
        .map(|(at, message)| one(at, message, (format, checked), &mut media))
        .collect::<Result<_, _>>()?;
    Ok((messages, media))
}

fn one(
    at: usize,
    message: &Json,
    how: (ContentFormat, bool),
    media: &mut Media,
) -> Result<Object, PromptError> {
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
    let content = content::normalize(at, &role, message, how, media)?;
    if message.names_are(["role", "content"]) && &*role != "developer" {
        // Most messages are as they come; their names need not be made again.
        let mut out = message.clone();
        out.set("content", content);
        return Ok(out);
    }
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
    let function = Object::from([("arguments", arguments), ("name", Json::Str(name))])
        .merged(given.without(&["arguments", "name"]));
    let out = Object::from([
        ("id", Json::Str(id)),
        ("function", Json::Object(function)),
        ("type", "function".into()),
    ]);
    let others = call.without(&["id", "function", "type"]);
    Some(Ok(Json::Object(out.merged(others))))
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

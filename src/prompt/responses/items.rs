//! Input items → messages of a chat (`construct_input_messages`).
//!
//! An assistant's answer is spread over items: what it thought, what it said, each call it made.
//! Items that follow each other are put together into one message again, as far as the message
//! has no such part yet.

use std::sync::Arc;

use crate::prompt::PromptError;
use crate::prompt::fields::optional_str;
use crate::prompt::json::{Json, Object};

/// The one parameter of a tool that takes free text.
pub const INPUT: &str = "input";

/// What a request gives the model to read.
pub struct Input {
    /// The conversation.
    pub messages: Vec<Json>,
    /// The last message is not finished: the model goes on with it.
    pub continues: bool,
}

/// `instructions` and `input`.
pub fn read(body: &Object) -> Result<Input, PromptError> {
    let mut messages = Vec::new();
    if let Some(text) = optional_str(body, "instructions")?.filter(|text| !text.is_empty()) {
        messages.push(Message::new("system", text.into()));
    }
    let items = match body.get(INPUT) {
        Some(Json::Str(text)) => {
            messages.push(Message::new("user", Json::Str(Arc::clone(text))));
            &[][..]
        }
        Some(Json::List(items)) => items,
        _ => {
            return Err(PromptError::bad(
                INPUT,
                "is neither text nor a list of items",
            ));
        }
    };
    let first = messages.len();
    for (at, item) in items.iter().enumerate() {
        let refuse = |reason| PromptError::bad(format!("input[{at}]"), reason);
        let item = item.as_object().ok_or_else(|| refuse("is not an object"))?;
        let new = message_of(item).map_err(refuse)?;
        // What `instructions` say is not an item before.
        let previous = messages.get_mut(first..).and_then(<[_]>::last_mut);
        let left = new.merged_into(previous);
        messages.extend(left);
    }
    let continues = items
        .last()
        .and_then(Json::as_object)
        .is_some_and(is_unfinished);
    let messages = messages.into_iter().map(|m| Json::Object(m.0)).collect();
    Ok(Input {
        messages,
        continues,
    })
}

/// A message of a chat.
struct Message(Object);

impl Message {
    fn new(role: &str, content: Json) -> Self {
        Self(Object::from([("role", role.into()), ("content", content)]))
    }

    fn of_assistant(part: &'static str, value: Json) -> New {
        let message = Object::from([("role", "assistant".into()), (part, value)]);
        New {
            message: Self(message),
            part: Some(part),
        }
    }
}

/// What an item becomes.
struct New {
    message: Message,
    /// The part of an assistant's message that it is; none for a message of its own.
    part: Option<&'static str>,
}

impl New {
    /// Put into the message before if that is an assistant's and lacks this part; else returned.
    fn merged_into(self, previous: Option<&mut Message>) -> Option<Message> {
        let previous = previous.filter(|previous| {
            let role = previous.0.get("role").and_then(Json::as_str);
            role == Some("assistant")
        });
        let (Some(part), Some(Message(previous))) = (self.part, previous) else {
            return Some(self.message);
        };
        let value = self.message.0.get(part).cloned().unwrap_or(Json::Null);
        match (previous.get_some(part).cloned(), value) {
            (None, value) => previous.set(part, value),
            (Some(Json::List(mut calls)), Json::List(more)) if part == CALLS => {
                calls.extend(more);
                previous.set(part, Json::List(calls));
            }
            _ => return Some(self.message),
        }
        None
    }
}

const CALLS: &str = "tool_calls";

fn is_unfinished(item: &Object) -> bool {
    let kind = item.get("type").map_or(Some("message"), Json::as_str);
    let status = item.get("status").and_then(Json::as_str);
    matches!(kind, Some("message" | "reasoning"))
        && matches!(status, Some("in_progress" | "incomplete"))
}

fn message_of(item: &Object) -> Result<New, &'static str> {
    let own = |message| New {
        message,
        part: None,
    };
    match item.get("type").map(|kind| kind.as_str().unwrap_or("")) {
        None | Some("message") => match item.get("role").and_then(Json::as_str) {
            Some("assistant") => said(item),
            Some(role @ ("user" | "system" | "developer")) => Ok(own(told(role, item)?)),
            _ => Err("has no role that vLLM takes"),
        },
        Some("function_call") => function_call(item).ok_or("is no function call"),
        Some("custom_tool_call") => custom_call(item).ok_or("is no call of a custom tool"),
        Some("function_call_output" | "custom_tool_call_output") => {
            Ok(own(output(item).ok_or("is no output of a call")?))
        }
        Some("reasoning") => thought(item),
        Some(_) => Err("is of a type that vLLM does not render"),
    }
}

/// A message of anyone but the assistant.
fn told(role: &str, item: &Object) -> Result<Message, &'static str> {
    let content = match item.get("content") {
        Some(text @ Json::Str(_)) => text.clone(),
        Some(Json::List(parts)) if parts.iter().all(is_input) => Json::List(parts.clone()),
        _ => return Err("has no content that vLLM takes"),
    };
    let mut message = Message::new(role, content);
    for name in ["name", "task"] {
        if let Some(text @ Json::Str(_)) = item.get(name) {
            message.0.set(name, text.clone());
        }
    }
    if let (Some(tools), "developer") = (item.get("tools"), role) {
        message.0.set("tools", tools.clone());
    }
    Ok(message)
}

fn is_input(part: &Json) -> bool {
    let is = |part: &Object| match part.get("type")?.as_str()? {
        "input_text" => part.get("text")?.as_str().map(|_| ()),
        "input_image" | "input_file" => Some(()),
        _ => None,
    };
    part.as_object().is_some_and(|part| is(part).is_some())
}

/// What the assistant said: of several parts, only the first.
fn said(item: &Object) -> Result<New, &'static str> {
    let wrong = "has no content that vLLM takes";
    let parts = match item.get("content") {
        Some(text @ Json::Str(_)) => return Ok(Message::of_assistant("content", text.clone())),
        Some(Json::List(parts)) => parts,
        _ => return Err(wrong),
    };
    let is_output = !parts.is_empty() && parts.iter().all(|part| is_output(part, item));
    let is_typed = item.get("type").is_some();
    let text = |part: &Json| Some(part.as_object()?.get("text")?.clone());
    match parts.first().and_then(text) {
        Some(text) if is_output || parts.iter().all(is_input) => {
            Ok(Message::of_assistant("content", text))
        }
        None if is_input_list(parts, is_typed) => Ok(New {
            message: Message::new("assistant", Json::List(parts.clone())),
            part: None,
        }),
        _ => Err(wrong),
    }
}

/// Whether an assistant's parts may be such as clients send: a typed message must not be empty.
fn is_input_list(parts: &[Json], is_typed: bool) -> bool {
    parts.iter().all(is_input) && !(is_typed && parts.is_empty())
}

/// Whether a part is one that a model has put out. What lacks a type must have all else.
fn is_output(part: &Json, item: &Object) -> bool {
    let status = item
        .get("status")
        .map(|status| status.as_str().unwrap_or(""));
    let ids = match item.get("type") {
        Some(_) => matches!(
            status,
            None | Some("in_progress" | "completed" | "incomplete")
        ),
        None => {
            item.get("id").and_then(Json::as_str).is_some()
                && matches!(status, Some("in_progress" | "completed" | "incomplete"))
        }
    };
    let is = |part: &Object| match part.get("type")?.as_str()? {
        "output_text" if item.get("type").is_none() && part.get("annotations").is_none() => None,
        "output_text" => part.get("text")?.as_str().map(|_| ()),
        "refusal" => part.get("refusal")?.as_str().map(|_| ()),
        _ => None,
    };
    ids && part.as_object().is_some_and(|part| is(part).is_some())
}

fn call(id: Json, name: Json, arguments: Json) -> New {
    let function = Object::from([("name", name), ("arguments", arguments)]);
    let call = Object::from([
        ("id", id),
        ("function", Json::Object(function)),
        ("type", "function".into()),
    ]);
    Message::of_assistant(CALLS, Json::List(vec![Json::Object(call)]))
}

fn text(item: &Object, name: &str) -> Option<Json> {
    item.get(name)
        .filter(|value| matches!(value, Json::Str(_)))
        .cloned()
}

fn function_call(item: &Object) -> Option<New> {
    let name = match item.get_some("namespace") {
        None => text(item, "name")?,
        Some(Json::Str(space)) if space.is_empty() => text(item, "name")?,
        Some(Json::Str(space)) => {
            Json::from(format!("{space}__{}", item.get("name")?.as_str()?).as_str())
        }
        Some(_) => return None,
    };
    Some(call(text(item, "call_id")?, name, text(item, "arguments")?))
}

fn custom_call(item: &Object) -> Option<New> {
    let input = Object::from([(INPUT, text(item, INPUT)?)]);
    let arguments = Json::Object(input).dumps()?;
    let (id, name) = (text(item, "call_id")?, text(item, "name")?);
    Some(call(id, name, Json::from(arguments.as_str())))
}

fn output(item: &Object) -> Option<Message> {
    let content = match item.get("output")? {
        text @ Json::Str(_) => text.clone(),
        Json::List(parts) if parts.iter().all(is_input) => Json::List(parts.clone()),
        _ => return None,
    };
    let mut message = Message::new("tool", content);
    match item.get_some("call_id") {
        None => message.0.set("tool_call_id", Json::Null),
        Some(id @ Json::Str(_)) => message.0.set("tool_call_id", id.clone()),
        Some(_) => return None,
    }
    Some(message)
}

/// What the assistant thought: its first text, or else the first of its summary.
fn thought(item: &Object) -> Result<New, &'static str> {
    let first = |name: &str| match item.get_some(name) {
        None => Ok(None),
        Some(Json::List(parts)) => parts
            .iter()
            .map(|part| part.as_object().and_then(|part| text(part, "text")))
            .collect::<Option<Vec<_>>>()
            .map(|texts| texts.into_iter().next())
            .ok_or("has a part without text"),
        Some(_) => Err("has parts that are no list"),
    };
    if item
        .get_some("encrypted_content")
        .is_some_and(Json::is_truthy)
    {
        return Err("is encrypted");
    }
    if item.get_some("summary").is_none() {
        return Err("has no summary, not even an empty one");
    }
    let (content, summary) = (first("content")?, first("summary")?);
    let text = content.or(summary).unwrap_or_else(|| "".into());
    Ok(Message::of_assistant("reasoning", text))
}

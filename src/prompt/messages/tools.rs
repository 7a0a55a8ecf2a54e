//! Anthropic's tools as a chat's: those in effect at the end of the conversation, which may have
//! added and removed some (`_resolve_tools`, `_convert_tools`).

use std::sync::Arc;

use crate::config::RenderSettings;
use crate::prompt::PromptError;
use crate::prompt::chat::rebuild_tool;
use crate::prompt::json::{Json, Object};

/// The tools for the template; none where the request has none, or hides them.
pub fn of_request(body: &Object, settings: &RenderSettings) -> Result<Option<Json>, PromptError> {
    let given = match body.get_some("tools") {
        None => None,
        Some(Json::List(tools)) => Some(tools.as_slice()),
        Some(_) => return Err(PromptError::bad("tools", "is not a list")),
    };
    let tools = in_effect(body, given)?;
    let choice = choice(body)?;
    if (choice == Choice::Some || (choice == Choice::Unsaid && tools.is_some()))
        && !settings.enable_auto_tool_choice
    {
        let reason = "needs --enable-auto-tool-choice";
        return Err(PromptError::bad("tool_choice", reason));
    }
    let hidden = choice == Choice::None && settings.exclude_tools_when_tool_choice_none;
    Ok(tools.filter(|_| !hidden).map(Json::List))
}

#[derive(PartialEq)]
enum Choice {
    Unsaid,
    None,
    Some,
}

fn choice(body: &Object) -> Result<Choice, PromptError> {
    let refuse = || PromptError::bad("tool_choice", "is not a choice that Anthropic knows");
    let Some(choice) = body.get_some("tool_choice") else {
        return Ok(Choice::Unsaid);
    };
    let choice = choice.as_object().ok_or_else(refuse)?;
    let name = choice.get("name").and_then(Json::as_str);
    match choice.get("type").and_then(Json::as_str) {
        Some("none") => Ok(Choice::None),
        Some("auto" | "any") => Ok(Choice::Some),
        Some("tool") if name.is_some_and(|name| !name.is_empty()) => Ok(Choice::Some),
        _ => Err(refuse()),
    }
}

/// The tools at the end of the conversation, in the order of their first mention.
fn in_effect(body: &Object, given: Option<&[Json]>) -> Result<Option<Vec<Json>>, PromptError> {
    let converted = given.map(|given| {
        let each = given.iter().enumerate().map(|(at, tool)| {
            let refuse = || PromptError::bad(format!("tools[{at}]"), "is not a tool");
            convert(tool).ok_or_else(refuse)
        });
        each.collect::<Result<Vec<_>, _>>()
    });
    let converted = converted.transpose()?;
    let changes: Vec<&Object> = changes(body).collect();
    if changes.is_empty() {
        return Ok(converted.map(|tools| tools.into_iter().map(|(_, tool)| tool).collect()));
    }
    let mut tools: Object = converted.into_iter().flatten().collect();
    let mut removed: Vec<Arc<str>> = Vec::new();
    for block in changes {
        let refuse = || PromptError::bad("messages", "has a change of tools that vLLM refuses");
        let adds = block.get("type").and_then(Json::as_str) == Some("tool_addition");
        let change = block
            .get("tool")
            .and_then(Json::as_object)
            .ok_or_else(refuse)?;
        let name = match change.get("type").and_then(Json::as_str) {
            Some("tool_definition") if adds => {
                let definition = change.get("definition").ok_or_else(refuse)?;
                let (name, tool) = convert(definition).ok_or_else(refuse)?;
                tools.set(&name, tool);
                name
            }
            Some("tool_reference") => {
                let name: Arc<str> = change
                    .get("name")
                    .and_then(Json::as_str)
                    .ok_or_else(refuse)?
                    .into();
                let tool = tools.get(&name).ok_or_else(refuse)?.clone();
                if adds {
                    tools.set(&name, no_longer_deferred(tool));
                }
                name
            }
            _ => return Err(refuse()),
        };
        removed.retain(|gone| *gone != name);
        if !adds {
            removed.push(name);
        }
    }
    let kept = tools
        .into_iter()
        .filter(|(name, _)| !removed.contains(name));
    Ok(Some(kept.map(|(_, tool)| tool).collect()))
}

/// Blocks of system messages that add or remove tools.
fn changes(body: &Object) -> impl Iterator<Item = &Object> {
    let messages = body.get("messages").and_then(Json::as_list).unwrap_or(&[]);
    let blocks = messages
        .iter()
        .filter_map(|message| message.as_object()?.get("content")?.as_list())
        .flatten();
    blocks.filter_map(Json::as_object).filter(|block| {
        let kind = block.get("type").and_then(Json::as_str);
        matches!(kind, Some("tool_addition" | "tool_removal"))
    })
}

/// A tool by its name, in the order of `ChatCompletionToolsParam`.
fn convert(tool: &Json) -> Option<(Arc<str>, Json)> {
    let tool = tool.as_object()?;
    let name = tool.get("name")?.as_str()?;
    let mut schema = tool.get("input_schema")?.as_object()?.clone();
    if schema.get("type").is_none() {
        schema.set("type", "object".into());
    }
    let mut function = Object::from([("name", name.into()), ("parameters", Json::Object(schema))]);
    for field in ["description", "strict", "defer_loading"] {
        if let Some(value) = tool.get_some(field) {
            function.set(field, value.clone());
        }
    }
    let whole = Object::from([
        ("type", "function".into()),
        ("function", Json::Object(function)),
    ]);
    Some((name.into(), rebuild_tool(&Json::Object(whole))?))
}

fn no_longer_deferred(tool: Json) -> Json {
    let Json::Object(mut tool) = tool else {
        return tool;
    };
    if let Some(Json::Object(mut function)) = tool.get("function").cloned() {
        function.remove("defer_loading");
        tool.set("function", Json::Object(function));
    }
    Json::Object(tool)
}

//! Tools and the choice among them, as vLLM's Rust frontend reads them.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::PromptError;
use super::super::json::{Json, Object};
use super::super::template::RenderSettings;
use super::{flag, shared};

/// The request's tools, then its developers'; none where the template sees none.
pub fn of_request(
    body: &Object,
    messages: &[Object],
    settings: &RenderSettings,
) -> Result<Option<Vec<Json>>, PromptError> {
    let given = read(body.get_some("tools"), "tools")?;
    if given.is_empty() && body.get_some("tools").is_some() {
        return Err(PromptError::bad("tools", "is an empty list"));
    }
    let own = given.len();
    let of_developers = messages.iter().filter_map(|m| m.get("tools")?.as_list());
    let all: Vec<Json> = given
        .into_iter()
        .chain(of_developers.flatten().cloned())
        .collect();
    let mut names = HashSet::new();
    if !all
        .iter()
        .filter_map(name_of)
        .all(|name| names.insert(name))
    {
        return Err(PromptError::bad("tools", "has two of one name"));
    }
    let none = chooses_none(body, &names)?;
    if !none && !all.is_empty() && !settings.enable_auto_tool_choice {
        return Err(PromptError::bad("tools", "needs a --tool-call-parser"));
    }
    let hidden = match none && settings.exclude_tools_when_tool_choice_none {
        true => own,
        false => 0,
    };
    let shown: Vec<Json> = all.into_iter().skip(hidden).collect();
    Ok(Some(shown).filter(|shown| !shown.is_empty()))
}

fn name_of(tool: &Json) -> Option<Arc<str>> {
    shared(
        tool.as_object()?
            .get("function")?
            .as_object()?
            .get("name")?,
    )
}

/// Whether `tool_choice` is "none"; without one it is "auto".
fn chooses_none(body: &Object, names: &HashSet<Arc<str>>) -> Result<bool, PromptError> {
    let known = match body.get_some("tool_choice") {
        None => return Ok(false),
        Some(Json::Str(word)) => match &**word {
            "none" => return Ok(true),
            word => matches!(word, "auto" | "required") && !names.is_empty(),
        },
        Some(choice) => {
            let kind = choice.as_object().and_then(|choice| choice.get("type"));
            kind.and_then(Json::as_str) == Some("function")
                && name_of(choice).is_some_and(|name| names.contains(&name))
        }
    };
    match known {
        true => Ok(false),
        false => Err(PromptError::bad(
            "tool_choice",
            "is not a choice among tools",
        )),
    }
}

pub fn read(tools: Option<&Json>, field: &str) -> Result<Vec<Json>, PromptError> {
    match tools {
        None => Some(Vec::new()),
        Some(Json::List(tools)) => tools.iter().map(tool).collect(),
        Some(_) => None,
    }
    .ok_or_else(|| PromptError::bad(field, "is not a list of functions"))
}

/// A tool in the order of the frontend's own type; `parameters` is any JSON.
fn tool(tool: &Json) -> Option<Json> {
    let tool = tool.as_object()?;
    let given = tool.get("function")?.as_object()?;
    if tool
        .get("type")
        .is_some_and(|kind| kind.as_str() != Some("function"))
    {
        return None;
    }
    let description = given.get("description").cloned().unwrap_or(Json::Null);
    if !matches!(description, Json::Null | Json::Str(_)) {
        return None;
    }
    let mut function = Object::from([
        ("name", Json::Str(shared(given.get("name")?)?)),
        ("description", description),
        (
            "parameters",
            given.get("parameters").cloned().unwrap_or(Json::Null),
        ),
    ]);
    if let Some(strict) = flag(given.get_some("strict"))? {
        function.set("strict", Json::Bool(strict));
    }
    let outer = flag(tool.get_some("defer_loading"))?;
    if let Some(defer) = flag(given.get_some("defer_loading"))?.or(outer) {
        function.set("defer_loading", Json::Bool(defer));
    }
    Some(Json::Object(Object::from([
        ("type", "function".into()),
        ("function", Json::Object(function)),
    ])))
}

//! The tools of a request, rebuilt field by field as pydantic does.

use super::super::PromptError;
use super::super::json::{Json, Object};
use super::super::template::RenderSettings;
use super::optional_flag;

/// The tools for the template; none where the prompt shows none.
///
/// The order of fields is that of vLLM's models (`ChatCompletionToolsParam`,
/// `FunctionDefinition`), whatever order the client wrote; inside `parameters` it is the client's.
pub fn of_request(body: &Object, settings: &RenderSettings) -> Result<Option<Json>, PromptError> {
    let given = body.get_some("tools");
    if given.is_some_and(|tools| tools.as_list().is_some_and(<[Json]>::is_empty)) {
        return Err(PromptError::bad("tools", "is an empty list"));
    }
    let choice = choice(body, given)?;
    if !matches!(choice, Choice::None | Choice::Null) && !settings.enable_auto_tool_choice {
        return Err(PromptError::bad(
            "tool_choice",
            "needs --enable-auto-tool-choice",
        ));
    }
    let Some(given) = given else { return Ok(None) };
    let tools = given
        .as_list()
        .ok_or_else(|| PromptError::bad("tools", "is not a list"))?;
    let tools = tools
        .iter()
        .enumerate()
        .map(|(position, tool)| rebuild(tool).ok_or(position))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|position| PromptError::bad(format!("tools[{position}]"), "is not a function"))?;
    let hidden = choice == Choice::None && settings.exclude_tools_when_tool_choice_none;
    Ok((!hidden).then_some(Json::List(tools)))
}

#[derive(PartialEq)]
enum Choice {
    None,
    Null,
    Some,
}

/// `tool_choice`: "auto" by default where there are tools, else "none".
fn choice(body: &Object, tools: Option<&Json>) -> Result<Choice, PromptError> {
    let refuse = |reason| Err(PromptError::bad("tool_choice", reason));
    let choice = match body.get("tool_choice") {
        None if tools.is_some_and(Json::is_truthy) => return Ok(Choice::Some),
        None => return Ok(Choice::None),
        Some(Json::Null) => return Ok(Choice::Null),
        Some(choice) if choice.as_str() == Some("none") => return Ok(Choice::None),
        Some(choice) => choice,
    };
    let Some(tools) = tools else {
        return refuse("needs tools");
    };
    match choice {
        Json::Str(word) if matches!(&**word, "auto" | "required") => Ok(Choice::Some),
        Json::Object(named) => {
            let name = |object: &Object| object.get("function")?.as_object()?.get("name").cloned();
            let wanted = name(named);
            let is_wanted = |tool: &Json| tool.as_object().and_then(name) == wanted;
            let of_function = named
                .get("type")
                .is_none_or(|kind| kind.as_str() == Some("function"));
            let is_name = wanted.as_ref().is_some_and(|name| name.as_str().is_some());
            match is_name
                && of_function
                && tools.as_list().is_some_and(|all| all.iter().any(is_wanted))
            {
                true => Ok(Choice::Some),
                false => refuse("names none of the tools"),
            }
        }
        _ => refuse("is not a choice that vLLM knows"),
    }
}

/// A tool in the order of `ChatCompletionToolsParam`; none where pydantic refuses it.
pub fn rebuild(tool: &Json) -> Option<Json> {
    let tool = tool.as_object()?;
    if tool
        .get("type")
        .is_some_and(|kind| kind.as_str() != Some("function"))
    {
        return None;
    }
    let given = tool.get("function")?.as_object()?;
    let text_or_null =
        |value: &Json| matches!(value, Json::Null | Json::Str(_) | Json::LoneSurrogate);
    let description = given.get("description").cloned().unwrap_or(Json::Null);
    let parameters = given.get("parameters").cloned().unwrap_or(Json::Null);
    if !text_or_null(&description) || !matches!(parameters, Json::Null | Json::Object(_)) {
        return None;
    }
    let mut function = Object::from([
        (
            "name",
            given
                .get_some("name")
                .filter(|name| text_or_null(name))?
                .clone(),
        ),
        ("description", description),
        ("parameters", parameters),
    ]);
    if let Some(strict) = optional_flag(given, "strict")? {
        function.set("strict", Json::Bool(strict));
    }
    let deferred = optional_flag(tool, "defer_loading")?;
    if let Some(defer) = optional_flag(given, "defer_loading")?.or(deferred) {
        function.set("defer_loading", Json::Bool(defer));
    }
    let mut rebuilt = Object::from([
        ("type", "function".into()),
        ("function", Json::Object(function)),
    ]);
    if let Some(defer) = deferred {
        rebuilt.set("defer_loading", Json::Bool(defer));
    }
    Some(Json::Object(rebuilt))
}

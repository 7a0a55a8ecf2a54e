//! Tools in the shape of the Responses API, as a chat's (`tool_parsers/utils.py`,
//! `get_function_tools`).

use crate::prompt::PromptError;
use crate::prompt::chat::rebuild_tool;
use crate::prompt::json::{Json, Object};

/// Tools that the server may run itself, which no template sees.
const BUILT_IN: [&str; 15] = [
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
];

/// The tools for the template; none where the request has none, or hides them.
pub fn of_request(body: &Object, hides: bool) -> Result<Option<Json>, PromptError> {
    let given = match body.get("tools") {
        None => &[],
        Some(Json::List(tools)) => tools.as_slice(),
        Some(_) => return Err(PromptError::bad("tools", "is not a list")),
    };
    let mut functions = Vec::with_capacity(given.len());
    for (at, tool) in given.iter().enumerate() {
        let refuse = || PromptError::bad(format!("tools[{at}]"), "is no tool that vLLM takes");
        functions.extend(functions_of(tool).ok_or_else(refuse)?);
    }
    let hidden = check_choice(body, given)? && hides;
    Ok((!given.is_empty() && !hidden).then_some(Json::List(functions)))
}

/// The functions that a tool shows to the model; none where pydantic refuses it.
fn functions_of(tool: &Json) -> Option<Vec<Json>> {
    let tool = tool.as_object()?;
    match tool.get("type")?.as_str()? {
        "function" => Some(vec![function(tool, None)?]),
        "custom" => Some(vec![custom(tool)?]),
        "namespace" => {
            let space = tool.get("name")?.as_str()?;
            let inner = tool.get("tools")?.as_list()?.iter();
            let functions = inner.filter_map(|tool| {
                let tool = tool.as_object()?;
                (tool.get("type")?.as_str()? == "function").then_some(tool)
            });
            functions.map(|tool| function(tool, Some(space))).collect()
        }
        built_in if BUILT_IN.contains(&built_in) => Some(Vec::new()),
        _ => None,
    }
}

fn function(tool: &Object, space: Option<&str>) -> Option<Json> {
    let mut definition: Object = tool.without(&["type"]).collect();
    if let Some(space) = space {
        let name = tool.get("name")?.as_str()?;
        definition.set("name", Json::from(format!("{space}__{name}").as_str()));
    }
    let whole = Object::from([
        ("type", "function".into()),
        ("function", Json::Object(definition)),
    ]);
    rebuild_tool(&Json::Object(whole))
}

/// A tool of free text is shown as a function of one string.
fn custom(tool: &Object) -> Option<Json> {
    let format = tool.get_some("format").and_then(Json::as_object);
    if format.is_some_and(|format| format.get("type").and_then(Json::as_str) == Some("grammar")) {
        return None;
    }
    let input = Object::from([
        ("type", "string".into()),
        (
            "description",
            "The freeform text payload for this tool.".into(),
        ),
    ]);
    let parameters = Object::from([
        ("type", "object".into()),
        (
            "properties",
            Json::Object(Object::from([(super::items::INPUT, Json::Object(input))])),
        ),
        ("required", Json::List(vec![super::items::INPUT.into()])),
        ("additionalProperties", Json::Bool(false)),
    ]);
    let mut shown = Object::from([
        ("name", tool.get("name")?.clone()),
        ("parameters", Json::Object(parameters)),
    ]);
    if let Some(description) = tool.get_some("description") {
        shown.set("description", description.clone());
    }
    function(&shown, None)
}

/// Checks `tool_choice`; whether it is "none".
fn check_choice(body: &Object, tools: &[Json]) -> Result<bool, PromptError> {
    let refuse = |reason| Err(PromptError::bad("tool_choice", reason));
    let Some(choice) = body.get("tool_choice") else {
        return Ok(false);
    };
    match choice {
        Json::Str(word) => match &**word {
            "none" => Ok(true),
            "auto" => Ok(false),
            "required" if tools.is_empty() => refuse("needs tools"),
            "required" => Ok(false),
            _ => refuse("is not a choice that vLLM knows"),
        },
        Json::Object(named) => match named.get("type").and_then(Json::as_str) {
            Some("function" | "custom") => {
                let name = named.get("name").and_then(Json::as_str);
                match name.is_some_and(|name| is_there(name, tools)) {
                    true => Ok(false),
                    false => refuse("names none of the tools"),
                }
            }
            Some(_) => Ok(false),
            None => refuse("is not a choice that vLLM knows"),
        },
        _ => refuse("is not a choice that vLLM knows"),
    }
}

/// Whether a name is a tool's, or exactly one namespace's (`_resolve_named_tool_choice`).
fn is_there(name: &str, tools: &[Json]) -> bool {
    let (mut exact, mut local) = (false, 0);
    let name_of = |tool: &Object| tool.get("name").and_then(Json::as_str).map(str::to_owned);
    for tool in tools.iter().filter_map(Json::as_object) {
        let inner = match tool.get("type").and_then(Json::as_str) {
            Some("namespace") => tool.get("tools").and_then(Json::as_list),
            _ => None,
        };
        let Some(inner) = inner else {
            exact |= name_of(tool).as_deref() == Some(name);
            continue;
        };
        let space = name_of(tool).unwrap_or_default();
        for each in inner.iter().filter_map(|tool| name_of(tool.as_object()?)) {
            exact |= format!("{space}__{each}") == name;
            local += usize::from(each == name);
        }
    }
    exact || local == 1
}

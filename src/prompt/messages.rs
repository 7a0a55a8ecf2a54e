//! `/v1/messages`: Anthropic's messages as a chat (`entrypoints/anthropic/{protocol,serving}.py`,
//! vLLM 0.33).

use super::chat::{self, Conversation, EFFORTS, Texts};
use super::fields::optional_str;
use super::json::{Json, Object};
use super::template::Renderer;
use super::{PromptError, PromptText};

mod blocks;
mod tools;

/// Fields that mean the same in a chat.
const SHARED: [&str; 2] = ["chat_template_kwargs", "kv_transfer_params"];

/// Efforts that Anthropic has words for.
const ANTHROPIC_EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

/// The one prompt of a request.
pub fn texts(body: &Object, renderer: &Renderer) -> Texts {
    let merges = || renderer.wants_system_first();
    let messages = blocks::messages(body, merges)?;
    let tools = tools::of_request(body, renderer.settings())?;
    let mut chat: Object = SHARED
        .into_iter()
        .filter_map(|name| Some((name.into(), body.get_some(name)?.clone())))
        .collect();
    chat.set("messages", Json::List(messages));
    if let Some(effort) = effort(body, renderer)? {
        chat.set("reasoning_effort", effort.as_str().into());
    }
    chat::render(Conversation::new(&chat, tools), renderer)
}

/// The effort that the template hears: that of `output_config`, unless thinking is off.
fn effort(body: &Object, renderer: &Renderer) -> Result<Option<String>, PromptError> {
    let object = |name: &str| match body.get_some(name) {
        None => Ok(None),
        Some(Json::Object(object)) => Ok(Some(object)),
        Some(_) => Err(PromptError::bad(name, "is not an object")),
    };
    let asked = match object("output_config")? {
        None => None,
        Some(config) => optional_str(config, "effort")?,
    };
    if asked.is_some_and(|effort| !ANTHROPIC_EFFORTS.contains(&effort)) {
        let reason = "is not an effort that Anthropic knows";
        return Err(PromptError::bad("output_config.effort", reason));
    }
    let thinking = match object("thinking")? {
        None => return Ok(asked.map(str::to_owned)),
        Some(thinking) => thinking.get("type").and_then(Json::as_str),
    };
    match thinking {
        Some("enabled" | "adaptive") => Ok(asked.map(str::to_owned)),
        Some("disabled") => Ok(Some(disabled(renderer))),
        _ => Err(PromptError::bad(
            "thinking.type",
            "is not one that vLLM knows",
        )),
    }
}

/// What "do not think" is to a template: the server's word for it, or "none" if the template
/// heeds that, else "low" (`DisabledThinkingEffortResolver`).
fn disabled(renderer: &Renderer) -> String {
    let told = &renderer.settings().anthropic_disabled_thinking_effort;
    match told.as_deref().filter(|word| EFFORTS.contains(word)) {
        Some(word) => word.to_owned(),
        None => renderer
            .quietest_effort(|effort| hi(effort, renderer))
            .to_owned(),
    }
}

/// A greeting, rendered with an effort.
fn hi(effort: &str, renderer: &Renderer) -> Option<Vec<PromptText>> {
    let greeting = Object::from([("role", "user".into()), ("content", "Hi".into())]);
    let chat = Object::from([
        ("messages", Json::List(vec![Json::Object(greeting)])),
        ("reasoning_effort", effort.into()),
    ]);
    let rendered = chat::render(Conversation::new(&chat, None), renderer);
    rendered.ok().map(|(texts, _)| texts)
}

//! `/v1/responses`: input items and their tools, as a chat (`openai/responses/{protocol,utils}.py`,
//! vLLM 0.33).
//!
//! Models that speak Harmony (gpt-oss) have a rendering of their own, which is not followed.

use super::PromptError;
use super::chat::{self, Conversation, Texts};
use super::fields::optional_str;
use super::json::{Json, Object};
use super::template::Renderer;

mod items;
mod tools;

/// Fields that mean the same in a chat.
const SHARED: [&str; 5] = [
    "chat_template_kwargs",
    "kv_transfer_params",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "echo",
];

/// The one prompt of a request.
///
/// vLLM takes no word of `add_special_tokens` here and so adds them, unlike in a chat
/// (`ResponsesRequest.build_tok_params`).
pub fn texts(body: &Object, renderer: &Renderer) -> Texts {
    if body.get_some("previous_response_id").is_some() {
        return Err(PromptError::ServerState("previous_response_id"));
    }
    if body.get_some("prompt").is_some() {
        return Err(PromptError::bad("prompt", "is a template of OpenAI's"));
    }
    let settings = renderer.settings();
    let tools = tools::of_request(body, settings.exclude_tools_when_tool_choice_none)?;
    let chat = chat_of(body)?;
    let conversation = Conversation {
        checked: false,
        add_special_tokens: true,
        ..Conversation::new(&chat, tools)
    };
    chat::render(conversation, renderer)
}

/// The request as the fields of a chat.
fn chat_of(body: &Object) -> Result<Object, PromptError> {
    let input = items::read(body)?;
    let mut chat: Object = SHARED
        .into_iter()
        .filter_map(|name| Some((name.into(), body.get_some(name)?.clone())))
        .collect();
    chat.set("messages", Json::List(input.messages));
    chat.set("add_generation_prompt", Json::Bool(!input.continues));
    chat.set("continue_final_message", Json::Bool(input.continues));
    match body.get_some("reasoning") {
        None => {}
        Some(Json::Object(reasoning)) => {
            let effort = optional_str(reasoning, "effort")?;
            chat.set("reasoning_effort", effort.map_or(Json::Null, Json::from));
        }
        Some(_) => return Err(PromptError::bad("reasoning", "is not an object")),
    }
    Ok(chat)
}

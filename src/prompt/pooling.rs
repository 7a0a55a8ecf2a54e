//! `/v1/embeddings`, `/classify` and `/pooling`: texts, tokens or chats of which the engine makes
//! vectors or classes (`entrypoints/pooling/{base,embed}/protocol.py`, vLLM 0.33).

use super::chat::{self, Conversation, Texts};
use super::completion;
use super::fields::flag;
use super::json::{Json, Object};
use super::template::Renderer;
use super::{Api, PromptError};

/// Fields that mean the same in a chat.
const SHARED: [&str; 7] = [
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "media_io_kwargs",
];

/// The prompts of a request, one engine request each.
pub fn texts(body: &Object, renderer: &Renderer) -> Texts {
    if body.get("normalize").is_some() {
        return Err(PromptError::bad("normalize", "is not known any more"));
    }
    if body.get_some("padding").and_then(Json::as_str) == Some("max_length") {
        return Err(PromptError::Unsupported {
            field: "padding".to_owned(),
            what: "padded prompts",
        });
    }
    let input = body.get_some("input");
    let said = body
        .get_some("messages")
        .or(input.filter(|input| is_said(input)));
    let Some(said) = said else {
        if body.get("data").is_some() && input.is_none() {
            return Err(PromptError::Unsupported {
                field: "data".to_owned(),
                what: "plugins' prompts",
            });
        }
        let add_special_tokens = flag(body, "add_special_tokens", true)?;
        return Ok((
            completion::prompts("input", input, add_special_tokens)?,
            true,
        ));
    };
    let said = said
        .as_list()
        .ok_or_else(|| PromptError::bad("messages", "is not a list"))?;
    if !matches!(said.first(), Some(Json::List(_))) {
        return one(body, said, renderer);
    }
    let mut texts = Vec::with_capacity(said.len());
    for said in said {
        let said = said
            .as_list()
            .ok_or_else(|| PromptError::bad("messages", "mixes messages and conversations"))?;
        texts.extend(one(body, said, renderer)?.0);
    }
    Ok((texts, true))
}

/// Whether an `input` is a conversation, or several.
fn is_said(input: &Json) -> bool {
    let is_message = |item: &Json| {
        item.as_object()
            .is_some_and(|item| item.get("role").and_then(Json::as_str).is_some())
    };
    let all = |items: &Json, each: &dyn Fn(&Json) -> bool| {
        items
            .as_list()
            .is_some_and(|items| !items.is_empty() && items.iter().all(each))
    };
    all(input, &is_message) || all(input, &|items| all(items, &is_message))
}

/// One conversation. The server's own arguments for templates do not count here, and nobody is
/// asked to answer.
fn one(body: &Object, messages: &[Json], renderer: &Renderer) -> Texts {
    let mut chat: Object = SHARED
        .into_iter()
        .filter_map(|name| Some((name.into(), body.get(name)?.clone())))
        .collect();
    let messages = messages.iter().cloned().map(|message| match message {
        // Only chats know the old name of `reasoning`.
        Json::Object(mut message) => {
            message.remove("reasoning_content");
            Json::Object(message)
        }
        other => other,
    });
    chat.set("messages", Json::List(messages.collect()));
    let conversation = Conversation {
        server_kwargs: false,
        add_generation_prompt: false,
        ..Conversation::new(&chat, None)
    };
    chat::render(conversation, renderer)
}

/// Whether the engine reads its cache: for one vector or class it does, for one a token it must
/// compute them all (`PoolingParams`). A task that is not named is the model's own; there the
/// events tell, since vLLM caches nothing where a model could not use it.
pub fn reads_cache(body: &Object, api: Api) -> bool {
    let task = body.get_some("task").and_then(Json::as_str);
    let by_token = matches!(task, Some("token_embed" | "token_classify" | "plugin"));
    let late = body.get_some("late_chunking_params").is_some();
    !(by_token && api == Api::Pooling || late && api == Api::Embeddings)
}

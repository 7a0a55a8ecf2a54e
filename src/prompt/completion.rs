//! `/v1/completions`: the prompt as it came.

use super::fields::{flag, token_ids};
use super::json::{Json, Object};
use super::{PromptError, PromptText};

/// The prompts of a request, one engine request each (`CompletionRequest`, vLLM 0.33).
pub fn texts(body: &Object) -> Result<Vec<PromptText>, PromptError> {
    if body.get_some("prompt_embeds").is_some() {
        let field = "prompt_embeds".to_owned();
        return Err(PromptError::Unsupported {
            field,
            what: "embeddings",
        });
    }
    if body.get_some("suffix").is_some() {
        return Err(PromptError::bad(
            "suffix",
            "needs a model that fills in the middle",
        ));
    }
    let add_special_tokens = flag(body, "add_special_tokens", true)?;
    prompts("prompt", body.get_some("prompt"), add_special_tokens)
}

/// Texts or tokens, one or several (`prompt_to_seq`).
pub fn prompts(
    field: &'static str,
    given: Option<&Json>,
    add_special_tokens: bool,
) -> Result<Vec<PromptText>, PromptError> {
    let bad = |reason| PromptError::bad(field, reason);
    let text = |text: &str| PromptText::Text {
        text: text.to_owned(),
        add_special_tokens,
        whole: true,
    };
    let ids = |items: &[Json]| {
        let ids = token_ids(items).ok_or_else(|| bad("has an item that is no token id"));
        ids.map(PromptText::Ids)
    };
    let items = match given {
        None => return Err(bad("is missing")),
        Some(Json::Str(prompt)) if prompt.is_empty() => return Err(bad("is empty")),
        Some(Json::Str(prompt)) => return Ok(vec![text(prompt)]),
        Some(Json::List(items)) => items,
        Some(_) => return Err(bad("is neither text nor tokens")),
    };
    let each = |item: &Json| match item {
        Json::Str(prompt) => Ok(text(prompt)),
        Json::List(tokens) => ids(tokens),
        _ => Err(bad("mixes kinds of prompts")),
    };
    match items.as_slice() {
        [] => Err(bad("is an empty list")),
        [first @ (Json::Str(_) | Json::List(_)), ..] => {
            if items.iter().any(|item| item.kind() != first.kind()) {
                return Err(bad("mixes kinds of prompts"));
            }
            items.iter().map(each).collect()
        }
        tokens => Ok(vec![ids(tokens)?]),
    }
}

//! `/v1/completions`: the prompt as it came.

use super::fields::{flag, lax_int};
use super::json::{Json, Object};
use super::{PromptError, PromptText, TokenId};

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
    let text = |text: &str| PromptText::Text {
        text: text.to_owned(),
        add_special_tokens,
        whole: true,
    };
    match body.get_some("prompt") {
        None => Err(PromptError::bad("prompt", "is missing")),
        Some(Json::Str(prompt)) if prompt.is_empty() => Err(PromptError::bad("prompt", "is empty")),
        Some(Json::Str(prompt)) => Ok(vec![text(prompt)]),
        Some(Json::List(items)) => batch(items, text),
        Some(_) => Err(PromptError::bad("prompt", "is neither text nor tokens")),
    }
}

fn batch(
    items: &[Json],
    text: impl Fn(&str) -> PromptText,
) -> Result<Vec<PromptText>, PromptError> {
    let each = |item: &Json| match item {
        Json::Str(prompt) => Ok(text(prompt)),
        Json::List(tokens) => Ok(PromptText::Ids(ids(tokens)?)),
        _ => Err(PromptError::bad("prompt", "mixes kinds of prompts")),
    };
    match items {
        [] => Err(PromptError::bad("prompt", "is an empty list")),
        [first @ (Json::Str(_) | Json::List(_)), ..] => {
            if items.iter().any(|item| item.kind() != first.kind()) {
                return Err(PromptError::bad("prompt", "mixes kinds of prompts"));
            }
            items.iter().map(each).collect()
        }
        tokens => Ok(vec![PromptText::Ids(ids(tokens)?)]),
    }
}

/// Token ids: pydantic takes `true` for 1 and `1.0` for 1, but no negative number.
fn ids(items: &[Json]) -> Result<Vec<TokenId>, PromptError> {
    items
        .iter()
        .map(|item| match item {
            Json::Str(_) => None,
            number => TokenId::try_from(lax_int(number)?).ok(),
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| PromptError::bad("prompt", "has an item that is no token id"))
}

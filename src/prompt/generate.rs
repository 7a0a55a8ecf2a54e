//! `/inference/v1/generate`: tokens in, tokens out (`scale_out/token_in_token_out/protocol.py`,
//! vLLM 0.33). What a render server made of a chat comes this way.

use super::chat::Texts;
use super::fields::{lax_bool, token_ids};
use super::json::{Json, Object};
use super::{PromptError, PromptText};

/// The one prompt of a request, up to its first medium: `features` say where that is.
pub fn texts(body: &Object) -> Texts {
    let given = body.get("token_ids").and_then(Json::as_list);
    let mut ids = given
        .filter(|ids| !ids.is_empty())
        .and_then(token_ids)
        .ok_or_else(|| PromptError::bad("token_ids", "is not a list of token ids"))?;
    if body.get_some("content_parts").is_some_and(Json::is_truthy) {
        return Err(PromptError::Unsupported {
            field: "content_parts".to_owned(),
            what: "media without their places",
        });
    }
    if let Some(features) = body.get_some("features") {
        let first = first_medium(features)
            .ok_or_else(|| PromptError::bad("features", "does not say where the media are"))?;
        ids.truncate(first);
    }
    Ok((vec![PromptText::Ids(ids)], false))
}

/// Tokens before the first medium of a rendered prompt; its length or more if there is none.
fn first_medium(features: &Json) -> Option<usize> {
    let mut first = usize::MAX;
    let places = features.as_object()?.get("mm_placeholders")?.as_object()?;
    for (_, places) in places.iter() {
        for place in places.as_list()? {
            let Json::Int(offset) = place.as_object()?.get("offset")? else {
                return None;
            };
            first = first.min(usize::try_from(*offset).ok()?);
        }
    }
    Some(first)
}

/// `sampling_params`, which may be absent.
pub fn sampling(body: &Object) -> Option<&Object> {
    body.get_some("sampling_params")?.as_object()
}

/// Whether the engine may read its cache: the client may say so itself; otherwise not where it
/// wants to know how likely its prompt is (`SamplingParams.__post_init__`).
pub fn reads_cache(body: &Object) -> bool {
    let Some(params) = sampling(body) else {
        return true;
    };
    match params.get_some("skip_reading_prefix_cache") {
        Some(skips) => !lax_bool(skips).unwrap_or(false),
        None => ["prompt_logprobs", "prompt_logprob_token_ids"]
            .iter()
            .all(|name| params.get_some(name).is_none()),
    }
}

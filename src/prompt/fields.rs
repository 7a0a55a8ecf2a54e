//! Fields that several APIs share, read as pydantic reads them: a number for a flag, a string for a
//! number, where that is not ambiguous.

use super::json::{Json, Object};
use super::{Api, PromptError, Side, TokenId, Truncation, generate, pooling};

/// Characters of a `cache_salt` (`entrypoints/generate/base/protocol.py`, vLLM 0.32).
const SALT_CHARS_MAX: usize = 128;

/// A `bool` field: pydantic's lax reading.
pub fn flag(body: &Object, name: &str, default: bool) -> Result<bool, PromptError> {
    match body.get(name) {
        None => Ok(default),
        // Only `stream` and `echo` of completions are optional; both are false without.
        Some(Json::Null) if matches!(name, "stream" | "echo") => Ok(default),
        Some(value) => lax_bool(value).ok_or_else(|| PromptError::bad(name, "is not a boolean")),
    }
}

/// Pydantic's `bool`.
pub fn lax_bool(value: &Json) -> Option<bool> {
    match value {
        Json::Bool(yes) => Some(*yes),
        Json::Int(0) => Some(false),
        Json::Int(1) => Some(true),
        Json::Float(number) if *number == 0.0 => Some(false),
        Json::Float(number) if *number == 1.0 => Some(true),
        Json::Str(text) => match text.to_ascii_lowercase().as_str() {
            "0" | "off" | "f" | "false" | "n" | "no" => Some(false),
            "1" | "on" | "t" | "true" | "y" | "yes" => Some(true),
            _ => None,
        },
        _ => None,
    }
}

/// Pydantic's `int`, as far as 64 bits go.
pub fn lax_int(value: &Json) -> Option<i64> {
    match value {
        Json::Int(number) => Some(*number),
        Json::Bool(yes) => Some(i64::from(*yes)),
        // Beyond 2^53 floats are no exact integers; no count of tokens comes near.
        Json::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
        Json::Str(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// Token ids: pydantic takes `true` for 1 and `1.0` for 1, but no negative number.
pub fn token_ids(items: &[Json]) -> Option<Vec<TokenId>> {
    let id = |item: &Json| match item {
        Json::Str(_) => None,
        number => TokenId::try_from(lax_int(number)?).ok(),
    };
    items.iter().map(id).collect()
}

/// A field that is a string or nothing.
pub fn optional_str<'a>(body: &'a Object, name: &str) -> Result<Option<&'a str>, PromptError> {
    match body.get_some(name) {
        None => Ok(None),
        Some(Json::Str(text)) => Ok(Some(text)),
        Some(_) => Err(PromptError::bad(name, "is not a string")),
    }
}

/// `cache_salt`, as vLLM validates it.
pub fn cache_salt(body: &Object) -> Result<Option<String>, PromptError> {
    let Some(salt) = optional_str(body, "cache_salt")? else {
        return Ok(None);
    };
    let forbidden = |c: char| matches!(c, '@' | '/' | '\\' | '\0');
    if salt.is_empty() || salt.chars().count() > SALT_CHARS_MAX || salt.contains(forbidden) {
        return Err(PromptError::bad(
            "cache_salt",
            "is not a salt that vLLM takes",
        ));
    }
    Ok(Some(salt.to_owned()))
}

/// Whether the engine may serve the prompt from its cache; not where it must score the prompt
/// itself: `prompt_logprobs`, or `echo` with the log probabilities it defaults to
/// (`to_sampling_params`; a chat's `top_logprobs` is 0 where it is absent). A beam search passes
/// neither on.
pub fn reads_cache(body: &Object, api: Api) -> Result<bool, PromptError> {
    let of_echo = match api {
        Api::Chat | Api::ChatBatch => body.get("top_logprobs") != Some(&Json::Null),
        Api::Completions => body.get_some("logprobs").is_some(),
        Api::Responses | Api::Messages => return Ok(true),
        Api::Embeddings | Api::Classify | Api::Pooling => {
            return Ok(pooling::reads_cache(body, api));
        }
        Api::Generate => return Ok(generate::reads_cache(body)),
    };
    let asked = body.get_some("prompt_logprobs").is_some();
    let scores = asked || (of_echo && flag(body, "echo", false)?);
    Ok(!scores || flag(body, "use_beam_search", false)?)
}

/// How much of a prompt the engine keeps: `truncate_prompt_tokens` and `truncation_side`
/// (`renderers/params.py`), or `truncation` of the Responses API.
pub fn truncation(
    body: &Object,
    api: Api,
    max_model_len: Option<usize>,
) -> Result<Option<Truncation>, PromptError> {
    match api {
        Api::Messages | Api::Generate => Ok(None),
        Api::Responses => automatic_truncation(body, max_model_len),
        _ => asked_truncation(body, api, max_model_len),
    }
}

/// "auto" keeps what the model's context takes, less one token for the answer.
fn automatic_truncation(
    body: &Object,
    max_model_len: Option<usize>,
) -> Result<Option<Truncation>, PromptError> {
    let truncates = match body.get("truncation") {
        None => false,
        Some(Json::Null) => true,
        Some(word) => match word.as_str() {
            Some("auto") => true,
            Some("disabled") => false,
            _ => {
                return Err(PromptError::bad(
                    "truncation",
                    "is neither auto nor disabled",
                ));
            }
        },
    };
    let reserved = usize::from(reserves_output(body, Api::Responses));
    Ok(max_model_len.filter(|_| truncates).map(|len| Truncation {
        keep_tokens: len.saturating_sub(reserved),
        side: Side::Left,
    }))
}

/// -1 means all that the model's context takes, less one for the answer.
fn asked_truncation(
    body: &Object,
    api: Api,
    max_model_len: Option<usize>,
) -> Result<Option<Truncation>, PromptError> {
    let side = match optional_str(body, "truncation_side")? {
        None if api.pools() => Side::Right,
        None | Some("left") => Side::Left,
        Some("right") => Side::Right,
        Some(_) => {
            return Err(PromptError::bad(
                "truncation_side",
                "is neither left nor right",
            ));
        }
    };
    let Some(value) = body.get_some("truncate_prompt_tokens") else {
        return Ok(None);
    };
    let bad = || PromptError::bad("truncate_prompt_tokens", "is not an integer from -1 on");
    let keep = match lax_int(value).ok_or_else(bad)? {
        -1 => max_model_len.map(|len| len.saturating_sub(usize::from(reserves_output(body, api)))),
        number => Some(usize::try_from(number).map_err(|_| bad())?),
    };
    if let (Some(keep), Some(len)) = (keep, max_model_len)
        && keep > len
    {
        return Err(PromptError::bad(
            "truncate_prompt_tokens",
            "is beyond the model's context",
        ));
    }
    Ok(keep.map(|keep_tokens| Truncation { keep_tokens, side }))
}

/// Whether a token of the context is kept for the answer: not where none is wanted. In 0.32 a
/// chat without a limit kept none either.
fn reserves_output(body: &Object, api: Api) -> bool {
    let bound = |name| body.get_some(name).and_then(lax_int);
    let bound = match api {
        Api::Chat | Api::ChatBatch => {
            bound("max_completion_tokens").or_else(|| bound("max_tokens"))
        }
        Api::Completions => bound("max_tokens"),
        Api::Responses => bound("max_output_tokens"),
        _ => Some(0),
    };
    bound != Some(0)
}

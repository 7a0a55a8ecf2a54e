//! What a message says: strings and lists of parts, in the one format that the template wants
//! (`renderers/chat_utils.py`, vLLM 0.32).

use std::sync::Arc;

use super::super::PromptError;
use super::super::json::{Json, Object};
use super::super::template::ContentFormat;

/// The line that Claude Code puts first, different each time; vLLM drops it.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// Types and keys of parts that are not text.
const MEDIA: [&str; 11] = [
    "image_url",
    "input_image",
    "image_pil",
    "image_embeds",
    "input_audio",
    "audio_url",
    "audio_embeds",
    "video_url",
    "video_embeds",
    "prompt_embeds",
    "file",
];

/// Fields of parts that vLLM knows; only others reach a template with the text.
const PART_FIELDS: [&str; 17] = [
    "type",
    "text",
    "thinking",
    "closed",
    "refusal",
    "name",
    "uuid",
    "data",
    "image_url",
    "image_pil",
    "image_embeds",
    "input_audio",
    "audio_url",
    "audio_embeds",
    "video_url",
    "video_embeds",
    "file",
];

type Part = Result<Option<Json>, PromptError>;

/// A message's content in the template's format.
pub fn normalize(
    at: usize,
    role: &str,
    message: &Object,
    format: ContentFormat,
) -> Result<Json, PromptError> {
    let bad = |reason| PromptError::bad(format!("messages[{at}].content"), reason);
    let nullable = role == "assistant" || (role == "function" && message.get("name").is_some());
    let text_part = |text: &Arc<str>| {
        Json::Object(Object::from([
            ("type", "text".into()),
            ("text", Json::Str(Arc::clone(text))),
        ]))
    };
    let lone;
    let parts: &[Json] = match message.get("content") {
        None => &[],
        Some(Json::Null) if nullable => &[],
        Some(Json::Null) => return Err(bad("is null")),
        Some(Json::Str(text)) => {
            lone = [text_part(text)];
            &lone
        }
        Some(Json::LoneSurrogate) => return Err(bad("has a lone surrogate")),
        Some(Json::List(parts)) => {
            check_parts(at, role, message, parts)?;
            parts
        }
        Some(_) => return Err(bad("is neither a string nor a list")),
    };
    let as_dicts = format == ContentFormat::Openai && role != "tool";
    let mut kept = Vec::with_capacity(parts.len());
    for (position, part) in parts.iter().enumerate() {
        let field = || format!("messages[{at}].content[{position}]");
        let part = match role {
            "system" => without_billing_header(part),
            _ => Some(part.clone()),
        };
        kept.extend(
            part.map(|part| read_part(&field, &part, as_dicts))
                .transpose()?
                .flatten(),
        );
    }
    if as_dicts {
        return Ok(Json::List(kept));
    }
    // Templates that want lists still get a tool's answer as text, empty parts and all.
    let keeps_empty = format == ContentFormat::Openai;
    let texts: Vec<&str> = kept.iter().filter_map(Json::as_str).collect();
    match texts.as_slice() {
        [_] => Ok(kept.remove(0)),
        _ => {
            let texts = texts
                .into_iter()
                .filter(|text| keeps_empty || !text.is_empty());
            Ok(Json::from(texts.collect::<Vec<_>>().join("\n").as_str()))
        }
    }
}

/// A system text without its first line, if that is the billing header; none if nothing is left.
fn without_billing_header(part: &Json) -> Option<Json> {
    let text = match part {
        Json::Object(object) => match object.get("type").and_then(Json::as_str) {
            Some("text") => object.get("text").and_then(Json::as_str),
            _ => None,
        },
        part => part.as_str(),
    };
    let Some(text) = text.filter(|text| text.starts_with(BILLING_HEADER)) else {
        return Some(part.clone());
    };
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    if rest.is_empty() {
        return None;
    }
    Some(match part {
        Json::Object(object) => {
            let mut object = object.clone();
            object.set("text", rest.into());
            Json::Object(object)
        }
        _ => rest.into(),
    })
}

/// Whether pydantic takes a list of parts. OpenAI's own message types read lists lazily and know
/// few parts; vLLM's type for any role knows more, and is preferred only where it recognises more
/// fields. So `[input_text]` from a user is refused, and `[input_text, text]` is not.
fn check_parts(at: usize, role: &str, message: &Object, parts: &[Json]) -> Result<(), PromptError> {
    let field = |position| format!("messages[{at}].content[{position}]");
    for (position, part) in parts.iter().enumerate() {
        let Json::Object(object) = part else {
            match part {
                Json::Str(_) => continue,
                _ => {
                    return Err(PromptError::bad(
                        field(position),
                        "is neither text nor an object",
                    ));
                }
            }
        };
        let kind = object.get("type").and_then(Json::as_str);
        if MEDIA
            .iter()
            .any(|media| kind == Some(media) || object.get_some(media).is_some())
        {
            let field = field(position);
            return Err(PromptError::Unsupported {
                field,
                what: "images, audio, video and embeddings",
            });
        }
    }
    let has = |part: &Json, key: &str| {
        part.as_object()
            .and_then(|part| part.get(key)?.as_str())
            .is_some()
    };
    let is_a = |part: &Json, kind: &str| {
        part.as_object().and_then(|part| part.get("type")?.as_str()) == Some(kind)
    };
    let is_text = |part: &Json, kind: &str, key: &str| is_a(part, kind) && has(part, key);
    let lazily = |part: &Json| {
        is_text(part, "text", "text")
            || (role == "assistant" && is_text(part, "refusal", "refusal"))
    };
    let recognised = |part: &Json| {
        is_text(part, "text", "text")
            || is_text(part, "refusal", "refusal")
            || is_text(part, "thinking", "thinking")
            || is_a(part, "tool_reference")
    };
    let roles = [
        "system",
        "user",
        "assistant",
        "tool",
        "developer",
        "function",
    ];
    let custom = !roles.contains(&role)
        || parts.iter().any(recognised)
        || (role == "tool" && message.get("tool_call_id").is_none())
        || ["reasoning", "reasoning_content", "task"]
            .iter()
            .any(|name| message.get(name).is_some());
    match custom || parts.iter().all(lazily) {
        true => Ok(()),
        false => {
            let reason = "has no part that an OpenAI message may have";
            Err(PromptError::bad(format!("messages[{at}].content"), reason))
        }
    }
}

/// The text of a part, as a string or as a dict; none where it is skipped.
fn read_part(field: &dyn Fn() -> String, part: &Json, as_dict: bool) -> Part {
    let bad = |reason| Err(PromptError::bad(field(), reason));
    let dict = |text: Json| Object::from([("type", "text".into()), ("text", text)]);
    let object = match part {
        Json::Str(_) if as_dict => return Ok(Some(Json::Object(dict(part.clone())))),
        Json::Str(_) => return Ok(Some(part.clone())),
        Json::Object(object) => object,
        _ => return bad("is neither text nor an object"),
    };
    let key = match object.get("type").and_then(Json::as_str) {
        Some("text" | "input_text" | "output_text") => "text",
        Some("thinking") => "thinking",
        Some("refusal") => "refusal",
        Some("tool_reference") => "name",
        _ => return bad("is of a type that vLLM does not know"),
    };
    let skips_null = matches!(
        object.get("type").and_then(Json::as_str),
        Some("text" | "refusal")
    );
    let text = match object.get_some(key) {
        Some(text @ Json::Str(_)) => text.clone(),
        None if skips_null => return Ok(None),
        _ => return bad("has no text"),
    };
    if !as_dict {
        return Ok(Some(text));
    }
    if key == "name" {
        let reference = Object::from([("type", "tool_reference".into()), ("name", text)]);
        return Ok(Some(Json::Object(reference)));
    }
    let out = dict(text).merged(object.without(&PART_FIELDS));
    Ok(Some(Json::Object(out)))
}

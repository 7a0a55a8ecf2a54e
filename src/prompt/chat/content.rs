//! What a message says: strings and lists of parts, in the one format that the template wants
//! (`renderers/chat_utils.py`, vLLM 0.32).

use std::sync::Arc;

use super::super::PromptError;
use super::super::json::{Json, Object};
use super::super::template::ContentFormat;
use super::media::{self, Media, Medium};

/// The line that Claude Code puts first, different each time; vLLM drops it.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

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

type Part = Result<Option<Read>, PromptError>;

/// What a part becomes.
enum Read {
    Text(Json),
    /// Something that is not text, as a list of parts shows it.
    Medium(Json),
    /// The same, as text that ends what is known.
    Mark(Json),
}

/// A message's content in the template's format. `checked` contents must be of OpenAI's types;
/// those that the server made itself were checked before.
pub fn normalize(
    at: usize,
    role: &str,
    message: &Object,
    (format, checked): (ContentFormat, bool),
    media: &mut Media,
) -> Result<Json, PromptError> {
    // What most messages are, without the way through a list of parts.
    if let Some(text @ Json::Str(_)) = message.get("content")
        && format != ContentFormat::Openai
        && role != "system"
    {
        return Ok(text.clone());
    }
    let lone;
    let parts: &[Json] = match (message.get("content"), checked) {
        (Some(Json::Str(text)), _) => {
            // As a part of its own: a bare string reads as a text part does.
            lone = [Json::Str(Arc::clone(text))];
            &lone
        }
        (Some(Json::List(parts)), true) => {
            check_parts(at, role, message, parts)?;
            parts
        }
        (Some(Json::List(parts)), false) => parts,
        (other, _) => nothing(at, role, message, other)?,
    };
    let as_dicts = format == ContentFormat::Openai;
    let mut kept = Vec::with_capacity(parts.len());
    let mut in_front = false;
    for (position, part) in parts.iter().enumerate() {
        let field = || format!("messages[{at}].content[{position}]");
        let part = match role {
            "system" => without_billing_header(part),
            _ => Some(part.clone()),
        };
        let read = part.map(|part| read_part(&field, &part, as_dicts));
        match read.transpose()?.flatten() {
            None => {}
            Some(Read::Text(text)) => kept.push(text),
            Some(Read::Mark(text)) => {
                media.marked();
                kept.push(text);
            }
            Some(Read::Medium(dict)) if as_dicts => {
                media.found(at, Some(kept.len()));
                kept.push(dict);
            }
            Some(Read::Medium(_)) => in_front = true,
        }
    }
    if in_front {
        media.found(at, None);
    }
    // Templates that want lists still get a tool's texts as one.
    match (as_dicts, role) {
        (true, "tool") if kept.iter().all(is_text_part) => {
            Ok(joined(kept.iter().filter_map(|part| {
                part.as_object()?.get("text")?.as_str()
            })))
        }
        (true, _) => Ok(Json::List(kept)),
        (false, _) if kept.len() == 1 => Ok(kept.remove(0)),
        (false, _) => Ok(joined(
            kept.iter()
                .filter_map(Json::as_str)
                .filter(|text| !text.is_empty()),
        )),
    }
}

/// A content that is neither text nor a list.
fn nothing<'a>(
    at: usize,
    role: &str,
    message: &Object,
    content: Option<&Json>,
) -> Result<&'a [Json], PromptError> {
    let nullable = role == "assistant" || (role == "function" && message.get("name").is_some());
    let reason = match content {
        None => return Ok(&[]),
        Some(Json::Null) if nullable => return Ok(&[]),
        Some(Json::Null) => "is null",
        Some(Json::LoneSurrogate) => "has a lone surrogate",
        Some(_) => "is neither a string nor a list",
    };
    Err(PromptError::bad(format!("messages[{at}].content"), reason))
}

fn is_text_part(part: &Json) -> bool {
    let kind = part.as_object().and_then(|part| part.get("type")?.as_str());
    kind == Some("text")
}

fn joined<'a>(texts: impl Iterator<Item = &'a str>) -> Json {
    Json::from(texts.collect::<Vec<_>>().join("\n").as_str())
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

/// Roles whose messages may hold parts, of OpenAI's types.
const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "developer"];

/// Whether a message has a field that vLLM's type for any role knows and OpenAI's for this role
/// does not, or lacks one that OpenAI's must have.
fn is_custom(role: &str, message: &Object) -> bool {
    let has = |name| message.get(name).is_some();
    let calls = match message.get("tool_calls") {
        None => false,
        // OpenAI's reads its calls lazily, so it recognises none of their fields.
        Some(Json::List(calls)) => role != "assistant" || !calls.is_empty(),
        Some(_) => true,
    };
    let of_role = match role {
        "tool" => {
            let name = message.get("name").and_then(Json::as_str);
            message.get_some("tool_call_id").is_none() || name.is_some()
        }
        _ => !ROLES.contains(&role) || has("tool_call_id"),
    };
    // `reasoning_content` is renamed before, if it says anything.
    let reasons = has("reasoning") || message.get_some("reasoning_content").is_some();
    calls || of_role || reasons || has("tools") || has("task")
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
        // What pydantic says of media is left to it: they end what is known.
        if media::is_medium(object) {
            return Ok(());
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
    let custom = parts.iter().any(recognised) || is_custom(role, message);
    match custom || parts.iter().all(lazily) {
        true => Ok(()),
        false => {
            let reason = "has no part that an OpenAI message may have";
            Err(PromptError::bad(format!("messages[{at}].content"), reason))
        }
    }
}

/// A part, as a string or as a dict; none where it is skipped.
fn read_part(field: &dyn Fn() -> String, part: &Json, as_dict: bool) -> Part {
    let bad = |reason| Err(PromptError::bad(field(), reason));
    let text = |text: Json| match as_dict {
        true => Json::Object(text_dict(text)),
        false => text,
    };
    let object = match part {
        Json::Str(_) => return Ok(Some(Read::Text(text(part.clone())))),
        Json::Object(object) => object,
        _ => return bad("is neither text nor an object"),
    };
    let medium = media::read(object, &PART_FIELDS).map_err(|what| PromptError::Unsupported {
        field: field(),
        what,
    })?;
    match medium {
        Some(Medium::Part(dict)) => return Ok(Some(Read::Medium(Json::Object(dict)))),
        Some(Medium::Mark(mark)) => return Ok(Some(Read::Mark(text(mark.into())))),
        None => {}
    }
    let kind = object.get("type").and_then(Json::as_str);
    let key = match kind {
        Some("text" | "input_text" | "output_text") => "text",
        Some("thinking") => "thinking",
        Some("refusal") => "refusal",
        Some("tool_reference") => "name",
        _ => return bad("is of a type that vLLM does not know"),
    };
    let said = match object.get_some(key) {
        Some(said @ Json::Str(_)) => said.clone(),
        None if matches!(kind, Some("text" | "refusal")) => return Ok(None),
        _ => return bad("has no text"),
    };
    let read = match (as_dict, key) {
        (false, _) => said,
        (true, "name") => {
            let reference = Object::from([("type", "tool_reference".into()), ("name", said)]);
            Json::Object(reference)
        }
        (true, _) => Json::Object(text_dict(said).merged(object.without(&PART_FIELDS))),
    };
    Ok(Some(Read::Text(read)))
}

fn text_dict(text: Json) -> Object {
    Object::from([("type", "text".into()), ("text", text)])
}

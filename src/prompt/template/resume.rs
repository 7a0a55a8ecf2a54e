//! `continue_final_message`: a rendering that stops in the middle of the last message, found by a
//! tag, as transformers does (`render_jinja_template`).

use super::text;
use crate::prompt::PromptError;
use crate::prompt::json::{Json, Object};

/// What transformers appends to a message that is to be continued.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Appends the tag to the last content, and returns that content as it was.
pub fn mark(messages: &mut [Object], source: &str) -> Result<String, PromptError> {
    let refuse = |reason| PromptError::bad("continue_final_message", reason);
    if !source.contains("content") {
        return Err(refuse("the template prints no content"));
    }
    let last = messages
        .last_mut()
        .ok_or_else(|| refuse("there is no message"))?;
    let marked = |text: &str| Json::from(format!("{text}{CONTINUE_TAG}").as_str());
    match last.get("content").cloned() {
        Some(Json::Str(text)) => {
            last.set("content", marked(&text));
            Ok(text.to_string())
        }
        Some(Json::List(mut parts)) => {
            let texts = parts.iter_mut().rev().filter_map(|part| match part {
                Json::Object(part) => part
                    .get("text")?
                    .as_str()
                    .map(str::to_owned)
                    .map(|t| (t, part)),
                _ => None,
            });
            let (text, part) = { texts }
                .next()
                .ok_or_else(|| refuse("the last message has no text"))?;
            part.set("text", marked(&text));
            last.set("content", Json::List(parts));
            Ok(text)
        }
        _ => Err(refuse("the last message has no text")),
    }
}

/// What stands before the last tag; the template may have trimmed the tag's space away.
pub fn cut(rendered: &str, last: &str) -> Result<String, PromptError> {
    let tag = CONTINUE_TAG.trim_end();
    match rendered.rfind(tag) {
        Some(at) if rendered.contains(text::strip(last, None)) => {
            let before = &rendered[..at];
            Ok(match rendered[at..].starts_with(CONTINUE_TAG) {
                true => before.to_owned(),
                false => text::strip_end(before, None).to_owned(),
            })
        }
        _ => Err(PromptError::bad(
            "continue_final_message",
            "the template drops the last message",
        )),
    }
}

//! Messages of content blocks → messages of a chat (`_convert_system_message`,
//! `_convert_messages`).

use std::sync::Arc;

use crate::prompt::PromptError;
use crate::prompt::json::{Json, Object};

/// The text that Claude Code puts first, different each time; vLLM drops it.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// Types of blocks that vLLM takes.
const KINDS: [&str; 9] = [
    "text",
    "image",
    "tool_use",
    "tool_result",
    "tool_reference",
    "thinking",
    "redacted_thinking",
    "tool_addition",
    "tool_removal",
];

/// The conversation. `merges` says whether what the system says later belongs to the front.
pub fn messages(body: &Object, merges: impl FnOnce() -> bool) -> Result<Vec<Json>, PromptError> {
    let given = body
        .get("messages")
        .and_then(Json::as_list)
        .ok_or_else(|| PromptError::bad("messages", "is not a list"))?;
    let given = given
        .iter()
        .enumerate()
        .map(|(at, message)| Said::read(&format!("messages[{at}]"), message))
        .collect::<Result<Vec<_>, _>>()?;
    let late = given.iter().any(|said| said.role == "system");
    let merges = late && merges();
    let mut front = match body.get_some("system") {
        None => String::new(),
        Some(system) => system_text(&Content::read("system", Some(system))?, false),
    };
    if merges {
        let system = given.iter().filter(|said| said.role == "system");
        front.extend(system.map(|said| system_text(&said.content, true)));
    }
    let mut out = Vec::with_capacity(given.len() + 1);
    if !front.is_empty() {
        out.push(message("system", &front));
    }
    for (at, said) in given.iter().enumerate() {
        match said.role {
            "system" if merges => {}
            "system" => {
                let text = system_text(&said.content, true);
                out.extend((!text.is_empty()).then(|| message("system", &text)));
            }
            _ => said.convert(&format!("messages[{at}]"), &mut out)?,
        }
    }
    Ok(out)
}

fn message(role: &str, text: &str) -> Json {
    Json::Object(Object::from([
        ("role", role.into()),
        ("content", text.into()),
    ]))
}

/// One of Anthropic's messages.
struct Said<'a> {
    role: &'a str,
    content: Content<'a>,
}

enum Content<'a> {
    Text(&'a Arc<str>),
    Blocks(Vec<&'a Object>),
}

impl<'a> Content<'a> {
    fn read(field: &str, content: Option<&'a Json>) -> Result<Self, PromptError> {
        let bad = |reason| PromptError::bad(format!("{field}.content"), reason);
        match content {
            Some(Json::Str(text)) => Ok(Self::Text(text)),
            Some(Json::List(blocks)) => {
                let is_known = |block: &&Object| {
                    let kind = block.get("type").and_then(Json::as_str);
                    kind.is_some_and(|kind| KINDS.contains(&kind))
                };
                let blocks = blocks.iter().map(|b| b.as_object().filter(is_known));
                let blocks = blocks.collect::<Option<_>>();
                Ok(Self::Blocks(blocks.ok_or_else(|| {
                    bad("has a block that vLLM does not know")
                })?))
            }
            _ => Err(bad("is neither a string nor a list of blocks")),
        }
    }
}

/// What the system says, without the billing header. At the top of a request vLLM drops the
/// header only where it is a block of its own.
fn system_text(content: &Content<'_>, drops_text: bool) -> String {
    match content {
        Content::Text(text) if drops_text && text.starts_with(BILLING_HEADER) => String::new(),
        Content::Text(text) => text.to_string(),
        Content::Blocks(blocks) => blocks
            .iter()
            .filter(|block| kind(block) == "text")
            .filter_map(|block| block.get("text")?.as_str())
            .filter(|text| !text.starts_with(BILLING_HEADER))
            .collect(),
    }
}

fn kind(block: &Object) -> &str {
    block.get("type").and_then(Json::as_str).unwrap_or("")
}

impl<'a> Said<'a> {
    fn read(field: &str, message: &'a Json) -> Result<Self, PromptError> {
        let bad = |reason| PromptError::bad(field, reason);
        let message = message.as_object().ok_or_else(|| bad("is not an object"))?;
        let role = match message.get("role").and_then(Json::as_str) {
            Some(role @ ("user" | "assistant" | "system")) => role,
            _ => return Err(bad("has no role that Anthropic knows")),
        };
        let content = Content::read(field, message.get("content"))?;
        Ok(Self { role, content })
    }

    /// Appends what this becomes: results of tools and their images first, then the rest.
    fn convert(&self, field: &str, out: &mut Vec<Json>) -> Result<(), PromptError> {
        let blocks = match &self.content {
            Content::Text(text) => {
                out.push(message(self.role, text));
                return Ok(());
            }
            Content::Blocks(blocks) => blocks,
        };
        let mut parts = Parts::default();
        for (at, block) in blocks.iter().enumerate() {
            let bad = |reason| PromptError::bad(format!("{field}.content[{at}]"), reason);
            match kind(block) {
                "tool_addition" | "tool_removal" => {
                    return Err(bad("is only for messages of the system"));
                }
                "tool_result" if self.role == "user" => {
                    tool_result(block, out).map_err(bad)?;
                }
                _ => parts.take(block).map_err(bad)?,
            }
        }
        out.extend(parts.message(self.role));
        Ok(())
    }
}

/// What the blocks of one message amount to.
#[derive(Default)]
struct Parts {
    content: Vec<Json>,
    calls: Vec<Json>,
    thoughts: Option<String>,
}

impl Parts {
    fn take(&mut self, block: &Object) -> Result<(), &'static str> {
        let text = |name: &str| match block.get_some(name) {
            None => Ok(None),
            Some(text @ Json::Str(_)) => Ok(Some(text)),
            Some(_) => Err("has a text that is no string"),
        };
        match kind(block) {
            "text" => {
                let said = text("text")?.filter(|text| text.is_truthy());
                self.content.extend(said.map(text_part));
            }
            "image" => self.content.extend(image(block.get_some("source"))?),
            "thinking" => {
                if let Some(thought) = text("thinking")?.and_then(Json::as_str) {
                    self.thoughts.get_or_insert_default().push_str(thought);
                }
            }
            "tool_use" => self.calls.push(tool_use(block)?),
            "tool_result" => {
                let said = match block.get_some("content") {
                    None => "",
                    Some(Json::Str(text)) => text,
                    Some(Json::List(items)) if items.is_empty() => "",
                    // Python prints the list.
                    Some(_) => return Err("is a result of blocks from the assistant"),
                };
                let said = format!("Tool result: {said}");
                self.content.push(text_part(&Json::from(said.as_str())));
            }
            _ => {}
        }
        Ok(())
    }

    fn message(mut self, role: &str) -> Option<Json> {
        let mut message = Object::from([("role", role.into())]);
        if let Some(thoughts) = &self.thoughts {
            message.set("reasoning", thoughts.as_str().into());
        }
        if !self.calls.is_empty() {
            message.set("tool_calls", Json::List(self.calls));
        }
        let lone = match self.content.as_slice() {
            [Json::Object(part)] => part.get("text").cloned(),
            _ => None,
        };
        match lone {
            Some(text) => message.set("content", text),
            None if self.content.is_empty() && role == "user" => return None,
            None if self.content.is_empty() => {}
            None => message.set("content", Json::List(std::mem::take(&mut self.content))),
        }
        Some(Json::Object(message))
    }
}

fn text_part(text: &Json) -> Json {
    Json::Object(Object::from([
        ("type", "text".into()),
        ("text", text.clone()),
    ]))
}

/// An image as a chat has it. What it shows does not matter: the prompt is known up to it.
fn image(source: Option<&Json>) -> Result<Option<Json>, &'static str> {
    match source {
        None => Ok(None),
        Some(Json::Object(source)) if source.is_empty() => Ok(None),
        Some(Json::Object(_)) => {
            let url = Object::from([("url", "".into())]);
            Ok(Some(Json::Object(Object::from([
                ("type", "image_url".into()),
                ("image_url", Json::Object(url)),
            ]))))
        }
        Some(_) => Err("has a source that is no object"),
    }
}

fn tool_use(block: &Object) -> Result<Json, &'static str> {
    let text = |name: &str, otherwise: &'static str| match block.get_some(name) {
        Some(Json::Str(text)) if !text.is_empty() => Ok(Json::Str(Arc::clone(text))),
        None | Some(Json::Str(_)) => Ok(otherwise.into()),
        Some(_) => Err("has a name or id that is no string"),
    };
    let arguments = match block.get_some("input") {
        None => "{}".to_owned(),
        Some(input @ Json::Object(_)) => input.dumps().ok_or("has a lone surrogate")?,
        Some(_) => return Err("has an input that is no object"),
    };
    let function = Object::from([
        ("name", text("name", "")?),
        ("arguments", Json::from(arguments.as_str())),
    ]);
    // Without an id vLLM takes the time; no template that we know prints ids of calls.
    Ok(Json::Object(Object::from([
        ("id", text("id", "call_0")?),
        ("type", "function".into()),
        ("function", Json::Object(function)),
    ])))
}

/// A tool's result: its texts, then its images as a user's, then its references to tools.
fn tool_result(block: &Object, out: &mut Vec<Json>) -> Result<(), &'static str> {
    let id = match block.get_some("tool_use_id") {
        None => "".into(),
        Some(id @ Json::Str(_)) => id.clone(),
        Some(_) => return Err("has a tool_use_id that is no string"),
    };
    let of_tool = |content: Json| {
        Json::Object(Object::from([
            ("role", "tool".into()),
            ("tool_call_id", id.clone()),
            ("content", content),
        ]))
    };
    let items = match block.get_some("content") {
        None => &[][..],
        Some(Json::Str(text)) => {
            out.push(of_tool(Json::Str(Arc::clone(text))));
            return Ok(());
        }
        Some(Json::List(items)) => items,
        Some(_) => return Err("has a content that is neither text nor a list"),
    };
    let (mut texts, mut images, mut references) = (Vec::new(), Vec::new(), Vec::new());
    for item in items {
        let item = item.as_object().ok_or("has an item that is no object")?;
        match kind(item) {
            "text" => texts.push(match item.get("text") {
                None => "",
                Some(text) => text.as_str().ok_or("has a text that is no string")?,
            }),
            "image" => {
                let empty = Json::Object(Object::from([("url", "".into())]));
                images.extend(image(Some(item.get_some("source").unwrap_or(&empty)))?);
            }
            "tool_reference" => {
                let named = ["tool_name", "name"].into_iter();
                let mut named = named.filter_map(|name| item.get_some(name));
                references.extend(named.find(|name| name.is_truthy()).map(|name| {
                    Json::Object(Object::from([
                        ("type", "tool_reference".into()),
                        ("name", name.clone()),
                    ]))
                }));
            }
            _ => {}
        }
    }
    out.push(of_tool(Json::from(texts.join("\n").as_str())));
    if !images.is_empty() {
        out.push(Json::Object(Object::from([
            ("role", "user".into()),
            ("content", Json::List(images)),
        ])));
    }
    if !references.is_empty() {
        out.push(of_tool(Json::List(references)));
    }
    Ok(())
}

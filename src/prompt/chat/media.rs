//! Images and other media in a chat: what stands before the first of them is text, and known.
//!
//! A template that wants lists gets `{"type": "image"}` and prints what its model knows for an
//! image; one that wants strings finds placeholders in front of a message's text, in words that
//! only the model's own code knows (`parse_chat_message_content_parts`). So the conversation is
//! rendered with a mark in the place of the first medium, and ends there.

use super::super::PromptError;
use super::super::json::{Json, Object};

/// Stands for a medium. Of private characters: where a user types it, less of the prompt is known.
const MARK: &str = "\u{e000}kvscout:medium\u{e001}";

/// Types of parts that vLLM reads as something else than text, and the word that templates see.
const KINDS: [(&str, &str); 11] = [
    ("image_url", "image"),
    ("input_image", "image"),
    ("image_pil", "image"),
    ("image_embeds", "image"),
    ("input_audio", "audio"),
    ("audio_url", "audio"),
    ("audio_embeds", "audio"),
    ("video_url", "video"),
    ("video_embeds", "video"),
    (EMBEDDINGS, EMBEDDINGS),
    ("file", "file"),
];

/// Embeddings of a prompt are marked in place: vLLM puts its own mark there.
const EMBEDDINGS: &str = "prompt_embeds";

/// What a part is, where it is no text.
pub enum Medium {
    /// The part as a template that wants lists sees it.
    Part(Object),
    /// Text that stands for it in either format.
    Mark(&'static str),
}

/// Whether a part is, or holds, something else than text.
pub fn is_medium(part: &Object) -> bool {
    kind(part).is_some()
}

fn kind(part: &Object) -> Option<&'static str> {
    let named = part.get("type").and_then(Json::as_str);
    let of = |(name, kind): (&'static str, &'static str)| {
        (named == Some(name) || part.get_some(name).is_some()).then_some(kind)
    };
    KINDS.into_iter().find_map(of)
}

/// A part that is no text; none for one that is. vLLM knows no files.
pub fn read(part: &Object, others: &[&str]) -> Result<Option<Medium>, &'static str> {
    match kind(part) {
        None => Ok(None),
        Some("file") => Err("files"),
        Some(EMBEDDINGS) => Ok(Some(Medium::Mark(MARK))),
        Some(kind) => {
            let dict = Object::from([("type", kind.into())]);
            Ok(Some(Medium::Part(dict.merged(part.without(others)))))
        }
    }
}

/// Where a conversation holds media.
#[derive(Debug, Default)]
pub struct Media {
    /// The first: its message, and its place in a list of parts, or in front of the text.
    first: Option<(usize, Option<usize>)>,
    marked: bool,
}

impl Media {
    /// A medium is at this place.
    pub fn found(&mut self, message: usize, part: Option<usize>) {
        self.first.get_or_insert((message, part));
    }

    /// A text holds the mark already.
    pub fn marked(&mut self) {
        self.marked = true;
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.marked || self.first.is_some()
    }

    /// What is rendered before the first medium.
    ///
    /// A template may print other things before it where there are media at all, so what it
    /// prints with them must begin the same.
    pub fn before(
        &self,
        messages: Vec<Object>,
        run: impl Fn(Vec<Object>) -> Result<String, PromptError>,
    ) -> Result<String, PromptError> {
        let listed = matches!(self.first, Some((_, Some(_))));
        let real = match listed {
            true => Some(run(messages.clone())?),
            false => None,
        };
        let marked = run(self.mark(messages))?;
        let Some(end) = marked.find(MARK) else {
            return Err(PromptError::Unsupported {
                field: "messages".to_owned(),
                what: "media that the template does not print in place",
            });
        };
        let end = real.map_or(end, |real| common_prefix(&marked[..end], &real));
        Ok(marked[..end].to_owned())
    }

    fn mark(&self, mut messages: Vec<Object>) -> Vec<Object> {
        let Some((message, part)) = self.first else {
            return messages;
        };
        let message = &mut messages[message];
        match (message.get("content").cloned(), part) {
            (Some(Json::List(mut parts)), Some(part)) => {
                let text = Object::from([("type", "text".into()), ("text", MARK.into())]);
                parts[part] = Json::Object(text);
                message.set("content", Json::List(parts));
            }
            (Some(Json::Str(text)), _) => {
                message.set("content", Json::from(format!("{MARK}\n{text}").as_str()));
            }
            _ => message.set("content", MARK.into()),
        }
        messages
    }
}

/// Bytes that two texts begin with alike, whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    (0..=same)
        .rev()
        .find(|end| a.is_char_boundary(*end))
        .unwrap_or(0)
}

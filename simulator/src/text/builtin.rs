//! A tokenizer without files: a run of letters and digits with the space before it is a
//! token, so is any other character; ids are hashes.

use kvscout::blocks::TokenId;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::Unreadable;

/// About the size of a real vocabulary, so that ids take as many bytes on the wire.
const VOCABULARY: u64 = 150_000;

pub(super) fn encode(text: &str) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(piece_len(rest));
        tokens.push((xxh3_64(piece.as_bytes()) % VOCABULARY) as TokenId);
        rest = tail;
    }
    tokens
}

/// Bytes of the first piece: ` word`, `word`, or one character.
fn piece_len(text: &str) -> usize {
    let space = usize::from(text.starts_with(' '));
    let body = &text[space..];
    let word = body
        .find(|c: char| !c.is_alphanumeric())
        .unwrap_or(body.len());
    if word > 0 {
        return space + word;
    }
    text.chars().next().map_or(0, char::len_utf8)
}

/// Messages in the manner of most chat templates: role, content, end, and the beginning of
/// the assistant's turn.
pub(super) fn encode_chat(body: &Value) -> Result<Vec<TokenId>, Unreadable> {
    let messages = body["messages"]
        .as_array()
        .filter(|messages| !messages.is_empty());
    let messages =
        messages.ok_or_else(|| Unreadable("messages must be a non-empty list".into()))?;
    let mut tokens = Vec::new();
    for message in messages {
        let role = message["role"].as_str();
        let role = role.ok_or_else(|| Unreadable("every message needs a role".into()))?;
        tokens.extend(encode(&format!(
            "\u{2}{role}\n{}\u{3}\n",
            content(&message["content"])
        )));
    }
    tokens.extend(encode("\u{2}assistant\n"));
    Ok(tokens)
}

/// A message's text: a string, or the text parts of a list.
fn content(value: &Value) -> String {
    let part = |part: &Value| part["text"].as_str().unwrap_or_default().to_owned();
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(part).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_takes_the_space_before_it() {
        let joined = |pieces: &[&str]| {
            pieces
                .iter()
                .flat_map(|piece| encode(piece))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            encode("Once upon, é 9!"),
            joined(&["Once", " upon", ",", " é", " 9", "!"])
        );
        assert_eq!(encode("  a"), joined(&[" ", " a"]));
        assert!(encode("").is_empty());
    }

    #[test]
    fn a_conversation_begins_with_its_first_round() {
        let first = serde_json::json!({"messages": [{"role": "user", "content": "hi there"}]});
        let next = serde_json::json!({"messages": [
            {"role": "user", "content": "hi there"},
            {"role": "assistant", "content": "well met"},
            {"role": "user", "content": [{"type": "text", "text": "and?"}]},
        ]});
        let (first, next) = (
            encode_chat(&first).expect("fine"),
            encode_chat(&next).expect("fine"),
        );
        assert!(next.starts_with(&first));
        assert!(next[first.len()..].starts_with(&encode("well met")));
    }

    #[test]
    fn a_chat_without_messages_is_unreadable() {
        assert!(encode_chat(&serde_json::json!({})).is_err());
        assert!(encode_chat(&serde_json::json!({"messages": []})).is_err());
    }
}

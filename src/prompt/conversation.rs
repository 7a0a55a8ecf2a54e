//! What a conversation is known by, from its first request to its last, and on every replica.
//!
//! In this order: the session that a header names; `prompt_cache_key`, by which OpenAI's clients say
//! what should meet the same cache; the conversation's beginning, up to and with what the user said
//! first (system prompts alone are shared by everybody), or the first 256 bytes of a plain prompt.
//! `user` is none of them: it names a person, or the one account that all persons come by.

use xxhash_rust::xxh3::Xxh3;

use super::json::outline::{Outline, items};
use super::json::{Json, Object};

/// So much of a plain prompt stands for its conversation. A longer piece would be cut off by the
/// answers of a short first round, and change.
const PROMPT_BYTES: usize = 256;
/// The same in tokens.
const PROMPT_IDS: usize = 64;
/// Messages that are looked at for the first of a user's.
const MESSAGES_MAX: usize = 32;

/// A number for the conversation that a request belongs to; none where nothing tells it.
#[must_use]
pub fn key(session: Option<&str>, outline: Option<&Outline<'_>>) -> Option<u64> {
    let mut hash = Xxh3::new();
    if let Some(session) = session {
        hash.update(b"session");
        hash.update(session.as_bytes());
        return Some(hash.digest());
    }
    let outline = outline?;
    if let Some(Json::Str(key)) = outline.json("prompt_cache_key") {
        hash.update(b"prompt_cache_key");
        hash.update(key.as_bytes());
        return Some(hash.digest());
    }
    begin(&mut hash, outline)?;
    Some(hash.digest())
}

fn begin(hash: &mut Xxh3, outline: &Outline<'_>) -> Option<()> {
    for name in ["instructions", "system"] {
        if let Some(text) = outline.json(name) {
            feed(hash, &text);
        }
    }
    let messages = outline.get("messages").or_else(|| outline.get("input"));
    if let Some(list) = messages.filter(|list| list.starts_with(b"["))
        && first_turn(hash, list).is_some()
    {
        return Some(());
    }
    let prompt = outline.get("prompt").or_else(|| outline.get("input"))?;
    plain(hash, prompt)
}

/// Messages up to and with the user's first; none where the list holds no message.
fn first_turn(hash: &mut Xxh3, list: &[u8]) -> Option<()> {
    let mut any = None;
    for item in items(list).take(MESSAGES_MAX) {
        let Ok(Json::Object(message)) = Json::loads_bytes(item) else {
            return None;
        };
        feed_object(hash, &message);
        if message.get("role").and_then(Json::as_str) == Some("user") {
            return Some(());
        }
        any = Some(());
    }
    // No user said anything: all of it.
    any
}

/// A prompt without turns: a text, tokens, or the first of several.
fn plain(hash: &mut Xxh3, prompt: &[u8]) -> Option<()> {
    match prompt.first()? {
        b'"' => {
            let Ok(Json::Str(text)) = Json::loads_bytes(prompt) else {
                return None;
            };
            let bytes = text.as_bytes();
            hash.update(&bytes[..bytes.len().min(PROMPT_BYTES)]);
            Some(())
        }
        b'[' => {
            let first = items(prompt).next()?;
            if matches!(first.first()?, b'"' | b'[') {
                return plain(hash, first);
            }
            for id in items(prompt).take(PROMPT_IDS) {
                hash.update(id);
                hash.update(b",");
            }
            Some(())
        }
        _ => None,
    }
}

/// What a value says, however it is spaced and escaped. Without `cache_control`: Anthropic's
/// clients move that mark from turn to turn.
fn feed(hash: &mut Xxh3, value: &Json) {
    match value {
        Json::Str(text) => {
            hash.update(text.as_bytes());
            hash.update(b"\0");
        }
        Json::List(items) => items.iter().for_each(|item| feed(hash, item)),
        Json::Object(object) => feed_object(hash, object),
        Json::Int(number) => hash.update(&number.to_le_bytes()),
        Json::Float(number) => hash.update(&number.to_bits().to_le_bytes()),
        Json::Bool(yes) => hash.update(&[u8::from(*yes)]),
        Json::Null | Json::BigInt(_) | Json::LoneSurrogate => hash.update(value.kind().as_bytes()),
    }
}

fn feed_object(hash: &mut Xxh3, object: &Object) {
    for (name, value) in object
        .iter()
        .filter(|(name, _)| &***name != "cache_control")
    {
        hash.update(name.as_bytes());
        hash.update(b":");
        feed(hash, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(body: &Value) -> Option<u64> {
        let body = body.to_string();
        key(None, Outline::of(body.as_bytes()).as_ref())
    }

    fn chat(turns: &[(&str, &str)]) -> Value {
        let turns = turns
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content}));
        json!({"model": "m", "messages": turns.collect::<Vec<_>>()})
    }

    const SYSTEM: (&str, &str) = ("system", "Be brief.");

    #[test]
    fn a_conversation_keeps_its_key_as_it_grows() {
        let first = of(&chat(&[SYSTEM, ("user", "Hello")]));
        let later = [
            SYSTEM,
            ("user", "Hello"),
            ("assistant", "Hi."),
            ("user", "Why?"),
        ];
        assert!(first.is_some());
        assert_eq!(of(&chat(&later)), first);
    }

    #[test]
    fn a_system_prompt_alone_is_no_key() {
        let one = of(&chat(&[SYSTEM, ("user", "Hello")]));
        let two = of(&chat(&[SYSTEM, ("user", "Goodbye")]));
        assert!(one.is_some() && two.is_some() && one != two);
        let anthropic = |system: &str, user: &str| {
            of(&json!({"system": system, "messages": [{"role": "user", "content": user}]}))
        };
        assert_ne!(anthropic("a", "b"), anthropic("a", "c"));
        assert_ne!(anthropic("a", "b"), anthropic("c", "b"));
    }

    #[test]
    fn spaces_escapes_and_marks_for_a_cache_change_nothing() {
        let raw = |body: &str| key(None, Outline::of(body.as_bytes()).as_ref());
        let plain =
            raw(r#"{"messages":[{"role":"user","content":[{"type":"text","text":"\u00e9"}]}]}"#);
        let other = raw(
            r#"{"messages": [ {"role": "user","content": [{"type":"text","text":"é","cache_control":{"type":"ephemeral"}}]} ]}"#,
        );
        assert!(plain.is_some());
        assert_eq!(plain, other);
    }

    #[test]
    fn a_session_comes_before_a_cache_key_and_that_before_the_beginning() {
        let body = |cache: &str, user: &str| json!({"prompt_cache_key": cache, "messages": [{"role": "user", "content": user}]});
        assert_eq!(of(&body("a", "x")), of(&body("a", "y")));
        assert_ne!(of(&body("a", "x")), of(&body("b", "x")));
        let in_session = |session: &str, cache: &str| {
            let body = body(cache, "x").to_string();
            key(Some(session), Outline::of(body.as_bytes()).as_ref())
        };
        assert_eq!(in_session("s", "a"), in_session("s", "b"));
        assert_ne!(in_session("s", "a"), in_session("t", "a"));
        assert_eq!(
            in_session("s", "a"),
            key(Some("s"), None),
            "no body is needed"
        );
        let null = json!({"prompt_cache_key": null, "prompt": "x"});
        assert_eq!(of(&null), of(&json!({"prompt": "x"})));
    }

    #[test]
    fn plain_prompts_go_by_their_beginning() {
        let text = |text: String| of(&json!({"prompt": text}));
        let begins = "b".repeat(PROMPT_BYTES);
        assert_eq!(text(begins.clone() + "x"), text(begins + "y, and more"));
        assert_ne!(text("x".into()), text("y".into()));
        let ids = |ids: &[u32]| of(&json!({"prompt": ids}));
        assert_ne!(ids(&[1, 2]), ids(&[12]));
        assert_eq!(
            of(&json!({"prompt": ["a", "b"]})),
            of(&json!({"prompt": "a"}))
        );
        assert_eq!(of(&json!({"prompt": [[1, 2], [3]]})), ids(&[1, 2]));
        let responses = json!({"input": "Hello", "instructions": "Be brief."});
        assert!(of(&responses).is_some());
        let turns = json!({"input": [{"role": "user", "content": "Hello"}]});
        let later = json!({"input": [{"role": "user", "content": "Hello"}, {"type": "reasoning"}]});
        assert_eq!(of(&turns), of(&later));
    }

    #[test]
    fn what_says_nothing_has_no_key() {
        for body in [
            json!({}),
            json!({"messages": []}),
            json!({"messages": 7}),
            json!({"prompt": 7}),
            json!({"prompt": []}),
            json!({"prompt_cache_key": 7}),
        ] {
            assert_eq!(of(&body), None, "{body}");
        }
        assert_eq!(key(None, None), None);
    }
}

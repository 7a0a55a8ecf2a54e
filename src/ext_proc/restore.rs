//! Gives a response the model's name back that its client asked for, as the bytes pass.
//!
//! Where rules gave a request to another model, its server answers with that one's name. The client's
//! goes in its place wherever an API says it: in the member `model` of an answer or of an event, and of
//! what these have as `response` (the Responses API) or `message` (Anthropic's). Whatever stands there
//! is replaced, since it is what the server calls the model: vLLM may say the first of its names. So
//! nothing is compared and nothing held: at a name's first quote the new one is said and the old one
//! passed over, wherever the bytes are cut.
//!
//! What comes after the name is only looked through for the next event. A chunk with a name in it is
//! copied once; every other one passes as it is.

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr2, memchr3};

/// Reads one response.
#[derive(Debug)]
pub struct Restorer {
    /// The client's name as JSON.
    name: Bytes,
    /// Every line is a document: an event stream.
    events: bool,
    state: State,
}

/// How far a document is read.
#[derive(Debug, Default)]
struct State {
    at: At,
    depth: u32,
    /// At depth 2 and below: within a member that may have the name.
    wrapped: bool,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Between,
    /// In a string, which may be a key.
    Text(Word),
    /// The byte after a backslash in it.
    Escape(Word),
    /// After a string that is one if a colon follows.
    Key(Member),
    /// After that colon.
    Value(Member),
    /// In the old name.
    Old,
    OldEscape,
    /// The document has nothing more to find.
    Done,
}

/// The members that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Model,
    Wrapper,
}

/// A string's first bytes: one more than the longest name has, so that no longer one is taken for it.
#[derive(Debug, Default, Clone, Copy)]
struct Word {
    bytes: [u8; 9],
    length: usize,
}

impl Word {
    fn push(&mut self, more: &[u8]) {
        let more = &more[..more.len().min(self.bytes.len() - self.length)];
        self.bytes[self.length..][..more.len()].copy_from_slice(more);
        self.length += more.len();
    }

    fn member(&self) -> Option<Member> {
        match &self.bytes[..self.length] {
            b"model" => Some(Member::Model),
            b"response" | b"message" => Some(Member::Wrapper),
            _ => None,
        }
    }
}

impl Restorer {
    /// For a response that is one JSON document, or an event stream of them; `name` is what clients
    /// are to read.
    #[must_use]
    pub fn new(name: &str, events: bool) -> Self {
        Self {
            name: serde_json::Value::from(name).to_string().into(),
            events,
            state: State::default(),
        }
    }

    /// The next bytes as the client is to have them; none where they are as they came.
    pub fn feed(&mut self, bytes: &Bytes) -> Option<Bytes> {
        let mut new = BytesMut::new();
        let (mut at, mut from) = (0, 0);
        while at < bytes.len() {
            let old = self.in_old();
            at += self.state.step(&bytes[at..], self.events);
            match (old, self.in_old()) {
                (false, true) => {
                    // The quote was the last byte that was read.
                    new.reserve(bytes.len() - from + self.name.len());
                    new.extend_from_slice(&bytes[from..at - 1]);
                    new.extend_from_slice(&self.name);
                    from = bytes.len();
                }
                (true, false) => from = at,
                _ => {}
            }
            if old && self.in_old() {
                from = bytes.len();
            }
        }
        if new.is_empty() {
            return (from > 0).then(|| bytes.slice(from..));
        }
        new.extend_from_slice(&bytes[from..]);
        Some(new.freeze())
    }

    fn in_old(&self) -> bool {
        matches!(self.state.at, At::Old | At::OldEscape)
    }
}

impl State {
    /// Reads on, and says how many bytes. None of a line's end that breaks a name off: it stays.
    fn step(&mut self, bytes: &[u8], events: bool) -> usize {
        let byte = bytes[0];
        if events && byte == b'\n' {
            let broken = matches!(self.at, At::Old | At::OldEscape);
            *self = Self::default();
            return usize::from(!broken);
        }
        match &mut self.at {
            At::Text(word) => {
                let run = until(bytes, b'"', b'\\', events);
                word.push(&bytes[..run]);
                if run > 0 {
                    return run;
                }
                let word = *word;
                self.at = match byte {
                    b'\\' => At::Escape(word),
                    _ => self.key(word),
                };
            }
            At::Escape(word) => {
                // No name that matters is written with one.
                word.push(b"\\\\\\\\\\\\\\\\\\");
                self.at = At::Text(*word);
            }
            At::Old => {
                let run = until(bytes, b'"', b'\\', events);
                if run > 0 {
                    return run;
                }
                self.at = if byte == b'"' {
                    At::Done
                } else {
                    At::OldEscape
                };
            }
            At::OldEscape => self.at = At::Old,
            At::Done if events => return memchr(b'\n', bytes).unwrap_or(bytes.len()),
            At::Done => return bytes.len(),
            At::Between | At::Key(_) | At::Value(_) => self.structure(byte),
        }
        1
    }

    /// What a string is that has just ended.
    fn key(&self, word: Word) -> At {
        let here = self.depth == 1 || (self.depth == 2 && self.wrapped);
        match word.member().filter(|_| here) {
            Some(member) => At::Key(member),
            None => At::Between,
        }
    }

    /// A byte outside of strings.
    fn structure(&mut self, byte: u8) {
        let before = std::mem::take(&mut self.at);
        match (byte, before) {
            (b' ' | b'\t' | b'\n' | b'\r', before) => self.at = before,
            (b':', At::Key(member)) => self.at = At::Value(member),
            (b'"', At::Value(Member::Model)) => self.at = At::Old,
            (b'"', _) => self.at = At::Text(Word::default()),
            (b'{', At::Value(Member::Wrapper)) if self.depth == 1 => {
                self.depth = 2;
                self.wrapped = true;
            }
            (b'{' | b'[', _) => self.depth = self.depth.saturating_add(1),
            (b'}' | b']', _) => {
                self.depth = self.depth.saturating_sub(1);
                self.wrapped &= self.depth > 1;
            }
            _ => {}
        }
    }
}

/// Bytes before the first of two, or before a line's end in an event stream.
fn until(bytes: &[u8], one: u8, two: u8, events: bool) -> usize {
    let found = match events {
        true => memchr3(one, two, b'\n', bytes),
        false => memchr2(one, two, bytes),
    };
    found.unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client reads of a response that comes in these parts, and how many of them were
    /// touched.
    fn read(parts: &[&str], events: bool) -> (String, usize) {
        let mut restorer = Restorer::new("chat", events);
        let (mut read, mut touched) = (Vec::new(), 0);
        for part in parts {
            let bytes = Bytes::copy_from_slice(part.as_bytes());
            let new = restorer.feed(&bytes);
            touched += usize::from(new.is_some());
            read.extend_from_slice(&new.unwrap_or(bytes));
        }
        (String::from_utf8(read).expect("text"), touched)
    }

    fn whole(text: &str) -> String {
        read(&[text], false).0
    }

    const ANSWER: &str = r#"{"id":"a\"model\":\"x","choices":[{"model":"keep"}], "model" : "chat-v2\"é" ,"usage":{"model":"keep"}}"#;
    const STREAM: &str = concat!(
        "data: {\"id\":\"1\",\"model\":\"chat-v2\",\"choices\":[{\"delta\":{\"content\":\"a \\\"model\\\":\\\"chat-v2\\\"\"}}]}\n\n",
        ": a \"comment\r\n",
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"metadata\":{\"model\":\"keep\"},\"model\":\"chat-v2\"}}\n\n",
        "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[{\"model\":\"keep\"}],\"model\":\"chat-v2\"}}\r\n\r\n",
        "data: {\"model\":null,\"metadata\":{\"model\":\"keep\"}}\n\ndata: [DONE]\n\n",
    );

    #[test]
    fn an_answer_says_the_name_that_was_asked_for_and_nothing_else_changes() {
        let expected = ANSWER.replace(r#""chat-v2\"é""#, "\"chat\"");
        assert_eq!(whole(ANSWER), expected);
    }

    #[test]
    fn every_event_says_it_wherever_its_api_has_it() {
        let expected = STREAM.replace("\"model\":\"chat-v2\"", "\"model\":\"chat\"");
        assert_eq!(read(&[STREAM], true).0, expected);
    }

    #[test]
    fn a_name_may_be_cut_anywhere() {
        for (text, events) in [(ANSWER, false), (STREAM, true)] {
            let expected = read(&[text], events).0;
            let cuts = (0..=text.len()).filter(|cut| text.is_char_boundary(*cut));
            for cut in cuts {
                let (head, tail) = text.split_at(cut);
                assert_eq!(read(&[head, tail], events).0, expected, "cut at {cut}");
            }
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            assert_eq!(read(&letters, events).0, expected);
        }
    }

    #[test]
    fn chunks_without_a_name_pass_as_they_are() {
        let parts = ["{\"model\":\"", "chat-v2", "\",\"choices\":", "[]}"];
        let (text, touched) = read(&parts, false);
        assert_eq!(
            (&text[..], touched),
            (r#"{"model":"chat","choices":[]}"#, 3)
        );
        let (_, touched) = read(&["{\"choices\":[", "1,2]", "}"], false);
        assert_eq!(touched, 0);
    }

    #[test]
    fn what_is_no_name_stays() {
        for text in [
            r#"{"model":null}"#,
            r#"{"model":{"model":"a"}}"#,
            r#"{"model":["a"]}"#,
            r#"{"models":"a","a model":"b","mode":"c"}"#,
            r#"{"mod\u0065l":"a"}"#,
            r#"{"x":"model","y":"a"}"#,
            r#"{"response":[{"model":"a"}]}"#,
            r#"{"response":{"response":{"model":"a"}}}"#,
            r#"{"data":{"model":"a"}}"#,
            r#"[{"model":"a"}]"#,
            r#""model":"a""#,
            r#"{"model" "a"}"#,
            "model: \"a\"",
            "}}{\"a",
            "",
        ] {
            assert_eq!(whole(text), text);
            assert_eq!(read(&[text], true).0, text, "as an event");
        }
    }

    #[test]
    fn an_event_that_breaks_off_harms_no_other() {
        for broken in [
            "data: {\"model\":\"cha",
            "data: {\"a\":\"{[",
            "data: {{{\\",
            "data: {\"model\":\"a\\",
        ] {
            let text = format!("{broken}\ndata: {{\"model\":\"chat-v2\"}}\n\n");
            let read = read(&[&text], true).0;
            assert!(read.ends_with("\ndata: {\"model\":\"chat\"}\n\n"), "{read}");
        }
    }

    proptest::proptest! {
        /// Whatever serde_json writes, restoring its bytes is restoring the value, however they are
        /// cut and however the text around them looks.
        #[test]
        fn restoring_bytes_is_restoring_the_value(
            text in "[ -~\n\u{e9}]{0,20}", model in "[ -~\u{4e2d}]{0,12}", cut in 0_usize..200,
        ) {
            let of = |model: &str| serde_json::json!({
                "choices": [{"text": text, "model": text}], &text: 1, "model": model, "x": {"model": text},
            });
            if text != "model" && text != "response" && text != "message" {
                let (given, expected) = (of(&model).to_string(), of("chat").to_string());
                let cut = (0..=cut.min(given.len())).rev().find(|cut| given.is_char_boundary(*cut));
                let (head, tail) = given.split_at(cut.unwrap_or(0));
                proptest::prop_assert_eq!(read(&[head, tail], false).0, expected);
            }
        }

        /// Anything that looks like JSON and has no name passes as it is.
        #[test]
        fn what_has_no_name_is_not_touched(
            text in r#"(\{|\}|"model"|"response"|:|,|"a"|\\|"|\[|\]| |\n){0,24}"#, events: bool,
        ) {
            let read = read(&[&text], events).0;
            let names = read.matches("\"chat\"").count();
            proptest::prop_assert!(names > 0 || read == text);
        }
    }
}

//! Finds the `usage` that a model server reports, in the bytes of its response as they pass.
//!
//! The scanner looks for the key `"usage"` followed by an object, whatever surrounds it: a plain
//! JSON body and the `data:` lines of an event stream are the same to it, and it does not matter
//! where the bytes are cut. That is sound because inside a JSON string a quote is always escaped,
//! so `"usage"` before a colon can only be a key. Only the object is ever parsed or kept, so a
//! long stream costs one comparison a byte, and memory stays below [`OBJECT_BYTES_MAX`].
//!
//! The last object that holds token counts wins: a stream may report usage as it goes.

use serde::Deserialize;

use crate::audit::Usage;

/// The longest usage object that is read. vLLM's has about 200 bytes; 4 KiB leaves room for what
/// servers will add.
const OBJECT_BYTES_MAX: usize = 4096;

const KEY: &[u8] = b"\"usage\"";

/// Reads one response's usage.
#[derive(Debug, Default)]
pub struct UsageScanner {
    state: State,
    last: Option<Usage>,
}

#[derive(Debug)]
enum State {
    /// So many bytes of [`KEY`] have matched.
    Key(usize),
    /// The key is complete; a colon, then the object, may follow.
    Colon,
    Value,
    Object(Object),
    /// Not a body that can be read: wrong type, or compressed.
    Blind,
}

impl Default for State {
    fn default() -> Self {
        Self::Key(0)
    }
}

#[derive(Debug, Default)]
struct Object {
    bytes: Vec<u8>,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl UsageScanner {
    /// A scanner for a response with these headers; one that sees nothing where the body is
    /// compressed or not JSON.
    #[must_use]
    pub fn new(content_type: Option<&str>, content_encoding: Option<&str>) -> Self {
        let state = if readable(content_type, content_encoding) {
            State::Key(0)
        } else {
            State::Blind
        };
        Self { state, last: None }
    }

    /// Reads on.
    pub fn feed(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Blind) {
            return;
        }
        for &byte in bytes {
            self.step(byte);
        }
    }

    /// The last usage seen.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.last
    }

    fn step(&mut self, byte: u8) {
        match &mut self.state {
            State::Key(matched) if byte == KEY[*matched] => {
                *matched += 1;
                if *matched == KEY.len() {
                    self.state = State::Colon;
                }
            }
            State::Key(matched) => *matched = restart(byte),
            State::Colon if byte == b':' => self.state = State::Value,
            State::Value if byte == b'{' => self.state = State::Object(Object::open()),
            State::Colon | State::Value if byte.is_ascii_whitespace() => {}
            State::Colon | State::Value => self.state = State::Key(restart(byte)),
            State::Object(object) => match object.push(byte) {
                Progress::Open => {}
                Progress::TooLong => self.state = State::Key(0),
                Progress::Closed => {
                    self.last = parse(&object.bytes).or(self.last);
                    self.state = State::Key(0);
                }
            },
            State::Blind => {}
        }
    }
}

/// How much of the key a byte that broke a match begins anew.
fn restart(byte: u8) -> usize {
    usize::from(byte == KEY[0])
}

enum Progress {
    Open,
    Closed,
    TooLong,
}

impl Object {
    fn open() -> Self {
        Self {
            bytes: vec![b'{'],
            depth: 1,
            ..Self::default()
        }
    }

    fn push(&mut self, byte: u8) -> Progress {
        self.bytes.push(byte);
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            b'{' if !self.in_string => self.depth += 1,
            b'}' if !self.in_string => self.depth -= 1,
            _ => {}
        }
        if self.depth == 0 {
            Progress::Closed
        } else if self.bytes.len() >= OBJECT_BYTES_MAX {
            Progress::TooLong
        } else {
            Progress::Open
        }
    }
}

/// Whether a response with these headers is text that we know: not compressed, and JSON or events.
pub(super) fn readable(content_type: Option<&str>, content_encoding: Option<&str>) -> bool {
    content_type.is_some_and(is_json_or_events)
        && content_encoding.is_none_or(|e| e.trim().eq_ignore_ascii_case("identity"))
}

fn is_json_or_events(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence == "text/event-stream" || essence == "application/json" || essence.ends_with("+json")
}

/// Usage as servers write it: the names of chats and texts, of the Responses API, of Anthropic's
/// messages.
#[derive(Deserialize)]
struct Written {
    /// Of the whole prompt; in Anthropic's messages, of what is neither read from the cache nor
    /// written to it (`_build_anthropic_usage`).
    #[serde(alias = "input_tokens")]
    prompt_tokens: u64,
    #[serde(default, alias = "output_tokens")]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
    #[serde(default)]
    input_tokens_details: Option<Details>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Details {
    /// Outer `None`: no such key. Inner `None`: null.
    #[serde(default, deserialize_with = "present")]
    cached_tokens: Option<Option<u64>>,
}

fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(from).map(Some)
}

fn parse(object: &[u8]) -> Option<Usage> {
    let written: Written = serde_json::from_slice(object).ok()?;
    let details = |details: Option<Details>| {
        let cached = details.and_then(|details| details.cached_tokens);
        cached.map(Option::unwrap_or_default)
    };
    let of_responses = details(written.input_tokens_details);
    let read = written.cache_read_input_tokens;
    let apart = [read, written.cache_creation_input_tokens];
    Some(Usage {
        prompt_tokens: apart
            .iter()
            .flatten()
            .fold(written.prompt_tokens, |sum, tokens| {
                sum.saturating_add(*tokens)
            }),
        completion_tokens: written.completion_tokens.unwrap_or(0),
        cached_tokens: details(written.prompt_tokens_details)
            .or(of_responses)
            .or(read),
        unasked: of_responses.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"content\":\"say \\\"usage\\\": {\\\"prompt_tokens\\\": 9}\"}}],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"usage\"}}],\"usage\" : {\"prompt_tokens\":7,\"completion_tokens\":1}}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":70,\"total_tokens\":75,\"completion_tokens\":5,",
        "\"note\":\"a } and \\\" within\",\"prompt_tokens_details\":{\"cached_tokens\":64,\"multimodal_tokens\":null}}}\n\n",
        "data: [DONE]\n\n",
    );

    fn scan(parts: &[&[u8]]) -> Option<Usage> {
        let mut scanner = UsageScanner::new(Some("text/event-stream; charset=utf-8"), None);
        for part in parts {
            scanner.feed(part);
        }
        scanner.usage()
    }

    fn cached(json: &str) -> Option<Usage> {
        let mut scanner = UsageScanner::new(Some("application/json"), None);
        scanner.feed(json.as_bytes());
        scanner.usage()
    }

    #[test]
    fn the_last_usage_of_a_stream_is_found_wherever_it_is_cut() {
        let bytes = STREAM.as_bytes();
        let expected = Usage {
            prompt_tokens: 70,
            completion_tokens: 5,
            cached_tokens: Some(64),
            unasked: false,
        };
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(scan(&[head, tail]), Some(expected), "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(scan(&single), Some(expected));
    }

    #[test]
    fn an_early_usage_counts_where_the_stream_breaks_off() {
        let cut = STREAM.find("data: {\"choices\":[],").expect("is there");
        let usage = scan(&[&STREAM.as_bytes()[..cut]]).expect("the second line's");
        assert_eq!((usage.prompt_tokens, usage.cached_tokens), (7, None));
    }

    #[test]
    fn null_details_are_unknown_and_a_null_within_details_is_zero() {
        let of = |details: &str| {
            cached(&format!(
                "{{\"id\":1,\"usage\":{{\"prompt_tokens\":3{details}}}}}"
            ))
            .expect("usage")
            .cached_tokens
        };
        assert_eq!(of(""), None);
        assert_eq!(of(",\"prompt_tokens_details\":null"), None);
        assert_eq!(of(",\"prompt_tokens_details\":{\"audio_tokens\":1}"), None);
        assert_eq!(
            of(",\"prompt_tokens_details\":{\"cached_tokens\":null}"),
            Some(0)
        );
        assert_eq!(
            of(",\"prompt_tokens_details\":{\"cached_tokens\":0}"),
            Some(0)
        );
    }

    #[test]
    fn the_responses_api_is_read_too() {
        let usage = cached(
            "{\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":8,\
             \"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":2}}}",
        );
        let expected = Usage {
            prompt_tokens: 8,
            completion_tokens: 2,
            cached_tokens: Some(4),
            unasked: true,
        };
        assert_eq!(usage, Some(expected));
    }

    #[test]
    fn anthropics_parts_of_a_prompt_add_up() {
        let usage = |fields: &str| cached(&format!("{{\"usage\":{{{fields}}}}}")).unwrap();
        let plain = usage("\"input_tokens\":9,\"output_tokens\":3");
        assert_eq!((plain.prompt_tokens, plain.cached_tokens), (9, None));
        let read = usage(
            "\"input_tokens\":9,\"output_tokens\":3,\"cache_read_input_tokens\":64,\
             \"cache_creation_input_tokens\":32",
        );
        let expected = Usage {
            prompt_tokens: 105,
            completion_tokens: 3,
            cached_tokens: Some(64),
            unasked: false,
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn a_stream_of_messages_ends_with_its_usage() {
        let stream = concat!(
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"content\":[],\"usage\":{\"input_tokens\":70,\"output_tokens\":0}}}\n\n",
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"x\"}}\n\n",
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":5,\"cache_read_input_tokens\":64,\"input_tokens\":6}}\n\n",
        );
        let single: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        let usage = scan(&single).unwrap();
        assert_eq!((usage.prompt_tokens, usage.cached_tokens), (70, Some(64)));
    }

    #[test]
    fn what_cannot_be_read_is_passed_by() {
        let blind = |content_type, encoding| {
            let mut scanner = UsageScanner::new(content_type, encoding);
            scanner.feed(STREAM.as_bytes());
            scanner.usage()
        };
        assert_eq!(blind(Some("text/plain"), None), None);
        assert_eq!(blind(None, None), None);
        assert_eq!(blind(Some("application/json"), Some("gzip")), None);
        assert!(blind(Some("Application/Problem+JSON"), Some("identity")).is_some());
    }

    #[test]
    fn an_endless_object_is_given_up_and_the_next_is_read() {
        let long = format!(
            "{{\"usage\":{{\"a\":\"{}\"}},\"usage\":{{\"prompt_tokens\":1}}}}",
            "x".repeat(2 * OBJECT_BYTES_MAX)
        );
        assert_eq!(cached(&long).map(|u| u.prompt_tokens), Some(1));
        assert_eq!(cached("{\"usage\":{\"prompt_tokens\":\"no\"}}"), None);
        assert_eq!(
            cached("\"\"usage\":{\"prompt_tokens\":2}").map(|u| u.prompt_tokens),
            Some(2)
        );
    }
}

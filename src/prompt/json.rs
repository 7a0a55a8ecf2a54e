//! JSON as Python's `json` module reads and writes it: the text that vLLM's templates print.
//!
//! Differs from RFC 8259 where Python does: a byte order mark is skipped, `NaN` and `Infinity`
//! are numbers, integers are exact, `1e400` is infinite, a repeated key keeps its first position
//! and its last value, and `\ud800` alone is a string that nothing can encode.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

mod write;
pub use write::{Style, float_repr};

/// Nesting that is still read: our recursion, a few hundred bytes of stack a level.
const DEPTH_MAX: usize = 256;
/// Values in one document, 32 bytes each: 64 MB. A million token ids fit twice.
const VALUES_MAX: usize = 2_000_000;
/// Digits of an integer that Python still converts (`sys.int_info.default_max_str_digits`).
const INT_DIGITS_MAX: usize = 4300;
/// Objects of more members than this find repeated keys through a table.
const SCANNED_MEMBERS_MAX: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer that 64 bits hold.
    Int(i64),
    /// Any other integer: its sign and digits.
    BigInt(Box<str>),
    /// A number with a point or an exponent, `NaN` and the infinities.
    Float(f64),
    /// Text.
    Str(Arc<str>),
    /// A string with half of a surrogate pair. Python holds it, no tokenizer takes it, so what
    /// else it says is not kept.
    LoneSurrogate,
    /// An array.
    List(Vec<Json>),
    /// An object.
    Object(Object),
}

/// Members in the order of their first mention; keys are unique.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object(Vec<(Arc<str>, Json)>);

impl Object {
    /// The value of a key. Linear: for the few names that we look up.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.0.iter().find(|(k, _)| &**k == key).map(|(_, v)| v)
    }

    /// The value of a key, unless it is absent or `null`.
    #[must_use]
    pub fn get_some(&self, key: &str) -> Option<&Json> {
        self.get(key).filter(|value| **value != Json::Null)
    }

    /// Sets a key, in place where it exists. Linear.
    pub fn set(&mut self, key: &str, value: Json) {
        match self.0.iter_mut().find(|(k, _)| &**k == key) {
            Some(member) => member.1 = value,
            None => self.0.push((key.into(), value)),
        }
    }

    /// Takes a key out. Linear.
    pub fn remove(&mut self, key: &str) -> Option<Json> {
        let at = self.0.iter().position(|(k, _)| &**k == key)?;
        Some(self.0.remove(at).1)
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Json)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// How many members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it is `{}`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From members whose keys may repeat, in linear time.
    fn of_members(mut members: Vec<(Arc<str>, Json)>) -> Self {
        if members.len() <= SCANNED_MEMBERS_MAX {
            let mut object = Self(Vec::with_capacity(members.len()));
            for (key, value) in members {
                object.set(&key, value);
            }
            return object;
        }
        let mut positions: HashMap<Arc<str>, usize> = HashMap::with_capacity(members.len());
        let mut kept: Vec<(Arc<str>, Json)> = Vec::with_capacity(members.len());
        for (key, value) in members.drain(..) {
            let position = *positions.entry(Arc::clone(&key)).or_insert(kept.len());
            match kept.get_mut(position) {
                Some(member) => member.1 = value,
                None => kept.push((key, value)),
            }
        }
        Self(kept)
    }
}

impl<const N: usize> From<[(&str, Json); N]> for Object {
    fn from(members: [(&str, Json); N]) -> Self {
        Self::of_members(members.into_iter().map(|(k, v)| (k.into(), v)).collect())
    }
}

impl FromIterator<(Arc<str>, Json)> for Object {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Json)>>(members: I) -> Self {
        Self::of_members(members.into_iter().collect())
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl Json {
    /// The text of a string that can be encoded.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The members of an object.
    #[must_use]
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The items of an array.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Json]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// What Python's `bool()` says.
    #[must_use]
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(yes) => *yes,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Object(object) => !object.is_empty(),
            Self::BigInt(_) | Self::LoneSurrogate => true,
        }
    }

    /// The kind of value, for messages that must not quote it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::BigInt(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Str(_) => "a string",
            Self::LoneSurrogate => "a string with a lone surrogate",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// Python's `json.loads(bytes)`, for UTF-8.
    ///
    /// # Errors
    /// A [`JsonError`] where Python raises, or a limit of ours is passed.
    pub fn loads_bytes(bytes: &[u8]) -> Result<Self, JsonError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text =
            std::str::from_utf8(bytes).map_err(|error| Fault::NotUtf8.at(error.valid_up_to()))?;
        Self::loads(text)
    }

    /// Python's `json.loads(str)`.
    ///
    /// # Errors
    /// A [`JsonError`] where Python raises, or a limit of ours is passed.
    pub fn loads(text: &str) -> Result<Self, JsonError> {
        let mut parser = Parser {
            text,
            at: 0,
            values: 0,
        };
        parser.skip_space();
        let value = parser.value(0)?;
        parser.skip_space();
        match parser.peek() {
            None => Ok(value),
            Some(_) => Err(Fault::Syntax.at(parser.at)),
        }
    }
}

/// Why a text is not JSON, and where; never what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonError {
    /// What is wrong.
    pub fault: Fault,
    /// Bytes before it.
    pub at: usize,
}

/// What can be wrong with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not JSON: Python's `JSONDecodeError`.
    Syntax,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// An object's key has half of a surrogate pair.
    LoneSurrogate,
    /// An integer of more than 4300 digits, which Python refuses.
    HugeInteger,
    /// Nested deeper than 256.
    TooDeep,
    /// More than two million values.
    TooManyValues,
}

impl Fault {
    fn at(self, at: usize) -> JsonError {
        JsonError { fault: self, at }
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.fault {
            Fault::Syntax => "a syntax error",
            Fault::NotUtf8 => "bytes that are not UTF-8",
            Fault::LoneSurrogate => "a key with a lone surrogate",
            Fault::HugeInteger => "an integer of more than 4300 digits",
            Fault::TooDeep => "nesting deeper than 256",
            Fault::TooManyValues => "more than two million values",
        };
        write!(f, "{what} at byte {}", self.at)
    }
}

impl std::error::Error for JsonError {}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    values: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes `word` if it stands here.
    fn take(&mut self, word: &str) -> bool {
        let here = self.text.as_bytes()[self.at..].starts_with(word.as_bytes());
        self.at += if here { word.len() } else { 0 };
        here
    }

    fn value(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(Fault::TooManyValues.at(self.at));
        }
        if depth > DEPTH_MAX {
            return Err(Fault::TooDeep.at(self.at));
        }
        match self.peek() {
            Some(b'"') => Ok(self.string()?.map_or(Json::LoneSurrogate, Json::Str)),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Json, JsonError> {
        let words = [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
            ("NaN", Json::Float(f64::NAN)),
            ("Infinity", Json::Float(f64::INFINITY)),
            ("-Infinity", Json::Float(f64::NEG_INFINITY)),
        ];
        for (word, value) in words {
            if self.take(word) {
                return Ok(value);
            }
        }
        Err(Fault::Syntax.at(self.at))
    }

    fn list(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space();
        if self.take("]") {
            return Ok(Json::List(items));
        }
        loop {
            self.skip_space();
            items.push(self.value(depth + 1)?);
            self.skip_space();
            if self.take("]") {
                return Ok(Json::List(items));
            }
            if !self.take(",") {
                return Err(Fault::Syntax.at(self.at));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.at += 1;
        let mut members = Vec::new();
        self.skip_space();
        if self.take("}") {
            return Ok(Json::Object(Object(members)));
        }
        loop {
            self.skip_space();
            let start = self.at;
            if self.peek() != Some(b'"') {
                return Err(Fault::Syntax.at(start));
            }
            let key = self.string()?;
            self.skip_space();
            if !self.take(":") {
                return Err(Fault::Syntax.at(self.at));
            }
            self.skip_space();
            let value = self.value(depth + 1)?;
            members.push((key.ok_or(Fault::LoneSurrogate.at(start))?, value));
            self.skip_space();
            if self.take("}") {
                return Ok(Json::Object(Object::of_members(members)));
            }
            if !self.take(",") {
                return Err(Fault::Syntax.at(self.at));
            }
        }
    }

    /// A string, or none where half of a surrogate pair is in it.
    fn string(&mut self) -> Result<Option<Arc<str>>, JsonError> {
        self.at += 1;
        let start = self.at;
        self.skip_plain();
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(Some(self.text[start..self.at - 1].into()));
        }
        let mut text = self.text[start..self.at].to_owned();
        let mut whole = true;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(whole.then(|| text.into()));
                }
                Some(b'\\') => match self.escape()? {
                    Some(c) => text.push(c),
                    None => whole = false,
                },
                _ => return Err(Fault::Syntax.at(self.at)),
            }
            let start = self.at;
            self.skip_plain();
            text.push_str(&self.text[start..self.at]);
        }
    }

    /// To the next quote, backslash or control character, or the end.
    fn skip_plain(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        let special = |byte: &u8| *byte == b'"' || *byte == b'\\' || *byte < 0x20;
        self.at += rest.iter().position(special).unwrap_or(rest.len());
    }

    /// The character of an escape; none for half of a surrogate pair.
    fn escape(&mut self) -> Result<Option<char>, JsonError> {
        let start = self.at;
        self.at += 2;
        let c = match self.text.as_bytes().get(start + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(start),
            _ => return Err(Fault::Syntax.at(start)),
        };
        Ok(Some(c))
    }

    fn unicode_escape(&mut self, start: usize) -> Result<Option<char>, JsonError> {
        let unit = self.hex4().ok_or(Fault::Syntax.at(start))?;
        if !(0xd800..0xdc00).contains(&unit) {
            return Ok(char::from_u32(unit));
        }
        let after_high = self.at;
        if self.take("\\u") {
            let low = self.hex4().ok_or(Fault::Syntax.at(after_high))?;
            if (0xdc00..0xe000).contains(&low) {
                let code = 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(code));
            }
            self.at = after_high;
        }
        Ok(None)
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4)?;
        let mut unit = 0;
        for digit in digits {
            unit = unit * 16 + char::from(*digit).to_digit(16)?;
        }
        self.at += 4;
        Some(unit)
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let start = self.at;
        if self.text[start..].starts_with("-I") {
            return self.word();
        }
        self.take("-");
        if !self.take("0") && self.digits() == 0 {
            return Err(Fault::Syntax.at(start));
        }
        let whole = self.at;
        self.optional(|parser| parser.take("."));
        self.optional(|parser| {
            let exponent = parser.take("e") || parser.take("E");
            exponent && (parser.take("+") || parser.take("-") || true)
        });
        let text = &self.text[start..self.at];
        if self.at > whole {
            let number = text.parse().map_err(|_| Fault::Syntax.at(start))?;
            return Ok(Json::Float(number));
        }
        if text.trim_start_matches('-').len() > INT_DIGITS_MAX {
            return Err(Fault::HugeInteger.at(start));
        }
        Ok(text
            .parse()
            .map_or_else(|_| Json::BigInt(text.into()), Json::Int))
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    /// A part of a number: `lead` and digits, or nothing at all.
    fn optional(&mut self, lead: impl FnOnce(&mut Self) -> bool) {
        let start = self.at;
        if !(lead(self) && self.digits() > 0) {
            self.at = start;
        }
    }
}

#[cfg(test)]
mod tests;

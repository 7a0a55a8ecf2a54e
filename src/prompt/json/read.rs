//! Python's `json.loads`, in one pass.

use super::strings::Known;
use super::{Fault, Json, JsonError, Object};

/// Nesting that is still read: our recursion, a few hundred bytes of stack a level.
const DEPTH_MAX: usize = 256;
/// Values in one document, 32 bytes each: 64 MB. A million token ids fit twice.
pub(super) const VALUES_MAX: usize = 2_000_000;
/// Digits of an integer that Python still converts (`sys.int_info.default_max_str_digits`).
const INT_DIGITS_MAX: usize = 4300;

impl Json {
    /// Python's `json.loads(bytes)`, for UTF-8.
    ///
    /// # Errors
    /// A [`JsonError`] where Python raises, or a limit of ours is passed.
    pub fn loads_bytes(bytes: &[u8]) -> Result<Self, JsonError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        // Ten times as fast as the standard library's on Chinese, which is most of a body's time.
        let text = simdutf8::compat::from_utf8(bytes)
            .map_err(|error| Fault::NotUtf8.at(error.valid_up_to()))?;
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
            unescaped: Vec::new(),
            known: Known::default(),
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

pub(super) struct Parser<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
    values: usize,
    /// Where a string with escapes is put together.
    pub(super) unescaped: Vec<u8>,
    pub(super) known: Known,
}

impl Parser<'_> {
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes `word` if it stands here.
    pub(super) fn take(&mut self, word: &str) -> bool {
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
            _ = parser.take("+") || parser.take("-");
            exponent
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

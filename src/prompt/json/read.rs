//! Python's `json.loads`, in one pass.

use std::sync::Arc;

use memchr::memchr2;

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
            unescaped: String::new(),
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

struct Parser<'a> {
    text: &'a str,
    at: usize,
    values: usize,
    /// Where a string with escapes is put together.
    unescaped: String,
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
        self.unescaped.clear();
        self.unescaped.push_str(&self.text[start..self.at]);
        let mut whole = true;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(whole.then(|| self.unescaped.as_str().into()));
                }
                Some(b'\\') => match self.escape()? {
                    Some(c) => self.unescaped.push(c),
                    None => whole = false,
                },
                _ => return Err(Fault::Syntax.at(self.at)),
            }
            let start = self.at;
            self.skip_plain();
            self.unescaped.push_str(&self.text[start..self.at]);
        }
    }

    /// To the next quote, backslash or control character, or the end.
    fn skip_plain(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        let plain = memchr2(b'"', b'\\', rest).map_or(rest, |end| &rest[..end]);
        // The smallest byte first: a few vector instructions where nothing is wrong.
        let has_control = plain.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < 0x20;
        let control = || plain.iter().position(|byte| *byte < 0x20);
        self.at += match has_control {
            true => control().unwrap_or(plain.len()),
            false => plain.len(),
        };
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
